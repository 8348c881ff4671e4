"""Work on many image files that can be interrupted and resumed.

``predict_files`` writes predictions into a journal, a JSON Lines file with one line per image.
``adapt_files`` writes images with prompts into a folder. A journal line is written as soon as its
answer arrives, so a crash loses at most the images in flight. A rerun does not send an image again
if the journal has a line with a label for the same path and the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pgn_client.checkpoint.card import ServedCard
from pgn_client.errors import ConfigurationError, PGNError
from pgn_client.imaging.codecs import PNG, open_image, portions
from pgn_client.imaging.files import clear_leftovers, write_whole, writing
from pgn_client.imaging.opening import PathLike
from pgn_client.imaging.reader import scan
from pgn_client.types import Adapter, ImageFailure, Prediction
from pgn_client.wire.client import AdaptedClient
from pgn_client.wire.journal import (
    Record,
    appending,
    line_of,
    only_writer,
    pin,
    read_journal,
    record_of,
    sha256_of,
    write_lines,
)
from pgn_client.wire.prepare import MAX_BATCH, caught, prepare_each

MOST_BYTES = 255
"""Longest name of a file, in bytes, that common file systems accept."""


class _RecordAndOrigin(NamedTuple):
    record: Record
    resumed: bool


class FileResult(_RecordAndOrigin):
    """Prediction or error of one image file, as ``predict_files`` yields it.

    Attributes:
        record: Content of the journal line: ``path``, ``label``, ``score``, ``scores``, ``sha256``,
            ``attempts`` and ``error``. A failed file has an error and no label.
        resumed: Whether the line comes from an earlier run.
        error: The exception because of which the file has no prediction; None if it has one.
    """

    # Not a third item of the tuple, because callers of earlier versions unpack two.
    error: PGNError | None = None

    @classmethod
    def of(cls, source: Path, digest: str | None, result: Prediction | ImageFailure) -> FileResult:
        """Return the result for one image file that was classified now.

        Args:
            source: Path of the image.
            digest: SHA-256 of the file's bytes; None if it cannot be read.
            result: Prediction, or the reason why there is none.
        """
        classified = cls(record_of(source, digest, result), False)
        if isinstance(result, ImageFailure):
            classified.error = result.error
        return classified


class AdaptedFile(NamedTuple):
    """Result of writing one adapted image (an image with its prompt), from ``adapt_files``.

    Attributes:
        source: Path of the image.
        target: Path of the adapted PNG.
        skipped: Whether an earlier run wrote the PNG.
        error: Exception that stopped the adaptation; None if there is a PNG.
    """

    source: Path
    target: Path
    skipped: bool
    error: PGNError | None


def predict_files(
    client: AdaptedClient, files: Sequence[Path], journal: PathLike
) -> Iterator[FileResult]:
    """Classify image files, write one JSON line per file into a journal, and yield the results.

    The results have the order of ``files``. A file is not sent again if the journal has a line with
    a label for the same bytes; a file that failed is sent again.

    The setup of the predictions (endpoint, model, checkpoint, fusion) is stored next to the journal
    in ``JOURNAL.journal.json``, so that a journal never mixes the lines of two setups.

    Args:
        client: Client that classifies; it is not closed.
        files: Image files, for example from ``find_images``; a repeated file counts once.
        journal: Path of the JSON Lines file; it is complete and in order when the iterator is
            exhausted.

    Raises:
        ConfigurationError: The journal belongs to another setup, is no journal, cannot be written,
            or is in use by another run.
        PGNError: An error that concerns every file; see ``AdaptedClient.classify_many``.
    """
    path = Path(journal)
    with only_writer(path):
        pin(path, client.fingerprint())
        yield from _resume(client, files, path)


class _Pending(NamedTuple):
    """An image file whose prediction is not yielded yet.

    Attributes:
        path: Path of the image file.
        sha256: SHA-256 of the file's bytes; None if it cannot be read.
        earlier: Record of an earlier run with a label for the same bytes; None without one.
    """

    path: Path
    sha256: str | None
    earlier: Record | None


def _resume(client: AdaptedClient, files: Sequence[Path], path: Path) -> Iterator[FileResult]:
    """Classify the files that have no usable line in the journal, and yield all results."""
    answered = {r["path"]: r for r in read_journal(path) if r["label"] is not None}
    # This drops incomplete lines and those of failed files, which are classified again.
    write_lines(path, (line_of(record) for record in answered.values()))

    # Files that the client has read from ``pending`` but whose results were not yielded yet, in
    # order.
    queue: deque[_Pending] = deque()
    written: list[Record] = []

    def pending() -> Iterator[Path]:
        for file in dict.fromkeys(files):
            digest = sha256_of(file)
            previous = answered.get(str(file))
            is_usable = previous is not None and previous["sha256"] == digest
            queue.append(_Pending(file, digest, previous if is_usable else None))
            if not is_usable:
                yield file

    def resumed() -> Iterator[FileResult]:
        while queue and (earlier := queue[0].earlier) is not None:
            queue.popleft()
            yield FileResult(earlier, True)

    with appending(path) as append:
        for result in client.classify_many(pending()):
            for earlier in resumed():
                written.append(earlier.record)
                yield earlier

            source, digest, _ = queue.popleft()
            classified = FileResult.of(source, digest, result)
            append(classified.record)
            written.append(classified.record)
            yield classified
    for earlier in resumed():
        written.append(earlier.record)
        yield earlier

    # Lines of other files, from an earlier run on another selection, stay in the journal.
    selected = {str(file) for file in files}
    others = (record for name, record in answered.items() if name not in selected)
    write_lines(path, map(line_of, [*others, *written]))


def predict_each(client: AdaptedClient, files: Sequence[Path]) -> Iterator[FileResult]:
    """Classify image files without a journal, and yield one result per file.

    A result's record holds what ``predict_files`` would write as a line of the journal.

    Args:
        client: Client that classifies; it is not closed.
        files: Image files, for example from ``find_images``.
    """
    for file, result in zip(files, client.classify_many(files), strict=True):
        yield FileResult.of(file, sha256_of(file), result)


def predict_records(client: AdaptedClient, files: Sequence[Path]) -> Iterator[Record]:
    """Classify image files without a journal, and yield the records of ``predict_each``."""
    return (result.record for result in predict_each(client, files))


def adapt_files(
    adapter: Adapter,
    source: PathLike | Sequence[PathLike],
    target: PathLike,
    *,
    files: Sequence[Path] | None = None,
) -> Iterator[AdaptedFile]:
    """Adapt the images of a folder, and write them as PNG into a folder with the same subfolders.

    An adapted image has a prompt painted into it.

    Nothing is sent. ``TARGET/adapted.jsonl`` lists the finished images. An image is skipped if an
    earlier run adapted the same bytes with the same checkpoint. A PNG appears under its name only
    when it is complete.

    Args:
        adapter: Adapter that prepares the images, for example a ``PromptAdapter``.
        source: Folder or other source of images, as for ``find_images``; or several, as for
            ``reader.scan``.
        target: Folder to write, which is created if missing; neither inside the source folder nor
            around it.
        files: Images in the source, if the caller has searched it already.

    Raises:
        ConfigurationError: There are no images, or the target overlaps with the source.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    out = Path(target)
    files = scan(sources).files if files is None else files
    targets = _targets(files, _base([Path(each) for each in sources], files, out), out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)

    journal = out / "adapted.jsonl"
    with only_writer(journal):
        # Under the lock, because a run that is under way has temporary files too.
        clear_leftovers(targets)
        yield from _adapt_all(adapter, list(zip(files, targets, strict=True)), journal)


