"""Objects followed through a video, and their frames smoothed over time without lag."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gleansr.errors import RequestError
from gleansr.photos.align import Frame
from gleansr.photos.detect import Found

_FAR = 0.6
"""Distance between two middles, in sides of the smaller frame, from which on they are two objects."""
_OTHER_SIZE = 2.2
"""Ratio of two sides from which on they are two objects. That of one head is found up to 1.6 times too small or too large, and two heads of
unlike sizes are hardly ever in one place."""
_LATELY = 5
"""Sightings by which the next one is expected."""
_AROUND = 2
"""Of sightings before and after one of which the median is taken, against single wrong ones."""
_SIDES = 2
"""How many times longer sides are smoothed: of cats they are found five to ten times less exactly than places, and they change slowly."""
_REACH = 4.0
"""Standard deviations after which the smoothing's weights are taken for none."""
_WIDTH = 2 * math.sqrt(2 * math.log(2))
"""Width at half height of a Gaussian, in standard deviations."""


@dataclass(frozen=True)
class TrackConfig:
    """How objects are followed."""

    find_every: int | None = None
    """Objects are searched in every so many frames, and interpolated in between; by default about ten times a second. The first and the
    last frame of each scene are always searched."""
    smooth: float = 0.3
    """Seconds over which boxes are smoothed: the width at half height of a Gaussian; 0 leaves them as they are found."""
    gap: float = 0.5
    """Seconds for which an object may be lost and is still the same."""
    least: int = 3
    """An object that is found in fewer of the searched frames is taken for an error, in scenes that have so many."""

    def __post_init__(self) -> None:
        if self.find_every is not None and not 1 <= self.find_every <= 1000:
            raise RequestError(f"objects are searched in every frame, or every so many up to 1000, not {self.find_every}")
        for name, value in (("smooth", self.smooth), ("gap", self.gap)):
            if not 0 <= value <= 10:
                raise RequestError(f"{name} must be 0 to 10 seconds, not {value}")
        if not 1 <= self.least <= 100:
            raise RequestError(f"the least number of sightings must be 1 to 100, not {self.least}")


