"""Rows from the Hub: whatever goes wrong on the way, none is lost, doubled or changed.

The clients are the real ones, with the loopback Hub on the other side; only their waiting times
are shortened. ``reading`` says what a run without faults keeps.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from datasets.exceptions import DataFilesNotFoundError
from huggingface_hub import constants

from helpers import hub as hub_module
from helpers import triplets
from helpers.artifacts import Run
from helpers.collection import collect
from helpers.config import PRESETS, ROOT
from helpers.device import Machine
from helpers.hub import HubError, patiently
from helpers.triplets import Gathered, Parts, gather, open_source
from tests.loopback_hub import triplet_files

MSMARCO = PRESETS["msmarco"]
SECOND = "train-00000-of-00003"  # the shard that the seed draws as the second one


def rows_of(num_queries=120, each=10):
    """Several rows a query, with some that cannot be used and some that are double."""
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


@pytest.fixture
def experiment(hub, monkeypatch):
    """A small experiment on a dataset of the loopback Hub, with nothing in the clients' cache."""
    monkeypatch.setattr(hub_module, "PAUSES", (0.1, 0.1))
    monkeypatch.setattr(triplets, "SAVE_EVERY", 130)
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    commit = hub.add("datasets", MSMARCO.dataset, FILES)
    sizes = {"num_test": 20, "num_dev": 15, "max_train": 45, "num_distractors": 200}
    return replace(MSMARCO, name="stream", dataset_revision=commit, batch_size=8, **sizes)


def run_in(folder: Path, experiment) -> Run:
    machine = Machine("cpu", "a processor", 2, "float32", 1.0)
    return Run(experiment, folder / experiment.name, "id", machine, "02_data", experiment.name)


@pytest.fixture
def run(experiment, tmp_path):
    return run_in(tmp_path, experiment)


