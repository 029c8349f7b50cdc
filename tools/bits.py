"""Score what a byte buys: passages of fewer dimensions, of fewer bits a dimension, or of both.

Passages are cut, brought to unit length and rounded. Queries are cut and stay in float32. Nothing
is reranked at full size.
"""

from collections.abc import Sequence
from functools import lru_cache

import faiss
import numpy as np
import pandas as pd
import torch
from scipy import stats

from helpers.metrics import Split, evaluate_ranking, evaluate_truncated, prefix

SEED = 0  # of the random rotation
ROUNDINGS = {
    "none": (32,),
    "even": (8, 4, 2),  # levels evenly from the lowest to the highest value of a dimension
    "normal": (8, 4, 2, 1),  # the best levels for a normal distribution (Max, 1960)
    "sign": (1,),  # above or below zero
    "rotated": (1,),  # as "normal", after a random rotation
    "rabitq": (1,),  # FAISS's: after a random rotation, with numbers of its own for each passage
}


@lru_cache
def normal_levels(bits: int) -> np.ndarray:
    """Return the ``2**bits`` best levels to round a standard normal variable to, ascending.

    References:
        Max, "Quantizing for minimum distortion", IRE Transactions on Information Theory, 1960.
    """
    levels = stats.norm.ppf((np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(2000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(stats.norm.pdf(edges)) / np.diff(stats.norm.cdf(edges))
    return levels


def round_passages(passages: torch.Tensor, bits: int, rounding: str) -> torch.Tensor:
    """Round passages to so many bits a dimension, and return them as they are read back.

    Args:
        passages: ``(num_passages, dim)``.
        bits: 8, 4, 2 or 1.
        rounding: "even", "normal" or "sign".
    """
    if rounding == "sign":
        return torch.where(passages < 0, -1.0, 1.0)
    if rounding == "even":
        low, high = passages.amin(dim=0), passages.amax(dim=0)
        step = (high - low).clamp(min=1e-12) / 2**bits
        code = ((passages - low) / step).floor().clamp(0, 2**bits - 1)
        return low + (code + 0.5) * step
    levels = torch.from_numpy(normal_levels(bits)).to(passages.dtype)
    spread, mean = torch.std_mean(passages, dim=0)
    code = torch.bucketize((passages - mean) / spread, (levels[1:] + levels[:-1]) / 2)
    return mean + spread * levels[code]


def random_rotation(dim: int) -> torch.Tensor:
    """Draw a random rotation, ``(dim, dim)``: always the same one."""
    return torch.from_numpy(stats.ortho_group.rvs(dim, random_state=SEED)).float()


def score_bits(
    queries: torch.Tensor,
    passages: torch.Tensor,
    split: Split,
    dims: Sequence[int],
    k: int = 10,
) -> pd.DataFrame:
    """Score retrieval with rounded passages, for every prefix and every way of rounding.

    The arguments are those of :func:`helpers.metrics.evaluate_truncated`. The result has the
    columns ``dim``, ``bits``, ``rounding``, ``bytes`` (of one passage) and the metrics.
    """
    rows = []
    for dim in dims:
        asked, cut = prefix(queries, dim), prefix(passages, dim)
        turn = random_rotation(dim)
        for rounding, widths in ROUNDINGS.items():
            for bits in widths:
                size = -(-dim * bits // 8)
                if rounding == "rabitq":
                    index = rabitq_index(dim)
                    index.train(cut.numpy())
                    index.add(cut.numpy())
                    size = faiss.downcast_index(index.index).code_size
                    ranking = index.search(asked.numpy(), split.depth(k))[1]
                    scores = evaluate_ranking(ranking, split, len(cut), k).drop(columns="dim")
                else:
                    q, p = (asked @ turn, cut @ turn) if rounding == "rotated" else (asked, cut)
                    if bits < 32:
                        p = round_passages(p, bits, "normal" if rounding == "rotated" else rounding)
                    scores = evaluate_truncated(q, p, split, [dim], k).drop(columns="dim")
                about = {"dim": dim, "bits": bits, "rounding": rounding, "bytes": size}
                rows.append(about | scores.iloc[0].to_dict())
    return pd.DataFrame(rows)


def rabitq_index(
    dim: int, metric: int = faiss.METRIC_INNER_PRODUCT, query_bits: int = 0
) -> faiss.IndexPreTransform:
    """Make FAISS's RaBitQ after a random rotation: a bit a dimension, two numbers a passage.

    Queries are rounded to ``query_bits`` a dimension; 0 leaves them in float32.

    References:
        Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound
        for Approximate Nearest Neighbor Search", SIGMOD 2024.
    """
    index = faiss.IndexRaBitQ(dim, metric)
    index.qb = query_bits
    rotation = faiss.RandomRotationMatrix(dim, dim)
    rotation.init(SEED)
    found = faiss.IndexPreTransform(index)
    found.prepend_transform(rotation)
    return found
