import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gleansr.checkpoints import zoo
from gleansr.errors import CheckpointError, DownloadError, RequestError

OFFICIAL = [model for model in zoo.named_models() if model.url]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    """An empty cache folder and a network that fails the test."""
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEANSR_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "download", lambda *_, **__: pytest.fail("a download was tried"))
    return tmp_path / "home"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_every_name_is_found_once():
    names = [model.name for model in zoo.named_models()]
    assert len(set(names)) == len(names) == 35
    assert all(zoo.find(name).name == name for name in names)


@pytest.mark.parametrize("model", zoo.named_models(), ids=lambda model: model.name)
def test_the_facts_agree_with_each_other(model):
    assert (model.asset is None) != (model.url is None)
    assert model.licence
    assert model.credit
    scale = re.search(r"-(\d+)x(-light)?$", model.name)
    if model.kind in ("rrdbnet", "srvgg"):
        assert (model.category, model.out_size // model.in_size) == ("any", 4)
        assert "x4" in model.name
    elif model.kind != "stylegan2":  # a network that enlarges
        assert scale
        assert model.out_size == model.in_size * int(scale[1])
        assert model.category in model.name or (model.category, model.name) == ("any", "general-4x")
    else:
        assert scale is None
        assert model.in_size is None


@pytest.mark.parametrize("model", OFFICIAL, ids=lambda model: model.name)
def test_official_files_have_a_hash(model):
    assert urlsplit(model.url).scheme == "https"
    if model.licence.startswith("BSD-3-Clause"):
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256_prefix)
        assert model.size > 1e6
        return
    assert re.fullmatch(r"[0-9a-f]{8}", model.sha256_prefix)
    assert zoo.file_of(model).name.endswith(f"-{model.sha256_prefix}.pth")
    assert "NC" in model.licence, "a StyleGAN2 bank may not be used commercially"


def test_files_do_not_collide():
    assert len({zoo.file_of(model) for model in zoo.named_models()}) == len(zoo.named_models())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cats-8", "cats-8x"), ("glean-face-16x", "glean-faces-16x"), ("StyleGAN2-FFHQ", "stylegan2-ffhq")],
)
def test_an_unknown_name_is_told_the_nearest(typed, meant):
    with pytest.raises(RequestError, match=rf"did you mean '{meant}'\? `gleansr models`"):
        zoo.model_path(typed)


def test_a_name_like_no_other_is_told_the_list():
    with pytest.raises(RequestError, match="no model is named 'qqqq': `gleansr models`"):
        zoo.find("qqqq")


@pytest.mark.parametrize("kind", [str, Path])
def test_an_existing_file_wins(tmp_path, kind):
    assert zoo.model_path(kind(put(tmp_path / "my.pth"))) == tmp_path / "my.pth"
    put(tmp_path / "cats-8x")
    assert zoo.model_path(kind("cats-8x")) == Path("cats-8x")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / "my.pth")
    assert zoo.model_path("~/my.pth") == tmp_path / "my.pth"


@pytest.mark.parametrize("path", ["my.pth", "my.PT", "a/b", "a\\b", "bank.pkl", "x.safetensors", "x.onnx", Path("cats-8x")])
def test_a_missing_path_is_not_taken_for_a_name(path):
    with pytest.raises(RequestError, match="no such file"):
        zoo.model_path(path)


def test_a_folder_is_no_file_and_hides_no_name(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        zoo.model_path("./runs")
    (tmp_path / "cats-8x").mkdir()
    monkeypatch.setattr(zoo.resources, "files", lambda _: tmp_path / "package")
    asset = put(tmp_path / "package" / "assets" / "cats-8x.safetensors")
    assert zoo.model_path("cats-8x", offline=True) == asset


def test_a_missing_asset_is_an_incomplete_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo.resources, "files", lambda _: tmp_path)
    assert not zoo.installed(zoo.find("cats-8x"))
    with pytest.raises(CheckpointError, match="install gleansr again"):
        zoo.model_path("cats-8x")


def test_a_cached_file_needs_no_network(home):
    model = zoo.find("stylegan2-cat")
    assert not zoo.installed(model)
    file = put(home / "models" / "stylegan2-cat-config-f-official_20210327_172444-15bc485b.pth")
    assert zoo.installed(model)
    assert zoo.model_path("stylegan2-cat", offline=True) == zoo.file_of(model) == file


def test_a_missing_file_is_downloaded(home, monkeypatch):
    calls = []
    monkeypatch.setattr(zoo, "download", lambda url, path, **options: calls.append((url, path, options)) or path)
    model = zoo.find("glean-faces-16x")
    assert zoo.model_path("glean-faces-16x", progress=print) == zoo.file_of(model)
    assert calls == [
        (
            "https://download.openmmlab.com/mmediting/restorers/glean/glean_ffhq_16x_20210527-61a3afad.pth",
            home / "models" / "glean_ffhq_16x_20210527-61a3afad.pth",
            {"sha256_prefix": "61a3afad", "size": None, "progress": print},
        )
    ]


def test_a_failed_download_tells_the_way_by_hand(monkeypatch):
    def fail(*_, **__):
        raise DownloadError("cannot download it")

    monkeypatch.setattr(zoo, "download", fail)
    model = zoo.find("stylegan2-ffhq")
    with pytest.raises(DownloadError, match=re.escape(f"cannot download it; or download {model.url} manually")):
        zoo.model_path(model.name)


@pytest.mark.parametrize(("variable", "argument"), [("1", None), ("true", None), ("0", True), ("", True)])
def test_offline_names_the_url_and_the_place(monkeypatch, variable, argument):
    monkeypatch.setenv("GLEANSR_OFFLINE", variable)
    model = zoo.find("glean-cats-8x")
    with pytest.raises(RequestError, match=re.escape(f"download {model.url} manually and save it as {zoo.file_of(model)}")):
        zoo.model_path(model.name, offline=argument)


@pytest.mark.parametrize(("variable", "argument"), [("0", None), ("no", None), ("1", False)])
def test_online_is_allowed(monkeypatch, variable, argument):
    monkeypatch.setenv("GLEANSR_OFFLINE", variable)
    monkeypatch.setattr(zoo, "download", lambda _, path, **__: path)
    assert zoo.model_path("glean-cats-8x", offline=argument).name == "glean_cat_8x_20210614-d3ac8683.pth"


def test_the_cache_folder(home, monkeypatch, tmp_path):
    assert zoo.cache_folder() == home
    monkeypatch.delenv("GLEANSR_HOME")
    monkeypatch.setattr(zoo.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "xdg" / "gleansr"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert zoo.cache_folder() == Path.home() / ".cache" / "gleansr"
    monkeypatch.setattr(zoo.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert zoo.cache_folder() == tmp_path / "local" / "gleansr"
