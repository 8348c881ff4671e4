import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch
from timm.models import SwinTransformer
from torch.nn import functional as F

from pgn_client.errors import CheckpointError, ConfigurationError, PGNError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.frequency import blm_plus
from pgn_client.mapping.fusion import best_fusion
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.methods import PGN, REGISTRY, InputIndependent, Rates, RGBMethod, Setting
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.degradation import Wire, jpeg
from pgn_client.surrogate.returned_scores import returned_scores
from pgn_client.training import fit, fit_white_box, load_task, recipe
from pgn_client.training.calibrate import perplexity
from pgn_client.training.examples import Examples
from pgn_client.training.loop import Loop, smoothed_nll
from pgn_client.training.recipe import PAPER, from_card
from pgn_client.training.rival import train_rival
from pgn_client.training.run import Run, optimisation
from pgn_client.training.torch_mapping import TorchMapping
from pgn_client.types import Answer, ServerProfile

NAMES = [
    "blue",
    "red",
    "white",
    *(f"other {i}" for i in range(7)),
]  # of the backbone: the task's classes are among them
SHORT = {"epochs": 3, "trunk_epochs": 2, "library_size": 8}


@pytest.fixture(scope="module")
def backbone(make_backbone):
    return make_backbone(labels=NAMES, depth=1)


@pytest.fixture(scope="module")
def task(make_folder, tmp_path_factory):
    return load_task(make_folder(tmp_path_factory.mktemp("task"), train=8, val=4))


@pytest.fixture
def train(task, backbone, tmp_path):
    """Train shortly: ``train(epochs=2)``, with options of a recipe or of ``fit``; the state is kept
    in ``tmp_path``.
    """

    def run(preset="default", **options):
        numbers = {k: options.pop(k) for k in list(options) if k in asdict(recipe())}
        kept = {"state": tmp_path / "state.pt", "mapping": "identity"} | options
        adapter = fit(
            kept.pop("task", task),
            kept.pop("backbone", backbone),
            recipe=recipe(preset, **SHORT | numbers),
            **kept,
        )
        if kept["state"] and not adapter.info["interrupted"]:
            kept["state"].unlink()  # as the command line does once the checkpoint is saved
        return adapter

    return run


@pytest.fixture
def stop(monkeypatch):
    """Make the nth optimiser step of the run fail."""

    def at(step, error=KeyboardInterrupt):
        taken, original = [], Run.step

        def failing(self, loss):
            taken.append(1)
            if len(taken) == step:
                raise error
            original(self, loss)

        monkeypatch.setattr(Run, "step", failing)

    yield at
    monkeypatch.undo()


def tensors(adapter):
    return adapter._tensors


def pictures(split):
    return [open_image(path) for path in split.paths]


def served(adapter, backbone, split):
    """Accuracy over the images that would be sent, through the server's geometry, the model and
    the mapping.
    """
    profile = ServerProfile.parse(adapter.info["profile"])
    seen = [
        seen_by_server(image, profile, backbone.input_size) for image in adapter(pictures(split))
    ]
    p = backbone.logits(torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)).softmax(-1)
    log_p = adapter.mapping([Answer(backbone.labels, tuple(row)) for row in p.double().tolist()])
    return (log_p.argmax(1) == split.labels).mean(), log_p


@pytest.fixture(scope="module")
def learnt(task, backbone):
    return fit(task, backbone, recipe=recipe(epochs=12, trunk_epochs=8), mapping="identity")


