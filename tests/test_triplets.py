from collections import Counter
from dataclasses import replace

import pytest

from helpers.artifacts import ArtifactError, open_run
from helpers.config import PRESETS
from helpers.triplets import SPLITS, clean_rows, collect, load_data, normalise, stream_rows

LONG = "a passage with more than enough words to be kept by every rule that there is here"


def row(query="what is this about", positive=LONG, **more):
    return {"query": query, "positive": positive, **more}


def clean(rows, **changes):
    counts = Counter()
    experiment = replace(PRESETS["smoke"], **changes)
    return list(clean_rows(rows, experiment, counts)), counts


@pytest.fixture(scope="module")
def wikipedia():
    counts = Counter()
    experiment = PRESETS["wikipedia"]
    return collect(clean_rows(stream_rows(experiment), experiment, counts), experiment), counts


@pytest.mark.parametrize(
    ("positive", "reason"),
    [
        (None, "passage: not a string"),
        (3, "passage: not a string"),
        ("  ", "passage: empty"),
        ("too few words", "passage: too short"),
        (f"Mercury may refer to: {LONG}", "passage: disambiguation page"),
    ],
)
def test_a_bad_passage_drops_the_row_and_is_counted(positive, reason):
    kept, counts = clean([row(positive=positive), row()])
    assert [r["positive"] for r in kept] == [LONG]
    assert counts == {"rows": 2, reason: 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": None}, "query: not a string"),
        ({"query": ""}, "query: empty"),
        ({"query": "two words"}, "query: too short"),
        ({"ambiguous": True}, "query: shared by several passages"),
    ],
)
def test_a_bad_query_is_counted_and_its_passage_stays(change, reason):
    kept, counts = clean([row(**change)])
    assert [(r["query"], r["positive"]) for r in kept] == [(None, LONG)]
    assert counts == {"rows": 1, reason: 1}


def test_a_row_without_the_columns_is_counted():
    kept, counts = clean([{"text": LONG}])
    assert kept == []
    assert counts["passage: not a string"] == 1


def test_equal_texts_become_one_and_a_query_keeps_all_its_passages():
    other = LONG + " indeed"
    rows = [
        row("Who Was  That man"),
        row("who was that MAN", other),
        row("a third query", LONG.upper()),
    ]
    kept, counts = clean(rows)
    assert [r["query"] for r in kept] == ["Who Was  That man", "Who Was  That man", "a third query"]
    assert [r["positive"] for r in kept] == [LONG, other, LONG]
    assert counts["query: seen before (merged)"] == counts["passage: seen before (merged)"] == 1
    experiment = replace(PRESETS["smoke"], num_dev=1, num_test=1, batch_size=2)
    data = collect(kept + [row(f"query number {i}", f"{LONG} {i}") for i in range(3)], experiment)
    assert len(data.passages) == 5
    assert data.qrels[data.qrels["query"] == 0]["passage"].tolist() == [0, 1]
    assert data.qrels[data.qrels["query"] == 1]["passage"].tolist() == [0]


def test_normalise_folds_case_space_and_unicode_form():
    assert normalise("  Straße\tⅣ ") == normalise("STRASSE iv")


def test_wikipedia_has_the_expected_size(wikipedia):
    data, counts = wikipedia
    assert len(data.passages) == 9975
    assert data.queries["split"].value_counts().to_dict() == {
        "train": 6740,
        "dev": 1000,
        "test": 1000,
    }
    dropped = sum(n for reason, n in counts.items() if reason.startswith("passage"))
    assert counts["rows"] - dropped == 9975
    lost = sum(n for reason, n in counts.items() if reason.startswith("query"))
    assert 9975 - lost == len(data.queries)


def test_no_query_is_in_two_splits_and_no_passage_is_there_twice(wikipedia):
    data, _ = wikipedia
    texts = data.queries["text"].map(normalise)
    assert texts.is_unique
    assert data.passages["text"].map(normalise).is_unique


def test_every_query_has_a_relevant_passage_in_the_corpus(wikipedia):
    data, _ = wikipedia
    for name in SPLITS:
        queries, qrels = data.split(name)
        assert len(queries) == len(qrels)
        assert all(qrels)
        assert max(max(wanted) for wanted in qrels) < len(data.passages)


def test_training_rows_are_made_of_training_queries_alone(wikipedia):
    data, _ = wikipedia
    rows = data.training_rows()
    assert list(rows.columns) == ["query", "positive"]
    assert set(rows["query"]) == set(data.split("train")[0])
    wanted = {p for q in data.split("train")[1] for p in q}
    assert set(rows["positive"]) == set(data.passages["text"].iloc[sorted(wanted)])


def small(**changes):
    experiment = replace(PRESETS["smoke"], num_dev=3, num_test=4, batch_size=2, **changes)
    rows = [row(f"query number {i}", f"{LONG} {i}", negative=f"no {i}") for i in range(30)]
    return collect(rows, experiment)


def test_the_split_follows_its_seed_and_not_the_training_seed():
    assert small().queries.equals(small(seed=7).queries)
    assert not small().queries.equals(small(split_seed=7).queries)


def test_a_smaller_training_set_leaves_dev_and_test_as_they_are():
    for name in ("dev", "test"):
        assert small(max_train=5).split(name)[0] == small().split(name)[0]
    assert len(small(max_train=5).split("train")[0]) == 5
    assert len(small(max_train=5).passages) == 30


def test_the_sources_own_negatives_are_kept_for_training():
    data = small()
    rows = data.training_rows()
    assert (rows["negative"].str[3:] == rows["query"].str[13:]).all()


@pytest.mark.parametrize("without", [0, 1, 9])
def test_training_queries_without_a_negative_are_left_out_if_others_have_one(without):
    experiment = replace(PRESETS["smoke"], num_dev=1, num_test=1, batch_size=2)
    rows = [row(f"query number {i}", f"{LONG} {i}", negative=f"no {i}") for i in range(9)]
    data = collect(rows, experiment)
    train = data.queries.index[data.queries["split"] == "train"]
    data.queries.loc[train[:without], "negative"] = None
    rows = data.training_rows()
    if without == 9:
        assert list(rows.columns) == ["query", "positive"]
    assert len(rows) == (7 if without == 9 else 7 - without)


def test_too_few_queries_says_how_many_and_how_many_are_needed():
    with pytest.raises(ValueError, match=r"gives 1 queries, but 204 are needed: num_test 80"):
        collect([row()], PRESETS["smoke"])


def test_unknown_split():
    with pytest.raises(ValueError, match="split is 'val': allowed are train, dev, test"):
        small().split("val")


def test_train_passages_are_those_of_training_queries():
    data = small()
    wanted = {p for relevant in data.split("train")[1] for p in relevant}
    assert data.train_passages() == sorted(wanted)
    assert len(wanted) == 23


def test_what_notebook_2_saves_is_what_the_others_load(runs):
    run = open_run("smoke", "02_data", quiet=True)
    data = small()
    with pytest.raises(ArtifactError, match=r"passages\.parquet is missing"):
        load_data(run)
    for name in ("passages", "queries", "qrels"):
        run.save(f"{name}.parquet", getattr(data, name), "data")
    loaded = load_data(run)
    for name in SPLITS:
        assert loaded.split(name) == data.split(name)


def test_max_rows_stops_the_stream():
    assert sum(1 for _ in stream_rows(replace(PRESETS["smoke"], max_rows=7))) == 7
