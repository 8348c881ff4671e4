from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from pgn_client.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    ProtocolMismatchError,
)
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import Described, MalformedAnswerError, WireResponse
from pgn_client.wire.protocols.oip import OpenInference
from pgn_client.wire.protocols.tensors import HEADER, outputs
from tests.wire.exchanges import (
    ANYTHING,
    answer_of,
    body,
    captured,
    decodes_or_says_so,
    golden,
    of_image,
    ok,
    picture,
    sent,
)
from tests.wire.fakes import client
from tests.wire.fakes import picture as image

CLASSES = ("goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay")
FP32 = {"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 4]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def bound(metadata: dict | None = None, url: str = "http://h", **endpoint) -> OpenInference:
    """Return the protocol after it has read metadata: the contract's, or others."""
    asked = OpenInference.of(Endpoint(url, "oip", **{"model": "vit"} | endpoint))
    found = asked.described(answer_of("oip_metadata") if metadata is None else ok(metadata))
    assert isinstance(found, Described)
    return found.protocol


def metadata(*inputs: dict, **parameters: object) -> dict:
    outs = [{"name": "out", "datatype": "FP32", "shape": [-1, 2]}]
    return {"name": "vit", "inputs": list(inputs), "outputs": outs, "parameters": parameters}


# ---- what is sent


def test_the_tensor_is_that_of_the_contract():
    exchange = golden("oip_binary_uint8")["request"]
    whole, length = body(exchange), int(exchange["headers"]["Inference-Header-Content-Length"])
    head, tail = json.loads(whole[:length]), whole[length:]
    pixels = np.frombuffer(tail, np.uint8).reshape(3, 4, 4).transpose(1, 2, 0)
    options = {"datatype": "UINT8", "shape": [-1, 3, 4, 4], "input": "images", "scores": "logits"}
    request = OpenInference.of(Endpoint("http://h", "oip", "vit", options=options)).encode(
        [of_image(Image.fromarray(pixels))]
    )
    own = int(request.headers[HEADER])
    assert request.url == f"http://h{exchange['path']}"
    assert request.headers["content-type"] == exchange["headers"]["Content-Type"]
    assert request.body[own:] == tail
    assert json.loads(request.body[:own])["inputs"] == head["inputs"]


def test_a_file_goes_as_base64_in_json_as_in_the_contract():
    exchange = golden("oip_json_bytes")["request"]["json"]["inputs"][0]
    protocol = bound(options={"input": "pictures"}).plainer()
    sent_input = json.loads(protocol.encode([picture()]).body)["inputs"][0]
    assert sent_input == {
        **exchange,
        "shape": [1],
        "data": [base64.b64encode(picture().data).decode()],
    }


def test_a_file_follows_its_length_in_binary():
    request = bound(options={"input": "pictures"}).encode([picture()])
    tail = request.body[int(request.headers[HEADER]) :]
    assert tail == len(picture().data).to_bytes(4, "little") + picture().data


@pytest.mark.parametrize(
    ("layout", "shape"), [("CHW", [1, 3, 4, 4]), ("HWC", [1, 4, 4, 3]), ("CHW", [3, 4, 4])]
)
def test_pixels_are_normalised_by_what_the_metadata_say(layout, shape):
    protocol = bound(
        metadata({**FP32, "shape": shape}, mean=[0.1, 0.2, 0.3], std="0.5, 0.25, 1"), options={}
    ).plainer()
    tensor = json.loads(protocol.encode([picture()]).body)["inputs"][0]
    pixels = (np.asarray(picture().image) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1]
    expected = pixels.transpose(2, 0, 1) if layout == "CHW" else pixels
    assert tensor["shape"] == shape
    assert np.array(tensor["data"]).reshape(expected.shape) == pytest.approx(expected, abs=1e-6)


def test_options_win_over_the_metadata():
    protocol = bound(metadata(FP32, **HALF), options={"mean": 0, "std": [1.0]}).plainer()
    data = json.loads(protocol.encode([picture()]).body)["inputs"][0]["data"]
    assert min(data) >= 0
    assert max(data) <= 1


def test_a_picture_of_another_size_is_squashed_to_the_models():
    tensor = json.loads(bound().plainer().encode([picture(size=(9, 5))]).body)["inputs"][0]
    assert tensor["shape"] == [1, 3, 4, 4]


def test_a_model_that_takes_any_size_gets_the_picture_as_it_is():
    protocol = bound(metadata({**FP32, "shape": [-1, 3, -1, -1]}, **HALF)).plainer()
    assert json.loads(protocol.encode([picture(size=(9, 5))]).body)["inputs"][0]["shape"] == [
        1,
        3,
        5,
        9,
    ]


def test_a_picture_without_pixels_is_decoded():
    payload = picture()
    bare = type(payload)(payload.data, payload.media_type)
    assert bound().encode([bare]) == bound().encode([payload])


def test_a_real_client_sends_the_same_binary_form():
    headers, whole = sent("tritonclient_2.73.0__infer_bin")
    theirs = json.loads(whole[: int(headers[HEADER])])
    request = bound(options={"scores": "logits"}).encode([picture()])
    ours = json.loads(request.body[: int(request.headers[HEADER])])
    assert ours == theirs
    assert len(request.body) == len(whole)
    assert request.url.removeprefix("http://h") == headers[":path"]


# ---- what comes back


@pytest.mark.parametrize(
    "name",
    [
        "oip_json",
        "oip_binary",
        "oip_raw",
        "oip_binary_in_json_out",
        "oip_json_logits_first",
        "oip_binary_uint8",
    ],
)
def test_logits_of_the_contract_are_understood(name):
    (answer,) = bound(options={"scores": "logits"}).decode(answer_of(name))
    assert (answer.kind, answer.labels[0], set(answer.labels)) == ("logits", "cat", set(CLASSES))


@pytest.mark.parametrize("name", ["oip_json_all_outputs", "oip_binary_default_outputs"])
def test_the_owners_choice_is_read_where_all_outputs_come(name):
    for answer in bound().decode(answer_of(name)):
        assert answer.kind == "probabilities"
        assert sum(answer.scores) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["oip_json_embedding", "oip_binary_embedding"])
