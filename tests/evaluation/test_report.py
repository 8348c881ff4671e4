"""What an evaluation leaves behind: the terminal's table, report.json, and the page."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from pgn_client.errors import MissingDependencyError
from pgn_client.evaluation.candidate import LOCAL, PGN, RAW, SERVED, Candidate, fused, with_local
from pgn_client.evaluation.fidelity import columns
from pgn_client.evaluation.report import page, sheet, table, write
from pgn_client.evaluation.report.page import TEMPLATE, environment
from pgn_client.evaluation.report.tiles import GAP, TEXT, TILE
from pgn_client.evaluation.results import Report
from pgn_client.evaluation.verdict import CONTAMINATED, judge
from pgn_client.training import Split, Task

N, C = 120, 3
EVIL = '<script>alert("1")</script>&\'x'
VOID = {"meta", "img"}
STEPS = ("sent", "seen")


def noisy(targets, *, right, seed, classes=C):
    """Log-probabilities that are so often right, more or less sure."""
    rng = np.random.default_rng(seed)
    answered = np.where(rng.random(len(targets)) < right, targets, (targets + 1) % classes)
    logits = rng.normal(size=(len(targets), classes)) + 3 * np.eye(classes)[answered]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def report_of(classes=(EVIL, "hen", "jay"), *, price=None, retention=True, local=0.8, names=None):
    targets = np.arange(N) % len(classes)
    split = Split(tuple(Path(names or f"{EVIL}/{i}.png") for i in range(N)), targets)
    task = Task(tuple(classes), split, split, split)

    def row(name, right, seed, **options):
        val, test = (
            noisy(targets, right=right, seed=seed + k, classes=len(classes)) for k in (0, 1)
        )
        return Candidate(name, val, test, 500, **options)

    head = row(LOCAL, local, 0, sent=0.0)
    head = replace(head, queries=0)
    raw, prompt = (
        replace(row(name, right, seed), local=head)
        for name, right, seed in ((RAW, 0.6, 2), (PGN, 0.9, 4))
    )
    candidates = [raw, head, fused(raw, head, 0.5), prompt, fused(prompt, head, 0.25)]
    steps = {"latent": 0.9, "http_png": 0.9, "agreement": {"latent": 1.0, "http_png": 0.99}}
    return Report(
        **vars(judge(candidates, task, seed=0, price_per_image=price)),
        retention=steps if retention else None,
        controls={"own_prompt": 0.9, "swapped_prompt": 0.4},
        omitted=["linear probe: <none>"],
        seconds=1.5,
        seed=0,
        split={"train": N, "val": N, "test": N},
        mapping={"kind": "linear", "val_log_loss": {"linear": 0.5}, "l2": 0.1},
        versions={"torch": "2.10"},
        images_sent=1234,
    )


def pictures(report):
    tiles = [Image.effect_noise((200, 100), 50).convert("RGB") for _ in report.examples]
    return dict.fromkeys(STEPS, tiles)


class Page(HTMLParser):
    """Read a page; an end tag that does not fit is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice"
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, wanted, attribute):
        return [value for tag, name, value in self.attributes if (tag, name) == (wanted, attribute)]


@pytest.fixture(scope="module")
def report():
    return report_of()


@pytest.fixture(scope="module")
def text(report):
    return page(report, pictures(report))


class TestTemplate:
    def test_an_undefined_variable_raises(self):
        with pytest.raises(UndefinedError, match="'nothing' is undefined"):
            environment().from_string("{{ nothing }}").render()
        with pytest.raises(UndefinedError, match="'view' is undefined"):
            environment().get_template(TEMPLATE).render(policy="")

    def test_an_unknown_attribute_of_the_view_raises(self):
        with pytest.raises(UndefinedError, match="has no attribute 'advice'"):
            environment().get_template(TEMPLATE).render(policy="", view=object())

    def test_attributes_and_text_are_escaped(self):
        template = environment().from_string('<p title="{{ x }}">{{ x }}</p>')
        escaped = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;&#39;x"
        assert template.render(x=EVIL) == f'<p title="{escaped}">{escaped}</p>'

    def test_without_jinja_the_extra_is_named(self, monkeypatch):
        environment.cache_clear()
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'pgn-client\[train\]'"):
            environment()

    @pytest.mark.parametrize("name", ["page.html.jinja", "tables.html.jinja", "charts.html.jinja"])
    def test_no_template_turns_escaping_off(self, name):
        source, _, _ = environment().loader.get_source(environment(), name)
        assert not re.search(r"\|\s*safe\b|autoescape", source)


