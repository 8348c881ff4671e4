"""A local imitation of the hosted model: the backbone behind the canvas, and the wire's effects."""
