"""The study: what is scored is kept, and the committed tables are of what is kept."""

import io
import json
import shutil
from functools import partial

import pandas as pd
import pyarrow.parquet as pq
import pytest

from helpers.collection import RetrievalData
from helpers.config import PRESETS, ROOT
from helpers.runs import start_run
from tools import study
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
    monkeypatch.setattr(study, "ROOT", tmp_path)  # what is kept is kept apart
    return Study.of(start_run("smoke"))


def test_a_recipe_is_trained_and_scored_and_its_scores_are_kept(ready, monkeypatch):
    idea = Idea({"num_negatives": 2}, of="mnrl")
    found, bits = ready.trained("mnrl", idea, 0, on_test=False)
    assert {*found["recipe"]} == {*bits["recipe"]} == {"mnrl", "mnrl_rotated"}
    scores = pd.concat([found, ready.untrained().queries])
    at = scores[(scores["split"] == "dev") & (scores["dim"] == 384)]
    at = at.groupby("recipe")["mrr@10"].mean()
    assert at["mnrl"] > at["base"]
    assert at["mnrl_rotated"] == pytest.approx(at["mnrl"], abs=0.02)
    monkeypatch.setattr(study, "train_recipe", lambda *_: pytest.fail("trained again"))
    again, _ = ready.trained("mnrl", idea, 0, on_test=False)
    assert again.equals(found)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        ready.trained("mnrl", Idea({"num_negatives": 1}, of="mnrl"), 0, on_test=False)


def test_the_committed_tables_are_of_the_kept_scores(monkeypatch):
    queries, rounded = [], []
    seeds = {f"{name}-{seed}": seed for name, _, seed, _ in jobs(WIKIPEDIA)}
    for name, seed in {"base": pd.NA, **seeds}.items():
        table = pq.read_table(RESULTS / "trainings" / "wikipedia" / f"{name}.parquet")
        queries.append(table.to_pandas().assign(seed=seed))
        bits = json.loads(table.schema.metadata[b"bits"])
        rounded.append(pd.DataFrame(bits).assign(seed=seed))
    scores = pd.concat(queries, ignore_index=True)
    bits = pd.concat([part for part in rounded if len(part)], ignore_index=True)
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
