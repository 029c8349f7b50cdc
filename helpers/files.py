"""Read the rows of CSV, TSV, JSONL and Parquet files, and say what is wrong with them."""

import csv
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from helpers.config import SUFFIXES, is_file_name

BEIR = ["query-id", "corpus-id", "score"]  # the columns of its qrels
_ADVICE = 'Write one object a line, such as {"query": "...", "positive": "..."}'


class Row(NamedTuple):
    """One row of a file."""

    place: str  # such as "line 7"
    columns: dict | None  # None if it can't be read
    fault: str | None = None  # why it can't be read


def read_file(path: str | Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file, or of all files in a folder; blank lines are passed over.

    Args:
        path: UTF-8 text that ends in ``.jsonl`` (an object a line, or one array of them), ``.csv``
            or ``.tsv`` (with a line of column names; in TSV, quotes are text), or ``.parquet``.
        columns: Those of a ``.parquet`` file that must hold text. Then only columns of texts,
            numbers and truth values come with them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unsupported type, two columns of one name, content of another type, or a
            quote that nothing closes.
    """
    for file in _shards(Path(path)):
        with _clear_errors(file):
            if file.suffix.lower() == ".parquet":
                rows = _parquet(file, columns)
            else:
                rows = (_json_lines if file.suffix.lower() == ".jsonl" else _table)(file)
            for row in rows:
                yield row if file == Path(path) else row._replace(place=f"{file.name} {row.place}")


def column_names(path: Path) -> list[str]:
    """List the columns of a file; of JSONL, all that any line has. Raises as :func:`read_file`."""
    return [*dict.fromkeys(name for file in _shards(path) for name in _names(file))]


def _names(path: Path) -> list[str]:
    with _clear_errors(path):
        if path.suffix.lower() == ".jsonl":
            names = {name: None for row in _json_lines(path) for name in row.columns or ()}
            if not names:
                saw, advice = "no line is a JSON object", _ADVICE
                if path.read_text(encoding="utf-8-sig").lstrip().startswith("{"):
                    saw = "it seems to write an object over several lines, or several on one"
                    advice = f"Write one a line, for example by jq -c . {path.name} > new.jsonl"
                raise ValueError(f"{path}: {saw}. {advice}")
            return [*names]
        if path.suffix.lower() == ".parquet":
            return _distinct(path, pyarrow.parquet.read_schema(path).names)
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _header(path, _csv_reader(path, file))


def _shards(path: Path) -> list[Path]:
    """The file, or the files of a folder without hidden ones, which must be of one type."""
    if not path.is_dir():
        return [path]
    tables = [file for file in path.rglob("*") if is_file_name(file.name) and file.is_file()]
    files = [f for f in tables if all(part[0] not in "._" for part in f.relative_to(path).parts)]
    types = sorted({file.suffix.lower() for file in files})
    if len(types) != 1:
        raise ValueError(
            f"{path} is a folder with {' and '.join(types) or 'none of ' + ', '.join(SUFFIXES)}: "
            "name one file, or a folder with files of one type"
        )
    return sorted(files)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 for files in a folder: of their names and contents."""
    names = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def data_sha256(path: Path) -> str:
    """Return the SHA-256 of a reader's own file, or of all that is read of a folder."""
    if beir := beir_files(path):
        return folder_sha256(beir.corpus.parent, [beir.corpus, beir.queries, *beir.qrels])
    return folder_sha256(path, _shards(path)) if path.is_dir() else sha256(path)


# --- Collections in BEIR's layout ---


class Beir(NamedTuple):
    """The files of a collection in BEIR's layout."""

    corpus: Path
    queries: Path
    qrels: list[Path]


def beir_files(path: Path) -> Beir | None:
    """Find a collection in BEIR's or GPL's layout by its folder or one of its files of qrels.

    None if it's something else.
    """
    for folder in (path, path.parent, *sorted(path.glob("*qrels"))):
        corpus = folder.with_name("corpus.jsonl")
        queries = folder.with_name(folder.name.replace("qrels", "queries") + ".jsonl")
        qrels = sorted(folder.glob("*.tsv"))
        if folder.name.endswith("qrels") and corpus.is_file() and queries.is_file() and qrels:
            return Beir(corpus, queries, qrels)
    return None


def read_beir(files: Beir) -> Iterator[Row]:
    """Yield a row for each answer that the qrels name, then one for each other passage.

    All qrels count as one. As in BEIR, a passage is its title and its text.

    Yields:
        Rows with the columns ``query`` (None for a passage alone), ``positive`` and ``title``.

    Raises:
        ValueError: as :func:`read_file`; or the qrels have other columns.
    """
    answers = []
    for path in files.qrels:
        if (names := column_names(path)) != BEIR:
            raise ValueError(f"{path}: expected a first line of {', '.join(BEIR)}, got {names}")
        for row in read_file(path):
            place = f"{path.name} {row.place}"
            try:
                score = float(row.columns["score"]) if row.columns else 0
            except ValueError:
                yield Row(place, None, "a score that is no number")
                continue
            if score > 0:
                answers.append((place, row.columns["query-id"], row.columns["corpus-id"]))
            else:
                yield Row(place, None, row.fault or "a score of 0 or below, so no answer")
    relevant = {passage for _, _, passage in answers}
    queries = {name: columns.get("text") for name, columns in _by_id(files.queries)}
    passages = {name: _passage(c) for name, c in _by_id(files.corpus) if name in relevant}
    for place, query, passage in answers:
        known = query in queries and passage in passages
        columns = {"query": queries[query]} | passages[passage] if known else None
        yield Row(place, columns, None if known else "no text has this id")
    for place, columns, fault in read_file(files.corpus):
        if fault:
            yield Row(f"{files.corpus.name} {place}", None, fault)
        elif str(columns.get("_id")) not in relevant:
            yield Row(f"{files.corpus.name} {place}", {"query": None} | _passage(columns))


def _by_id(path: Path) -> Iterator[tuple[str, dict]]:
    return ((str(row.columns.get("_id")), row.columns) for row in read_file(path) if row.columns)


def _passage(columns: dict) -> dict:
    title, text = columns.get("title") or None, columns.get("text")
    return {"positive": f"{title} {text}" if title and text else text, "title": title}


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
            try:
                array = json.load(file)
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":
                    raise
                raise ValueError(f"{path}: each line is an array. {_ADVICE}") from None
            for number, item in enumerate(array, start=1):
                yield _json_row(f"object {number}", item)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _json_row(f"line {number}", json.loads(line))
            except (ValueError, RecursionError):
                yield Row(f"line {number}", None, "not valid JSON")


def _json_row(place: str, item) -> Row:
    return Row(place, item) if isinstance(item, dict) else Row(place, None, "not a JSON object")


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
        kinds = {field.name: field.type for field in file.schema_arrow}
        for name in kinds.keys() & (columns or ()):
            kind = getattr(kinds[name], "value_type", kinds[name])  # of lists, and of encoded ones
            if not (pyarrow.types.is_null(kind) or "string" in str(kind)):
                raise ValueError(
                    f"{path}: the column {name!r} holds {kind}, expected text: cast it to string"
                )
        if columns:  # others, such as dates, may be unreadable
            plain = re.compile("(dictionary<values=)?(bool|u?int|double|float|half|decimal|string)")
            columns = [n for n, kind in kinds.items() if n in columns or plain.match(str(kind))]
        batches = file.iter_batches(batch_size=1000, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, columns in enumerate(rows, start=1):
            yield Row(f"row {number}", columns)
