"""What the page's brushes, history and files do, called in the browser: properties, without images on screen."""

import io
import itertools
import json
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from page_driver import ARGUMENTS, CHROMIUM
from PIL import Image

import gleansr.images.codec
import gleansr.serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'gleansr[test]'")

STATIC = Path(gleansr.serving.__file__).parent / "static"

SETTING = Path(__file__).with_name("page_setting.js").read_text()


class _Quiet(SimpleHTTPRequestHandler):
    extensions_map = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml"}  # noqa: RUF012

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """Runs JavaScript that has the page's modules at hand."""
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Quiet(*a, directory=str(STATIC))) as server, sync_api.sync_playwright() as play:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/icon.svg")
        page.set_default_timeout(20_000)
        yield lambda work: page.evaluate(f"async () => {{ {SETTING} {work} }}")
        browser.close()
        server.shutdown()


def test_a_brush_is_whole_in_its_core_and_fades_to_nothing(modules: Any) -> None:
    values = modules("return [0, 0.3, 0.9].map((hardness) => Array.from({ length: 121 }, (_, i) => falloff(i / 100, hardness)));")
    for hardness, profile in zip((0, 0.3, 0.9), values, strict=True):
        assert profile[: round(100 * hardness) + 1] == [1] * (round(100 * hardness) + 1)
        assert profile[100:] == [0] * 21
        assert all(a >= b for a, b in itertools.pairwise(profile))
        assert profile[round(50 + 50 * hardness)] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("dx", "dy"), [(20, -6), (-40, 30), (0, 3)])
def test_pushing_moves_a_spot_along(modules: Any, dx: int, dy: int) -> None:
    place = modules(f"""
      const picture = new Document(spot(64, 64), "spot");
      stroke(picture, "push", {{}}, line(at(64, 64), at(64 + {dx}, 64 + {dy}), 10));
      return found(picture.edited);
    """)
    assert (place["x"] - 64, place["y"] - 64) == pytest.approx((dx, dy), abs=1.2)


def test_pushing_with_half_the_force_moves_half_the_way(modules: Any) -> None:
    place = modules("""
      const picture = new Document(spot(64, 64), "spot");
      stroke(picture, "push", { strength: 0.5, hardness: 0.7, radius: 40 }, line(at(64, 64), at(80, 64), 10));
      return found(picture.edited);
    """)
    assert place["x"] - 64 == pytest.approx(8, abs=1)


def test_a_long_stroke_does_not_blur(modules: Any) -> None:
    """To and fro twenty times: resampling each time would leave grey."""
    before, after = modules("""
      const picture = new Document(noise(), "noise"), points = [];
      for (let i = 0; i < 20; i++) points.push(at(50, 64), at(58, 64));
      stroke(picture, "push", {}, [...points, at(50, 64)]);
      return [deviation(values(picture.base, [44, 58, 56, 70])), deviation(values(picture.edited, [44, 58, 56, 70]))];
    """)
    assert after > 0.7 * before


def test_enlarging_keeps_the_middle_and_shrinking_undoes_it_in_size(modules: Any) -> None:
    small, large, tiny = modules("""
      const made = (tool) => {
        const picture = new Document(spot(64, 64, 4), "spot");
        stroke(picture, tool, {}, [at(64, 64)], 0.8);
        return found(picture.edited);
      };
      return [found(spot(64, 64, 4)), made("enlarge"), made("shrink")];
    """)
    for place in (large, tiny):
        assert (place["x"], place["y"]) == pytest.approx((64, 64), abs=0.3)
    assert large["spread"] > 1.25 * small["spread"]
    assert tiny["spread"] < 0.8 * small["spread"]


@pytest.mark.parametrize("place", [(64, 64), (20, 100), (3, 60), (124, 125)])
def test_healing_removes_a_spot_and_keeps_light_and_grain(modules: Any, place: tuple[int, int]) -> None:
    """Also at the border, where only some sides tell what belongs there."""
    x, y = place
    before, after, grain, undone = modules(f"""
      const flaw = {{ x: {x}, y: {y} }}, box = [{max(x - 9, 0)}, {max(y - 9, 0)}, {min(x + 9, 128)}, {min(y + 9, 128)}];
      const clean = blemished(null), picture = new Document(blemished(flaw), "spot");
      const before = farthest(picture.edited, clean, box);
      stroke(picture, "heal", {{ radius: 12 }}, [at({x}, {y})]);
      const after = farthest(picture.edited, clean, box), grain = deviation(values(picture.edited, box)) / deviation(values(clean, box));
      picture.undo();
      return [before, after, grain, equal(picture.edited, picture.opened)];
    """)
    assert before > 60
    assert after < 14
    assert grain == pytest.approx(1, abs=0.25)
    assert undone


