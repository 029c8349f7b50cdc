import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.metrics import prefix
from helpers.search import Funnel, overlap, search


def unit(rows, dim, seed=0):
    return prefix(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), rows=st.integers(12, 50))
def test_a_shortlist_of_everything_gives_the_full_size_answer(seed, k, rows):
    queries, corpus = unit(4, 32, seed), unit(rows, 32, seed + 1)
    exact = search(queries, corpus, k)
    assert Funnel(corpus, dim=8).search(queries, k, shortlist=rows).equal(exact)
    brute = (queries.double() @ corpus.double().T).argsort(dim=1, descending=True)[:, :k]
    assert exact.equal(brute)


def test_the_rerank_orders_the_shortlist_by_full_size():
    queries, corpus = unit(6, 32), unit(40, 32, 1)
    found = Funnel(corpus, dim=8).search(queries, 10, shortlist=10)
    picked = search(prefix(queries, 8), prefix(corpus, 8), 10)
    assert found.sort().values.equal(picked.sort().values)
    scores = (queries @ corpus.T).gather(1, found)
    assert (scores.diff(dim=1) <= 0).all()


def test_the_shortlist_is_picked_by_renormalised_prefixes():
    corpus = torch.tensor([[0.9, 0.1, 0.42], [0.3, 0.0, 0.95]])
    query = torch.tensor([[1.0, 0.0, 0.0]])
    assert Funnel(corpus, dim=2).search(query, 1, shortlist=1).item() == 1


def test_overlap_counts_shared_passages():
    assert overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9], [4, 3]])) == 0.75


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: search(unit(1, 8), unit(5, 16), 1), "queries have 8 dimensions, the corpus 16"),
        (lambda: search(unit(1, 8), unit(5, 8), 6), "k is 6: it must lie between 1 and the 5"),
        (lambda: search(unit(1, 8), unit(5, 8), 0), "k is 0"),
        (lambda: Funnel(unit(5, 8), dim=4).search(unit(1, 8), 3, shortlist=2), "shortlist is 2"),
        (
            lambda: Funnel(unit(5, 8), dim=4).search(unit(1, 8), 3, shortlist=9),
            "shortlist is 9: it must lie between k, 3, and the 5",
        ),
    ],
)
def test_bad_input_is_named(action, said):
    with pytest.raises(ValueError, match=said):
        action()