class TestPage:
    def test_is_well_formed(self, text):
        found = Page(text)
        assert text.startswith('<!doctype html>\n<html lang="en">')
        assert found.tags.count("main") == found.tags.count("h1") == 1

    def test_fetches_nothing(self, text):
        found = Page(text)
        assert not set(found.tags) & {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert all(src.startswith("data:image/png;base64,") for src in found.values("img", "src"))
        assert not re.search(
            r"https?://|//[a-z]|url\(|@import|@font-face|srcset|\bhref\b",
            re.sub(r"data:[^\"]+", "", text),
        )
        assert not [name for _, name, _ in found.attributes if name.startswith("on")]

    def test_escapes_names_of_classes_and_files(self, report, text):
        found = Page(text)
        assert any(EVIL in example.values() for example in report.examples)
        assert "script" not in found.tags
        assert EVIL in found.text
        assert any(EVIL in alt for alt in found.values("img", "alt"))
        assert EVIL in found.values("th", "title")
        assert "&amp;lt;" not in text
        assert EVIL not in text
        assert "left out: linear probe: <none>" in "".join(found.text).lower()

    def test_tells_the_verdict_first(self, report, text):
        words = Page(text).text
        advised, reason = report.verdict.advice, report.verdict.reason
        assert reason.startswith("PGN")
        assert words.index(advised[0].upper() + advised[1:]) < words.index(reason)
        assert words.index(reason) < words.index("Accuracy and cost")

    def test_says_before_the_reason_that_pictures_are_not_the_checkpoints(self, report):
        warned = replace(report.verdict, warnings=(CONTAMINATED,))
        words = Page(page(replace(report, verdict=warned), pictures(report))).text
        warning = "Not" + CONTAMINATED.removeprefix("not")
        assert words.index(warning) < words.index(report.verdict.reason)

    def test_has_every_row_comparison_and_class(self, report, text):
        cells = Page(text).text
        for row in report.rows:
            assert any(cell.startswith(row.title) for cell in cells)
            assert f"{row.accuracy:.3f}" in cells
        assert all(
            f"{c.a} − {c.b}" in cells and f"{c.only_a} : {c.only_b}" in cells for c in report.paired
        )
        assert {"hen", "jay", "own prompt", "http_png"} <= set(cells)

    def test_every_picture_has_a_text_with_its_label_and_what_is_served(self, report, text):
        alts = Page(text).values("img", "alt")
        assert len(alts) == len(report.examples) * len(STEPS)
        for example in report.examples:
            expected = f"true {example['label']}, served {example['served']}"
            assert [alt for alt in alts if alt.startswith(expected)]

    def test_charts_say_what_they_show(self, text):
        charts = Page(text).values("svg", "aria-label")
        assert [chart.split(":")[0].split(".")[0] for chart in charts] == [
            "Accuracy against images sent of 1,000",
            "Accuracy against confidence",
        ]

    def test_nothing_in_a_chart_lies_outside_it(self, text):
        found = Page(text)
        for axis, limit in (("cx", 440), ("cy", 300)):
            assert all(0 <= float(value) <= limit for value in found.values("circle", axis))
        for points in found.values("polyline", "points"):
            x, y = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
            assert 0 <= min(x) <= max(x) <= 440
            assert 0 <= min(y) <= max(y) <= 300

    def test_escapes_what_a_class_could_close_an_attribute_with(self):
        quoted = '" onload="alert(1)'
        found = report_of((quoted, "hen", "jay"))
        read = Page(page(found, pictures(found)))
        assert quoted in read.values("th", "title")
        assert not [name for _, name, _ in read.attributes if name.startswith("on")]

    def test_a_matrix_holds_the_counts_and_their_shares(self, report, text):
        counts = report.confusion[SERVED]
        assert sum(sum(row.values()) for row in counts.values()) == N
        line = re.split(r'scope="row" title="hen">hen</th>', text)[1].split("</tr>")[0]
        hens = [counts["hen"].get(name, 0) for name in (EVIL, "hen", "jay")]
        assert [int(n.replace("·", "0")) for n in re.findall(r">([\d·]+)</td>", line)] == hens
        shares = [float(share) for share in re.findall(r"--share:([\d.]+)", line)]
        assert shares == pytest.approx([n / sum(hens) for n in hens if n], abs=0.005)

    def test_costs_are_there_with_a_price_alone(self, report, text):
        priced = report_of(price=0.002)
        assert "cost of 1,000" not in text
        found = Page(page(priced, pictures(priced)))
        assert {"cost of 1,000", "2.00", "0.40"} <= set(found.text)

    def test_the_total_cost_is_there_with_a_price_alone(self, text):
        priced = report_of(price=0.002)
        expected = "Total cost: 2.47, at 0.002 per image; without retries."
        assert expected in Page(page(priced, pictures(priced))).text
        assert "Total cost" not in text

    def test_rows_are_flagged_whose_interval_includes_chance(self, report):
        levels = {RAW: (0.33, 0.5), LOCAL: (0.1, 1 / 3), PGN: (0.34, 0.5), SERVED: (0.1, 0.32)}
        rows = [replace(row, ci95=levels.get(row.title, row.ci95)) for row in report.rows]
        shown = page(replace(report, rows=rows), pictures(report))
        main_table = shown.split("<tbody>")[1].split("</tbody>")[0]
        head = r'<th scope="row">([^<(]+?)(?: \([^)]*\))? <span class="level">([^<]+)<'
        flagged = re.findall(head, main_table)
        assert flagged == [(RAW, "chance level"), (LOCAL, "chance level"), (SERVED, "below chance")]

    def test_the_legend_explains_the_marks(self, text):
        legend = text.split('<ul class="soft">')[1].split("</ul>")[0]
        for mark in ("Shaded", "chance level", "below chance", "⊕", "Bars", "0.333", "3 classes"):
            assert mark in legend

    def test_of_many_classes_the_most_frequent_confusions_are_told(self):
        many = report_of(tuple(f"class {i}" for i in range(40)))
        found = Page(page(many, pictures(many)))
        assert "served: most frequent confusions" in found.text
        assert len(found.values("th", "title")) == 0
        assert any("the other" in piece and "report.json" in piece for piece in found.text)

    def test_where_nothing_is_sent_there_is_no_curve(self):
        local = report_of(local=1.0)
        assert local.curve == []
        assert len(Page(page(local, pictures(local))).values("svg", "aria-label")) == 1

    def test_without_a_surrogate_there_is_no_retention(self):
        bare = report_of(retention=False)
        assert "http_png" not in Page(page(bare, pictures(bare))).text


class TestTable:
    def test_tells_rows_tests_and_weakest_classes(self, report):
        lines = table(report).splitlines()
        row = report.row(PGN)
        assert f"{row.accuracy:.3f}" in next(line for line in lines if line.startswith(f"  {PGN} "))
        assert (f"{row.log_loss:.3f}  {row.ece:.3f}") in next(
            line for line in lines if line.startswith(f"  {PGN} ")
        )
        c = report.paired[0]
        line = next(line for line in lines if line.startswith(f"  {c.a} − {c.b}"))
        assert re.search(rf"{c.only_a} : {c.only_b}   p [<=] 0\.\d{{3}}$", line)
        assert sum(line.startswith("weakest classes of the served row: ") for line in lines) == 1

    def test_costs_take_the_place_of_pictures_where_a_price_is_known(self, report):
        assert "sent per 1,000" in table(report)
        priced = table(report_of(price=0.002))
        assert "cost per 1,000" in priced
        assert next(line for line in priced.splitlines() if line.startswith(f"  {PGN} ")).endswith(
            " 2.00"
        )
        assert next(
            line for line in priced.splitlines() if line.startswith(f"  {LOCAL} ")
        ).endswith(" 0.00")

    def test_is_no_wider_than_a_terminal_should_be(self, report):
        verdict = table(report).splitlines()
        assert (
            max(len(line) for line in verdict if not line.startswith(("verdict", "weakest"))) <= 120
        )

    def test_perfect_classes_are_not_called_weak(self, report):
        perfect = [replace(score, f1=1.0) for score in report.per_class[SERVED]]
        assert "weakest" not in table(
            replace(report, per_class=report.per_class | {SERVED: perfect})
        )


class TestJson:
    def test_has_the_keys_of_the_interface(self, report):
        found = json.loads(json.dumps(report.to_json()))
        assert {"rows", "retention", "verdict", "seconds", "seed", "versions"} <= set(found)
        assert found["verdict"] == f"{found['advice']['advice']}: {found['advice']['reason']}"
        assert found["advice"]["recommended"] in {row["key"] for row in found["rows"]}
        assert all({"name", "accuracy", "ci95", "queries"} <= set(row) for row in found["rows"])
        assert [row["name"] for row in found["rows"]] == [
            RAW,
            LOCAL,
            with_local(RAW),
            PGN,
            with_local(PGN),
            SERVED,
        ]

    def test_queries_are_those_of_fitting_and_of_the_test_pictures(self, report):
        for row in report.rows:
            assert row.queries == row.queries_fit + row.queries_test
            assert row.queries_test == round(row.sent * N)
        assert report.row(LOCAL).queries == 0

    def test_cost_is_of_serving_alone(self, report):
        assert {row.cost_per_1000 for row in report.rows if row.sent} == {None}
        priced = report_of(price=0.002)
        assert [row.cost_per_1000 for row in priced.rows] == pytest.approx(
            [2 * row.sent for row in priced.rows]
        )
        assert [p["cost_per_1000"] for p in priced.curve] == pytest.approx(
            [2 * p["sent"] for p in priced.curve]
        )

    def test_served_and_raw_are_told_class_by_class(self, report):
        found = report.to_json()
        for row in (SERVED, RAW):
            right = sum(counts.get(true, 0) for true, counts in found["confusion"][row].items())
            assert right / N == pytest.approx(report.row(row).accuracy)
            assert [score["name"] for score in found["per_class"][row]] == [EVIL, "hen", "jay"]
            assert sum(b["count"] for b in found["reliability"][row]) == N


class TestSheet:
    def test_captions_of_rows_stand_below_them(self):
        white = [Image.new("RGB", (10, 10), "white")] * 2
        plain, told = sheet([(white, "a")]), sheet([(white, "a")], ["is hen, served as jay", ""])
        assert told.height == plain.height + 2 * TEXT
        below = np.asarray(told)[GAP + TILE : GAP + TILE + TEXT]
        assert (below < 128).any()
        assert not (
            np.asarray(told)[GAP + 2 * TILE + TEXT + GAP : GAP + 2 * TILE + TEXT + GAP + TEXT] < 128
        ).any()


class TestWrite:
    def test_leaves_a_report_a_page_and_pictures(self, make_adapter, pictures_on_disk, tmp_path):
        found = report_of(names=str(pictures_on_disk[0]))
        write(tmp_path, found, columns(make_adapter(), pictures_on_disk * N))
        kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert kept == json.loads(json.dumps(found.to_json()))
        shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert len(shown.values("img", "src")) == 5 * len(found.examples)
        with Image.open(tmp_path / "steps.png") as steps:
            assert steps.size == (GAP + 5 * (TILE + GAP), GAP + 4 * (TILE + GAP + TEXT) + TEXT)


@pytest.fixture
def pictures_on_disk(pictures, tmp_path):
    path = tmp_path / "image.png"
    pictures[0].save(path)
    return [path]
