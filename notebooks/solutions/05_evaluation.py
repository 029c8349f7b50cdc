"""Solutions to the exercises of 05_evaluation."""

import numpy as np

from helpers.triplets import normalise


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean difference, after minus before, of paired scores."""
    difference = np.asarray(after) - np.asarray(before)  # pairs stay together from here on
    drawn = np.random.default_rng(0).integers(len(difference), size=(5_000, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
    return low, high


def audit(experiment: dict) -> set[str]:
    """The names of the faults that are found in an experiment."""
    found = set()
    seen = {normalise(query) for query, _, _ in experiment["train"]}
    if any(normalise(query) in seen for query in experiment["test"]):
        found.add("leaky split")
    passages = [normalise(text) for text in experiment["passages"]]
    if len(set(passages)) < len(passages):
        found.add("duplicate passages")
    lengths = experiment["embeddings"].norm(dim=1)
    if (lengths - 1).abs().max() > 1e-3:  # rounding leaves them not quite at 1
        found.add("unnormalised prefixes")
    # A query may stand in several rows, and each of its positives is a right answer in all.
    right = {(normalise(query), normalise(text)) for query, text, _ in experiment["train"]}
    if any((normalise(q), normalise(text)) in right for q, _, text in experiment["train"]):
        found.add("right negatives")
    return found
