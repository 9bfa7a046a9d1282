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
from fastcache_xdit.jobs.recipe import BadLine, PromptLine, bad_line, checked, printable
from fastcache_xdit.options import unknown_option

Raw = dict[str, Any] | BadLine
Line = PromptLine | BadLine
Numbered = tuple[int, Raw]  # the line of the file, from 1, and what it holds


def read_prompts(path: str | Path, fit: Callable[[Line], Line] = lambda line: line) -> list[Line]:
    """Read every line of a prompts file, in order, as `fit` returns it; errors are those of `numbered_prompts`.

    The reason of a bad line begins with the name of the file and the number of the line.
    """
    return [_placed(fit(line), f"{Path(path).name}, line {number}") for number, line in numbered_prompts(path)]


def _placed(line: Line, place: str) -> Line:
    return bad_line(line.text, f"{place}: {line.reason}") if isinstance(line, BadLine) else line


def numbered_prompts(path: str | Path) -> list[tuple[int, Line]]:
    """Read every line of a prompts file, in order, each with its number in the file.

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
    lines = [(number, _line(path, raw)) for number, raw in READERS[path.suffix.lower()](path)]
    if not lines:
        raise UsageError(f"{path} holds no prompt", "give one a line")
    return lines


def _line(path: Path, raw: Raw) -> Line:
    line = raw if isinstance(raw, BadLine) else checked(raw)
    return line if isinstance(line, BadLine) else with_files(line, path)


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
        values = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        return bad_line(line, f"not JSON: {error}")
    if not isinstance(values, dict):
        return bad_line(line, f'a line is an object like {{"prompt": "a red circle"}}, not {type(values).__name__}')
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a field is given twice")
    return values


def _csv(path: Path) -> Iterator[Numbered]:
    records = _records(list(io.StringIO(_text(path), newline="")))
    _, columns = next(records, (0, []))
    if isinstance(columns, BadLine):
        raise UsageError(f"{path}, line 1: {columns.reason}")
    _check_columns(path, columns)
    for number, cells in records:
        if isinstance(cells, BadLine):
            yield number, cells
        elif len(cells) > len(columns):
            told = f"{len(cells)} cells in {len(columns)} columns; quote texts with commas"
            yield number, bad_line(",".join(cells), told)
        elif cells:
            yield number, dict(zip(columns, cells, strict=False))


def _records(lines: list[str]) -> Iterator[tuple[int, list[str] | BadLine]]:
    """Read cells with the number of their last line; behind a line that is no CSV reading goes on with the next one."""
    start = 0
    while start < len(lines):
        rows = csv.reader((lines[number] for number in range(start, len(lines))), strict=True)
        done = 0
        try:
            for cells in rows:
                done = rows.line_num
                yield start + done, cells
        except csv.Error as error:  # what began here may have taken lines along that are none of its own
            yield (
                start + done + 1,
                bad_line(lines[start + done], f"not CSV: {error}; is each quote closed, or doubled?"),
            )
            done += 1
        start += done


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{path} needs pyarrow: pip install 'fastcache_xdit[parquet]', or give .jsonl") from None
    try:
        table = parquet.read_table(path)
        columns = [_cells(column, pyarrow) for column in table.columns]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path} is not a parquet file, or damaged: {printable(str(error))}") from None
    _check_columns(path, table.column_names)
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
        if columns.count(name) > 1:
            raise UsageError(f"{path} has more than one column {name!r}", "leave one of them")
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
