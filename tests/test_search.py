"""Exact search, reranking, and the overlap of what two searches find."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.metrics import prefix
from helpers.search import mining_limits, overlap, rerank, search


def unit(rows, dim, seed=0):
    return prefix(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), length=st.integers(12, 30))
def test_search_is_exact_and_rerank_orders_a_shortlist_at_full_size(seed, k, length):
    queries, corpus = unit(4, 32, seed), unit(30, 32, seed + 1)
    order = (queries.double() @ corpus.double().T).argsort(dim=1, descending=True)
    assert search(queries, corpus, k).equal(order[:, :k])
    shortlist = search(prefix(queries, 8), prefix(corpus, 8), length)
    expected = [
        [i for i in row if i in kept][:k]
        for row, kept in zip(order.tolist(), shortlist.tolist(), strict=True)
    ]
    assert rerank(queries, corpus, shortlist, k).tolist() == expected


def test_a_shortlist_longer_than_the_corpus_is_the_corpus():
    queries, corpus = unit(2, 8), unit(5, 8, seed=1)
    shortlist = search(queries, corpus, 9)
    assert shortlist.shape == (2, 5)
    assert rerank(queries, corpus, shortlist, 9).equal(shortlist)


def test_what_was_not_found_ranks_last_and_counts_for_nothing():
    queries, corpus = unit(1, 8), unit(5, 8, seed=1)
    queries[0] = corpus[-1]  # which is not on the shortlist
    assert rerank(queries, corpus, torch.tensor([[-1, 2, -1, 3]]), 3).tolist()[0][2] == -1
    assert overlap(torch.tensor([[1, 3, -1]]), torch.tensor([[1, 2, -1]])) == 0.5
    assert overlap(torch.tensor([[1, 2, 7], [3, 4, 5]]), torch.tensor([[2, 9], [4, 3]])) == 0.75


def peak(job) -> int:
    """The largest number of values that any result of an operation in ``job`` holds."""
    sizes = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            found = operation(*args, **kwargs or {})
            sizes.append(found.numel() if torch.is_tensor(found) else 0)
            return found

    with Watch():
        job()
    return max(sizes)


def test_memory_of_many_queries_is_bounded(monkeypatch):
    queries, corpus = unit(400, 8), unit(300, 8, seed=1)
    shortlist = search(queries, corpus, 40)
    whole = queries @ corpus.T
    monkeypatch.setattr("helpers.search.queries_at_once", lambda num_passages: 64)
    assert peak(lambda: search(queries, corpus, 40)) <= 64 * 300
    assert peak(lambda: rerank(queries, corpus, shortlist, 5)) <= 64 * 40 * 8
    best = whole.topk(5, dim=1).indices
    assert search(queries, corpus, 5).equal(best) and best.equal(shortlist[:, :5])
    assert rerank(queries, corpus, shortlist, 5).equal(best)


def test_mining_compares_as_many_queries_at_once_as_fit_in_memory():
    limits = [tuple(mining_limits(number, 1000).values()) for number in (6_800, 200_000)]
    assert limits == [(16_384, 1000), (671, 167)]
