"""Solutions to the exercises of 03_baseline."""

import torch


def reciprocal_rank(ranking: list[int], relevant: set[int], k: int) -> float:
    """One over the rank of the first relevant passage, 0 if it is not among the first ``k``."""
    for rank, passage in enumerate(ranking[:k], start=1):
        if passage in relevant:
            return 1 / rank
    return 0.0


def rotate(passages: torch.Tensor) -> torch.Tensor:
    """A rotation that puts the directions in which passages lie most first: ``(dim, dim)``."""
    # The rows of the last factor are directions, largest first; as columns they rotate rows.
    # The mean is not subtracted: it takes part in cosine similarities.
    return torch.linalg.svd(passages, full_matrices=False).Vh.T
