"""Controls that need no training: lexical search, and a rotation of the embeddings."""

import os
from collections.abc import Sequence

# bm25s imports JAX where it is installed, as on Colab, and JAX takes most of a GPU's memory.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import bm25s
import numpy as np
import torch


def bm25_ranking(queries: Sequence[str], passages: Sequence[str], k: int = 10) -> np.ndarray:
    """Rank passages for each query by BM25, with bm25s's defaults and English stop words.

    Args:
        queries: Texts, at least one.
        passages: The corpus; a row number is a place in it.
        k: Passages to return for each query.

    Returns:
        Row numbers of passages, best first: ``(num_queries, k)``. -1 fills the places of
        passages that share no word with the query.

    Raises:
        ValueError: no queries, no passages, passages of stop words alone, or ``k`` below 1.
    """
    if not len(passages) or not len(queries):
        name = "queries" if len(passages) else "passages"
        raise ValueError(f"{name} is empty: there is nothing to rank")
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    words = bm25s.tokenize(list(passages), stopwords="en", show_progress=False)
    if not words.vocab:
        raise ValueError("passages hold nothing but stop words: there is nothing to rank by")
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    found = min(k, len(passages))
    ranking, scores = index.retrieve(
        bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False),
        k=found,
        show_progress=False,
        backend_selection="numpy",  # JAX may order equal scores otherwise
    )
    ranking = np.where(scores > 0, ranking.astype(np.int64), -1)
    return np.pad(ranking, ((0, 0), (0, k - found)), constant_values=-1)


def random_order(full_dim: int, seed: int) -> torch.Tensor:
    """The dimensions in an order drawn at random: their prefix is a random choice."""
    return torch.randperm(full_dim, generator=torch.Generator().manual_seed(seed))


def svd_rotation(embeddings: torch.Tensor) -> torch.Tensor:
    """The rotation that puts the directions in which embeddings lie most first: uncentred PCA.

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
