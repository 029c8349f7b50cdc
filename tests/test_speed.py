"""The speed program: what it computes from times. Nothing is timed here but two evaluations."""

import itertools

import pandas as pd
import pytest

from helpers.collection import collect
from helpers.runs import start_run
from tests.test_triplets import gather
from tools import command, speed
from tools.speed import TrainingStep, medians, rates, time_evaluation, training_variants


@pytest.fixture
def run(runs):
    """A run of the smoke preset with its data."""
    run = start_run("smoke")
    data = collect(gather(run.experiment))
    for name in ("passages", "queries", "qrels"):
        run.save(f"{name}.parquet", getattr(data, name))
    return run


def test_medians_give_each_action_its_turn_and_leave_out_the_first_round(monkeypatch):
    clock, order = iter(range(1000)), []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))

    def action(name, ticks):
        order.append(name)
        for _ in range(ticks * (50 if len(order) < 3 else 1)):
            next(clock)

    found = medians(
        {"quick": lambda: action("quick", 1), "slow": lambda: action("slow", 3)}, rounds=3
    )
    assert order == ["quick", "slow"] * 4
    assert found == {"quick": 2, "slow": 4}


def test_rates_are_amounts_a_second_and_ratios_to_stock():
    rows = rates("training", {"stock": 2.0, "better": 0.5}, 64, "rows/s")
    assert rows == [
        ("training", "stock", 32, "rows/s", 1),
        ("training", "better", 128, "rows/s", 4),
    ]


def test_variants_change_one_thing_at_a_time(run):
    for before, after in itertools.pairwise(training_variants(run).values()):
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        assert changed <= 1, (before, after)


def test_a_training_step_trains(run):
    rows = pd.DataFrame({"query": ["tea", "war"], "positive": ["about tea", "about war"]})
    step = TrainingStep(run, *[*training_variants(run).values()][-1])
    before = [weight.clone() for weight in step.model.parameters()]
    step(rows)
    after = list(step.model.parameters())
    assert any(not a.equal(b) for a, b in zip(after, before, strict=True))


def test_one_encoding_scores_as_the_stock_evaluators_do(run, monkeypatch):
    monkeypatch.setattr(
        speed, "medians", lambda actions: {n: (a(), 1.0)[1] for n, a in actions.items()}
    )
    rows = time_evaluation(run, num_queries=10)
    assert [variant for _, variant, *_ in rows] == ["stock", "one encoding: this series"]


def test_a_run_without_data_is_refused_with_what_to_do(runs, capsys):
    assert command("", speed.time_all, ["smoke"]) == 1
    assert "Run the notebooks up to 02_data first" in capsys.readouterr().err
