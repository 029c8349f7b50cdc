"""Rows from the Hub: whatever interrupts the stream, the next run keeps the same rows."""

import json
import os
import subprocess
import sys
from collections import Counter
from uuid import uuid4

import pytest

from helpers import sources
from helpers.config import PRESETS, ROOT
from helpers.sources import HubError
from helpers.triplets import TripletFilter, collect, stream_rows
from tests.loopback_hub import triplet_files
from tests.test_triplets import gather


def rows_of(num_queries=120, each=10):
    """Several rows a query, with some that can't be used and some that are there twice."""
    rows = []
    for query in range(num_queries):
        for number in range(each):
            row = {
                "query": f"what is the number {query}",
                "positive": f"the number {query} is a number and {number // 9} of its answers",
                "negative": f"passage {number} is about something else than {query}",
            }
            if query % 10 == 3 and number == 0:
                row["negative"] = row["positive"].upper()
            if query % 10 == 4 and number == 1:
                row["positive"] = None
            rows.append(row)
        if query % 10 == 5:
            rows.append(rows[-1])
    return rows


ROWS = rows_of()
FILES = triplet_files(ROWS)
ORDER = (2, 0, 1)  # as the split seed draws the shards


@pytest.fixture
def experiment(hub):
    """A small experiment on a dataset of the loopback Hub."""
    name = f"owner/{uuid4().hex}"  # the clients remember the names that they have seen
    sizes = {"num_test": 20, "num_dev": 15, "max_train": 45, "num_distractors": 200}
    return PRESETS["msmarco"].replace(
        name="stream",
        dataset=name,
        dataset_revision=hub.add("datasets", name, FILES),
        batch_size=8,
        **sizes,
    )


@pytest.fixture
def expected(experiment):
    """What is kept of the same rows without the Hub."""
    kept, third = TripletFilter(experiment), len(ROWS) // 3
    for shard in ORDER:
        for row in ROWS[shard * third : (shard + 1) * third]:
            if kept.missing():
                kept.add(row | {"negative": [row["negative"]]})
    return kept


def same(kept, expected) -> bool:
    return kept.rows == expected.rows and kept.counts == expected.counts


def downloads(hub) -> list[str]:
    """The numbers of the shards that were downloaded, in order."""
    gets = [path for method, path in hub.requests if method == "GET"]
    return [path.split("train-")[1][:5] for path in gets if path.endswith(".parquet")]


def test_it_reads_until_there_is_enough_and_keeps_one_row_a_query(experiment, expected):
    kept = gather(experiment)
    assert same(kept, expected)
    assert kept.num_read < len(ROWS)
    data = collect(kept)
    assert data.queries["split"].value_counts().to_dict() == {"train": 45, "test": 20, "dev": 15}
    assert data.training_rows()["query"].is_unique
    assert data.passages["text"].is_unique
    texts = [(r["query"], t) for r in kept.rows for t in (r["positive"], *(r["negative"] or ()))]
    of_queries = {text for query, text in texts if query and text}
    assert 200 <= len({*data.passages["text"]} - of_queries) <= 201


def test_a_query_has_all_the_answers_that_the_stream_showed(experiment):
    data = collect(gather(experiment))
    answers: dict[str, set] = {}
    for row in ROWS:
        if row["positive"]:
            answers.setdefault(row["query"], set()).add(row["positive"])
    complete = Counter()
    for split in ("test", "dev", "train"):
        for query, relevant in zip(*data.split(split), strict=True):
            texts = {*data.passages["text"].loc[sorted(relevant)]}
            assert texts <= answers[query]
            complete[texts == answers[query]] += 1
    assert complete[False] <= 2  # the queries that a shard's end cuts in two


def test_shards_come_in_an_order_that_the_seed_draws(experiment, hub):
    list(stream_rows(experiment))
    assert downloads(hub) == [f"{shard:05}" for shard in ORDER]
    hub.reset()
    other = experiment.replace(dataset=f"owner/{uuid4().hex}", split_seed=1)
    hub.add("datasets", other.dataset, FILES)
    list(stream_rows(other))
    assert sorted(downloads(hub)) == ["00000", "00001", "00002"]
    assert downloads(hub) != [f"{shard:05}" for shard in ORDER]


@pytest.mark.parametrize("fault", ["reset", "truncated", "flipped", "503"])
def test_a_fault_in_a_shard_changes_no_row(experiment, hub, expected, fault):
    hub.fail(fault, "train-00000")
    assert same(gather(experiment), expected)


def test_a_download_that_fails_for_good_keeps_what_is_complete(
    experiment, hub, expected, monkeypatch
):
    hub.fail("503", "train-00000", times=float("inf"))
    monkeypatch.setattr(sources, "TRIES", 2)
    with pytest.raises(HubError, match=r"the file .*train-00000.*\n.*finished files are kept"):
        gather(experiment)
    hub.reset()
    assert same(gather(experiment), expected)
    assert downloads(hub) == ["00000", "00001"]


@pytest.mark.parametrize("row", [1, 130, 407, 555])
def test_an_interrupted_stream_read_again_gives_the_same_rows(
    experiment, hub, expected, row, monkeypatch
):
    add = TripletFilter.add

    def interrupted(self, given):
        if self.num_read == row:
            raise KeyboardInterrupt
        add(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(TripletFilter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gather(experiment)
    assert same(gather(experiment), expected)
    assert downloads(hub) == ["00002", "00000", "00001"]  # each once


KILLED = """
import json, sys
from helpers.config import Experiment
from tests.test_triplets import gather
gather(Experiment(**json.loads(sys.argv[1])))
"""


def test_a_run_that_was_killed_while_it_downloads_goes_on(experiment, hub, expected):
    hub.fail("stall", "train-00000", times=float("inf"))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(experiment.model_dump(mode="json"))],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert any("train-00000" in line for line in process.stdout)
        while "00000" not in downloads(hub):
            assert process.poll() is None
        process.kill()
    hub.reset()
    assert same(gather(experiment), expected)
    assert downloads(hub) == ["00000", "00001"]


def test_the_end_of_the_stream_says_what_is_missing(experiment, capsys):
    kept = gather(experiment.replace(max_rows=450))
    assert kept.num_read == 450
    assert kept.missing() == "35 queries and 200 distractors"
    collect(gather(experiment.replace(num_distractors=100_000)))
    assert "The source has no more; still missing: 9" in capsys.readouterr().out


def test_a_column_that_is_not_there_names_those_that_are(experiment):
    with pytest.raises(ValueError, match=r"no column 'question'; it has 'query', 'positive', 'neg"):
        next(stream_rows(experiment.replace(query_column="question")))
    with pytest.raises(HubError, match="the dataset owner/nothing at"):
        next(stream_rows(experiment.replace(dataset="owner/nothing")))


def test_lines_of_json_without_a_readme_will_do(experiment, hub):
    name = f"owner/{uuid4().hex}"
    lines = [json.dumps({"anchor": f"query {n}", "positive": f"passage {n}"}) for n in range(9)]
    lines[2] = "not valid"
    commit = hub.add("datasets", name, {"train.jsonl": "\n".join(lines).encode()})
    changes = {"dataset": name, "dataset_config": None, "dataset_revision": None}
    kept = gather(experiment.replace(**changes))
    assert kept.places == {"dropped: not valid JSON": ["line 3 of train.jsonl"]}
    assert kept.counts["kept: a new query"] == 8
    assert any(commit in path for _, path in hub.requests)
