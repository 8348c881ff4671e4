"""Image data of the commands: options, the check before anything is sent, and the last line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import Failures, talk
from pgn_client.cli.options import FAILED
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.imaging.findings import Findings
    from pgn_client.imaging.reader import Dataset
    from pgn_client.imaging.scan import Scan

DATA_HELP = (
    "folder with one folder per class, or with train/, val/ and test/ that hold them, or a "
    "manifest: CSV or JSON Lines with path, label and perhaps split"
)
MAX_FAILURE_RATE = 0.01
"""Default of ``--max-failure-rate``."""


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``DATA``, the labeled images."""
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``IN``, the images: folders, image files, or a list of paths."""
    help = (
        "folders and images; or one text file with a path per line, a manifest (CSV or JSON Lines "
        "with path), or - for paths on stdin"
    )
    parser.add_argument("source", nargs="+", metavar="IN", help=help)


def add_failure_rate(parser: argparse.ArgumentParser, effect: str) -> None:
    """Add ``--max-failure-rate``, the share of images that may fail.

    Args:
        parser: Parser of a subcommand.
        effect: What happens above the rate, for the help.
    """
    parser.add_argument(
        "--max-failure-rate",
        type=_share,
        default=MAX_FAILURE_RATE,
        metavar="SHARE",
        help=f"largest share of images that may fail; above it, {effect} (default "
        f"{MAX_FAILURE_RATE})",
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 1")
    return share


def open_data(
    source: str | Path, max_failure_rate: float, *, max_pixels: int | None = None
) -> Dataset:
    """Read a labeled data set, and check that all its images can be decoded.

    The images that cannot be used are listed on stderr.

    Args:
        source: Folder or manifest.
        max_failure_rate: Largest share of images that may be unusable, in [0, 1].
        max_pixels: Limit for the width times the height of an image; ``None`` for the default.

    Returns:
        The data set, from which ``load_task`` leaves out what cannot be used.

    Raises:
        ConfigurationError: The data cannot be read, or too many images cannot be used.
    """
    from pgn_client.imaging.reader import Dataset

    dataset = check_files(Dataset.read(source), max_pixels)
    failed = dataset.unreadable
    for item in failed:
        talk(f"error: {item}")
    if len(failed) > max_failure_rate * len(dataset.files):
        share = len(failed) / len(dataset.files)
        raise ConfigurationError(
            f"data: {len(failed)} of {len(dataset.files)} images in {dataset} cannot be used "
            f"({share:.1%}), expected at most {max_failure_rate:.1%}; repair or remove them, or "
            "raise --max-failure-rate"
        )
    return dataset


def check_files(dataset: Dataset, max_pixels: int | None = None) -> Dataset:
    """Decode every image of a data set, with a progress bar on a terminal."""
    from tqdm import tqdm

    from pgn_client.imaging.codecs import MAX_PIXELS

    # None hides the bar where stderr is no terminal.
    with tqdm(total=len(dataset.files), desc="checking", unit="img", disable=None) as bar:
        return dataset.checked(
            max_pixels=min(max_pixels or MAX_PIXELS, MAX_PIXELS), tick=bar.update
        )


def look_at(dataset: Dataset, *, seed: int, without_copies: bool = False) -> Findings:
    """Return what is worth knowing about a data set, and print the serious remarks on stderr.

    Args:
        dataset: Data set that ``open_data`` has returned.
        seed: Seed of the splits.
        without_copies: Whether the command leaves test images out that are copies of others.
    """
    from pgn_client.imaging.dataset import load_task
    from pgn_client.imaging.findings import look_into

    found = look_into(dataset, load_task(dataset, seed=seed), without_copies=without_copies)
    for remark in found.remarks:
        # The unreadable images were listed before, one by one.
        if remark.serious and remark.key != "unreadable":
            talk(f"warning: {dataset}: {remark.text}")
    return found


def talk_summary(scan: Scan, failures: Failures) -> None:
    """Print the last line of a command on images without labels, what was used and skipped.

    Nothing is printed for a single image, whose result or error says it all.
    """
    from pgn_client.imaging.findings import summary

    if len(scan.files) > 1 or scan.skipped:
        text = summary(failures.succeeded, [*failures.files, *scan.skipped])
        # After an error that ends the run, or because nobody reads the results any more.
        untried = len(scan.files) - failures.succeeded - failures.count
        talk(f"{text}; {untried} not tried" if untried else text)


def talk_status(failures: Failures, images: int, max_failure_rate: float) -> int:
    """Return the exit status of a command on images, and say why it is not 0.

    Args:
        failures: Failed images.
        images: Number of images of the run.
        max_failure_rate: Largest share of them that may fail, in [0, 1].
    """
    status = failures.status(images, max_failure_rate)
    if status == FAILED and not failures.ended and images > 1:
        talk(
            f"exit status 1: {failures.count} of {images} images failed, more than "
            f"--max-failure-rate {max_failure_rate:g} allows"
        )
    return status
