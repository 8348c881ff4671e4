"""The table of episodes: means, and differences over common episodes alone."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "segment_episodes.py"
spec = importlib.util.spec_from_file_location("segment_episodes", SCRIPT)
segment_episodes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(segment_episodes)


def rows(method, values, shots=1):
    return [{"seed": s, "shots": shots, "method": method, "miou": v} for s, v in values.items()]


def test_differences_are_of_common_episodes():
    found = rows("linear", {0: 0.2, 1: 0.4, 2: 0.9}) + rows("expres", {0: 0.3, 1: 0.5, 7: 0.1})
    lines = segment_episodes.table(found).splitlines()
    assert lines[1].split() == ["linear", "3", "0.500"]
    assert lines[2].split() == ["expres", "3", "0.300", "+10.0", "[+10.0,", "+10.0]"]


def test_shots_are_kept_apart():
    found = rows("linear", {0: 0.2}) + rows("linear", {0: 0.6}, shots=5)
    assert [
        line.split()[-1]
        for line in segment_episodes.table(found).splitlines()
        if "  linear" in line[:9]
    ] == [
        "0.200",
        "0.600",
    ]


def test_painted_masks_have_a_colour_for_each_class_and_white_for_ignored():
    import torch

    colours = segment_episodes.painted(torch.tensor([[[0, 1, 2, 3, 255]]]))
    assert len({tuple(c) for c in colours[0, 0].tolist()}) == 5
    assert colours[0, 0, 4].tolist() == [255, 255, 255]
