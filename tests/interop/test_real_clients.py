"""Clients that we did not write get from our server what our own format answers for the same
image.
"""

from itertools import pairwise

import numpy as np
import pytest

from tests.interop.conftest import asked, drive

# an environment may have to be made first
pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

SET = ("tabby", "goldfish", "koala", "slug", "lion")  # classes of the bundled model, in no order


def client(package, driver):
    """Return a fixture: a function that runs one task of a real client, on the image unless told
    otherwise.
    """

    @pytest.fixture
    def ask(ours, picture):
        def run(task, *, url=ours, picture=picture, **given):
            return drive(package, driver, url, picture, labels=SET, **given)[task]

        return run

    return ask


hub = client("huggingface_hub", "hf_hub")
triton = client("tritonclient", "triton_http")
openai = client("openai", "openai_sdk")
boto3 = client("boto3", "sagemaker_runtime")
requests = client("requests", "plain_requests")
kserve = client("kserve", "kserve_client")


@pytest.fixture
def in_order(truth, model):
    """The true score of every class, in the model's order."""
    scores = dict(zip(*truth, strict=True))
    return [scores[label] for label in model["classes"]]


@pytest.fixture
def logits_by_label(truth):
    """The logarithms of the true scores: they differ from logits by one constant."""
    return {label: float(np.log(score)) for label, score in zip(*truth, strict=True)}


def agree(found, labels, scores):
    """Check pairs of label and score against the truth, order included."""
    assert [label for label, _ in found] == list(labels)
    assert [score for _, score in found] == pytest.approx(list(scores), rel=1e-3, abs=1e-6)


def among(truth, labels):
    """Return the true ranking of a closed set: (labels, scores that sum to 1)."""
    ranked = [(label, score) for label, score in zip(*truth, strict=True) if label in labels]
    total = sum(score for _, score in ranked)
    return [label for label, _ in ranked], [score / total for _, score in ranked]


def differ_by_a_constant(found, logarithms):
    """Check that numbers are logits, of which only the differences are known here."""
    differences = np.subtract(found, logarithms)
    assert np.ptp(differences) == pytest.approx(0, abs=1e-3)


def test_the_picture_tells_the_classes_apart(truth):
    assert len(truth[0]) == 200
    assert all(first > second + 0.01 for first, second in pairwise(truth[1][:6]))


@pytest.mark.parametrize("task", ["image_classification", "image_classification_of_a_file"])
def test_huggingface_hub_classifies(hub, truth, task):
    agree(hub(task), truth[0][:5], truth[1][:5])


def test_huggingface_hub_asks_for_three_logits(hub, logits_by_label, truth):
    found = hub("image_classification_with_parameters")
    assert [label for label, _ in found] == truth[0][:3]
    differ_by_a_constant(
        [score for _, score in found], [logits_by_label[label] for label, _ in found]
    )


def test_huggingface_hub_classifies_among_given_labels(hub, truth):
    agree(hub("zero_shot_image_classification"), *among(truth, SET))


def test_huggingface_hub_extracts_features(hub, our_features, picture):
    [vector] = hub("feature_extraction", url=our_features)
    assert vector == pytest.approx(asked(our_features, picture)[1], rel=1e-3, abs=1e-6)


def test_huggingface_hub_is_told_of_a_bad_key(hub):
    refused = hub("image_classification", key="wrong")
    assert refused["error"] == "HfHubHTTPError"
    assert "401" in refused["message"]
    assert "this endpoint needs its API key" in refused["message"]


def test_huggingface_hub_is_told_of_a_bad_picture(hub, no_picture):
    refused = hub("image_classification", picture=no_picture)
    assert refused["error"] == "BadRequestError"
    assert "image" in refused["message"]


@pytest.mark.parametrize("task", ["json", "binary", "binary_by_default", "zipped", "files", "aio"])
def test_tritonclient_gets_every_probability(triton, in_order, task):
    [found] = triton(task)
    assert found == pytest.approx(in_order, rel=1e-3, abs=1e-6)


def test_tritonclient_gets_the_best_three(triton, truth, model):
    found = [row.split(":", 2) for row in triton("classification")]
    agree([(label, float(score)) for score, _, label in found], truth[0][:3], truth[1][:3])
    assert [model["classes"][int(place)] for _, place, _ in found] == truth[0][:3]


def test_tritonclient_sees_that_server_and_model_are_ready(triton):
    state = triton("state")
    assert {name: state[name] for name in ("live", "ready", "model", "other", "binary")} == {
        "live": True,
        "ready": True,
        "model": True,
        "other": False,
        "binary": True,
    }
    assert {"name": "images", "datatype": "FP32", "shape": [-1, 3, 64, 64]} in state["inputs"]
    assert [one["name"] for one in state["index"]] == ["bundled"]


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("binary", {"key": "wrong"}, "needs its API key"),
        ("wrong_shape", {}, "expected [-1,3,64,64]"),
    ],
)
def test_tritonclient_is_told_what_is_wrong(triton, task, given, message):
    refused = triton(task, **given)
    assert refused["error"] == "InferenceServerException"
    assert message in refused["message"]


