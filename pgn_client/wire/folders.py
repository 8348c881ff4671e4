"""Whole folders: predictions to a JSON Lines journal, adapted images to a mirrored tree; both
resume.

A journal line is written at once and completely, so that whatever ends the process costs at most
the images that were on their way. A rerun pays for nothing that is in the journal: same path,
same bytes, with a label.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pgn_client.checkpoint.card import ServedCard
from pgn_client.errors import ConfigurationError, PGNError
from pgn_client.imaging.codecs import PNG, open_image
from pgn_client.imaging.files import PathLike, find_images, write_whole
from pgn_client.types import Adapter
from pgn_client.wire.client import AdaptedClient
from pgn_client.wire.jobs import MAX_BATCH, caught, prepare_each
from pgn_client.wire.journal import (
    Record,
    line_of,
    only_writer,
    opened,
    pin,
    read_journal,
    record_of,
    sha256_of,
    write_lines,
)


class FileResult(NamedTuple):
    """One file's line in the journal.

    Attributes:
        record: ``path, label, score, scores, sha256, attempts, error``; a failed file has no label,
            but an error.
        resumed: whether an earlier run had written it.
    """

    record: Record
    resumed: bool


class AdaptedFile(NamedTuple):
    """One file of ``adapt_files``.

    Attributes:
        source: the image.
        target: the adapted PNG.
        skipped: whether an earlier run had written it.
        error: why there is no target.
    """

    source: Path
    target: Path
    skipped: bool
    error: PGNError | None


def predict_files(
    client: AdaptedClient, files: Sequence[Path], journal: PathLike
) -> Iterator[FileResult]:
    """Classify files into a journal, one JSON line per file, and yield each result in the order of
    ``files``.

    A file whose line is there already, for the same bytes and with a label, is not sent again;
    failed ones are. What the predictions depend on (endpoint, model, checkpoint, fusion) is kept
    beside the journal in ``JOURNAL.journal.json``, so that lines of two setups are never mixed.

    Args:
        client: is not closed.
        files: each once; see ``find_images``.
        journal: the JSON Lines file; complete and in order when the iterator is exhausted.

    Raises:
        ConfigurationError: the journal belongs to another setup, is no journal, cannot be written,
            or is being written by another run.
        PGNError: what concerns every file; see ``AdaptedClient.classify_many``.
    """
    path = Path(journal)
    with only_writer(path):
        pin(path, client.fingerprint())
        yield from _resume(client, files, path)


def _resume(client: AdaptedClient, files: Sequence[Path], path: Path) -> Iterator[FileResult]:
    known = {record["path"]: record for record in read_journal(path) if record["label"] is not None}
    # a torn or failed line is gone for good
    write_lines(path, (line_of(record) for record in known.values()))
    plan: deque[tuple[Path, str | None, Record | None]] = deque()
    written: list[Record] = []

    def pending() -> Iterator[Path]:
        for file in dict.fromkeys(files):
            digest, old = sha256_of(file), known.get(str(file))
            resumable = old is not None and old["sha256"] == digest
            plan.append((file, digest, old if resumable else None))
            if not resumable:
                yield file

    def resumed() -> Iterator[FileResult]:
        while plan and plan[0][2] is not None:
            yield FileResult(plan.popleft()[2] or {}, True)

    with opened(path) as file:
        for result in client.classify_many(pending()):
            for earlier in resumed():
                written.append(earlier.record)
                yield earlier
            source, digest, _ = plan.popleft()
            record = record_of(source, digest, result)
            file.write(line_of(record))
            file.flush()
            written.append(record)
            yield FileResult(record, False)
    for earlier in resumed():
        written.append(earlier.record)
        yield earlier
    asked = {str(file) for file in files}
    others = (record for name, record in known.items() if name not in asked)
    write_lines(path, map(line_of, [*others, *written]))  # what an earlier run was asked for stays


def predict_records(client: AdaptedClient, files: Sequence[Path]) -> Iterator[Record]:
    """Classify files without a journal; yield what its lines would be, in order."""
    for file, result in zip(files, client.classify_many(files), strict=True):
        yield record_of(file, sha256_of(file), result)


def adapt_files(adapter: Adapter, source: PathLike, target: PathLike) -> Iterator[AdaptedFile]:
    """Write what would be sent for each image of ``source`` as PNG into a mirrored tree; nothing
    is sent.

    An image that an earlier run adapted from the same bytes with the same checkpoint is skipped;
    that is noted in ``TARGET/adapted.jsonl``. Each PNG appears under its name only when it is
    complete.

    Args:
        adapter: for example a ``PromptAdapter``.
        source: as for ``find_images``.
        target: a folder, made if missing; neither inside the source folder nor around it.

    Raises:
        ConfigurationError: no images, or a target that overlaps with the source.
    """
    root, out = Path(source), Path(target)
    files = find_images(source)
    targets = _targets(files, _base(root, files, out), out)
    if {file.parent.resolve() for file in files} & {file.parent.resolve() for file in targets}:
        raise ConfigurationError(
            f"output folder: got {out}, which holds the images themselves; choose another"
        )
    out.mkdir(parents=True, exist_ok=True)
    journal, checkpoint = out / "adapted.jsonl", _fingerprint(adapter)
    done = {
        r["path"]: r
        for r in read_journal(journal)
        if r["label"] == "adapted" and r["checkpoint"] == checkpoint
    }
    write_lines(journal, (line_of(record) for record in done.values()))
    todo = zip(files, targets, strict=True)
    with opened(journal) as log:
        while chunk := list(itertools.islice(todo, MAX_BATCH)):
            yield from _adapt_chunk(adapter, chunk, done, log)


def _fingerprint(adapter: Adapter) -> str | None:
    return ServedCard.from_json(adapter.info).fingerprint


def _adapt_chunk(
    adapter: Adapter, chunk: Sequence[tuple[Path, Path]], done: Mapping[str, Record], log: IO[str]
) -> Iterator[AdaptedFile]:
    fresh = []
    for source, target in chunk:
        digest, old = sha256_of(source), done.get(str(source))
        if old and old["sha256"] == digest and old["target"] == str(target) and target.exists():
            yield AdaptedFile(source, target, True, None)
        else:
            fresh.append((source, target, digest))
    prepared = prepare_each(adapter, [caught(open_image, source) for source, _, _ in fresh])
    for (source, target, digest), item in zip(fresh, prepared, strict=True):
        if isinstance(item, PGNError):
            yield AdaptedFile(source, target, False, item)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, PNG.encode(item.image))
        record = {"path": str(source), "label": "adapted", "sha256": digest, "target": str(target)}
        log.write(line_of({**record, "checkpoint": _fingerprint(adapter)}))
        log.flush()
        yield AdaptedFile(source, target, False, None)


def _base(root: Path, files: Sequence[Path], out: Path) -> Path:
    """Return the folder that the tree mirrors, after checking that the output does not overlap with
    a given one.
    """
    if root.is_dir():
        inside, outside = root.resolve(), out.resolve()
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise ConfigurationError(
                f"output folder: got {out}, expected one that does not overlap with {root}"
            )
        return root
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def _targets(files: Sequence[Path], base: Path, out: Path) -> list[Path]:
    """Return one PNG name per file: ``a.png`` for ``a.jpg``, or ``a.jpg.png`` where another file is
    called ``a``.
    """
    names: dict[Path, Path] = {}
    taken: set[Path] = set()
    for file in sorted(files, key=lambda path: path.suffix != ".png"):  # a PNG keeps its name
        inside = (file.absolute() if base.is_absolute() else file).relative_to(base)
        longer = (inside.with_name(f"{inside.name}{n or ''}.png") for n in itertools.count())
        candidates = itertools.chain([inside.with_suffix(".png")], longer)
        names[file] = next(name for name in candidates if name not in taken)
        taken.add(names[file])
    return [out / names[file] for file in files]
