"""Checkpoint files: safetensors for the arrays, a JSON card in the header for everything else.

``file`` writes and reads files, ``card`` defines the card, and ``summary`` renders it as text.
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