class TestLearning:
    def test_a_prompt_alone_makes_a_random_model_name_the_colours(self, learnt, task, backbone):
        raw = backbone.logits(
            torch.from_numpy(
                np.stack(
                    [
                        seen_by_server(image, ServerProfile("direct"), 32)
                        for image in pictures(task.val)
                    ]
                )
            ).permute(0, 3, 1, 2)
        )[:, :3].argmax(1)
        assert (raw.numpy() == task.val.labels).mean() < 0.7
        assert learnt.info["mapping"]["kind"] == "identity"  # nothing but the prompt has learnt
        assert served(learnt, backbone, task.val)[0] >= 0.9

    def test_validation_loss_falls(self, learnt):
        losses = [epoch["log_loss"] for epoch in learnt.info["metrics"]["history"]]
        assert len(losses) == 12
        assert losses[-1] < 0.7 * losses[0]

    def test_accuracy_on_the_card_is_what_is_served(self, learnt, task, backbone):
        metrics = learnt.info["metrics"]
        assert metrics["uint8"] == pytest.approx(served(learnt, backbone, task.val)[0])
        assert (metrics["split"], metrics["n"]) == ("val", 12)

    def test_latent_accuracy_survives_rounding(self, learnt):
        metrics = learnt.info["metrics"]
        assert metrics["latent"] == metrics["uint8"]

    def test_local_head_learns_the_task_too(self, learnt, task):
        local = np.stack([p.local_log_probs for p in learnt.prepare(pictures(task.val))])
        assert learnt.info["metrics"]["local"] == (local.argmax(1) == task.val.labels).mean() >= 0.9

    def test_fusion_on_the_card_is_the_best_on_validation(self, learnt, task, backbone):
        local = np.stack([p.local_log_probs for p in learnt.prepare(pictures(task.val))])
        assert learnt.info["fusion"] == best_fusion(
            served(learnt, backbone, task.val)[1], local, task.val.labels
        )
        assert learnt.info["metrics"]["fused"] >= max(
            learnt.info["metrics"][k] for k in ("uint8", "local")
        )

    def test_the_linear_mapping_learns_along(self, task, backbone):
        rates = Rates(library=0.0, bias=0.0, mixture=0.0, trunk=0.0, mapping=0.05)
        numbers = {
            "epochs": 6,
            "trunk_epochs": 0,
            "warm_mapping": False,
            "rates": rates,
            "augment": "none",
        }
        history = fit(task, backbone, recipe=recipe(**numbers), mapping="linear", seed=1).info[
            "metrics"
        ]["history"]
        # it starts from ln 3, at zero
        assert history[0]["log_loss"] > 0.7 > history[-1]["log_loss"]

    @pytest.mark.parametrize("preset", ["default", "paper"])
    @pytest.mark.parametrize(
        "method", [name for name, m in REGISTRY.items() if issubclass(m, RGBMethod)]
    )
    def test_every_preset_and_method_runs_and_saves(self, train, tmp_path, preset, method):
        adapter = train(preset, epochs=1, method=method)
        adapter.save(tmp_path / "a")
        assert PromptAdapter.load(tmp_path / "a").info["method"] == method

    @pytest.mark.parametrize(
        ("method", "reached"), [("pgn", False), ("input_independent", True), ("padding", True)]
    )
    def test_a_trunk_that_no_prompt_teaches_is_always_taught_by_its_head(
        self, train, method, reached
    ):
        """In the published recipe PGN's head keeps off the trunk; a rival's trunk would otherwise
        stay random.
        """
        numbers = {"epochs": 2, "trunk_epochs": 0, "head_teaches_trunk": False, "warmup_epochs": 0}
        trunks = []
        for weight in (0.0, 1.0):
            arrays = tensors(train(method=method, local_weight=weight, **numbers))
            trunks.append(
                np.concatenate(
                    [v.ravel() for k, v in arrays.items() if k.startswith("generator.trunk")]
                )
            )
        assert (trunks[0] != trunks[1]).any() == reached

    def test_the_input_independent_prompt_is_the_same_for_all(self, train, task):
        adapter = train(method="input_independent", profile=ServerProfile("direct"))
        rings = {np.asarray(image)[:8].tobytes() for image in adapter(pictures(task.val))}
        assert len(rings) == 1

    @pytest.mark.parametrize("steps", range(1, 7))
    def test_runs_of_any_length_have_a_schedule(self, train, steps):
        assert len(train(epochs=steps, batch_size=64).info["metrics"]["history"]) == steps


