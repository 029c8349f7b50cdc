"""Exact search, reranking, and the overlap of what two searches find."""

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.metrics import prefix
from helpers.search import one_core, overlap, rerank, search


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


def test_overlap_is_the_share_of_what_is_wanted():
    assert overlap(torch.tensor([[1, 2, 7], [3, 4, 5]]), torch.tensor([[2, 9], [4, 3]])) == 0.75


def test_one_core_is_given_back_even_after_an_error():
    def threads():
        return torch.get_num_threads(), faiss.omp_get_max_threads()

    started_with = torch.get_num_threads()
    torch.set_num_threads(2)
    before = threads()
    with pytest.raises(RuntimeError), one_core():
        assert threads() == (1, 1)
        raise RuntimeError
    assert threads() == before
    torch.set_num_threads(started_with)
