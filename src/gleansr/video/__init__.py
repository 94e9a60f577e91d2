"""Videos, frame by frame: video files and folders of numbered frames.

    upscaler = gleansr.load("cats-8x")
    work = Work(Photo(upscaler), upscaler.default_batch_size())
    summary = upscale(Clip(Path("garden.mp4")), Path("garden_8x.mp4"), work)

Frames are independent, except that the boxes of objects are smoothed over time and the model's noise is the same in all frames.
"""

from gleansr.video.pyav import READ, WRITTEN
from gleansr.video.reading import RATE, Clip, Footage, FrameFolder
from gleansr.video.run import Summary, Tracking, needs_tracking, track_video, upscale
from gleansr.video.tracking import TrackConfig

__all__ = [
    "RATE",
    "READ",
    "WRITTEN",
    "Clip",
    "Footage",
    "FrameFolder",
    "Summary",
    "TrackConfig",
    "Tracking",
    "needs_tracking",
    "track_video",
    "upscale",
]
