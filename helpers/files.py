"""Reads rows from JSONL, CSV, TSV and Parquet files, such as a reader's own."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        place: Where it stands, such as "line 7".
        columns: Its values by column; None where it cannot be read.
        fault: Why it cannot be read, else None.
    """

    place: str
    columns: dict | None
    fault: str | None = None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        path: Ends in ``.jsonl`` (an object a line), ``.csv``, ``.tsv`` (both with a line of column
            names) or ``.parquet``; text is UTF-8. Blank lines are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, two columns of one name, or a file that is not what its ending
            says.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: the file's ending must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".jsonl": _json_lines, ".parquet": _parquet}
    try:
        yield from readers.get(path.suffix, _table)(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    except (pyarrow.ArrowException, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error


def column_names(path: Path) -> list[str]:
    """The columns of a file; of JSONL all that some line has. Arguments and errors as for
    :func:`read_file`.
    """
    if path.suffix == ".jsonl":
        return list(dict.fromkeys(name for row in read_file(path) for name in row.columns or ()))
    if path.suffix == ".parquet":
        next(read_file(path), None)  # for its errors
        return pyarrow.parquet.read_schema(path).names
    with open(path, encoding="utf-8-sig", newline="") as file:
        return _header(path, _reader(path, file))


def _json_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            place = f"line {number}"
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                yield Row(place, None, "not valid JSON")
                continue
            if isinstance(found, dict):
                yield Row(place, found)
            else:
                yield Row(place, None, "not a JSON object")


def _table(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = _reader(path, file)
        names = _header(path, reader)
        for values in reader:
            place = f"line {reader.line_num}"
            if not values:
                continue
            if len(values) == len(names):
                yield Row(place, dict(zip(names, values, strict=True)))
            else:
                yield Row(place, None, "wrong number of fields")


def _reader(path: Path, file):
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")


def _header(path: Path, reader) -> list[str]:
    names = next((values for values in reader if values), [])
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path} has two columns called {twice!r}: rename one")
    return names


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            for columns in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", columns)
