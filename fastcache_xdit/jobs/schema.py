"""The table of a job, and the longest question about it."""

from __future__ import annotations

SCHEMA = (
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY, batch INTEGER,
        prompt TEXT NOT NULL, negative_prompt TEXT, seed INTEGER,
        width INTEGER, height INTEGER, steps INTEGER, guidance REAL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
        attempts INTEGER NOT NULL DEFAULT 0, owner TEXT, error TEXT, output TEXT, checksum TEXT,
        started REAL, finished REAL, seconds REAL, computed INTEGER, approximated INTEGER, compute_ratio REAL,
        recorded INTEGER NOT NULL DEFAULT 0,
        CHECK ((state = 'running') = (owner IS NOT NULL)), CHECK ((state = 'done') = (checksum IS NOT NULL)),
        CHECK (state != 'failed' OR error IS NOT NULL))""",
    "CREATE INDEX by_state ON items (state, batch)",
    "CREATE INDEX by_batch ON items (batch)",
)
# The next batch with the size, steps and guidance that most batches have.
TEACHABLE = """SELECT batch FROM items WHERE batch > ? AND state != 'failed' AND (steps, width, height, guidance) IS (
    SELECT steps, width, height, guidance FROM items WHERE batch NOT NULL GROUP BY steps, width, height, guidance
    ORDER BY COUNT(DISTINCT batch) DESC, MIN(batch) LIMIT 1) ORDER BY batch LIMIT 1"""
