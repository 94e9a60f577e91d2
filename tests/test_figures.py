"""The figures of the supplement: unaltered pixels, positions of boxes, and reproducible files."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import gleansr
from gleansr.baselines import load
from gleansr.cli.figure import ColumnOptions, _columns
from gleansr.errors import RequestError
from gleansr.evaluation import figure_sheets as sheets
from gleansr.evaluation.comparison_folder import ComparisonFolder
from gleansr.evaluation.config import ImageSelection
from gleansr.evaluation.figure_drawing import COLOUR, arrange, draw, save
from gleansr.evaluation.figure_patches import check_box, differing_patch, retouched_patch
from gleansr.evaluation.figure_sheets import ComparedImage, Heading, Panel, PanelBox, RetouchedImage, Row, Sheet
from gleansr.evaluation.figures import choose_images, common_task, open_images, read_retouched, upscale_images
from gleansr.evaluation.ground_truth import EvaluationTask
from gleansr.inference.upscaler import Upscaler

RED = np.array([int(COLOUR[i : i + 2], 16) for i in (1, 3, 5)])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """A random image without white and without the boxes' colour."""
    return np.random.default_rng(seed).integers(10, 200, (*shape, 3), dtype=np.uint8)


def compared_image(
    name: str = "a", size: tuple[int, int] = (32, 32), scale: int = 4, methods: tuple[str, ...] = ("bicubic", "glean")
) -> ComparedImage:
    seed = sum(map(ord, name))
    results = {method: noise(*size, seed=seed + i) for i, method in enumerate(methods, 2)}
    return ComparedImage(name, noise(size[0] // scale, size[1] // scale, seed=seed), noise(*size, seed=seed + 1), results)


def grid(rows: int, columns: int, group: int = 100, size: tuple[int, int] = (12, 16)) -> Sheet:
    """Different panels of noise, without text."""
    return Sheet([Row([Panel(noise(*size, seed=10 * i + j)) for j in range(columns)]) for i in range(rows)], group)


def drawn(sheet: Sheet, path: Path, **options: float) -> np.ndarray:
    save(draw(sheet, **options), path, title="t", facts="f")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def packed(img: np.ndarray) -> np.ndarray:
    """One integer per pixel."""
    return img.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def found(img: np.ndarray, image: np.ndarray) -> tuple[int, int, int]:
    """(x, y, dots per pixel) of the only place where `image` shows `img`."""
    whole, small = packed(image), packed(img)
    spots = []
    for k in range(1, min(whole.shape[0] // small.shape[0], whole.shape[1] // small.shape[1]) + 1):
        block = repeated(small, k)
        h, w = block.shape
        corners = whole[: whole.shape[0] - h + 1, : whole.shape[1] - w + 1] == block[0, 0]
        spots += [(int(x), int(y), k) for y, x in zip(*np.nonzero(corners), strict=True) if (whole[y : y + h, x : x + w] == block).all()]
    (spot,) = spots
    return spot


def repeated(img: np.ndarray, times: int) -> np.ndarray:
    return img.repeat(times, 0).repeat(times, 1)


# ---------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(("width_mm", "dpi"), [(60, 72), (31.3, 155), (20, 300)])
def test_every_pixel_is_the_same_number_of_dots(tmp_path: Path, width_mm: float, dpi: float):
    sheet = grid(2, 3, group=2)
    image = drawn(sheet, tmp_path / "f.png", width_mm=width_mm, dpi=dpi)
    spots = [found(panel.pixels, image) for row in sheet.rows for panel in row.panels if panel]
    ((x0, x1, x2), (y0, y1), (k,)) = (sorted(set(values)) for values in zip(*spots, strict=True))
    assert [spot[:2] for spot in spots] == [(x0, y0), (x1, y0), (x2, y0), (x0, y1), (x1, y1), (x2, y1)]
    assert (x0, y0) == (0, 0)
    assert (x2 + 16 * k, y1 + 12 * k) == image.shape[1::-1]
    assert x2 - x1 > x1 - x0 > 16 * k  # a gap between groups is wider
    for x, y, _ in spots:
        image[y : y + 12 * k, x : x + 16 * k] = 255
    assert (image == 255).all()  # nothing but white between them
    with Image.open(tmp_path / "f.png") as png:
        (resolution, _), width = png.info["dpi"], png.width
    assert resolution >= dpi - 0.02
    assert abs(width / resolution * 25.4 - width_mm) < 0.05


def test_resolution_is_the_least_that_will_do():
    sheet = grid(1, 3)
    layout = arrange(sheet, 60, 300)
    dots = layout.panel[1] // 16
    assert layout.panel == (12 * dots, 16 * dots)
    assert layout.dpi >= 300 > layout.dpi * (dots - 1) / dots


def test_small_images_are_enlarged_by_repeating_their_pixels(tmp_path: Path):
    large, small = noise(16, 16), noise(4, 4, seed=1)
    sheet = Sheet([Row([Panel(large), Panel(small)])], 2)
    image = drawn(sheet, tmp_path / "f.png", width_mm=30, dpi=100)
    x, y, k = found(large, image)
    assert found(small, image)[1:] == (y, 4 * k)
    assert found(small, image)[0] > x


@pytest.mark.parametrize("box", [PanelBox(5, 3, 6, 6), PanelBox(0, 0, 4, 4), PanelBox(10, 9, 6, 3)])
def test_a_box_lies_within_its_pixels(tmp_path: Path, box: PanelBox):
    sheet = Sheet([Row([Panel(noise(12, 16)), Panel(noise(12, 16, seed=1), box)])], 2)
    image = drawn(sheet, tmp_path / "f.png", width_mm=60, dpi=150)
    layout = arrange(sheet, 60, 150)
    k = layout.panel[1] // 16
    red = (image == RED).all(-1)
    x, y = layout.x[1] + box.x * k, layout.y[0] + box.y * k
    ys, xs = np.nonzero(red)
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (x, x + box.width * k, y, y + box.height * k)
    line = round(layout.dpi / 72)
    inside = red[y + line : y + box.height * k - line, x + line : x + box.width * k - line]
    assert not inside.any()
    assert red.sum() == box.width * box.height * k**2 - inside.size  # the line is whole
    below = np.asarray(sheet.rows[0].panels[1].pixels).repeat(k, 0).repeat(k, 1)  # type: ignore[union-attr]
    shown = image[layout.y[0] : layout.y[0] + layout.panel[0], layout.x[1] : layout.x[1] + layout.panel[1]]
    mask = red[layout.y[0] : layout.y[0] + layout.panel[0], layout.x[1] : layout.x[1] + layout.panel[1]]
    assert (shown == below)[~mask].all()


def test_a_frame_is_on_the_edges_of_its_panel(tmp_path: Path):
    sheet = Sheet([Row([Panel(noise(8, 8), framed=True), Panel(noise(8, 8))])], 2)
    image = drawn(sheet, tmp_path / "f.png", width_mm=30, dpi=150)
    ys, xs = np.nonzero((image == RED).all(-1))
    height, width = arrange(sheet, 30, 150).panel
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (0, width, 0, height)


def test_headings_fit_their_columns_and_do_not_touch_images():
    texts = ["Ground truth", "a-label-of-forty-characters-is-too-long-x", "ESRGAN+"]
    sheet = grid(1, 3)
    lines = [[Heading("8x", 0, 3, rule=True)], [Heading(text, i) for i, text in enumerate(texts)]]
    sheet = Sheet([Row(sheet.rows[0].panels, lines)], 3)
    figure, layout = draw(sheet, width_mm=40), arrange(sheet, 40, 300)
    above, *others = figure.axes[0].texts
    tops, sizes = [], [float(text.get_fontsize()) for text in others]
    for text, left in zip(others, layout.x, strict=True):
        extent = text.get_window_extent()  # in dots from the bottom left
        assert left <= extent.x0
        assert extent.x1 <= left + layout.panel[1]
        assert extent.y0 >= layout.panel[0]
        tops.append(extent.y1)
    assert others[0].get_text() == texts[0]
    assert others[1].get_text().endswith("…")
    assert sizes[1] < sizes[0]
    assert above.get_window_extent().y0 > max(tops)
    assert above.get_window_extent().y1 <= layout.height


def test_a_pdf_has_its_fonts_text_and_images_in_it(tmp_path: Path):
    panels = [Panel(noise(8, 8, seed=i)) for i in range(5)]
    figure = draw(Sheet([Row([*panels, None], [[Heading("Input", 0)]])], 3), width_mm=60)
    assert len(figure.axes[0].images) == 5
    save(figure, tmp_path / "f.pdf", title="the title", facts="seed 7")
    data = (tmp_path / "f.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert data.count(b"/Subtype /Image") == 5
    assert b"/FontFile2" in data  # TrueType is embedded whole in shape: type 42
    assert b"/CIDFontType2" in data
    assert b"/Type3" not in data
    assert b"/Title (the title)" in data
    assert b"/Subject (seed 7)" in data
    assert b"CreationDate" not in data
    (width,) = {float(value) for value in re.findall(rb"/MediaBox \[ ?0 0 ([0-9.]+)", data)}
    assert abs(width / 72 * 25.4 - 60) < 0.01


PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from gleansr.evaluation.figure_drawing import draw, save
from gleansr.evaluation.figure_sheets import Heading, Panel, PanelBox, Row, Sheet
image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
sheet = Sheet([Row([Panel(image, PanelBox(1, 1, 3, 3)), Panel(image)], [[Heading("Ground truth", 0), Heading("GLEAN", 1)]])], 2)
for name in ("f.png", "f.pdf"):
    save(draw(sheet, width_mm=30), Path(sys.argv[1]) / name, title="t", facts="seed 0")
"""


def test_other_processes_and_settings_draw_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    (tmp_path / "other").mkdir()
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "other")], check=True, env=environment)
    with matplotlib.rc_context(
        {"font.size": 30, "font.family": "monospace", "savefig.bbox": "tight", "pdf.fonttype": 3, "axes.linewidth": 9}
    ):
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
        exec(PROGRAM, {})  # noqa: S102, the same program in this process
    for name in ("f.png", "f.pdf"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match=r"5 columns need at least \d+ mm, not 20; .*--width-mm"):
        draw(grid(1, 5), width_mm=20)
    with pytest.raises(RequestError, match="--width-mm"):
        draw(grid(1, 5), width_mm=float("nan"))
    with pytest.raises(RequestError, match="reduce --images"):
        draw(grid(1, 2), width_mm=500, dpi=50_000)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match=r"pip install 'gleansr\[eval\]'"):
        draw(grid(1, 1))


# ----------------------------------------------------------------------------------------------------------------- sheets


@pytest.mark.parametrize(("size", "step"), [(5, 1), (4, 4), (None, 2)])
def test_a_patch_is_where_methods_differ_most(size: int | None, step: int):
    image_boxes = [noise(16, 24, seed=i) for i in range(3)]
    box = differing_patch(image_boxes, size, step)
    assert (box.width, box.height) == ((size or 6), {5: 3, 4: 3, None: 4}[size])
    assert box.x % step == box.y % step == 0
    variance = np.var(np.stack(image_boxes).astype(float), 0).sum(-1)
    best = max(
        variance[y : y + box.height, x : x + box.width].sum()
        for y in range(0, 17 - box.height, step)
        for x in range(0, 25 - box.width, step)
    )
    assert np.isclose(variance[box.y : box.y + box.height, box.x : box.x + box.width].sum(), best)
    assert differing_patch([image_boxes[0]] * 2, 5) == PanelBox(0, 0, 5, 3)  # the first of equals


@pytest.mark.parametrize(
    ("changed", "size"),
    [(PanelBox(20, 9, 3, 3), 8), (PanelBox(40, 40, 10, 4), 16), (PanelBox(0, 58, 20, 6), 32), (PanelBox(2, 2, 60, 8), 32)],
)
def test_a_patch_is_around_the_retouch(changed: PanelBox, size: int):
    original = noise(64, 64)
    retouched = original + np.uint8(3)  # as a lossy file differs
    changed.of(retouched)[...] += 40
    box = retouched_patch(original, retouched)
    assert (box.width, box.height) == (size, size)
    assert 0 <= box.x <= 64 - size
    assert 0 <= box.y <= 64 - size
    if changed.width < size:
        assert box.x <= changed.x
        assert box.y <= changed.y
        assert changed.x + changed.width <= box.x + size
        assert changed.y + changed.height <= box.y + size
    else:
        assert (np.abs(box.of(retouched).astype(int) - box.of(original)).max(-1) > 8).sum() == size * changed.height
    assert retouched_patch(original, retouched, 12).width == 12
    check_box(retouched_patch(original, original), original)  # where nothing was changed


def test_a_comparison_has_rows_of_images_and_of_patches():
    shown, boxes = [compared_image("a"), compared_image("b")], [PanelBox(4, 8, 8, 8), PanelBox(0, 0, 16, 16)]
    sheet = sheets.comparison(shown, ["glean", "bicubic"], boxes)
    assert [[h.text for h in line] for line in sheet.rows[0].headings] == [["Input", "GLEAN", "Bicubic", "Ground truth"]]
    assert not any(row.headings for row in sheet.rows[1:])
    assert [row.near for row in sheet.rows] == [False, True, False, True]
    for one, box, above, below in zip(shown, boxes, sheet.rows[::2], sheet.rows[1::2], strict=True):
        image_boxes = [one.lr.repeat(4, 0).repeat(4, 1), one.results["glean"], one.results["bicubic"], one.gt]
        for img, panel, patch in zip(image_boxes, above.panels, below.panels, strict=True):
            assert panel is not None
            assert patch is not None
            assert panel.box == box
            assert patch.framed
            assert np.array_equal(panel.pixels, img)
            assert np.array_equal(patch.pixels, img[box.y : box.y + box.height, box.x : box.x + box.width])


def texts(sheet: Sheet) -> list[str]:
    return [heading.text for row in sheet.rows for line in row.headings for heading in line]


def image_boxes(sheet: Sheet) -> list[list[int]]:
    """For each row and column how often an image's pixel is to be repeated, 0 where there is none."""
    return [[sheet.size[1] // panel.pixels.shape[1] if panel else 0 for panel in row.panels] for row in sheet.rows]


def test_the_other_arrangements():
    shown = [compared_image(name) for name in "abc"]
    sheet = sheets.random_examples(shown, ["glean"])
    assert image_boxes(sheet) == [[4, 1, 1, 4, 1, 1], [4, 1, 1, 0, 0, 0]]
    assert texts(sheet) == ["Input", "GLEAN", "Ground truth"] * 2
    assert sheet.group == 3
    coarse = [compared_image(name, scale=8) for name in "abc"]
    sheet = sheets.scales({4: shown, 8: coarse})
    assert image_boxes(sheet) == [[4, 1, 1, 8, 1, 1]] * 3
    assert texts(sheet) == [f"4{sheets.TIMES}", f"8{sheets.TIMES}", *["Input", "GLEAN", "Ground truth"] * 2]
    assert texts(sheets.scales({8: coarse})) == [f"8{sheets.TIMES}", *["Input", "GLEAN", "Ground truth"] * 2]
    sheet = sheets.category(shown[:1], [*shown, compared_image("d"), compared_image("e")], ["bicubic", "glean"], [PanelBox(0, 0, 8, 8)])
    assert image_boxes(sheet)[2:] == [[4, 4, 4, 4], [1, 1, 1, 1], [4, 0, 0, 0], [1, 0, 0, 0]]
    assert texts(sheet)[-1] == f"4{sheets.TIMES} super-resolution: input (above) and GLEAN (below)"
    panel = sheet.rows[3].panels[1]
    assert panel is not None
    assert panel.pixels is shown[1].results["glean"]
    retouched = [RetouchedImage(name, *(noise(16, 16, seed=i) for i in range(3))) for name in "ab"]
    sheet = sheets.retouching(retouched, [PanelBox(0, 0, 4, 4), PanelBox(4, 4, 8, 8)])
    assert texts(sheet) == ["Original", "Amateur retouch", "GLEAN"] * 2
    assert image_boxes(sheet) == [[1] * 6, [4, 4, 4, 2, 2, 2]]
    assert image_boxes(sheets.retouching(retouched[:1], [PanelBox(0, 0, 4, 4)])) == [[1] * 3, [4] * 3]


def test_black_bars_are_left_out_where_all_have_them():
    barred = [compared_image(name, (64, 64), 8) for name in "ab"]
    for one in barred:
        one.gt[:8] = one.gt[56:] = 0
    cut = sheets.without_bars(barred)
    assert [(one.lr.shape, one.gt.shape, one.results["glean"].shape) for one in cut] == [((6, 8, 3), (48, 64, 3), (48, 64, 3))] * 2
    assert np.array_equal(cut[0].gt, barred[0].gt[8:56])
    barred[1].gt[3, 3] = 1
    assert sheets.without_bars(barred) == barred


def test_images_that_do_not_fit_together():
    with pytest.raises(RequestError, match=r"one size: b \(ground truth\) has 16x16, a \(ground truth\) 32x32"):
        sheets.random_examples([compared_image("a"), compared_image("b", (16, 16))], ["glean"])
    with pytest.raises(RequestError, match="inputs of a figure must have one size, not 4x4 and 8x8"):
        sheets.random_examples([compared_image("a"), compared_image("b", scale=8)], ["glean"])
    with pytest.raises(RequestError, match="no whole fraction"):
        sheets.random_examples([ComparedImage("a", noise(5, 5), noise(32, 32))], [])
    with pytest.raises(RequestError, match="a: has no result of dgp"):
        sheets.random_examples([compared_image("a")], ["glean", "dgp"])


# ------------------------------------------------------------------------------------------------------------------- rows


def test_the_draw_follows_from_the_seed():
    names = [f"{i:03}.png" for i in range(200)]
    drawn = choose_images(names, 10, 0)
    assert drawn == choose_images(names, 10, 0)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(names)
    assert drawn != choose_images(names, 10, 1)
    assert drawn[:4] == choose_images(names, 4, 0)
    assert choose_images(names[:5], 10, 0) == names[:5]


def test_named_images_are_found():
    names = ["a.jpg", "b.png", "sub/b.png", "sub/c.png"]
    assert choose_images(names, 1, 0, ["sub/c.png", "a", "b.png", "c", "a.png"]) == ["sub/c.png", "a.jpg", "b.png", "sub/c.png", "a.jpg"]
    with pytest.raises(RequestError, match=r"--names d: matches sub/d.png, x/d.png in here"):
        choose_images(["sub/d.png", "x/d.png"], 1, 0, ["d"], "here")
    with pytest.raises(RequestError, match=r"did you mean sub/c"):
        choose_images(names, 1, 0, ["sub/cc"])


def test_methods_that_do_not_fit_together(tiny_model: Path):
    tiny, bicubic = gleansr.load(tiny_model, device="cpu"), load("bicubic", scale=4, device="cpu")
    assert common_task({"a": tiny, "b": bicubic}, ImageSelection()) == EvaluationTask(32, 4)
    assert common_task({"b": bicubic}, ImageSelection(size=64, aspect="pad", small="enlarge")) == EvaluationTask(64, 4, "pad", "enlarge")
    with pytest.raises(RequestError, match="--size"):
        common_task({"b": bicubic}, ImageSelection())
    with pytest.raises(RequestError, match="a 32, --size 64"):
        common_task({"a": tiny}, ImageSelection(size=64))
    with pytest.raises(RequestError, match="a 4x, b 8x"):
        common_task({"a": tiny, "b": load("bicubic", scale=8, device="cpu")}, ImageSelection())
    with pytest.raises(RequestError, match="GLEAN takes images of 8x8, not 4x4"):
        upscale_images(tiny, [torch.zeros(1, 3, 4, 4)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six images 32x32."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(6):
        smooth = Image.fromarray(noise(8, 8, seed=i)).resize((32, 32), Image.Resampling.BICUBIC)
        smooth.save(root / f"{i}.png")
    return root


def test_a_retouched_image_is_shrunk_and_enlarged_again(photos: Path, tmp_path: Path, tiny_model: Path):
    upscaler = gleansr.load(tiny_model, device="cpu")
    edited = tmp_path / "edited"
    edited.mkdir()
    with Image.open(photos / "2.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(edited / "2.webp", lossless=True)
    task = EvaluationTask(32, 4)
    (one,) = read_retouched(open_images(edited), open_images(photos), ["2.webp"], task, lambda lrs: upscale_images(upscaler, lrs))
    with Image.open(photos / "2.png") as image:
        assert np.array_equal(one.original, np.asarray(image))
        assert np.array_equal(one.retouched, np.asarray(image)[:, ::-1])
    small = gleansr.resize(one.retouched.astype("float64"), scale=1 / 4).clip(0, 255).round().astype(np.uint8)
    assert np.array_equal(one.result, np.asarray(upscaler(small)))
    single = read_retouched(
        open_images(edited / "2.webp"), open_images(photos / "3.png"), ["2.webp"], task, lambda lrs: upscale_images(upscaler, lrs)
    )
    with Image.open(photos / "3.png") as image:  # one of one need not have its name
        assert np.array_equal(single[0].original, np.asarray(image))
    (edited / "7.png").write_bytes((photos / "1.png").read_bytes())
    with pytest.raises(RequestError, match=r"--original has no image for 7.png; "):
        read_retouched(open_images(edited), open_images(photos), ["2.webp", "7.png"], task, lambda lrs: upscale_images(upscaler, lrs))


# ------------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Runs `gleansr figure`; see `command`."""
    return partial(command, "figure")


def count_images(pdf: Path) -> int:
    return pdf.read_bytes().count(b"/Subtype /Image")


def test_figures_from_images(run, photos: Path, tmp_path: Path, tiny_model: Path):
    common = ("--models", f"glean={tiny_model}", "--methods", "bicubic,glean", "--scale", 4, "--width-mm", 60, "--dpi", 60)
    for number, options, panels in (
        (1, ("--images", 3), 3 * 4),
        (2, ("--names", "1", "4", "--patch", "8,4,8", "auto"), 2 * 2 * 4),
        (4, ("--images", 1, "--gallery", 3), 2 * 4 + 2 * 3),
        (7, ("--images", 1), 2 * 4 + 2 * 4),
    ):
        out = tmp_path / f"{number}.pdf"
        status, said = run(number, photos, "-o", out, *common, *options)
        assert status == 0, said
        assert count_images(out) == panels
        assert "glean: tiny, CC0-1.0" in said
        assert f"→ {out} (60x" in said
        assert "seed 0" in said or number == 2
    assert b"patch of 1.png: 8,4,8" in (tmp_path / "2.pdf").read_bytes()


def test_a_png_shows_what_the_methods_made(run, photos: Path, tmp_path: Path, tiny_model: Path):
    out = (tmp_path / "a.png", tmp_path / "b.pdf")
    options = ("--models", f"glean={tiny_model}", "--methods", "bicubic,glean", "--scale", 4, "--width-mm", 40, "--dpi", 50)
    status, said = run(1, photos, "-o", *out, *options, "--seed", 3, "--images", 1)
    assert status == 0, said
    name = re.search(r"of 6 images in photos, 1 drawn with seed 3: (\d\.png)", said)
    assert name
    with Image.open(out[0]) as png:
        image = np.asarray(png.convert("RGB"))
        assert "seed 3" in png.info["Description"]
        assert name[1] in png.info["Description"]
        assert png.info["Software"].startswith("gleansr")
    assert count_images(out[1]) == 4
    with Image.open(photos / name[1]) as gt:
        pixels = np.asarray(gt)
    lr = gleansr.resize(pixels.astype("float64"), scale=1 / 4).clip(0, 255).round()
    bicubic = gleansr.resize(lr, scale=4.0).clip(0, 255).round()
    glean = np.asarray(gleansr.load(tiny_model, device="cpu")(lr.astype(np.uint8)))
    spots = [found(img, image) for img in (lr, bicubic, glean, pixels)]
    assert spots == sorted(spots)  # from left to right
    assert {y for _, y, _ in spots} == {spots[0][1]}
    assert [k / spots[3][2] for *_, k in spots] == [4, 1, 1, 1]
    first = out[0].read_bytes()
    assert run(1, photos, "-o", out[0], *options, "--seed", 3, "--images", 1, "--overwrite")[0] == 0
    assert out[0].read_bytes() == first


def test_scales_and_retouching(run, photos: Path, tmp_path: Path, tiny_model: Path):
    options = ("--width-mm", 60, "--dpi", 60, "--device", "cpu", "--images", 2)
    status, said = run(3, photos, "-o", tmp_path / "3.pdf", "--models", f"glean:4={tiny_model}", *options)
    assert status == 0, said
    assert count_images(tmp_path / "3.pdf") == 6
    assert "glean at 4x: tiny" in said
    status, said = run(8, photos, "--original", photos, "-o", tmp_path / "8.pdf", "--models", f"glean={tiny_model}", "--scale", 4, *options)
    assert status == 0, said
    assert count_images(tmp_path / "8.pdf") == 12
    one = (photos / "1.png", "--original", photos / "2.png", "-o", tmp_path / "one.png")
    assert run(8, *one, "--models", f"glean={tiny_model}", "--scale", 4, *options)[0] == 0


@pytest.mark.parametrize(
    ("number", "options", "columns"),
    [
        (3, ColumnOptions(), {"16": "cats-16x"}),
        (3, ColumnOptions(category="faces"), {"16": "faces-16x", "32": "faces-32x", "64": "faces-64x"}),
        (1, ColumnOptions(category="faces"), {"pulse": "faces-bank", "glean": "faces-8x"}),
        (5, ColumnOptions(methods="bicubic,glean"), {"bicubic": None, "glean": "cars-8x"}),
        (7, ColumnOptions(methods="pulse,glean"), {"pulse": "towers-bank", "glean": "towers-8x"}),
    ],
)
def test_figures_take_the_bundled_models_of_their_category(number: int, options: ColumnOptions, columns: dict[str, str | None]):
    assert {label: entry and entry.model for label, entry in _columns(number, options, None).items()} == columns


def test_a_search_tells_its_seed_and_settings(run, photos: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path / "home"))
    models = ("--models", f"glean={tiny_model}", f"pulse={tiny_model}", "--option", "pulse.steps=1", "pulse.fit_samples=50", "pulse.seed=4")
    options = ("--scale", 4, "--images", 1, "--width-mm", 60, "--dpi", 60)
    status, said = run(1, photos, "-o", tmp_path / "a.png", *models, *options)
    assert status == 0, said
    assert "pulse: tiny, CC0-1.0, steps 1, seed 4, fit_samples 50" in said
    with Image.open(tmp_path / "a.png") as png:
        assert "seed 4" in png.info["Description"]
    assert run(1, photos, "-o", tmp_path / "b.png", *models, *options)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def compared(photos: Path, root: Path, methods: dict[str, Upscaler], slow: str) -> Path:
    """A folder as `gleansr compare` leaves it; the slow method has done three images only."""
    for path in sorted(photos.iterdir()):
        with Image.open(path) as gt:
            pixels = np.asarray(gt)
        lr = gleansr.resize(pixels.astype("float64"), scale=1 / 4).clip(0, 255).round().astype(np.uint8)
        made = {label: np.asarray(method(lr)) for label, method in methods.items() if label != slow or path.stem < "3"}
        for label, img in {"truth": pixels, "low": lr, **made}.items():
            (root / "pictures" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(img).save(root / "pictures" / label / path.name)
    (root / "comparison.json").write_text(
        '{"methods": [{"label": "mine", "model": "m.safetensors", "licence": "CC0-1.0", "settings": {"seed": 5}}]}'
    )
    return root


def test_figures_from_a_comparison(run, photos: Path, tmp_path: Path, tiny_model: Path):
    tiny, bicubic = gleansr.load(tiny_model, device="cpu"), load("bicubic", scale=4, device="cpu")
    folder = compared(photos, tmp_path / "compared", {"mine": tiny, "bicubic": bicubic}, slow="mine")
    assert ComparisonFolder(folder).names(["bicubic"]) == [f"{i}.png" for i in range(6)]
    options = ("--comparison", folder, "--width-mm", 40, "--dpi", 50, "--device", "cpu")
    status, said = run(1, "-o", tmp_path / "a.png", *options, "--methods", "bicubic,mine")
    assert status == 0, said
    assert "of 3 images in compared, all: 0.png, 1.png, 2.png" in said
    assert "mine: m.safetensors, CC0-1.0, seed 5, in compared" in said
    # What the folder lacks is run, and comes out the same as what it has.
    status, said = run(
        1, "-o", tmp_path / "b.png", *options, "--methods", "bicubic,glean", "--models", f"glean={tiny_model}", "--names", "0", "1", "2"
    )
    assert status == 0, said
    images = []
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as image:
            images.append(np.asarray(image.convert("RGB"))[-50:])  # below the headings
    assert np.array_equal(*images)
    for arguments, words in {
        (1, "--methods", "bicubic,mine", "--models", f"glean={tiny_model}"): "leave glean=",
        (1, photos, "--methods", "bicubic,mine"): "leave DATA out",
        (1, "--methods", "bicubic,mine", "--scale", 4): "leave --scale out",
        (1, "--methods", "mine,other"): "other",
        (2, "--methods", "mine", "--names", "5"): "5",
        (3,): "--comparison is for figures 1, 2, 4, 5, 6, 7",
    }.items():
        status, said = run(*arguments, "-o", tmp_path / "x.png", *options)
        assert status == 2, said
        assert words in said, (arguments, said)
    status, said = run(1, "-o", tmp_path / "x.png", "--comparison", photos, "--methods", "bicubic")
    assert status == 2
    assert "gleansr compare" in said


def test_wrong_requests_exit_2_in_one_line_and_write_nothing(run, photos: Path, tmp_path: Path, tiny_model: Path):
    there = tmp_path / "there.pdf"
    there.write_text("precious")
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(noise(16, 16)).save(other / "1.png")
    before = sorted(tmp_path.rglob("*"))
    glean = ("--models", f"glean={tiny_model}", "--scale", 4)
    both = ("--methods", "bicubic,glean", *glean)
    for arguments, words in {
        (9, photos): "there is no figure 9; there are 1: random examples",
        (2, photos, "--models", "dgp=cats-8x"): "needs the bank's own discriminator",  # a GLEAN's file is without
        (5, photos, "--methods", "bicubic,glean", "--scale", 32): "--models glean=FILE",
        (6, photos): "esrgan+ needs a file: --models esrgan+=FILE",  # bedrooms-bank and bedrooms-8x are bundled
        (7, photos, "--category", "cats"): "--category is for figures 1, 2, 3, 8, not for figure 7",
        (1, *both): "give a folder, an archive or an image or a comparison",
        (1, photos, *both, "-o", tmp_path / "x.svg"): "use .png or .pdf",
        (1, photos, *both, "-o", there): "--overwrite",
        (1, photos, *both, "-o", tmp_path / "none" / "x.png"): "does not exist",
        (1, photos, *both, "-o"): "--output",
        (1, photos, *both, "--names", "7"): "--names 7: is not in photos",
        (1, photos, *both, "--images", 0): "--images",
        (1, photos, *both, "--patch", "auto"): "--patch is for figures 2, 4, 5, 6, 7, 8, not for figure 1",
        (1, photos, *both, "--original", photos): "--original is for figure 8, not for figure 1",
        (1, photos, *both, "--width-mm", 10): "--width-mm",
        (2, photos, *both, "--patch", "30,0,8"): "outside of an image of 32x32",
        (2, photos, *both, "--patch", "1,2"): "such as 80,96,64",
        (2, photos, *both, "--patch", "a"): "such as 80,96,64",
        (2, photos, *both, "--patch", "auto", "auto"): "3 images have patches, but 2",
        (3, photos, *glean): "--scale is for figures",
        (3, photos, "--models", f"glean={tiny_model}"): "glean:16=",
        (3, photos, "--models", f"glean:8={tiny_model}"): "has a scale of 4x, not 8x",
        (8, photos, *glean): "--original",
        (8, photos, "--original", other, *glean): "--original has no image for",
        (8, photos, "--original", photos, "--methods", "bicubic"): "not for figure 8",
        (1, tmp_path / "nothing", *both): "no such file or folder",
        (1, photos, *both, "--device", "cuda:99"): "--device cpu",
    }.items():
        status, said = run(*arguments, *(() if "-o" in arguments else ("-o", tmp_path / "x.png")))
        assert status == 2, (arguments, said)
        assert words in said, (arguments, said)
        assert len(said.strip().splitlines()) == 1, said
    assert sorted(tmp_path.rglob("*")) == before
    assert there.read_text() == "precious"
    status, said = run(1, other, *both, "-o", tmp_path / "x.png")
    assert status == 1
    assert "--small enlarge" in said
    assert run(1, other, *both, "-o", tmp_path / "x.png", "--small", "enlarge", "--width-mm", 60, "--dpi", 60)[0] == 0
