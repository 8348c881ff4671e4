"""The summary of ``transfer.py``, from the answer bank alone. Arms, parts and decision rule are
described there.

Fitted readings are kept in the bank (``BANK/readings``): when the bank grows, a summary fits only
what is new. Which test images each row gets right is kept in a file of runs, from which the same
tables follow without the bank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from answer_bank import Bank, Floats, Location, write_arrays
from numpy.typing import NDArray
from replay import VIEWS, Reading, Targets, all_scores, fused, mapped, mapped_on_choose

from pgn_client.evaluation.statistics import pooled_bootstrap
from pgn_client.imaging.files import write_whole
from pgn_client.mapping.logistic_regression import logistic_regression_cv
from pgn_client.mapping.probability import log_loss, log_softmax
from pgn_client.prompting.methods.linear_probe import LinearProbe

VIT, LITE0, LITE1 = "vit_tiny_patch16_224", "tf_efficientnet_lite0", "tf_efficientnet_lite1"
BLACK = ((VIT, LITE0), (LITE1, VIT))
WHITE = (VIT, VIT)
PLAIN = ("raw", "frame")
ARMS = (
    *PLAIN,
    "iip",
    "pgn",
    "swapped",
    "swapped_in_class",
    "random_frames",
    "frames_out_of_fold",
    "class_prompts",
    "gray_image",
    "blind_trunk",
)
RIVALS = ("raw", "frame", "iip")
STINGY = ("all scores", "top five", "one label")
RAW_COPIES = 3
NEIGHBORS = (1, 3, 5, 9, 15, 25)


@dataclass(frozen=True)
class Results:
    """Readings of one set and seed, fitted when first asked for and kept on disk.

    Attributes:
        bank: Where the answers are.
        place: Which set and seed.
    """

    bank: Bank
    place: Location

    @cached_property
    def targets(self) -> Targets:
        """Class indices of all parts."""
        return Targets.of(self.bank, self.place)

    def source(self, name: str) -> dict[str, NDArray[Any]]:
        """Read one source of rows."""
        return self.bank.get(self.place, name)

    def arm(
        self, pair: tuple[str, str], arm: str, view: str = "all scores", copies: int = 1
    ) -> Reading:
        """Return an arm's answers, read by the best mapping."""
        name = arm_name(pair, arm)
        kept = f"{view}/{name}" + (f", {copies} copies" if copies > 1 else "")

        def fit() -> Reading:
            return mapped(
                self.source(name), self.targets, VIEWS[view], copies=copies, seed=self.place.seed
            )

        return self._kept(kept, fit)

    def local(self, surrogate: str) -> Reading:
        """Return the local head of the PGN's checkpoint."""
        rows = self.source(f"{surrogate}/local")
        return Reading(rows["choose"], rows["test"])

    def with_local(self, pair: tuple[str, str], arm: str, view: str = "all scores") -> Reading:
        """Return an arm fused with the local head."""
        return fused(self.arm(pair, arm, view), self.local(pair[0]), self.targets)

    def arm_on_choose(self, pair: tuple[str, str], arm: str) -> Reading:
        """Return an arm's answers, read by a mapping of the choose images alone."""
        name = arm_name(pair, arm)

        def fit() -> Reading:
            seed = self.place.seed
            return mapped_on_choose(self.source(name), self.targets, all_scores, seed=seed)

        return self._kept(f"mapping of choose/{name}", fit)

    def stacked(self, pair: tuple[str, str], arm: str) -> Reading:
        """Return one logistic regression on [log-scores || local log-probabilities], the local ones
        out of fold.
        """
        name = arm_name(pair, arm)

        def fit() -> Reading:
            heads = self.source("heads")
            return self._stack(
                {part: (all_scores(rows), heads[part]) for part, rows in parts(self.source(name))}
            )

        return self._kept(f"stacked/{name}", fit)

    def stacked_features(self, pair: tuple[str, str]) -> Reading:
        """Return one logistic regression on [raw log-scores || the surrogate's features]."""
        surrogate, hosted = pair

        def fit() -> Reading:
            features = self.source(f"{surrogate}/features")
            rows = dict(parts(self.source(f"{hosted}/raw")))
            return self._stack(
                {part: (all_scores(x), features[part].astype(float)) for part, x in rows.items()}
            )

        return self._kept(f"stacked/{hosted}/raw with {surrogate}", fit)

    def probe(self, surrogate: str) -> Reading:
        """Return the linear probe on the surrogate's features; *choose* decides whether copies help
        it.
        """

        def fit() -> Reading:
            features = {
                part: rows.astype(float)
                for part, rows in self.source(f"{surrogate}/features").items()
            }
            blocks = [features["fit"], *(features[f"copy{i}"] for i in range(RAW_COPIES))]
            probes = [self._probe(blocks[:times]) for times in (1, 2, len(blocks))]
            best = min(
                probes,
                key=lambda found: log_loss(
                    found.log_probs(features["choose"]), self.targets.choose
                ),
            )
            return Reading(best.log_probs(features["choose"]), best.log_probs(features["test"]))

        return self._kept(f"probe/{surrogate}", fit)

    def _probe(self, blocks: Sequence[Floats]) -> LinearProbe:
        right, classes = np.tile(self.targets.fit, len(blocks)), len(self.targets.classes)
        return LinearProbe.fit(
            np.concatenate(blocks), right, classes, copies=len(blocks), seed=self.place.seed
        )

    def neighbors(self, hosted: str) -> Reading:
        """Return kNN on square roots of probabilities (Hellinger distance); *choose* picks k and
        the copies.
        """

        def fit() -> Reading:
            source, C = self.source(f"{hosted}/raw"), len(self.targets.classes)
            roots = {part: np.exp(all_scores(rows) / 2) for part, rows in source.items()}
            found = []
            for times in (1, 1 + RAW_COPIES):
                blocks = [roots["fit"], *(roots[f"copy{i}"] for i in range(times - 1))]
                known, right = np.concatenate(blocks), np.tile(self.targets.fit, times)
                votes = [
                    Reading(
                        *(
                            neighbor_votes(known, right, roots[part], k, C)
                            for part in ("choose", "test")
                        )
                    )
                    for k in NEIGHBORS
                ]
                found += votes
            return min(found, key=lambda reading: log_loss(reading.choose, self.targets.choose))

        return self._kept(f"neighbors/{hosted}", fit)

    def _stack(self, blocks: Mapping[str, tuple[Floats, Floats]]) -> Reading:
        """Fit a logistic regression on two blocks side by side, each scaled to unit total
        variance.
        """
        scales = [1 / np.sqrt(block.var(axis=0).sum() + 1e-12) for block in blocks["fit"]]
        rows = {
            part: np.hstack([block * scale for block, scale in zip(pair, scales, strict=True)])
            for part, pair in blocks.items()
        }
        readings = []
        for names in (["fit"], ["fit", "copy0"]):
            X, y = (
                np.concatenate([rows[name] for name in names]),
                np.tile(self.targets.fit, len(names)),
            )
            C = len(self.targets.classes)
            found = logistic_regression_cv(X, y, C, copies=len(names), seed=self.place.seed)
            log_p = [
                log_softmax(rows[part] @ found.weight + found.bias) for part in ("choose", "test")
            ]
            readings.append(Reading(*log_p))
        return min(readings, key=lambda reading: log_loss(reading.choose, self.targets.choose))

    def _kept(self, name: str, fit: Callable[[], Reading]) -> Reading:
        path = self.bank.root / "readings" / self.place.set / str(self.place.seed) / f"{name}.npz"
        if not path.exists():
            reading = fit()
            write_arrays(path, {"choose": reading.choose, "test": reading.test})
        with np.load(path) as file:
            return Reading(file["choose"], file["test"])


