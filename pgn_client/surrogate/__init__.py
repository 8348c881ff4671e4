"""The hosted model, imitated: a local backbone behind the canvas, and what the wire does to
images.
"""
