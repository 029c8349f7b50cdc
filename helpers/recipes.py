"""The recipes that are compared by name: the tuned one and its controls, and its aims."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from helpers.config import Experiment


def _standard_dims(experiment: Experiment) -> tuple[int, ...]:
    """The prefix lengths that tutorials train: full size down to ``small_dim``, none below."""
    return tuple(dim for dim in experiment.matryoshka_dims if dim >= experiment.small_dim)


# What each recipe changes in the experiment. MatryoshkaLoss at full size alone is the plain loss.
CHANGES: dict[str, Callable[[Experiment], dict]] = {
    "tuned": lambda e: {},
    "mnrl": lambda e: {"matryoshka_dims": (e.full_dim,), "rotate": False},
    "only_64": lambda e: {"matryoshka_dims": (e.small_dim,)},
    "matryoshka": lambda e: {"matryoshka_dims": _standard_dims(e), "rotate": False},
    "matryoshka_short": lambda e: {"rotate": False},
}


def recipe(name: str, experiment: Experiment) -> Experiment:
    """The experiment with the training numbers of a recipe.

    Args:
        name: "tuned", the experiment as it stands; "mnrl", the control, the plain ranking loss
            at full size; "only_64", the tuned recipe with ``small_dim`` as its one length, for
            what specialising buys; "matryoshka", the Matryoshka loss as it is mostly used: no
            prefix shorter than ``small_dim``, no rotation; "matryoshka_short", the same with the
            experiment's shorter prefixes, which the rotation alone sets apart from "tuned".
        experiment: Gives every other number, so the recipes have rows, steps and batch alike.

    Raises:
        ValueError: no such recipe.
    """
    if name not in CHANGES:
        raise ValueError(f"recipe is {name!r}: allowed are {', '.join(CHANGES)}")
    return replace(experiment, **CHANGES[name](experiment))


def aims(scores: pd.DataFrame, differences: pd.DataFrame, small: int, full: int) -> list[dict]:
    """What the tuned recipe was meant to reach on test, and what it did.

    Args:
        scores: ``results/recipes.csv``.
        differences: ``results/recipes_differences.csv``.
        small: The short size that the series is about.
        full: Full size.

    Returns:
        For each aim, ``aim``, ``found`` and ``reached``, a text, a text and a bool.
    """
    metric = next(column for column in scores if column.startswith("mrr@"))
    test = scores[(scores["split"] == "test") & scores["dim"].notna()]
    mean = test.groupby(["recipe", "dim"])[metric].mean()
    best = mean.xs(full, level="dim").filter(items=[*CHANGES]).max()
    share = mean["tuned", small] / best
    loss = mean["tuned", full] - mean["mnrl", full]

    def seeds(before: str, before_dim: int, dim: int) -> pd.DataFrame:
        keys = ["before", "before_dim", "after", "after_dim"]
        wanted = (differences[keys] == [before, before_dim, "tuned", dim]).all(axis=1)
        return differences[wanted]

    def all_seeds(found: pd.DataFrame, holds: pd.Series) -> bool:
        trained = set(scores.loc[scores["recipe"] == "tuned", "seed"])
        return set(found["seed"]) == trained and bool(holds.all())

    rotated = seeds("mnrl_rotated", small, small)
    rows = [
        (
            f"at {small}, keep 98% of the best full-size score",
            f"{share:.1%}",
            share >= 0.98,
        ),
        (
            f"at {small}, beat the rotated control by .03 in each seed, p below .01",
            ", ".join(f"{mean:+.3f}" for mean in rotated["mean"]),
            all_seeds(rotated, (rotated["mean"] >= 0.03) & (rotated["p_value"] < 0.01)),
        ),
    ]
    for dim, before_dim in ((small // 2, full), (small // 4, small)):
        found = seeds("base", before_dim, dim)
        rows.append(
            (
                f"at {dim}, beat the base model at {before_dim}, intervals above zero",
                ", ".join(f"{mean:+.3f}" for mean in found["mean"]),
                all_seeds(found, found["low"] > 0),
            )
        )
    rows.append(
        (f"at {full}, lose at most .005 to plain MNRL", f"{loss:+.3f}", loss >= -0.005),
    )
    return [{"aim": aim, "found": found, "reached": bool(reached)} for aim, found, reached in rows]
