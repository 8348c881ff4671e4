"""Checkpoint files: safetensors for the arrays, a JSON card in the header for everything else.

The module ``file`` writes and reads checkpoints, ``card`` defines the card (the metadata), and
``summary`` renders a card as text.
Reading needs no torch. Nothing in a checkpoint is executed: a pickle is refused.
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
