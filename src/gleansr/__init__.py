"""Large-factor image super-resolution with a generative latent bank.

import gleansr
upscaler = gleansr.load("cats-8x")
upscaler("cat.jpg").save("large.png")
"""

from gleansr.checkpoints import load_model
from gleansr.resize import resize
from gleansr.retouch import retouch
from gleansr.upscaler import Upscaler, load

__all__ = ["Upscaler", "load", "load_model", "resize", "retouch"]