def _adapt_all(
    adapter: Adapter, pairs: Sequence[tuple[Path, Path]], journal: Path
) -> Iterator[AdaptedFile]:
    """Adapt and write the images that no earlier run has finished, and yield a result for each.

    Args:
        adapter: Adapter that prepares the images.
        pairs: Pairs of the image's path and the PNG's path.
        journal: Path of the list of finished images.
    """
    checkpoint = _fingerprint(adapter)
    done = {
        record["path"]: record
        for record in read_journal(journal)
        if record["label"] == "adapted" and record.get("checkpoint") == checkpoint
    }
    # This drops incomplete lines and those of other checkpoints.
    write_lines(journal, (line_of(record) for record in done.values()))

    rest = iter(pairs)
    with appending(journal) as append:
        # Whole photos take much memory, so only a few large ones are held at the same time.
        for portion in portions((source for source, _ in pairs), images=MAX_BATCH):
            chunk = list(itertools.islice(rest, len(portion)))
            yield from _adapt_chunk(adapter, chunk, done, append)


def _fingerprint(adapter: Adapter) -> str | None:
    return ServedCard.from_json(adapter.info).fingerprint


def _adapt_chunk(
    adapter: Adapter,
    chunk: Sequence[tuple[Path, Path]],
    done: Mapping[str, Record],
    append: Callable[[Record], None],
) -> Iterator[AdaptedFile]:
    """Adapt and write one batch of images, and yield a result for each.

    Args:
        adapter: Adapter that prepares the images.
        chunk: Pairs of the image's path and the PNG's path.
        done: Journal records of earlier runs by image path; these images are skipped.
        append: Function that adds the record of a written image to the journal.
    """
    todo = []
    for source, target in chunk:
        digest = sha256_of(source)
        previous = done.get(str(source))
        same = {"sha256": digest, "target": str(target)}
        if previous and same.items() <= previous.items() and target.exists():
            yield AdaptedFile(source, target, True, None)
        else:
            todo.append((source, target, digest))

    prepared = prepare_each(adapter, [caught(open_image, source) for source, _, _ in todo])
    for (source, target, digest), item in zip(todo, prepared, strict=True):
        if isinstance(item, PGNError):
            yield AdaptedFile(source, target, False, item)
            continue

        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, PNG.encode(item.image))
        record = {"path": str(source), "label": "adapted", "sha256": digest, "target": str(target)}
        append({**record, "checkpoint": _fingerprint(adapter)})
        yield AdaptedFile(source, target, False, None)


