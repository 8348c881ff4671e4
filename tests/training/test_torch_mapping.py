import numpy as np
import pytest
import torch

from pgn_client.mapping import frequency as counting
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.surrogate.returned_scores import returned_scores
from pgn_client.training.torch_mapping import TorchMapping
from pgn_client.types import Answer

S, C = 12, 3
SOURCE = tuple(f"class_{i:02}" for i in range(S))
CLASSES = ("class_01", "class_04", "class_07")


def logits(n=20, spread=3.0, seed=0):
    return spread * torch.randn(n, S, generator=torch.Generator().manual_seed(seed))


def answers(logits, top_k=None, decimals=None):
    """What a server says: softmax, rounded, the best k."""
    out = []
    for row in logits.double().numpy():
        p = np.exp(row - row.max())
        p /= p.sum()
        best = np.argsort(-p, kind="stable")[: top_k or S]
        shown = p if decimals is None else p.round(decimals)
        out.append(Answer(tuple(SOURCE[i] for i in best), tuple(float(shown[i]) for i in best)))
    return out


def mapping(kind):
    rng = np.random.default_rng(1)
    if kind == "linear":
        return LabelMapping(kind, SOURCE, CLASSES, rng.normal(size=(S, C)), rng.normal(size=C))
    if kind == "identity":
        weight = np.array([[float(s == c) for c in CLASSES] for s in SOURCE])
    else:
        features = labels.log_scores(answers(logits(60)), SOURCE)
        weight = counting.blm_plus(np.exp(features), np.arange(60) % C, C)
    return LabelMapping(kind, SOURCE, CLASSES, weight, np.zeros(C))


class TestReturnedScores:
    @pytest.mark.parametrize("spread", [0.3, 3.0, 12.0])
    @pytest.mark.parametrize("decimals", [None, 2, 4])
    @pytest.mark.parametrize("top_k", [None, 1, 2, 5, 11, 12, 40])
    def test_are_what_the_client_reads_from_real_answers(self, spread, top_k, decimals):
        x = logits(spread=spread)
        expected = labels.log_scores(answers(x, top_k, decimals), SOURCE)
        found = returned_scores(x, top_k=top_k, decimals=decimals)
        assert found.dtype == torch.float32
        # a half of the floor
        np.testing.assert_allclose(found.exp().numpy(), np.exp(expected), rtol=1e-5, atol=5e-7)

    @pytest.mark.parametrize("top_k", [None, 3])
    def test_are_uniform_where_rounding_leaves_nothing(self, top_k):
        x = torch.zeros(2, S, requires_grad=True)  # 1/12 is 0 to zero decimals
        found = returned_scores(x, top_k=top_k, decimals=0)
        torch.testing.assert_close(found, torch.full((2, S), 1 / S).log())
        found.sum().backward()
        assert x.grad.isfinite().all()

    def test_are_log_probabilities_in_half_precision_too(self):
        found = returned_scores(logits().bfloat16(), top_k=4)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.exp().sum(1), torch.ones(20))

    def test_full_scores_have_the_gradient_of_a_log_softmax(self):
        x = logits(spread=1.0).requires_grad_()
        weight = torch.randn(20, S, generator=torch.Generator().manual_seed(2))
        expected = torch.autograd.grad((x.log_softmax(-1) * weight).sum(), x)[0]
        found = torch.autograd.grad((returned_scores(x) * weight).sum(), x)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_rounding_passes_gradients_straight_through(self):
        x = logits(spread=0.1).requires_grad_()  # so flat that rounding changes little
        fine, coarse = (
            torch.autograd.grad(returned_scores(x, decimals=d)[:, 0].sum(), x)[0] for d in (None, 3)
        )
        assert fine.abs().max() > 0.1
        torch.testing.assert_close(coarse, fine, rtol=0.05, atol=0.01)

    @pytest.mark.parametrize("decimals", [None, 3])
    def test_top_k_passes_gradients_to_returned_and_missing_labels(self, decimals):
        x = logits(spread=1.0).requires_grad_()
        returned_scores(x, top_k=4, decimals=decimals)[:, 0].sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad.abs().sum(1) > 0).all()

    def test_gradient_of_top_k_is_the_numerical_one(self):
        x = logits(3, spread=1.0).double()[:1].float()
        step = torch.zeros_like(x)
        step[0, int(x.argmax())] = 1e-2
        x.requires_grad_()
        found = torch.autograd.grad(returned_scores(x, top_k=4)[0, int(x.argmax())], x)[0][
            0, int(x.argmax())
        ]
        with torch.no_grad():
            up, down = (returned_scores(x + s * step, top_k=4)[0, int(x.argmax())] for s in (1, -1))
        assert found.item() == pytest.approx(((up - down) / 2e-2).item(), rel=1e-2)


class TestTorchMapping:
    @pytest.mark.parametrize("kind", ["identity", "blm+", "linear"])
    def test_is_the_mapping_of_the_client(self, kind):
        features = labels.log_scores(answers(logits()), SOURCE)
        plain = mapping(kind)
        found = TorchMapping(plain)(torch.from_numpy(features).float())
        np.testing.assert_allclose(found.detach().numpy(), plain.log_probs(features), atol=1e-4)

    @pytest.mark.parametrize("kind", ["identity", "blm+", "linear"])
    def test_goes_there_and_back(self, kind):
        plain = mapping(kind)
        again = TorchMapping(plain).mapping()
        assert (again.kind, again.source, again.classes) == (kind, SOURCE, CLASSES)
        np.testing.assert_allclose(again.weight, plain.weight, rtol=1e-6)
        assert again.weight.dtype == again.bias.dtype == np.float64

    @pytest.mark.parametrize(
        ("kind", "learns"), [("identity", False), ("blm+", False), ("linear", True)]
    )
    def test_only_the_linear_kind_learns(self, kind, learns):
        assert {p.requires_grad for p in TorchMapping(mapping(kind)).parameters()} == {learns}

    @pytest.mark.parametrize("kind", ["identity", "blm+", "linear"])
    def test_passes_gradients_to_the_logits(self, kind):
        x = logits(spread=1.0).requires_grad_()
        TorchMapping(mapping(kind))(returned_scores(x, top_k=5, decimals=3))[:, 0].sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 1e-3
