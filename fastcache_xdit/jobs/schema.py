"""The tables of a job, and the longest question about them."""

from __future__ import annotations

VERSION = 1  # of the tables, kept as SQLite's user_version; files from before there were versions have 0
COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "batch": "INTEGER",
    "prompt": "TEXT NOT NULL",
    "negative_prompt": "TEXT",
    "seed": "INTEGER",
    "width": "INTEGER",
    "height": "INTEGER",
    "steps": "INTEGER",
    "guidance": "REAL",
    "image": "TEXT",
    "mask": "TEXT",
    "video": "TEXT",
    "control_image": "TEXT",
    "strength": "REAL",
    "num_frames": "INTEGER",
    "state": "TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed'))",
    "attempts": "INTEGER NOT NULL DEFAULT 0",
    "owner": "TEXT",
    "error": "TEXT",
    "output": "TEXT",
    "checksum": "TEXT",
    "started": "REAL",
    "finished": "REAL",
    "seconds": "REAL",
    "computed": "INTEGER",
    "approximated": "INTEGER",
    "compute_ratio": "REAL",
    "recorded": "INTEGER NOT NULL DEFAULT 0",
}
OWNERS = "CREATE TABLE owners (name TEXT PRIMARY KEY, beat REAL NOT NULL, learns INTEGER NOT NULL DEFAULT 0)"
SCHEMA = (
    f"""CREATE TABLE items ({", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())},
        CHECK ((state = 'running') = (owner IS NOT NULL)), CHECK ((state = 'done') = (checksum IS NOT NULL)),
        CHECK (state != 'failed' OR error IS NOT NULL))""",
    "CREATE INDEX by_state ON items (state, batch)",
    "CREATE INDEX by_batch ON items (batch)",
    OWNERS,
)
# The next batch to make: what nobody failed at, then what was tried most, so that it comes to an end.
WAITING = """SELECT batch FROM items WHERE state = 'pending' GROUP BY batch
    ORDER BY MAX(attempts) > 0, MAX(attempts) DESC, batch LIMIT 1"""
_ALIKE = "steps, width, height, guidance, strength, num_frames"
# The next batch that has of these what most batches have.
TEACHABLE = f"""SELECT batch FROM items WHERE batch > ? AND state != 'failed' AND ({_ALIKE}) IS (
    SELECT {_ALIKE} FROM items WHERE batch NOT NULL GROUP BY {_ALIKE}
    ORDER BY COUNT(DISTINCT batch) DESC, MIN(batch) LIMIT 1) ORDER BY batch LIMIT 1"""
