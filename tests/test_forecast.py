"""How long a run may take, and whether its scores are the published ones."""

import dataclasses

import pandas as pd
import pytest

from helpers import forecast
from helpers.config import PRESETS, ROOT
from helpers.device import Machine
from helpers.runs import Run, start_run

PUBLISHED = pd.read_csv(ROOT / "results" / "wikipedia.csv")


def on(experiment, tmp_path) -> Run:
    return Run(experiment, tmp_path, "id", Machine("cpu", "a CPU", 2, "bf16", 4.0), "wikipedia")


def test_a_slow_machine_takes_longer(tmp_path, monkeypatch):
    run = on(PRESETS["wikipedia"], tmp_path)
    assert forecast._count_texts(run.experiment)[1] == pytest.approx(2 * 3 * 6756, rel=0.01)
    monkeypatch.setattr(forecast, "product_speed", lambda *_: 4e11)
    low, high = forecast.minutes(run)
    monkeypatch.setattr(forecast, "product_speed", lambda *_: 1e11)
    assert 1 < low < high < 3 * low < forecast.minutes(run)[1]
    assert forecast.minutes(on(PRESETS["msmarco"], tmp_path)) is None


def test_a_run_is_held_against_the_published_one(runs):
    run = start_run("wikipedia")
    run.save("results.csv", PUBLISHED.assign(run=run.id))
    assert "agrees with the published run: the largest difference is 0.000" in (
        forecast.agreement(run)
    )
    worse = PUBLISHED.assign(run=run.id)
    worse.loc[(worse["model"] == "tuned") & (worse["dim"] == 64), "mrr@10"] -= 0.02
    run.save("results.csv", worse)
    said = forecast.agreement(run)
    assert "differs from the published run by 0.020 (tuned at 64, mrr@10)" in said
    assert "open an issue" in said
    assert forecast.agreement(start_run("smoke")) == ""
    assert (ROOT / "results" / "search.csv").is_file()  # of searches, not of a run called so
    renamed = dataclasses.replace(run, experiment=run.experiment.replace(name="search"))
    assert forecast.agreement(renamed) == ""


def test_what_notebook_2_would_refuse_is_refused_before_any_work(runs, tmp_path):
    rows = "\n".join(f"question number {n},the answer to it is {n}" for n in range(50))
    (tmp_path / "faq.csv").write_text(f"query,positive\n{rows}\n")
    (tmp_path / "mine.toml").write_text('preset = "wikipedia"\ndataset = "faq.csv"\n')
    with pytest.raises(ValueError, match="gives 50 queries, but 2064 are needed"):
        forecast.minutes(start_run(str(tmp_path / "mine.toml"), typed=True))
