"""Images: decoding, canvas geometry, prompt composition, data sets. NumPy and Pillow, no torch."""
