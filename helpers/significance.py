"""How far a difference between two methods can be trusted, from the scores of single queries."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and its 95% confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean difference of two methods on the same queries.

    Attributes:
        mean: After minus before, in the unit of the scores.
        low: Lower end of the 95% confidence interval.
        high: Upper end of it.
        p_value: How often chance alone makes a mean difference at least as large, either way.
    """

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        seen = "" if self.low > 0 or self.high < 0 else ", no difference seen"
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f}, {p_value}){seen}"


def mean_interval(scores, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of per-query scores with its bootstrap interval (percentiles).

    Args:
        scores: One score a query: ``(num_queries,)``.
        seed: Of the resampling.
        resamples: Times that the queries are drawn again, with replacement.

    Raises:
        ValueError: fewer than two queries, or NaN among the scores.
    """
    scores = _as_scores(scores, "scores")
    if np.ptp(scores) == 0:
        return Interval(*[float(scores[0])] * 3)
    found = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=resamples,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(scores.mean()), float(found.low), float(found.high))


def paired_difference(before, after, seed: int = 0, resamples: int = 10_000) -> Difference:
    """Compare two methods query by query: bootstrap interval and randomisation test.

    The interval draws queries again; the test asks how often a mean difference this large
    comes about when each query's two scores are swapped at random. Both treat the queries as a
    sample, and the models as given: another training seed is not in it.

    Args:
        before: One score a query: ``(num_queries,)``.
        after: The other method's scores of the same queries, in the same order.
        seed: Of the resampling.
        resamples: Resamples of the bootstrap, and of the test.

    Raises:
        ValueError: other numbers of queries, fewer than two, or NaN among the scores.

    References:
        Smucker, Allan and Carterette, "A comparison of statistical significance tests for
        information retrieval evaluation", CIKM 2007.
    """
    before, after = _as_scores(before, "before"), _as_scores(after, "after")
    if len(before) != len(after):
        raise ValueError(
            f"before has {len(before)} scores and after {len(after)}: give the same queries"
        )
    difference = after - before
    if not difference.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
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


def _as_scores(scores, name: str) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"{name} has shape {scores.shape}: at least two queries are wanted")
    if np.isnan(scores).any():
        raise ValueError(f"{name} holds NaN at query {int(np.isnan(scores).argmax())}")
    return scores
