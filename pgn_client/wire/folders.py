"""Whole folders: predictions to a JSON Lines journal, adapted pictures to a mirrored tree; both resume.

A journal line is written at once and completely, so that whatever ends the process costs at most the pictures that
were on their way. A rerun pays for nothing that is in the journal: same path, same bytes, with a label.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pgn_client.errors import ConfigurationError, EndpointError, NotRecordedError, PGNError
from pgn_client.imaging.codecs import IMAGE_SUFFIXES, PNG, ImageSource, open_image
from pgn_client.types import Adapter, ImageFailure, Prediction
from pgn_client.wire.client import AdaptedClient
from pgn_client.wire.session import MAX_BATCH, caught, prepare_each

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
PathLike = str | os.PathLike[str]


class FileResult(NamedTuple):
    """One file's line in the journal.

    Attributes:
        record: ``path, label, score, scores, sha256, attempts, error``; a failed file has no label, but an error.
        resumed: whether an earlier run had written it.
    """

    record: Record
    resumed: bool


class AdaptedFile(NamedTuple):
    """One file of ``adapt_files``.

    Attributes:
        source: the picture.
        target: the adapted PNG.
        skipped: whether an earlier run had written it.
        error: why there is no target.
    """

    source: Path
    target: Path
    skipped: bool
    error: PGNError | None


def find_images(source: PathLike) -> list[Path]:
    """Return the pictures that an input names.

    Args:
        source: a folder (searched recursively; sorted by path, upper before lower case; hidden files and folders
            are left out), one picture, a text file with one path per line, or ``-`` for such lines on stdin. Lists
            keep their order; a path that occurs twice is used once.

    Raises:
        ConfigurationError: nothing there, or no picture among it.
    """
    if os.fspath(source) == "-":
        return _listed(sys.stdin, "stdin")
    path = Path(source)
    if path.is_dir():
        found = sorted(_walk(path), key=lambda p: p.relative_to(path).as_posix())
        if not found:
            raise ConfigurationError(
                f"{path}: got a folder without pictures, expected {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [path]
    with path.open(encoding="utf-8") as file:
        return _listed(file, str(path))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _listed(lines: Iterable[str], name: str) -> list[Path]:
    try:
        paths = dict.fromkeys(Path(text) for line in lines if (text := line.strip()))
    except (OSError, ValueError):  # UnicodeDecodeError is a ValueError
        raise ConfigurationError(f"{name}: neither a picture nor a text file with one path per line") from None
    if not paths:
        raise ConfigurationError(f"{name}: got an empty list, expected one path per line")
    return list(paths)


def predict_files(client: AdaptedClient, files: Sequence[Path], journal: PathLike) -> Iterator[FileResult]:
    """Classify files into a journal, one JSON line per file, and yield each result in the order of ``files``.

    A file whose line is there already, for the same bytes and with a label, is not sent again; failed ones are. What
    the predictions depend on (endpoint, model, checkpoint, fusion) is kept beside the journal in
    ``JOURNAL.journal.json``, so that lines of two setups are never mixed.

    Args:
        client: is not closed.
        files: each once; see ``find_images``.
        journal: the JSON Lines file; complete and in order when the iterator is exhausted.

    Raises:
        ConfigurationError: the journal belongs to another setup, is no journal, cannot be written, or is being
            written by another run.
        PGNError: what concerns every file; see ``AdaptedClient.classify_many``.
    """
    path = Path(journal)
    with _only_writer(path):
        _pin(path, client.fingerprint())
        yield from _resume(client, files, path)


def _resume(client: AdaptedClient, files: Sequence[Path], path: Path) -> Iterator[FileResult]:
    known = {record["path"]: record for record in _read(path) if record["label"] is not None}
    _replace(path, (_line(record) for record in known.values()))  # a torn or failed line is gone for good
    plan: deque[tuple[Path, str | None, Record | None]] = deque()
    written: list[Record] = []

    def pending() -> Iterator[Path]:
        for file in dict.fromkeys(files):
            digest, old = _sha256(file), known.get(str(file))
            resumable = old is not None and old["sha256"] == digest
            plan.append((file, digest, old if resumable else None))
            if not resumable:
                yield file

    def resumed() -> Iterator[FileResult]:
        while plan and plan[0][2] is not None:
            yield FileResult(plan.popleft()[2] or {}, True)

    with _opened(path) as file:
        for result in client.classify_many(pending()):
            for earlier in resumed():
                written.append(earlier.record)
                yield earlier
            source, digest, _ = plan.popleft()
            record = _record(source, digest, result)
            file.write(_line(record))
            file.flush()
            written.append(record)
            yield FileResult(record, False)
    for earlier in resumed():
        written.append(earlier.record)
        yield earlier
    asked = {str(file) for file in files}
    others = (record for name, record in known.items() if name not in asked)
    _replace(path, map(_line, [*others, *written]))  # what an earlier run was asked for stays


def predict_records(client: AdaptedClient, files: Sequence[Path]) -> Iterator[Record]:
    """Classify files without a journal; yield what its lines would be, in order."""
    for file, result in zip(files, client.classify_many(files), strict=True):
        yield _record(file, _sha256(file), result)


class Estimate(NamedTuple):
    """What a run would take.

    Attributes:
        images: how many would be sent, or answered by the local head.
        already_answered: how many are in the journal or the cache.
        seconds: at least this long: the endpoint's own computing is not known before an image is sent.
    """

    images: int
    already_answered: int
    seconds: float


def estimate(
    client: AdaptedClient, files: Sequence[Path], journal: PathLike | None = None, *, samples: int = 4
) -> Estimate:
    """Plan a run without sending an image.

    Args:
        client: asks the endpoint for its model card once, which carries no image and is timed.
        files: as for ``predict_files``.
        journal: of an earlier run, if there is one.
        samples: pictures that are adapted and encoded here, to time the local work.
    """
    known = {r["path"]: r["sha256"] for r in _read(Path(journal)) if r["label"]} if journal else {}
    todo = [file for file in files if str(file) not in known or known[str(file)] != _sha256(file)]
    each = seconds_each(client, todo[:samples])
    images = len(todo) - client.recorded(todo)
    return Estimate(images, len(files) - images, images * each)


def seconds_each(client: AdaptedClient, samples: Sequence[ImageSource]) -> float:
    """Return the seconds that each picture takes at least: local work, a round trip, or the client's own limits.

    Args:
        client: asks the endpoint for its model card once, which carries no image and is timed.
        samples: pictures that are adapted and encoded here.
    """
    for picture in samples[:1]:  # the first one also pays for loading torch and the checkpoint: not a cost of each
        with contextlib.suppress(PGNError):
            client.adapt(picture)
    started = time.perf_counter()
    with contextlib.suppress(NotRecordedError):  # a replay asks nobody
        client.info()
    round_trip = time.perf_counter() - started
    started, sizes = time.perf_counter(), [0]
    for picture in samples:
        with contextlib.suppress(PGNError):
            sizes.append(len(PNG.encode(client.adapt(picture))))
    local = (time.perf_counter() - started) / max(1, len(samples))
    pace = client.pace(sum(sizes) // max(1, len(sizes) - 1))
    return max(local, round_trip / client.max_concurrency, pace)


def _record(source: Path, digest: str | None, result: Prediction | ImageFailure) -> Record:
    record: Record = {"path": str(source), "label": None, "score": None, "scores": None, "sha256": digest}
    if isinstance(result, ImageFailure):
        attempts = result.error.attempts if isinstance(result.error, EndpointError) else 0
        return {**record, "attempts": attempts, "error": str(result.error)}
    found = {"label": result.label, "score": result.score, "scores": dict(result.scores)}
    return {**record, **found, "attempts": result.attempts, "error": None}


def _pin(journal: Path, setup: Mapping[str, Any]) -> None:
    """Write down what the journal's lines depend on, or compare with what an earlier run wrote.

    A journal of failures alone holds nothing that another setup could spoil.
    """
    beside = journal.with_name(journal.name + ".journal.json")
    if not journal.exists() or journal.stat().st_size == 0:
        _replace(beside, [json.dumps(setup, indent=1, sort_keys=True) + "\n"])
        return
    try:
        earlier = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"{journal}: exists, and {beside.name} does not say what made it; remove it or choose another file"
        ) from None
    differ = sorted(key for key in {*earlier, *setup} if earlier.get(key) != setup.get(key))
    if differ and {record["label"] for record in _read(journal)} == {None}:
        _replace(beside, [json.dumps(setup, indent=1, sort_keys=True) + "\n"])
    elif differ:
        raise ConfigurationError(
            f"{journal}: was made with another {' and '.join(differ)} (then {_brief(earlier.get(differ[0]))}, now "
            f"{_brief(setup.get(differ[0]))}); choose another --out, or remove it to start again"
        )


def _brief(value: object) -> str:
    """Say a setting in a message: a fingerprint by its beginning, and nothing as ``none``."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:12]}…"