def test_an_embedding_of_the_contract_is_understood(name):
    found = OpenInference.of(Endpoint("http://h", "oip", "vit")).described(
        answer_of("oip_metadata_embedding")
    )
    for answer in found.protocol.decode(answer_of(name)):
        assert (answer.kind, len(answer.scores)) == ("embedding", 24)


@pytest.mark.parametrize(
    "name",
    ["oip_json_classification", "oip_binary_classification", "oip_json_classification_label"],
)
def test_a_classification_names_its_labels(name):
    for answer in bound(options={"scores": golden_output(name)}).decode(answer_of(name)):
        assert set(answer.labels) <= set(CLASSES)
        assert answer.labels[0] == "cat"


def golden_output(name: str) -> str:
    return outputs(answer_of(name))[0].name


def test_a_server_that_keeps_scores_back_is_asked_for_a_classification():
    protocol = bound(metadata(FP32, **HALF, top_k=3, classes=["a", "b"])).plainer()
    assert (
        json.loads(protocol.encode([picture()]).body)["outputs"][0]["parameters"]["classification"]
        == 3
    )


def test_indices_without_labels_are_named_by_the_given_ones():
    said = {
        "outputs": [
            {"name": "out", "datatype": "BYTES", "shape": [1, 2], "data": ["0.7:1", "0.3:0"]}
        ]
    }
    (answer,) = bound(metadata(FP32, **HALF), labels=("a", "b")).decode(ok(said))
    assert (answer.labels, answer.scores) == (("b", "a"), (0.7, 0.3))


def test_without_names_the_classes_are_numbered():
    said = {
        "outputs": [{"name": "out", "datatype": "FP32", "shape": [1, 2], "data": [[-1.0, 2.0]]}]
    }
    (answer,) = bound(metadata(FP32, **HALF)).decode(ok(said))
    assert (answer.labels, answer.kind) == (("class 1", "class 0"), "logits")


@pytest.mark.parametrize("shape", [[1, 5, 3], [3], [1, 3]])
def test_an_embedding_is_the_class_token(shape):
    said = {
        "outputs": [
            {
                "name": "out",
                "datatype": "FP32",
                "shape": shape,
                "data": list(range(int(np.prod(shape)))),
            }
        ]
    }
    (answer,) = bound(metadata(FP32, **HALF), options={"output": "embedding"}).decode(ok(said))
    assert answer.scores == (0, 1, 2)


