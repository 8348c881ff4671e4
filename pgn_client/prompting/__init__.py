"""Prompts for images: a generator reads the image and mixes library rows into RGB patches."""