def _read(journal: Path) -> Iterator[Record]:
    """Yield the journal's records; a last line that was cut by a killed process is left out."""
    if not journal.exists():
        return
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                complete = isinstance(record, dict) and {"path", "label", "sha256"} <= record.keys()
            except ValueError:
                complete = False
            if complete:
                yield record
            elif line.endswith(b"\n"):
                raise ConfigurationError(f"{journal}: line {number} is no prediction; remove it or choose another file")


def adapt_files(adapter: Adapter, source: PathLike, target: PathLike) -> Iterator[AdaptedFile]:
    """Write what would be sent for each picture of ``source`` as PNG into a mirrored tree; nothing is sent.

    A picture that an earlier run adapted from the same bytes with the same checkpoint is skipped; that is noted in
    ``TARGET/adapted.jsonl``. Each PNG appears under its name only when it is complete.

    Args:
        adapter: for example a ``PromptAdapter``.
        source: as for ``find_images``.
        target: a folder, made if missing; neither inside the source folder nor around it.

    Raises:
        ConfigurationError: no pictures, or a target that overlaps with the source.
    """
    root, out = Path(source), Path(target)
    files = find_images(source)
    targets = _targets(files, _base(root, files, out), out)
    if {file.parent.resolve() for file in files} & {file.parent.resolve() for file in targets}:
        raise ConfigurationError(f"output folder: got {out}, which holds the pictures themselves; choose another")
    out.mkdir(parents=True, exist_ok=True)
    journal, checkpoint = out / "adapted.jsonl", adapter.info.get("fingerprint")
    done = {r["path"]: r for r in _read(journal) if r["label"] == "adapted" and r["checkpoint"] == checkpoint}
    _replace(journal, (_line(record) for record in done.values()))
    todo = zip(files, targets, strict=True)
    with _opened(journal) as log:
        while chunk := list(itertools.islice(todo, MAX_BATCH)):
            yield from _adapt_chunk(adapter, chunk, done, log)


