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


class Funnel:
    """Two stages: a shortlist by the first ``dim`` numbers, reranked by all of them.

    The short vectors are scanned for every query and belong in fast memory; of the full ones
    only a shortlist is read.

    Args:
        corpus: ``(num_passages, full_dim)``.
        dim: Numbers that the first stage looks at.
    """

    def __init__(self, corpus: torch.Tensor, dim: int = 64):
        self.dim = dim
        self.short = prefix(corpus, dim)
        self.full = prefix(corpus, corpus.shape[1])

    def search(self, queries: torch.Tensor, k: int, shortlist: int = 100) -> torch.Tensor:
        """The ``k`` most similar passages of the shortlist: ``(num_queries, k)`` row numbers.

        Args:
            queries: ``(num_queries, full_dim)``.
            k: Passages to return, best first.
            shortlist: Passages that the first stage hands to the second, at least ``k``.

        Raises:
            ValueError: a shortlist below ``k`` or above the corpus, and what :func:`search` says.
        """
        if not k <= shortlist <= len(self.full):
            raise ValueError(
                f"shortlist is {shortlist}: it must lie between k, {k}, and the {len(self.full)} "
                "passages"
            )
        found = []
        for part in queries.split(64):  # a query's whole shortlist is held at full size
            picked = search(prefix(part, self.dim), self.short, shortlist)
            scores = torch.einsum("qd,qsd->qs", part, self.full[picked])
            found.append(picked.gather(1, scores.topk(k, dim=1).indices))
        return torch.cat(found)


def overlap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of ``wanted`` that ``found`` holds, row by row, on average.

    Args:
        found: ``(num_queries, any)`` row numbers of passages.
        wanted: ``(num_queries, any)``, likewise.
    """
    return (wanted[:, :, None] == found[:, None, :]).any(dim=2).double().mean().item()
