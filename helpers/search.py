"""Search with a shortlist at few dimensions and a rerank at full size."""

import torch

from helpers.metrics import prefix


def search(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` passages most similar to each query: ``(num_queries, k)`` row numbers.

    Args:
        queries: ``(num_queries, dim)``, of unit length.
        corpus: ``(num_passages, dim)``, of unit length.
        k: Passages to return, best first.

    Raises:
        ValueError: dimensions that differ, or ``k`` not between 1 and the corpus's size.
    """
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the corpus {corpus.shape[1]}: "
            "cut both to the same"
        )
    if not 1 <= k <= len(corpus):
        raise ValueError(f"k is {k}: it must lie between 1 and the {len(corpus)} passages")
    return (queries @ corpus.T).topk(k, dim=1).indices


def funnel(
    queries: torch.Tensor, corpus: torch.Tensor, k: int, dim: int = 64, shortlist: int = 100
) -> torch.Tensor:
    """Pick a shortlist with the first ``dim`` numbers, then rerank it with all of them.

    Args:
        queries: ``(num_queries, full_dim)``.
        corpus: ``(num_passages, full_dim)``.
        k: Passages to return, best first.
        dim: Numbers that the first stage looks at.
        shortlist: Passages that the first stage hands to the second, at least ``k``.

    Returns:
        ``(num_queries, k)`` row numbers.

    Raises:
        ValueError: a shortlist below ``k``, and what :func:`search` says.
    """
    if shortlist < k:
        raise ValueError(f"shortlist is {shortlist}: it must be at least k, {k}")
    picked = search(prefix(queries, dim), prefix(corpus, dim), shortlist)
    full_queries, full_corpus = prefix(queries, queries.shape[1]), corpus[picked]
    scores = torch.einsum(
        "qd,qsd->qs", full_queries, torch.nn.functional.normalize(full_corpus, dim=2)
    )
    return picked.gather(1, scores.topk(k, dim=1).indices)


def overlap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of ``wanted`` that ``found`` holds, row by row, on average.

    Args:
        found, wanted: ``(num_queries, any)`` row numbers of passages.
    """
    return (wanted[:, :, None] == found[:, None, :]).any(dim=2).double().mean().item()
