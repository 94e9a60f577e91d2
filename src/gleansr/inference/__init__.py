"""From images to enlarged images: the upscaler, and what runs one forward pass."""