class TestLatentLibrary:
    @pytest.mark.parametrize("inversion", ["bounded", "pseudo_inverse"])
    def test_trains_and_its_adapter_renders_as_measured(
        self, train, task, backbone, tmp_path, inversion
    ):
        train(library="latent", inversion=inversion).save(tmp_path / "a")
        adapter = PromptAdapter.load(tmp_path / "a")
        assert (adapter.info["library"]["kind"], adapter.info["inversion"]) == ("latent", inversion)
        assert served(adapter, backbone, task.val)[0] == pytest.approx(
            adapter.info["metrics"]["uint8"]
        )

    def test_reachable_rows_lose_nothing_where_latent_rows_do(self, train):
        fast = replace(recipe().rates, library=100.0)  # latent rows run far away within a few steps
        runs = {kind: train(library=kind, epochs=3, rates=fast) for kind in ("latent", "reachable")}
        lost = {kind: adapter.info["reach"]["bounded"] for kind, adapter in runs.items()}
        assert lost["reachable"] < 0.005 < 0.1 < lost["latent"]

    @pytest.mark.parametrize("library", ["smooth", "luma"])
    def test_other_libraries_of_pixels_deploy_exactly(self, train, task, backbone, library):
        adapter = train(library=library, epochs=2)
        assert adapter.info["inversion"] == "exact"
        assert served(adapter, backbone, task.val)[0] == pytest.approx(
            adapter.info["metrics"]["uint8"]
        )

    def test_carries_the_patch_embedding_along(self, train, backbone):
        found = tensors(train(library="latent", epochs=1))
        assert (found["embedding.weight"] == backbone.embedding.weight.numpy()).all()
        assert (found["embedding.bias"] == backbone.embedding.bias.numpy()).all()

    def test_a_pixel_library_needs_none(self, train):
        adapter = train(epochs=1)
        assert adapter.info["inversion"] == "exact"
        assert not [name for name in tensors(adapter) if name.startswith("embedding.")]


@pytest.fixture(scope="module", params=["convnext", "swin"])
def odd(request):
    torch.manual_seed(0)
    if request.param == "convnext":
        model = timm.create_model("test_convnext", pretrained=False, num_classes=10)
    else:
        options = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}
        model = SwinTransformer(64, 4, num_classes=10, **options)
    return Backbone(model, name="odd", mean=(0.5,) * 3, std=(0.5,) * 3, labels=NAMES, input_size=64)


class TestOtherStems:
    """No token of such a model is a pixel's: training goes through the rendered canvas."""

    @pytest.mark.parametrize("library", ["pixel", "smooth"])
    def test_a_prompt_is_trained_and_served_as_measured(self, train, odd, library):
        adapter = train(backbone=odd, library=library, epochs=2)
        assert adapter.info["backbone"]["patch_embedding_sha256"] is None
        assert adapter.canvas.patch == 16
        assert adapter.info["metrics"]["latent"] == pytest.approx(
            adapter.info["metrics"]["uint8"], abs=0.1
        )

    @pytest.mark.parametrize("library", ["latent", "reachable"])
    def test_a_latent_library_is_refused(self, train, odd, library):
        with pytest.raises(
            ConfigurationError, match=f"got {library} for odd, which is not a plain ViT"
        ):
            train(backbone=odd, library=library)

    def test_a_white_box_that_reads_inside_is_refused(self, odd, task):
        with pytest.raises(ConfigurationError, match="vpt_deep: got odd, expected a plain ViT"):
            fit_white_box(task, odd, "vpt_deep")


