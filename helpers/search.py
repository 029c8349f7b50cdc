"""Search exactly, rerank a shortlist, and compare what two searches find."""

import sys

import faiss
import torch

if sys.platform == "darwin":  # FAISS's threads crash there next to torch's: faiss-wheels issue 73
    faiss.omp_set_num_threads(1)


def queries_at_once(num_passages: int) -> int:
    """Return how many queries to compare with a corpus at a time: half a gigabyte of scores."""
    return min(16_384, max(64, 2**27 // num_passages))


def mining_limits(num_queries: int, candidates: int) -> dict[str, int]:
    """Return the arguments of ``mine_hard_negatives`` that bound its memory.

    It keeps the ``candidates`` most similar passages of all queries; of many queries, fewer.
    """
    most = max(50, 2**25 // num_queries)
    return {"faiss_batch_size": queries_at_once(num_queries), "range_max": min(candidates, most)}


def search(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> torch.Tensor:
    """Find the ``k`` passages most similar to each query, exactly.

    Queries and corpus are ``(any, dim)``, of unit length. Returns ``(num_queries, k)`` row
    numbers, best first; fewer if the corpus has fewer passages.
    """
    blocks = queries.split(queries_at_once(len(corpus)))
    return torch.cat([(q @ corpus.T).topk(min(k, len(corpus)), dim=1).indices for q in blocks])


def rerank(
    queries: torch.Tensor, corpus: torch.Tensor, shortlist: torch.Tensor, k: int
) -> torch.Tensor:
    """Order each query's shortlist by similarity at full size, and return the best ``k``.

    The shortlist is ``(num_queries, length)`` row numbers, -1 for none, which ranks last; all
    else is as for :func:`search`.

    >>> query, corpus = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> rerank(query, corpus, torch.tensor([[1, 0]]), k=1)
    tensor([[0]])
    """
    best = []
    for q, rows in zip(queries.split(64), shortlist.split(64), strict=True):
        scores = torch.einsum("qd,qsd->qs", q, corpus[rows]).masked_fill(rows < 0, -torch.inf)
        best.append(rows.gather(1, scores.topk(min(k, rows.shape[1]), dim=1).indices))
    return torch.cat(best)


def overlap(results: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the share of ``wanted`` that ``results`` hold, row by row, on average.

    Both are ``(num_queries, any)`` row numbers of passages; -1 in ``wanted`` isn't counted.

    >>> overlap(torch.tensor([[3, 1]]), torch.tensor([[1, 2]]))
    0.5
    """
    is_there = (wanted[:, :, None] == results[:, None, :]).any(dim=2)
    return is_there[wanted >= 0].double().mean().item()