def _adapt_chunk(
    adapter: Adapter, chunk: Sequence[tuple[Path, Path]], done: Mapping[str, Record], log: IO[str]
) -> Iterator[AdaptedFile]:
    fresh = []
    for source, target in chunk:
        digest, old = _sha256(source), done.get(str(source))
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
        _write_whole(target, PNG.encode(item.image))
        record = {"path": str(source), "label": "adapted", "sha256": digest, "target": str(target)}
        log.write(_line({**record, "checkpoint": adapter.info.get("fingerprint")}))
        log.flush()
        yield AdaptedFile(source, target, False, None)


def _base(root: Path, files: Sequence[Path], out: Path) -> Path:
    """Return the folder that the tree mirrors, after checking that the output does not overlap with a given one."""
    if root.is_dir():
        inside, outside = root.resolve(), out.resolve()
        if inside == outside or inside in outside.parents or outside in inside.parents:
            raise ConfigurationError(f"output folder: got {out}, expected one that does not overlap with {root}")
        return root
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def _targets(files: Sequence[Path], base: Path, out: Path) -> list[Path]:
    """Return one PNG name per file: ``a.png`` for ``a.jpg``, or ``a.jpg.png`` where another file is called ``a``."""
    names: dict[Path, Path] = {}
    taken: set[Path] = set()
    for file in sorted(files, key=lambda path: path.suffix != ".png"):  # a PNG keeps its name
        inside = (file.absolute() if base.is_absolute() else file).relative_to(base)
        longer = (inside.with_name(f"{inside.name}{n or ''}.png") for n in itertools.count())
        candidates = itertools.chain([inside.with_suffix(".png")], longer)
        names[file] = next(name for name in candidates if name not in taken)
        taken.add(names[file])
    return [out / names[file] for file in files]


def _sha256(file: Path) -> str | None:
    """Return the SHA-256 of a file's bytes; None when it cannot be read, which the client will explain."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _only_writer(journal: Path) -> Iterator[None]:
    """Refuse a second run on a journal; the lock ends with its process, however that ends."""
    beside = journal.with_name(f".{journal.name}.lock")
    with _opened(beside, journal) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{journal}: another run is writing it; wait for that, or choose another file"
                ) from None
            except OSError:
                pass  # a network drive without locks
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


def _opened(path: Path, shown: Path | None = None) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(shown or path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path}: cannot be written ({error.strerror}); choose another place")


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _replace(path: Path, lines: Iterable[str]) -> None:
    _write_whole(path, "".join(lines).encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, error) from error