def _base(roots: Sequence[Path], files: Sequence[Path], out: Path) -> Path:
    """Return the source folder whose subfolders the output repeats.

    Raises:
        ConfigurationError: The source is a folder that overlaps with the output.
    """
    folders = [root for root in roots if root.is_dir()]
    for root in folders:
        source = root.resolve()
        target = out.resolve()
        if source == target or source in target.parents or target in source.parents:
            raise ConfigurationError(
                f"output folder: got {out}, expected one that does not overlap with {root}"
            )
    if len(roots) == 1 and folders:
        return folders[0]
    try:
        return Path(os.path.commonpath([_located(file).parent for file in files]))
    # On Windows, the images may lie on several drives.
    except ValueError as error:
        raise ConfigurationError(
            f"list of images: got paths without a common folder ({error}), expected one drive; "
            "adapt the images of each drive on their own"
        ) from error


def _located(file: Path) -> Path:
    """Return a path as the file system understands it: absolute, without ``..`` and links.

    Only the name stays what it is, even if it is a link itself.
    """
    return _real(file.parent) / file.name


def _real(folder: Path) -> Path:
    """Return the absolute path of a folder, without ``..`` and links."""
    try:
        return Path(os.path.realpath(folder))
    # A path with a zero byte. Nothing can be read from it, and so nothing is written for it.
    except ValueError:
        return folder.absolute()


def _targets(files: Sequence[Path], base: Path, out: Path) -> list[Path]:
    """Return the path of the PNG to write for each image file; all of them differ.

    The name for ``a.jpg`` is ``a.png``, or ``a.jpg.png`` if another file already has that name.

    Raises:
        ConfigurationError: A PNG would lie outside of the output folder, or beside the images.
    """
    names: dict[Path, Path] = {}
    taken: set[Path] = set()
    # PNGs come first, so that they keep their names.
    for file in sorted(files, key=lambda path: path.suffix != ".png"):
        # A link to a folder of images lies below the base by its name, and elsewhere in fact.
        is_below = file.is_relative_to(base) and ".." not in file.parts
        relative = file.relative_to(base) if is_below else _located(file).relative_to(_real(base))
        longer = (f"{relative.name}{n or ''}.png" for n in itertools.count())
        candidates = itertools.chain([relative.with_suffix(".png").name], longer)
        paths = (relative.with_name(_fitting(name)) for name in candidates)
        names[file] = next(path for path in paths if path not in taken)
        taken.add(names[file])

    targets = [out / names[file] for file in files]
    _check_inside(out, files, targets)
    return targets


def _fitting(name: str) -> str:
    """Return a PNG's name in a form that file systems accept: of at most ``MOST_BYTES`` bytes.

    A hash of the name replaces the end of a longer one.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= MOST_BYTES:
        return name
    end = f"-{hashlib.sha256(encoded).hexdigest()[:12]}.png"
    # "ignore" drops a character that the cut has halved.
    start = encoded[: MOST_BYTES - len(end)].decode(errors="ignore")
    return start + end


def _check_inside(out: Path, files: Sequence[Path], targets: Sequence[Path]) -> None:
    """Check that nothing is written outside of the output folder, or over an image.

    Raises:
        ConfigurationError: A link or ``..`` leads out of the output folder, or the folder holds the
            images themselves.
    """
    # Resolved, because a folder inside the output folder may be a link to another place.
    inside = _real(out)
    folders = {target.parent: _real(target.parent) for target in targets}
    for folder, real in folders.items():
        if real != inside and inside not in real.parents:
            raise ConfigurationError(
                f"output folder: got {folder}, which leads to {real}, outside of {out}; choose "
                "another output folder"
            )
    if {_real(file.parent) for file in files} & set(folders.values()):
        raise ConfigurationError(
            f"output folder: got {out}, which holds the images themselves; choose another"
        )
