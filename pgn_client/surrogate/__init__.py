"""A local imitation of the hosted classifier, and of what happens to images on the way to it."""