class TestWire:
    def test_what_is_measured_took_the_wire(self, train, task, backbone):
        """Behind a brutal JPEG the card tells what such a server answers, not what a lossless one
        does.
        """
        adapter = train(epochs=2, wire=Wire.parse("jpeg:5:420+shift:2"))
        assert adapter.info["recipe"]["wire"] == "jpeg:5:420+shift:2"
        lossy = [jpeg(image, 5, 2) for image in adapter(pictures(task.val))]
        seen = np.stack([seen_by_server(image, backbone.profile, 32) for image in lossy])
        with torch.no_grad():
            logits = (
                backbone.logits(torch.from_numpy(seen).permute(0, 3, 1, 2))
                .double()
                .log_softmax(1)
                .numpy()
            )
        hits = adapter.mapping.log_probs(logits).argmax(1) == task.val.labels
        assert adapter.info["metrics"]["uint8"] == pytest.approx(hits.mean())

    def test_latent_rows_cannot_take_it(self, train):
        with pytest.raises(ConfigurationError, match="got latent for the wire uint8"):
            train(library="latent", wire=Wire())

    def test_a_shift_off_the_canvas_is_refused(self, train):
        with pytest.raises(
            ConfigurationError,
            match="got shift:16, expected less than half of the canvas's 32 pixels",
        ):
            train(wire=Wire(shift=16))

    def test_a_rival_takes_the_same(self, train, task, backbone):
        adapter = train(epochs=1, wire=Wire.parse("jpeg:50:444"))
        rival = train_rival(adapter, task, backbone)
        assert rival.info["recipe"] == adapter.info["recipe"]


class TestWhatIsTouched:
    def test_the_backbone_stays_as_it_is(self, train, backbone):
        before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
        train()
        assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())

    def test_a_backbone_that_changes_meanwhile_is_noticed(self, train, make_backbone, monkeypatch):
        victim, original = make_backbone(labels=NAMES, depth=1), Loop.train_epoch

        def meddling(self, *arguments):
            original(self, *arguments)
            victim.model.head.bias.data[0] += 1

        monkeypatch.setattr(Loop, "train_epoch", meddling)
        with pytest.raises(PGNError, match="its weights changed"):
            train(backbone=victim)

    def test_test_pictures_are_not_read(self, train, make_folder, tmp_path):
        with_test = load_task(make_folder(tmp_path / "data", train=4, val=2, test=2))
        assert len(with_test.test) == 6
        shutil.rmtree(tmp_path / "data" / "test")
        train(task=with_test, epochs=1)

    def test_validation_pictures_teach_nothing(
        self, train, task, make_folder, tmp_path, monkeypatch
    ):
        """With other validation images the epochs go the same way; what is kept and chosen may
        differ.
        """
        monkeypatch.setattr(Run, "restore_best", lambda self: None)
        other = load_task(make_folder(tmp_path / "data", train=8, val=7))
        first, second = (tensors(train(task=t, epochs=2, mapping="linear")) for t in (task, other))
        assert all(
            (first[k] == second[k]).all() for k in first if k.startswith(("generator.", "library."))
        )

    def test_no_mapping_is_fitted_on_validation_pictures(self, train, monkeypatch):
        fitted, original = [], labels.fit

        def recording(features, targets, *rest, **options):
            fitted.append(len(targets))
            return original(features, targets, *rest, **options)

        monkeypatch.setattr(labels, "fit", recording)
        train(mapping="blm+", epochs=1)
        # the first, after the epoch, the last, and that with augmented copies
        assert fitted == [24, 24, 24, 24 * 5]


class TestSeed:
    def test_the_same_seed_gives_the_same_checkpoint(self, train, tmp_path):
        prints = []
        for name in ("a", "b"):
            torch.rand(3)  # what was drawn before does not matter
            adapter = train(seed=4)
            adapter.save(tmp_path / name)
            prints.append(adapter.info["fingerprint"])
        assert prints[0] == prints[1]

    def test_another_seed_gives_another(self, train):
        a, b = (tensors(train(seed=seed, epochs=1))["library.rows"] for seed in (0, 1))
        assert (a != b).any()


CASES = {
    "linear": {"mapping": "linear"},
    "blm+": {"mapping": "blm+"},
    "identity": {"mapping": "identity"},
    "paper": {"preset": "paper", "batch_size": 16},
    "IIP": {"method": "input_independent"},
    "latent": {"library": "latent"},
}