def test_openai_gets_the_best_of_a_closed_set(openai, truth):
    answer, (labels, scores) = openai("chat_closed_set"), among(truth, SET)
    assert answer["label"] == labels[0]
    agree(answer["ranked"], labels, scores)


def test_openai_gets_the_best_label_of_all(openai, truth):
    assert openai("chat_freely") == truth[0][0]


@pytest.mark.parametrize("task", ["embeddings", "embeddings_as_floats"])
def test_openai_gets_features(openai, our_features, picture, task):
    assert openai(task) == pytest.approx(asked(our_features, picture)[1], rel=1e-3, abs=1e-6)


def test_openai_lists_the_model(openai):
    assert openai("models") == ["bundled"]


def test_openai_is_told_of_a_bad_key(openai):
    refused = openai("chat_freely", key="wrong")
    assert (refused["error"], refused["code"]) == ("AuthenticationError", "invalid_api_key")
    assert "needs its API key" in refused["message"]


def test_openai_is_told_of_a_bad_picture(openai, no_picture):
    refused = openai("chat_freely", picture=no_picture)
    assert (refused["error"], refused["code"]) == ("BadRequestError", "invalid_image")


def test_boto3_classifies(boto3, truth):
    agree(boto3("raw"), truth[0][:5], truth[1][:5])


def test_boto3_asks_for_three_logits(boto3, logits_by_label, truth):
    found = boto3("with_parameters")
    assert [label for label, _ in found] == truth[0][:3]
    differ_by_a_constant(
        [score for _, score in found], [logits_by_label[label] for label, _ in found]
    )


def test_boto3_is_told_of_a_bad_key(boto3):
    refused = boto3("refused", key="wrong")
    assert (refused["code"], refused["status"]) == ("AccessDeniedException", 403)
    assert "needs its API key" in refused["message"]


def test_boto3_is_told_that_the_model_refused_a_bad_picture(boto3, no_picture):
    refused = boto3("refused", picture=no_picture)
    assert (refused["type"], refused["code"], refused["status"]) == (
        "ModelError",
        "ModelError",
        424,
    )
    assert refused["original"] == 400


@pytest.mark.parametrize("task", ["v1", "v2_json", "v2_binary"])
def test_kserve_sdk_gets_every_probability(kserve, in_order, task):
    [found] = kserve(task)
    assert found == pytest.approx(in_order, rel=1e-3, abs=1e-6)


def test_kserve_sdk_sees_that_server_and_model_are_ready(kserve):
    assert kserve("state") == [True] * 5


@pytest.mark.parametrize("task", ["v1", "v2_binary"])
def test_kserve_sdk_is_told_of_a_bad_key(kserve, task):
    refused = kserve(task, key="wrong")
    assert refused["error"] == "HTTPStatusError"
    assert "needs its API key" in refused["message"]


def test_a_kserve_v1_client_gets_every_probability_of_two_pictures(requests, in_order):
    found = requests("kserve_v1")["answer"]["predictions"]
    assert len(found) == 2
    for scores in found:
        assert scores == pytest.approx(in_order, rel=1e-3, abs=1e-6)


def test_a_tensorflow_serving_client_gets_a_column(requests, in_order):
    [scores] = requests("tensorflow_serving_columns")["answer"]["outputs"]
    assert scores == pytest.approx(in_order, rel=1e-3, abs=1e-6)


def test_a_vertex_client_gets_the_best_three(requests, truth):
    [found] = requests("vertex")["answer"]["predictions"]
    pairs = list(zip(found["displayNames"], found["confidences"], strict=True))
    agree(pairs, truth[0][:3], truth[1][:3])


@pytest.mark.parametrize("task", ["torchserve", "torchserve_form"])
def test_a_torchserve_client_gets_the_best_five(requests, truth, task):
    agree(requests(task)["answer"].items(), truth[0][:5], truth[1][:5])


def test_a_client_of_a_sagemaker_container_gets_the_best_five(requests, truth):
    found = requests("sagemaker_container")["answer"]
    agree([(one["label"], one["score"]) for one in found], truth[0][:5], truth[1][:5])


@pytest.mark.parametrize(
    ("task", "bad_key", "bad_picture"),
    [
        ("kserve_v1", 401, 400),
        ("vertex", 401, 400),
        ("torchserve", 401, 503),
        ("sagemaker_container", 401, 400),
    ],
)
def test_a_plain_client_gets_the_status_that_its_format_has(
    requests, no_picture, task, bad_key, bad_picture
):
    assert requests(task, key="wrong")["status"] == bad_key
    assert requests(task, picture=no_picture)["status"] == bad_picture
