"""Datasets and models from the Hub: complete and undamaged, or one error that says what to do.

The clients are the real ones, the Hub is a loopback one with faults.
"""

import _thread
import errno
import json
import signal
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from huggingface_hub import constants, file_download

from helpers import sources
from helpers.config import PRESETS
from helpers.device import Machine
from helpers.models import load_model
from helpers.runs import Run
from helpers.sources import HubError, dataset_files, fetch_file, fetch_model, with_retries
from tests.loopback_hub import tiny_bge, triplet_files

CONFIG = "triplet-hard"
ROWS = [{"query": f"query {n}", "positive": f"passage {n}", "negative": "none"} for n in range(99)]
FILES = triplet_files(ROWS)
SHARD = f"{CONFIG}/train-00001-of-00003.parquet"
WEIGHTS = "model.safetensors"
LISTING = [
    ("HEAD", "README.md"),
    ("GET", "README.md"),
    ("GET", "/revision/"),
    ("GET", "/tree/"),
    ("POST", "paths-info"),
    ("HEAD", SHARD),
]
FOREVER = float("inf")


class Repo:
    """A repository of the loopback Hub. The clients remember names, so each has a new one."""

    def __init__(self, hub, kind, files):
        self.kind, self.files, self.name = kind, files, f"owner/{uuid4().hex}"
        self.commit = hub.add(kind, self.name, files)

    def fetch(self, config: str | None = CONFIG) -> dict[str, bytes]:
        if self.kind == "models":
            folder = fetch_model(self.name, self.commit)
            found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
        else:
            files = dataset_files(self.name, config, self.commit)
            found = {file.path: fetch_file(file) for file in files}
        return {name: path.read_bytes() for name, path in found.items()}

    def expected(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if name != "README.md"}


@pytest.fixture
def dataset(hub):
    return Repo(hub, "datasets", FILES)


@pytest.fixture
def model(hub):
    return Repo(hub, "models", tiny_bge(hidden=96))


# --- Faults that pass ---


@pytest.mark.parametrize("name", ["refuse", "429", "500", "503", "504"])
def test_a_listing_that_fails_at_each_step_is_mended(hub, dataset, name):
    faults = [hub.fail(name, path, method) for method, path in LISTING]
    assert dataset.fetch() == dataset.expected()
    assert not any(fault.times for fault in faults)


@pytest.mark.parametrize("name", ["reset", "stall", "truncated", "wrong_length"])
def test_a_listing_that_hangs_or_ends_early_at_each_step_is_mended(hub, dataset, name, monkeypatch):
    monkeypatch.setattr(sources, "STALL", 2)  # the client's own limit, if it has one, is 1 s
    faults = [hub.fail(name, path, method) for method, path in LISTING if method != "HEAD"]
    assert dataset.fetch() == dataset.expected()
    assert not any(fault.times for fault in faults)


IN_BODY = ("reset", "stall", "truncated", "wrong_length", "flipped")


@pytest.mark.parametrize(
    ("repo", "path", "name"),
    [
        *[("dataset", SHARD, name) for name in (*IN_BODY, "refuse", "429", "500", "503", "504")],
        *[("model", WEIGHTS, name) for name in (*IN_BODY, "429", "500")],
    ],
)
def test_a_large_file_that_fails_once_is_mended(hub, request, repo, path, name):
    repo = request.getfixturevalue(repo)
    fault = hub.fail(name, path)
    assert repo.fetch() == repo.expected()
    assert not fault.times


@pytest.mark.parametrize("name", ["reset", "flipped", "truncated", "500"])
def test_small_files_of_a_model_that_fail_once_are_mended(hub, model, name):
    faults = [hub.fail(name, path) for path in ("/modules.json", "/config.json", "/tree/")]
    faults = faults[:2] if name == "flipped" else faults
    assert model.fetch() == model.expected()
    assert not any(fault.times for fault in faults)