@pytest.fixture
def reading():
    """What is kept of the same rows without the Hub."""
    order = (2, 0, 1)
    third = -(-len(ROWS) // 3)
    found = Gathered(
        replace(MSMARCO, batch_size=8, num_test=20, num_dev=15, max_train=45, num_distractors=200)
    )
    for shard in order:
        for row in ROWS[shard * third : (shard + 1) * third]:
            if not found.complete:
                found.add(row)
    return found


def same(found: Gathered, reading: Gathered) -> bool:
    return found.rows == reading.rows and found.counts == reading.counts


def test_it_keeps_one_row_a_query_and_each_passage_once(run, reading, capsys):
    found = gather(run)
    assert same(found, reading)
    queries = [row["query"] for row in found.rows if row["negative"] and row["query"]]
    assert max(Counter(queries).values()) == 1
    data = collect(found)
    assert data.passages["text"].is_unique
    assert data.queries["split"].value_counts().to_dict() == {"train": 45, "test": 20, "dev": 15}
    said = capsys.readouterr()
    assert f"read {found.num_read:,} rows; that is as many as the experiment asks for" in said.out
    assert "kept=" in said.err
    assert "query and passage seen before=" in said.err
    assert "passage not a string=" in said.err


def test_it_stops_when_there_is_enough_and_reads_distractors_further_on(run):
    found = gather(run)
    assert found.num_read < len(ROWS)
    asked = {row["query"] for row in found.rows} - {None}
    assert len(asked) == 80
    passages = set(collect(found).passages["text"])
    of_queries = {
        text
        for row in found.rows
        if row["query"]
        for text in (row["positive"], row["negative"])
        if text
    }
    assert 200 <= len(passages - of_queries) <= 201


def test_a_query_has_all_positives_that_the_stream_showed(run):
    data = collect(gather(run))
    answers = {}
    for row in ROWS:
        if row["positive"]:
            answers.setdefault(row["query"], set()).add(row["positive"])
    for split in ("test", "dev", "train"):
        queries, qrels = data.split(split)
        for query, relevant in zip(queries, qrels, strict=True):
            texts = set(data.passages["text"].loc[sorted(relevant)])
            assert texts <= answers[query]
            assert len(texts) == 2 or query in {"what is the number 40", "what is the number 80"}


def test_shards_come_in_an_order_that_the_seed_draws(run, hub, capsys):
    gather(run)
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reading")]
    assert [line.split("train-")[1][:5] for line in first] == ["00002", "00000", "00001"]
    other = replace(run.experiment, split_seed=1, name="other")
    next(iter(open_source(other)))
    assert "train-00000" in capsys.readouterr().out


# Where the Hub's own client mends it, nothing is said by us.
ABSORBED = ["429", "stall", "wrong_length"]
RETRIED = ["refuse", "reset", "500", "503", "504", "truncated", "flipped"]


@pytest.mark.parametrize("fault", [*ABSORBED, *RETRIED])
def test_a_fault_in_a_shard_changes_no_row(run, hub, reading, fault, capsys):
    hub.fail(fault, path=SECOND, method="GET")
    assert same(gather(run), reading)
    told = "try 2 in 0.1 s" in capsys.readouterr().out
    assert told == (fault in RETRIED)


BEFORE = [
    ("GET", "/revision/"),
    ("HEAD", "README.md"),
    ("GET", "README.md"),
    ("GET", "/tree/"),
    ("POST", "paths-info"),
    ("HEAD", SECOND),
]


@pytest.mark.parametrize("fault", ["refuse", "500", "429"])
@pytest.mark.parametrize(("method", "path"), BEFORE)
def test_a_fault_in_what_goes_before_changes_no_row(run, hub, reading, fault, method, path):
    hub.fail(fault, path=path, method=method)
    assert same(gather(run), reading)


@pytest.mark.parametrize("fault", ["stall", "truncated", "wrong_length"])
@pytest.mark.parametrize(("method", "path"), [BEFORE[0], *BEFORE[2:5]])
def test_a_reply_that_hangs_or_ends_early_changes_no_row(
    run, hub, reading, fault, method, path, monkeypatch
):
    monkeypatch.setattr(hub_module, "SILENCE", 4)  # above the client's own 2 s
    hub.fail(fault, path=path, method=method)
    assert same(gather(run), reading)


@pytest.mark.parametrize(("method", "path"), [BEFORE[0], *BEFORE[2:5]])
def test_what_goes_before_and_never_comes_is_an_error_and_not_other_data(
    run, hub, method, path, monkeypatch
):
    monkeypatch.setattr(hub_module, "PAUSES", ())  # the client itself tries for 23 s
    name = f"owner/{method}-{path.strip('/.')}"  # the clients remember what they have seen
    commit = hub.add("datasets", name, FILES)
    hub.fail("refuse", path=path, method=method, times=None)
    with pytest.raises(HubError, match=r"did not give .*; tries: 1,"):
        open_source(replace(run.experiment, dataset=name, dataset_revision=commit))


@pytest.mark.parametrize("fault", ["refuse", "reset", "503", "flipped", "truncated"])
def test_past_the_last_try_it_says_so_and_the_next_run_goes_on(run, hub, reading, fault, capsys):
    hub.fail(fault, path=SECOND, method="GET", times=None)
    with pytest.raises(HubError) as error:
        gather(run)
    for part in (hub.url, SECOND, MSMARCO.dataset, "tries: 3,", "again: it goes on"):
        assert part in str(error.value)
    kept = Parts(run).resume()[0]
    assert kept.num_read == -(-len(ROWS) // 3)
    hub.reset()
    capsys.readouterr()
    assert same(gather(run), reading)
    assert f"going on after {kept.num_read} rows" in capsys.readouterr().out
    fetched = [path for method, path, _ in hub.requests if method == "GET" and "00002-of" in path]
    assert not fetched, "the first shard came a second time"


@pytest.mark.parametrize(("fault", "options"), [("stall", {}), ("429", {"retry_after": 5})])
def test_a_reader_does_not_wait_as_long_as_the_client_would(
    run, hub, reading, fault, options, monkeypatch
):
    monkeypatch.setattr(hub_module, "PATIENCE", 3)
    hub.fail(fault, path=SECOND, method="GET", times=None, **options)
    begin = time.monotonic()
    with pytest.raises(HubError, match="nothing arrived for"):
        gather(run)
    assert time.monotonic() - begin < 20
    monkeypatch.undo()
    hub.reset()
    assert same(gather(run), reading)
    # Else those that hang would ask again in the middle of the next test.
    wait([hanging for tries in hub_module._hanging.values() for hanging in tries], timeout=60)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("401", "log in with: hf auth login"), ("403", "log in with"), ("404", "it is not there")],
)
def test_what_no_further_try_mends_is_said_at_once(run, hub, fault, said):
    hub.fail(fault, path=SECOND, method="GET", times=None)
    with pytest.raises(HubError, match=said):
        gather(run)
    assert sum(SECOND in path for method, path, _ in hub.requests if method == "GET") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "owner/nothing"}, "does not give the dataset owner/nothing"),
        ({"dataset_revision": "0" * 40}, "Check its name and revision"),
        ({"dataset_config": "triplet-soft"}, "'triplet-soft' not found"),
        ({"query_column": "question"}, "no column 'question'; it has 'query', 'positive'"),
    ],
)
def test_what_is_not_there_is_named(experiment, change, said):
    with pytest.raises((HubError, ValueError), match=said):
        next(iter(open_source(replace(experiment, **change))))


