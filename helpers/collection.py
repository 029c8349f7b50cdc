"""A retrieval collection: passages, queries in three splits, and what is relevant to which."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.artifacts import Run
from helpers.triplets import Gathered

SPLITS = ("train", "dev", "test")


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


def collect(gathered: Gathered) -> RetrievalData:
    """Make a corpus, queries and qrels of what was gathered, and split the queries at random.

    Test queries are drawn first, then dev, so that where the whole source is read both stay the
    same whatever ``max_train`` is. A negative that turned out to answer its own query is left out.

    Raises:
        ValueError: too few queries for the splits.
    """
    experiment = gathered.experiment
    passages: dict[str, dict] = {}
    queries: dict[str, dict[int, None]] = {}  # the values keep the order of their keys
    negatives: dict[str, str] = {}
    for row in gathered.rows:
        known = {"id": len(passages), "title": row["title"], "topic": row["topic"]}
        passage = passages.setdefault(row["positive"], known)["id"]
        if row["negative"] is not None:
            passages.setdefault(
                row["negative"], {"id": len(passages), "title": None, "topic": None}
            )
        if row["query"] is not None:
            queries.setdefault(row["query"], {})[passage] = None
            if row["negative"] is not None:
                negatives.setdefault(row["query"], row["negative"])
    for query in [q for q, text in negatives.items() if passages[text]["id"] in queries[q]]:
        del negatives[query]
    held_out = experiment.num_test + experiment.num_dev
    needed = held_out + experiment.batch_size
    if len(queries) < needed:
        raise ValueError(
            f"{experiment.dataset} gives {len(queries)} queries, but {needed} are needed: "
            f"num_test {experiment.num_test}, num_dev {experiment.num_dev} and one batch of "
            f"{experiment.batch_size} to train on. Set fewer, or bring more rows"
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
