"""Videos, frame by frame: video files and folders of numbered frames.

    upscaler = gleansr.load("cats-8x")
    work = Work(Photo(upscaler), upscaler.default_batch_size())
    summary = upscale(Clip(Path("garden.mp4")), Path("garden_8x.mp4"), work)

Nothing ties one frame to the next but the boxes of objects, which are smoothed over time, and the model's noise, which is the same in
all.
"""

from gleansr.video.numbered import RATE, Numbered
from gleansr.video.pyav import READ, WRITTEN
from gleansr.video.reading import Clip, Footage
from gleansr.video.run import Summary, followed, follows, upscale
from gleansr.video.tracks import TrackConfig

__all__ = ["RATE", "READ", "WRITTEN", "Clip", "Footage", "Numbered", "Summary", "TrackConfig", "followed", "follows", "upscale"]
