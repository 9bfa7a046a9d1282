"""The table of a job, and the longest question about it."""

from __future__ import annotations

SCHEMA = (
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY, batch INTEGER,
        prompt TEXT NOT NULL, negative_prompt TEXT, seed INTEGER,
        width INTEGER, height INTEGER, steps INTEGER, guidance REAL,
        image TEXT, mask TEXT, video TEXT, control_image TEXT, strength REAL, num_frames INTEGER,
        state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
        attempts INTEGER NOT NULL DEFAULT 0, owner TEXT, error TEXT, output TEXT, checksum TEXT,
        started REAL, finished REAL, seconds REAL, computed INTEGER, approximated INTEGER, compute_ratio REAL,
        recorded INTEGER NOT NULL DEFAULT 0,
        CHECK ((state = 'running') = (owner IS NOT NULL)), CHECK ((state = 'done') = (checksum IS NOT NULL)),
        CHECK (state != 'failed' OR error IS NOT NULL))""",
    "CREATE INDEX by_state ON items (state, batch)",
    "CREATE INDEX by_batch ON items (batch)",
)
_ALIKE = "steps, width, height, guidance, strength, num_frames"
# The next batch that has of these what most batches have.
TEACHABLE = f"""SELECT batch FROM items WHERE batch > ? AND state != 'failed' AND ({_ALIKE}) IS (
    SELECT {_ALIKE} FROM items WHERE batch NOT NULL GROUP BY {_ALIKE}
    ORDER BY COUNT(DISTINCT batch) DESC, MIN(batch) LIMIT 1) ORDER BY batch LIMIT 1"""
