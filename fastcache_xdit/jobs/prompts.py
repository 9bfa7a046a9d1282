"""Read files of prompts (txt, jsonl, csv, parquet) line by line, so that a bad line spoils no other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs.inputs import with_files
from fastcache_xdit.jobs.recipe import BadLine, PromptLine, bad_line, checked
from fastcache_xdit.options import unknown_option

Raw = dict[str, Any] | BadLine
Numbered = tuple[int, Raw]  # the line of the file, from 1, and what it holds


def read_prompts(path: str | Path) -> list[PromptLine | BadLine]:
    """Read every line of a prompts file, in order.

    txt holds one prompt a line (# begins a comment line), jsonl one object a line, csv and parquet one column for each
    field of `PromptLine`. Bytes that are not UTF-8 make a bad line, not a bad file.

    Raises:
        UsageError: no such file, a kind of file or a column that is not known, or no line at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such prompts file: {path}")
    if path.suffix.lower() not in READERS:
        raise UsageError(
            f"{path}: prompts come in {', '.join(READERS)}, not in {path.suffix or 'a file without ending'}"
        )
    lines = [_line(path, number, raw) for number, raw in READERS[path.suffix.lower()](path)]
    if not lines:
        raise UsageError(f"{path} holds no prompt", "give one a line")
    return lines


def _line(path: Path, number: int, raw: Raw) -> PromptLine | BadLine:
    line = raw if isinstance(raw, BadLine) else checked(raw)
    return line if isinstance(line, BadLine) else with_files(line, path, number)


def _text(path: Path) -> str:
    """The file's text, with every byte that is not UTF-8 as a lone surrogate, which `checked` refuses."""
    return path.read_bytes().decode("utf-8-sig", "surrogateescape")


def _txt(path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {"prompt": line.strip()}


def _jsonl(path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, _object(line)


def _object(line: str) -> Raw:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return bad_line(line, f"not JSON: {error}")
    if not isinstance(values, dict):
        return bad_line(line, f'a line is an object like {{"prompt": "a red circle"}}, not {type(values).__name__}')
    return values


def _csv(path: Path) -> Iterator[Numbered]:
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    columns = next(rows, [])
    _check_columns(path, columns)
    while (cells := _next_row(rows)) is not None:
        if isinstance(cells, BadLine):
            yield rows.line_num, cells
        elif len(cells) > len(columns):
            told = f"{len(cells)} cells in {len(columns)} columns; quote texts with commas"
            yield rows.line_num, bad_line(",".join(cells), told)
        elif cells:
            yield rows.line_num, dict(zip(columns, cells, strict=False))


def _next_row(rows: Any) -> list[str] | BadLine | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        return bad_line("", f"not CSV: {error}")


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{path} needs pyarrow: pip install 'fastcache_xdit[parquet]', or give .jsonl") from None
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is not a parquet file: {error}") from None
    _check_columns(path, table.column_names)
    columns = [_cells(column, pyarrow) for column in table.columns]
    for number, values in enumerate(zip(*columns, strict=True), 1):
        yield number, dict(zip(table.column_names, values, strict=True))


def _cells(column: Any, pyarrow: Any) -> list[Any]:
    """A column's values; text is decoded cell by cell, so that one that is not UTF-8 spoils no other."""
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return column.to_pylist()
    cells = column.cast(pyarrow.large_binary()).to_pylist()
    return [cell.decode("utf-8", "surrogateescape") if cell is not None else None for cell in cells]


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in columns:
        if name not in PromptLine.model_fields:
            raise unknown_option(name, PromptLine.model_fields).of(path)
    if "prompt" not in columns:
        raise UsageError(
            f"{path} has no column 'prompt'", f"its first line names the columns: {', '.join(PromptLine.model_fields)}"
        )


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