class TestInterruption:
    @pytest.mark.parametrize(
        ("case", "error"),
        [*((case, KeyboardInterrupt) for case in CASES), ("identity", RuntimeError)],
    )
    def test_resumed_equals_uninterrupted(self, train, stop, tmp_path, case, error):
        whole = train(**CASES[case], state=None)
        stop(4, error)  # the first image batches of the second epoch are done
        if error is KeyboardInterrupt:
            assert train(**CASES[case]).info["interrupted"] is True
        else:
            with pytest.raises(RuntimeError):
                train(**CASES[case])
        stop(0)
        resumed = train(**CASES[case], resume=True)
        for name, adapter in (("a", whole), ("b", resumed)):
            adapter.save(tmp_path / name)
        assert all((tensors(whole)[k] == tensors(resumed)[k]).all() for k in tensors(whole))
        assert whole.info["fingerprint"] == resumed.info["fingerprint"]

    def test_ctrl_c_keeps_the_best_epoch_and_says_so(self, train, stop, tmp_path):
        stop(4)
        adapter = train()
        assert adapter.info["interrupted"] is True
        assert len(adapter.info["metrics"]["history"]) == adapter.info["metrics"]["epoch"] == 1
        best = torch.load(tmp_path / "state.pt", weights_only=True)["run"]["best"]["model"]
        assert all((tensors(adapter)[k] == v.numpy()).all() for k, v in best.items())

    def test_ctrl_c_before_the_first_epoch_is_done_leaves_nothing(self, train, stop, tmp_path):
        stop(1)
        with pytest.raises(KeyboardInterrupt):
            train()
        assert list(tmp_path.iterdir()) == []

    def test_a_whole_run_says_that_it_is_one_and_keeps_its_state_until_it_is_saved(
        self, task, backbone, tmp_path
    ):
        state = tmp_path / "state.pt"
        adapter = fit(task, backbone, recipe=recipe(**SHORT), mapping="identity", state=state)
        assert adapter.info["interrupted"] is False
        assert list(tmp_path.iterdir()) == [state]

    def test_what_is_left_of_a_run_is_not_run_over(self, train, stop):
        stop(4)
        train()
        stop(0)
        with pytest.raises(
            ConfigurationError,
            match=r"state\.pt is left over from an unfinished run; continue it with --resume",
        ):
            train()

    @pytest.mark.parametrize(
        ("other", "named"),
        [
            ({"seed": 1}, "seed"),
            ({"epochs": 4}, "recipe"),
            ({"mapping": "blm+"}, "recipe"),
            ({"top_k": 3}, "recipe"),
            ({"layout": "corner"}, "generator, layout"),
            ({"method": "input_independent"}, "method"),
            ({"library": "latent"}, "inversion, library"),
            ({"profile": ServerProfile("resize_crop", 36, 32)}, "profile"),
        ],
    )
    def test_resuming_with_other_options_names_the_difference(self, train, stop, other, named):
        stop(4)
        train()
        stop(0)
        with pytest.raises(CheckpointError, match=rf"of another run \(it differs in {named}\)"):
            train(resume=True, **other)

    def test_resuming_with_other_pictures_names_the_data(self, train, stop, make_folder, tmp_path):
        stop(4)
        train()
        stop(0)
        with pytest.raises(CheckpointError, match="it differs in data"):
            train(resume=True, task=load_task(make_folder(tmp_path / "more", train=7, val=4)))

    def test_resuming_what_is_not_there_starts_anew(self, train):
        assert (
            tensors(train(resume=True))["library.rows"] == tensors(train())["library.rows"]
        ).all()

    @pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut"])
    def test_a_damaged_state_is_refused_in_one_line(self, train, tmp_path, content):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(
            CheckpointError,
            match=r"state\.pt: cannot be read \(.*\); delete it and train again",
        ) as error:
            train(resume=True)
        assert "\n" not in str(error.value)


