"""The page of `gleansr serve` in a real browser, with the real service behind it."""

import contextlib
import io
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from page_driver import ARGUMENTS, CHROMIUM, Driver
from PIL import Image

import gleansr.serving
from benchmarks.service import running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'gleansr[test]'")
pytest.importorskip("uvicorn", reason="the service is not installed: pip install 'gleansr[serve]'")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine; apt-get install chromium, or set CHROMIUM to its path")

EXAMPLES = Path(__file__).parent.parent / "examples"
CAT = EXAMPLES / "chelsea-256.png"
STATIC = Path(gleansr.serving.__file__).parent / "static"
TOKEN = "correct-horse-battery-staple"  # noqa: S105

FEW_MODELS = """
import gleansr.serving.server as server
from gleansr.__main__ import main
everything = server.bundled_models()
server.bundled_models = lambda: [model for model in everything if model.name in ("cats-8x", "cats-4x", "cats-16x", "faces-4x", "faces-8x")]
main()
"""
"""`gleansr`, whose service loads and warms up the models that these tests use: all of them take half a minute."""


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of the service with bundled models."""
    with running(program=["-c", FEW_MODELS], OMP_NUM_THREADS="2") as service:
        yield service.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def drive(browser: Any) -> Iterator[Callable[..., Driver]]:
    """Opens the page at an address; nothing may have gone wrong in it at the end."""
    opened = []

    def start(address: str, **options: Any) -> Driver:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"} | options)
        opened.append((context, Driver(context.new_page(), address)))
        return opened[-1][1]

    yield start
    for context, driver in opened:
        context.close()
        assert not driver.errors


def _pixels(img: Path | bytes) -> np.ndarray:
    with Image.open(img if isinstance(img, Path) else io.BytesIO(img)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_an_ear_is_pushed_refined_compared_undone_and_saved(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    page = driver.page
    driver.open()
    driver.shot("empty")
    driver.load(CAT)
    original, at_first = _pixels(CAT), driver.canvas()
    driver.stroke((0.45, 0.2), (0.4, 0.1))
    assert driver.status().startswith("Refined in ")
    driver.shot("refined")
    refined = driver.canvas()
    assert not np.array_equal(refined, at_first)

    # My edit is what the brush made of it, without the model.
    driver.choose("edit")
    edit = driver.save(tmp_path / "edit.png")
    assert (_pixels(edit) != original).any()
    driver.choose("refined")

    # What is saved is the server's own file: marked, changed within the mask, and only there.
    saved = driver.save(tmp_path / "saved.png")
    files = {
        name: {"name": name, "mimeType": "image/png", "buffer": file.read_bytes()} for name, file in (("edited", edit), ("original", CAT))
    }
    answer = page.request.post(f"{service}/v1/retouch", multipart={**files, "output": "mask"})
    weights = np.asarray(Image.open(io.BytesIO(answer.body())))
    changed = (_pixels(saved) != original).any(-1)
    assert weights.shape == changed.shape
    assert not changed[weights == 0].any()
    assert changed[weights > 128].mean() > 0.5
    assert 0.005 < (weights > 0).mean() < 0.3
    assert not (_pixels(edit) != original).any(-1)[weights == 0].any()
    assert b"compositeWithTrainedAlgorithmicMedia" in saved.read_bytes()

    with page.expect_response("**/v1/retouch"):
        page.check("#mask")
    page.wait_for_timeout(200)
    driver.shot("mask")
    assert not np.array_equal(driver.canvas(), refined)
    page.uncheck("#mask")
    assert np.array_equal(driver.canvas(), refined)

    # The divider: all the way to the right it is the image before, to the left the refined one.
    driver.choose("compare")
    for place, wanted in ((0.999, at_first), (0.001, refined), (0.5, None)):
        driver.drag((0.5, 0.5), (place, 0.5))
        if wanted is not None:
            assert np.array_equal(driver.canvas(), wanted)
    middle = at_first.shape[1] // 2
    assert np.array_equal(driver.canvas()[:, : middle - 2], at_first[:, : middle - 2])
    assert np.array_equal(driver.canvas()[:, middle + 2 :], refined[:, middle + 2 :])
    driver.shot("compare")
    page.focus("#split")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#split") == "50.5"

    driver.choose("refined")
    page.click("#undo")
    driver.says("Nothing is edited")
    assert np.array_equal(_pixels(driver.save(tmp_path / "undone.png")), original)
    page.keyboard.press("Control+Shift+Z")
    driver.says("Refined")
    assert np.array_equal(_pixels(driver.save(tmp_path / "redone.png")), _pixels(saved))


def test_of_a_wide_image_only_the_square_is_sent(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    """And what is saved is put together in the page: the original's pixels around the server's, with the mark."""
    wide = tmp_path / "wide.png"
    with Image.open(STATIC / "chelsea.jpg") as sample:
        sample.resize((1200, 640)).save(wide)
    driver = drive(service)
    driver.open()
    driver.load(wide)
    answered: list[str] = []
    driver.page.on("response", lambda answer: answered.append(answer.headers.get("gleansr-size", "")) if "retouch" in answer.url else None)
    driver.stroke((0.35, 0.4), (0.3, 0.45))
    saved = driver.save(tmp_path / "saved.png")
    changed = (_pixels(saved) != _pixels(wide)).any(-1)
    assert 0.005 < changed.mean() < 0.3
    # First a small version, in which no head is found, then the square with a column of what the image goes on with at each side.
    assert answered == ["600x320", "642x640"]
    with Image.open(saved) as image:
        assert image.size == (1200, 640)
        assert image.info["Software"].startswith("gleansr, model cats-4x")

    # What is kept is where further edits start from.
    driver.page.evaluate("document.querySelector('#more').open = true")
    driver.page.click("#keep")
    driver.says("Kept")
    assert np.array_equal(_pixels(driver.save(tmp_path / "kept.png")), _pixels(saved))
    driver.page.click("#undo")
    driver.says("Refined")
    assert np.array_equal(_pixels(driver.save(tmp_path / "again.png")), _pixels(saved))

    # Another region, chosen by hand with the keyboard, that does not hold the edit.
    driver.choose("region")
    driver.page.focus("#board")
    for _ in range(12):
        driver.page.keyboard.press("[")
    for _ in range(15):
        driver.page.keyboard.press("Shift+ArrowRight")
    driver.until("document.querySelector('#status').textContent.includes('outside the model region')")
    driver.shot("region")
    assert np.array_equal(_pixels(driver.save(tmp_path / "outside.png")), _pixels(wide))


def test_images_open_upright_and_stay_transparent(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    turned, glass = tmp_path / "turned.jpg", tmp_path / "glass.png"
    pixels = np.full((90, 120, 4), 255, np.uint8)
    pixels[..., 1] = np.arange(120)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels[..., :3]).save(turned, exif=exif)
    pixels[:30, :, 3] = 0
    Image.fromarray(pixels).save(glass)
    driver = drive(service)
    driver.open()
    driver.load(turned)
    assert driver.status().startswith("turned.jpg, 90\u00d7120")
    driver.load(glass)
    driver.page.select_option("#model", "cats-8x")
    driver.stroke((0.5, 0.7), (0.55, 0.7))
    with Image.open(driver.save(tmp_path / "saved.png")) as image:
        assert image.mode == "RGBA"
        alpha = np.asarray(image)[..., 3]
    assert np.array_equal(alpha, pixels[..., 3])
    driver.page.wait_for_timeout(500)  # the page finds out whether a model of cats fits; nothing is recognised, as browsers write
    assert all("422" in error for error in driver.errors)
    driver.errors.clear()


def test_settings_refine_anew(drive: Callable[..., Driver], service: str) -> None:
    driver = drive(service)
    driver.open()
    driver.load(CAT)
    driver.choose("paint")
    driver.stroke((0.5, 0.3), (0.5, 0.35))
    seen = [driver.canvas().tobytes()]
    for part in ("more", "about"):
        driver.page.evaluate(f"document.querySelector('#{part}').open = true")
    changes: list[Callable[[], Any]] = [
        lambda: driver.page.locator("#blend").fill("30"),
        lambda: driver.page.select_option("#factor", "32"),
        lambda: driver.page.select_option("#feather", "32"),
        lambda: driver.page.select_option("#model", "cats-16x"),
    ]
    for change in changes:
        with driver.page.expect_response(lambda answer: "/v1/retouch" in answer.url and answer.status == 200):
            change()
        driver.until("document.querySelector('#stage').ariaBusy === 'false'")
        seen.append(driver.canvas().tobytes())
    assert len(set(seen)) == len(seen)
    assert "CC-BY-NC-4.0" in driver.page.inner_text("#facts")
    driver.shot("settings")


def test_the_newest_stroke_wins(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    """The answer to the first stroke is held back until the second one's is shown."""
    driver = drive(service)
    driver.open()
    driver.load(CAT)
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route) if not held else route.continue_()

    driver.page.route("**/v1/retouch", hold)
    driver.drag((0.4, 0.4), (0.45, 0.4))
    driver.page.wait_for_timeout(100)
    driver.stroke((0.6, 0.6), (0.55, 0.6))
    shown = driver.canvas()
    with contextlib.suppress(sync_api.Error):  # the page has given that request up
        held[0].continue_()
    driver.page.wait_for_timeout(500)
    assert held
    assert driver.refined() == 1
    assert np.array_equal(driver.canvas(), shown)
    assert driver.page.is_hidden("#problem")


