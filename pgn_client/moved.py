"""Module paths of version 0.1, for one release: importing one warns and says where its names are
now.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "pgn_client"

MOVED: dict[str, tuple[str, ...]] = {
    "adapter": ("prompting.adapter",),
    "backbone": ("surrogate.backbone", "surrogate.patch_embedding"),
    "batch": ("wire.folders", "wire.estimate", "wire.journal", "imaging.files"),
    "benchmark": ("evaluation.benchmark",),
    "cache": ("wire.cache",),
    "candidates": (
        "evaluation.candidate",
        "evaluation.selection",
        "evaluation.queries",
        "evaluation.baselines",
        "training.examples",
        "mapping.probability",
    ),
    "cli.retain": ("cli.fidelity",),
    "client": ("wire.client", "wire.transport"),
    "codecs": ("imaging.codecs",),
    "compositor": ("imaging.compositor",),
    "console": ("cli.console",),
    "counting": ("mapping.frequency",),
    "demo": ("evaluation.demo",),
    "discovery": ("wire.remote_model",),
    "drift": ("wire.drift",),
    "endpoint": ("wire.endpoint",),
    "exchange": ("wire.exchange", "wire.rate_limit", "wire.deadline"),
    "generator": ("prompting.generator",),
    "geometry": ("imaging.geometry",),
    "hosting": ("wire.upload",),
    "http_options": ("wire.http_options",),
    "inversion": ("prompting.inversion",),
    "judgement": (
        "evaluation.verdict",
        "evaluation.comparison",
        "evaluation.results",
        "evaluation.candidate",
    ),
    "labels": ("mapping.label_mapping",),
    "ledger": ("wire.ledger",),
    "library": ("prompting.token_library",),
    "measures": ("evaluation.metrics",),
    "methods": ("prompting.methods",),
    "probe.asking": ("probe.queries",),
    "probe.belief": ("probe.posterior",),
    "probe.pictures": ("probe.stimuli",),
    "probe.replies": ("probe.score_type",),
    "probe.shape": ("probe.aspect_ratio",),
    "probe.squares": ("probe.resize_hypotheses",),
    "probe.waves": ("probe.gratings",),
    "protocols": ("wire.protocols",),
    "protocols.v1": ("wire.protocols.kserve_v1",),
    "published": ("prompting.import_published",),
    "reading": ("wire.prediction",),
    "refit": ("training.fit_mapping",),
    "regression": ("mapping.logistic_regression", "mapping.probability"),
    "report": ("evaluation.report",),
    "report.pictures": ("evaluation.report.tiles",),
    "report.page": ("evaluation.report.page", "evaluation.report.view"),
    "retention": ("evaluation.fidelity", "imaging.files"),
    "retry": ("wire.retry",),
    "segmentation.fitting": ("segmentation.train",),
    "segmentation.masked": ("segmentation.masks",),
    "segmentation.overlap": ("segmentation.iou",),
    "segmentation.prompts": ("segmentation.mask_prompts",),
    "session": ("wire.session", "wire.jobs"),
    "statistics": ("evaluation.statistics", "mapping.fusion"),
    "training.alike": ("training.rival",),
    "training.data": ("imaging.dataset", "training.examples"),
    "training.finish": ("training.calibrate",),
    "training.scores": ("training.torch_mapping", "surrogate.returned_scores"),
    "training.surrogate": ("surrogate.surrogate",),
    "training.wire": ("surrogate.degradation",),
}
"""Old module below the package → the modules that have its names now. Whatever lay below it moved
with it.
"""
RENAMED = {
    "Pictures": "FittedSplit",
    "WholePicture": "WholeImage",
    "fit_picture": "fit_to_canvas",
    "holds_picture": "holds_image",
    "load_pictures": "load_images",
    "picture": "to_image",
}
"""Names that changed when their module moved."""


class MovedModules(MetaPathFinder):
    """Finds modules under their old paths, after all other finders have found nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old path, or ``None`` for any other module."""
        homes = new_homes(fullname)
        home = None if homes is None else importlib.util.find_spec(homes[0])
        if homes is None or home is None:
            return None
        is_package = home.submodule_search_locations is not None
        return ModuleSpec(fullname, Alias(homes), is_package=is_package)


def new_homes(fullname: str) -> tuple[str, ...] | None:
    """Return the modules that have the names of an old module now, or ``None`` if it is none.

    Args:
        fullname: Dotted path with the package, such as ``pgn_client.protocols.v1``.
    """
    package, _, old = fullname.partition(".")
    if package != PACKAGE:
        return None
    if old in MOVED:
        return tuple(f"{PACKAGE}.{home}" for home in MOVED[old])
    above, _, below = old.rpartition(".")
    homes = new_homes(f"{PACKAGE}.{above}") if above else None
    return None if homes is None else (f"{homes[0]}.{below}",)


class Alias(Loader):
    """Makes a module that looks every name up where it is now."""

    def __init__(self, homes: tuple[str, ...]) -> None:
        self.homes = homes

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and let the module look names up."""
        places = " and ".join(self.homes)
        warnings.warn(
            f"{module.__name__} has moved to {places}; the old path goes with the next release",
            DeprecationWarning,
            # the import statement: warnings leaves the import system's own frames out
            stacklevel=2,
        )
        homes = [import_module(home) for home in self.homes]

        def lookup(name: str) -> Any:
            for home in homes:
                for current in (name, RENAMED.get(name, name)):
                    if hasattr(home, current):
                        return getattr(home, current)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        public = {name for home in homes for name in vars(home) if not name.startswith("_")}
        vars(module)["__getattr__"] = lookup
        vars(module)["__all__"] = sorted(public)
        vars(module)["__dir__"] = lambda: sorted(public)
