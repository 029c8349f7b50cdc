"""The speed script: what it computes from times. Nothing is timed here."""

import itertools
from collections import Counter

import pandas as pd
import pytest

from helpers import speed
from helpers.artifacts import open_run
from helpers.config import PRESETS, ROOT
from helpers.speed import (
    COLUMNS,
    END,
    START,
    main,
    medians,
    rates,
    readme_speed,
    time_evaluation,
    training_step,
    training_variants,
)
from helpers.triplets import clean_rows, collect, stream_rows


@pytest.fixture
def run(runs):
    """A run of the smoke preset with its data and four training rows."""
    run = open_run("smoke", "02_data", quiet=True)
    experiment = PRESETS["smoke"]
    data = collect(clean_rows(stream_rows(experiment), experiment, Counter()), experiment)
    for name in ("passages", "queries", "qrels"):
        run.save(f"{name}.parquet", getattr(data, name), "data")
    return run


def test_medians_give_each_action_its_turn_and_leave_out_the_first_round(monkeypatch):
    clock = iter(range(1000))
    ticks = {"quick": 1, "slow": 3}
    order = []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))

    def action(name):
        order.append(name)
        for _ in range(ticks[name] * (50 if len(order) < 3 else 1)):
            next(clock)

    found = medians({name: lambda name=name: action(name) for name in ticks}, rounds=3)
    assert order == ["quick", "slow"] * 4
    assert found == {"quick": 2, "slow": 4}


def test_rates_are_amounts_a_second_and_ratios_to_stock():
    rows = rates("training", {"stock": 2.0, "better": 0.5}, 64, "rows/s", "stock")
    assert [row["value"] for row in rows] == [32, 128]
    assert [row["ratio_to_stock"] for row in rows] == [1, 4]


def test_variants_change_one_thing_at_a_time(run):
    variants = training_variants(run)
    for before, after in itertools.pairwise(variants):
        changed = {
            field
            for field in ("batch_size", "max_seq_length", "precision", "attention", "dropout")
            if getattr(before, field) != getattr(after, field)
        }
        assert len(changed) <= 1, (before, after)


def test_a_training_step_trains(run):
    rows = pd.DataFrame({"query": ["tea", "war"], "positive": ["about tea", "about war"]})
    models = []
    load = speed.load_model
    speed.load_model = lambda run: models.append(load(run)) or models[-1]
    try:
        step = training_step(training_variants(run)[-1], run)
    finally:
        speed.load_model = load
    before = [weight.clone() for weight in models[0].parameters()]
    step(rows)
    after = list(models[0].parameters())
    assert any(not a.equal(b) for a, b in zip(after, before, strict=True))


def test_one_encoding_scores_as_the_stock_evaluators_do(run, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(
        speed, "medians", lambda actions: {n: (a(), 1.0)[1] for n, a in actions.items()}
    )
    rows = time_evaluation(run, num_queries=10, num_passages=40)
    assert [row["variant"] for row in rows] == ["stock", "one encoding: this series"]


def test_a_run_without_data_is_refused_with_what_to_do(runs, capsys):
    open_run("smoke", "01_setup", quiet=True)
    assert main(["smoke"]) == 1
    assert "Run notebooks/02_data.ipynb first" in capsys.readouterr().err


def test_the_readme_shows_the_table():
    table = pd.read_csv(ROOT / "results" / "speed.csv")
    assert list(table.columns) == COLUMNS
    assert set(table["job"]) == {"training", "encoding", "evaluating 5 sizes"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text[text.index(START) : text.index(END) + len(END)] == readme_speed(table)
