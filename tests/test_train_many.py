"""Training with several processes: two of them do together what one does alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from helpers import train_many
from helpers.artifacts import Run, open_run
from helpers.config import ROOT
from helpers.models import load_model

# With 40 rows an epoch is two full batches and, in one process, one that is not full.
TOML = 'preset = "smoke"\nbatch_size = 16\nepochs = 5\nevals = 1\nmatryoshka_dims = [384, 64]\n'
TOML += "warmup = 0.0\n"
# The command itself, and before Python ends a file that says how many of gloo's threads live on.
PROGRAM = """
import atexit, os, pathlib, runpy

def count():
    names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    left = pathlib.Path(__file__).with_name("threads_" + os.environ.get("RANK", "alone"))
    left.write_text(str(sum("gloo" in name for name in names)))

atexit.register(count)
runpy.run_module("helpers.train_many", run_name="__main__", alter_sys=True)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def small_run(folder: Path, smoke_data: Path, text: str = TOML) -> Run:
    """A run with few training rows; its TOML file lies beside the folder of runs."""
    toml = folder / "small.toml"
    toml.write_text(text)
    shutil.copytree(smoke_data / "smoke", folder / "runs" / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATRYOSHKA_RUNS", str(folder / "runs"))
        run = open_run(str(toml), "04_training", quiet=True)
    frame = pd.read_parquet(run.path("triplets.parquet"))
    run.save("triplets.parquet", frame.head(40), stage="data")
    return run


def start(run: Run, *launcher: str) -> subprocess.CompletedProcess:
    program = run.folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.run(
        [*(launcher or (sys.executable,)), str(program), run.choice],
        env=os.environ
        | {
            "MATRYOSHKA_RUNS": str(run.folder.parent),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory, smoke_data):
    """A run trained by two processes, and what they printed."""
    run = small_run(tmp_path_factory.mktemp("two"), smoke_data)
    done = start(run, *TORCHRUN)
    assert done.returncode == 0, done.stderr
    return run, done


def losses(run: Run) -> pd.Series:
    log = run.load("tuned_log.csv", stage="training", made_by="04_training")
    return log.set_index("step")["loss"].dropna()


def test_two_processes_end_with_equal_weights(two):
    _, done = two
    assert done.stdout.splitlines()[0] == "2 processes, backend gloo"
    hashes = dict(re.findall(r"^rank (\d)  weights ([0-9a-f]{12})$", done.stdout, re.MULTILINE))
    assert set(hashes) == {"0", "1"}
    assert hashes["0"] == hashes["1"]


def test_no_process_ends_while_threads_of_it_still_work(two):
    """One of them would now and then abort a process that has done all of its work."""
    run, _ = two
    assert [run.path(f"threads_{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


def test_the_loss_falls(two):
    found = losses(two[0])
    assert list(found.index) == list(range(1, 11))
    assert found.iloc[-3:].mean() < 0.8 * found.iloc[:3].mean()


def test_the_model_is_in_the_run_and_its_weights_are_those_of_the_processes(two):
    run, done = two
    assert run.manifest("tuned")["made_by"] == "04_training"
    folder = run.load("tuned", stage="training", made_by="04_training")
    assert train_many.weights_hash(load_model(run, folder)) in done.stdout
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_only_one_process_prints_and_none_warns(two):
    _, done = two
    assert len(re.findall(r"^step ", done.stdout, re.MULTILINE)) == 1
    assert not re.search(r"\w+Warning:", done.stderr)


def test_one_process_has_the_same_losses(two, tmp_path, smoke_data):
    run = small_run(tmp_path, smoke_data)
    done = start(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "1 process"
    assert "torchrun --nproc_per_node N" in done.stdout
    assert len(losses(run)) == 15  # the batch that is not full is a step as well
    # The second is that of the weights after the first step, so gradients have to be alike.
    assert losses(two[0])[:2].tolist() == pytest.approx(losses(run)[:2].tolist(), rel=0.02)


def test_a_batch_without_equal_shares_is_refused(tmp_path, smoke_data, capsys, monkeypatch):
    run = small_run(tmp_path, smoke_data, TOML.replace("batch_size = 16", "batch_size = 15"))
    monkeypatch.setenv("MATRYOSHKA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    assert train_many.main([run.choice]) == 1
    wanted = "batch_size is 15, for all 2 processes: it must be a multiple of 2"
    assert wanted in capsys.readouterr().err


def test_without_data_the_notebook_that_makes_it_is_named(
    tmp_path, smoke_data, capsys, monkeypatch
):
    run = small_run(tmp_path, smoke_data)
    run.path("base.safetensors").unlink()
    monkeypatch.setenv("MATRYOSHKA_RUNS", str(tmp_path / "runs"))
    assert train_many.main([run.choice]) == 1
    assert "--until 03_baseline" in capsys.readouterr().err


def test_without_a_run_it_says_how_to_make_one(runs, capsys):
    assert train_many.main(["smoke"]) == 1
    assert "python -m helpers.run smoke" in capsys.readouterr().err


def test_rows_that_do_not_fill_a_batch_are_refused(runs):
    run = open_run("smoke", "04_training", quiet=True)
    train_many.check(run, 1, 60)
    with pytest.raises(ValueError, match="60 training rows do not fill one batch"):
        train_many.check(run, 2, 60)


def test_more_processes_than_gpus_are_refused(runs, monkeypatch):
    run = open_run("smoke", "04_training", quiet=True)
    object.__setattr__(run.machine, "device", "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes need as many GPUs; this machine has 1"):
        train_many.check(run, 2, 640)
