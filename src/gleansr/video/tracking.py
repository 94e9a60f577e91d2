"""Tracks objects through a video: a first pass detects them, links the detections and smooths their frames over time without lag."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.jobs.pipeline import SearchStoppedError
from gleansr.photos import PhotoConfig
from gleansr.photos.align import Frame
from gleansr.photos.detect import Detection, Detector
from gleansr.video.reading import VideoFrame

_CUT = 0.4
"""Minimum share of the pixels whose brightness changes at a cut. Pans and passing people change less, most cuts more; after a missed cut,
objects are still linked only to nearby ones."""
_BINS = 32
_SEARCHES_PER_SECOND = 10
_FULL_SEARCH = 1.0
"""Seconds between searches for rotated objects."""
_MAX_DISTANCE = 0.6
"""Distance of two centres, in sides of the smaller frame, at which they are two objects."""
_MAX_RATIO = 2.2
"""Ratio of two sides at which they are two objects. The detected side of one head varies by up to 1.6 times, and two heads of different
sizes hardly ever coincide."""
_HISTORY = 5
"""Number of detections from which the next is predicted."""
_MEDIAN_RADIUS = 2
"""Detections before and after one in its median, against single outliers."""
_SIDE_SMOOTHING = 2
"""Ratio of the smoothing of sides to that of centres: detected sides of cats are five to ten times less exact, and change slowly."""
_CUTOFF = 4.0
"""Standard deviations beyond which the smoothing's weights are zero."""
_FULL_WIDTH = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""


@dataclass(frozen=True)
class TrackConfig:
    """How objects are tracked."""

    detect_every: int | None = None
    """Interval of the frames in which objects are detected; between them, boxes are interpolated. By default about ten frames per second.
    The first and last frame of each scene are always searched."""
    smooth: float = 0.3
    """Seconds over which boxes are smoothed, the full width at half maximum of a Gaussian; 0 disables smoothing."""
    gap: float = 0.5
    """Seconds for which an object may be lost and still be the same."""
    min_detections: int = 3
    """Objects with fewer detections count as errors, in scenes with that many searched frames."""

    def __post_init__(self) -> None:
        if self.detect_every is not None and not 1 <= self.detect_every <= 1000:
            raise RequestError(f"the interval of searched frames must be 1 to 1000, not {self.detect_every}")
        for name, value in (("smooth", self.smooth), ("gap", self.gap)):
            if not 0 <= value <= 10:
                raise RequestError(f"{name} must be 0 to 10 seconds, not {value}")
        if not 1 <= self.min_detections <= 100:
            raise RequestError(f"the minimum number of detections must be 1 to 100, not {self.min_detections}")


@dataclass(eq=False)
class Track:
    """One object and its detections."""

    numbers: list[int] = field(default_factory=list)
    """Numbers of the searched video frames that show it, ascending."""
    detections: list[Detection] = field(default_factory=list)
    smoothed: dict[int, Detection] = field(default_factory=dict)
    """By the number of the video frame, in all between the first and the last one. A box is its frame without rotation."""

    @property
    def score(self) -> float:
        """The highest score of its detections."""
        return max(detection.score or 0.0 for detection in self.detections)


@dataclass(frozen=True, eq=False)
class TrackedObjects:
    """The objects of a video."""

    tracks: Sequence[Track]
    names: Sequence[str]
    """Of the images."""
    times: Sequence[float]
    """Of the images, in seconds."""
    cuts: Sequence[int]
    """Numbers of the images that start a new scene."""
    searched: int
    """Number of images in which objects were detected."""

    @property
    def detections(self) -> dict[str, list[Detection]]:
        """Per image name, as `photos.Photo` expects."""
        found: dict[str, list[Detection]] = {name: [] for name in self.names}
        for track in self.tracks:
            for number, detection in track.smoothed.items():
                found[self.names[number]].append(detection)
        return found