def test_what_moves_is_waited_for(monkeypatch):
    monkeypatch.setattr(hub_module, "PAUSES", ())
    monkeypatch.setattr(hub_module, "SILENCE", 0.01)
    monkeypatch.setattr(hub_module, "PATIENCE", 1.2)
    tries = []

    def slow(bar):
        tries.append(bar)
        with bar(total=8, disable=True) as moving:
            for _ in range(8):
                time.sleep(0.25)
                moving.update()
        return "all of it"

    assert patiently("a slow file", slow) == "all of it"
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "Make room on the disk"),
        (RuntimeError("Dataset scripts are no longer supported"), "take another dataset"),
        (DataFilesNotFoundError("No (supported) data files found"), "take another dataset"),
    ],
)
def test_what_has_nothing_to_do_with_the_connection_is_said_at_once(error, said):
    tries = []

    def fails(bar):
        tries.append(bar)
        raise error

    with pytest.raises(HubError, match=said):
        patiently("a dataset", fails)
    assert len(tries) == 1


def test_a_try_that_hangs_is_waited_for_by_the_next_call(monkeypatch):
    monkeypatch.setattr(hub_module, "PAUSES", ())
    monkeypatch.setattr(hub_module, "PATIENCE", 0.3)
    begun = []

    def hangs_once(bar):
        begun.append(bar)
        if len(begun) == 1:
            time.sleep(1.5)
            return "late"
        time.sleep(60)

    with pytest.raises(HubError, match="nothing arrived"):
        patiently("a late file", hangs_once)
    monkeypatch.setattr(hub_module, "PATIENCE", 30)
    assert patiently("a late file", hangs_once) == "late"


def test_an_end_without_enough_says_what_is_lacking(run, capsys):
    few = replace(run, experiment=replace(run.experiment, max_rows=600))
    said = r"max_rows allows no more; still lacking: \d+ queries and 200 distractors"
    assert re.fullmatch(said, gather(few).ending)


def test_offline(experiment, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="Unset HF_HUB_OFFLINE"):
        open_source(experiment)


@pytest.mark.parametrize("row", [1, 129, 130, 131, 407, 555])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_run_goes_on_with_no_row_lost_or_double(
    run, reading, row, when, monkeypatch
):
    add = Gathered.add

    def interrupted(self, given):
        stop = self.num_read + 1 == row
        if stop and when == "before":
            raise KeyboardInterrupt
        add(self, given)
        if stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gathered, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gather(run)
    assert Parts(run).resume()[0].num_read == (row - 1) // 130 * 130
    assert same(gather(run), reading)