def test_healing_what_fills_the_image_leaves_a_smooth_surface(modules: Any) -> None:
    """There is nowhere to copy from: the border's colours are continued."""
    low, high = modules("""
      const picture = new Document(draw(40, 40, (x, y) => x > 8 && x < 31 && y > 8 && y < 31 ? [255, 0, 0] : [100 + x, 100, 100]), "all");
      stroke(picture, "heal", { radius: 17 }, [at(20, 20)]);
      const inside = values(picture.edited, [10, 10, 30, 30]);
      return [Math.min(...inside), Math.max(...inside)];
    """)
    assert 100 <= low <= high <= 145


def test_moving_takes_a_part_along_and_fills_where_it_was(modules: Any) -> None:
    place, left, inside, outside, undone = modules("""
      const from = { x: 36, y: 60 }, picture = new Document(blemished(from, 0), "spot");
      const selection = select([at(22, 46), at(50, 46), at(50, 74), at(22, 74)], picture);
      stroke(picture, "move", { selection }, line(at(36, 60), at(92, 68), 8));
      const clean = blemished(null, 0), dark = draw(128, 128, (x, y) => {
        const off = clean.data[(y * 128 + x) * 4] - picture.edited.data[(y * 128 + x) * 4];
        return [70 + Math.max(off - 30, 0), 0, 0];
      });
      const left = farthest(picture.edited, clean, [24, 48, 48, 72]), place = found(dark);
      const chosen = [selects(selection, { x: 36, y: 60 }), selects(selection, { x: 60, y: 60 })];
      picture.undo();
      return [place, left, ...chosen, equal(picture.edited, picture.opened)];
    """)
    assert (place["x"], place["y"]) == pytest.approx((92, 68), abs=0.5)
    assert left < 10
    assert (inside, outside, undone) == (True, False, True)


def test_a_path_around_nothing_selects_nothing(modules: Any) -> None:
    made = modules("""
      const size = { width: 9, height: 9 };
      return [select([at(3, 3)], size), select([at(3, 3), at(3.2, 3), at(3, 3.1)], size)];
    """)
    assert made == [None, None]


@pytest.mark.parametrize("tool", ["push", "enlarge", "shrink", "smooth", "heal", "paint", "erase"])
def test_a_stroke_changes_nothing_outside_of_its_brush(modules: Any, tool: str) -> None:
    outside, inside = modules(f"""
      const picture = new Document(noise(), "noise");
      stroke(picture, "paint", {{ radius: 60 }}, [at(64, 64)]);
      const before = picture.edited.data.slice();
      stroke(picture, "{tool}", {{ radius: 20, colour: [1, 2, 3] }}, line(at(60, 64), at(70, 64), 5), 0.2);
      let [far, near] = [0, 0];
      for (let i = 0; i < before.length; i++) {{
        const x = (i >> 2) % 128 + 0.5, y = (i >> 9) + 0.5, away = Math.hypot(x - Math.min(Math.max(x, 60), 70), y - 64);
        if (before[i] !== picture.edited.data[i]) away > 22 ? far++ : near++;
      }}
      return [far, near];
    """)
    assert outside == 0
    assert inside > 100


def test_smoothing_takes_variance_away_and_keeps_the_mean(modules: Any) -> None:
    before, after, mean_before, mean_after = modules("""
      const picture = new Document(noise(), "noise");
      stroke(picture, "smooth", { hardness: 0.9, radius: 30 }, [at(64, 64)], 0.5);
      const area = [50, 50, 78, 78];
      const [old, now] = [values(picture.base, area), values(picture.edited, area)];
      return [deviation(old), deviation(now), mean(old), mean(now)];
    """)
    assert after < 0.25 * before
    assert mean_after == pytest.approx(mean_before, abs=6)


