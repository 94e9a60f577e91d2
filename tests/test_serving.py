"""The contract of the service: results equal the library's, and errors are JSON problems."""

import base64
import json
import logging
import re
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from serving_parts import Client, blotchy, decoded, encoded, form, gated, painted, problem, save_vivid, thumbnail

import gleansr
from gleansr.errors import RequestError
from gleansr.inference.method import ModelOutput
from gleansr.inference.upscaler import Upscaler
from gleansr.retouching.refine import RetouchConfig, prepare
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig
from gleansr.serving.problems import PROBLEMS

IMAGE = encoded(thumbnail(0))
EDITED = encoded(blotchy(0))
MULTIPART = {"content-type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def vivid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vivid(tmp_path_factory.mktemp("model") / "vivid.safetensors")


@pytest.fixture(scope="module")
def upscaler(vivid: Path) -> Upscaler:
    return gleansr.load(vivid)


@pytest.fixture(scope="module")
def client(upscaler: Upscaler) -> Iterator[Client]:
    with asked(upscaler, max_bytes=4_000_000, max_pixels=1_500_000) as client:
        yield client


def asked(upscaler: Upscaler, **config: Any) -> Client:
    return Client(App(ServingConfig(**config), {"vivid": upscaler, "other": upscaler}))


# ----------------------------------------------------------------------------------------------------------------- answers


def test_upscaling_equals_the_library(client: Client, upscaler: Upscaler):
    wanted = upscaler(thumbnail(1))
    assert "gleansr" not in wanted.info
    response = client.post("/v1/upscale", files={"image": encoded(thumbnail(1))})
    assert response.status_code == 200
    assert np.array_equal(decoded(response.content), np.asarray(wanted))
    assert response.headers["gleansr-model"] == "vivid"
    assert response.headers["gleansr-size"] == "32x32"
    assert "gleansr-note" not in response.headers
    assert 0 < float(response.headers["gleansr-seconds"]) < 10
    assert response.headers["cache-control"] == "no-store"


def test_fields_of_upscaling(client: Client, upscaler: Upscaler):
    wide = blotchy(2, 24).crop((0, 0, 24, 12))
    for fit in ("crop", "pad", "stretch"):
        response = client.post("/v1/upscale", files={"image": encoded(wide)}, data={"fit": fit, "model": "other"})
        wanted = upscaler(wide, fit=fit)
        assert np.array_equal(decoded(response.content), np.asarray(wanted)), fit
        assert unquote(response.headers["gleansr-note"]) == wanted.info["gleansr"]
        assert response.headers["gleansr-model"] == "other"
    for scale in (None, 3):
        wanted = gleansr.upscale(wide, model=upscaler, scale=scale)
        response = client.post("/v1/upscale", files={"image": encoded(wide)}, data={"scale": str(scale or "")})
        assert np.array_equal(decoded(response.content), np.asarray(wanted))
        assert wanted.size == (24 * (scale or 4), 12 * (scale or 4))


def test_a_response_as_json_says_what_was_done(client: Client, upscaler: Upscaler):
    files = {"image": encoded(thumbnail(1))}
    response = client.post("/v1/upscale", files=files, data={"format": "webp"}, headers={"accept": "text/html, application/json;q=0.9"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["gleansr-model"] == "vivid"
    answer = response.json()
    image = base64.b64decode(answer.pop("image"))
    assert decoded(image).shape == (32, 32, 3)
    assert b"compositeWithTrainedAlgorithmicMedia" in image
    assert answer.pop("seconds") > 0
    assert answer == {
        "media_type": "image/webp",
        "width": 32,
        "height": 32,
        "scale": 4,
        "model": "vivid",
        "summary": "vivid",
        "category": {"name": "blobs", "confidence": 1},
        "objects": [],
        "notes": [],
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_all_formats_mark_synthetic_detail(client: Client, kind: str):
    response = client.post("/v1/upscale", files={"image": IMAGE}, data={"format": kind})
    assert response.headers["content-type"] == f"image/{kind}"
    assert b"compositeWithTrainedAlgorithmicMedia" in response.content
    assert b"model vivid" in response.content
    assert decoded(response.content).shape == (32, 32, 3)


def test_transparency_and_metadata_are_kept(client: Client, upscaler: Upscaler):
    image = thumbnail(3).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x010E] = "a blot"
    response = client.post("/v1/upscale", files={"image": encoded(image, exif=exif)})
    assert np.array_equal(decoded(response.content), np.asarray(upscaler(image)))
    assert b"a blot" in response.content


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"strength": "0.5"}, {"strength": 0.5}),
        ({"factor": "2", "feather": "0"}, {"scale": 2, "feather": 0}),
        ({"box": "8,10,40", "strength": "", "format": "png"}, {"box": (8, 10, 40)}),
    ],
)
def test_retouching_equals_the_library(client: Client, upscaler: Upscaler, fields: dict[str, str], options: dict[str, Any]):
    original = blotchy(4)
    edited = painted(original)
    wanted = gleansr.retouch(edited, original, model=upscaler, **options)
    response = client.post("/v1/retouch", files={"edited": encoded(edited), "original": encoded(original)}, data=fields)
    assert np.array_equal(decoded(response.content), np.asarray(wanted))
    assert unquote(response.headers["gleansr-note"]) == wanted.info["gleansr"]
    assert response.headers["gleansr-box"] == fields.get("box", "0,0,64")
    assert not np.array_equal(np.asarray(wanted), np.asarray(edited))