def track_objects(
    frames: Iterator[VideoFrame],
    time_base: Fraction,
    rate: Fraction,
    detectors: Sequence[Detector],
    config: TrackConfig,
    photo: PhotoConfig,
    *,
    stopped: Callable[[], bool] = lambda: False,
    on_read: Callable[[int], object] | None = None,
) -> list[TrackedObjects]:
    """Reads a video once, detects the objects of each detector and tracks them.

    A search for rotated objects takes several times as long as one for upright objects. It runs in the first image of each scene, about
    once a second, and wherever the upright search finds fewer objects than the search before.

    Args:
        frames: of the video.
        time_base: of their times, in seconds.
        rate: approximate frames per second.
        detectors: of one category each.
        config: of the tracking.
        photo: settings of the detector.
        stopped: called for each image; stops the pass if true.
        on_read: called with the number of images read.

    Raises:
        SearchStoppedError: `stopped` returned true.
        ImageError: the video cannot be read.
    """
    interval = config.detect_every or max(1, round(rate / _SEARCHES_PER_SECOND))
    names: list[str] = []
    times: list[float] = []
    cuts: list[int] = []
    searches = [_Search(detector, photo) for detector in detectors]
    searched = 0  # number of the last searched image
    unsearched: tuple[int, float, Tensor] | None = None  # the previous image
    previous: Tensor | None = None  # its histogram
    try:
        for number, frame in enumerate(frames):
            if stopped():
                raise SearchStoppedError
            planes, time = frame.image.premultiplied(), float(frame.time * time_base)
            histogram = _histogram(planes)
            cut = previous is not None and float((histogram - previous).abs().sum() / 2) > _CUT
            if cut:
                cuts.append(number)
                for search in searches:
                    if unsearched:
                        search(*unsearched)
                    search.start_scene()
            if number == 0 or cut or number - searched >= interval:
                for search in searches:
                    search(number, time, planes)
                searched, unsearched = number, None
            else:
                unsearched = number, time, planes
            names.append(frame.image.name)
            times.append(time)
            previous = histogram
            if on_read:
                on_read(number + 1)
        for search in searches:
            if unsearched:
                search(*unsearched)
    finally:
        getattr(frames, "close", lambda: None)()
    found = []
    for search in searches:
        tracks = link(search.detections, times, cuts, config)
        for track in tracks:
            for number, frame in smooth_frames(track, times, config).items():
                box = (frame.x - frame.width / 2, frame.y - frame.height / 2, frame.width, frame.height)
                track.smoothed[number] = Detection(box, frame, track.score)
        found.append(TrackedObjects(tracks, names, times, cuts, len(search.detections)))
    return found


class _Search:
    """Detects objects in one image after the other, including rotated ones when needed."""

    def __init__(self, detector: Detector, photo: PhotoConfig):
        self._detector, self._photo = detector, photo
        self.detections: dict[int, Sequence[Detection]] = {}
        """By the number of the image."""
        self.start_scene()

    def start_scene(self) -> None:
        self._count, self._full_search = 0, float("-inf")

    def __call__(self, number: int, time: float, planes: Tensor) -> None:
        rotated, min_score = self._photo.rotated, self._photo.min_score
        detections: list[Detection] = []
        if not rotated or time - self._full_search < _FULL_SEARCH:
            detections = self._detector.detect(planes, min_score=min_score, rotated=False)
        if rotated and (time - self._full_search >= _FULL_SEARCH or len(detections) < self._count):
            detections = self._detector.detect(planes, min_score=min_score, rotated=True)
            self._full_search = time
        self.detections[number], self._count = detections, len(detections)


def _histogram(planes: Tensor) -> Tensor:
    """Shares of 32 levels of brightness in (3, H, W) in [0, 1], from a sample of some ten thousand pixels."""
    step = max(1, int((planes.shape[1] * planes.shape[2] / 20_000) ** 0.5))
    grey = planes[:, ::step, ::step].mean(0)
    return torch.histc(grey, _BINS, 0, 1) / grey.numel()


def link(detections: Mapping[int, Sequence[Detection]], times: Sequence[float], cuts: Sequence[int], config: TrackConfig) -> list[Track]:
    """Links detections of the same object, and drops objects with too few.

    Each detection joins the nearest object that was last detected in the same scene at most `gap` ago, has a similar size, and is near
    in position: to its last position or to the extrapolated one.

    Args:
        detections: by the number of the searched image.
        times: of all images, in seconds.
        cuts: numbers of the images that start a new scene, ascending.
        config: of the tracking.

    Returns:
        By descending number of detections, then score.
    """
    scene = np.searchsorted(cuts, np.arange(len(times)), side="right")
    searches = np.bincount(scene[sorted(detections)], minlength=1)
    active: list[Track] = []
    ended: list[Track] = []
    order = {number: i for i, number in enumerate(sorted(detections))}
    for number in order:
        current: list[Track] = []
        for track in active:
            last = track.numbers[-1]
            # A detection in the previous search is never too long ago.
            recent = times[number] - times[last] <= config.gap or order[number] - order[last] == 1
            (current if scene[last] == scene[number] and recent else ended).append(track)
        active = current
        expected = [_predict(track, times, number) for track in active]
        pairs = [
            (_cost(predictions, detection.frame), i, j)
            for i, predictions in enumerate(expected)
            for j, detection in enumerate(detections[number])
        ]
        linked: dict[int, int] = {}
        used: set[int] = set()
        for cost, i, j in sorted(pairs):
            if cost < 1 and i not in used and j not in linked:
                linked[j] = i
                used.add(i)
        for j, detection in enumerate(detections[number]):
            if j not in linked:
                linked[j] = len(active)
                active.append(Track())
            active[linked[j]].numbers.append(number)
            active[linked[j]].detections.append(detection)
    tracks = [track for track in ended + active if len(track.numbers) >= min(config.min_detections, searches[scene[track.numbers[0]]])]
    return sorted(tracks, key=lambda track: (-len(track.numbers), -track.score, track.numbers))