KILLED = """
import json, sys
from dataclasses import replace
from pathlib import Path
from helpers import triplets
from helpers.artifacts import Run
from helpers.config import Experiment
from helpers.device import Machine
triplets.SAVE_EVERY = 130
experiment = Experiment(**json.loads(sys.argv[1]))
machine = Machine("cpu", "a processor", 2, "float32", 1.0)
triplets.gather(Run(experiment, Path(sys.argv[2]), "id", machine, "02_data", "stream"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_with_no_row_lost_or_double(run, hub, reading):
    hub.fail("stall", path=SECOND, method="GET", times=None)
    known = json.dumps(vars(run.experiment))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, known, str(run.folder)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = ""
    while SECOND not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    hub.reset()
    assert Parts(run).resume()[0].num_read == len(ROWS) // 3 // 130 * 130
    assert same(gather(run), reading)


def test_what_was_read_to_the_end_is_not_read_again(run, hub, reading, capsys):
    gather(run)
    hub.reset()
    capsys.readouterr()
    assert same(gather(run), reading)
    assert hub.requests == []
    assert f"read before: {reading.num_read:,} rows" in capsys.readouterr().out


def test_a_damaged_part_is_read_again(run, reading, capsys):
    gather(run)
    (part,) = run.path("stream").glob("part-0002-*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert same(gather(run), reading)
    assert f"{part.name} is damaged: read again from there" in capsys.readouterr().out
    assert same(Parts(run).resume()[0], reading)


def test_parts_after_a_damaged_one_are_not_mixed_with_new_ones(run, hub, reading):
    hub.fail("500", path=SECOND, method="GET", times=None)
    with pytest.raises(HubError):
        gather(run)  # its last part ends where the first shard does
    hub.reset()
    gather(run)
    (part,) = run.path("stream").glob("part-0003-*")
    part.write_bytes(b"damaged")
    assert same(gather(run), reading)
    assert same(Parts(run).resume()[0], reading)


def test_a_part_that_could_not_be_written_whole_is_none(run, reading, monkeypatch):
    write = triplets.pq.write_table

    def half(table, path):
        write(table, path)
        if Parts(run).resume()[1] is not None:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(triplets.pq, "write_table", half)
        with pytest.raises(OSError, match="No space left"):
            gather(run)
    assert Parts(run).resume()[0].num_read == 130
    assert same(gather(run), reading)


def test_copies_that_a_drive_makes_are_not_taken_for_parts(run, reading):
    gather(run)
    (part,) = run.path("stream").glob("part-0000-*")
    shutil.copy(part, part.with_name(f"{part.stem} (1).parquet"))
    assert same(gather(run), reading)


def test_parts_of_another_configuration_are_not_used(run):
    gather(run)
    other = replace(run, experiment=replace(run.experiment, max_train=30))
    assert sum(row["query"] is not None for row in gather(other).rows if row["negative"]) == 65


def test_a_dataset_that_moves_on_is_read_to_its_end_as_it_was(hub, run, reading):
    newest = replace(run, experiment=replace(run.experiment, dataset_revision=None))
    hub.fail("500", path=SECOND, method="GET", times=None)
    with pytest.raises(HubError):
        gather(newest)
    hub.reset()
    hub.add("datasets", run.experiment.dataset, triplet_files(ROWS[:50]))
    assert same(gather(newest), reading)


def test_memory_holds_what_is_kept_and_not_what_is_read(hub, experiment, tmp_path):
    def rows(number):
        return [
            {
                "query": f"question {row // 1000}",
                "positive": f"answer {row // 1000}",
                "negative": f"{row} " + "ab cd ef " * 110,
            }
            for row in range(number)
        ]

    number = 60_000
    files = triplet_files(rows(number), num_shards=1, rows_per_group=1000)
    commit = hub.add("datasets", "owner/large", files)
    del files
    sizes = {"num_test": 1, "num_dev": 1, "max_train": 98, "num_distractors": 0}
    large = replace(experiment, dataset="owner/large", dataset_revision=commit, **sizes)
    found, process, seen = Gathered(large), psutil.Process(), []
    for row in open_source(large):
        found.add(row)
        if found.num_read % 5000 == 0:
            seen.append(process.memory_info().rss)
    assert found.num_read == number
    assert len(found.rows) == 60
    assert max(seen) - seen[0] < 8e6, "60 MB of text went by"
