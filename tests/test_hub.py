"""Datasets and models of the Hub: complete, or one error that says what to do.

The clients are the real ones, with their own retries; the Hub is a loopback one with faults.
"""

import errno
import time
from types import SimpleNamespace
from uuid import uuid4

import datasets
import pytest
from datasets import load_dataset
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from helpers.collection import collect
from helpers.config import PRESETS
from helpers.hub import HubError, dataset_commit, fetch_model, hub_session
from helpers.rows import hub_rows
from helpers.runs import open_run, start_run
from helpers.triplets import TripletFilter
from tests.loopback_hub import tiny_bge, triplet_files, write_files

FOREVER = float("inf")
CONFIG = "triplet-hard"
SHARD = "train-00001"
WEIGHTS = "model.safetensors"


def rows_of():
    """Ten rows a query, with some that can't be used and some that are there twice."""
    rows = []
    for query in range(120):
        for number in range(10):
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
def slept(monkeypatch):
    """The seconds that the Hub's client and datasets wait between their tries; none are."""
    seconds = []
    clock = SimpleNamespace(**vars(time) | {"sleep": seconds.append})
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(datasets.utils.file_utils, "time", clock)
    return seconds


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
def model(hub):
    """The name and the commit of a model on the loopback Hub."""
    name = f"owner/{uuid4().hex}"
    return name, hub.add("models", name, tiny_bge(hidden=96))


def read(experiment) -> TripletFilter:
    """Read as notebook 2 does."""
    kept = TripletFilter(experiment)
    with hub_session(f"the dataset {experiment.dataset}"):
        stream = load_dataset(
            experiment.dataset,
            experiment.dataset_config,
            split="train",
            streaming=True,
            revision=experiment.dataset_revision,
        )
        rows = hub_rows(stream, experiment)
        for row in rows:
            kept.add(row)
            if kept.is_full:
                break
        rows.close()
    return kept


def expected(experiment) -> TripletFilter:
    """What is kept of the same rows without the Hub."""
    kept = TripletFilter(experiment)
    for row in ROWS:
        if not kept.is_full:
            kept.add(row | {"negative": [row["negative"]]})
    return kept


def same(kept, other) -> bool:
    return kept.rows == other.rows and kept.counts == other.counts


# --- Rows ---


def test_rows_are_streamed_until_there_is_enough(experiment, hub):
    kept = read(experiment)
    assert same(kept, expected(experiment)) and kept.num_read < len(ROWS)
    data = collect(kept)
    assert data.queries["split"].value_counts().to_dict() == {"train": 45, "test": 20, "dev": 15}
    assert data.training_rows()["query"].is_unique and data.passages["text"].is_unique
    assert read(experiment.replace(max_rows=450)).num_read == 450


@pytest.mark.parametrize("fault", ["reset", "refuse", "500", "503", "504", "429"])
def test_a_short_fault_in_a_shard_changes_no_row(experiment, hub, slept, fault):
    failing = hub.fail(fault, SHARD, retry_after=7)
    assert same(read(experiment), expected(experiment))
    assert not failing.times
    assert sum(slept) == {"429": 8}.get(fault, 1), "a 429 is waited for as it says, and no longer"


@pytest.mark.parametrize("fault", ["reset", "truncated", "refuse", "503", "504"])
def test_an_endless_fault_ends_in_minutes_and_the_next_pass_starts_over(
    experiment, hub, slept, fault
):
    hub.fail(fault, SHARD, times=FOREVER)
    with pytest.raises(HubError, match="Check the connection and run this again") as error:
        read(experiment)
    assert experiment.dataset in str(error.value) and hub.url in str(error.value)
    tries = sum(SHARD in path for _, path in hub.requests)
    assert sum(slept) + tries * constants.HF_HUB_DOWNLOAD_TIMEOUT < 300
    hub.reset()
    assert same(read(experiment), expected(experiment))


def test_too_many_requests_are_waited_for_for_six_minutes_at_most(experiment, hub, slept):
    hub.fail("429", SHARD, times=FOREVER, retry_after=200)
    with pytest.raises(HubError, match=r"too many requests.*run this again later, or log in"):
        read(experiment)
    assert sum(slept) == 201


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"dataset": "owner/nothing"}, HubError, "the dataset owner/nothing.*\n.*hf auth login"),
        ({"dataset_revision": "0" * 40}, HubError, "Check its name and revision"),
        ({"dataset_config": "soft"}, ValueError, "'soft' not found.*triplet-hard"),
        ({"query_column": "Query"}, ValueError, "no column 'Query'; it has 'query', 'positive'"),
        ({"negative_column": "bad"}, ValueError, "(?s)no column 'bad'.*Set negative_column"),
    ],
)
def test_what_is_not_there_is_named(experiment, changes, error, said):
    with pytest.raises(error, match=said):
        read(experiment.replace(**changes))


