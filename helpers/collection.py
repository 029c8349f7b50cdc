"""Make a corpus, queries and qrels of the kept rows, and split the queries."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.config import Experiment
from helpers.metrics import Split
from helpers.rows import normalise
from helpers.runs import Run
from helpers.triplets import TripletFilter, refuse_labels

SPLITS = ("train", "dev", "test")
_NUMBER = re.compile(r"[\w.:-]*\d[\w.:-]*", re.ASCII)
# Traces of HTML, and of UTF-8 that was read as Windows-1252.
_DAMAGED = re.compile(r"&(?:[a-z]{2,8}|#\d+);|</?[a-z]+[ >/]|â[€\x80]|Ã[\x80-\xbf]", re.IGNORECASE)


@dataclass(frozen=True)
class RetrievalData:
    """A corpus, the queries on it in three splits, and which passages answer which query.

    Attributes:
        passages: Columns ``text``, ``title``, ``topic``; a passage's id is its row number.
        queries: Columns ``text``, ``split`` and ``negative``, the source's own hard negatives, a
            list, or None; a query's id is its row number.
        qrels: Columns ``query`` and ``passage``, both ids; one row for each relevant passage.
    """

    passages: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame

    @cached_property
    def _own_passages(self) -> list[set[int]]:
        return own_passages(self.queries["text"], self.passages["text"])

    def split(self, name: str) -> Split:
        """Return the queries of a split, the passages that answer each, and its own text's id."""
        chosen = self.queries[self.queries["split"] == name]
        relevant = self.qrels.groupby("query")["passage"].agg(set)
        own = [self._own_passages[query] for query in chosen.index]
        return Split(chosen["text"].tolist(), relevant.loc[chosen.index].tolist(), own)

    def train_passages(self) -> list[int]:
        """The ids of the passages that are relevant to training queries."""
        return sorted(set().union(*self.split("train").qrels))

    def known_answers(self) -> str:
        """Say how many test queries have an answer that training has, too; "" if none has."""
        relevant = self.split("test").qrels
        train = set(self.train_passages())
        if not (known := sum(not train.isdisjoint(wanted) for wanted in relevant)):
            return ""
        return (
            f"{known:,} of {len(relevant):,} test queries have an answer that training sees with "
            "other queries: scores are for new questions on known answers."
        )

    def pairs(self, split: str) -> pd.DataFrame:
        """Each query of a split with each passage that answers it: ``query``, ``positive``."""
        chosen = self.qrels[self.qrels["query"].map(self.queries["split"]) == split]
        query, passage = chosen["query"], chosen["passage"]
        query, passage = query.map(self.queries["text"]), passage.map(self.passages["text"])
        return pd.DataFrame({"query": query, "positive": passage}).reset_index(drop=True)

    def training_rows(self, num_negatives: int = 0) -> pd.DataFrame:
        """One row for each training query: ``query``, ``positive`` (its first passage), then
        ``negative``, ``negative_2`` and so on. As many as most queries have in the source, or
        ``num_negatives`` if none has any; None where a query lacks one.
        """
        rows = self.pairs("train").drop_duplicates("query", ignore_index=True)
        column = self.queries.loc[self.queries["split"] == "train", "negative"]
        negatives = [() if texts is None else texts for texts in column]
        usual = Counter(map(len, filter(len, negatives))).most_common(1)
        for place in range(usual[0][0] if usual else num_negatives):
            name = f"negative_{place + 1}" if place else "negative"
            rows[name] = [texts[place] if place < len(texts) else None for texts in negatives]
        return rows

    def fill_negatives(self, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Fill training rows that lack a negative with random training passages.

        A passage that answers the query, is its text or is in the row already is passed over. A
        row for which no passage is left stays as it is.
        """
        texts = self.passages["text"]
        deck = np.random.default_rng(seed).permutation(texts[self.train_passages()].to_numpy())
        dealt = itertools.cycle(deck)
        parts = zip(*self.split("train"), strict=True)
        wrong = {query: {*texts[[*answers, *own]]} for query, answers, own in parts}
        filled = rows.to_dict("records")
        for row in filled:
            for name in [name for name, text in row.items() if not isinstance(text, str)]:
                taken = {*row.values()} | wrong[row["query"]]
                fits = (text for text in itertools.islice(dealt, len(deck)) if text not in taken)
                row[name] = next(fits, None)
        return pd.DataFrame(filled)


def own_passages(queries: Iterable[str], passages: Iterable[str]) -> list[set[int]]:
    """For each query the id of the passage that is its own text, if there is one.

    It's no answer, but would come first: leave it out of the query's ranking.
    """
    place = {normalise(text): number for number, text in enumerate(passages)}
    return [{place[key]} if (key := normalise(query)) in place else set() for query in queries]


def load_data(run: Run) -> RetrievalData:
    """Read what notebook 2 made. Raises :class:`helpers.runs.ArtifactError` if it isn't there."""
    return RetrievalData(
        *(run.load(f"{name}.parquet") for name in ("passages", "queries", "qrels"))
    )


def collect(kept: TripletFilter) -> RetrievalData:
    """Make a corpus, queries and qrels of the kept rows, and split the queries at random.

    Test queries are drawn first, then dev: if the whole source is read, both stay the same
    whatever ``max_train`` is. Queries that share an answer are in one split, and so are a query
    and one that it answers. So test and dev have as many queries as was asked, or a few less if no
    group of queries is left that fits. Where that would leave one of them fewer than ten groups
    (or than a third of its queries), every query is drawn on its own.

    A negative that also answers its own query is left out. Prints what looks odd: queries that
    belong together, queries that are passages, HTML, broken characters.

    Raises:
        ValueError: too few queries for the splits, or passages to look at ``k`` of them; or rows
            are labelled as right or wrong.

    >>> few = {"num_dev": 10, "num_test": 10, "min_passage_words": 1}
    >>> kept = TripletFilter(Experiment(name="mine", **few))
    >>> for number in range(100):
    ...     kept.add({"query": f"what is number {number}", "positive": f"It is {number}."})
    >>> collect(kept).queries["split"].value_counts().to_dict()
    {'train': 80, 'test': 10, 'dev': 10}
    """
    experiment = kept.experiment
    refuse_labels(kept)
    for what, number in kept.notes.items():
        print(f"{number:,} {what} (first: {', '.join(kept.places[what])})")
    passages: dict[str, dict] = {}
    queries: dict[str, dict[int, None]] = {}  # the inner dictionaries serve as ordered sets
    negatives: dict[str, list[str]] = {}
    for row in kept.rows:
        about = {"id": len(passages), "title": row["title"], "topic": row["topic"]}
        passage = passages.setdefault(row["positive"], about)["id"]
        for text in row["negative"] or ():
            passages.setdefault(text, {"id": len(passages), "title": None, "topic": None})
        if row["query"] is not None:
            queries.setdefault(row["query"], {})[passage] = None
            negatives.setdefault(row["query"], []).extend(row["negative"] or ())
    for query, texts in negatives.items():
        wrong = [text for text in texts if passages[text]["id"] not in queries[query]]
        negatives[query] = wrong or None
    if missing := kept.missing():
        print(f"The source has no more; still missing: {missing}.")
    held_out = experiment.num_test + experiment.num_dev
    needed = held_out + experiment.batch_size
    if len(queries) < needed:
        raise ValueError(
            f"{experiment.dataset} gives {len(queries)} queries, but {needed} are needed: "
            f"num_test {experiment.num_test}, num_dev {experiment.num_dev} and one batch of "
            f"{experiment.batch_size} to train on. Set fewer, or bring more rows. What became of "
            f"the {kept.num_read} rows:\n{kept.table().to_string()}"
        )
    if len(passages) < experiment.k:
        raise ValueError(
            f"{experiment.dataset} gives {len(passages)} passages, but k is {experiment.k}: set it "
            "lower, or bring more rows"
        )
    own = own_passages(queries, passages)
    if number := sum(map(len, own)):
        print(
            f"{number:,} of {len(queries):,} queries are passages, left out of their own ranking."
        )
    if 2 * sum(bool(_NUMBER.fullmatch(text)) for text in passages) > len(passages):
        print(
            f"Most passages are numbers, such as {next(iter(passages))!r}: are they ids of texts?"
        )
    if damaged := [match[0] for text in passages if (match := _DAMAGED.search(text))]:
        print(
            f"{len(damaged):,} passages hold HTML or broken characters, such as {damaged[0]!r}. "
            "They stay as they are: clean the file first, for example with ftfy."
        )
    frame = pd.DataFrame(
        {
            "text": list(queries),
            "split": _draw_splits(_groups([*queries.values()], own), experiment),
            "negative": pd.Series([negatives[text] for text in queries], dtype="object"),
            "relevant": queries.values(),
        }
    )
    frame = frame[frame["split"] != "unused"].reset_index(drop=True)
    qrels = [(query, passage) for query, wanted in frame["relevant"].items() for passage in wanted]
    data = RetrievalData(
        passages=pd.DataFrame(
            [(text, about["title"], about["topic"]) for text, about in passages.items()],
            columns=["text", "title", "topic"],
        ),
        queries=frame[["text", "split", "negative"]],
        qrels=pd.DataFrame(qrels, columns=["query", "passage"]),
    )
    if known := data.known_answers():
        print(known)
    return data


def _groups(answers: list[dict[int, None]], own: list[set[int]]) -> np.ndarray:
    """Number the groups of queries that passages link: ``(num_queries,)``."""
    links = [(query, p) for query, ids in enumerate(answers) for p in (*ids, *own[query])]
    queries, passages = np.array(links).T
    size = len(answers) + passages.max() + 1
    ends = queries, len(answers) + passages
    graph = coo_array((np.ones(len(links)), ends), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(answers)]


def _draw_splits(groups: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Draw "test", "dev", "train" or "unused" for each query, group by group if that can be."""
    order = np.random.default_rng(experiment.split_seed).permutation(len(groups))
    members: dict[int, list[int]] = {}
    for query in order:
        members.setdefault(groups[query], []).append(query)
    asked = {"test": experiment.num_test, "dev": experiment.num_dev}
    room, drawn = dict(asked), Counter()
    split = np.full(len(groups), "train", dtype=object)
    for group in members.values():
        if name := next((name for name in room if len(group) <= room[name]), None):
            split[group] = name
            room[name] -= len(group)
            drawn[name] += 1
    if shared := sum(len(group) for group in members.values() if len(group) > 1):
        print(f"{shared:,} of {len(groups):,} queries share an answer, or answer one another.")
        if any(drawn[name] < min(10, number / 3) for name, number in asked.items()):
            print("That leaves too few groups to split: every query is drawn on its own.")
            return _draw_splits(np.arange(len(groups)), experiment)
        short = "".join(f", {n:,} fewer in {name}" for name, n in room.items() if n)
        print(f"They are in one split{short}.")
    if experiment.max_train is not None:
        split[order[split[order] == "train"][experiment.max_train :]] = "unused"
    return split