def test_cancelling_leaves_the_edit_and_offers_to_go_on(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    driver.open()
    driver.load(CAT)
    driver.page.route("**/v1/retouch", lambda _: None)  # never answered
    driver.drag((0.4, 0.4), (0.45, 0.4))
    driver.until("!document.querySelector('#working').hidden")
    driver.shot("working")
    driver.page.keyboard.press("Escape")
    driver.until("document.querySelector('#problem').textContent.includes('not refined yet')")
    driver.page.unroute("**/v1/retouch")
    driver.page.click("#retry")
    driver.says("Refined")


def test_everything_can_be_done_with_keys(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    page = driver.page
    driver.open()
    driver.load(CAT)
    page.keyboard.press("?")
    assert page.is_visible("#help-dialog")
    driver.shot("help")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help-dialog")
    page.keyboard.press("b")
    assert page.is_checked("input[value=paint]")
    size = page.inner_text("#size-said")
    page.keyboard.press("]")
    assert page.inner_text("#size-said") != size
    while page.evaluate("document.activeElement.id") != "board":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    driver.shot("keys")
    page.keyboard.press("Enter")
    driver.says("Refined in")
    page.keyboard.press("i")
    page.focus("#board")
    page.keyboard.press("Enter")
    assert "Colour #" in driver.status()
    page.keyboard.press("Control+z")
    driver.says("Nothing is edited")
    page.keyboard.press("c")
    assert page.is_checked("input[value=compare]")
    with page.expect_download() as download:
        page.keyboard.press("Control+s")
    download.value.save_as(tmp_path / "saved.png")
    assert np.array_equal(_pixels(tmp_path / "saved.png"), _pixels(CAT))

    page.keyboard.press("?")
    page.uncheck("#single")
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    assert page.is_checked("input[value=paint]")  # shortcuts without Ctrl can be turned off
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, [tabindex='0']")].filter((element) =>
      !(element.ariaLabel || element.labels?.length || element.textContent.trim() || element.title)).map((element) => element.outerHTML)""")
    assert unnamed == []


def test_two_fingers_zoom_and_do_not_draw(drive: Callable[..., Driver], service: str) -> None:
    driver = drive(service, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    driver.open()
    assert driver.page.evaluate("document.documentElement.scrollWidth") == 360
    driver.shot("narrow-empty")
    driver.load(CAT)
    before, box = driver.page.inner_text("#zoom"), driver.page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = driver.page.context.new_cdp_session(driver.page)

    def send(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x + dx, "y": y + dy, "id": i} for i, (dx, dy) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", (-20, 0))
    send("touchMove", (-22, 0))
    send("touchStart", (-22, 0), (20, 0))
    for step in range(5):
        send("touchMove", (-22 - 10 * step, 0), (20 + 10 * step, 0))
    send("touchEnd")
    assert driver.page.inner_text("#zoom") != before
    assert driver.page.is_disabled("#undo")
    send("touchStart", (0, 0))
    for step in range(5):
        send("touchMove", (3 * step, 0))
    send("touchEnd")
    driver.says("Refined in")  # one finger draws
    assert driver.page.evaluate("document.documentElement.scrollWidth") == 360
    driver.shot("narrow")


def test_a_small_image_is_enlarged_saved_and_retouched(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service, color_scheme="dark")
    driver.open("upscale")
    driver.page.set_input_files("#file", str(EXAMPLES / "chelsea-32.png"))
    driver.says("Enlarged in")
    assert re.search(r"32.32 → 256.256\. cat \((?:\d\d?|>99)%\), cats-8x", driver.status())
    assert re.fullmatch(r"cat \((?:\d\d?|>99)%\), cats-8x", driver.page.inner_text("#chip"))
    driver.page.locator("#pair-split").fill("30")
    driver.shot("upscale")
    saved = driver.save(tmp_path / "large.png")
    assert _pixels(saved).shape == (256, 256, 3)
    assert np.abs(_pixels(saved) - _pixels(CAT)).mean() < 12
    assert driver.page.is_hidden("#fitting")
    driver.page.select_option("#enlarger", "cats-16x")
    driver.until("document.querySelector('#status').textContent.includes('cats-16x')")
    assert driver.page.is_visible("#fitting")
    driver.page.select_option("#enlarger", "cats-8x")
    driver.until("document.querySelector('#status').textContent.includes('256. cats-8x')")
    driver.page.set_input_files("#file", str(EXAMPLES.parent / "pyproject.toml"))
    driver.until("!document.querySelector('#problem').hidden")
    assert "pyproject.toml is not an image" in driver.page.inner_text("#problem")
    driver.shot("error")
    driver.page.click("#onward")
    driver.until("document.querySelector('#status').textContent.includes('256\u00d7256')")
    assert driver.page.is_checked("input[value=retouch]")
    driver.page.set_input_files("#file", str(EXAMPLES.parent / "pyproject.toml"))
    driver.until("!document.querySelector('#problem').hidden")
    assert "pyproject.toml is not an image" in driver.page.inner_text("#problem")


def test_each_category_has_a_sample_that_its_model_enlarges(drive: Callable[..., Driver], service: str) -> None:
    driver = drive(service)
    for category in ("car", "bedroom", "tower"):
        driver.open("upscale")
        driver.page.click(f"[data-sample={category}][data-mode-of=upscale]")
        driver.says("Enlarged in")
        assert re.fullmatch(rf"{category} \((?:\d\d?|>99)%\), {category}s-8x", driver.page.inner_text("#chip"))


def test_a_result_is_zoomed_and_saved_in_other_formats_with_the_mark(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    page = driver.page
    driver.open("upscale")
    page.click("[data-sample=face][data-mode-of=upscale]")
    driver.says("Enlarged in")
    assert re.fullmatch(r"face \((?:\d\d?|>99)%\), faces-8x", page.inner_text("#chip"))
    whole = page.inner_text("#zoom")
    page.mouse.move(500, 300)
    page.mouse.wheel(0, -400)
    assert page.inner_text("#zoom") != whole
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == whole

    # The divider follows the mouse, and the whole image before is shown while a key is held.
    clip = "document.querySelector('#large').style.clipPath"
    box = page.locator("#pair").bounding_box()
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    assert page.inner_text("#pair-split-said") == "25 %"
    page.keyboard.down("\\")
    assert "100%" in page.evaluate(clip)
    page.keyboard.up("\\")
    assert "25%" in page.evaluate(clip)

    sizes = {}
    for name, suffix in (("png", "png"), ("jpeg", "jpg"), ("webp", "webp")):
        page.select_option("#format", name)
        driver.until("document.querySelector('#file-size').textContent")
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == f"astronaut-256.{suffix}"
        download.value.save_as(file := tmp_path / f"saved.{suffix}")
        with Image.open(file) as image:
            assert (image.size, image.format) == ((256, 256), name.upper())
            image.load()
        assert b"compositeWithTrainedAlgorithmicMedia" in file.read_bytes()
        assert b"faces-8x" in file.read_bytes()
        sizes[name] = file.stat().st_size
        assert page.inner_text("#file-size").startswith("256\u00d7256, ")
    assert sizes["jpeg"] < sizes["png"]
    difference = np.abs(_pixels(tmp_path / "saved.jpg") - _pixels(tmp_path / "saved.png"))
    assert difference.mean() < 3
    page.locator("#quality").fill("40")
    driver.until("document.querySelector('#file-size').textContent")
    driver.save(tmp_path / "small.webp")
    assert (tmp_path / "small.webp").stat().st_size < sizes["webp"]

    page.select_option("#scale", "2")
    driver.until("document.querySelector('#status').textContent.includes('32\u00d732 → 64\u00d764')")


def test_a_portrait_is_enlarged_with_its_face(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    """As a photo: the face by its model, the rest by the general one; on a phone the image stays in sight above the controls."""
    pytest.importorskip("dlib", reason="the detectors are not installed: pip install 'gleansr[photos]'")
    with Image.open(STATIC / "astronaut.jpg") as sample:
        sample.crop((40, 0, 400, 360)).resize((180, 180)).save(tmp_path / "portrait.jpg", quality=95)
    driver = drive(service, viewport={"width": 390, "height": 844}, has_touch=True)
    page = driver.page
    driver.open("upscale")
    page.set_input_files("#file", str(tmp_path / "portrait.jpg"))
    driver.says("Enlarged in")
    assert re.fullmatch(r"1 face, faces-\dx, general-4x|1 face, general-4x, faces-\dx", page.inner_text("#chip"))
    with Image.open(driver.save(tmp_path / "large.png")) as image:
        assert image.size == (720, 720)
    driver.shot("portrait-phone")
    page.locator("#onward").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 844
    assert page.evaluate("document.documentElement.scrollHeight") <= 844
    small = page.evaluate("""() => [...document.querySelectorAll("button, select")]
      .filter((one) => one.checkVisibility() && !one.closest("dialog") && one.getBoundingClientRect().height < 44).map((one) => one.id)""")
    assert small == []


def test_a_guide_shows_a_bad_edit_and_what_refining_makes_of_it(drive: Callable[..., Driver], service: str) -> None:
    pytest.importorskip("dlib", reason="the detectors are not installed: pip install 'gleansr[photos]'")
    driver = drive(service)
    page = driver.page
    driver.open("upscale")
    page.click("#guide-sample")
    driver.says("Refined")
    assert page.inner_text("#found") == "face found, faces-4x"
    driver.shot("guide")
    edit = driver.canvas().astype(int)
    page.click("#guide-next")
    driver.shot("guide-refined")
    refined = driver.canvas().astype(int)
    changed = np.abs(edit - refined).max(-1) > 8
    assert 0.02 < changed.mean() < 0.4
    # The seams are steps from one pixel to the next; the model leaves fewer.
    steps = [(np.abs(np.diff(image[..., 1], axis=1)) > 40)[changed[:, 1:]].mean() for image in (edit, refined)]
    assert steps[1] < 0.5 * steps[0]
    page.click("#guide-next")
    assert page.is_checked("input[value=edit]")
    page.click("#guide-end")
    assert page.is_hidden("#guide")


def test_a_spot_is_healed_and_a_part_is_moved(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    page = driver.page
    driver.open()
    driver.load(CAT)
    page.select_option("#model", "cats-8x")
    original = _pixels(CAT)
    page.keyboard.press("h")
    assert page.is_checked("input[value=heal]")
    page.locator("#size").fill("30")
    driver.stroke((0.5, 0.2), (0.51, 0.2))
    driver.choose("edit")
    healed = _pixels(driver.save(tmp_path / "healed.png"))
    assert 0.0005 < (healed != original).any(-1).mean() < 0.05
    driver.choose("refined")
    page.click("#undo")
    driver.says("Nothing is edited")

    # An eye goes down, and the fur closes over where it was.
    driver.choose("move")
    driver.drag((0.3, 0.4), (0.45, 0.4), (0.45, 0.55), (0.3, 0.55), (0.3, 0.4))
    assert driver.status().startswith("Selected")
    driver.shot("lasso")
    page.keyboard.press("Escape")
    driver.drag((0.375, 0.475), (0.376, 0.475))  # nothing is selected there any more
    assert driver.status().startswith("Nothing is selected")
    driver.drag((0.3, 0.4), (0.45, 0.4), (0.45, 0.55), (0.3, 0.55), (0.3, 0.4))
    driver.stroke((0.375, 0.475), (0.375, 0.675))
    driver.shot("moved")
    driver.choose("edit")
    moved = _pixels(driver.save(tmp_path / "moved.png"))
    assert 0.03 < (moved != original).any(-1).mean() < 0.2
    page.click("#undo")
    driver.says("Nothing is edited")


def test_edits_that_are_not_saved_are_asked_about(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    driver = drive(service)
    page = driver.page
    driver.open()
    driver.load(CAT)
    driver.choose("paint")
    driver.stroke((0.5, 0.3), (0.5, 0.35))
    for answer, opens in (("[data-close]", False), ("[data-answer=save]", True)):
        page.set_input_files("#file", str(EXAMPLES / "astronaut-256.png"))
        driver.until("document.querySelector('#unsaved-dialog').open")
        driver.shot("unsaved")
        saves: list[str] = []
        page.once("download", lambda download, saves=saves: saves.append(download.suggested_filename))
        page.click(f"#unsaved-dialog {answer}")
        driver.until("!document.querySelector('#unsaved-dialog').open")
        driver.says("astronaut" if opens else "Refined")
        assert saves == (["chelsea-256-retouched.png"] if opens else [])
    assert page.is_disabled("#undo")


def test_a_model_that_does_not_fit_says_so(drive: Callable[..., Driver], service: str) -> None:
    driver = drive(service)
    driver.open("upscale")
    driver.page.set_input_files("#file", str(EXAMPLES / "astronaut-256.png"))
    driver.says("Enlarged in")
    driver.choose("retouch")  # the image comes along
    driver.says("astronaut-256.png, 256")
    driver.page.select_option("#model", "cats-8x")
    driver.stroke((0.5, 0.5), (0.52, 0.5))
    driver.says("This model knows cats; the image shows faces.")
    driver.choose("upscale")
    driver.says("Enlarged in")


def test_what_nothing_is_known_of_is_said(drive: Callable[..., Driver], service: str, tmp_path: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "grey.png")
    driver = drive(service)
    driver.open()
    driver.load(tmp_path / "grey.png")
    driver.choose("paint")
    driver.drag((0.4, 0.4), (0.5, 0.4))
    driver.until("!document.querySelector('#problem').hidden")
    assert "Choose a model" in driver.page.inner_text("#problem")
    assert all("422" in error for error in driver.errors)  # browsers write an error of every refused request
    driver.errors.clear()
    driver.page.select_option("#model", "cats-8x")
    driver.says("Refined")


def test_the_sample_and_dropped_and_pasted_images_open(drive: Callable[..., Driver], service: str) -> None:
    driver = drive(service)
    driver.open()
    driver.page.click("[data-sample=cat][data-mode-of=retouch]")
    driver.says("chelsea.jpg, 451\u00d7300")
    give = """async ([kind, name]) => {
      const data = new DataTransfer(), response = await fetch("static/chelsea.jpg");
      data.items.add(new File([await response.blob()], name, { type: "image/jpeg" }));
      const options = { clipboardData: data, dataTransfer: data, bubbles: true };
      document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
    }"""
    driver.page.evaluate(give, ["dragover", "dropped.jpg"])
    assert driver.page.is_visible("#drop")
    driver.page.evaluate(give, ["drop", "dropped.jpg"])
    driver.says("dropped.jpg")
    driver.page.evaluate(give, ["paste", "pasted.jpg"])
    driver.says("pasted.jpg")


def test_a_token_is_asked_for_and_a_busy_or_gone_server_waited_for(drive: Callable[..., Driver], tiny_model: Path) -> None:
    """Of a service with room for one request: another client's, which does not end, keeps it."""
    arguments = ("--models", tiny_model, "--queue", "1")
    environment = {"GLEANSR_TOKEN": TOKEN, "OMP_NUM_THREADS": "2"}
    with running(*arguments, **environment) as service:
        address = service.url
        driver = drive(address)
        page = driver.page
        page.goto(address)
        driver.until("document.querySelector('#token-dialog').open")
        page.fill("#token", "something-else-entirely")
        page.keyboard.press("Enter")
        driver.until("document.querySelector('#token-why').textContent.includes('not it')")
        driver.shot("token")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        driver.until("document.querySelector('#model').options.length > 0")
        assert page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])").find(TOKEN) < 0
        driver.choose("retouch")
        driver.load(CAT)

        url = urlsplit(address)
        with socket.create_connection((url.hostname or "", url.port or 0)) as other:
            other.sendall(
                f"POST /v1/upscale HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x".encode()
            )
            page.wait_for_timeout(200)
            driver.drag((0.4, 0.4), (0.45, 0.4))
            driver.until("document.querySelector('#working').textContent.includes('busy')")
            assert driver.refined() == 0
            driver.shot("busy")
        driver.until("performance.getEntriesByName('stroke-to-refined').length === 1")  # by itself
    assert any("429" in error for error in driver.errors)

    driver.drag((0.5, 0.5), (0.55, 0.5))
    driver.until("document.querySelector('#working').textContent.includes('does not answer')")
    driver.shot("gone")
    assert driver.refined() == 1
    with running("--port", str(url.port), *arguments, **environment):
        driver.until("performance.getEntriesByName('stroke-to-refined').length === 2", 30)
        assert page.is_hidden("#problem")
    refused = ("401", "429", "503", "ERR_CONNECTION", "ERR_EMPTY")
    assert all(any(word in error for word in refused) for error in driver.errors), driver.errors
    driver.errors.clear()