class TestSelection:
    def run(self):
        model = PGN.create(Setting(Canvas.build(4, 2, "rows:1"), 2, 3, library_size=2))
        start = LabelMapping("linear", ("a", "b"), ("a", "b"), np.eye(2), np.zeros(2))
        mapping = TorchMapping(start)
        return Run(model, mapping, *optimisation(model, mapping, recipe(epochs=5), 5))

    def judge(self, run, *right):
        """End an epoch in which the four validation images' targets had these probabilities."""
        with torch.no_grad():
            run.model.library.rows.fill_(run.epoch + 1)
        p = torch.tensor(right)
        run.judge(torch.stack([p, 1 - p], dim=1).log(), torch.zeros(len(right), dtype=torch.long))

    def kept(self, run):
        run.restore_best()
        return int(run.model.library.rows.flatten()[0])

    def test_the_most_accurate_epoch_is_kept(self):
        run = self.run()
        for right in ([0.9, 0.9, 0.1, 0.1], [0.6, 0.6, 0.6, 0.4], [0.9, 0.9, 0.4, 0.4]):
            self.judge(run, *right)
        assert self.kept(run) == 2

    def test_among_equals_the_lower_loss_is_kept(self):
        run = self.run()
        for right in ([0.6, 0.6, 0.6, 0.4], [0.9, 0.9, 0.9, 0.4], [0.8, 0.8, 0.8, 0.4]):
            self.judge(run, *right)
        assert self.kept(run) == 2

    def test_of_the_same_the_first_is_kept(self):
        run = self.run()
        for _ in range(3):
            self.judge(run, 0.6, 0.6)
        assert self.kept(run) == 1

    def test_history_holds_accuracy_and_log_loss(self):
        run = self.run()
        self.judge(run, 0.8, 0.5001, 0.2)
        expected = -np.log([0.8, 0.5001, 0.2]).mean()
        assert run.history == [
            {"accuracy": pytest.approx(2 / 3), "log_loss": pytest.approx(expected, rel=1e-5)}
        ]

    def test_later_steps_do_not_reach_what_is_kept(self):
        run = self.run()
        self.judge(run, 0.9, 0.9)
        with torch.no_grad():
            run.model.library.rows.fill_(9)
        assert self.kept(run) == 1

    def test_without_an_epoch_there_is_nothing_to_keep(self):
        with pytest.raises(ConfigurationError, match="no epoch was finished"):
            self.run().restore_best()

    def test_divergence_is_told_with_a_remedy(self):
        with pytest.raises(
            ConfigurationError,
            match=r"loss of nan in epoch 1.*lower "
            r"learning rates",
        ):
            self.judge(self.run(), float("nan"), 0.5)

    def test_a_run_keeps_the_epoch_that_the_judge_prefers(self, train, monkeypatch):
        original = Run.judge

        def favouring_the_second(self, log_p, targets):
            wrong = (targets + (self.epoch != 1)) % 3
            original(self, F.one_hot(wrong, 3).float().mul(0.9).add(0.03).log(), targets)

        monkeypatch.setattr(Run, "judge", favouring_the_second)
        assert train().info["metrics"]["epoch"] == 2


class TestMapping:
    def test_flm_is_fitted_once_and_ilm_after_each_epoch(self, train, monkeypatch):
        fitted, fit_labels = [], labels.fit

        def spy(*args, **options):
            fitted.append(options["kinds"])
            return fit_labels(*args, **options)

        monkeypatch.setattr(labels, "fit", spy)
        counts = {}
        for kind in ("flm", "ilm"):
            fitted.clear()
            assert train(mapping=kind, epochs=3).info["mapping"]["kind"] == kind
            counts[kind] = len(fitted)
        assert counts["flm"] == 1  # on the answers to neutral canvases
        assert counts["ilm"] >= 1 + 3

    def test_blm_plus_is_fitted_anew_after_each_epoch(self, train, monkeypatch):
        original, counts = Run.refit, []

        def recording(self, seen, seed):
            original(self, seen, seed)
            features, targets = (torch.cat(parts).numpy() for parts in zip(*seen, strict=True))
            counts.append(len(targets))
            expected = blm_plus(np.exp(features.astype(np.float64)), targets, 3)
            np.testing.assert_allclose(self.mapping.weight.numpy(), expected, rtol=1e-6)

        monkeypatch.setattr(Run, "refit", recording)
        train(mapping="blm+")
        assert counts == [24, 24, 24]

    def test_refit_is_a_fit_on_the_epochs_answers(self):
        run = TestSelection().run()
        start = LabelMapping("blm+", ("a", "b"), ("x", "y"), np.full((2, 2), 0.5), np.zeros(2))
        run.mapping = TorchMapping(start)
        logits, targets = (
            torch.randn(10, 2, generator=torch.Generator().manual_seed(0)),
            torch.arange(10) % 2,
        )
        features = returned_scores(logits)
        run.refit([(features[:6], targets[:6]), (features[6:], targets[6:])], seed=0)
        expected = blm_plus(features.double().exp().numpy(), targets.numpy(), 2)
        np.testing.assert_allclose(run.mapping.weight.numpy(), expected, rtol=1e-6)

    def test_auto_passes_over_the_identity_between_other_names(self, task, make_backbone):
        assert fit(task, make_backbone(), recipe=recipe(**SHORT)).info["mapping"]["kind"] in (
            "blm+",
            "linear",
        )

    @pytest.mark.parametrize(
        "options", [{"top_k": 2}, {"decimals": 2}, {"top_k": 1, "decimals": 1}]
    )
    def test_poor_answers_train_too(self, train, options):
        assert train(**options).info["recipe"].items() >= options.items()


