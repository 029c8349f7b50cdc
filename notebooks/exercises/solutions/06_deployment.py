"""Solutions to the exercises of 06_deployment."""

import torch

from helpers.metrics import prefix

# A unit vector of 64 dimensions seldom has a value beyond 0.6. The limit is a constant, because
# ``restore`` gets only the codes. Half a byte has 16 levels, 0 to 15.
LIMIT, LEVELS = 0.6, 15


def two_stages(
    query: torch.Tensor, passages: torch.Tensor, dim: int, shortlist: int, k: int
) -> torch.Tensor:
    """Make a shortlist by prefix, and return its ``k`` best rows at full size: ``(k,)``."""
    # The length of the query's prefix doesn't change the order, that of the passages' does.
    near = (prefix(passages, dim) @ query[:dim]).topk(shortlist).indices
    best = (passages[near] @ query).topk(k).indices
    return near[best]


def compress(vectors: torch.Tensor) -> torch.Tensor:
    """Round each value to 16 levels, and put two into a byte: ``(num, 32)``."""
    share = (vectors.clamp(-LIMIT, LIMIT) + LIMIT) / (2 * LIMIT)  # without clamp, they wrap round
    level = (share * LEVELS).round().to(torch.uint8)
    return level[:, 0::2] * 16 + level[:, 1::2]


def restore(codes: torch.Tensor) -> torch.Tensor:
    """Turn codes back into vectors close to the original ones: ``(num, 64)``."""
    level = torch.stack([codes // 16, codes % 16], dim=2).flatten(1)
    return level / LEVELS * 2 * LIMIT - LIMIT
