"""The inventory of a release: the licences of all direct dependencies are on their page, and all bundled weights are in the SBOM."""

import re
from email.message import Message

import pytest

from gleansr.checkpoints import zoo
from tests.scripts import script

inventory = script("release/inventory.py")


def test_the_page_lists_each_direct_dependency_with_its_extra():
    [table] = inventory.TABLE.findall(inventory.PAGE.read_text("utf-8"))
    listed = re.findall(r"^\| ([\w.-]+) \| (?:`(\w+)`)? \| (.+) \|$", table, re.MULTILINE)
    assert [(name, extra) for name, extra, _ in listed] == inventory.direct_dependencies()
    assert ("torch", "") in inventory.direct_dependencies()
    assert ("onnx", "export") in inventory.direct_dependencies()


def test_all_bundled_weights_are_components_with_the_licence_of_their_model():
    assets = inventory.PACKAGE / "assets"
    components = {part["name"].removeprefix("gleansr/assets/"): part for part in inventory.weights()}
    assert set(components) == {file.name for file in assets.glob("*.safetensors")}
    for model in zoo.named_models():
        if model.asset:
            [licence] = components[model.asset]["licenses"]
            assert licence["license"]["id"] == model.licence, model.name
            assert components[model.asset]["hashes"][0]["content"].startswith(model.sha256_prefix)


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "other")], "MIT"),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "3-clause")], "BSD License"),
        ([("Classifier", "Topic :: X"), ("License", "Boost Software License")], "Boost Software License"),
        ([("License", "A text\nof many lines")], "not stated"),
        ([], "not stated"),
    ],
)
def test_licences_are_read_from_what_metadata_have(fields: list[tuple[str, str]], licence: str):
    metadata: Message = Message()
    for name, value in fields:
        metadata[name] = value
    assert inventory.stated_licence(metadata) == licence
