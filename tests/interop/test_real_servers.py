"""Our client gets from servers that we did not write what their classifier, computed again here,
says.
"""

import json
import shutil

import httpx
import numpy as np
import pytest
from PIL import Image

from pgn_client import AdaptedClient, Prediction
from pgn_client.errors import AuthenticationError, ConfigurationError, InvalidRequestError
from tests.e2e.conftest import pgn
from tests.interop.conftest import KEY, hosted, painted
from tests.interop.servers import known

# an environment may have to be made first
pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

BINARY = "inference-header-content-length"
TENSORS = {"mean": [known.MEAN], "std": [known.STD]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve images, of the size that the servers of tensors take."""
    folder = tmp_path_factory.mktemp("pictures")
    return [painted(folder / f"{seed:02}.png", seed=seed, side=known.SIDE) for seed in range(12)]


def server(package, script, **options):
    """Return a fixture: the URL of a real server."""

    @pytest.fixture(scope="module")
    def run(tmp_path_factory):
        with hosted(package, script, tmp_path_factory.mktemp(script), **options) as url:
            yield url

    return run


kserve = server("kserve", "kserve_sdk", ready=f"/v2/models/{known.NAME}/ready")
mlserver = server("mlserver", "ml_server", ready=f"/v2/models/{known.NAME}/ready")
triton = server("pytriton", "py_triton", ready=f"/v2/models/{known.NAME}/ready")
litserve = server("litserve", "lit_serve", ready="/health")
chat = server("litserve", "lit_serve_chat", ready="/health")
java = server(
    "torchserve", "torch_serve", ready=f"/models/{known.NAME}", says='"status": "READY"', ports=5
)


@pytest.fixture
def torchserve(request):
    """TorchServe, where there is a Java."""
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java")
    return request.getfixturevalue("java")


# LitServe's answer is as its owner likes it.
OWN = """
url = "{url}"
protocol = "custom"
[options]
key_header = "X-API-Key: {{key}}"
path = "/predict"
labels = "answer.top[*].name"
scores = "answer.top[*].confidence"
[options.body.picture]
base64 = "{{base64}}"
"""


@pytest.fixture
def own(litserve, tmp_path):
    """The file that describes LitServe's endpoint."""
    path = tmp_path / "endpoint.toml"
    path.write_text(OWN.format(url=litserve))
    return path


def described(folder, url, **keys):
    """Write what is known of an endpoint to a file, as a user does; return its path."""
    path = folder / "endpoint.json"
    path.write_text(json.dumps({"url": url} | keys))
    return path


def said(path):
    """Return what the classifier says of an image: label and probability, best first."""
    with Image.open(path) as picture:
        scores = known.probabilities(np.asarray(picture) / 255)
    return sorted(zip(known.CLASSES, scores.tolist(), strict=True), key=lambda pair: -pair[1])


def check(endpoint, pictures, **options):
    """Ask for all images, several at a time; compare labels, in order, and scores."""
    with AdaptedClient(endpoint, None, **({"max_retries": 0} | options)) as client:
        for path, found in zip(pictures, client.classify_many(pictures), strict=True):
            labels, scores = zip(*said(path), strict=True)
            assert isinstance(found, Prediction), found
            assert found.label == labels[0]
            assert list(found.scores) == list(labels)
            assert list(found.scores.values()) == pytest.approx(scores, abs=1e-4)


class Eavesdropper(httpx.HTTPTransport):
    """Passes everything on and notes it; refuses the binary form where told to, as a proxy in
    between may.
    """

    def __init__(self, *, refuses=False):
        super().__init__()
        self.refuses = refuses
        self.forms = []  # (is it binary, status) of each POST

    def handle_request(self, request):
        if request.method != "POST" or not request.url.path.endswith("/infer"):
            return super().handle_request(request)
        binary = BINARY in request.headers
        refused = binary and self.refuses
        answer = (
            httpx.Response(415, json={"error": "no binary"})
            if refused
            else super().handle_request(request)
        )
        self.forms.append((binary, answer.status_code))
        return answer


def test_the_pictures_differ_in_what_they_show(pictures):
    assert len({said(path)[0][0] for path in pictures}) >= 3
    assert max(said(path)[0][1] for path in pictures) < 0.999


@pytest.mark.parametrize("protocol", ["oip", "auto"])
@pytest.mark.parametrize("hosts", ["kserve", "triton"])
def test_tensors_go_as_binary(request, tmp_path, pictures, hosts, protocol):
    transport = Eavesdropper()
    endpoint = described(
        tmp_path, request.getfixturevalue(hosts), labels=known.CLASSES, options=TENSORS
    )
    check(endpoint, pictures, protocol=protocol, model=known.NAME, transport=transport)
    assert transport.forms == [(True, 200)] * len(pictures)


def test_kserve_gets_json_where_binary_is_refused(kserve, tmp_path, pictures):
    transport = Eavesdropper(refuses=True)
    endpoint = described(tmp_path, kserve, labels=known.CLASSES, options=TENSORS)
    check(endpoint, pictures, protocol="oip", model=known.NAME, transport=transport)
    assert transport.forms.count((False, 200)) == len(pictures)


@pytest.mark.parametrize("protocol", ["oip", "auto"])
def test_mlserver_refuses_binary_and_gets_json(mlserver, tmp_path, pictures, protocol):
    """It echoes the body in its refusal, and where that is no UTF-8 it fails and closes the
    connection unannounced.
    """
    transport = Eavesdropper()
    endpoint = described(tmp_path, mlserver, labels=known.CLASSES, options=TENSORS)
    check(
        endpoint, pictures, protocol=protocol, model=known.NAME, transport=transport, max_retries=2
    )
    assert {status for binary, status in transport.forms if binary} <= {422, 500}
    assert transport.forms.count((False, 200)) == len(pictures)
    assert transport.forms[0][0], "binary is tried first"


@pytest.mark.parametrize("hosts", ["kserve", "mlserver"])
def test_the_only_model_needs_no_name(request, tmp_path, pictures, hosts):
    endpoint = described(
        tmp_path, request.getfixturevalue(hosts), labels=known.CLASSES, options=TENSORS
    )
    check(endpoint, pictures[:2], max_retries=2)


def test_triton_hides_its_models_so_that_one_must_be_named(triton, tmp_path, pictures):
    endpoint = described(tmp_path, triton, labels=known.CLASSES, options=TENSORS)
    with (
        AdaptedClient(endpoint, None) as client,
        pytest.raises(ConfigurationError, match="give model="),
    ):
        client.classify(pictures[0])


@pytest.mark.parametrize("hosts", ["kserve", "mlserver", "triton"])
def test_a_model_that_is_not_there_is_an_error_in_the_servers_words(
    request, tmp_path, pictures, hosts
):
    endpoint = described(
        tmp_path, request.getfixturevalue(hosts), labels=known.CLASSES, options=TENSORS
    )
    with (
        AdaptedClient(endpoint, None, protocol="oip", model="nobody") as client,
        pytest.raises(InvalidRequestError, match=r"got 404 \(.*nobody"),
    ):
        client.classify(pictures[0])


@pytest.mark.parametrize("ending", ["", f"/v1/models/{known.NAME}:predict"])
def test_kserve_v1_by_name(kserve, pictures, ending):
    check(kserve + ending, pictures, protocol="kserve-v1", labels=known.CLASSES)


def test_kserve_v1_by_its_path(kserve, pictures):
    check(f"{kserve}/v1/models/{known.NAME}:predict", pictures, labels=known.CLASSES)


@pytest.mark.parametrize("protocol", ["torchserve", "auto"])
def test_torchserve(torchserve, pictures, protocol):
    check(torchserve, pictures, protocol=protocol, model=known.NAME)


def test_torchserve_as_a_sagemaker_container(torchserve, pictures):
    check(f"{torchserve}/invocations", pictures)


def test_torchserve_names_the_model_that_it_does_not_have(torchserve, pictures):
    with (
        AdaptedClient(torchserve, None, protocol="torchserve", model="nobody") as client,
        pytest.raises(InvalidRequestError, match="Model not found: nobody"),
    ):
        client.classify(pictures[0])


def test_litserve_as_its_owner_likes_it(own, pictures):
    check(own, pictures, api_key=KEY)


def test_litserve_refuses_a_wrong_key(own, pictures):
    with (
        AdaptedClient(own, None, api_key="not-the-key") as client,
        pytest.raises(AuthenticationError) as caught,
    ):
        client.classify(pictures[0])
    assert "Invalid API Key" in str(caught.value)
    assert "not-the-key" not in str(caught.value)


@pytest.mark.parametrize("ending", ["", "/v1/chat/completions"])
def test_litserve_as_an_openai_server_names_the_best_of_a_closed_set(
    chat, tmp_path, pictures, ending
):
    """By name at its address, and by the path of a chat."""
    some = known.CLASSES[1:]
    endpoint = described(
        tmp_path, chat + ending, labels=some, options={"key_header": "X-API-Key: {key}"}
    )
    protocol = "auto" if ending else "openai"
    with AdaptedClient(
        endpoint, None, protocol=protocol, model="lit", api_key=KEY, max_retries=0
    ) as client:
        for path, found in zip(pictures, client.classify_many(pictures), strict=True):
            assert isinstance(found, Prediction), found
            assert found.label == next(label for label, _ in said(path) if label in some)


def test_the_command_line_asks_them_too(kserve, tmp_path, pictures):
    endpoint = described(tmp_path, kserve, labels=known.CLASSES)
    words = ("--protocol", "kserve-v1", "--model", known.NAME, "--json", "--out", "-")
    done = pgn("predict", pictures[0].parent, "--url", endpoint, *words)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["path"] for record in records] == [str(path) for path in pictures]
    for record, path in zip(records, pictures, strict=True):
        assert record["label"] == said(path)[0][0]
        assert record["scores"] == pytest.approx(dict(said(path)), abs=1e-4)
