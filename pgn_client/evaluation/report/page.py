"""The report of an evaluation as one HTML file, without scripts, fonts or external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from pgn_client.errors import MissingDependencyError
from pgn_client.evaluation.report.view import view_of
from pgn_client.evaluation.results import Report

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy: the page may use its inline style and embedded images, nothing else."""
TEMPLATE = "page.html.jinja"


def page(report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> str:
    """Return the report of an evaluation as an HTML document.

    Args:
        report: The report to show.
        steps: Title of a step on an image's way to the model → images of ``report.examples`` at
            that step, as ``fidelity.columns`` returns them.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    template = environment().get_template(TEMPLATE)
    return template.render(view=view_of(report, steps), policy=POLICY)


@cache
def environment() -> Environment:
    """Return the Jinja2 environment, which escapes all values and rejects undefined ones.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("the HTML page of a report", "train") from error
    return Environment(
        loader=PackageLoader("pgn_client.evaluation.report"),  # its folder "templates"
        autoescape=True,  # Names of classes and files are untrusted.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
