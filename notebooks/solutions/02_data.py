"""Solutions to the exercises of 02_data."""

import torch

from helpers.triplets import normalise


def leaks(train: list[str], test: list[str]) -> list[str]:
    """The test queries that training has seen, as test spells them and in its order."""
    seen = {normalise(query) for query in train}
    return [query for query in test if normalise(query) in seen]


def pick_negatives(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """The best candidate of each query that keeps a distance to its positive: ``(num_queries,)``.

    Scores are ``(num_queries, num_candidates)``; ``positive`` holds a column for each query.
    """
    # A share of the positive's score, since how high scores are differs from query to query.
    limit = 0.95 * scores.gather(1, positive[:, None])
    ruled_out = (scores > limit).scatter(1, positive[:, None], True)
    return scores.masked_fill(ruled_out, float("-inf")).argmax(dim=1)
