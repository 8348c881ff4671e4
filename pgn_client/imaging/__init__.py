"""Images: opened, placed on the canvas, painted. NumPy and Pillow, no torch."""
