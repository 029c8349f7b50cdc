"""The recipes that are compared, and what was meant to be reached."""

import dataclasses

import pandas as pd
import pytest

from helpers.config import PRESETS, STAGES
from helpers.recipes import CHANGES, aims, recipe

WIKIPEDIA = PRESETS["wikipedia"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_changes_nothing_but_what_is_optimised(preset, name):
    experiment = PRESETS[preset]
    changed = recipe(name, experiment)
    free = {"matryoshka_dims", "rotate"}
    for field in dataclasses.fields(experiment):
        if field.name not in free:
            assert getattr(changed, field.name) == getattr(experiment, field.name)
    assert changed.up_to(STAGES[1]) == experiment.up_to(STAGES[1])


def test_the_recipes_are_what_their_names_say():
    assert recipe("tuned", WIKIPEDIA) == WIKIPEDIA
    control = recipe("mnrl", WIKIPEDIA)
    assert (control.matryoshka_dims, control.rotate) == ((384,), False)
    stock = recipe("matryoshka", WIKIPEDIA)
    assert stock.matryoshka_dims == (384, 256, 128, 64)
    assert not stock.rotate
    assert recipe("matryoshka_short", WIKIPEDIA) == dataclasses.replace(WIKIPEDIA, rotate=False)
    assert recipe("only_64", WIKIPEDIA).matryoshka_dims == (64,)
    with pytest.raises(ValueError, match="recipe is 'best': allowed are tuned, mnrl"):
        recipe("best", WIKIPEDIA)


def tables(share=0.99, gain=0.04, p_value=0.001, low=0.01, loss=0.0):
    """Scores and differences that reach every aim, but for what is asked otherwise."""
    rows = [("mnrl", 0, "test", 384, 0.8), ("tuned", 0, "test", 384, 0.8 + loss)]
    rows += [("mnrl", 0, "dev", 384, 0.99), ("tuned", 0, "test", 64, 0.8 * share)]
    rows += [("tuned", 1, "test", 64, 0.8 * share), ("tuned", 1, "test", 384, 0.8 + loss)]
    scores = pd.DataFrame(rows, columns=["recipe", "seed", "split", "dim", "mrr@10"])
    pairs = [("mnrl_rotated", 64, 64, gain), ("base", 384, 32, 0.1), ("base", 64, 16, 0.1)]
    found = [
        (before, before_dim, "tuned", dim, seed, mean, low, mean + 0.1, p_value)
        for before, before_dim, dim, mean in pairs
        for seed in (0, 1)
    ]
    columns = ["before", "before_dim", "after", "after_dim", "seed"]
    return scores, pd.DataFrame(found, columns=[*columns, "mean", "low", "high", "p_value"])


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"share": 0.97}, [0]),
        ({"gain": 0.02}, [1]),
        ({"p_value": 0.02}, [1]),
        ({"low": -0.01}, [2, 3]),
        ({"loss": -0.006}, [4]),
    ],
)
def test_each_aim_is_missed_by_what_it_asks_for_alone(changes, missed):
    found = aims(*tables(**changes), small=64, full=384)
    assert [number for number, row in enumerate(found) if not row["reached"]] == missed


def test_a_seed_that_was_not_compared_misses_the_aim():
    scores, differences = tables()
    found = aims(scores, differences[differences["seed"] == 0], 64, 384)
    assert [row["reached"] for row in found] == [True, False, False, False, True]


def test_one_seed_that_fails_is_enough_to_miss_an_aim():
    scores, differences = tables()
    differences.loc[1, "mean"] = 0.0  # the second seed of the rotated control
    assert not aims(scores, differences, 64, 384)[1]["reached"]