def test_retouching_by_a_mask_and_without_an_original(client: Client, upscaler: Upscaler):
    edited, mask = painted(blotchy(5)), Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 40, 40))
    for files, wanted in (
        ({"edited": encoded(edited), "mask": encoded(mask)}, gleansr.retouch(edited, mask=mask, model=upscaler)),
        ({"edited": encoded(edited)}, gleansr.retouch(edited, model=upscaler)),
    ):
        assert np.array_equal(decoded(client.post("/v1/retouch", files=files).content), np.asarray(wanted))


def test_a_mask_and_an_untouched_image_take_no_forward_pass(vivid: Path):
    upscaler, method = gated(vivid)
    original = blotchy(6)
    files = {"edited": encoded(painted(original)), "original": encoded(original)}
    with asked(upscaler) as client:
        method.batches.clear()
        masked = client.post("/v1/retouch", files=files, data={"output": "mask", "format": "jpeg"})
        same = client.post("/v1/retouch", files=files | {"edited": encoded(original)})
        assert method.batches == []
    wanted = prepare(painted(original), original, upscaler, RetouchConfig()).mask
    assert masked.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(masked.content), np.asarray(wanted))
    assert "gleansr-seconds" not in masked.headers
    assert np.array_equal(decoded(same.content), np.asarray(original))
    assert "no edits found" in unquote(same.headers["gleansr-note"])


