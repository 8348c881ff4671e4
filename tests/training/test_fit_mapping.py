import numpy as np
import pytest
import torch

from pgn_client.checkpoint import summary
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import seen_by_server
from pgn_client.prompting.adapter import PromptAdapter, load
from pgn_client.prompting.generator import TRUNK_WIDTH
from pgn_client.training import load_task
from pgn_client.training.examples import FittedSplit
from pgn_client.training.fit_mapping import fit_raw, knows, new_head, none_of_these, refit
from pgn_client.training.rival import same_surrogate, task_of
from pgn_client.types import Answer, ServerProfile

CARD = {
    "metrics": {"epoch": 3, "perplexity": 2.0},
    "recipe": {"augment": "none", "mapping": "auto"},
}


@pytest.fixture(scope="module")
def task(make_folder, tmp_path_factory):
    return load_task(make_folder(tmp_path_factory.mktemp("task"), train=8, val=6, test=2))


@pytest.fixture
def ask(make_backbone):
    """An endpoint that hosts the tiny ViT; labels may be renamed."""

    def build(rename=lambda name: name, top=10):
        backbone = make_backbone()

        def answer(paths, adapter):
            images = adapter([open_image(path) for path in paths])
            server = ServerProfile.parse(adapter.info["profile"])
            seen = np.stack([seen_by_server(image, server, 32) for image in images])
            with torch.inference_mode():
                scores = (
                    backbone.logits(torch.from_numpy(seen).permute(0, 3, 1, 2))
                    .softmax(1)
                    .double()
                    .numpy()
                )
            best = np.argsort(-scores, axis=1)[:, :top]
            return [
                Answer(tuple(rename(backbone.labels[i]) for i in row), tuple(p[row]))
                for row, p in zip(best, scores, strict=True)
            ]

        return answer

    return build


class TestRefit:
    def test_the_answers_decide_and_validation_tells(self, make_adapter, task, ask):
        adapter = make_adapter(card=CARD)
        found = refit(adapter, task, ask())
        assert found.info["classes"] == list(task.classes) == ["blue", "red", "white"]
        assert found.mapping.source == adapter.mapping.source  # in the surrogate's order
        log_p = found.mapping(ask()(task.val.paths, found))
        hits = (log_p.argmax(axis=1) == task.val.labels).mean()
        assert found.info["metrics"]["uint8"] == pytest.approx(hits)
        assert hits > 0.6
        assert found.info["data"]["digest"] == task.digest()
        assert found.info["metrics"]["epoch"] == 3
        assert "prompted_on" not in found.info  # other classes: nothing can have leaked

    def test_prompts_stay_as_they_are(self, make_adapter, task, ask):
        adapter = make_adapter(card=CARD)
        images = [open_image(path) for path in task.test.paths]
        for ours, theirs in zip(refit(adapter, task, ask())(images), adapter(images), strict=True):
            assert (np.asarray(ours) == np.asarray(theirs)).all()

    def test_other_labels_are_taken_as_they_come_and_no_surrogate_can_read_them(
        self, make_adapter, make_backbone, task, ask
    ):
        """Their order is not the surrogate's: reversed names would be read as other classes."""
        reverse = {f"class_{i}": f"name_{9 - i}" for i in range(10)}
        found = refit(make_adapter(card=CARD), task, ask(rename=reverse.get))
        assert found.mapping.source == tuple(f"name_{i}" for i in range(10))
        assert found.mapping.open
        with pytest.raises(ConfigurationError, match="only the endpoint has"):
            same_surrogate(make_backbone(), found)
        again = refit(found, task, ask(rename=reverse.get))
        assert again.mapping.open
        strange = [Answer(("never seen",), (1.0,), "label")]
        assert np.isfinite(found.mapping(strange)).all()  # one such image must not end a run

    def test_a_few_labels_of_the_known_ones_keep_their_order(self, make_adapter, task, ask):
        adapter = make_adapter(card=CARD)
        assert refit(adapter, task, ask(top=2)).mapping.source == adapter.mapping.source

    def test_it_can_be_saved_and_told(self, make_adapter, task, ask, tmp_path):
        from pgn_client import PromptAdapter
        from pgn_client.checkpoint import summary

        found = refit(make_adapter(card=CARD), task, ask())
        found.save(tmp_path / "x.safetensors")
        again = PromptAdapter.load(tmp_path / "x.safetensors")
        np.testing.assert_array_equal(again.mapping.weight, found.mapping.weight)
        assert "fitted" in again.info["metrics"]["mapping"]
        assert "validation" in summary(again.info)

    def test_a_kind_that_is_not_possible_is_refused(self, make_adapter, task, ask):
        with pytest.raises(ConfigurationError, match="identity mapping"):
            refit(make_adapter(card=CARD), task, ask(), kinds=("identity",))


