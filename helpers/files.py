"""Read the rows of CSV, TSV, JSONL and Parquet files, and say what is wrong with them."""

import csv
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from helpers.config import SUFFIXES, is_file_name


class Row(NamedTuple):
    """One row of a file."""

    place: str  # such as "line 7"
    columns: dict | None  # None if it can't be read
    fault: str | None = None  # why it can't be read


def read_file(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file; blank lines are passed over.

    Args:
        path: UTF-8 text that ends in ``.jsonl`` (an object a line, or one array of them), ``.csv``
            or ``.tsv`` (with a line of column names; in TSV, quotes are text), or ``.parquet``.
        columns: Those that are needed, of a ``.parquet`` file; None for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unsupported type, two columns of one name, content of another type, or a
            quote that nothing closes.
    """
    with _clear_errors(path):
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, columns)
        else:
            yield from (_json_lines if path.suffix.lower() == ".jsonl" else _table)(path)


def column_names(path: Path) -> list[str]:
    """List the columns of a file; of JSONL, all that any line has. Raises as :func:`read_file`."""
    with _clear_errors(path):
        if path.suffix.lower() == ".jsonl":
            return [*dict.fromkeys(name for row in _json_lines(path) for name in row.columns or ())]
        if path.suffix.lower() == ".parquet":
            return _distinct(path, pyarrow.parquet.read_schema(path).names)
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _header(path, _csv_reader(path, file))


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    if not is_file_name(path.name):
        raise ValueError(f"{path}: unsupported file type; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't UTF-8 text: {_encoding(path)}") from error
    except (pyarrow.ArrowException, csv.Error, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} can't be read as {path.suffix[1:].upper()}: {error}") from error


def _encoding(path: Path) -> str:
    """Say what a file that isn't UTF-8 seems to be, and what to do."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it looks like UTF-16; save it as UTF-8"
    if content.startswith(b"\x1f\x8b"):
        return "it looks like gzip; unpack it first"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"see byte {error.start}, in line {line}; save it as UTF-8 (is it Windows-1252?)"


def _json_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        is_array = file.read(1) == "["
        file.seek(0)
        if is_array:
            for number, found in enumerate(json.load(file), start=1):
                yield _json_row(f"object {number}", found)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _json_row(f"line {number}", json.loads(line))
            except (ValueError, RecursionError):
                yield Row(f"line {number}", None, "not valid JSON")


def _json_row(place: str, found) -> Row:
    return Row(place, found) if isinstance(found, dict) else Row(place, None, "not a JSON object")


def _table(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = _csv_reader(path, file)
        names = _header(path, reader)
        while True:
            first, fault = reader.line_num + 1, "wrong number of fields"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                values, fault = names[1:], "text after a closing quote"
                if reader.line_num > first or "end of data" in str(error):
                    raise ValueError(
                        f"{path} opens a quote in line {first} and doesn't close it there: write a "
                        'quote inside a quoted field twice (""), or save the file as .tsv'
                    ) from None
            place = f"line {first}"
            if values == names:
                yield Row(place, None, "the header again")
            elif len(values) == len(names):
                yield Row(place, dict(zip(names, values, strict=True)))
            elif values:
                yield Row(place, None, fault)


def _csv_reader(path: Path, file):
    csv.field_size_limit(2**31 - 1)  # the module's own limit is 131,072 characters
    if path.suffix.lower() == ".tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)  # or it takes what follows a lost quote for one field


def _header(path: Path, reader) -> list[str]:
    names = next((values for values in reader if values), [])
    if names and names[0].lower().startswith("sep="):
        raise ValueError(f"{path} begins with Excel's line {names[0]!r}: delete it")
    others, wanted = (",;|", "tabs") if path.suffix.lower() == ".tsv" else (";\t|", "commas")
    if len(names) == 1 and (other := next((sign for sign in others if sign in names[0]), None)):
        raise ValueError(f"{path} separates its columns by {other!r}: save it with {wanted}")
    return _distinct(path, names)


def _distinct(path: Path, names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path} has two columns called {twice!r}: rename one")
    return names


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for name in columns or ():
            kind = file.schema_arrow.field(name).type
            kind = getattr(kind, "value_type", kind)  # of lists, and of encoded columns
            if not (pyarrow.types.is_null(kind) or "string" in str(kind)):
                raise ValueError(
                    f"{path}: the column {name!r} holds {kind}, expected text: cast it to string"
                )
        batches = file.iter_batches(batch_size=1000, columns=columns and [*columns])
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, columns in enumerate(rows, start=1):
            yield Row(f"row {number}", columns)
