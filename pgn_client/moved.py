"""Aliases for the module paths of version 0.1, kept for one release.

Importing an old path works, and warns with the new path.
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
    "cli.published": ("cli.import_published",),
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
    "exchange": ("wire.exchange", "wire.steps", "wire.rate_limit", "wire.deadline"),
    "generator": ("prompting.generator",),
    "geometry": ("imaging.geometry",),
    "hosting": ("wire.upload", "wire.once"),
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
    "reading": ("wire.prediction", "wire.loaded_adapter", "wire.once"),
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
    "session": ("wire.session", "wire.base_client", "wire.prepare"),
    "statistics": ("evaluation.statistics", "mapping.fusion"),
    "training.alike": ("training.rival",),
    "training.data": ("imaging.dataset", "training.examples"),
    "training.finish": ("training.calibrate",),
    "training.scores": ("training.torch_mapping", "surrogate.returned_scores"),
    "training.surrogate": ("surrogate.surrogate",),
    "training.wire": ("surrogate.degradation",),
}
"""Old module path → modules that now define its names, both without the package name.

The submodules of an old path moved to the first of its new modules.
"""
RENAMED = {
    "Asker": "Prober",
    "Cell": "FinishedCell",
    "Checkpoint": "LoadedAdapter",
    "Discovery": "RemoteModel",
    "Masked": "MaskedPrompt",
    "Pictures": "FittedSplit",
    "Recorded": "Reply",
    "Upload": "Once",
    "Watch": "Guard",
    "WholePicture": "WholeImage",
    "fit_picture": "fit_to_canvas",
    "holds_picture": "holds_image",
    "load_pictures": "load_images",
    "picture": "to_image",
}
"""Old name → new name, for names that changed when their module moved."""


class MovedModules(MetaPathFinder):
    """Import finder for the module paths of version 0.1; Python asks it after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the import spec of a module path of version 0.1; ``None`` for any other path."""
        homes = new_homes(fullname)
        if homes is None:
            return None
        home = importlib.util.find_spec(homes[0])
        if home is None:
            return None

        # Python imports a submodule by its old path only if the module above it is a package.
        is_package = home.submodule_search_locations is not None
        return ModuleSpec(fullname, Alias(homes), is_package=is_package)


def new_homes(fullname: str) -> tuple[str, ...] | None:
    """Return the modules that now define the names of a module path of version 0.1.

    Args:
        fullname: Dotted path with the package, such as ``pgn_client.protocols.v1``.

    Returns:
        Dotted paths with the package; ``None`` where ``fullname`` is not an old module path.
    """
    package, _, old = fullname.partition(".")
    if package != PACKAGE:
        return None
    if old in MOVED:
        return tuple(f"{PACKAGE}.{home}" for home in MOVED[old])

    # A submodule of a moved folder: it has the same name below the folder's new path.
    above, _, below = old.rpartition(".")
    if not above:
        return None
    homes = new_homes(f"{PACKAGE}.{above}")
    if homes is None:
        return None
    # A folder's submodules moved to the first of its new modules.
    return (f"{homes[0]}.{below}",)


class Alias(Loader):
    """Loader that fills an old module path: names are looked up in the modules that replace it."""

    def __init__(self, homes: tuple[str, ...]) -> None:
        self.homes = homes

    def exec_module(self, module: ModuleType) -> None:
        """Warn that the module has moved, and make it look up names in its replacements."""
        new_paths = " and ".join(self.homes)
        warnings.warn(
            f"{module.__name__} has moved to {new_paths}; the next release removes the old path",
            DeprecationWarning,
            # Level 2 is the user's import statement: warnings skips the import system's frames.
            stacklevel=2,
        )
        homes = [import_module(home) for home in self.homes]

        def lookup(name: str) -> Any:
            for home in homes:
                for current in (name, RENAMED.get(name, name)):
                    if hasattr(home, current):
                        return getattr(home, current)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        public: set[str] = set()
        for home in homes:
            public.update(name for name in vars(home) if not name.startswith("_"))

        # Python calls these functions of a module (PEP 562). They are set in its namespace, because
        # type checkers refuse them as attributes.
        vars(module)["__getattr__"] = lookup
        vars(module)["__all__"] = sorted(public)
        vars(module)["__dir__"] = lambda: sorted(public)
