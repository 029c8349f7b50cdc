"""Which rows are kept, how the others are counted, and the collection that is made of them."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.collection import SPLITS, collect, own_passages
from helpers.config import PRESETS, from_toml
from helpers.rows import hub_rows, normalise, read_rows
from helpers.sources import resolve
from helpers.triplets import TripletFilter
from tests.test_files import write

SMOKE = PRESETS["smoke"]
LONG = "a passage with more than enough words to be kept by every rule that there is here"
QUERY = "what is this about"
A_LIST = "looks like a list written as text; save as JSONL or Parquet"


def row(query=QUERY, positive=LONG, negative=None, **more):
    negatives = negative if isinstance(negative, list) else [negative]
    return {"query": query, "positive": positive, "negative": negatives, **more}


def numbered(count, **more):
    return [
        row(f"query number {i}", f"{LONG} {i}", negative=f"no {i}") | more for i in range(count)
    ]


def kept_of(rows, **changes):
    kept = TripletFilter(SMOKE.replace(**changes))
    for one in rows:
        kept.add(one)
    return kept


def gather(experiment):
    """Read as notebook 2 does: until there is enough, or the source ends."""
    kept = TripletFilter(experiment)
    for one in read_rows(experiment):
        kept.add(one)
        if kept.is_full:
            break
    return kept


def streamed(*rows):
    """Rows as the Hub gives them."""
    return Dataset.from_list([*rows]).to_iterable_dataset()


# --- What is kept ---


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"positive": None}, "passage missing"),
        ({"positive": 3}, "passage is a int, not text"),
        ({"positive": [LONG]}, "passage is a list, not text"),
        ({"positive": " NULL"}, "passage is 'NULL'"),
        ({"positive": "  "}, "passage empty"),
        ({"positive": "too few words"}, "passage too short"),
        ({"negative": ["another", LONG.upper()]}, "negative is the positive"),
        ({"positive": "half a sign \ud800"}, "passage not valid Unicode"),
        ({"positive": f"['{LONG}', '{LONG}']"}, f"passage {A_LIST}"),
        ({"positive": f' ["{LONG}"]'}, f"passage {A_LIST}"),
        ({"positive": f"['{LONG}'\n '{LONG}']"}, f"passage {A_LIST}"),  # as NumPy writes it
        ({"positive": f"{{'text': '{LONG}'}}"}, f"passage {A_LIST}"),
        ({"unreadable": "not valid JSON"}, "not valid JSON"),
    ],
)
def test_a_bad_row_is_dropped_and_counted_with_its_place(bad, reason):
    rows = [row(place=f"line {i}") | bad for i in range(5)] + [row(place="line 5")]
    kept = kept_of(rows)
    assert [r["positive"] for r in kept.rows] == [LONG]
    assert kept.counts == {f"dropped: {reason}": 5, "kept: a new query": 1}
    assert kept.table().loc[f"dropped: {reason}"].tolist() == [5, "line 0, line 1, line 2"]
    assert kept.num_read == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": None}, "query missing"),
        ({"query": "nan"}, "query is 'nan'"),
        ({"query": LONG.upper()}, "query is its passage"),
        ({"query": ""}, "query empty"),
        ({"query": "\u200b\ufeff \u00ad"}, "query empty"),
        ({"query": "two words"}, "query too short"),
        ({"query": "['one of these', 'two']"}, f"query {A_LIST}"),
        ({"ambiguous": True}, "query shared by several passages"),
    ],
)
def test_a_bad_query_is_counted_and_its_passage_stays(change, reason):
    kept = kept_of([row(**change), row(**change)])
    assert [(r["query"], r["positive"]) for r in kept.rows] == [(None, LONG)]
    assert kept.counts == {
        f"kept: passage alone, {reason}": 1,
        f"dropped: passage seen before, {reason}": 1,
    }


def test_texts_that_look_alike_are_one():
    unseen = "\u200b\u200d\u2060\ufeff\u00ad"
    kept = kept_of([row(), row("what is th" + unseen + "is about", unseen + LONG)])
    assert kept.counts["dropped: query and passage seen before"] == 1
    assert normalise("  Straße\tⅣ " + unseen) == normalise("STRASSE iv")


QUERIES = st.sampled_from([None, "", "query number 1", " Query  NUMBER 1", "query number 2", "no"])
PASSAGES = st.sampled_from([None, 7, "short", *(f"{LONG}{end}" for end in ("", "\u200b", " 1"))])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(row, QUERIES, PASSAGES, negative=PASSAGES)))
def test_whatever_the_rows_each_is_counted_once_and_the_collection_is_sound(rows):
    rows = [*rows, *numbered(9)]
    kept = kept_of(rows, num_dev=2, num_test=2, batch_size=2)
    assert kept.num_read == len(rows)
    assert sum(n for what, n in kept.counts.items() if what.startswith("kept")) == len(kept.rows)
    data = collect(kept)
    assert data.passages["text"].map(normalise).is_unique
    assert data.queries["text"].map(normalise).is_unique
    assert data.training_rows()["query"].is_unique
    texts = data.passages["text"].loc[data.qrels["passage"]]
    negatives = data.queries["negative"].loc[data.qrels["query"]]
    assert all(text not in (wrong or ()) for text, wrong in zip(texts, negatives, strict=True))


# --- The collection ---


def test_wikipedia_makes_the_collection_of_the_published_scores():
    data = collect(gather(PRESETS["wikipedia"]))
    assert len(data.passages) == 9995
    sizes = {"train": 6759, "dev": 1000, "test": 1000}
    assert data.queries["split"].value_counts().to_dict() == sizes
    assert data.queries["text"].map(normalise).is_unique
    assert data.passages["text"].map(normalise).is_unique
    for name in SPLITS:
        queries, relevant, _ = data.split(name)
        assert len(queries) == len(relevant) and all(relevant)
    rows = data.training_rows()
    assert list(rows.columns) == ["query", "positive"]
    assert rows["query"].tolist() == data.split("train").queries
    assert {*rows["positive"]} <= {*data.passages["text"].iloc[data.train_passages()]}
    texts = data.passages.set_index("title")["text"]
    for title in ("Computer", "Steam engine", "Monkey"):
        assert "may refer to" in texts[title], "an article all the same"


def small(rows=None, **changes):
    sizes = {"num_dev": 3, "num_test": 4, "batch_size": 2} | changes
    return collect(kept_of(rows or numbered(30), **sizes))


def test_a_smaller_training_set_or_another_training_seed_leaves_dev_test_and_the_corpus():
    assert small().queries.equals(small(seed=7).queries)
    assert not small().queries.equals(small(split_seed=7).queries)
    fewer = small(max_train=5)
    assert len(fewer.split("train").queries) == 5
    assert fewer.passages.equals(small().passages)
    for name in ("dev", "test"):
        assert fewer.split(name).queries == small().split(name).queries


def test_the_sources_own_negatives_are_kept_and_what_is_missing_is_left_to_mining():
    rest = [row(f"query number {i}", f"{LONG} {i}", negative=["nan"]) for i in range(20, 30)]
    data = small([*numbered(20), *rest])
    rows = data.training_rows(num_negatives=3)
    assert [*rows] == ["query", "positive", "negative"], "as many as the source has"
    assert len(rows) == (data.queries["split"] == "train").sum() == 23
    lacking = rows[rows["negative"].isna()]
    assert {*lacking["query"]} == {one["query"] for one in rest} & {*rows["query"]}
    own = rows.dropna()
    assert (own["negative"].str[3:] == own["query"].str[13:]).all()
    three = [f"{word} is wrong" for word in ("this", "that", "it")]
    rows = small([*numbered(20, negative=three), *numbered(22, negative=three[:1])[20:]])
    rows = rows.training_rows()
    assert [*rows] == ["query", "positive", "negative", "negative_2", "negative_3"]
    assert rows["negative_3"].isna().sum() < 3 and (rows["negative"] == three[0]).all()


def test_mining_is_told_all_right_answers_and_training_sees_the_first():
    data = small([*numbered(30), *(row(f"query number {i}", f"{LONG} {i} too") for i in range(30))])
    pairs, rows = data.pairs("train"), data.training_rows()
    assert len(pairs) == 2 * len(rows) == 2 * (data.queries["split"] == "train").sum()
    numbers = pairs["query"].str.removeprefix("query number ")
    assert (pairs["positive"].str.removesuffix(" too") == f"{LONG} " + numbers).all()
    assert not rows["positive"].str.endswith("too").any()


def test_queries_that_share_an_answer_share_a_split(capsys):
    chained = [row(f"query number {i}", f"{LONG} {i - 1}") for i in range(1, 40, 2)]
    data = small([*numbered(60), *chained, *numbered(90)[60:]], num_test=20, num_dev=15)
    answers = [set().union(*data.split(name).qrels) for name in SPLITS]
    assert all(one.isdisjoint(other) for one, other in combinations(answers, 2))
    sizes = {"test": 20, "dev": 15, "train": 55}
    assert data.queries["split"].value_counts().to_dict() == sizes
    said = capsys.readouterr().out
    assert "40 of 90 queries share an answer" in said and "are in one split." in said
    assert "known answers" not in said


def test_with_too_few_answers_queries_are_drawn_one_by_one_and_that_is_said(capsys):
    rows = [row(f"query number {i}", f"{LONG} {i % 12}") for i in range(600)]
    data = small(rows, num_test=100, num_dev=50)
    assert data.queries["split"].value_counts().to_dict() == {"train": 450, "test": 100, "dev": 50}
    for said in (capsys.readouterr().out, data.known_answers()):
        assert "100 of 100 test queries have an answer that training sees" in said
        assert "new questions on known answers" in said


def test_a_pair_and_its_reverse_share_a_split_and_a_querys_own_text_is_found(capsys):
    pairs = [(f"How is thing number {i}", f"Tell me how thing number {i} is") for i in range(30)]
    rows = [row(*pair) for pair in pairs] + [row(b.upper(), a) for a, b in pairs]
    data = small(rows, num_test=10, num_dev=10, min_passage_words=1)
    for name in SPLITS:
        numbers = [re.search(r"\d+", text)[0] for text in data.split(name).queries]
        assert set(Counter(numbers).values()) == {2}
    assert "60 of 60 queries are passages" in capsys.readouterr().out
    texts = data.passages["text"]
    for query, right, own in zip(*data.split("test"), strict=True):
        assert {*map(normalise, texts[[*own]])} == {normalise(query)} and own.isdisjoint(right)
    assert own_passages(["nothing like it"], texts) == [set()]


def test_random_negatives_are_training_passages_and_never_right():
    other = [row(f"query number {i}", f"{LONG} {i + 1}") for i in range(20)]
    data = small([*numbered(30, negative=None), *other, row(f"{LONG} 3".upper(), f"{LONG} 99")])
    right = data.pairs("train").groupby("query")["positive"].agg(set)
    train = [*data.passages["text"][data.train_passages()]]
    rows = data.training_rows(num_negatives=22)  # all that are left for some queries
    wrong = rows["query"].map(lambda query: next(p for p in train if p not in right[query]))
    rows["negative"] = wrong  # as if it had been mined
    found = data.fill_negatives(rows, seed=1)
    assert found.notna().all(axis=None)
    known = ["query", "positive", "negative"]
    assert found[known].equals(rows[known])
    for query, _, *negatives in found.itertuples(index=False):
        assert {*negatives} <= {*train} - right[query] and len({*negatives}) == 22
        assert normalise(query) not in negatives[1:]
    assert found.equals(data.fill_negatives(rows, seed=1))
    assert not found.equals(data.fill_negatives(rows, seed=2))


def test_rows_that_differ_in_their_negative_add_it_or_are_counted(capsys):
    rows = [
        row(f"query number {query}", f"{LONG} {query}", f"wrong {number} of {query}")
        for query in [*range(30), 0]
        for number in range(3)
    ]
    rows.append(row("query number 1", f"{LONG} 1 too", "wrong 9 of 1"))
    three = small(rows, num_negatives=3)
    assert len(three.passages) == 30 * 4 + 1
    assert three.training_rows().notna().all(axis=None)
    assert [*three.training_rows()][2:] == ["negative", "negative_2", "negative_3"]
    assert "1 rows: their negative isn't used, as num_negatives is 3" in capsys.readouterr().out
    one = small(rows)
    assert [*one.training_rows()][2:] == ["negative"]
    assert len(one.passages) == 30 * 2 + 1
    assert "63 rows: their negative isn't used, as num_negatives is 1" in capsys.readouterr().out


def test_negatives_that_are_no_text_are_counted_and_equal_ones_are_one(capsys):
    bad = [None, "", {"text": "a"}, "['a', 'b']", "No way", "no  way"]
    kept = kept_of([row(f"query number {i}", f"{LONG} {i}", bad, place=i) for i in range(9)])
    assert kept.rows[0]["negative"] == ["No way"]
    assert {*kept.notes.values()} == {9} and len(kept.notes) == 2
    collect(kept_of(numbered(9, negative=bad), num_dev=1, num_test=1, batch_size=2, k=2))
    said = capsys.readouterr().out
    assert "9 negatives aren't used: each is a dict, not text" in said
    assert f"9 negatives aren't used: each {A_LIST}" in said


def test_control_characters_are_taken_out_and_counted(capsys):
    sign = "\x00\x07\x1b\x7f"
    texts = (f"query{sign} number one", f"{LONG}{sign} one", f"{sign}not this")
    rows = [*numbered(9), row(*texts, place="line 10"), row("one\x0ctwo\x1fthree", LONG)]
    kept = kept_of(rows, num_dev=1, num_test=1, batch_size=2, k=2)
    last = ("query number one", f"{LONG} one", ["not this"])
    assert tuple(kept.rows[9][name] for name in ("query", "positive", "negative")) == last
    assert kept.rows[10]["query"] == "one two three", "a page's end and a separator are spaces"
    collect(kept)
    said = "4 texts hold control characters, which are taken out (first: line 10, line 10, line 10)"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "are_labels"),
    [
        *((values, True) for values in ((0, 1.0), (False, True), ("No", "yes"), (None, "0.0", 1))),
        *((values, False) for values in ((1,), (0, 1, 2), (0.25, 1), ("a", "b"), (["a"], 1))),
    ],
)
def test_only_columns_of_0_and_1_are_refused_as_labels_whatever_their_type(values, are_labels):
    rows = [one | {"unread": {"x": values[i % len(values)]}} for i, one in enumerate(numbered(30))]
    if are_labels:
        with pytest.raises(ValueError, match="'x' isn't read, and holds 0 and 1"):
            small(rows)
    else:
        assert len(small(rows).queries) == 30


# --- A reader's own file ---

OWN = [
    {
        "question": f"what is written on page number {i}?",
        "answer": f"on the page that has number {i} it says {i * i}",
        "wrong": f"on another page it says {i * i + 1}",
    }
    for i in range(40)
]
TOML = 'preset = "smoke"\ndataset = "%s"\nnum_dev = 5\nnum_test = 5\nbatch_size = 4\n'
NAMES = 'query_column = "question"\npositive_column = "answer"\n'


def own(tmp_path, name, more=NAMES, rows=OWN):
    if not (tmp_path / name).exists():
        write(tmp_path / name, rows)
    (tmp_path / "mine.toml").write_text(TOML % name + more)
    return from_toml(tmp_path / "mine.toml")


def test_usual_names_need_no_setting_and_negatives_may_be_late_or_several(tmp_path):
    lines = [
        {"query": "a", "positive": "b"},
        {"query": "c", "positive": "d", "negative": ["e", "f"], "negative_1": "g"},
        {"query": "h", "positive": "i", "negative_1": "j", "negative_2": "k", "negatives": "no"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = list(read_rows(own(tmp_path, "mine.jsonl", "")))
    found = [[text for text in row["negative"] if text] for row in rows]
    assert found == [[], ["e", "f", "g"], ["j", "k"]]
    assert next(hub_rows(streamed({"anchor": "a", "positive": "b"}), SMOKE))["query"] == "a"


def test_columns_that_are_not_read_are_named_with_a_guess(tmp_path, capsys):
    names = ("hard_negative_1", "hard_negative_2", "neg", "pos", "label", "similarity", "text")
    line = dict.fromkeys(("anchor", "positive", "negative3", *names), "a")
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    for rows in (read_rows(own(tmp_path, "mine.jsonl", "")), hub_rows(streamed(line), SMOKE)):
        assert next(rows)["negative"] == ["a"]
        read, unread = capsys.readouterr().out.splitlines()
        assert read == "Columns that are read: 'anchor', 'positive', 'negative3'"
        assert unread.count("(negatives? negative_column = 'hard_negative')") == 2
        assert "'pos' (right answers? " in unread and "'label' (a label? " in unread
    hard = SMOKE.replace(negative_column="hard_negative")
    assert next(hub_rows(streamed(line), hard))["negative"] == ["a", "a"]
    one = SMOKE.replace(negative_column="hard_negative_1")
    assert next(hub_rows(streamed(line | {"hard_negative_10": "b"}), one))["negative"] == ["a"]


def test_labels_of_a_file_are_refused_with_the_line_that_keeps_the_right_rows(tmp_path):
    rows = [one | {"is it": i % 2} for i, one in enumerate(OWN)]
    with pytest.raises(ValueError, match="'is it' isn't read, and holds 0 and 1") as error:
        collect(gather(own(tmp_path, "mine.csv", rows=rows)))
    exec(str(error.value).splitlines()[1], {})
    right = gather(own(tmp_path, "right.jsonl"))
    assert [one["query"] for one in right.rows] == [one["question"] for one in OWN[1::2]]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_file_without_names_is_told_to_add_some(tmp_path, suffix):
    separator = {".csv": ",", ".tsv": "<tab>"}[suffix]
    for place, names in enumerate([("how old is it", LONG), ("how old is it", "very old")]):
        experiment = own(tmp_path, f"{place}{suffix}", "", [dict.fromkeys(names, "a")])
        with pytest.raises(ValueError, match=f"a first line, such as query{separator}positive$"):
            next(read_rows(experiment))


@pytest.mark.parametrize(
    ("more", "number", "said"),
    [
        (NAMES, 10, "(?s)gives 10 queries, but 14 are needed: num_test 5.*kept: a new query +10"),
        (NAMES + "k = 41\n", 40, "gives 40 passages, but k is 41"),
    ],
)
def test_too_few_rows_are_refused_before_any_work(tmp_path, more, number, said):
    with pytest.raises(ValueError, match=said):
        collect(gather(own(tmp_path, "mine.csv", more, OWN[:number])))


def test_a_file_that_changes_makes_other_data_and_is_refused_in_the_middle_of_a_run(tmp_path):
    before = resolve(own(tmp_path, "mine.csv"), {})
    write(tmp_path / "mine.csv", OWN[:20])
    with pytest.raises(ValueError, match=r"mine\.csv has changed since this run began"):
        next(read_rows(before))
    assert resolve(own(tmp_path, "mine.csv"), {}).up_to("data") != before.up_to("data")
