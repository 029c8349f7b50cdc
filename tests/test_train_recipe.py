"""One recipe in three places: notebook 4's cells, tools/recipes.py and scripts/train_recipe.py."""

import dataclasses
import json
import runpy
import shutil
import sys
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)

from helpers.collection import load_data
from helpers.compare import pca_rotation
from helpers.config import PRESETS, ROOT
from helpers.models import load_model, with_rotation
from helpers.runs import start_run
from helpers.sharing import write_classic
from helpers.sources import model_folder
from helpers.training import DevScores
from tools import recipes

SCRIPT = ROOT / "notebooks" / "scripts" / "train_recipe.py"
TOML = 'preset = "smoke"\nbatch_size = 16\n'  # an epoch has more than ten steps


def load_script(monkeypatch, *command):
    """The functions of the script, and what it reads of a command line."""
    monkeypatch.setattr(sys, "argv", ["train_recipe.py", *map(str, command)])
    script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    return script, script.parse_arguments()


@pytest.fixture
def run(smoke_data, runs, tmp_path, monkeypatch):
    """A run of the smoke preset's data, with small batches."""
    shutil.copytree(smoke_data / "smoke", runs / "small")
    (tmp_path / "small.toml").write_text(TOML)
    monkeypatch.setenv("MATRYOSHKA_PRESET", str(tmp_path / "small.toml"))
    return start_run("smoke")


@pytest.fixture
def ten_steps(monkeypatch):
    """Every training ends after ten steps, whoever asks for it, and isn't scored."""
    begin = SentenceTransformerTrainingArguments.__init__

    def shortened(self, **given):
        begin(self, **given | {"max_steps": 10, "eval_strategy": "no", "save_strategy": "no"})

    monkeypatch.setattr(SentenceTransformerTrainingArguments, "__init__", shortened)


def weights(model):
    """The weights of a model, or of one that is saved in a folder, on the CPU."""
    if not isinstance(model, SentenceTransformer):
        model = SentenceTransformer(str(model), device="cpu")
    return {name: weight.cpu().clone() for name, weight in model.state_dict().items()}


def test_notebook_tools_and_script_train_one_recipe(run, ten_steps, tmp_path, monkeypatch):
    """After ten steps on the same rows the weights are equal, and so are the control's."""
    book = nbformat.read(ROOT / "notebooks" / "04_training.ipynb", as_version=4)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    last = next(number for number, cell in enumerate(cells) if 'fine_tune("mnrl"' in cell)
    names = {}
    for cell in cells[1 : last + 1]:
        exec(cell, names)

    experiment, data = run.experiment, load_data(run)
    rows = Dataset.from_pandas(run.load("triplets.parquet"), preserve_index=False)
    base = run.load("base.safetensors")["passages"][data.train_passages()]
    watched = DevScores(data.split("dev"), data.passages["text"].tolist(), run)
    source = model_folder(experiment.model, experiment.model_revision)
    options = ["--batch-size", 16, "--max-seq-length", 32, *["--bf16"] * (run.precision == "bf16")]
    script, args = load_script(monkeypatch, source, "t.parquet", tmp_path / "out", *options)
    full = experiment.full_dim
    for name, dims in (("tuned", script.dims_of(full)), ("mnrl", [full])):
        recipe = recipes.recipe_of(name, experiment)
        own = dataclasses.replace(run, folder=tmp_path / name, experiment=recipe)
        model = recipes.start_model(own, pca_rotation(base))
        loss = recipes.make_loss(model, recipe)
        recipes.train_recipe(own, model, rows, watched, loss)

        ours = script.load(args)
        if name == "tuned":
            script.rotate(ours, script.fit_rotation(base))
        before = weights(ours)
        script.fine_tune(ours, rows, dims, args)
        expected = weights(run.load(name))
        moved = max((expected[key] - before[key]).abs().max() for key in expected)
        assert moved > 1e-4
        for found in (weights(own.load("tuned")), weights(ours)):
            assert found.keys() == expected.keys()
            for key, weight in found.items():
                assert torch.equal(weight, expected[key]), key


def test_the_defaults_are_the_published_recipe(monkeypatch):
    published = PRESETS["wikipedia"]
    script, args = load_script(monkeypatch, "model", "t.parquet", "out")
    for name in ("batch_size", "learning_rate", "max_seq_length"):
        assert getattr(args, name) == getattr(published, name)
    assert tuple(script.dims_of(published.full_dim)) == published.matryoshka_dims


def test_it_saves_what_the_release_would_be(run, tmp_path, monkeypatch):
    script, _ = load_script(monkeypatch, "model", "t.parquet", "out")
    model = with_rotation(load_model(run), torch.eye(run.experiment.full_dim))
    script.save(model, tmp_path / "ours")
    model.save(str(tmp_path / "theirs"))
    assert write_classic(tmp_path / "theirs", model)
    for file in sorted((tmp_path / "theirs").rglob("*.json")):
        name = file.relative_to(tmp_path / "theirs")
        ours = json.loads((tmp_path / "ours" / name).read_text())
        theirs = json.loads(file.read_text())
        assert ours == theirs, name


def test_held_out_queries_share_nothing_with_training(monkeypatch, tmp_path):
    script, _ = load_script(monkeypatch, "model", "t.parquet", "out")
    table = pd.DataFrame({"query": [f"q{n // 2}" for n in range(400)]})  # each with two answers
    table["positive"] = [f"p{n % 150}" for n in range(400)]
    table["other"], table["negative_2"] = 1, [None, *["n"] * 399]
    table.to_parquet(tmp_path / "t.parquet")
    train, held_out = script.read_rows(tmp_path / "t.parquet")
    assert [*train] == ["query", "positive", "negative_2"]
    assert held_out["positive"].nunique() == 15 and len(train) > 300
    for column in ("query", "positive"):
        assert not {*train[column]} & {*held_out[column]}
