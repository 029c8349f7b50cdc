"""Replication in other settings: every way of scoring, the leads, and what is written of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from helpers.metrics import Split, evaluate_truncated
from tools.replicate import best_rates, every_way, leads, predictors, summary


@pytest.fixture(scope="module")
def embeddings():
    """Passages, and queries near one of them each."""
    generator = torch.Generator().manual_seed(0)
    passages = normalize(torch.randn(300, 96, generator=generator), dim=1)
    noise = torch.randn(40, 96, generator=generator) / 96**0.5
    return (
        normalize(passages[:40] + 1.5 * noise, dim=1),
        passages,
        Split([], [{i} for i in range(40)], [()] * 40),
    )


def test_every_way_of_scoring_by_hand(embeddings):
    queries, passages, split = embeddings
    found = every_way(queries, passages, split, [16, 96], small=16, k=10)
    means = found.groupby(["way", "dim"])["mrr@10"].mean()
    exact = evaluate_truncated(queries, passages, split, [16, 96]).set_index("dim")["mrr@10"]
    assert means["float32", 16] == pytest.approx(exact[16])
    assert means["float32", 96] == pytest.approx(exact[96])
    signs = np.where(passages.numpy() < 0, -1, 1)
    rounded = np.where(queries.numpy() < 0, -1, 1)
    for way, asked in (("signs", queries.double().numpy()), ("both signs", rounded)):
        scores = asked @ signs.T
        ahead = (scores > np.diag(scores)[:, None]).sum(axis=1)
        before = np.tril(scores == np.diag(scores)[:, None], k=-1).sum(axis=1)
        ranks = ahead + before + 1  # equal scores rank in the order of the corpus
        wanted = np.where(ranks <= 10, 1 / ranks, 0).mean()
        assert means[way, 96] == pytest.approx(wanted)
    assert means["int8", 16] == pytest.approx(means["float32", 16], abs=0.05)
    assert means["float32", 16] < means["rerank", 16] <= means["float32", 96] + 0.05


def table(setting, recipe, seed, split, scores, way="float32", dim=64, **more):
    """Per-query scores as they are kept."""
    columns = {"mrr@10": scores, "recall@10": scores, "ndcg@10": scores}
    about = {"setting": setting, "recipe": recipe, "seed": seed, "split": split, "way": way}
    about |= {"rows": 10, "source": "training", "machine": "here", "rate": None} | more
    return pd.DataFrame(columns).assign(query=range(len(scores)), dim=dim, **about)


def test_a_lead_is_after_minus_before_and_counts_queries():
    before = [1.0, 0.5, 1.0, 0.0] * 10
    after = [1.0, 1.0, 0.5, 1.0] * 10
    scores = pd.concat(
        [
            table("a", "mnrl_rotated", 0, "test", before),
            table("a", "tuned", 0, "test", after),
            table("a", "mnrl_rotated", 1, "test", before),
            table("a", "tuned", 1, "test", before),
            table("a", "tuned", 0, "test", after, dim=384),
        ]
    )
    found = leads(scores.sample(frac=1, random_state=0), 64, 10).set_index(["dim", "seed"])
    assert found.index.tolist() == [(64, 0), (64, 1)]
    assert found.loc[(64, 0), "mean"] == pytest.approx(0.25)
    assert found.loc[(64, 0), ["gained", "lost", "queries"]].tolist() == [20, 10, 40]
    assert found.loc[(64, 1), ["mean", "gained", "lost"]].tolist() == [0, 0, 0]


def test_dev_chooses_the_learning_rate_and_test_has_no_say():
    made = [
        table("a", recipe, 0, split, [score] * 4, dim=384, rate=rate)
        for rate, scores in ((2e-5, (0.4, 0.9)), (5e-5, (0.6, 0.1)))
        for split, score in zip(("dev", "test"), scores, strict=True)
        for recipe in ("mnrl", "tuned")
    ]
    other = table("b", "mnrl", 0, "dev", [0.5], dim=384)
    found = best_rates(pd.concat([*made, other]), "mrr@10")
    assert {*found.loc[found["setting"] == "a", "rate"]} == {5e-5}
    assert {*found["setting"]} == {"a", "b"}


def test_predictors_are_of_dev_and_the_lead_is_of_test():
    values = {"mnrl": (0.6, 0.8), "mnrl_rotated": (0.7, 0.8), "tuned": (0.75, 0.8)}
    made = [table("a", "bm25", None, "dev", [0.3] * 4, way="words", dim=None)]
    for split, plus in (("dev", 0), ("test", 0.1)):
        for recipe, (small, full) in (values | {"base": (0.4, 0.5)}).items():
            more = 0.05 * (split == "test" and recipe == "tuned")
            for dim, score in ((32, small), (64, small), (384, full)):
                seed = None if recipe == "base" else 0
                made.append(table("a", recipe, seed, split, [score + plus + more] * 4, dim=dim))
    scores = pd.concat(made)
    found = predictors(summary(scores), leads(scores, 64, 10), {"a": 0.59}, 64, 10).iloc[0]
    assert found["plain_kept"] == pytest.approx(0.6 / 0.8)
    assert found["rotated_kept"] == pytest.approx(0.7 / 0.8)
    assert found["lead_at_64"] == pytest.approx(0.1)
    assert found[["bm25", "base", "squared_length_held"]].tolist() == [0.3, 0.5, 0.59]
