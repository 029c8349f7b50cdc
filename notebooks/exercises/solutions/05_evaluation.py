"""Solutions to the exercises of 05_evaluation."""

import numpy as np

from helpers.rows import normalise


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of after minus before."""
    difference = after - before  # pairs the scores: we draw queries, not single scores
    drawn = np.random.default_rng(0).integers(len(difference), size=(5_000, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return low, high


def audit(experiment: dict) -> set[str]:
    """Return the names of what is wrong with an experiment."""
    found = set()
    train = [tuple(map(normalise, row)) for row in experiment["train"]]
    if {query for query, _, _ in train} & set(map(normalise, experiment["test"])):
        found.add("leaky split")
    if len(set(map(normalise, experiment["passages"]))) < len(experiment["passages"]):
        found.add("duplicate passages")
    if (experiment["embeddings"].norm(dim=1) - 1).abs().max() > 1e-3:  # leaves room for rounding
        found.add("unnormalised prefixes")
    # A query can have several rows, and each of its positives is right in all of them.
    right = {(query, positive) for query, positive, _ in train}
    if any((query, negative) in right for query, _, negative in train):
        found.add("right negatives")
    return found
