"""Corpus, queries and qrels: no leak between splits, no passage twice, every answer in place."""

from dataclasses import replace

import pytest

from helpers.artifacts import ArtifactError, open_run
from helpers.collection import SPLITS, collect, load_data
from helpers.config import PRESETS
from helpers.triplets import Gathered, normalise, open_source

LONG = "a passage with more than enough words to be kept by every rule that there is here"


def gathered(rows, experiment):
    found = Gathered(experiment)
    for row in rows:
        found.add(row)
    return found


def numbered(count, **more):
    return [
        {"query": f"query number {i}", "positive": f"{LONG} {i}", "negative": f"no {i}"} | more
        for i in range(count)
    ]


def small(**changes):
    experiment = replace(PRESETS["smoke"], num_dev=3, num_test=4, batch_size=2, **changes)
    return collect(gathered(numbered(30), experiment))


@pytest.fixture(scope="module")
def wikipedia():
    found = gathered(open_source(PRESETS["wikipedia"]), PRESETS["wikipedia"])
    return collect(found), found.counts


def test_wikipedia_has_the_expected_size(wikipedia):
    data, counts = wikipedia
    assert len(data.passages) == 9995
    assert data.queries["split"].value_counts().to_dict() == {
        "train": 6759,
        "dev": 1000,
        "test": 1000,
    }
    dropped = sum(n for what, n in counts.items() if what.startswith("dropped"))
    assert counts.total() - dropped == 9995
    assert counts["kept: a new query"] == len(data.queries)


@pytest.mark.parametrize("title", ["Computer", "Steam engine", "Monkey"])
def test_an_article_that_says_may_refer_to_is_kept(wikipedia, title):
    data, _ = wikipedia
    (text,) = data.passages.loc[data.passages["title"] == title, "text"]
    assert "may refer to" in text


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


def test_the_split_follows_its_seed_and_not_the_training_seed():
    assert small().queries.equals(small(seed=7).queries)
    assert not small().queries.equals(small(split_seed=7).queries)


def test_a_smaller_training_set_leaves_dev_and_test_as_they_are():
    for name in ("dev", "test"):
        assert small(max_train=5).split(name)[0] == small().split(name)[0]
    assert len(small(max_train=5).split("train")[0]) == 5
    assert len(small(max_train=5).passages) == 60


def test_the_sources_own_negatives_are_kept_for_training_and_stand_in_the_corpus():
    data = small()
    rows = data.training_rows()
    assert (rows["negative"].str[3:] == rows["query"].str[13:]).all()
    assert set(rows["negative"]) <= set(data.passages["text"])


@pytest.mark.parametrize("without", [0, 1, 9])
def test_training_queries_without_a_negative_are_left_out_if_others_have_one(without):
    experiment = replace(PRESETS["smoke"], num_dev=1, num_test=1, batch_size=2)
    data = collect(gathered(numbered(9), experiment))
    train = data.queries.index[data.queries["split"] == "train"]
    data.queries.loc[train[:without], "negative"] = None
    rows = data.training_rows()
    if without == 9:
        assert list(rows.columns) == ["query", "positive"]
    assert len(rows) == (7 if without == 9 else 7 - without)


def test_too_few_queries_says_how_many_and_how_many_are_needed():
    with pytest.raises(ValueError, match=r"gives 1 queries, but 204 are needed: num_test 80"):
        collect(gathered(numbered(1), PRESETS["smoke"]))


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