@pytest.fixture(scope="module")
def info(task, backbone):
    return fit(
        task, backbone, recipe=recipe(**SHORT), profile=ServerProfile("resize_crop", 36, 32), seed=3
    ).info


class TestCard:
    def test_is_json(self, info):
        assert json.loads(json.dumps(info)) == info

    def test_tells_the_geometry(self, info, backbone):
        assert (info["profile"], info["layout"]) == ("resize_crop:36:32", "ring")
        assert info["backbone"]["patch_embedding_sha256"] == backbone.embedding.sha256()
        assert info["generator"] == {"resolution": 16}  # no more than the image's box

    def test_tells_classes_data_and_seed(self, info, task):
        assert info["classes"] == list(task.classes)
        assert info["data"] == task.card()
        assert info["seed"] == 3

    def test_recipe_comes_back_from_it(self, info):
        assert from_card(json.loads(json.dumps(info["recipe"]))) == recipe(**SHORT)

    def test_without_a_profile_the_backbones_own_is_taken(self, task, make_backbone):
        own = make_backbone(labels=NAMES, depth=1, profile=ServerProfile("resize_crop", 37, 32))
        assert (
            fit(task, own, recipe=recipe(**SHORT | {"epochs": 1})).info["profile"]
            == "resize_crop:37:32"
        )


class TestRefusal:
    @pytest.mark.parametrize(
        ("options", "known"),
        [
            ({"method": "vpt"}, "pgn, input_independent"),
            ({"library": "rgb"}, "pixel, smooth, luma, latent, reachable"),
            ({"layout": "frame"}, "ring, corner, full, rows:N"),
            ({"inversion": "magic"}, "bounded, pseudo_inverse"),
            ({"mapping": "nearest"}, "identity.*blm.*linear"),
            ({"augment": "turn"}, "none, shift, flip, dihedral, paper"),
            ({"profile": ServerProfile("resize_crop", 256, 224)}, "32 px"),
        ],
    )
    def test_of_an_unknown_option_tells_the_known_ones(self, train, options, known):
        with pytest.raises(ConfigurationError, match=known):
            train(**options)

    def test_of_an_identity_between_other_names(self, train, make_backbone):
        with pytest.raises(ConfigurationError, match="expected source labels"):
            train(mapping="identity", backbone=make_backbone())