def smooth_frames(track: Track, times: Sequence[float], config: TrackConfig) -> dict[int, Frame]:
    """The interpolated and smoothed frame of an object in each image from its first to its last detection.

    Centre, side and angle are functions of time: medians of five successive detections, linearly interpolated, then smoothed by local
    linear fits with Gaussian weights, twice as wide for sides. Uniform motion is preserved, even at both ends, and nothing lags, since
    the weights are symmetric in time.

    Frames are not rounded to whole pixels as in photographs, so that the object moves smoothly in the model's input; their angle is
    therefore never exactly 0.
    """
    knots = np.array([times[number] for number in track.numbers])
    frames = [detection.frame for detection in track.detections]
    angles = np.unwrap([frame.angle for frame in frames], period=360)
    aspect = frames[0].height / frames[0].width
    values = np.column_stack([np.array([(frame.x, frame.y, frame.width) for frame in frames]), angles])
    numbers = range(track.numbers[0], track.numbers[-1] + 1)
    moments = np.array([times[number] for number in numbers])
    if config.smooth:
        values = median_filter(values, _MEDIAN_RADIUS)
    dense = np.column_stack([np.interp(moments, knots, column) for column in values.T])
    if config.smooth:
        deviation = config.smooth / _FULL_WIDTH
        side = local_linear_fit(moments, dense[:, 2:3], _SIDE_SMOOTHING * deviation)
        dense = local_linear_fit(moments, dense, deviation)
        dense[:, 2:3] = side
    return {
        number: Frame(float(x), float(y), max(1.0, float(side)), max(1.0, float(side)) * aspect, _nonzero_angle(float(angle)))
        for number, (x, y, side, angle) in zip(numbers, dense, strict=True)
    }


def median_filter(values: np.ndarray, radius: int) -> np.ndarray:
    """Medians over windows of 2 * radius + 1 rows of values (N, C), symmetric and smaller at the ends. Preserves uniform motion."""
    result = values.copy()
    for i in range(len(values)):
        reach = min(radius, i, len(values) - 1 - i)
        result[i] = np.median(values[i - reach : i + reach + 1], axis=0)
    return result


def local_linear_fit(times: np.ndarray, values: np.ndarray, deviation: float) -> np.ndarray:
    """Smooths values (N, C) at ascending times (N): at each time, the best linear fit with Gaussian weights of that deviation."""
    result = values.copy()
    first = np.searchsorted(times, times - _CUTOFF * deviation)
    last = np.searchsorted(times, times + _CUTOFF * deviation, side="right")
    for i, (start, end) in enumerate(zip(first, last, strict=True)):
        offsets = times[start:end] - times[i]
        weights = np.exp(-0.5 * (offsets / deviation) ** 2)
        weights /= weights.sum()
        centre = weights @ offsets
        variance = weights @ (offsets - centre) ** 2
        means = weights @ values[start:end]
        slope = (weights * (offsets - centre)) @ (values[start:end] - means) / variance if variance > 0 else 0
        result[i] = means - slope * centre
    return result


def _predict(track: Track, times: Sequence[float], number: int) -> list[tuple[float, float, float]]:
    """Predicted centres and width of an object in an image: its last position, and its linear extrapolation."""
    numbers, frames = track.numbers[-_HISTORY:], [detection.frame for detection in track.detections[-_HISTORY:]]
    width = float(np.median([frame.width for frame in frames]))  # the last one alone may be wrong
    first, last = frames[0], frames[-1]
    elapsed = times[numbers[-1]] - times[numbers[0]]
    ratio = (times[number] - times[numbers[-1]]) / elapsed if elapsed > 0 else 0.0
    return [(last.x, last.y, width), (last.x + ratio * (last.x - first.x), last.y + ratio * (last.y - first.y), width)]


def _cost(predictions: Sequence[tuple[float, float, float]], frame: Frame) -> float:
    """The distance of a frame from an object's predictions; from 1 on it is another object."""
    distance = min(math.hypot(x - frame.x, y - frame.y) / min(width, frame.width) for x, y, width in predictions)
    ratio = max(abs(math.log(width / frame.width)) for *_, width in predictions) / math.log(_MAX_RATIO)
    return max(distance / _MAX_DISTANCE, ratio)


def _nonzero_angle(angle: float) -> float:
    """The angle in (-180, 180], never 0: `photos.align` rounds upright frames to whole pixels."""
    angle = 180 - (180 - angle) % 360
    return angle if abs(angle) > 1e-6 else 1e-6
