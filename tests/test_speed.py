"""The speed script: what it computes from times. Nothing is timed here."""

import dataclasses
import itertools

import pandas as pd
import pytest
import torch

from helpers import speed
from helpers.artifacts import open_run
from helpers.collection import collect
from helpers.config import ROOT
from helpers.speed import (
    COLUMNS,
    END,
    START,
    TrainingStep,
    main,
    medians,
    rates,
    readme_speed,
    share,
    time_evaluation,
    training_variants,
)
from helpers.triplets import gather


@pytest.fixture
def run(runs):
    """A run of the smoke preset with its data and four training rows."""
    run = open_run("smoke", "02_data", quiet=True)
    data = collect(gather(run))
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
    step = TrainingStep(training_variants(run)[-1], run)
    before = [weight.clone() for weight in step.model.parameters()]
    step(rows)
    after = list(step.model.parameters())
    assert any(not a.equal(b) for a, b in zip(after, before, strict=True))


def test_one_encoding_scores_as_the_stock_evaluators_do(run, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(
        speed, "medians", lambda actions: {n: (a(), 1.0)[1] for n, a in actions.items()}
    )
    rows = time_evaluation(run, num_queries=10, num_passages=40)
    assert [row["variant"] for row in rows] == ["stock", "one encoding: this series"]


def test_positives_and_negatives_in_one_forward_have_the_same_loss(run):
    rows = pd.DataFrame({"query": ["a", "b"], "positive": ["c", "d"], "negative": ["e", "f"]})
    variant = dataclasses.replace(training_variants(run)[-1], precision="float32")
    steps = [TrainingStep(variant, run, one_forward) for one_forward in (False, True)]
    apart, together = (list(step.batches(rows)) for step in steps)
    assert [len(columns) for columns in (apart[0], together[0])] == [3, 2]
    losses = [steps[0].loss(batch[0], labels=None).item() for batch in (apart, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_share_of_the_matrix_rate_counts_what_is_multiplied(run, monkeypatch):
    monkeypatch.setattr(speed, "matrix_rate", lambda precision: 1000.0)
    matrix = torch.ones(10, 10)
    row = share("encoding", lambda: matrix @ matrix, seconds=4.0, run=run)
    assert row["value"] == pytest.approx(100 * 2 * 10**3 / 4 / 1000)
    assert row["job"] == "encoding"


def test_a_run_without_data_is_refused_with_what_to_do(runs, capsys):
    open_run("smoke", "01_setup", quiet=True)
    assert main(["smoke"]) == 1
    assert "Run notebooks/02_data.ipynb first" in capsys.readouterr().err


def test_the_readme_shows_the_table():
    table = pd.read_csv(ROOT / "results" / "speed.csv")
    assert list(table.columns) == COLUMNS
    jobs = {"training", "batching", "encoding", "evaluating 5 sizes"}
    assert jobs <= set(table["job"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text[text.index(START) : text.index(END) + len(END)] == readme_speed(table)
