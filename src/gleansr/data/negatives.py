"""Generated images that show no object of any category: text, screenshots, drawings, charts, patterns, gradients, noise, landscapes."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Random = np.random.Generator

_LETTERS = "abcdefghijklmnopqrstuvwxyzetaoinshrdlueetaoin"


def generate(seed: int) -> Image.Image:
    """An RGB image with sides of 48 to 192 pixels; it depends on `seed` alone."""
    rng = np.random.Generator(np.random.PCG64(seed))
    side = int(rng.integers(64, 193))
    size = (side, max(48, round(side * rng.uniform(0.6, 1.0)))) if rng.random() < 0.4 else (side, side)
    return _KINDS[int(rng.integers(len(_KINDS)))](rng, size)


def _colour(rng: Random, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def _paper_and_ink(rng: Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    light, dark = _colour(rng, 190), _colour(rng, 0, 110)
    if rng.random() < 0.5:
        light, dark = (255, 255, 255), (0, 0, 0)
    return (light, dark) if rng.random() < 0.75 else (dark, light)


def _words(rng: Random, count: int) -> str:
    letters = np.array(list(_LETTERS))
    words = ["".join(rng.choice(letters, int(rng.integers(2, 10)))) for _ in range(count)]
    return " ".join(word.capitalize() if rng.random() < 0.2 else word for word in words)


def _write(draw: ImageDraw.ImageDraw, rng: Random, box: tuple[int, int, int, int], ink: tuple[int, int, int], height: float) -> None:
    font = ImageFont.load_default(height)
    spacing = height * rng.uniform(1.1, 1.8)
    for row in range(max(1, int((box[3] - box[1]) / spacing))):
        if rng.random() < 0.9:
            draw.text((box[0], box[1] + row * spacing), _words(rng, int(rng.integers(1, 12))), ink, font)


def _text(rng: Random, size: tuple[int, int]) -> Image.Image:
    paper, ink = _paper_and_ink(rng)
    image = Image.new("RGB", size, paper)
    margin = int(rng.integers(0, size[0] // 6))
    height = float(rng.uniform(6, 16) if rng.random() < 0.6 else rng.uniform(16, size[0] / 2))
    _write(ImageDraw.Draw(image), rng, (margin, margin, *size), ink, height)
    return image.rotate(float(rng.normal(0, 8)), Image.Resampling.BICUBIC, fillcolor=paper) if rng.random() < 0.3 else image


def _screenshot(rng: Random, size: tuple[int, int]) -> Image.Image:
    paper, ink = _paper_and_ink(rng)
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0], int(rng.integers(4, 20))), _colour(rng))
    if rng.random() < 0.5:
        draw.rectangle((0, 0, int(rng.integers(10, size[0] // 3)), size[1]), _colour(rng))
    for _ in range(int(rng.integers(2, 12))):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(10, size[1]))
        box = (x, y, x + int(rng.integers(4, size[0] // 2)), y + int(rng.integers(4, size[1] // 3)))
        if rng.random() < 0.5:
            draw.rounded_rectangle(box, int(rng.integers(0, 3)), _colour(rng), ink if rng.random() < 0.5 else None)
        else:
            _write(draw, rng, box, ink, float(rng.uniform(6, 14)))
    return image


def _chart(rng: Random, size: tuple[int, int]) -> Image.Image:
    paper, ink = _paper_and_ink(rng)
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    left, bottom = size[0] // 8, size[1] - size[1] // 8
    draw.line((left, 4, left, bottom, size[0] - 4, bottom), ink)
    count = int(rng.integers(4, 24))
    xs = np.linspace(left, size[0] - 4, count + 1)
    for _ in range(int(rng.integers(1, 4))):
        colour, heights = _colour(rng), bottom - rng.random(count + 1) * (bottom - 6)
        if rng.random() < 0.5:
            draw.line(list(zip(xs.tolist(), heights.tolist(), strict=True)), colour, int(rng.integers(1, 4)))
        else:
            for x, height in zip(xs[:-1].tolist(), heights.tolist(), strict=False):
                draw.rectangle((x + 1, height, x + (xs[1] - xs[0]) * 0.8, bottom), colour)
    return image


def _shape(draw: ImageDraw.ImageDraw, rng: Random, size: tuple[int, int], line: tuple[int, int, int]) -> None:
    x, y = rng.uniform(-0.1, 1.0, 2) * size
    width, height = rng.uniform(0.05, 0.7, 2) * size
    fill = _colour(rng) if rng.random() < 0.7 else None
    stroke = int(rng.integers(1, 5))
    kind = rng.integers(5)
    if kind == 0:
        draw.ellipse((x, y, x + width, y + height), fill, line, stroke)
    elif kind == 1:
        draw.rectangle((x, y, x + width, y + height), fill, line, stroke)
    elif kind == 2:
        draw.arc((x, y, x + width, y + height), float(rng.uniform(0, 360)), float(rng.uniform(0, 360)), line, stroke)
    else:
        points = rng.uniform(0, 1, (int(rng.integers(3, 9)), 2)) * (width, height) + (x, y)
        corners = [(float(px), float(py)) for px, py in points]
        if kind == 3:
            draw.polygon(corners, fill, line)
        else:
            draw.line(corners, line, stroke, "curve")


def _drawing(rng: Random, size: tuple[int, int]) -> Image.Image:
    paper, ink = _paper_and_ink(rng)
    image = Image.new("RGB", size, paper if rng.random() < 0.7 else _colour(rng))
    for _ in range(int(rng.integers(1, 14))):
        _shape(ImageDraw.Draw(image), rng, size, ink if rng.random() < 0.7 else _colour(rng))
    return image


def _from_floats(values: np.ndarray) -> Image.Image:
    """values (H, W, 3) in [0, 1]."""
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


def _mix(rng: Random, plane: np.ndarray) -> Image.Image:
    """An image between two colours by `plane` (H, W) in [0, 1]."""
    first, second = (np.array(_colour(rng)) / 255 for _ in range(2))
    return _from_floats(first + (second - first) * plane[..., None])


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return x / size[0], y / size[1]


def _gradient(rng: Random, size: tuple[int, int]) -> Image.Image:
    x, y = _grid(size)
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * math.pi)
        plane = x * math.cos(angle) + y * math.sin(angle)
        plane = (plane - plane.min()) / np.ptp(plane)
    else:
        plane = np.hypot(x - rng.random(), y - rng.random())
    return _mix(rng, plane ** rng.uniform(0.5, 2))


def _pattern(rng: Random, size: tuple[int, int]) -> Image.Image:
    x, y = _grid(size)
    plane = np.zeros_like(x)
    for _ in range(int(rng.integers(1, 4))):
        angle, frequency = rng.uniform(0, math.pi), 2 ** rng.uniform(1, 6)
        plane += np.sin(2 * math.pi * (frequency * (x * math.cos(angle) + y * math.sin(angle)) + rng.random()))
    if rng.random() < 0.5:
        plane = np.sign(plane)
    return _mix(rng, (plane - plane.min()) / max(np.ptp(plane), 1e-6))


def _spectral(rng: Random, size: tuple[int, int], exponent: float, channels: int) -> np.ndarray:
    """Noise (H, W, channels) in [0, 1] whose amplitude falls with frequency to the power of `exponent`."""
    fy, fx = np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None]
    amplitude = np.maximum(np.hypot(fx * rng.uniform(0.5, 2), fy), 1 / max(size)) ** -exponent
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=size[::-1])) * amplitude, s=size[::-1]) for _ in range(channels)]
    noise = np.stack(planes, -1)
    return (noise - noise.mean()) / (noise.std() + 1e-9) * 0.22 + 0.5


def _noise(rng: Random, size: tuple[int, int]) -> Image.Image:
    if rng.random() < 0.5:
        base, strength = np.array(_colour(rng)) / 255, rng.uniform(0.02, 0.5)
        return _from_floats(base + (_spectral(rng, size, rng.uniform(0, 2.5), 3) - 0.5) * 4 * strength)
    return _mix(rng, _spectral(rng, size, rng.uniform(0, 2.5), 1)[..., 0].clip(0, 1))


def _plain(rng: Random, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, _colour(rng))


def _landscape(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Sky over hills: textured layers with rough skylines."""
    _, y = _grid(size)
    sky = np.array([rng.uniform(0.2, 0.9), rng.uniform(0.4, 0.9), rng.uniform(0.6, 1.0)])
    image = sky * (1 - 0.4 * y[..., None] * rng.random()) + (_spectral(rng, size, 1.8, 1) - 0.5) * rng.uniform(0, 0.6)
    for height in sorted(rng.uniform(0.2, 0.95, int(rng.integers(1, 5)))):
        skyline = height + 0.4 * (_spectral(rng, size, rng.uniform(1, 2), 1)[0, :, 0] - 0.5)
        texture = (_spectral(rng, size, rng.uniform(0.3, 1.5), 1) - 0.5) * rng.uniform(0.1, 0.8)
        ground = np.array([rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.6), rng.uniform(0.05, 0.5)]) + texture
        image = np.where((y > skyline[None])[..., None], ground, image)
    return _from_floats(image)


_KINDS: tuple[Callable[[Random, tuple[int, int]], Image.Image], ...] = (
    _text,
    _text,
    _screenshot,
    _screenshot,
    _chart,
    _drawing,
    _drawing,
    _gradient,
    _pattern,
    _noise,
    _noise,
    _plain,
    _landscape,
    _landscape,
)
