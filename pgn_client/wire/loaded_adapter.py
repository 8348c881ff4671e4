"""The checkpoint of a client, opened in two steps: its card at once, the adapter at first use."""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import cast

from pgn_client.checkpoint.card import HOSTED, RAW, ServedCard
from pgn_client.checkpoint.file import read_card
from pgn_client.errors import ConfigurationError, MissingDependencyError
from pgn_client.types import Adapter, Hosted
from pgn_client.wire.once import Once

WITHOUT_TORCH = (RAW, HOSTED)
"""Methods whose checkpoints need no torch: a label mapping alone, and those run by the server."""


class LoadedAdapter:
    """A client's checkpoint and the adapter loaded from it; copies of a client share it.

    The adapter turns an image into the one to send, for example by painting a prompt into it.

    Args:
        source: Path of a checkpoint, an adapter, or None to send images unchanged.

    Attributes:
        source: The argument.
        card: The fields that a client reads of the card, the checkpoint's metadata; empty without a
            checkpoint.
        upload: Whether the server has the checkpoint, for one that runs on the server.
        verified: Whether the checkpoint was compared with the endpoint's model.
        warned: Whether the warning about too few labels was logged.
        warned_of_scores: Whether the warning about scores of another meaning was logged.

    Raises:
        CheckpointError: The file is missing or is no checkpoint.
        ConfigurationError: The source is neither a path nor an adapter.
        MissingDependencyError: The checkpoint needs torch, which is not installed.
    """

    def __init__(self, source: str | os.PathLike[str] | Adapter | None) -> None:
        self.source = source
        self.upload = Once()
        self.verified = False
        self.warned = False
        self.warned_of_scores = False
        self._adapter: Adapter | None = None
        # One thread at a time works with the adapter: this loads the checkpoint once, and an
        # adapter, which may be a user's class, need not be thread-safe.
        self.lock = threading.RLock()

        if source is None:
            self.card = ServedCard()
        elif isinstance(source, str | os.PathLike):
            # Raised now, not by the first image: the file is no checkpoint, or torch is missing.
            self.card = ServedCard.from_json(read_card(source))
            if self.card.method not in WITHOUT_TORCH and importlib.util.find_spec("torch") is None:
                raise MissingDependencyError("making prompts", "train")
        elif hasattr(source, "prepare") and hasattr(source, "info"):
            self._adapter = source
            self.card = ServedCard.from_json(source.info)
        else:
            raise ConfigurationError(
                f"pgn_ckpt: got {type(source).__name__}, expected the path of a checkpoint, a "
                "PromptAdapter, or None"
            )

    def open(self, profile: str | None = None) -> Adapter | None:
        """Return the adapter, or None if images are sent unchanged; the first call loads it.

        Args:
            profile: The server's resize and crop; None keeps that of the checkpoint.
        """
        with self.lock:
            if self._adapter is None and self.source is not None:
                # Imported here: it loads torch, which a client without a checkpoint may lack.
                from pgn_client.prompting import adapter

                path = cast("str | os.PathLike[str]", self.source)
                self._adapter = cast(Adapter, adapter.load(path, profile))
                # The profile above may have changed the card.
                self.card = ServedCard.from_json(self._adapter.info)
            return self._adapter

    @property
    def adapter(self) -> Adapter | None:
        """The adapter if it is loaded, else None."""
        return self._adapter

    @property
    def paints(self) -> bool:
        """Whether images are changed before they are sent; a label mapping alone changes none."""
        return self.source is not None and self.card.method != RAW

    @property
    def hosted(self) -> Hosted | None:
        """The checkpoint file to upload, if this checkpoint runs on the server, else None.

        It is also None before the adapter is loaded.
        """
        # The protocol ``Adapter`` does not require the attribute; only ``HostedAdapter`` has it.
        return getattr(self._adapter, "hosted", None)