def test_the_first_frame_of_an_animation_is_used_and_noted(client: Client, upscaler: Upscaler):
    frames = [thumbnail(seed).quantize(64) for seed in (7, 8)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    response = client.post("/v1/upscale", files={"image": animation})
    assert "image: is animated, its first frame was used" in unquote(response.headers["gleansr-note"])
    assert np.array_equal(decoded(response.content), np.asarray(upscaler(frames[0].convert("RGB"))))


# ---------------------------------------------------------------------------------------------------------------- problems


def bomb(width: int, height: int) -> bytes:
    """A PNG that declares a size and has hardly any content."""

    def chunk(kind: bytes, contents: bytes) -> bytes:
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


JPEG = encoded(blotchy(9, 200), "JPEG")
SMALL = encoded(blotchy(10, 6))
BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, str, str]] = {
    "a text file": ("upscale", {"image": b"hello"}, {}, 400, "bad-image", "send PNG, JPEG"),
    "an empty file": ("upscale", {"image": ("a.png", b"")}, {}, 400, "bad-image", "is empty"),
    "a truncated JPEG": ("upscale", {"image": JPEG[: len(JPEG) // 2]}, {}, 400, "bad-image", "truncated"),
    "half a header": ("upscale", {"image": JPEG[:15]}, {}, 400, "bad-image", "image:"),
    "a truncated original": ("retouch", {"edited": EDITED, "original": EDITED[:200]}, {}, 400, "bad-image", "original:"),
    "PostScript": (
        "upscale",
        {"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
        {},
        400,
        "bad-image",
        "not taken here; send PNG",
    ),
    "a bomb": ("upscale", {"image": bomb(60_000, 60_000)}, {}, 413, "too-many-pixels", "send a smaller image"),
    "a lesser bomb": ("upscale", {"image": bomb(9_000, 9_000)}, {}, 413, "too-many-pixels", "9000x9000"),
    "a bomb as mask": ("retouch", {"edited": EDITED, "mask": bomb(1_500, 1_500)}, {}, 413, "too-many-pixels", "mask:"),
    "no image": ("upscale", {}, {"fit": "crop"}, 422, "missing-field", "curl -F image=@FILE"),
    "no edited image": ("retouch", {"original": EDITED}, {}, 422, "missing-field", "edited"),
    "another size": ("retouch", {"edited": EDITED, "original": encoded(blotchy(1, 65))}, {}, 422, "unfit", "65x65"),
    "a small image": ("upscale", {"image": SMALL}, {"fit": "exact"}, 422, "unfit", "fit crop, pad or stretch"),
    "a small region": ("retouch", {"edited": SMALL}, {}, 422, "unfit", "smaller than the model's input"),
    "a box outside": ("retouch", {"edited": EDITED}, {"box": "60,60,50"}, 422, "unfit", "not within"),
    "a factor beyond the model": ("retouch", {"edited": EDITED}, {"factor": "64"}, 422, "unfit", "2 to 8"),
    "an odd factor": ("retouch", {"edited": EDITED}, {"factor": "3"}, 400, "bad-field", "power of two"),
    "too strong": ("retouch", {"edited": EDITED}, {"strength": "2"}, 400, "bad-field", "strength is '2'"),
    "no number": ("retouch", {"edited": EDITED}, {"strength": "nan"}, 400, "bad-field", "0 to 1"),
    "digits of another script": ("retouch", {"edited": EDITED}, {"feather": "٣"}, 400, "bad-field", "an integer"),
    "a long number": ("retouch", {"edited": EDITED}, {"box": "0,0," + "9" * 900}, 400, "bad-field", "left,top,side"),
    "a long field": ("retouch", {"edited": EDITED}, {"box": "9" * 2000}, 400, "bad-field", "longer than 1000"),
    "an unknown model": ("upscale", {"image": IMAGE}, {"model": "dogs"}, 400, "bad-field", "vivid, other"),
    "an unknown format": ("upscale", {"image": IMAGE}, {"format": "tiff"}, 400, "bad-field", "png, jpeg, webp"),
    "a misspelt field": ("upscale", {"image": IMAGE}, {"modl": "vivid"}, 400, "bad-field", "did you mean model?"),
    "a field as file": ("upscale", {"image": IMAGE, "fit": b"crop"}, {}, 400, "bad-field", "plain field"),
    "a file as field": ("upscale", {"fit": b"crop"}, {"image": "hello"}, 400, "bad-field", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_problem(client: Client, name: str):
    route, files, data, status, kind, word = BAD[name]
    response = client.post(f"/v1/{route}", files=files or {"model": (None, "vivid")}, data=data)
    assert problem(response)[:2] == (status, kind)
    assert word in problem(response)[2]
    assert "\n" not in problem(response)[2]
    assert client.post("/v1/upscale", files={"image": IMAGE}).status_code == 200  # the worker lives on


def test_malformed_forms_are_refused(client: Client):
    for headers, body, status, kind in (
        ({"content-type": "application/json"}, b"{}", 415, "wrong-content-type"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"image=x", 415, "wrong-content-type"),
        ({}, b"x", 415, "wrong-content-type"),
        ({"content-type": "multipart/form-data"}, b"x", 400, "bad-field"),
        (MULTIPART, b"no form at all", 400, "bad-field"),
        (MULTIPART, b"--edge\r\n\r\nno name\r\n--edge--\r\n", 400, "bad-field"),
        (MULTIPART, form({"image": IMAGE})[:-300], 400, "bad-field"),
        (MULTIPART, form({"image": IMAGE})[:-10] + b"\r\n" + form({"image": IMAGE}), 400, "bad-field"),
    ):
        response = client.post("/v1/upscale", content=body, headers=headers)
        assert problem(response)[:2] == (status, kind), (headers, body[:50])
    empty = form({"image": b""}).replace(b"a.png", b"")  # of an input in a browser in which nothing was chosen
    assert problem(client.post("/v1/upscale", content=empty, headers=MULTIPART))[:2] == (422, "missing-field")
    both = empty.replace(b"image", b"mask").replace(b"--edge--\r\n", b"") + form({"edited": EDITED})
    assert client.post("/v1/retouch", content=both, headers=MULTIPART).status_code == 200


def test_addresses_and_methods(client: Client):
    assert problem(client.get("/nothing"))[:2] == (404, "not-found")
    assert problem(client.get("/static/nothing.js"))[:2] == (404, "not-found")
    assert problem(client.get("/static/../app.py"))[:2] == (404, "not-found")
    assert problem(client.get("/docs"))[:2] == (404, "not-found")
    response = client.get("/v1/upscale")
    assert problem(response)[:2] == (405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_a_body_above_the_limit_is_refused_before_it_has_come(client: Client):
    declared = client.post("/v1/upscale", content=b"x", headers=MULTIPART | {"content-length": "99999999"})
    assert problem(declared)[:2] == (413, "too-many-bytes")
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield form({"image": IMAGE})[:-12]
        while True:
            yield bytes(100_000)
            sent += 100_000

    assert problem(client.post("/v1/upscale", content=endless(), headers=MULTIPART))[:2] == (413, "too-many-bytes")
    assert sent <= 4_000_000


def test_nothing_is_written_to_disk(client: Client, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was to be made")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), np.uint8))
    contents = encoded(noise)
    assert len(contents) > 3_000_000
    assert client.post("/v1/upscale", files={"image": contents}).status_code == 200


@pytest.mark.parametrize("what", ["it raises", "it makes NaN"])
def test_a_model_that_fails_does_not_end_the_worker(vivid: Path, what: str):
    upscaler, method = gated(vivid)
    with asked(upscaler) as client:
        if what == "it raises":
            method.error = RuntimeError("out of memory")
        else:
            inner = method._method
            method._method = lambda lr, _: ModelOutput(inner(lr).images * torch.nan)  # pyright: ignore[reportAttributeAccessIssue]
        response = client.post("/v1/upscale", files={"image": IMAGE})
        assert problem(response)[:2] == (500, "failed")
        assert "content-security-policy" in response.headers
        method.error = None
        if what == "it raises":
            assert client.post("/v1/upscale", files={"image": IMAGE}).status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "where",
    [
        "serving.endpoints.decode",
        "images.codec._decode_image",
        "serving.endpoints._checked",
        "serving.endpoints.encode",
        "serving.forms.Form",
        "serving.multipart._Parts.data",
    ],
)
@pytest.mark.parametrize("kind", [TypeError, AttributeError, AssertionError])
def test_a_bug_is_not_reported_as_a_bad_image(client: Client, monkeypatch: pytest.MonkeyPatch, where: str, kind: type[Exception]):
    def mistaken(*_: Any, **__: Any) -> None:
        raise kind("NoneType has no attribute")

    with monkeypatch.context() as patch:
        patch.setattr(f"gleansr.{where}", mistaken)
        response = client.post("/v1/upscale", files={"image": IMAGE})
    assert problem(response)[:2] == (500, "failed")
    assert "please report it, with the traceback from the service's log" in problem(response)[2]
    assert "content-security-policy" in response.headers
    assert client.post("/v1/upscale", files={"image": IMAGE}).status_code == 200


def test_out_of_memory_is_a_problem(client: Client, monkeypatch: pytest.MonkeyPatch):
    def lacking(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("gleansr.serving.endpoints.decode", lacking)
        assert problem(client.post("/v1/upscale", files={"image": IMAGE}))[2].startswith("the service is out of memory")


def test_early_answers_end_the_connection(upscaler: Upscaler):
    token = "0123456789" * 2
    with asked(upscaler, token=token, queue=1) as client:
        for headers, status in (({}, 401), ({"authorization": f"Bearer {token}", "content-type": "text/plain"}, 415)):
            response = client.post("/v1/upscale", content=b"x", headers=headers)
            assert (response.status_code, response.headers["connection"]) == (status, "close")
        read = client.post("/v1/upscale", files={"image": b"x"}, headers={"authorization": f"Bearer {token}"})
        assert read.status_code == 400
        assert "connection" not in read.headers
        assert "connection" not in client.get("/healthz").headers


def test_every_problem_has_a_status_in_the_range_of_its_meaning():
    assert all(400 <= status < 600 and title for status, title in PROBLEMS.values())
    assert {status for status, _ in PROBLEMS.values() if status >= 500} == {500, 503, 504}


# ------------------------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:9000"}, 200),
        ({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8008"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"host": "[", "origin": "x"}, 403),
        ({"origin": "http://127.0.0.1:8008.evil.example"}, 403),
    ],
)
def test_foreign_hosts_and_origins_are_refused_on_loopback(client: Client, headers: dict[str, str], status: int):
    for response in (
        client.get("/v1/models", headers=headers),
        client.post("/v1/upscale", files={"image": IMAGE}, headers=headers),
    ):
        assert response.status_code == status, problem(response)
        if status != 200:
            assert problem(response)[1] in ("foreign-host", "foreign-origin")
    assert client.get("/healthz", headers=headers).status_code == 200  # probes come by any name


def test_behind_a_proxy(upscaler: Upscaler):
    with asked(upscaler, allow_hosts=("Cats.example",)) as client:
        for headers, status in (
            ({"host": "cats.example", "origin": "https://cats.example"}, 200),
            ({"host": "127.0.0.1:8008", "origin": "https://cats.example"}, 200),
            ({"host": "dogs.example"}, 403),
        ):
            assert client.get("/v1/models", headers=headers).status_code == status, headers


def test_origins_are_refused_without_a_host(upscaler: Upscaler):
    token = "0123456789" * 2
    with asked(upscaler, host="0.0.0.0", token=token) as client:  # noqa: S104
        own = {"authorization": f"Bearer {token}"}
        assert client.get("/v1/models", headers=own | {"host": "any.example"}).status_code == 200
        assert problem(client.get("/v1/models", headers=own | {"host": "", "origin": "null"}))[1] == "foreign-origin"


def test_the_token(upscaler: Upscaler):
    token = "0123456789" * 2
    with asked(upscaler, token=token) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for given in (None, "Bearer", "Bearer wrong", f"Basic {token}", f"Bearer {token}x", "Bearer ü"):
                headers = {} if given is None else {"authorization": given.encode("latin-1")}
                response = client.get(path, headers=headers)
                assert problem(response)[:2] == (401, "unauthorized"), (path, given)
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"authorization": f"bearer {token}"}).status_code == (404 if path == "/nothing" else 200)
        for path in ("/", "/static/style.css", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/upscale", files={"image": IMAGE}).status_code == 401
        assert client.get("/v1/progress/abc").status_code == 401
        text = client.get("/metrics", headers={"authorization": f"Bearer {token}"}).text
        refused = dict(re.findall(r'^gleansr_requests_total\{route="(\S+)",status="401"\} (\S+)$', text, re.MULTILINE))
        assert refused.pop("/v1/upscale") == refused.pop("/v1/progress/{name}") == "1.0"
        assert set(refused) == {"/v1/models", "/metrics", "/openapi.json", "other"}
        assert client.get("/openapi.json", headers={"authorization": f"Bearer {token}"}).json()["security"] == [{"token": []}]


def test_configurations_that_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLEANSR_TOKEN", raising=False)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"host": "0.0.0.0"}, "give a token"),  # noqa: S104
        ({"host": "example.com"}, "give a token"),
        ({"host": "::"}, "give a token"),
        ({"token": "short"}, "at least 16"),
        ({"token": "with blanks in it 123"}, "no blanks"),
        ({"port": 70_000}, "port must be 0 to 65535"),
        ({"queue": 0, "timeout": 0.0}, "queue must be"),
        ({"models": ()}, "--models"),
    ]
    for wrong, word in wrongs:
        with pytest.raises(RequestError, match=word):
            ServingConfig(**wrong)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        assert ServingConfig(host=host).secret is None
    assert ServingConfig(host="0.0.0.0", token="x" * 16).secret  # noqa: S104
    monkeypatch.setenv("GLEANSR_TOKEN", "y" * 16)
    assert ServingConfig(host="0.0.0.0").secret == "y" * 16  # noqa: S104
    assert "y" * 16 not in repr(ServingConfig(token="z" * 16))
    assert "z" * 16 not in repr(ServingConfig(token="z" * 16))


# ------------------------------------------------------------------------------------------------------- what else there is


def test_all_responses_have_the_security_headers(client: Client):
    for response in (client.get("/"), client.get("/nothing"), client.get("/v1/upscale"), client.get("/healthz", headers={"host": "x"})):
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert not any("unsafe" in value or "*" in value or "http" in value for value in policy.values())
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_and_its_modules(client: Client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    again = client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"another"'}).content == page.content
    module = client.get("/static/main.js")
    assert module.headers["content-type"].startswith("text/javascript")
    assert module.headers["cache-control"] == "no-cache"
    assert client.get("/static/main.js", headers={"if-none-match": module.headers["etag"]}).status_code == 304


def test_the_list_of_models(client: Client):
    models = client.get("/v1/models").json()["models"]
    assert [(model["name"], model["default"]) for model in models] == [("vivid", True), ("other", False)]
    assert models[0] == {
        "name": "vivid",
        "category": "blobs",
        "scale": 4,
        "input_size": 8,
        "output_size": 32,
        "content_height": 32,
        "licence": "CC0-1.0",
        "credit": "nobody",
        "default": True,
        "loaded": True,
    }


def test_openapi_describes_all_routes_with_examples(client: Client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/upscale", "/v1/retouch", "/v1/models", "/v1/progress/{name}", "/healthz", "/readyz", "/metrics"}
    for path in ("/v1/upscale", "/v1/retouch"):
        route = schema["paths"][path]["post"]
        form = route["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert form["properties"]["model"]["enum"] == ["vivid", "other"]
        assert all("description" in one for one in form["properties"].values())
        assert {"200", "400", "401", "403", "409", "413", "415", "422", "429", "500", "504"} <= set(route["responses"])
        example = route["responses"]["429"]["content"]["application/problem+json"]["examples"]["busy"]["value"]
        assert example["status"] == 429
        assert "curl" in route["x-codeSamples"][0]["source"]
    assert "security" not in schema


def test_metrics(upscaler: Upscaler):
    with asked(upscaler) as client:
        client.post("/v1/upscale", files={"image": IMAGE})
        client.post("/v1/upscale", files={"image": b"x"})
        client.get("/a/path/of/any/kind")
        lines = client.get("/metrics").text.splitlines()
    assert 'gleansr_requests_total{route="/v1/upscale",status="200"} 1.0' in lines
    assert 'gleansr_requests_total{route="/v1/upscale",status="400"} 1.0' in lines
    assert 'gleansr_requests_total{route="other",status="404"} 1.0' in lines
    assert 'gleansr_batch_size_bucket{le="1.0",model="vivid"} 1.0' in lines
    assert "gleansr_queue_length 0.0" in lines
    for stage in ("reading", "preparing", "waiting", "forward", "finishing", "whole"):
        assert any(line.startswith(f'gleansr_seconds_count{{stage="{stage}"}}') for line in lines), stage


def test_the_log_has_a_line_for_each_request_and_nothing_private(client: Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "gleansr.access"):
        client.post("/v1/upscale?key=secret", files={"image": ("my-cat.png", IMAGE)}, headers={"authorization": "Bearer secret"})
        client.get("/some/secret/path")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "gleansr.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [("POST", "/v1/upscale", 200), ("GET", "other", 404)]
    assert all(set(line) == {"time", "client", "method", "route", "status", "seconds"} for line in lines)
    assert "secret" not in caplog.text
    assert "my-cat" not in caplog.text
