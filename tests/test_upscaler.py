"""The Upscaler: every kind of image, every way to fit it, batches, transparency, devices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gleansr
from gleansr.checkpoints.native import About
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import decode
from gleansr.inference.runner import FeedForwardModel
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.stylegan2 import StyleGAN2Config


@pytest.fixture
def upscaler(tiny_model: Path) -> gleansr.Upscaler:
    return gleansr.load(tiny_model, device="cpu")


def test_what_it_says_of_itself(upscaler: gleansr.Upscaler):
    facts = (upscaler.input_size, upscaler.output_size, upscaler.scale, upscaler.category, upscaler.license)
    assert facts == (8, 32, 4, "blobs", "CC0-1.0")


def test_all_kinds_of_images_give_the_same(upscaler: gleansr.Upscaler, cat: Image.Image, tmp_path: Path):
    small = cat.resize((8, 8))
    small.save(tmp_path / "small.png")
    array = np.array(small)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    results = [upscaler(p) for p in (tmp_path / "small.png", str(tmp_path / "small.png"), small, array, tensor)]
    assert all(result.size == (32, 32) and result.mode == "RGB" for result in results)
    assert len({result.tobytes() for result in results}) == 1
    assert "gleansr" not in results[0].info


def test_results_are_those_of_the_model(upscaler: gleansr.Upscaler, cat: Image.Image):
    small = np.array(cat.resize((8, 8)))
    lr = torch.from_numpy(small).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        sr = upscaler.method(lr).images[0].clamp(-1, 1)
    expected = ((sr + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(np.array(upscaler(small)).astype(float) - expected).max() <= 0.51


def test_batches_are_lazy_ordered_and_do_not_mix(upscaler: gleansr.Upscaler, cat: Image.Image):
    images = [cat.rotate(90 * i) for i in range(4)] + [cat.convert("L")]
    taken = 0

    def stream():
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    results = upscaler.upscale(stream(), batch_size=2)
    first = next(results)
    assert taken == 2
    together = [first, *results]
    assert len(together) == 5
    for one, image in zip(together, images, strict=True):
        alone = upscaler(image)
        assert np.abs(np.array(one).astype(int) - np.array(alone)).max() <= 1


@pytest.mark.parametrize(
    ("fit", "size", "result", "note"),
    [
        ("auto", (8, 8), (32, 32), ""),
        ("auto", (64, 64), (32, 32), "64x64: shrunk to the model's 8x8"),
        ("auto", (4, 4), (32, 32), "4x4: enlarged to the model's 8x8"),
        ("auto", (64, 32), (32, 16), "64x32: padded to 64x64, shrunk to the model's 8x8"),
        ("pad", (6, 8), (24, 32), "6x8: padded to 8x8"),
        ("crop", (64, 32), (32, 32), "64x32: cut to its centre 32x32, shrunk to the model's 8x8"),
        ("stretch", (64, 32), (32, 32), "64x32: aspect ratio not kept, shrunk to the model's 8x8"),
        ("exact", (8, 8), (32, 32), ""),
        ("auto", (500, 1), (32, 1), "500x1: padded to 500x500, shrunk to the model's 8x8"),
    ],
)
def test_fitting(upscaler: gleansr.Upscaler, cat: Image.Image, fit, size, result, note):
    image = upscaler(cat.resize(size), fit=fit)
    assert image.size == result
    assert image.info.get("gleansr", "") == note


def test_what_pad_keeps_is_the_image(upscaler: gleansr.Upscaler, cat: Image.Image):
    """An image that was padded by hand gives, within its part, what `pad` gives."""
    wide = np.array(cat.resize((8, 4)))
    square = np.concatenate([wide[:1], wide[:1], wide, wide[-1:], wide[-1:]])
    assert np.array_equal(np.array(upscaler(wide, fit="pad")), np.array(upscaler(square))[8:24])


def test_exact_refuses_and_names_the_way_out(upscaler: gleansr.Upscaler, cat: Image.Image):
    with pytest.raises(RequestError, match=r"is 64x64, but the model takes 8x8; --fit crop"):
        upscaler(cat, fit="exact")
    with pytest.raises(RequestError, match="'squeeze'"):
        upscaler(cat, fit="squeeze")  # pyright: ignore[reportArgumentType]


def test_transparency_is_enlarged_beside_the_colour(upscaler: gleansr.Upscaler, cat: Image.Image):
    rgba = np.dstack([np.array(cat.resize((8, 8))), np.zeros((8, 8), np.uint8)])
    rgba[:, 4:, 3] = 255
    image = upscaler(rgba)
    assert image.mode == "RGBA"
    alpha = np.array(image)[..., 3]
    assert alpha[:, :12].max() == 0
    assert alpha[:, 20:].min() == 255
    rgba[:, :4, :3] = 255 - rgba[:, :4, :3]  # colour that nobody sees must not matter
    assert image.tobytes() == upscaler(rgba).tobytes()


def test_a_decoded_image_may_be_given(upscaler: gleansr.Upscaler, cat: Image.Image):
    assert upscaler(decode(cat)).tobytes() == upscaler(cat).tobytes()


def test_devices_and_precisions(tiny_model: Path, cat: Image.Image):
    with pytest.raises(RequestError, match="'nonsense' is not there"):
        gleansr.load(tiny_model, device="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="'cuda' is not there or not usable here; --device cpu"):
            gleansr.load(tiny_model, device="cuda")
    with pytest.raises(RequestError, match="precision is 'int4'"):
        gleansr.load(tiny_model, precision="int4")  # pyright: ignore[reportArgumentType]
    full = np.array(gleansr.load(tiny_model, device="cpu", precision="float32")(cat)).astype(int)
    half = np.array(gleansr.load(tiny_model, device="cpu", precision="bfloat16")(cat)).astype(int)
    assert 0 < np.abs(full - half).mean() < 3


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu(tiny_model: Path, cat: Image.Image):
    on_cpu = np.array(gleansr.load(tiny_model, device="cpu")(cat)).astype(int)
    on_gpu = np.array(gleansr.load(tiny_model, device="cuda", precision="float32")(cat)).astype(int)
    assert np.abs(on_cpu - on_gpu).max() <= 1


def test_bad_images_raise(upscaler: gleansr.Upscaler, tmp_path: Path):
    with pytest.raises(ImageError, match=r"none\.png"):
        upscaler(tmp_path / "none.png")


def test_a_bank_enlarges_nothing(tmp_path: Path):
    from gleansr.checkpoints import native
    from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config

    bank = tmp_path / "bank.safetensors"
    native.save(bank, {"generator": StyleGAN2(StyleGAN2Config((4, 4), 4, 1))}, native.About("b"))
    with pytest.raises(RequestError, match="a StyleGAN2 does not enlarge images by itself; give a GLEAN"):
        gleansr.load(bank)


def test_an_official_file_in_the_cache_runs_by_name_and_says_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cat: Image.Image):
    import foreign_layouts

    from gleansr.checkpoints import zoo

    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path))
    path = zoo.file_of(zoo.find("glean-cats-8x"))
    path.parent.mkdir()
    tensors = foreign_layouts.glean_tensors(8, (8, 8, 6, 4))
    torch.save({"meta": {}, "state_dict": {f"generator.{name}": tensor for name, tensor in tensors.items()}}, path)
    upscaler = gleansr.load("glean-cats-8x", device="cpu", offline=True)
    assert upscaler.category == "cats"
    assert upscaler.license is not None
    assert "Nvidia" in upscaler.license
    assert upscaler(cat).size == (32, 32)


def test_images_between_black_bars(tmp_path: Path):
    """A model of 512x384 in a square, in small: 32x24 in 32x32."""
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3))
    upscaler = Upscaler(FeedForwardModel(model, device="cpu"), About("cars", content_height=24))
    assert upscaler.content_height == 24
    pixels = torch.rand(3, 6, 8).mul(255).round().div(255)
    fitted = upscaler.fit(decode(pixels), "exact")
    assert fitted.keep == (4, 0, 24, 32)
    assert torch.allclose((fitted.lr[:, 1:7] + 1) / 2, pixels, atol=1e-6)
    assert torch.equal(fitted.lr[:, [0, 7]], torch.full((3, 2, 8), -1.0))
    assert upscaler(pixels).size == (32, 24)
    with pytest.raises(RequestError, match="is 12x6, but the model takes 8x6;"):
        upscaler.fit(decode(torch.rand(3, 6, 12)), "exact")
    wide = upscaler.fit(decode(torch.rand(3, 6, 16)), "pad")
    assert wide.keep == (4 + 6, 0, 12, 32)
    assert "padded to 16x12" in wide.note
    assert upscaler.fit(decode(torch.rand(3, 6, 16)), "crop").note == "16x6: cut to its centre 8x6"
    assert upscaler(torch.rand(3, 9, 12)).size == (32, 24)
    square = upscaler.fit(decode(torch.rand(3, 8, 8)), "exact")  # has its bars already
    assert square.keep == (0, 0, 32, 32)