@pytest.mark.parametrize(("repo", "path"), [("dataset", SHARD), ("model", WEIGHTS)])
def test_a_slow_download_that_moves_is_never_given_up(hub, request, monkeypatch, repo, path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)  # the bar moves once a chunk
    for name, value in {"TRIES": 1, "STALL": 1, "SILENCE": 1}.items():
        monkeypatch.setattr(sources, name, value)
    repo = request.getfixturevalue(repo)
    hub.fail("slow", path)
    begin = time.monotonic()
    assert repo.fetch() == repo.expected()
    assert time.monotonic() - begin > 1.5
    assert sum(path in asked for method, asked in hub.requests if method == "GET") == 1


# --- Faults that don't ---


@pytest.mark.parametrize(
    ("repo", "path", "name"),
    [
        *[("dataset", SHARD, name) for name in (*IN_BODY, "refuse", "429", "500")],
        *[("dataset", "/tree/", name) for name in ("refuse", "stall", "truncated", "503")],
        *[("dataset", "paths-info", name) for name in ("stall", "429")],
        *[("model", WEIGHTS, name) for name in ("reset", "stall", "flipped", "429")],
    ],
)
def test_an_endless_fault_ends_soon_in_one_error_and_the_next_run_goes_on(
    hub, request, monkeypatch, repo, path, name
):
    repo = request.getfixturevalue(repo)
    for method in ("GET", "POST"):
        hub.fail(name, path, method, FOREVER, retry_after=3)
    begin = time.monotonic()
    with monkeypatch.context() as patch:
        for setting, value in {"TRIES": 2, "STALL": 1, "SILENCE": 2}.items():
            patch.setattr(sources, setting, value)
        with pytest.raises(HubError, match="Check the connection and run this again") as error:
            repo.fetch()
    assert time.monotonic() - begin < 8
    assert hub.url in str(error.value) and repo.name in str(error.value)
    hub.reset()
    assert repo.fetch() == repo.expected()


@pytest.mark.parametrize(
    ("repo", "path"),
    [("dataset", "paths-info"), ("dataset", SHARD), ("model", "/tree/"), ("model", WEIGHTS)],
)
@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refusal_is_not_tried_again(hub, request, capsys, status, repo, path):
    for method in ("GET", "POST"):
        hub.fail(status, path, method, FOREVER)
    with pytest.raises(HubError, match=r"Check its name and revision.*hf auth login"):
        request.getfixturevalue(repo).fetch()
    assert "trying again" not in capsys.readouterr().out


@pytest.mark.parametrize("path", ["README.md", ".py"])
def test_a_dataset_with_terms_to_accept_says_so(hub, dataset, path):
    hub.fail("401", path, "HEAD", FOREVER)
    with pytest.raises(HubError, match=r"is a gated dataset.*\n.*accept them.*hf auth login"):
        dataset.fetch()


def test_what_is_not_there_is_named(hub, dataset, model):
    with pytest.raises(HubError, match="the dataset owner/nothing at 0000"):
        dataset_files("owner/nothing", CONFIG, "0" * 40)
    with pytest.raises(HubError, match="the commit of owner/nothing at its newest revision"):
        dataset_files("owner/nothing", CONFIG, None)
    with pytest.raises(HubError, match="Check its name and revision"):
        dataset_files(dataset.name, CONFIG, "0" * 40)
    with pytest.raises(ValueError, match=r"'triplet-soft' not found.*triplet-hard"):
        dataset_files(dataset.name, "triplet-soft", dataset.commit)
    with pytest.raises(HubError, match="the model owner/nothing:"):
        fetch_model("owner/nothing", None)
    with pytest.raises(HubError, match="Check its name and revision"):
        fetch_model(model.name, "0" * 40)