@dataclass(eq=False)
class Track:
    """One object and where it was found."""

    numbers: list[int] = field(default_factory=list)
    """Of the images, ascending."""
    found: list[Found] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Of its surest sighting."""
        return max(one.score or 0.0 for one in self.found)


def link(sightings: Mapping[int, Sequence[Found]], times: Sequence[float], cuts: Sequence[int], config: TrackConfig) -> list[Track]:
    """Which sightings are of the same object, without objects that are too seldom found.

    Each sighting goes to the nearest object whose last one is not longer ago than `gap`, in the same scene, near in size, and near in
    place: to where it was, or to where it went.

    Args:
        sightings: by the number of the image, of those that were searched.
        times: of all images, in seconds.
        cuts: numbers of the images that begin a new scene, ascending.

    Returns:
        The surest first.
    """
    scene = np.searchsorted(cuts, np.arange(len(times)), side="right")
    searched = np.bincount(scene[sorted(sightings)], minlength=1)
    open_: list[Track] = []
    ended: list[Track] = []
    order = {number: i for i, number in enumerate(sorted(sightings))}
    for number in order:
        here = [one for one in open_ if scene[one.numbers[-1]] == scene[number]]
        # What was seen in the search before is not lost, however long ago that was.
        still = [one for one in here if times[number] - times[one.numbers[-1]] <= config.gap or order[number] - order[one.numbers[-1]] == 1]
        ended += [one for one in open_ if one not in still]
        open_ = still
        expected = [_expected(track, times, number) for track in open_]
        pairs = [(_cost(places, one.frame), i, j) for i, places in enumerate(expected) for j, one in enumerate(sightings[number])]
        linked: dict[int, int] = {}
        used: set[int] = set()
        for cost, i, j in sorted(pairs):
            if cost < 1 and i not in used and j not in linked:
                linked[j] = i
                used.add(i)
        for j, one in enumerate(sightings[number]):
            if j not in linked:
                linked[j] = len(open_)
                open_.append(Track())
            open_[linked[j]].numbers.append(number)
            open_[linked[j]].found.append(one)
    tracks = [one for one in ended + open_ if len(one.numbers) >= min(config.least, searched[scene[one.numbers[0]]])]
    return sorted(tracks, key=lambda one: (-len(one.numbers), -one.score, one.numbers))


def frames_of(track: Track, times: Sequence[float], config: TrackConfig) -> dict[int, Frame]:
    """The frame of an object in each image from the first to the last in which it was found: interpolated and smoothed.

    Middle, sides and angle are each a function of time. It is made of the medians of five successive sightings, joined by straight lines,
    by fitting a straight line around each time with Gaussian weights, twice as wide for sides. What moves evenly is not changed at all,
    also at both ends, and nothing lags, since the weights are the same before and after.

    The frames are not brought to whole pixels, as those of photographs are, so that the model sees the object move smoothly; none is
    exactly upright for that reason.
    """
    knots = np.array([times[number] for number in track.numbers])
    angles = np.unwrap([one.frame.angle for one in track.found], period=360)
    aspect = track.found[0].frame.height / track.found[0].frame.width
    values = np.array([(one.frame.x, one.frame.y, one.frame.width) for one in track.found])
    values = np.column_stack([values, angles])
    numbers = range(track.numbers[0], track.numbers[-1] + 1)
    moments = np.array([times[number] for number in numbers])
    if config.smooth:
        values = medians(values, _AROUND)
    dense = np.column_stack([np.interp(moments, knots, column) for column in values.T])
    if config.smooth:
        deviation = config.smooth / _WIDTH
        side = smoothed(moments, dense[:, 2:3], _SIDES * deviation)
        dense = smoothed(moments, dense, deviation)
        dense[:, 2:3] = side
    return {
        number: Frame(float(x), float(y), max(1.0, float(side)), max(1.0, float(side)) * aspect, _turned(float(angle)))
        for number, (x, y, side, angle) in zip(numbers, dense, strict=True)
    }


def medians(values: np.ndarray, around: int) -> np.ndarray:
    """Of each of values (N, C) and as many before as after it: `around`, fewer at the ends. What moves evenly is not changed."""
    result = values.copy()
    for i in range(len(values)):
        reach = min(around, i, len(values) - 1 - i)
        result[i] = np.median(values[i - reach : i + reach + 1], axis=0)
    return result


def smoothed(times: np.ndarray, values: np.ndarray, deviation: float) -> np.ndarray:
    """Of values (N, C) at ascending times (N): at each time the straight line that fits best, by Gaussian weights of that deviation."""
    result = values.copy()
    first = np.searchsorted(times, times - _REACH * deviation)
    last = np.searchsorted(times, times + _REACH * deviation, side="right")
    for i, (low, high) in enumerate(zip(first, last, strict=True)):
        away = times[low:high] - times[i]
        weights = np.exp(-0.5 * (away / deviation) ** 2)
        weights /= weights.sum()
        middle = weights @ away
        spread = weights @ (away - middle) ** 2
        means = weights @ values[low:high]
        slope = (weights * (away - middle)) @ (values[low:high] - means) / spread if spread > 0 else 0
        result[i] = means - slope * middle
    return result


def _expected(track: Track, times: Sequence[float], number: int) -> list[tuple[float, float, float]]:
    """Middle and width of an object in an image: where it was last, and where it is if it has gone on evenly."""
    numbers, frames = track.numbers[-_LATELY:], [one.frame for one in track.found[-_LATELY:]]
    width = float(np.median([frame.width for frame in frames]))  # not of the last alone, which may be wrong
    first, last = frames[0], frames[-1]
    elapsed = times[numbers[-1]] - times[numbers[0]]
    on = (times[number] - times[numbers[-1]]) / elapsed if elapsed > 0 else 0.0
    return [(last.x, last.y, width), (last.x + on * (last.x - first.x), last.y + on * (last.y - first.y), width)]


def _cost(places: Sequence[tuple[float, float, float]], frame: Frame) -> float:
    """How little a frame looks like that of an object at one of these places; from 1 on it is another."""
    distance = min(math.hypot(x - frame.x, y - frame.y) / min(width, frame.width) for x, y, width in places)
    ratio = max(abs(math.log(width / frame.width)) for *_, width in places) / math.log(_OTHER_SIZE)
    return max(distance / _FAR, ratio)


def _turned(angle: float) -> float:
    """In (-180, 180], and never 0: frames that are not turned lie on whole pixels."""
    angle = 180 - (180 - angle) % 360
    return angle if abs(angle) > 1e-6 else 1e-6
