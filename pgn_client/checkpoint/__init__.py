"""Checkpoints: safetensors for the numbers, a JSON card in the header for everything else. Read
without torch.

``file`` writes and reads the whole, ``card`` says what stands on the card, ``summary`` shows it to
people. Nothing in a checkpoint is executed: a pickle is refused.
"""

from pgn_client.checkpoint.card import HOSTED, RAW, SCHEMA, Card
from pgn_client.checkpoint.file import Arrays, fingerprint, fingerprint_of, read, read_card, write
from pgn_client.checkpoint.summary import summary

__all__ = [
    "HOSTED",
    "RAW",
    "SCHEMA",
    "Arrays",
    "Card",
    "fingerprint",
    "fingerprint_of",
    "read",
    "read_card",
    "summary",
    "write",
]