def test_a_dataset_that_cannot_be_read_says_so(hub):
    script = Repo(hub, "datasets", {})
    script.commit = hub.add("datasets", script.name, {f"{script.name[6:]}.py": b"import os\n"})
    for repo in (script, Repo(hub, "datasets", {"LICENSE": b"none"})):
        with pytest.raises(HubError, match="take another dataset, subset or revision"):
            repo.fetch(None)
    with pytest.raises(ValueError, match="has no split called train; it has test"):
        Repo(hub, "datasets", {"test.jsonl": b'{"query": "a"}\n'}).fetch(None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_full_or_readonly_disk_says_what_to_do(dataset, monkeypatch, number):
    tries = []

    def http_get(*arguments, **options):
        tries.append(arguments)
        raise OSError(number, "no")

    monkeypatch.setattr(file_download, "http_get", http_get)
    with pytest.raises(HubError, match="Make room on the disk, or set HF_HOME"):
        dataset.fetch()
    assert len(tries) == 1


def test_offline_says_so_and_takes_what_is_in_the_cache(dataset, model, monkeypatch):
    model.fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model.fetch() == model.expected()
    with pytest.raises(HubError, match="Unset HF_HUB_OFFLINE"):
        dataset.fetch()


# --- The retries themselves ---


def test_a_server_that_sends_a_little_and_fails_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr(sources, "WAIT", sources.tenacity.wait_none())
    tries = []

    def action(bar):
        tries.append(bar)
        bar(total=2, disable=True).update()
        raise ConnectionResetError("reset")

    with pytest.raises(HubError, match="doesn't give the file: reset"):
        with_retries("the file", action)
    assert len(tries) == sources.TRIES


def test_an_interruption_gets_through_and_ends_the_download():
    def action(bar):
        moving = bar(disable=True)
        _thread.interrupt_main(signal.SIGINT)
        for _ in range(200):
            time.sleep(0.05)
            moving.update()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            with_retries("the long file", action)
    finally:
        signal.signal(signal.SIGINT, before)
    for thread in threading.enumerate():
        if thread.name == "the long file":
            thread.join(5)
            assert not thread.is_alive()


def test_a_try_that_seems_to_hang_may_still_succeed(monkeypatch):
    monkeypatch.setattr(sources, "WAIT", sources.tenacity.wait_none())
    monkeypatch.setattr(sources, "STALL", 0.5)
    tries, late = [], threading.Event()

    def action(bar):
        tries.append(bar)
        late.wait(0.8 if len(tries) == 1 else 30)
        return len(tries)

    assert with_retries("the file", action) == 2
    late.set()


# --- Models ---


def test_only_what_a_model_needs_comes_and_it_comes_once(hub):
    unused = {"onnx/model.onnx": b"x" * 1000, "pytorch_model.bin": b"x" * 1000}
    model = Repo(hub, "models", tiny_bge(hidden=96) | unused)
    assert not {*model.fetch()} & {*unused}
    for method in ("GET", "HEAD"):
        hub.fail("refuse", method=method, times=FOREVER)
    assert not {*model.fetch()} & {*unused}


@pytest.mark.parametrize("path", [WEIGHTS, "modules.json"])
def test_a_file_that_was_damaged_in_the_cache_comes_again(model, path):
    model.fetch()
    damaged = fetch_model(model.name, model.commit) / path
    damaged.resolve().write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert model.fetch() == model.expected()


def test_a_model_without_safetensors(hub):
    files = {name: data for name, data in tiny_bge(hidden=96).items() if name != WEIGHTS}
    with pytest.raises(HubError, match=r"has no weights as \.safetensors: take another"):
        Repo(hub, "models", files).fetch()


@pytest.mark.parametrize("kept", [0, 2])
def test_a_model_that_lost_its_pooling_or_normalisation_is_not_taken(hub, kept):
    files = dict(tiny_bge(hidden=96))
    modules = json.loads(files.pop("modules.json"))
    if kept:
        files["modules.json"] = json.dumps(modules[:kept]).encode()
    model = Repo(hub, "models", files)
    changes = {"model": model.name, "model_revision": model.commit, "full_dim": 96}
    dims = {"matryoshka_dims": (96, 64), "eval_dims": (64,)}
    experiment = PRESETS["msmarco"].replace(**changes, **dims)
    machine = Machine("cpu", "a processor", 2, "float32", 1.0)
    with pytest.raises(ValueError, match="but it should have cls pooling and normalise"):
        load_model(Run(experiment, Path("runs"), "id", machine, "tiny"))
