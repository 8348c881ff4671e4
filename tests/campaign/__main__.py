"""Play a part of the campaign: ``python -m tests.campaign PART [--seed N] [--cases N]``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

# Threads of NumPy and torch would only wait for each other, and take address space.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PGN_API_KEY", None)

from tests.campaign import answers, checkpoints, documents, folders, images, kill
from tests.campaign.cases import run

PARTS = {
    part.name: part
    for part in (
        images.Images(),
        folders.Folders(),
        answers.Answers(),
        checkpoints.Checkpoints(),
        documents.Documents(),
        kill.Kill(),
    )
}
LONG = {
    "images": 8_000,
    "folders": 60,
    "answers": 5_200,
    "checkpoints": 3_500,
    "documents": 3_600,
    "kill": 64,
}
"""Number of cases in the long form."""


def main() -> int:
    """Play the cases, print the report, and return 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, help=f"number of cases (default {LONG})")
    parser.add_argument("--start", type=int, default=0, help="index of the first case")
    parser.add_argument("--only", type=int, action="append", help="index of a case to repeat")
    args = parser.parse_args()

    # An end from outside, too, leaves a report, and no files and processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("pgn_client").setLevel(logging.CRITICAL)
    cases = LONG[args.part] if args.cases is None else args.cases
    indices = args.only or range(args.start, args.start + cases)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        report = run(PARTS[args.part], args.seed, indices, Path(folder))
    sys.stdout.write(f"{report}\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
