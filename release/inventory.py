"""What a release consists of: its SBOM, and the page about the licences of its dependencies.

    python release/inventory.py ENVIRONMENT sbom FILE     CycloneDX JSON, with the bundled weights and photos
    python release/inventory.py ENVIRONMENT page          rewrites the table of docs/licenses.md

ENVIRONMENT is a virtual environment that holds gleansr[all] and nothing else; `make dist` makes it. The SBOM takes what the extra
`release` installs.
"""

import argparse
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "gleansr"
PAGE = ROOT / "docs" / "licenses.md"
TABLE = re.compile(r"^\| package \|.*?\n(?!\|)", re.MULTILINE | re.DOTALL)
SPDX = {"CC BY-NC 4.0": "CC-BY-NC-4.0", "MIT": "MIT", "Apache-2.0": "Apache-2.0", "BSD-2-Clause": "BSD-2-Clause"}
"""Licences in assets/LICENSES.md, as their column begins."""
PHOTOS = {
    "chelsea.jpg": ({"id": "CC0-1.0"}, "Chelsea, a photograph by Stéfan van der Walt, from scikit-image"),
    "car.jpg": ({"id": "CC0-1.0"}, "A car, a photograph from pxhere.com"),
    "bedroom.jpg": ({"id": "CC0-1.0"}, "A bedroom, a photograph from pxhere.com"),
    "tower.jpg": (
        {"name": "public domain"},
        "College Hall, a photograph by Carol M. Highsmith, from the Library of Congress",
    ),
    "astronaut.jpg": ({"name": "public domain"}, "Eileen Collins, a photograph by NASA, from scikit-image"),
}
"""Those of the page, in serving/static."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def direct_dependencies() -> list[tuple[str, str]]:
    """Names of the dependencies of gleansr[all], each with its extra ("" for none)."""
    declared = project()
    extras = declared["optional-dependencies"]
    [everything] = extras["all"]
    names = everything.partition("[")[2].rstrip("]").split(",")
    requirements = [("", requirement) for requirement in declared["dependencies"]]
    requirements += [(extra, requirement) for extra in names for requirement in extras[extra]]
    return [(re.split(r"[\[<>=~!; ]", requirement)[0], extra) for extra, requirement in requirements]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def stated_licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """What a package states: an SPDX expression, else its classifiers, else a licence field of one short line."""
    if expression := metadata.get_all("License-Expression"):
        return expression[0]
    if classified := [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License :: ")]:
        return ", ".join(classified)
    stated = "".join(metadata.get_all("License") or []).strip()
    return stated if stated and "\n" not in stated and len(stated) < 80 else "not stated"


def installed(environment: Path) -> dict[str, importlib.metadata.PackageMetadata]:
    """The metadata of what is installed in an environment, by normalised name."""
    folders = [str(folder) for folder in [*environment.glob("lib/python*/site-packages"), environment / "Lib" / "site-packages"]]
    return {normalised(found.name): found.metadata for found in importlib.metadata.distributions(path=folders)}


def table(packages: dict[str, importlib.metadata.PackageMetadata]) -> str:
    rows = []
    for name, extra in direct_dependencies():
        rows.append(f"| {name} | {f'`{extra}`' if extra else ''} | {stated_licence(packages[normalised(name)])} |")
    return "\n".join(["| package | extra | licence, as its metadata states it |", "| --- | --- | --- |", *rows, ""])


def weights() -> list[dict[str, Any]]:
    """The files of assets/ as components, with what assets/LICENSES.md says of them."""
    components, text = [], (PACKAGE / "assets" / "LICENSES.md").read_text("utf-8")
    for files, licence, credit in re.findall(r"^\| (\S+\.safetensors.*?) \| (.*?) \| (.*) \|$", text, re.MULTILINE):
        [spdx] = [spdx for name, spdx in SPDX.items() if licence.lstrip("[").startswith(name)]
        components += [component("machine-learning-model", f"assets/{file}", {"id": spdx}, credit) for file in files.split(", ")]
    return components


def component(kind: str, path: str, licence: dict[str, str], description: str) -> dict[str, Any]:
    return {
        "type": kind,
        "bom-ref": f"gleansr/{path}",
        "name": f"gleansr/{path}",
        "version": project()["version"],
        "description": description,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256((PACKAGE / path).read_bytes()).hexdigest()}],
        "licenses": [{"license": licence}],
    }


def sbom(environment: Path) -> dict[str, Any]:
    """The SBOM: cyclonedx-py finds the packages; what gleansr contains, and licences that it does not read, are added."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library"]
    command += ["--short-PURLs", "--output-reproducible", str(environment / "bin" / "python")]
    document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603
    packages = installed(environment)
    for found in document["components"]:
        if not found.get("licenses"):
            found["licenses"] = [{"license": {"name": stated_licence(packages[normalised(found["name"])])}}]
    photos = [component("file", f"serving/static/{file}", *about) for file, about in PHOTOS.items()]
    document["metadata"]["component"]["components"] = weights() + photos
    return document


def validated(document: dict[str, Any]) -> str:
    from cyclonedx.schema import SchemaVersion  # pyright: ignore[reportMissingImports], of the extra `release`
    from cyclonedx.validation.json import JsonStrictValidator  # pyright: ignore[reportMissingImports]

    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(SchemaVersion.from_version(document["specVersion"])).validate_str(text):
        raise SystemExit(f"the SBOM is not valid CycloneDX: {error!r}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sbom").add_argument("file", type=Path)
    commands.add_parser("page")
    options = parser.parse_args()
    if options.command == "sbom":
        options.file.write_text(validated(sbom(options.environment)), "utf-8")
    else:
        PAGE.write_text(TABLE.sub(lambda _: table(installed(options.environment)), PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
