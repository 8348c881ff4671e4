"""The way of one image through the wire arm: in one direction, through each room once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pgn_client

from .fakes import Server, ToyAdapter, client, picture

PACKAGE = Path(pgn_client.__file__).parent
ROOMS = (
    "session",
    "prepare",
    "recordings",
    "upload",
    "remote_model",
    "exchange",
    "transport",
    "prediction",
)
"""The modules that an image passes; the others hold values or serve one of these."""


def room_of(frame: FrameType | None) -> str | None:
    """Return the room whose code a frame runs; ``None`` if it runs other code."""
    if frame is None:
        return None
    path = Path(frame.f_code.co_filename)
    return path.stem if path.parent == PACKAGE / "wire" and path.stem in ROOMS else None


class Walk:
    """Records which room calls which other room, by Python's own profiling hook."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.known: list[FrameType] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        # A generator that goes on has the frame of its first call.
        if event != "call" or any(frame is known for known in self.known):
            return
        self.known.append(frame)
        room = room_of(frame)
        if room is None or self.is_value(frame):
            return
        caller = frame.f_back
        while caller is not None and room_of(caller) is None:
            caller = caller.f_back
        if room_of(caller) != room:
            self.entered.append(room)

    @staticmethod
    def is_value(frame: FrameType) -> bool:
        """Whether the frame only makes or reads a value: a constructor or a property."""
        name = frame.f_code.co_name
        owner = type(frame.f_locals.get("self", frame.f_locals.get("cls")))
        return name.startswith(("__", "<")) or isinstance(getattr(owner, name, None), property)


def walk(**options: Any) -> list[str]:
    """Classify an image whose endpoint is known already; return the rooms in order of entry."""
    hook = Walk()
    with client(Server(), ToyAdapter([0.5, 0.5], 0.5), **options) as c:
        c.classify(picture(0))
        sys.setprofile(hook)
        try:
            c.classify(picture(1))
        finally:
            sys.setprofile(None)
    return hook.entered


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_passes_each_room_once(cached, tmp_path):
    entered = walk(cache=tmp_path / "a.sqlite") if cached else walk()
    assert len(entered) == len(set(entered)), entered


def test_the_walk_is_the_one_that_the_contributing_page_shows():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## The way of one image")[2].partition("\n## ")[0]
    first_words = [line.split()[0] for line in section.splitlines() if line.startswith("    ")]
    # Only a checkpoint that runs on the server is uploaded.
    assert [word for word in first_words if word in ROOMS and word != "upload"] == walk()
