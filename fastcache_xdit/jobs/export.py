"""Write a job's items as a table, and check that its images are still what was made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import checksum, write_whole
from fastcache_xdit.jobs.item import Item
from fastcache_xdit.jobs.store import Store

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula begins with
COLUMNS = tuple(name for name in Item.model_fields if name != "owner")


def export(store: Store, path: Path) -> None:
    """Write every item, with what became of it, to a table; `output` is made absolute.

    Raises:
        UsageError: a kind of file that is not known, or one that needs what is not installed.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(
            f"{path}: a table is written as {', '.join(WRITERS)}, not as {path.suffix or 'no kind of file'}"
        )
    rows = [_row(store.folder, item) for item in store.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, WRITERS[path.suffix.lower()](rows))


def damaged(store: Store) -> list[int]:
    """List the ids of done items whose image is gone, or not what was written."""
    return [item.id for item in store.items("state = 'done'") if not _is_whole(store.folder / str(item.output), item)]


def _is_whole(path: Path, item: Item) -> bool:
    return path.is_file() and checksum(path.read_bytes()) == item.checksum


def _row(folder: Path, item: Item) -> dict[str, Any]:
    values = {name: value for name, value in item.model_dump().items() if name in COLUMNS}
    return values | ({"output": str((folder / item.output).resolve())} if item.output else {})


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _as_text(value: Any) -> Any:
    """Quote a text that a spreadsheet would carry out, as one: with an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("parquet needs pyarrow: pip install 'fastcache_xdit[parquet]', or write .jsonl") from None
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
