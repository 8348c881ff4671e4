"""How large an image may be: what a probe says of endpoints with known limits."""

import io

import pytest
from PIL import Image

from pgn_client.errors import (
    BudgetExceededError,
    ConnectionFailedError,
    ImageError,
    InvalidRequestError,
    ServerError,
)
from pgn_client.probe import find_bytes, find_pixels
from pgn_client.probe.limits import flat_file, long_file

MIB = 2**20


def endpoint(*, most_bytes=10**9, most_pixels=10**9, error=None, wire=1.0):
    """Take files up to these sizes, and keep the sizes of all."""
    sent = []

    def send(data):
        size = Image.open(io.BytesIO(data)).size
        sent.append((len(data), size[0] * size[1]))
        if len(data) > most_bytes or sent[-1][1] > most_pixels:
            raise error or InvalidRequestError(
                "too large", status=413, endpoint="h", attempts=1, request_id=None
            )
        return int(len(data) * wire)

    send.sent = sent
    return send


def test_a_long_file_is_a_small_picture_of_exactly_so_many_bytes():
    data = long_file(MIB)
    assert len(data) == MIB
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert (picture.size, picture.getpixel((3, 4))) == ((32, 32), (128, 128, 128))


def test_a_flat_file_is_a_large_picture_of_few_bytes():
    data = flat_file(2048)
    assert Image.open(io.BytesIO(data)).size == (2048, 2048)
    assert len(data) < MIB / 8


def test_the_limit_lies_between_the_last_taken_and_the_first_refused():
    send = endpoint(most_bytes=6 * MIB)
    found = find_bytes(send, left=9)
    assert (found.value, found.certainty) == (10 * MIB - 1, "certain")
    assert f"{5 * MIB:,} bytes are accepted" in found.evidence
    assert [size for size, _ in send.sent] == [MIB, 5 * MIB, 10 * MIB]
    send = endpoint(most_pixels=5_000_000)
    found = find_pixels(send, left=9)
    assert (found.value, found.certainty) == (4096 * 4096 - 1, "certain")


def test_a_limit_of_bytes_is_that_of_the_requests_body():
    found = find_bytes(endpoint(most_bytes=6 * MIB, wire=1.25), left=9)
    assert found.value == 12.5 * MIB - 1
    assert (
        "files: 5,242,880 bytes are accepted, 10,485,760 are refused (status 413); "
        "the limit lies between"
    ) in found.evidence
    nothing_taken = find_bytes(endpoint(most_bytes=10), left=9)
    # base64, at worst: nothing is refused that might be taken
    assert nothing_taken.value >= MIB * 4 / 3 - 2


def test_a_budget_that_ends_leaves_the_limit_unknown():
    found = find_bytes(endpoint(most_bytes=10, error=BudgetExceededError(5, 5)), left=9)
    assert (found.value, found.certainty) == (None, "unknown")


def test_without_a_refusal_no_limit_is_claimed():
    found = find_bytes(endpoint(), left=9)
    assert (found.value, found.certainty) == (None, "unknown")
    assert f"{20 * MIB:,} bytes are accepted" in found.evidence


@pytest.mark.parametrize(
    ("error", "certainty"),
    [
        (ImageError("the endpoint takes less"), "certain"),
        (
            InvalidRequestError("bad", status=400, endpoint="h", attempts=1, request_id=None),
            "likely",
        ),
        (ServerError("failed", status=500, endpoint="h", attempts=1, request_id=None), "likely"),
        (ConnectionFailedError("cut", endpoint="h", attempts=1), "likely"),
    ],
)
def test_a_refusal_that_may_have_another_reason_is_not_certain(error, certainty):
    assert find_bytes(endpoint(most_bytes=2 * MIB, error=error), left=9).certainty == certainty


def test_no_more_is_sent_than_is_left():
    send = endpoint()
    assert find_bytes(send, left=2).certainty == "unknown"
    assert len(send.sent) == 2
    nothing = endpoint()
    assert "no image was left" in find_pixels(nothing, left=0).evidence
    assert nothing.sent == []
