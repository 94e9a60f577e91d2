"""Images in and out: decoding and encoding, file formats, metadata, resizing, back-projection."""