def test_paint_covers_wholly_in_its_core_and_does_not_add_up(modules: Any) -> None:
    core, once, twice = modules("""
      const picture = () => new Document(draw(128, 128, () => [10, 100, 50]), "plain"), [a, b, c] = [picture(), picture(), picture()];
      stroke(a, "paint", { hardness: 0.5 }, [at(64, 64)]);
      stroke(b, "paint", { strength: 0.5 }, [at(40, 64), at(90, 64)]);
      stroke(c, "paint", { strength: 0.5 }, [at(40, 64), at(90, 64), at(40, 64), at(90, 64), at(90, 100)]);
      const upper = ({ edited }) => [...edited.data.slice(0, 64 * 128 * 4)];  // where the last part of the way is farthest
      return [[...a.edited.data.slice((64 * 128 + 64) * 4, (64 * 128 + 64) * 4 + 4)], upper(b), upper(c)];
    """)
    assert core == [200, 30, 90, 255]
    assert once == twice


def test_erasing_restores_the_original_exactly(modules: Any) -> None:
    whole, worn = modules("""
      const damaged = () => {
        const picture = new Document(noise(), "noise");
        stroke(picture, "smooth", { radius: 12 }, [at(64, 64)], 1);
        return picture;
      };
      const [a, b] = [damaged(), damaged()];
      stroke(a, "erase", { radius: 30 }, [at(64, 64)]);
      for (let i = 0; i < 60; i++) stroke(b, "erase", { radius: 20, hardness: 0, strength: 0.3 }, [at(64, 64)]);
      return [equal(a.edited, a.base) && a.changed() === null, equal(b.edited, b.base)];
    """)
    assert whole
    assert worn  # softly, again and again


def test_undo_and_redo_restore_bit_for_bit(modules: Any) -> None:
    assert modules("""
      const picture = new Document(noise(), "noise"), states = [picture.edited.data.slice()], numbers = [0];
      const tools = ["push", "enlarge", "shrink", "smooth", "paint", "erase"];
      for (let i = 0; i < 18; i++) {
        const way = [at(128 * random(), 128 * random()), at(128 * random(), 128 * random())];
        if (!stroke(picture, tools[i % 6], { radius: 8 + 20 * random() }, way, 0.1)) continue;
        states.push(picture.edited.data.slice());
        numbers.push(picture.history.state);
      }
      const same = (state) => equal(picture.edited, new ImageData(states[state].slice(), 128)) && picture.history.state === numbers[state]
        && equal(picture.before, picture.edited);
      const results = [states.length > 12];
      for (let i = states.length - 2; i >= 0; i--) { picture.undo(); results.push(same(i)); }
      results.push(picture.undo() === null, picture.changed() === null);
      for (let i = 1; i < states.length; i++) { picture.redo(); results.push(same(i)); }
      results.push(picture.redo() === null);
      picture.undo();
      stroke(picture, "paint", {}, [at(5, 5)]);
      results.push(picture.redo() === null && !numbers.includes(picture.history.state));  // what was undone is gone, the state is a new one
      return results.every(Boolean);
    """)


def test_history_keeps_within_its_memory(modules: Any) -> None:
    kept, used, counted, last = modules("""
      const history = new History(200000), image = noise(), before = new ImageData(image.data.slice(), 128);
      for (let i = 0; i < 30; i++) {
        for (let k = 0; k < 3000; k++) image.data[4 * k] = i + k % 7;
        history.add("step", changes(before, image, pixels.whole(image)));
        before.data.set(image.data);
      }
      const bytes = history.done.reduce((sum, step) => sum + step.tiles.reduce((a, tile) => a + tile.pixels.byteLength, 0), 0);
      while (history.undo());
      return [history.undone.length, history.bytes, bytes, image.data[0]];
    """)
    assert 5 < kept < 30
    assert used == counted <= 200_000
    assert last == 30 - kept - 1


def test_keeping_a_result_can_be_undone(modules: Any) -> None:
    assert modules("""
      const picture = new Document(noise(), "noise"), opened = picture.opened.data.slice();
      stroke(picture, "paint", {}, [at(40, 40)]);
      const edit = picture.edited.data.slice(), area = { left: 8, top: 4, right: 72, bottom: 68 };
      picture.keep({ area, pixels: draw(64, 64, (x, y) => [x, y, 9]) });
      const image = (data) => new ImageData(data.slice(), 128), results = [];
      results.push(equal(picture.base, picture.edited), picture.changed() === null, picture.base.data[(4 * 128 + 9) * 4] === 1);
      stroke(picture, "paint", { radius: 9 }, [at(100, 100)]);
      picture.undo();
      results.push(picture.changed() === null);
      picture.undo();
      results.push(equal(picture.edited, image(edit)), equal(picture.base, image(opened)), picture.changed() !== null, picture.kept === 0);
      picture.redo();
      results.push(picture.kept === 1, equal(picture.base, picture.edited));
      results.push(!equal(picture.base, image(opened)), equal(picture.opened, image(opened)));
      return results.every(Boolean);
    """)


