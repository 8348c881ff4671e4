"""The version, for the package, its checkpoints and its reports."""

__version__ = "0.1.0"