class TestNewHead:
    @pytest.mark.parametrize("images", [7, 8, 9])
    def test_any_number_of_images_gives_a_head(self, make_adapter, task, images):
        fewer = task.limited(train=images, seed=0)
        head = new_head(make_adapter(card=CARD), fewer)
        assert head["generator.local_head.weight"].shape == (len(task.classes), TRUNK_WIDTH)

    def test_a_head_that_knows_the_classes_stays(self, make_adapter, task, ask):
        known = CARD | {"classes": list(task.classes), "mapping": None}
        adapter = make_adapter(card={k: v for k, v in known.items() if k != "mapping"})
        assert knows(adapter, task)
        found = refit(adapter, task, ask())
        for name in ("weight", "bias"):
            key = f"generator.local_head.{name}"
            assert (found._tensors[key] == adapter._tensors[key]).all()

    def test_the_same_classes_from_other_pictures_are_not_the_checkpoints_own_data(
        self, make_adapter, task, ask
    ):
        card = CARD | {"classes": list(task.classes)}
        own, other = (
            make_adapter(card=card | {"data": task.card() | {"digest": d}})
            for d in (task.digest(), "another")
        )
        folder = task.train.paths[0].parents[2]
        assert [task_of(refit(adapter, task, ask()), folder)[1] for adapter in (own, other)] == [
            True,
            False,
        ]

    def test_that_of_an_import_knows_none(self, make_adapter, task):
        adapter = make_adapter(
            card=CARD
            | {"classes": list(task.classes), "imported": {"file": "x.pt", "sha256": "ab"}}
        )
        assert not knows(adapter, task)

    def test_a_new_one_reads_the_trunk(self, make_adapter, task):
        """Colours are easy: even a trunk that learnt nothing tells them apart."""
        adapter = make_adapter(card=CARD)
        head = new_head(adapter, task)
        assert head["generator.local_head.weight"].shape == (3, 128)
        with_head = adapter.with_mapping(adapter.mapping, head)
        _, local = FittedSplit.of(task.val, with_head).rendered(with_head)
        assert (local.argmax(axis=1) == task.val.labels).mean() > 0.8


def hosted(make_backbone, kind="probabilities"):
    """An endpoint that hosts the tiny ViT and sees images as they are, or answers with their mean
    colours.
    """
    backbone = make_backbone()

    def answer(paths, adapter=None):
        seen = np.stack([np.asarray(open_image(path).resize((32, 32))) for path in paths])
        if kind == "embedding":
            colours = seen.mean(axis=(1, 2)) * [1e3, 1.0, 1e-3]
            return [Answer(("dim 0", "dim 1", "dim 2"), tuple(row), "embedding") for row in colours]
        with torch.inference_mode():
            scores = (
                backbone.logits(torch.from_numpy(seen).permute(0, 3, 1, 2))
                .softmax(1)
                .double()
                .numpy()
            )
        return [Answer(tuple(backbone.labels), tuple(row)) for row in scores]

    return answer


class TestRaw:
    @pytest.mark.parametrize("kind", ["probabilities", "embedding"])
    def test_pictures_as_they_are_are_read_by_a_mapping_alone(
        self, make_backbone, task, kind, tmp_path
    ):
        ask = hosted(make_backbone, kind)
        fitted = fit_raw(task, ask)
        hits = (fitted.mapping(ask(task.val.paths)).argmax(axis=1) == task.val.labels).mean()
        assert fitted.info["metrics"]["uint8"] == pytest.approx(hits)
        assert hits > 0.6
        fitted.save(tmp_path / "raw.safetensors")
        again = load(tmp_path / "raw.safetensors")
        np.testing.assert_array_equal(again.mapping.weight, fitted.mapping.weight)
        picture = open_image(task.test.paths[0])
        assert again.prepare([picture])[0].image is picture
        assert "as they are" in summary(again.info)

    def test_it_is_no_prompt(self, make_backbone, task, tmp_path):
        fit_raw(task, hosted(make_backbone)).save(tmp_path / "raw.safetensors")
        with pytest.raises(CheckpointError, match="mapping alone"):
            PromptAdapter.load(tmp_path / "raw.safetensors")


class TestNoneOfThese:
    def test_so_many_validation_pictures_are_refused_and_no_more(self):
        best = np.linspace(0.5, 0.99, 50)
        log_p = np.log(np.stack([best, 1 - best], axis=1))
        below = none_of_these(log_p, 0.1)
        assert (best < below).mean() == pytest.approx(0.1, abs=0.021)
        assert (best < below).sum() <= 5
        assert none_of_these(log_p, 0.0) == pytest.approx(0.5)

    def test_nothing_is_refused_unless_it_is_asked_for(self, make_adapter, task, ask):
        assert "none_below" not in refit(make_adapter(card=CARD), task, ask()).info
        assert (
            0 < refit(make_adapter(card=CARD), task, ask(), none_below=0.2).info["none_below"] < 1
        )
