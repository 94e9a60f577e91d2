"""The first pass over a video: where its objects are in each image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from gleansr.jobs.pipeline import SearchStoppedError
from gleansr.photos import PhotoConfig
from gleansr.photos.detect import Finder, Found
from gleansr.video.reading import Shot
from gleansr.video.tracks import Track, TrackConfig, frames_of, link

_OTHER_SCENE = 0.4
"""Share of the pixels whose brightness must be another from one image to the next, for a cut. Pans and people that pass change less, cuts
between two scenes mostly more; where a cut is not seen, objects still are only linked where they are near."""
_BINS = 32
_A_SECOND = 10
"""Images that are searched in a second."""
_THOROUGH = 1.0
"""Seconds from one search all around to the next."""


@dataclass(frozen=True, eq=False)
class Followed:
    """The objects of a video."""

    known: Mapping[str, Sequence[Found]]
    """Of each image by its name, the surest first, as `photos.Photo` takes them. A box is its frame, not turned."""
    tracks: Sequence[Track]
    names: Sequence[str]
    """Of the images."""
    times: Sequence[float]
    """Of the images, in seconds."""
    cuts: Sequence[int]
    """Numbers of the images that begin a new scene."""
    searched: int
    """How many images were searched."""


def follow(
    shots: Iterator[Shot],
    time_base: Fraction,
    rate: Fraction,
    finder: Finder,
    config: TrackConfig,
    photo: PhotoConfig,
    *,
    stopped: Callable[[], bool] = lambda: False,
    seen: Callable[[int], object] | None = None,
) -> Followed:
    """Reads a video once, searches it and follows what is found.

    A search all around takes several times as long as one for upright objects. It is made in the first image of each scene, about once
    a second, and wherever the quicker one finds fewer objects than the search before found.

    Args:
        shots: the video.
        time_base: of its times, in seconds.
        rate: images per second, about.
        finder: a detector.
        config: how objects are followed.
        photo: the detector's settings.
        stopped: asked for each image.
        seen: is told how many images have been read.

    Raises:
        StoppedError: it was stopped.
        ImageError: the video cannot be read.
    """
    every = config.find_every or max(1, round(rate / _A_SECOND))
    names: list[str] = []
    times: list[float] = []
    cuts: list[int] = []
    search = _Search(finder, photo)
    last: tuple[int, float, Tensor] | None = None  # the image before, unless it was searched
    before: Tensor | None = None  # its brightness
    try:
        for number, shot in enumerate(shots):
            if stopped():
                raise SearchStoppedError
            planes, time = shot.image.premultiplied(), float(shot.time * time_base)
            brightness = _brightness(planes)
            cut = before is not None and float((brightness - before).abs().sum() / 2) > _OTHER_SCENE
            if cut:
                cuts.append(number)
                if last:
                    search(*last)
                search.scene()
            if number == 0 or cut or number - search.last >= every:
                search(number, time, planes)
                last = None
            else:
                last = number, time, planes
            names.append(shot.image.name)
            times.append(time)
            before = brightness
            if seen:
                seen(number + 1)
        if last:
            search(*last)
    finally:
        getattr(shots, "close", lambda: None)()
    sightings = search.sightings
    tracks = link(sightings, times, cuts, config)
    known: dict[str, list[Found]] = {name: [] for name in names}
    for track in tracks:
        for number, frame in frames_of(track, times, config).items():
            box = (frame.x - frame.width / 2, frame.y - frame.height / 2, frame.width, frame.height)
            known[names[number]].append(Found(box, frame, track.score))
    return Followed(known, tracks, names, times, cuts, len(sightings))


class _Search:
    """Searches in turn, each as thorough as those before let seem needed."""

    def __init__(self, finder: Finder, photo: PhotoConfig):
        self._finder, self._photo = finder, photo
        self.sightings: dict[int, Sequence[Found]] = {}
        """By the number of the image."""
        self.last = 0
        """Number of the last image that was searched."""
        self.scene()

    def scene(self) -> None:
        """A new scene begins."""
        self._known, self._thorough = 0, float("-inf")

    def __call__(self, number: int, time: float, planes: Tensor) -> None:
        around = self._photo.turned
        found: list[Found] = []
        if not around or time - self._thorough < _THOROUGH:
            found = self._finder.search(planes, least_score=self._photo.least_score, turned=False)
        if around and (time - self._thorough >= _THOROUGH or len(found) < self._known):
            found = self._finder.search(planes, least_score=self._photo.least_score, turned=True)
            self._thorough = time
        self.sightings[number], self.last, self._known = found, number, len(found)


def _brightness(planes: Tensor) -> Tensor:
    """The share of the pixels of (3, H, W) in [0, 1] at each of 32 levels of brightness, of one pixel in at most some ten thousand."""
    step = max(1, int((planes.shape[1] * planes.shape[2] / 20_000) ** 0.5))
    grey = planes[:, ::step, ::step].mean(0)
    return torch.histc(grey, _BINS, 0, 1) / grey.numel()
