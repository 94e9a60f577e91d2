"""The page as a static site: its models run in a real browser, with the results of the command, and without a network."""

import base64
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from page_driver import ARGUMENTS, CHROMIUM, Driver
from PIL import Image

import gleansr
from gleansr.checkpoints.int8 import round_weights
from gleansr.checkpoints.native import StoredNetwork
from gleansr.errors import DownloadError, RequestError
from gleansr.images.codec import decode
from gleansr.images.decoded import DecodedImage
from gleansr.images.resize import resize
from gleansr.inference.export import export
from gleansr.inference.upscaler import Fit
from gleansr.models.glean import GLEAN
from gleansr.models.residual import ResidualNet
from gleansr.photos import AutoTask, PhotoConfig
from gleansr.retouching.mask import dilate, feather_mask, find_edits
from gleansr.serving import cascades, site, web_runtime

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'gleansr[test]'")
pytest.importorskip("onnxscript", reason="export is not installed: pip install 'gleansr[export]'")
browsing = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine; apt-get install chromium, or set CHROMIUM to its path")

EXAMPLES = Path(__file__).parent.parent / "examples"
MODELS = ("faces-8x", "faces-4x", "cats-8x-light", "cats-4x", "general-4x")
SAME = 60
"""PSNR in dB of results that differ in the rounding of single pixels."""
FIRST_USE = 25e6


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server, as `python -m http.server`."""

    def log_message(self, *_: Any) -> None:
        pass


class Server:
    """Serves a folder until it is stopped."""

    def __init__(self, folder: Path):
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True, scope="module")
def rounded_weights() -> Iterator[None]:
    """gleansr's results are compared with the same weights as the site's, in 8 bits."""
    build = StoredNetwork.build

    def rounding(network: StoredNetwork, source: str | Path) -> Any:
        model = build(network, source)
        if isinstance(model, GLEAN | ResidualNet):
            round_weights(model)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredNetwork, "build", rounding)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> site.Site:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    try:
        web_runtime.runtime_files()
    except (RequestError, DownloadError) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("site")
    return site.write_site(folder, MODELS, report=lambda _text: None)


@pytest.fixture(scope="module")
def play() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        yield play


@pytest.fixture(scope="module")
def browser(play: Any) -> Iterator[Any]:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
    yield browser
    browser.close()


@pytest.fixture
def drive(browser: Any, built: site.Site) -> Iterator[Callable[[], tuple[Driver, Server]]]:
    """Opens the site in a browser that reaches nothing else; nothing may have gone wrong in it, and nothing may have been sent."""
    opened = []

    def start() -> tuple[Driver, Server]:
        server = Server(built.folder)
        context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        context.route(lambda url: urlsplit(url).netloc not in ("", urlsplit(server.address).netloc), lambda route: route.abort())
        driver = Driver(context.new_page(), server.address)
        driver.page.on("request", lambda request: request.method != "GET" and driver.errors.append(f"{request.method} {request.url}"))
        opened.append((context, driver, server))
        return driver, server

    yield start
    for context, driver, server in opened:
        context.close()
        server.stop()
        assert not driver.errors


def _psnr(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    difference = np.asarray(one.convert("RGB")).astype(float) - np.asarray(other.convert("RGB"))
    return float(10 * np.log10(255**2 / max(1e-9, (difference**2).mean())))


def _sample(name: str, box: tuple[int, int, int, int]) -> Image.Image:
    with Image.open(site.PAGE / name) as image:
        return image.convert("RGB").crop(box)


def _thumbnail(image: Image.Image, size: int, path: Path) -> Path:
    small = gleansr.resize(np.asarray(image, np.float32) / 255, size=size).clip(0, 1)
    Image.fromarray((small * 255).round().astype(np.uint8)).save(path)
    return path


def _enlarged(driver: Driver, path: Path, save: Path, note: str = "") -> Image.Image:
    driver.page.evaluate("document.querySelector('#status').textContent = ''")
    driver.page.set_input_files("#file", str(path))
    driver.until("/^(Enlarged|The image was not)/.test(document.querySelector('#status').textContent)", 240)
    assert driver.status().startswith("Enlarged"), driver.page.inner_text("#problem")
    assert note in driver.status()
    with Image.open(driver.save(save)) as image:
        image.load()
        return image


@browsing
def test_images_are_enlarged_as_by_the_command(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path):
    face = _thumbnail(_sample("astronaut.jpg", (145, 27, 305, 187)), 32, tmp_path / "face.png")
    cat = _thumbnail(_sample("chelsea.jpg", (70, 6, 358, 294)), 32, tmp_path / "cat.png")
    photo = tmp_path / "photo.png"
    _sample("chelsea.jpg", (100, 40, 310, 120)).save(photo)  # two tiles
    driver, _ = drive()
    driver.open("upscale")
    assert "Nothing is sent anywhere" in driver.page.inner_text("#welcome")
    driver.shot("page-empty")

    result = _enlarged(driver, face, tmp_path / "face-large.png")
    driver.shot("page-face")
    assert driver.page.inner_text("#chip").startswith("face (")
    assert _psnr(result, gleansr.upscale(face, device="cpu")) > SAME
    assert result.info["Software"] == "gleansr, model faces-8x"

    result = _enlarged(driver, cat, tmp_path / "cat-large.png")
    assert driver.page.inner_text("#chip").startswith("cat (")
    assert _psnr(result, gleansr.upscale(cat, model="cats-8x-light", device="cpu")) > SAME

    result = _enlarged(driver, photo, tmp_path / "photo-large.png", "no face or cat found")
    driver.shot("page-photo")
    assert _psnr(result, gleansr.upscale(photo, model="general-4x", device="cpu")) > SAME


@browsing
def test_the_classifier_agrees_with_the_commands(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path):
    driver, _ = drive()
    driver.open("upscale")
    images = [
        _sample("astronaut.jpg", (145, 27, 305, 187)),
        _sample("chelsea.jpg", (0, 0, 120, 70)),
        _sample("astronaut.jpg", (0, 200, 60, 260)),
    ]
    smalls = [image.resize((60, round(60 * image.height / image.width))) for image in images]
    with Image.open(EXAMPLES / "chelsea-256.png") as cat:
        compressed = io.BytesIO()
        cat.convert("RGB").resize((44, 44), Image.Resampling.LANCZOS).save(compressed, "JPEG", quality=50)
    for small in (*smalls, Image.open(compressed)):
        path = tmp_path / "small.png"
        small.save(path)
        _enlarged(driver, path, tmp_path / "large.png")
        category = gleansr.classify(path)
        expected = f" ({category.percent})" if category.name != "other" else "nothing recognised"
        assert expected in driver.page.inner_text("#chip")


@browsing
def test_an_edit_is_refined_as_by_the_command(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path):
    head = tmp_path / "head.png"
    _sample("astronaut.jpg", (105, 0, 345, 240)).resize((256, 256), Image.Resampling.LANCZOS).save(head)
    driver, _ = drive()
    driver.open("retouch")
    driver.page.set_input_files("#file", str(head))
    driver.says("head.png")
    driver.drag((0.35, 0.45), (0.42, 0.43))
    driver.until("performance.getEntriesByName('stroke-to-refined').length", 120)
    driver.shot("page-refined")
    assert "faces-4x" in driver.page.inner_text("#found")
    assert driver.page.input_value("#factor") == "4"
    with Image.open(driver.save(tmp_path / "refined.png")) as refined:
        driver.choose("edit")
        edit = driver.save(tmp_path / "edit.png")
        expected = gleansr.retouch(edit, head, model="faces-4x")
        assert _psnr(refined, expected) > SAME
        with Image.open(edit) as unrefined:
            assert _psnr(refined, unrefined) < SAME
        assert refined.info["Software"] == "gleansr, model faces-4x"


@browsing
def test_the_page_works_without_a_network(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path, built: site.Site):
    face = _thumbnail(_sample("astronaut.jpg", (145, 27, 305, 187)), 32, tmp_path / "face.png")
    driver, server = drive()
    received: list[int] = []
    driver.page.on("requestfinished", lambda request: received.append(request.sizes()["responseBodySize"]))
    driver.open("upscale")
    first = _enlarged(driver, face, tmp_path / "first.png")
    assert sum(received) < built.first_use < FIRST_USE
    driver.until("navigator.serviceWorker.controller !== null")
    driver.page.context.set_offline(True)
    server.stop()
    driver.open("upscale")
    again = _enlarged(driver, face, tmp_path / "again.png")
    assert np.array_equal(np.asarray(first), np.asarray(again))
    driver.open("retouch")
    driver.page.click("#guide-sample")
    driver.until("!document.querySelector('#guide').hidden", 60)


def _collage(path: Path) -> Path:
    """A photo with a face and, too large and too near for the detector, a cat."""
    image = Image.new("RGB", (330, 170), (120, 130, 125))
    image.paste(_sample("astronaut.jpg", (0, 0, 450, 450)).resize((170, 170), Image.Resampling.BICUBIC), (0, 0))
    image.paste(_sample("chelsea.jpg", (0, 0, 451, 300)).resize((160, 106), Image.Resampling.BICUBIC), (170, 30))
    image.save(path)
    return path


OUTLINES = """(() => {
  const {left, top, width} = document.querySelector("#large").getBoundingClientRect();
  const by = document.querySelector("#small").naturalWidth / width;
  return [...document.querySelectorAll(".outline")].map((one) => {
    const box = one.getBoundingClientRect();
    return [(box.left - left) * by, (box.top - top) * by, box.width * by].map(Math.round);
  }); })()"""
DONE = "/^(Enlarged|The image was not)/.test(document.querySelector('#status').textContent)"


@browsing
def test_heads_of_photos_are_enlarged_by_their_models(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path):
    photo = _collage(tmp_path / "collage.png")
    driver, _ = drive()
    page = driver.page
    driver.open("upscale")
    result = _enlarged(driver, photo, tmp_path / "large.png", "1 face, faces-4x, general-4x")
    page.check("#outlines")
    driver.shot("page-heads")
    [(left, top, width)] = page.evaluate(OUTLINES)
    assert [abs(found - expected) < 6 for found, expected in zip((left, top, width), (50, 12, 52), strict=True)]
    task = AutoTask(PhotoConfig(boxes=((left, top, width, width),)), device="cpu")
    prepared = task.prepare(decode(photo))
    expected = prepared.finish([up.runner([lr]).images[0] for up, lr in zip(prepared.upscalers, prepared.lrs, strict=True)], [""])
    assert expected.summary == "1 box given, faces-4x, general-4x"
    assert _psnr(result, expected.image) > SAME
    head = tuple(4 * value for value in (left, top, left + width, top + width))
    assert _psnr(result.crop(head), expected.image.crop(head)) > SAME - 10
    assert _psnr(result.crop(head), gleansr.upscale(photo, model="general-4x", device="cpu").crop(head)) < SAME - 20

    # The cat is marked by hand, and the face left out: its part is as without a search, all the rest the same.
    page.click("#mark-head")
    box = page.locator("#large").bounding_box()
    places = [(box["x"] + x * box["width"] / 330, box["y"] + y * box["width"] / 330) for x, y in ((200, 30), (240, 60), (270, 100))]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    page.locator("input[value=cats]").check(force=True)
    driver.shot("page-marking")
    page.click("#add-head")
    driver.until("document.querySelectorAll('#head-list li').length === 2", 60)
    driver.until(DONE, 60)
    assert "1 face, 1 cat, faces-4x, cats-4x, general-4x" in driver.status()
    page.click("#head-list button")
    driver.until("document.querySelectorAll('#head-list li').length === 1", 60)
    driver.until(DONE, 60)
    [(left, top, width)] = page.evaluate(OUTLINES)
    assert [abs(found - expected) <= 1 for found, expected in zip((left, top, width), (200, 30, 70), strict=True)]
    page.uncheck("#outlines")
    page.click("#mark-head")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.is_visible("#marking")
    with Image.open(driver.save(tmp_path / "marked.png")) as marked:
        general = gleansr.upscale(photo, model="general-4x", device="cpu")
        assert _psnr(marked.crop(head), general.crop(head)) > SAME
        cat = (800, 120, 1080, 400)
        assert _psnr(marked.crop(cat), general.crop(cat)) < SAME - 10
        assert marked.info["Software"] == "gleansr, model cats-4x, general-4x"


@browsing
def test_cascades_find_what_opencv_finds(drive: Callable[[], tuple[Driver, Server]], tmp_path: Path):
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed: pip install 'gleansr[photos]'")
    folder = cascades.folder()
    assert folder
    driver, _ = drive()
    driver.open("upscale")
    body = """(m, v) => {
      const image = {data: v.data, height: v.size[0], width: v.size[1]};
      return {found: m.find(m.compiled(v.cascade), image, v.options)}; }"""
    images = [
        Image.open(_collage(tmp_path / "collage.png")),
        _sample("chelsea.jpg", (0, 0, 451, 300)).resize((160, 107)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 130, 3), np.uint8)),
    ]
    count = 0
    for image in images:
        grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
        for name in cascades.FILES.values():
            cascade, compact = cv2.CascadeClassifier(str(folder / name)), cascades.compact(folder / name)
            for step, neighbours, most in ((1.1, 2, 10_000), (1.05, 1, 56)):
                boxes, _, weights = cascade.detectMultiScale3(
                    grey, scaleFactor=step, minNeighbors=neighbours, maxSize=(most, most), outputRejectLevels=True
                )
                expected = sorted((*map(int, box), round(float(weight), 3)) for box, weight in zip(boxes, np.ravel(weights), strict=True))
                options = {"step": step, "neighbours": neighbours, "most": most}
                result = _call(driver, "cascade", body, data=torch.from_numpy(grey), size=grey.shape, cascade=compact, options=options)
                found = sorted((one["left"], one["top"], one["width"], one["width"], round(one["score"], 3)) for one in result["found"])
                assert [one[:4] for one in found] == [one[:4] for one in expected]
                assert np.allclose([one[4] for one in found], [one[4] for one in expected], atol=2e-3)
                count += len(found)
    assert count >= 3


CALL = """async ([module, values]) => {
  const kinds = {float32: Float32Array, uint8: Uint8Array}, v = {};
  for (const [name, value] of Object.entries(values)) {
    const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer;
    v[name] = value?.base64 === undefined ? value : new kinds[value.kind](bytes(value.base64));
  }
  const m = await import(`./static/engine/${module}.js`), result = await (BODY)(m, v);
  return Object.fromEntries(Object.entries(result).map(([name, value]) => {
    if (!ArrayBuffer.isView(value)) return [name, value];
    let text = "";
    for (const byte of new Uint8Array(value.buffer, value.byteOffset, value.byteLength)) text += String.fromCharCode(byte);
    return [name, {kind: value instanceof Float32Array ? "float32" : "uint8", base64: btoa(text)}];
  }));
}"""


def _call(driver: Driver, module: str, body: str, **values: Any) -> dict[str, Any]:
    """The result of a JavaScript function of a module of the engine and `values`. Arrays travel as base64: as lists they take minutes."""

    def sent(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return {"kind": str(value.dtype).removeprefix("torch."), "base64": base64.b64encode(value.contiguous().numpy().tobytes()).decode()}

    def received(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return torch.from_numpy(np.frombuffer(base64.b64decode(value["base64"]), value["kind"]).copy())

    result = driver.page.evaluate(CALL.replace("BODY", body), [module, {name: sent(value) for name, value in values.items()}])
    return {name: received(value) for name, value in result.items()}


@browsing
def test_the_ported_arithmetic_agrees(drive: Callable[[], tuple[Driver, Server]]):
    generator = torch.Generator().manual_seed(0)
    driver, _ = drive()
    driver.open("upscale")

    body = "(m, v) => m.resize({data: v.data, count: 2, height: v.size[0], width: v.size[1]}, ...v.wanted)"
    for size, wanted in (((7, 9), (3, 20)), ((20, 13), (5, 6)), ((8, 8), (64, 64)), ((33, 40), (33, 40))):
        image = torch.rand(2, *size, generator=generator)
        result = _call(driver, "resize", body, data=image, size=size, wanted=wanted)
        assert (result["data"] - resize(image, size=wanted).flatten()).abs().max() < 1e-6

    body = """(m, v) => {
      const image = (data) => ({data, count: 3, height: v.height, width: v.width}), edits = m.findEdits(image(v.edited), image(v.original));
      const grown = m.dilate(edits, v.feather);
      return {edits: edits.data, grown: grown.data, weights: m.feathered(grown, v.feather)}; }"""
    for height, width, noise in ((60, 90, 0.0), (48, 520, 0.0), (60, 80, 0.004)):  # the second one in cells of two pixels
        original = torch.rand(3, height, width, generator=generator)
        edited = original + noise * torch.randn(3, height, width, generator=generator)
        edited[:, 20:45, 30:32] = edited[:, 20:45, 50:52] = edited[:, 20:22, 30:52] = edited[:, 43:45, 30:52] = 0.5  # around a hole
        for feather in (0, 5, 16):
            result = _call(driver, "mask", body, edited=edited, original=original, height=height, width=width, feather=feather)
            edits = find_edits(edited, original)
            grown = dilate(edits, feather)
            assert 0.005 < edits.float().mean() < 0.9
            assert torch.equal(result["edits"], edits.flatten().byte())
            assert torch.equal(result["grown"], grown.flatten().byte())
            assert (result["weights"] - feather_mask(grown, feather).flatten()).abs().max() < 1e-5


GPU = """async (v) => {
  const {Runtime} = await import("./static/engine/runtime.js"), list = await (await fetch("models.json")).json();
  if (!await navigator.gpu?.requestAdapter() || !("Suspending" in WebAssembly)) return null;
  if (v.real) Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", {get: () => false});
  const runtime = new Runtime(list, document.baseURI), input = {data: Float32Array.from(v.lr), count: 3, height: 8, width: 8};
  const first = await runtime.forward(v.network, "low", input), onGpu = runtime.gpu;
  if (v.lost) for (const session of runtime.sessions.values()) session.run = () => Promise.reject(new Error("lost"));
  const again = await runtime.forward(v.network, "low", input);
  return {onGpu, gpu: runtime.gpu, data: [...again.data], first: [...first.data]}; }"""


@browsing
def test_a_gpu_runs_the_networks_that_it_computes_right(play: Any, built: site.Site, tiny_model: Path, tmp_path: Path):
    """On SwiftShader, a GPU in software, which the page leaves alone unless it is taken for a real one."""
    folder, upscaler = tmp_path / "site", gleansr.load(tiny_model, device="cpu", precision="float32")
    shutil.copytree(built.folder, folder)
    export(upscaler, folder / "models" / "tiny.onnx", small_file=True)
    contents = (folder / "models" / "tiny.onnx").read_bytes()
    network = {"name": "tiny", "file": "models/tiny.onnx", "size": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    right = site.probe(folder / "models" / "tiny.onnx", 8)
    wrong = {**right, "values": [value + 0.1 for value in right["values"]]}
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = upscaler.method(lr).images.flatten()
    arguments = [argument for argument in ARGUMENTS if argument != "--disable-gpu"]
    arguments += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--use-vulkan=swiftshader"]
    server = Server(folder)
    browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
    page = browser.new_page()
    page.goto(server.address)
    for probe, real, lost, gpu in ((right, False, False, False), (right, True, True, True), (wrong, True, False, False)):
        given = {"network": {**network, "probe": probe}, "real": real, "lost": lost, "lr": lr.flatten().tolist()}
        result = page.evaluate(GPU, given)
        if result is None:
            pytest.skip("this browser has no WebGPU")
        assert result["onGpu"] == gpu
        assert result["gpu"] == (gpu and not lost)
        assert all((torch.tensor(result[name]) - expected).abs().max() < 1e-3 for name in ("first", "data"))
    browser.close()
    server.stop()


@browsing
@pytest.mark.parametrize("name", ["faces-16x", "cars-8x"])
def test_images_of_any_shape_are_fitted_alike(drive: Callable[[], tuple[Driver, Server]], name: str):
    """To models of squares and of images with bars, and taken out of their output, with transparency and without."""
    generator = torch.Generator().manual_seed(0)
    upscaler = gleansr.load(name, device="cpu")
    model = site._facts(upscaler)
    driver, _ = drive()
    driver.open("upscale")
    body = """async (m, v) => {
      const {fromImage, unsigned, planes} = await import("./static/engine/planes.js"), [height, width] = v.size, out = v.model.output_size;
      const image = new ImageData(Uint8ClampedArray.from(v.pixels), width, height), picture = fromImage(image), {colour, grey} = picture;
      const fit = m.fitted(picture, v.model, v.fit), {left, top, ...kept} = fit.keep, sr = unsigned(planes(3, out, out, v.sr));
      const large = v.exact ? m.finishedExactly(fit, sr, colour, v.model, v.exact, grey) : m.finished(fit, sr, grey);
      return {lr: fit.lr.data, keep: [top, left, kept.height, kept.width], note: fit.note, size: [large.width, large.height],
              pixels: new Uint8Array(large.data)}; }"""
    sizes = ((24, 32), (32, 32), (16, 16), (41, 30), (9, 50), (20, 15))
    for i, (size, fit) in enumerate((size, fit) for size in sizes for fit in ("pad", "crop", "stretch")):
        pixels = torch.randint(256, (*size, 4), generator=generator, dtype=torch.uint8)
        if i % 2:
            pixels[..., 3] = 255
        sr = torch.randn(3, model["output_size"], model["output_size"], generator=generator)
        exact = 3 if fit == "pad" else None
        decoded = DecodedImage(pixels[..., :3].permute(2, 0, 1).contiguous(), None if i % 2 else pixels[..., 3][None].contiguous())
        fitted = upscaler.fit(decoded, cast("Fit", fit))
        expected = upscaler.finish_exactly(fitted, sr, size, exact) if exact else upscaler.finish(fitted, sr)
        result = _call(driver, "fit", body, pixels=pixels, sr=sr, size=size, model=model, fit=fit, exact=exact)
        assert (result["lr"] - fitted.lr.flatten()).abs().max() < 1e-5
        assert result["keep"] == list(fitted.keep)
        assert result["note"] == fitted.note
        assert tuple(result["size"]) == expected.size
        difference = result["pixels"].numpy() - np.asarray(expected.convert("RGBA")).astype(int).ravel()
        assert np.abs(difference).max() <= 1
        assert (difference != 0).mean() < 0.01


def test_what_cannot_be_written_is_said(command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for arguments, message in (
        (["-o", full], "is not empty"),
        (["-o", full, "--overwrite"], "is not empty"),
        (["-o", full / "mine.txt"], "is a file"),
        (["-o", tmp_path / "new", "--models", "general-4x"], "needs a model of a category"),
        (["-o", tmp_path / "new", "--models", "faces-9x"], "did you mean"),
        (["-o", tmp_path / "new", "--models", "glean-faces-16x"], "is not bundled"),
        (["-o", tmp_path / "new", "--runtime", full], "holds no onnxruntime-web"),
    ):
        status, text = command("page", *arguments)
        assert status == 2
        assert message in text
        assert len(text.splitlines()) == 1
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEANSR_OFFLINE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "npm, which is not installed" in command("page", "-o", tmp_path / "new")[1]
    monkeypatch.setenv("GLEANSR_OFFLINE", "1")
    assert "downloads are switched off" in command("page", "-o", tmp_path / "new")[1]
    assert not (tmp_path / "new").exists()


def test_a_fetched_runtime_must_be_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho other > "$2/onnxruntime-web.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEANSR_OFFLINE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: str(npm))
    with pytest.raises(DownloadError, match="another onnxruntime-web"):
        web_runtime.runtime_files()
    npm.write_text("#!/bin/sh\necho 'npm error: no network' >&2\nexit 1\n")
    with pytest.raises(DownloadError, match="no network"):
        web_runtime.runtime_files()
    assert not list((tmp_path / "home" / "page").iterdir())


@browsing
def test_the_site_names_what_it_holds(built: site.Site):
    listed = json.loads((built.folder / site.LIST).read_text())
    assert {model["name"] for model in listed["models"]} | {listed["general"]["name"]} == set(MODELS)
    assert all((built.folder / model["file"]).stat().st_size == model["size"] for model in listed["models"])
    assert all(model["licence"] and model["credit"] for model in listed["models"])
    page = (built.folder / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=", page)  # the policy forbids them
    assert set(listed["cascades"]) == {"faces", "cats"}
    assert all(len(model["probe"]["values"]) == 256 for model in (*listed["models"], listed["general"]))
    assert built.first_use < FIRST_USE
    licences = (built.folder / "LICENSES.md").read_text()
    assert "Intel License Agreement" in licences
    assert "Joseph Howse" in licences
    assert "onnxruntime-web" in (built.folder / "LICENSES.md").read_text()
    again = site.write_site(built.folder, MODELS, overwrite=True, report=lambda _text: None)
    assert again.size == built.size
