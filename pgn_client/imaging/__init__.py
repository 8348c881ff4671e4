"""Images: decoding, position of the prompts, composition, data sets; needs no torch."""
