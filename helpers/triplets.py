"""Keep the usable (query, positive, negative) rows, and count what becomes of the others."""

import re
from collections import Counter
from pathlib import Path

import pandas as pd

from helpers.config import Experiment
from helpers.rows import UNSEEN, normalise

# Control characters, of which PostgreSQL can't hold the first. Some separate words.
_CONTROLS = dict.fromkeys([*range(9), *range(0xE, 0x1C), 0x7F])
_CONTROLS |= dict.fromkeys([0xB, 0xC, *range(0x1C, 0x20)], " ")
_CONTROL = re.compile(f"[{''.join(map(chr, _CONTROLS))}]")

# How programs write a missing value, labels and a list as text.
_NULLS = {"nan", "null", "none", "na", "n/a", "#n/a"}
_RIGHT, _WRONG = {"1", "1.0", "true", "t", "yes", "y"}, {"0", "0.0", "false", "f", "no", "n"}
_LIST = re.compile(r"""\s*(\[\s*\]|[\[{]\s*[ub]?['"].*[\]}])\s*""", re.DOTALL)


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
        is_distractor = kept["query"] is None
        if not is_distractor:
            query = normalise(kept["query"])
            self._queries.setdefault(query, kept["query"])
            self._answers.add((query, normalise(kept["positive"])))
            self._negatives.setdefault(query, []).extend(kept["negative"] or ())
        for text in (kept["positive"], *(kept["negative"] or ())):
            if (key := normalise(text)) not in self._passages:
                self._passages[key] = text
                self._distractors += is_distractor
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
        rows = [
            (outcome, number, ", ".join(self.places.get(outcome, [])))
            for outcome, number in self.counts.most_common()
        ]
        return pd.DataFrame(rows, columns=["what", "rows", "first"]).set_index("what")

    def _judge(self, row: dict) -> tuple[str, dict | None]:
        if "unreadable" in row:
            return f"dropped: {row['unreadable']}", None
        query, positive, *texts = (
            self._without_controls(text, row)
            for text in (row.get("query"), row.get("positive"), *(row.get("negative") or ()))
        )
        if reason := _unusable(positive, self.experiment.min_passage_words):
            return f"dropped: passage {reason}", None
        negatives: dict[str, str] = {}
        for text in texts:
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
    words = len(text.translate(UNSEEN).split())
    if not words:
        return "empty"
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        return "not valid Unicode"
    return "too short" if words < min_words else None


def refuse_labels(kept: TripletFilter) -> None:
    """Raise ValueError if a column that isn't read holds 0 and 1 only, whatever their type."""
    dataset, config = kept.experiment.dataset, kept.experiment.dataset_config
    for name, values in kept.unread.items():
        labels = values - _NULLS - {""}
        if labels <= _RIGHT | _WRONG and labels & _RIGHT and labels & _WRONG:
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
                f".lower() in {labels & _RIGHT}).to_json({target!r}, orient='records', lines=True)"
                "\nIf it means something else, leave the column out of the file."
            )
