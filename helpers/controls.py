"""Controls that need no training: lexical search, and a rotation of the embeddings."""

from collections.abc import Sequence

import bm25s
import numpy as np
import torch


def bm25_ranking(queries: Sequence[str], passages: Sequence[str], k: int = 10) -> np.ndarray:
    """Rank passages for each query by BM25, with bm25s's defaults and English stop words.

    Returns:
        Row numbers of passages, best first: ``(num_queries, k)``. -1 fills the places of
        passages that share no word with the query.

    Raises:
        ValueError: the corpus is empty, or ``k`` is below 1.
    """
    if not len(passages):
        raise ValueError("passages is empty: there is nothing to rank")
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False
    )
    found = min(k, len(passages))
    ranking, scores = index.retrieve(
        bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False),
        k=found,
        show_progress=False,
    )
    ranking = np.where(scores > 0, ranking.astype(np.int64), -1)
    return np.pad(ranking, ((0, 0), (0, k - found)), constant_values=-1)


def svd_rotation(embeddings: torch.Tensor) -> torch.Tensor:
    """The rotation that puts the directions in which embeddings vary most first.

    Rotating changes no full-size cosine similarity; it only changes what a prefix holds.

    Args:
        embeddings: ``(num_texts, dim)``; training passages, never the ones that are scored.

    Returns:
        ``(dim, dim)``, orthogonal: rotate with ``embeddings @ rotation``.
    """
    # The right singular vectors, as eigenvectors: a (dim, dim) problem, however many the texts.
    products = embeddings.double().T @ embeddings.double()
    _, directions = torch.linalg.eigh(products)
    return directions.flip(1).to(embeddings.dtype)  # largest first