def arm_name(pair: tuple[str, str], arm: str) -> str:
    """Return an arm's name in the bank."""
    surrogate, hosted = pair
    return f"{hosted}/{arm}" if arm in PLAIN else f"{hosted}/{surrogate}-{arm}"


def parts(source: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the parts that every source has."""
    yield from ((part, source[part]) for part in ("fit", "copy0", "choose", "test"))


def neighbor_votes(
    known: Floats, right: NDArray[np.int64], rows: Floats, k: int, classes: int
) -> Floats:
    """(n, C) log-probabilities of the classes of the k nearest rows, with a count of 1/C for every
    class.
    """
    distance = np.square(known).sum(axis=1) - 2 * rows @ known.T
    nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
    votes = np.eye(classes)[right[nearest]].sum(axis=1) + 1 / classes
    return np.asarray(np.log(votes / votes.sum(axis=1, keepdims=True)))


def best_rival(results: Results, pair: tuple[str, str], view: str = "all scores") -> str:
    """Return which of raw, frame and iip has the least log-loss on *choose* when fused with the
    local head.
    """
    right = results.targets.choose

    def loss(arm: str) -> float:
        return log_loss(results.with_local(pair, arm, view).choose, right)

    return min(RIVALS, key=loss)


@dataclass(frozen=True)
class Measure:
    """What is measured of a set, a seed and a pair.

    Attributes:
        name: What the file of runs knows it by.
        read: Returns the reading; raises ``FileNotFoundError`` where the bank does not hold it.
    """

    name: str
    read: Callable[[Results, tuple[str, str]], Reading]


HOWS = {"alone": "", "fused": " + local", "stacked": " || local, stacked"}
ON_CHOOSE = {"alone": "", "fused": " + local"}


def measured(arm: str, how: str, view: str = "all scores") -> Measure:
    """Return the measure of an arm: ``alone``, ``fused`` with the local head, or ``stacked`` with
    it.
    """
    reads: dict[str, Callable[[Results, tuple[str, str]], Reading]] = {
        "alone": lambda results, pair: results.arm(pair, arm, view),
        "fused": lambda results, pair: results.with_local(pair, arm, view),
        "stacked": lambda results, pair: results.stacked(pair, arm),
    }
    return Measure(f"{arm}{HOWS[how]}, {view}", reads[how])


def best_rival_fused(view: str = "all scores") -> Measure:
    """Return the measure of the best of raw, frame and iip, with the local head."""

    def read(results: Results, pair: tuple[str, str]) -> Reading:
        return results.with_local(pair, best_rival(results, pair, view), view)

    return Measure(f"best rival + local, {view}", read)


def measured_on_choose(arm: str, how: str) -> Measure:
    """Return the measure of an arm, ``alone`` or ``fused``, whose mapping is of *choose* alone."""

    def read(results: Results, pair: tuple[str, str]) -> Reading:
        reading = results.arm_on_choose(pair, arm)
        if how == "fused":
            return fused(reading, results.local(pair[0]), results.targets)
        return reading

    return Measure(f"{arm}{ON_CHOOSE[how]}, mapping of choose", read)


def best_rival_on_choose() -> Measure:
    """Return the measure of the best of raw, frame and iip with the local head, mappings of
    *choose* alone.
    """

    def read(results: Results, pair: tuple[str, str]) -> Reading:
        readings = [measured_on_choose(arm, "fused").read(results, pair) for arm in RIVALS]
        return min(readings, key=lambda found: log_loss(found.choose, results.targets.choose))

    return Measure("best rival + local, mapping of choose", read)


LOCAL = Measure("local head", lambda results, pair: results.local(pair[0]))


def with_probe(arm: str) -> Measure:
    """Return the measure of an arm fused with the linear probe on the surrogate."""

    def read(results: Results, pair: tuple[str, str]) -> Reading:
        return fused(results.arm(pair, arm), results.probe(pair[0]), results.targets)

    return Measure(f"{arm} + linear probe", read)


def _more_copies(results: Results, pair: tuple[str, str]) -> Reading:
    return results.arm(pair, "raw", copies=RAW_COPIES)


def _more_copies_fused(results: Results, pair: tuple[str, str]) -> Reading:
    return fused(_more_copies(results, pair), results.local(pair[0]), results.targets)


def _probe_fused(results: Results, pair: tuple[str, str]) -> Reading:
    return fused(results.probe(pair[0]), results.local(pair[0]), results.targets)


EQUAL_IMAGES = Measure("raw, equal images + local", _more_copies_fused)
BASELINES = (
    Measure("raw, equal images", _more_copies),
    EQUAL_IMAGES,
    Measure("kNN on raw log-scores", lambda results, pair: results.neighbors(pair[1])),
    LOCAL,
    Measure("linear probe on the surrogate", lambda results, pair: results.probe(pair[0])),
    Measure("linear probe + local", _probe_fused),
    with_probe("raw"),
    with_probe("pgn"),
    Measure(
        "raw || surrogate features, stacked", lambda results, pair: results.stacked_features(pair)
    ),
)


class Runs:
    """Which test images every measure gets right, kept as JSON lines.

    Args:
        path: The file; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.kept: dict[tuple[str, int, str, str, str], NDArray[np.bool_]] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                *key, images, bits = json.loads(line)
                packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
                self.kept[tuple(key)] = np.unpackbits(packed, count=images).astype(bool)

    @property
    def places(self) -> list[Location]:
        """Every set and seed that is kept."""
        return sorted({Location(key[0], key[1]) for key in self.kept})

    def hits(self, results: Results, pair: tuple[str, str], measure: Measure) -> NDArray[np.bool_]:
        """Return which test images a measure gets right: from the bank, else as they were kept.

        Raises:
            FileNotFoundError: Neither has it.
        """
        key = (*results.place, *pair, measure.name)
        try:
            answered = measure.read(results, pair).test.argmax(axis=1)
        except FileNotFoundError:
            if key not in self.kept:
                raise
        else:
            self.kept[key] = answered == results.targets.test
        return self.kept[key]

    def save(self) -> None:
        """Write the file, in order."""
        if self.path is None:
            return
        lines = []
        for key, hits in sorted(self.kept.items()):
            lines.append(json.dumps([*key, len(hits), np.packbits(hits).tobytes().hex()]))
        write_whole(self.path, ("\n".join(lines) + "\n").encode())


@dataclass(frozen=True)
class Table:
    """Accuracies and paired differences over some pairs, from every set and seed that has what a
    line needs.

    Attributes:
        cells: Sets and seeds.
        pairs: (surrogate, hosted) pairs that are averaged.
        runs: What is known already.
    """

    cells: Sequence[Results]
    pairs: Sequence[tuple[str, str]]
    runs: Runs

    def hits(self, *measures: Measure) -> tuple[list[dict[str, Floats]], int]:
        """Return, for every measure, (n,) shares of runs that get a test image right, by set; and
        how many runs.

        A run is a seed and a pair; only runs that have all the measures count.
        """
        found: list[dict[str, list[Floats]]] = [{} for _ in measures]
        runs = 0
        for results in self.cells:
            for pair in self.pairs:
                try:
                    rows = [self.runs.hits(results, pair, measure) for measure in measures]
                except FileNotFoundError:
                    continue
                runs += 1
                for by_set, hits in zip(found, rows, strict=True):
                    by_set.setdefault(results.place.set, []).append(hits.astype(float))
        return [
            {name: np.mean(rows, axis=0) for name, rows in by_set.items()} for by_set in found
        ], runs

    def line(self, title: str, measure: Measure) -> str:
        """Return the accuracies by set, and the mean with its interval."""
        (hits,), runs = self.hits(measure)
        return self._line(title, hits, runs, scale=1, form=".3f")

    def gap(self, title: str, a: Measure, b: Measure) -> str:
        """Return the paired differences a - b in points by set, and the mean with its interval."""
        (ours, theirs), runs = self.hits(a, b)
        return self._line(
            title, {name: ours[name] - theirs[name] for name in ours}, runs, scale=100, form="+.1f"
        )

    def _line(
        self, title: str, rows: Mapping[str, Floats], runs: int, *, scale: float, form: str
    ) -> str:
        shown = {name: format(scale * row.mean(), form) for name, row in rows.items()}
        cells = "".join(f"{shown.get(name, ''):>9}" for name in self.sets)
        if not rows:
            return f"  {title:<34}{cells}   not measured"
        mean, low, high = (scale * x for x in pooled_bootstrap(list(rows.values()), seed=0))
        return f"  {title:<34}{cells}   {mean:{form}} [{low:{form}}, {high:{form}}]  {runs} runs"

    def gaps_by_set(self, a: Measure, b: Measure) -> list[str]:
        """Return the paired difference of every set with its own interval."""
        (ours, theirs), _ = self.hits(a, b)
        lines = []
        for name in ours:
            mean, low, high = (
                100 * x for x in pooled_bootstrap([ours[name] - theirs[name]], seed=0)
            )
            lines.append(f"    {name:<14} {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        return lines

    @property
    def sets(self) -> list[str]:
        """Names of the sets, in order."""
        return list(dict.fromkeys(results.place.set for results in self.cells))

    def head(self, title: str) -> str:
        """Return a table's first line: the sets."""
        return (
            f"{title}\n  {'':<34}"
            + "".join(f"{name[:8]:>9}" for name in self.sets)
            + "   mean [95 %]"
        )


def decision(low: float, high: float) -> str:
    """Say what the rule says of a difference in points; its clauses are taken in order."""
    if high < 1:
        return "upper bound below +1: per-image prompts leave the defaults and stay an option"
    if low > 0:
        return "lower bound above 0: per-image prompts are candidates"
    return "between: more seeds or sets"


def summarize(bank: Bank, runs: Runs) -> str:
    """Return all tables, from the runs that are kept and from what the bank has beside them."""
    places = sorted({*runs.places, *bank.places()})
    cells = [Results(bank, place) for place in places]
    names = ", ".join(f"{place.set} (seed {place.seed})" for place in places)
    lines = [f"{len(cells)} sets and seeds: {names}"]
    for pair in BLACK:
        lines += ["", *accuracies(Table(cells, [pair], runs), f"{pair[0]} -> {pair[1]}")]
    both = Table(cells, BLACK, runs)
    lines += ["", *accuracies(both, "both black-box pairs")]
    lines += [
        "",
        *primary(both),
        "",
        *controls(both),
        "",
        *on_choose(both),
        "",
        *stingy(both),
        "",
        *white_box(both),
    ]
    runs.save()
    return "\n".join(lines)


def accuracies(table: Table, title: str) -> list[str]:
    """Return every arm alone, fused and stacked, then the baselines."""
    lines = [table.head(f"{title}: accuracy on test")]
    for how, ending in HOWS.items():
        lines += [table.line(arm + ending, measured(arm, how)) for arm in ARMS]
    return lines + [table.line(measure.name, measure) for measure in BASELINES]


def primary(table: Table) -> list[str]:
    """Return the primary difference, by set and pair, and what the rule says."""
    ours, theirs = measured("pgn", "fused"), best_rival_fused()
    (a, b), runs = table.hits(ours, theirs)
    title = "primary, points: (pgn + local) - the best of (raw, frame, iip) + local"
    if not runs:
        return [title, "  not measured"]
    _, low, high = (100 * x for x in pooled_bootstrap([a[name] - b[name] for name in a], seed=0))
    lines = [table.head(title), *table.gaps_by_set(ours, theirs), table.gap("mean", ours, theirs)]
    places = {results.place for results in table.cells}
    missing = len(places) * len(table.pairs) - runs
    if missing:
        lines.append(
            f"  decision: open, {missing} of {missing + runs} runs (set, seed, pair) are missing"
        )
    else:
        lines.append(f"  decision: {decision(low, high)}")
    lines += [
        Table(table.cells, [pair], table.runs).gap(
            f"{pair[0][:14]} -> {pair[1][:15]}", ours, theirs
        )
        for pair in table.pairs
    ]
    lines += [table.gap(f"against {arm} + local", ours, measured(arm, "fused")) for arm in RIVALS]
    lines.append(table.gap("against raw + linear probe", ours, with_probe("raw")))
    lines.append(table.gap("pgn + probe against raw + probe", with_probe("pgn"), with_probe("raw")))
    lines.append(table.gap("against raw, equal images + local", ours, EQUAL_IMAGES))
    return lines


def controls(table: Table) -> list[str]:
    """Return what the controls say: alone, fused and stacked."""
    lines = [table.head("controls, points: pgn - control")]
    others = [arm for arm in ARMS if arm != "pgn"]
    for how in HOWS:
        ours = measured("pgn", how)
        lines += [table.gap(f"{arm}, {how}", ours, measured(arm, how)) for arm in others]
    for how in ("alone", "fused"):
        blind, frame = measured("blind_trunk", how), measured("frame", how)
        lines.append(table.gap(f"blind_trunk - frame, {how}", blind, frame))
    return lines


def on_choose(table: Table) -> list[str]:
    """Return the accuracies, the primary difference and the controls by mappings of *choose*
    alone.
    """
    arms = (*RIVALS, "pgn", "swapped_in_class", "random_frames")
    lines = [table.head("mapping of choose: accuracy on test, then points")]
    for how, ending in ON_CHOOSE.items():
        lines += [table.line(arm + ending, measured_on_choose(arm, how)) for arm in arms]
    ours = measured_on_choose("pgn", "fused")
    lines.append(table.gap("primary", ours, best_rival_on_choose()))
    for how in ON_CHOOSE:
        pgn = measured_on_choose("pgn", how)
        lines += [
            table.gap(f"pgn - {arm}, {how}", pgn, measured_on_choose(arm, how))
            for arm in arms
            if arm != "pgn"
        ]
    return lines


def stingy(table: Table) -> list[str]:
    """Return the primary question for endpoints that return less."""
    lines = []
    for view in STINGY:
        lines.append(table.head(f"{view}: accuracy on test, then points"))
        for how in ("alone", "fused"):
            lines += [
                table.line(arm + HOWS[how], measured(arm, how, view)) for arm in (*RIVALS, "pgn")
            ]
        ours = measured("pgn", "fused", view)
        lines.append(table.line("local head", LOCAL))
        lines.append(table.gap("primary", ours, best_rival_fused(view)))
        lines.append(
            table.gap(
                "pgn - raw, alone", measured("pgn", "alone", view), measured("raw", "alone", view)
            )
        )
        lines.append(table.gap("pgn + local - local", ours, LOCAL))
    return lines


def white_box(both: Table) -> list[str]:
    """Return the white box beside the black box with the same hosted model, on the same images."""
    pairs = {"white": WHITE, "black": (LITE1, VIT)}
    tables = {name: Table(both.cells, [pair], both.runs) for name, pair in pairs.items()}
    lines = [
        tables["white"].head(
            f"hosted {VIT}: white box (surrogate = hosted), black box (surrogate {LITE1})"
        )
    ]
    for name, table in tables.items():
        for how in ("alone", "fused"):
            lines += [
                table.line(f"{name}: {arm}{HOWS[how]}", measured(arm, how))
                for arm in (*RIVALS, "pgn")
            ]
        lines.append(table.gap(f"{name}: primary", measured("pgn", "fused"), best_rival_fused()))
        lines.append(
            table.gap(
                f"{name}: pgn - frame, alone", measured("pgn", "alone"), measured("frame", "alone")
            )
        )
        lines.append(
            table.gap(
                f"{name}: pgn - raw, alone", measured("pgn", "alone"), measured("raw", "alone")
            )
        )
    return lines
