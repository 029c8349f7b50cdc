"""Solutions to the exercises of 03_baseline."""

import torch


def reciprocal_rank(ranking: list[int], relevant: set[int], k: int) -> float:
    """Return one over the rank of the first relevant passage, or 0 if the top ``k`` have none."""
    for rank, passage in enumerate(ranking[:k], start=1):
        if passage in relevant:
            return 1 / rank
    return 0.0


def rotate(passages: torch.Tensor) -> torch.Tensor:
    """Return a rotation after which the first dimensions vary most: ``(dim, dim)``."""
    # The rows of Vh are directions, the most important first; as columns, they rotate rows.
    # This is PCA without subtracting the mean, because the mean counts in a cosine too.
    return torch.linalg.svd(passages, full_matrices=False).Vh.T