BAD = [
    {},
    {"outputs": []},
    {"outputs": [None]},
    {"outputs": [{"name": "out", "datatype": "FP32", "shape": [1, 2], "data": [1.0]}]},
    {"outputs": [{"name": "other", "datatype": "FP32", "shape": [1], "data": [1.0]}]},
    {"outputs": [{"name": "out", "datatype": "INT64", "shape": [1], "data": [1]}]},
    {"outputs": [{"name": "out", "datatype": "FP32", "shape": [2, 2, 2], "data": [1.0] * 8}]},
    {
        "outputs": [
            {"name": "out", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
        ]
    },
    {"outputs": [{"name": "out", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]},
    b'{"outputs":[{"name":"out","datatype":"FP32","shape":[2],"data":[NaN,1]}]}',
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_what_is_not_its_form_is_refused(document):
    with pytest.raises(MalformedAnswerError):
        bound(metadata(FP32, **HALF)).decode(ok(document))


@pytest.mark.parametrize("length", ["-1", "999", "x", "9" * 5000])
def test_a_header_length_that_lies_is_refused(length):
    with pytest.raises(MalformedAnswerError):
        bound().decode(WireResponse(200, {HEADER: length}, b"{}"))


@pytest.mark.parametrize("side", [0, 2**13 + 1, 10**30])
def test_an_input_that_no_picture_fits_is_refused(side):
    with pytest.raises(ConfigurationError, match="8192 pixels"):
        bound(metadata({"name": "a", "datatype": "UINT8", "shape": [1, 3, side, side]}))


def test_datatypes_that_are_no_text_are_passed_over():
    outs = [{"name": "x", "datatype": {}}, {"name": "y", "datatype": "FP32"}]
    found = bound(
        {
            "inputs": [{"name": "a", "datatype": [], "shape": [1]}, FP32],
            "outputs": outs,
            "parameters": HALF,
        }
    )
    assert (found.input.name, found.output) == ("images", "y")


@pytest.mark.parametrize(("last", "read"), [(2, ["", "", "ab"]), (3, None)])
def test_elements_of_bytes_end_where_their_length_says(last, read):
    parameters = {"binary_data_size": 14}
    head = json.dumps(
        {"outputs": [{"name": "x", "datatype": "BYTES", "shape": [3], "parameters": parameters}]}
    ).encode()
    response = WireResponse(
        200, {HEADER: str(len(head))}, head + bytes(8) + bytes([last, 0, 0, 0]) + b"ab"
    )
    if read is not None:
        assert outputs(response)[0].data == read
        return
    with pytest.raises(MalformedAnswerError, match="BYTES with 6 bytes, expected 7"):
        outputs(response)


def test_a_binary_answer_that_was_cut_is_refused():
    whole = answer_of("oip_binary")
    with pytest.raises(MalformedAnswerError):
        bound(options={"scores": "logits"}).decode(
            WireResponse(200, whole.headers, whole.body[:-4])
        )


@given(ANYTHING)
def test_no_json_makes_it_fail_otherwise(document):
    decodes_or_says_so(lambda: bound(metadata(FP32, **HALF)), document)


@given(ANYTHING)
def test_no_metadata_make_it_fail_otherwise(document):
    try:
        OpenInference.of(Endpoint("http://h", "oip", "vit")).described(
            ok({"inputs": document, "parameters": document})
        )
    except ConfigurationError:
        return


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "triton2.51__json_flat",
        "triton2.51__bin_in",
        "mlserver1.7.1__json_flat",
        "kserve0.21.0__json_flat",
        "kserve0.21.0__bin_inout",
        "triton2.51__class_json",
        "triton2.51__class_bin",
    ],
)
def test_real_servers_are_understood(name):
    (answer,) = bound(metadata(FP32, **HALF), options={"scores": "logits"}).decode(
        captured(f"resp_{name}")
    )
    assert answer.labels[:2] == ("class 9", "class 6")
    assert answer.scores[0] == pytest.approx(0.640563, abs=1e-5)


@pytest.mark.shared
def test_a_real_servers_nan_is_refused():
    with pytest.raises(MalformedAnswerError, match="finite"):
        bound(metadata(FP32, **HALF), options={"scores": "logits"}).decode(
            captured("resp_triton2.51__nan_json")
        )


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mlserver1.7.1__bin_short", "triton2.51__bad_json"])
def test_what_no_binary_server_says_leads_to_json_at_once(name):
    response = captured(f"resp_{name}")
    assert bound().fallback(response) == bound().plainer()
    assert bound().retryable(response) is not True


# ---- finding the model


@pytest.mark.parametrize(
    "url",
    [
        "http://h/a",
        "http://h/a/",
        "http://h/a/v2",
        "http://h/a/v2/models/vit",
        "http://h/a/v2/models/vit/infer",
    ],
)
def test_the_address_may_be_that_of_the_server_or_the_model(url):
    assert bound(url=url).encode([picture()]).url == "http://h/a/v2/models/vit/infer"


def test_a_version_in_the_address_is_kept():
    assert (
        bound(url="http://h/v2/models/vit/versions/2")
        .encode([picture()])
        .url.endswith("/vit/versions/2/infer")
    )


class Triton:
    """A server of OIP; ``binary`` says whether it knows the extension, ``index`` what it hosts."""

    def __init__(
        self,
        *,
        binary: bool = True,
        index: object = (("vit", "READY"),),
        models: object = None,
        **told: object,
    ):
        self.binary, self.index, self.models, self.told = binary, index, models, told
        self.refusal = 422
        self.log: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.log.append(path)
        if path == "/v2":
            return httpx.Response(200, json={"name": "triton", "version": "2", "extensions": []})
        if path == "/v2/repository/index":
            return (
                httpx.Response(403, text='{"error":"This API is restricted"}')
                if self.index is None
                else httpx.Response(
                    200, json=[{"name": name, "state": state} for name, state in self.index]
                )
            )
        if path == "/v1/models" and self.models is not None:
            return httpx.Response(200, json={"models": self.models})
        if path == "/v2/models/vit":
            return httpx.Response(200, json=metadata(FP32, **(self.told or HALF)))
        if not path.endswith("/vit/infer"):
            return httpx.Response(404, json={"error": "Not Found"})
        if not self.binary and HEADER in request.headers:
            return httpx.Response(self.refusal, text="Input should be a valid dictionary")
        out = {"name": "out", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}
        return httpx.Response(200, json={"model_name": "vit", "outputs": [out]})


@pytest.mark.parametrize("protocol", ["auto", "oip"])
@pytest.mark.parametrize(
    "server",
    [
        Triton(),
        Triton(index=[("vit", "READY"), ("old", "UNAVAILABLE")]),
        Triton(index=None, models=["vit"]),
    ],
)
def test_a_servers_only_model_is_found(server, protocol):
    with client(server, protocol=protocol, labels=["cat", "dog"]) as c:
        assert c.classify(image()).label == "dog"
        assert c.protocol.startswith("oip FP32 binary")
        assert (c.info().name, c.info().input_size, c.info().profile) == ("vit", 4, "direct")


@pytest.mark.parametrize(
    "server", [Triton(index=[("a", ""), ("b", "")]), Triton(index=None, models=["a", "b"])]
)
def test_several_models_are_named(server):
    with client(server) as c, pytest.raises(ConfigurationError, match=r"hosts a, b.*give model="):
        c.classify(image())


def test_options_stand_in_for_metadata_only_where_the_protocol_is_named():
    given = {"datatype": "UINT8", "shape": [1, 4, 4, 3], "input": "x"}
    for protocol, found in (("oip", True), ("auto", False)):
        asked = OpenInference.of(Endpoint("http://h", protocol, "vit", options=given))
        assert isinstance(asked.described(ok({"ok": "ok"})), Described) is found
        assert asked.complete


def test_a_server_that_does_not_list_its_models_says_what_is_missing():
    with client(Triton(index=None)) as c, pytest.raises(ConfigurationError, match="give model="):
        c.classify(image())


def test_a_model_that_is_not_there_is_told():
    with (
        client(Triton(), protocol="oip", model="nope") as c,
        pytest.raises(InvalidRequestError, match="Not Found"),
    ):
        c.classify(image())


# 500: MLServer trips over its own refusal, which echoes
@pytest.mark.parametrize("status", [400, 415, 422, 500])
def test_json_is_spoken_to_a_server_without_the_extension_and_stays(status):
    server = Triton(binary=False)
    server.refusal = status
    with client(server, model="vit") as c:
        assert [c.classify(image(i)).attempts for i in range(2)] == [2, 1]
        assert "JSON" in c.protocol


def test_a_failure_after_a_success_is_no_reason_for_json():
    protocol = bound(metadata(FP32, **HALF))
    protocol.decode(
        ok({"outputs": [{"name": "out", "datatype": "FP32", "shape": [2], "data": [0.5, 0.5]}]})
    )
    assert protocol.fallback(WireResponse(500, {})) is None
    assert protocol.retryable(WireResponse(500, {})) is None


def test_sixteen_bits_have_no_json_form():
    assert bound(metadata({**FP32, "datatype": "FP16"}, **HALF)).plainer() is None


def test_a_named_model_is_recognised_by_its_metadata_alone():
    server = Triton()
    with client(server, model="vit") as c:
        c.classify(image())
    assert server.log == ["/v1/model", "/v2/models/vit", "/v2/models/vit/infer"]


def test_a_refused_key_is_said():
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": "no"})

    with client(server, protocol="oip", model="vit") as c, pytest.raises(AuthenticationError):
        c.classify(image())


def test_metadata_that_are_none_are_a_mismatch():
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"ok": "ok"})

    with (
        client(server, protocol="oip", model="vit") as c,
        pytest.raises(ProtocolMismatchError, match="description"),
    ):
        c.classify(image())