class TestRecipe:
    def test_overrides_replace_single_numbers(self):
        assert asdict(recipe(epochs=3)) == asdict(recipe()) | {"epochs": 3}

    def test_none_overrides_nothing(self):
        assert recipe(epochs=None, augment=None) == recipe()

    def test_paper_is_the_published_one(self):
        p = recipe("paper")
        assert (p.optimiser, p.epochs, p.batch_size, p.warmup_epochs) == ("sgd", 500, 128, 50)
        assert (p.library_size, p.resolution, p.augment, p.label_smoothing) == (
            256,
            224,
            "paper",
            0.0,
        )
        assert {p.rates.library, p.rates.bias, p.rates.mixture, p.rates.trunk} == {0.1}

    def test_warm_up_shrinks_with_a_shorter_run(self):
        assert recipe("paper", epochs=20).warmup_epochs == 2
        assert recipe("paper", epochs=51).warmup_epochs == 50

    def test_an_unknown_preset_is_told_the_known_ones(self):
        with pytest.raises(ConfigurationError, match=r"'fast'.*default, small, paper"):
            recipe("fast")

    @pytest.mark.parametrize("name", ["epochs", "batch_size", "library_size", "resolution"])
    def test_a_number_below_one_is_refused(self, name):
        with pytest.raises(
            ConfigurationError,
            match=f"{name} 0, expected at least {2 if name == 'batch_size' else 1}",
        ):
            recipe(**{name: 0})

    def test_an_unknown_optimiser_is_told_the_known_ones(self):
        with pytest.raises(ConfigurationError, match=r"'adam'.*adamw or sgd"):
            recipe(optimiser="adam")

    def test_rates_and_all_come_back_from_a_card(self):
        card = json.loads(json.dumps(asdict(PAPER) | {"mapping": "auto", "top_k": None}))
        assert from_card(card) == PAPER


class TestSchedule:
    def rates(self, chosen, steps, method=PGN):
        """Rate of each group in each step."""
        model = method.create(Setting(Canvas.build(4, 2, "rows:1"), 2, 3, library_size=2))
        mapping = TorchMapping(
            LabelMapping("linear", ("a", "b"), ("a", "b"), np.eye(2), np.zeros(2))
        )
        optimiser, schedule = optimisation(model, mapping, chosen, steps)
        out = []
        for _ in range(steps):
            out.append([group["lr"] for group in optimiser.param_groups])
            optimiser.step()
            schedule.step()
        return np.array(out)

    def test_the_published_one_warms_up_linearly_then_falls_as_a_cosine_to_a_hundredth(self):
        rates = self.rates(recipe("paper", epochs=100, warmup_epochs=10), 1000) / 0.1
        assert (rates == rates[:, :1]).all()
        np.testing.assert_allclose(rates[:100, 0], np.arange(1, 101) / 100)
        t = np.arange(900) / 900
        np.testing.assert_allclose(rates[100:, 0], 0.01 + 0.99 * (1 + np.cos(np.pi * t)) / 2)

    def test_ours_peaks_at_the_recipes_rates_after_a_fifth(self):
        chosen = recipe()
        rates = self.rates(chosen, 999)
        r = chosen.rates
        np.testing.assert_allclose(
            rates.max(0), [r.library, r.bias, r.mixture, r.trunk, r.trunk, r.mapping], rtol=1e-6
        )
        assert set(rates.argmax(0)) == {199}
        assert (rates[-1] < 1e-3 * rates.max(0)).all()

    def test_a_mute_trunk_gives_the_mixture_no_rate(self):
        assert self.rates(recipe(), 3, InputIndependent).shape == (3, 4)


class TestLoss:
    @pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
    def test_is_the_smoothed_cross_entropy(self, smoothing):
        logits, targets = torch.randn(7, 4), torch.arange(7) % 4
        expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        torch.testing.assert_close(
            smoothed_nll(logits.log_softmax(1), targets, smoothing), expected
        )


class TestPerplexity:
    def of(self, bias):
        model = InputIndependent.create(Setting(Canvas.build(4, 2, "rows:1"), 2, 3, library_size=8))
        with torch.no_grad():
            model.generator.mixture.bias.copy_(bias.flatten())
        return perplexity(
            model, Examples(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3).long()), 16
        )

    def test_of_a_flat_mixture_is_the_number_of_rows(self):
        assert self.of(torch.zeros(2, 8)) == pytest.approx(8, rel=1e-5)

    def test_of_a_single_row_is_one(self):
        assert self.of(torch.eye(8)[:2] * 1000) == pytest.approx(1)

    def test_of_two_equal_rows_is_two(self):
        assert self.of((torch.arange(8) < 2).expand(2, 8) * 1000.0) == pytest.approx(2)
