"""The study: it goes on where it was, keeps nothing stale, and its tables are of what is kept."""

import hashlib
import io
import json
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from helpers.collection import RetrievalData
from helpers.config import PRESETS, ROOT
from helpers.models import load_model
from helpers.runs import start_run
from tools import command, study
from tools.study import Idea, Study, differences, intervals, jobs, summary

WIKIPEDIA = PRESETS["wikipedia"]
RESULTS = ROOT / "results"


@pytest.fixture
def ready(smoke_data, runs, tmp_path, monkeypatch):
    """A study of the smoke preset, with a second collection of three passages."""
    shutil.copytree(smoke_data / "smoke", runs / "smoke")
    second = RetrievalData(
        passages=pd.DataFrame({"text": ["tea is hot", "war is bad", "the sea is deep"]}),
        queries=pd.DataFrame({"text": ["hot tea", "deep sea"], "split": "test"}),
        qrels=pd.DataFrame({"query": [0, 1], "passage": [0, 2]}),
    )
    monkeypatch.setattr(study, "operations_collection", lambda experiment: second)
    monkeypatch.setattr(study, "write_report", lambda folder: folder / "README.md")
    monkeypatch.setattr(study, "ROOT", tmp_path)  # what is kept is kept apart
    (tmp_path / "results").mkdir()
    return Study.of(start_run("smoke"))


@pytest.fixture
def stand_in(ready, monkeypatch):
    """Training that only notes what it was asked for, and embeddings that texts stand for."""
    trained, model = [], load_model(ready.run)

    def train(run, model, rows, dev_scores, loss):
        trained.append((run.folder.name, rows.column_names))
        run.save("tuned", model)

    def encode(model, texts, run):
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        rows = [np.random.default_rng(seed).normal(size=384) for seed in seeds]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    monkeypatch.setattr(study, "train_recipe", train)
    monkeypatch.setattr(study, "start_model", lambda run, rotation: model)
    monkeypatch.setattr(study, "load_model", lambda run, folder=None: model)
    monkeypatch.setattr(study, "encode_passages", encode)
    monkeypatch.setattr(study, "encode_queries", encode)
    for name in ("mean_interval", "paired_difference"):  # to be quick
        monkeypatch.setattr(study, name, partial(getattr(study, name), resamples=100))
    return trained


def test_a_study_goes_on_where_it_was_and_scores_only_named_recipes_on_test(
    ready, stand_in, tmp_path, monkeypatch
):
    tried = {f"{n}_negatives": Idea({"num_negatives": n}) for n in (0, 3)}
    monkeypatch.setattr(study, "ideas", lambda experiment: tried)
    monkeypatch.setattr(study, "SEEDS", (0,))
    real = study.train_recipe

    def stop(run, *rest):
        if run.folder.name == "mnrl-0":
            raise KeyboardInterrupt
        real(run, *rest)

    monkeypatch.setattr(study, "train_recipe", stop)
    assert command("", study.study, ["smoke"]) == 130
    assert [name for name, _ in stand_in] == ["tuned-0"]
    monkeypatch.setattr(study, "train_recipe", real)
    assert command("", study.study, ["smoke"]) == 0
    assert [name for name, _ in stand_in] == [f"{name}-0" for name in (*study.NAMED, *tried)]
    columns = dict(stand_in)
    assert columns["tuned-0"] == ["query", "positive", "negative"]
    assert columns["0_negatives-0"] == ["query", "positive"]
    assert columns["3_negatives-0"][-1] == "negative_3"

    results = tmp_path / "results"
    table = pd.read_csv(results / "recipes.csv")
    rotated = {f"{name}_rotated" for name in ("base", "mnrl", "matryoshka", "matryoshka_short")}
    tested = {*table.loc[table["split"] == "test", "recipe"]}
    assert tested == {"bm25", "base", "averaged", *study.NAMED, *rotated}
    away = {*pd.read_csv(results / "recipes_transfer.csv")["recipe"]}
    assert away == {"bm25", *study.TRANSFER, "base_rotated", "mnrl_rotated"}
    assert {*pd.read_csv(results / "bits.csv")["model"]} == {*study.ROUNDED}
    assert (results / "recipes.png").stat().st_size > 10_000

    written = {path: path.read_bytes() for path in results.glob("*.csv")}
    assert command("", study.study, ["smoke"]) == 0
    assert len(stand_in) == 7, "what is scored is not trained again"
    assert {path: path.read_bytes() for path in written} == written


# --- What is committed ---


@pytest.fixture(scope="module")
def kept():
    """The scores of each kept training, with its seed."""
    seeds = {f"{name}-{seed}": seed for name, _, seed, _ in jobs(WIKIPEDIA)}
    found = {}
    for name, seed in {"base": pd.NA, **seeds}.items():
        table = pq.read_table(RESULTS / "trainings" / "wikipedia" / f"{name}.parquet")
        bits = pd.DataFrame(json.loads(table.schema.metadata[b"bits"])).assign(seed=seed)
        found[name] = table.to_pandas().assign(seed=seed), bits
    return found


def test_the_committed_tables_are_of_the_kept_scores(kept, monkeypatch):
    scores = pd.concat([queries for queries, _ in kept.values()], ignore_index=True)
    bits = pd.concat([bits for _, bits in kept.values() if len(bits)], ignore_index=True)
    for name in ("mean_interval", "paired_difference"):  # with fewer samples, to be quick
        monkeypatch.setattr(study, name, partial(getattr(study, name), resamples=100))
    means = summary(scores, 10)
    found = {
        "recipes": means[means["split"] != "second"],
        "recipes_transfer": means[means["split"] == "second"].drop(columns="split"),
        "recipes_differences": differences(scores, WIKIPEDIA, "mrr@10"),
        "recipes_intervals": intervals(scores, "mrr@10"),
        "bits": study.bits_table(bits, "mrr@10"),
    }
    for name, table in found.items():
        read = pd.read_csv(io.StringIO(table.to_csv(index=False)))
        committed = pd.read_csv(RESULTS / f"{name}.csv")
        sampled = [column for column in ("low", "high", "p_value") if column in read]
        pd.testing.assert_frame_equal(
            read.drop(columns=sampled), committed.drop(columns=sampled), atol=1e-6
        )
        ends = [name for name in sampled if name != "p_value"]
        pd.testing.assert_frame_equal(read[ends], committed[ends], rtol=0, atol=0.02)