def test_what_the_model_sees_lies_in_the_picture_and_holds_what_was_touched(modules: Any) -> None:
    cases = modules("""
      const results = [];
      for (let i = 0; i < 400; i++) {
        const [width, height] = [40 + Math.floor(random() * 400), 40 + Math.floor(random() * 400)], ratio = i % 3 ? 1 : 0.75;
        const limits = { width, height, ratio, least: 32 };
        const left = Math.floor(random() * (width - 5)), top = Math.floor(random() * (height - 5));
        const touched = { left, top, right: left + 1 + Math.floor(random() * 20), bottom: top + 1 + Math.floor(random() * 20) };
        const inside = pixels.clip(touched, pixels.whole(limits)), start = region.largest(limits, inside);
        const to = { x: random() * 500 - 50, y: random() * 500 - 50 }, from = { x: random() * width, y: random() * height };
        const parts = ["left top", "right bottom", "right top", "inside", null].map((part) => region.drag(limits, start, part, from, to));
        results.push({ limits, touched: inside, automatic: region.automatic(limits, inside), parts, start });
      }
      return results;
    """)
    for case in cases:
        limits, touched = case["limits"], case["touched"]
        for part in [case["automatic"], *case["parts"]]:
            assert 0 <= part["left"] < part["right"] <= limits["width"]
            assert 0 <= part["top"] < part["bottom"] <= limits["height"]
        for part in case["parts"]:
            across, down = part["right"] - part["left"], part["bottom"] - part["top"]
            assert abs(down - across * limits["ratio"]) <= 1, case
            assert across >= 32
        seen = case["automatic"]
        assert all(seen[side] <= touched[side] for side in ("left", "top")), case
        assert all(seen[side] >= touched[side] for side in ("right", "bottom")), case
        corner, start = case["parts"][0], case["start"]  # the left upper one was dragged
        assert abs(corner["right"] - start["right"]) <= 1
        assert abs(corner["bottom"] - start["bottom"]) <= 1


@pytest.mark.parametrize("opaque", [True, False])
def test_files_for_the_server_hold_the_pixels_exactly(modules: Any, opaque: bool) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (13, 22, 4), dtype=np.uint8)
    if opaque:
        pixels[..., 3] = 255
    contents = modules(f"""
      const image = new ImageData(new Uint8ClampedArray({json.dumps(pixels.ravel().tolist())}), 22);
      const bytes = async (blob) => [...new Uint8Array(await blob.arrayBuffer())];
      return [await bytes(files.bmp(image)), await bytes(await png(image, 'gleansr, <"test">'))];
    """)
    bmp, png = (Image.open(io.BytesIO(bytes(each))) for each in contents)
    assert np.array_equal(np.asarray(bmp.convert("RGBA")), pixels)
    assert bmp.mode == ("RGB" if opaque else "RGBA")
    png.load()  # which checks the chunks' sums
    assert np.array_equal(np.asarray(png.convert("RGBA")), pixels)
    assert png.mode == bmp.mode
    assert png.info["Software"] == 'gleansr, <"test">'
    described = ElementTree.fromstring(png.info["XML:com.adobe.xmp"].partition("?>")[2].rpartition("<?")[0])[0][0].attrib  # noqa: S314
    assert described["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == 'gleansr, <"test">'
    kind = described["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert kind == gleansr.images.codec.EDITED


def test_shrinking_takes_means_of_what_can_be_seen(modules: Any) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (11, 17, 4), dtype=np.uint8)
    pixels[:4, :4, 3] = 0
    shrunk = modules(f"""
      const image = new ImageData(new Uint8ClampedArray({json.dumps(pixels.ravel().tolist())}), 17);
      const small = pixels.shrink(image, {{ left: 1, top: 0, right: 17, bottom: 11 }}, 3);
      return [small.width, small.height, [...small.data]];
    """)
    width, height, values = shrunk
    assert (width, height) == (6, 4)
    for y in range(height):
        for x in range(width):
            block = pixels[3 * y : 3 * y + 3, 1 + 3 * x : min(4 + 3 * x, 17)].reshape(-1, 4).astype(float)
            weight = block[:, 3].sum()
            wanted = [*((block[:, :3] * block[:, 3:]).sum(0) / weight if weight else (0, 0, 0)), block[:, 3].mean()]
            assert values[(y * width + x) * 4 :][:4] == pytest.approx(wanted, abs=0.501)
