"""Choices of how images are fitted to a square. Imports no torch, so that the help of commands can show them."""

from typing import Literal

Aspect = Literal["squash", "crop", "pad", "bars"]
"""Fitting of images that are not square, see `gleansr.data.fit.fit`."""

Small = Literal["skip", "enlarge"]
"""Handling of images that would have to be enlarged."""

Border = Literal["repeat", "black"]
"""Filling of the border that makes an image square: its outermost pixels, as at inference, or black, as in LSUN's cars."""