def test_a_dataset_with_terms_or_one_that_cannot_be_read_says_so(experiment, hub):
    hub.fail("401", "README.md", "HEAD", FOREVER)
    with pytest.raises(HubError, match="Accept its terms on its page, and log in: hf auth login"):
        read(experiment)
    hub.reset()
    name = f"owner/{uuid4().hex}"
    for files in ({f"{name[6:]}.py": b"import os\n"}, {"LICENSE": b"none"}):
        changes = {"dataset": name, "dataset_revision": hub.add("datasets", name, files)}
        with pytest.raises(HubError, match="take another dataset, subset or revision"):
            read(experiment.replace(dataset_config=None, **changes))
    commit = hub.add("datasets", name, {"test.jsonl": b'{"query": "a"}\n'})
    with pytest.raises(ValueError, match=r"train.*test"):
        read(experiment.replace(dataset=name, dataset_config=None, dataset_revision=commit))


def test_a_commit_is_asked_for_once_whatever_is_pushed_later(hub, runs, tmp_path, model):
    name, first = model
    rows = f"owner/{uuid4().hex}"
    commit = hub.add("datasets", rows, FILES)
    mine = tmp_path / "mine.toml"
    mine.write_text(f'preset = "wikipedia"\nmodel = "{name}"\ndataset = "{rows}"\n')
    run = start_run(str(mine))
    assert (run.experiment.model_revision, run.experiment.dataset_revision) == (first, commit)
    assert run.experiment.full_dim == 96
    hub.add("datasets", rows, FILES | {"new": b""})
    hub.add("models", name, tiny_bge(hidden=96) | {"new.txt": b""})
    hub.reset()
    mine.write_text(mine.read_text() + "k = 5\n")
    for again in (start_run(str(mine)), open_run()):
        assert again.experiment == run.experiment.replace(k=5)
    assert not hub.requests


# --- Models ---


def test_only_what_a_model_needs_comes_and_it_comes_once(hub):
    name, unused = "owner/large", {"onnx/model.onnx": b"x" * 1000, "pytorch_model.bin": b"x"}
    commit = hub.add("models", name, tiny_bge(hidden=96) | unused)
    folder = fetch_model(name, None)
    assert folder.name == commit
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {*tiny_bge(hidden=96)} - {"README.md"}
    hub.reset()
    assert fetch_model(name, commit) == folder
    assert not hub.requests


def test_a_cache_that_shares_its_files_is_read_and_left_alone(model):
    """As Xet lays it out: the last name is 64 hexadecimal digits too, of another hash."""
    folder = fetch_model(*model)
    path = folder / WEIGHTS
    blob = path.resolve()
    shared = folder.parents[2] / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    content = blob.read_bytes()
    blob.rename(shared)
    blob.symlink_to(shared)
    assert fetch_model(*model) == folder
    assert shared.read_bytes() == path.read_bytes() == content


def test_offline_takes_what_is_in_the_cache_and_says_what_is_not(
    hub, model, experiment, monkeypatch
):
    folder = fetch_model(model[0], None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_model(*model) == fetch_model(model[0], None) == folder
    for ask in (
        lambda: fetch_model("owner/nothing", None),
        lambda: dataset_commit("owner/nothing", None),
        lambda: read(experiment),
    ):
        with pytest.raises(HubError, match="unset HF_HUB_OFFLINE, so that the Hub can be asked"):
            ask()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Make room on the disk, or set HF_HOME"), (errno.EACCES, "Set HF_HOME to a")],
)
def test_a_full_or_readonly_disk_says_what_to_do(model, monkeypatch, number, remedy):
    def http_get(*arguments, **options):
        raise OSError(number, "no")

    monkeypatch.setattr(file_download, "http_get", http_get)
    with pytest.raises(HubError, match=remedy):
        fetch_model(*model)


def test_weights_in_another_format_are_named(hub, tmp_path):
    files = {name: data for name, data in tiny_bge(hidden=96).items() if name != WEIGHTS}
    hub.add("models", "owner/no-weights", files)
    with pytest.raises(HubError, match=r"has no weights as \.safetensors: take another"):
        fetch_model("owner/no-weights", None)
    write_files(tmp_path, tiny_bge(hidden=96))
    headed = SentenceTransformer(str(tmp_path), device="cpu")
    headed.insert(2, Dense(96, 96))
    headed.save(str(tmp_path / "headed"), create_model_card=False)
    saved = [path for path in (tmp_path / "headed").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "headed").as_posix(): path.read_bytes() for path in saved}
    files["2_Dense/pytorch_model.bin"] = files.pop("2_Dense/model.safetensors")
    hub.add("models", "owner/dense-head", files)
    with pytest.raises(HubError, match=r"its layer 2_Dense as \.bin.*take another revision"):
        fetch_model("owner/dense-head", None)


def test_a_pushed_model_comes_back_by_its_name_cut_to_64(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the loopback Hub has no such store
    write_files(tmp_path, tiny_bge(hidden=96))
    (tmp_path / "README.md").write_text("# A card")
    model = SentenceTransformer(str(tmp_path), device="cpu")
    model.push_to_hub("owner/pushed", local_model_path=str(tmp_path), token="hf_secret")
    short = SentenceTransformer("owner/pushed", truncate_dim=64, device="cpu")
    cut = short.encode("a text", normalize_embeddings=True)
    assert cut.shape == (64,)
    whole = model.encode("a text")[:64]
    assert cut == pytest.approx(whole / (whole @ whole) ** 0.5, abs=1e-6)
