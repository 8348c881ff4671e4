"""Rule 25: a ledger that is empty, damaged or something else is refused, never counted from 0."""

import contextlib
import sqlite3

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.ledger import Ledger

COLUMNS = "endpoint TEXT PRIMARY KEY, name TEXT NOT NULL, images INTEGER NOT NULL, cost REAL"


def database(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def spent(path, images="3", cost="0.5"):
    database(
        path,
        f"CREATE TABLE spent ({COLUMNS})",
        f"INSERT INTO spent VALUES ('e', 'host/model', {images}, {cost})",
    )


def test_an_empty_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "l.sqlite"
    path.touch()
    with pytest.raises(ConfigurationError, match=r"is empty, .*restore the file, or remove it"):
        Ledger(path)
    assert path.stat().st_size == 0


def test_a_new_ledger_appears_with_its_table_and_leaves_nothing_beside_it(tmp_path):
    Ledger(tmp_path / "l.sqlite").close()
    assert [path.name for path in tmp_path.iterdir()] == ["l.sqlite"]
    Ledger(tmp_path / "l.sqlite").close()


def test_a_ledger_is_made_where_the_file_system_has_no_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.reserve("e", "host/model", 5, 0.0)
    ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["l.sqlite"]


@pytest.mark.parametrize(
    "table",
    [
        "places (url TEXT)",
        "spent (endpoint TEXT, images INTEGER)",
        f"spent ({COLUMNS}, extra TEXT)",
        "spent (endpoint, name, cost, images)",
    ],
)
def test_another_database_is_no_ledger_and_is_not_changed(table, tmp_path):
    path = tmp_path / "l.sqlite"
    database(path, f"CREATE TABLE {table}")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is no ledger"):
        Ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("images", "cost"),
    [
        ("-1", "0"),
        ("-9223372036854775808", "0"),
        ("9223372036854775807", "0"),
        ("1.5", "0"),
        ("'many'", "0"),
        ("x'00'", "0"),
        ("1", "-0.5"),
        ("1", "9e999"),
        ("1", "NULL"),
        ("1", "'free'"),
    ],
)
def test_an_impossible_count_is_refused_with_a_remedy(images, cost, tmp_path):
    spent(tmp_path / "l.sqlite", images, cost)
    with pytest.raises(ConfigurationError, match="restore the file, or remove it to count from 0"):
        Ledger(tmp_path / "l.sqlite")


def test_a_ledger_of_an_earlier_version_keeps_its_counts(tmp_path):
    spent(tmp_path / "l.sqlite")
    ledger = Ledger(tmp_path / "l.sqlite")
    assert ledger.spent("e") == (3, 0.5)
    ledger.close()


BLOCKED = """
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER fails AFTER INSERT ON {table} BEGIN INSERT INTO child VALUES (1); END;
"""
"""A constraint that SQLite checks at COMMIT only, so that COMMIT fails."""


@pytest.mark.parametrize("kind", [Ledger, AnswerCache])
def test_a_commit_that_fails_leaves_no_transaction_open(kind, tmp_path):
    store = kind(tmp_path / "store.sqlite")
    table = "spent" if kind is Ledger else "answers"
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as other:
        other.executescript(BLOCKED.format(table=table))
    store._db.execute("PRAGMA foreign_keys = ON")

    def write():
        if kind is Ledger:
            store.reserve("e", "host/model", None, 1.0)
        else:
            store.put("k", Answer(("a",), (1.0,)))

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="FOREIGN KEY constraint failed"):
            write()
        assert not store._db.in_transaction
    store._db.execute("DROP TRIGGER fails")
    write()
    store.close()
