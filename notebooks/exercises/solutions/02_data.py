"""Solutions to the exercises of 02_data."""

import torch

from helpers.rows import normalise


def leaks(train: list[str], test: list[str]) -> list[str]:
    """Return the test queries that also occur in train, in some spelling."""
    seen = {normalise(query) for query in train}
    return [query for query in test if normalise(query) in seen]


def pick_negatives(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Pick each query's best candidate that's safely below its positive: ``(num_queries,)``."""
    # The limit is a share of the positive's score, because some queries score higher than others.
    limit = 0.95 * scores.gather(1, positive[:, None])
    unsafe = (scores > limit).scatter(1, positive[:, None], True)
    return scores.masked_fill(unsafe, float("-inf")).argmax(dim=1)
