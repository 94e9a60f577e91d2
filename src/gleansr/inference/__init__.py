"""Inference: images in, upscaled images out."""
