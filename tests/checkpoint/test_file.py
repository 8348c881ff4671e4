import errno
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pgn_client import checkpoint
from pgn_client.errors import CheckpointError

CARD = {
    "method": "pgn",
    "classes": ["Möwe", "owl"],
    "metrics": {"accuracy": 0.1 + 0.2, "n": 40},
    "fusion": 0.25,
}
TENSORS = {
    "library.rows": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "count": np.array(7, dtype=np.int64),
    "mapping.bias": np.array([np.pi, -0.0, 1e-300]),
}


@pytest.fixture
def path(tmp_path):
    checkpoint.write(tmp_path / "adapter.safetensors", CARD, TENSORS)
    return tmp_path / "adapter.safetensors"


def refused(path, pattern, reader=checkpoint.read):
    with pytest.raises(CheckpointError, match=pattern) as error:
        reader(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def forge(path, card):
    """Write a safetensors file with any card."""
    save_file({"x": np.zeros(2, np.float32)}, path, metadata={"pgn_client": json.dumps(card)})


class TestRoundTrip:
    def test_numbers_come_back_bit_for_bit(self, path):
        _, tensors = checkpoint.read(path)
        assert set(tensors) == set(TENSORS)
        for name, array in TENSORS.items():
            assert tensors[name].dtype == array.dtype
            assert tensors[name].tobytes() == array.tobytes()

    def test_card_comes_back_with_schema_and_fingerprint(self, path):
        card, _ = checkpoint.read(path)
        assert {k: card[k] for k in CARD} == CARD
        assert card["schema"] == 2
        assert len(card["fingerprint"]) == 64

    def test_write_returns_the_card_that_is_read(self, tmp_path):
        written = checkpoint.write(tmp_path / "a", CARD, TENSORS)
        assert checkpoint.read_card(tmp_path / "a") == written == checkpoint.read(tmp_path / "a")[0]

    def test_arrays_that_are_not_contiguous_survive(self, tmp_path):
        turned = np.arange(6.0).reshape(2, 3).T
        checkpoint.write(tmp_path / "a", CARD, {"x": turned})
        assert (checkpoint.read(tmp_path / "a")[1]["x"] == turned).all()

    def test_card_is_read_without_torch(self, path):
        code = (
            "import sys; from pgn_client import checkpoint; card = "
            "checkpoint.read_card(sys.argv[1]);"
            "checkpoint.read(sys.argv[1]); print(card['method'], 'torch' in sys.modules)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == ["pgn", "False"]


class TestFingerprint:
    def test_is_the_same_for_the_same_contents(self, path):
        card, tensors = checkpoint.read(path)
        assert checkpoint.write(path, card, tensors)["fingerprint"] == card["fingerprint"]

    def test_does_not_depend_on_order(self):
        turned = dict(reversed(TENSORS.items()))
        assert checkpoint.fingerprint(
            dict(reversed(CARD.items())), turned
        ) == checkpoint.fingerprint(CARD, TENSORS)

    @pytest.mark.parametrize(
        "change",
        [
            {"count": np.array(8, dtype=np.int64)},
            {"count": np.array(7, dtype=np.int32)},
            {"library.rows": TENSORS["library.rows"].reshape(4, 3)},
            {"more": np.zeros(1)},
        ],
    )
    def test_changes_with_every_tensor(self, change):
        assert checkpoint.fingerprint(CARD, TENSORS | change) != checkpoint.fingerprint(
            CARD, TENSORS
        )

    def test_changes_with_the_card(self):
        assert checkpoint.fingerprint(CARD | {"fusion": 0.3}, TENSORS) != checkpoint.fingerprint(
            CARD, TENSORS
        )


class TestRefusal:
    def test_of_a_zipped_pickle(self, tmp_path):
        torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "got a pickle, which could run code; expected safetensors")

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_of_a_raw_pickle_that_is_not_run(self, tmp_path, protocol):
        class Bomb:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb(), protocol))
        refused(tmp_path / "a.pkl", "got a pickle")
        assert not (tmp_path / "ran").exists()

    def test_not_of_our_own_file_whose_header_length_begins_like_a_pickle(self, tmp_path):
        for filler in range(300):
            path = tmp_path / f"{filler}"
            checkpoint.write(path, CARD | {"versions": {"filler": "x" * filler}}, TENSORS)
            if path.read_bytes()[0] == 0x80:
                break
        else:
            pytest.fail("no header of such a length was found")
        assert checkpoint.read_card(path)["versions"]["filler"] == "x" * filler

    @pytest.mark.parametrize(
        "content", [b"", b"\0", b"PGN checkpoint\n" * 20, b"(lp0\n.", struct.pack("<Q", 2**60)]
    )
    def test_of_another_file(self, tmp_path, content):
        (tmp_path / "a").write_bytes(content)
        refused(tmp_path / "a", "cannot be read .*expected a whole file written by pgn train")

    def test_of_every_truncated_file(self, path):
        whole = path.read_bytes()
        for size in range(0, len(whole), 7):
            path.write_bytes(whole[:size])
            refused(path, "expected a whole file written by pgn train")

    def test_of_a_missing_file(self, tmp_path):
        refused(tmp_path / "nowhere", "No such file.*expected a whole file written by pgn train")

    def test_of_a_folder(self, tmp_path):
        refused(tmp_path, "folder.*expected a whole file written by pgn train")

    def test_of_foreign_safetensors(self, tmp_path):
        save_file({"x": np.zeros(2, np.float32)}, tmp_path / "a")
        refused(
            tmp_path / "a",
            "without a PGN card; expected a file written by pgn train",
            checkpoint.read_card,
        )

    @pytest.mark.parametrize("reader", [checkpoint.read_card, checkpoint.read])
    def test_of_a_newer_schema_with_the_upgrade_command(self, tmp_path, reader):
        forge(tmp_path / "a", CARD | {"schema": 3, "fingerprint": ""})
        refused(
            tmp_path / "a",
            "got schema 3, expected at most 2; upgrade: pip install -U pgn-client",
            reader,
        )

    @pytest.mark.parametrize(
        "card", [{}, [], None, 3, {"schema": None}, {"schema": "x"}, {"schema": [1]}]
    )
    def test_of_a_card_that_is_none(self, tmp_path, card):
        forge(tmp_path / "a", card)
        refused(tmp_path / "a", "cannot be read")

    def test_of_a_card_without_fingerprint(self, tmp_path):
        forge(tmp_path / "a", CARD | {"schema": 1})
        refused(tmp_path / "a", "do not match its fingerprint")

    def test_of_a_flipped_byte_anywhere(self, path):
        whole, before = path.read_bytes(), repr(checkpoint.read(path))
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                found = repr(checkpoint.read(path))
            except CheckpointError:
                continue
            assert found == before  # white space in the header


class TestWriting:
    def test_leaves_no_other_file(self, path):
        assert list(path.parent.iterdir()) == [path]

    def test_that_fails_halfway_keeps_the_old_file_and_leaves_no_part(self, path, monkeypatch):
        before = path.read_bytes()

        def full(self, data):
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*choose another place"):
            checkpoint.write(path, CARD | {"fusion": 1.0}, TENSORS)
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == before

    def test_over_a_folder_is_refused_and_leaves_no_part(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoint.write(tmp_path / "a", CARD, TENSORS)
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_into_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(
            CheckpointError,
            match=r"cannot be written \(No such file or "
            r"directory\)",
        ):
            checkpoint.write(tmp_path / "no" / "a", CARD, TENSORS)