@pytest.mark.parametrize(
    ("shape", "parameters", "options", "words"),
    [
        ([-1, 3, 4, 4], {}, {}, r"do not contain its mean.*options: mean and std"),
        ([-1, 3, 4, 4], {"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, {}, "zero"),
        ([-1, 3, 4, 4], {"mean": [0.5] * 2, "std": [0.5] * 2}, {}, "do not contain its mean"),
        ([-1, -1, -1, -1], HALF, {}, "layout"),
        ([-1, 3, 4, 3], HALF, {}, "layout"),
        ([-1, 10], HALF, {}, "no input that takes an image"),
        ([-1, 3, 4, 4], HALF, {"input": "other"}, "an input named 'other'"),
    ],
)
def test_metadata_that_do_not_tell_enough_say_which_option_does(shape, parameters, options, words):
    protocol = OpenInference.of(Endpoint("http://h", "oip", "vit", options=options))
    with pytest.raises(ConfigurationError, match=words):
        protocol.described(ok(metadata({**FP32, "shape": shape}, **parameters)))


@pytest.mark.parametrize(
    "options", [{"meen": [0]}, {"mean": "0.5"}, {"output": "votes"}, {"classification": True}]
)
def test_wrong_options_are_refused_at_once(options, tmp_path):
    path = tmp_path / "endpoint.json"
    Endpoint("http://h", "oip", "vit", options=options).write(path)
    with pytest.raises(ConfigurationError, match="options"):
        client(Triton(), url=path)


def test_other_normalisations_and_labels_are_other_dialects():
    kinds = [
        {},
        {"options": {"mean": 0}},
        {"options": {"scores": "logits"}},
        {"labels": CLASSES[:2]},
    ]
    assert len({bound(metadata(FP32, **HALF), **kind).dialect for kind in kinds}) == len(kinds)


def test_a_classification_of_an_output_without_a_name_is_refused():
    options = {"datatype": "UINT8", "shape": [-1, 3, 4, 4], "input": "images"}
    with pytest.raises(ConfigurationError, match="options: scores"):
        OpenInference.of(
            Endpoint("http://h", "oip", "vit", options=options | {"classification": 3})
        )
    named = options | {"classification": 3, "scores": "logits"}
    protocol = OpenInference.of(Endpoint("http://h", "oip", "vit", options=named))
    assert b'"classification":3' in protocol.encode([picture()]).body


def test_a_negative_classification_is_refused():
    with pytest.raises(ConfigurationError, match="classification: got -1"):
        OpenInference.of(Endpoint("http://h", "oip", "vit", options={"classification": -1}))
