"""Prompts for images: image → generator → mixture weights → token library → prompt patches."""
