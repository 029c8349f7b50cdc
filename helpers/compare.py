"""Controls that need no training, and how far the difference of two methods can be trusted."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

# bm25s starts JAX where it is installed, as on Colab, and JAX takes most of a GPU's memory.
# A module that is None can't be imported; afterwards the reader's own JAX is as it was.
_jax = sys.modules.get("jax")
sys.modules["jax"] = None
import bm25s  # noqa: E402

del sys.modules["jax"]
if _jax:
    sys.modules["jax"] = _jax

# Runs of Thai, Lao, Burmese, Khmer, Japanese and Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+")
# Runs of scripts that write vowels as marks: Hebrew, Arabic, Devanagari to Sinhala, Tibetan, ...
_MARKED = re.compile("[\u0590-\u0dff\u0f00-\u0fff\u1700-\u177f\u1b00-\u1c4f\ua800-\uabff]+")
# A word with its marks and joiners, which to a regular expression are no part of it.
_MARKS = "".join(sign for sign in map(chr, range(0xAC00)) if unicodedata.category(sign)[0] == "M")
_WHOLE_WORD = rf"[\w{_MARKS}\u200c\u200d]{{2,}}"


def _mostly(script: re.Pattern, texts: Sequence[str]) -> bool:
    """Whether more than half of what isn't space is in runs of a script."""
    letters = sum(len(word) for text in texts for word in text.split())
    return 2 * sum(len(run) for text in texts for run in script.findall(text)) > letters


def _in_pairs(text: str) -> str:
    """Write each run of characters without spaces as its overlapping pairs."""

    def pairs(run: re.Match) -> str:
        return " " + " ".join(map("".join, pairwise(run[0]))) + " "

    return _UNSPACED.sub(pairs, text)


def bm25_ranking(queries: Sequence[str], passages: Sequence[str], k: int = 10) -> np.ndarray:
    """Rank passages for each query by BM25 (bm25s's defaults, English stop words).

    Scripts without spaces between words, such as Chinese or Thai, are searched by pairs of
    characters if most of the passages' letters are of such a script. In scripts that write vowels
    as marks, such as Devanagari, a word is all that stands between spaces.

    Returns:
        ``(num_queries, k)`` row numbers, best first; -1 instead of a passage that shares no word
        with the query.

    >>> bm25_ranking(["cold tea"], ["Iron rusts.", "Tea is served cold."], k=2)
    array([[ 1, -1]])
    """
    options = {"stopwords": "en", "show_progress": False}
    if _mostly(_UNSPACED, passages):
        passages, queries = map(_in_pairs, passages), map(_in_pairs, queries)
    elif _mostly(_MARKED, passages):
        options["token_pattern"] = _WHOLE_WORD
    queries, passages = list(queries), list(passages)
    words = bm25s.tokenize(passages, **options)
    if not words.vocab:
        print("The passages hold nothing but stop words, so BM25 finds nothing.")
        return np.full((len(queries), k), -1)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    ranking, scores = index.retrieve(
        bm25s.tokenize(queries, return_ids=False, **options),
        k=min(k, len(passages)),
        show_progress=False,
        backend_selection="numpy",  # JAX may order equal scores otherwise
    )
    ranking = np.where(scores > 0, ranking.astype(np.int64), -1)
    return np.pad(ranking, ((0, 0), (0, k - ranking.shape[1])), constant_values=-1)


def pca_rotation(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the rotation that puts the directions of most variance first: uncentred PCA.

    Rotating changes no full-size cosine similarity, only what a prefix holds.

    Args:
        embeddings: ``(num_texts, dim)`` of training passages, never of those that are scored.

    Returns:
        ``(dim, dim)``, orthogonal: rotate with ``embeddings @ rotation``.

    >>> pca_rotation(torch.tensor([[0.1, 1.0], [-0.1, 2.0]])).abs().round(decimals=1)
    tensor([[0., 1.],
            [1., 0.]])
    """
    # The right singular vectors, as eigenvectors: a (dim, dim) problem, however many the texts.
    products = embeddings.double().T @ embeddings.double()
    _, directions = torch.linalg.eigh(products)
    return directions.flip(1).to(embeddings.dtype)  # largest first


class Interval(NamedTuple):
    """A mean with its 95% confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference of two methods on the same queries, in the unit of the scores.

    ``mean`` is after minus before, with its 95% confidence interval. ``p_value`` says how often
    chance alone makes a mean difference at least as large, either way.
    """

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        clear = "" if self.low > 0 or self.high < 0 else ", can't be told from chance"
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f}, {p_value}){clear}"


def mean_interval(scores: Sequence[float], seed: int = 0, resamples: int = 10_000) -> Interval:
    """Return the mean of per-query scores with its bootstrap interval (percentiles).

    It draws the queries again ``resamples`` times, with replacement; there must be two or more.
    """
    scores = np.asarray(scores, dtype=float)
    interval = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=resamples,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(scores.mean()), float(interval.low), float(interval.high))


def paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int = 0, resamples: int = 10_000
) -> Difference:
    """Compare two methods query by query: bootstrap interval and randomisation test.

    Both methods' scores are of the same queries in the same order. The interval draws the queries
    again. The test swaps each query's two scores at random, and asks how often the mean difference
    is then as large. Neither covers another training seed. Raises ValueError if they have other
    numbers of queries.

    References:
        Smucker, Allan and Carterette, "A comparison of statistical significance tests for
        information retrieval evaluation", CIKM 2007.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} scores and after {len(after)}: give the same queries"
        )
    difference = after - before
    interval = mean_interval(difference, seed, resamples)
    test = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        batch=500,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return Difference(*interval, float(test.pvalue))