@pytest.mark.parametrize("contrast", ["no-preference", "more"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(drive: Callable[..., Driver], service: str, scheme: str, contrast: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for the outlines of fields and for focus; AAA and more where the user asks for contrast."""
    driver = drive(service, color_scheme=scheme, contrast=contrast)
    driver.open()
    texts = (
        "text page, text card, text stage, soft card, soft page, soft stage, accent tint, on-accent accent, warn-text warn, bad-text bad"
    )
    text, edge = (7, 4.5) if contrast == "more" else (4.5, 3)
    pairs = {text: texts, edge: "edge card, edge page, edge stage, accent card, accent page, accent stage"}
    for least, names in pairs.items():
        for pair in names.split(", "):
            ratio = driver.page.evaluate(
                """([a, b]) => {
                  const light = (name) => {
                    const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
                    const [red, green, blue] = hex.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16) / 255)
                      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
                  };
                  const [one, other] = [light(a), light(b)];
                  return Math.max(one, other) / Math.min(one, other);
                }""",
                pair.split(),
            )
            assert ratio >= least, f"{pair}: {ratio:.2f}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_hide_nothing(drive: Callable[..., Driver], service: str, scheme: str) -> None:
    """What is chosen differs from what is not; what lies over images keeps its colours; what had only a background has a border."""
    driver = drive(service, color_scheme=scheme, forced_colors="active")
    driver.open()
    driver.page.evaluate("document.body.removeAttribute('data-empty')")
    for id_ in ("divider", "shimmer", "found", "working"):
        driver.page.evaluate(f"document.querySelector('#{id_}').hidden = false")
    driver.shot(f"forced-{scheme}")

    def style(selector: str, name: str) -> str:
        return driver.page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).getPropertyValue({name!r})")

    for chosen, other in (
        (".tools label:has(:checked)", ".tools label:not(:has(:checked))"),
        ("#modes :checked + span", "#modes :not(:checked) + span"),
    ):
        assert style(chosen, "background-color") != style(other, "background-color")
        assert style(chosen, "color") != style(chosen, "background-color")
    assert style("#divider", "background-color") == "rgb(255, 255, 255)"
    assert style("#shimmer", "outline-style") == "dashed"
    assert style("#working i", "border-top-color") != style("#working i", "border-left-color")
    for selector in ("#found", ".warning"):
        assert float(style(selector, "border-top-width").removesuffix("px")) >= 1
    driver.page.focus("#open")
    driver.page.keyboard.press("Tab")
    driver.page.keyboard.press("Shift+Tab")
    assert style("#open", "outline-style") == "solid"
    assert float(style("#open", "outline-width").removesuffix("px")) >= 2
