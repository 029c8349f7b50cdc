"""Score retrieval with truncated embeddings: encode once, score every prefix."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

BLOCK = 8_000_000  # scores held at a time: about 200 MB while they are compared


class Split(NamedTuple):
    """Queries, and for each of them passages by their row numbers.

    Attributes:
        queries: Texts.
        qrels: The passages that answer.
        exclude: Passages to leave out of the ranking: the query's own text, which would come first.
    """

    queries: Sequence[str]
    qrels: Sequence[Collection[int]]
    exclude: Sequence[Collection[int]]

    def depth(self, k: int) -> int:
        """Return how many passages to rank, so that ``k`` remain without those left out."""
        return k + max(map(len, self.exclude), default=0)

    def within(self, ids: Sequence[int]) -> "Split":
        """Return the same queries on the passages ``ids`` alone, which are numbered anew."""
        row = {passage: number for number, passage in enumerate(ids)}

        def rows(parts: Sequence[Collection[int]]) -> list[set[int]]:
            return [{row[passage] for passage in part if passage in row} for part in parts]

        return Split(self.queries, rows(self.qrels), rows(self.exclude))


Qrels = Split | Sequence[Collection[int]]  # without a split, nothing is left out


def evaluate_truncated(
    query_embeddings,
    corpus_embeddings,
    qrels: Qrels,
    dims: Sequence[int],
    k: int = 10,
    per_query: bool = False,
):
    """Score retrieval by cosine similarity of the first ``dim`` dimensions of each embedding.

    Each prefix is renormalised first. Of equal scores, the earlier passage ranks higher.

    Args:
        query_embeddings: ``(num_queries, full_dim)``, numpy or torch, any float type.
        corpus_embeddings: ``(num_passages, full_dim)``, likewise.
        qrels: A split, or only the row numbers of each query's relevant passages.
        dims: Prefix lengths to score.
        k: Passages looked at for each query.
        per_query: Also return the scores of each query.

    Returns:
        A DataFrame with the columns ``dim``, ``mrr@k``, ``recall@k`` and ``ndcg@k``, means over
        the queries, in the order of ``dims``. With ``per_query``, a pair of it and one with a row
        for each dimension and query, which also has the column ``query``.

    Raises:
        ValueError: bad embeddings, dimensions, qrels or ``k``; the message says which.

    >>> passages = [[1.0, 0.0], [0.8, 0.6]]
    >>> evaluate_truncated([[0.7, 0.7]], passages, [{1}], dims=[1, 2], k=1)
       dim  mrr@1  recall@1  ndcg@1
    0    1    0.0       0.0     0.0
    1    2    1.0       1.0     1.0
    """
    queries = _as_matrix(query_embeddings, "query_embeddings")
    corpus = _as_matrix(corpus_embeddings, "corpus_embeddings")
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"query_embeddings have {queries.shape[1]} dimensions, corpus_embeddings "
            f"{corpus.shape[1]}: both must come from one model"
        )
    relevant, exclude = _checked(qrels, len(queries), len(corpus))
    if not len(dims) or len(set(dims)) < len(dims):
        raise ValueError(f"dims is {list(dims)}: expected at least one dimension, and none twice")
    tables = []
    for dim in dims:
        ranks = _ranks(queries, corpus, dim, relevant, exclude)
        table = _scores(ranks, relevant, k)
        table.insert(0, "dim", dim)
        tables.append(table)
    return _summary(pd.concat(tables, ignore_index=True), per_query)


def evaluate_ranking(
    ranking: Sequence[Sequence[int]],
    qrels: Qrels,
    num_passages: int,
    k: int = 10,
    per_query: bool = False,
):
    """Score ranked lists, such as BM25's, with the metrics of :func:`evaluate_truncated`.

    The result has one row, whose ``dim`` is missing.

    Args:
        ranking: For each query, row numbers of passages, best first; -1 for none. Lists are cut to
            ``k``, so for a split they should hold :meth:`Split.depth` passages.
        qrels, k, per_query: As for :func:`evaluate_truncated`.
        num_passages: Passages in the corpus.

    Raises:
        ValueError: a passage twice in a list or not in the corpus, other numbers of lists and
            queries, or bad ``qrels`` or ``k``.
    """
    relevant, exclude = _checked(qrels, len(ranking), num_passages)
    ranks = []
    for number, (row, answers, out) in enumerate(zip(ranking, relevant, exclude, strict=True)):
        passages = [int(passage) for passage in row if passage >= 0 and passage not in out]
        if len(set(passages)) < len(passages):
            raise ValueError(f"ranking of query {number} holds a passage twice")
        if max(passages, default=0) >= num_passages:
            raise ValueError(
                f"ranking of query {number} names passage {max(passages)}: no such one"
            )
        rank_of = {passage: rank for rank, passage in enumerate(passages, start=1)}
        ranks.append([rank_of[passage] for passage in answers if passage in rank_of])
    table = _scores(ranks, relevant, k)
    table.insert(0, "dim", pd.array([None] * len(table), dtype="Int64"))
    return _summary(table, per_query)


def prefix(embeddings: torch.Tensor, dim: int, first_row: int = 0) -> torch.Tensor:
    """Cut ``(num_rows, full_dim)`` to ``(num_rows, dim)``, and renormalise each row.

    ``first_row`` is the number of the first row in error messages.

    Raises:
        ValueError: ``dim`` is out of range, or a row's prefix is all zeros.

    >>> prefix(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    tensor([[0.6000, 0.8000]])
    """
    if not 1 <= dim <= embeddings.shape[1]:
        raise ValueError(f"dim is {dim}: expected 1 to {embeddings.shape[1]}")
    cut = embeddings[:, :dim]
    length = cut.norm(dim=1, keepdim=True)
    if (length == 0).any():
        row = first_row + int((length[:, 0] == 0).nonzero()[0])
        raise ValueError(f"row {row}: the first {dim} dimensions are all zero")
    return cut / length


def _as_matrix(embeddings, name: str) -> torch.Tensor:
    """Embeddings as a checked tensor on the CPU: ``(num_texts, dim)``."""
    if not torch.is_tensor(embeddings):  # lists, DataFrames, reversed views
        array = np.asarray(embeddings)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}: expected numbers")
        embeddings = torch.from_numpy(np.ascontiguousarray(array))
    matrix = embeddings.detach().cpu()
    matrix = matrix if matrix.is_floating_point() else matrix.float()
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: expected (num_texts, dim)")
    if not len(matrix):
        raise ValueError(f"{name} is empty: there is nothing to score")
    if not torch.isfinite(matrix).all():
        row = int((~torch.isfinite(matrix)).any(dim=1).nonzero()[0])
        raise ValueError(f"{name}: row {row} holds NaN or infinity")
    return matrix


def _checked(qrels: Qrels, num_queries: int, num_passages: int) -> tuple[list, Sequence]:
    """Each query's relevant passages, and those to leave out of its ranking."""
    _, qrels, exclude = qrels if isinstance(qrels, Split) else ((), qrels, [()] * len(qrels))
    if len(qrels) != num_queries:
        raise ValueError(f"qrels are for {len(qrels)} queries, but there are {num_queries}")
    if not num_queries:
        raise ValueError("there are no queries to score")
    for number, relevant in enumerate(qrels):
        if isinstance(relevant, str) or any(isinstance(passage, str) for passage in relevant):
            raise ValueError(f"qrels of query {number} are {relevant!r}: expected row numbers")
        if not len(relevant):
            raise ValueError(f"query {number} has no relevant passage: leave it out")
        for passage in relevant:
            if not 0 <= passage < num_passages:
                raise ValueError(
                    f"qrels of query {number} name passage {passage}, but the corpus has "
                    f"{num_passages} passages, numbered from 0"
                )
    return [[*dict.fromkeys(map(int, relevant))] for relevant in qrels], exclude


def _ranks(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    dim: int,
    relevant: list[list[int]],
    exclude: Sequence[Collection[int]],
) -> list[list[int]]:
    """The rank, from 1, of each relevant passage in the whole corpus.

    A rank is one more than the number of passages that score higher, or as high and come earlier.
    Counting them needs no sort and can go block by block. Products are float64 rounded to float32,
    so that equal passages have equal scores anywhere in the corpus.
    """
    counts = [*map(len, relevant)]
    query_of = torch.arange(len(relevant)).repeat_interleave(torch.tensor(counts))
    passage_of = torch.tensor([passage for answers in relevant for passage in answers])
    left_out = [
        (pair, passage)
        for pair, query in enumerate(query_of.tolist())
        for passage in exclude[query]
    ]
    asked = prefix(queries.double(), dim)
    step = max(1, BLOCK // dim)
    pairs = zip(query_of.split(step), passage_of.split(step), strict=True)
    parts = [(asked[q] * prefix(corpus[p].double(), dim)).sum(dim=1).float() for q, p in pairs]
    answer_scores = torch.cat(parts)
    ahead = torch.zeros(len(answer_scores), dtype=torch.int64)
    step = max(1, BLOCK // len(answer_scores))
    for start in range(0, len(corpus), step):
        block = prefix(corpus[start : start + step].double(), dim, first_row=start)
        scores = (asked @ block.T).float()[query_of]  # (relevant pairs, passages of the block)
        place = torch.arange(start, start + len(block))
        earlier = place < passage_of[:, None]
        better = (scores > answer_scores[:, None]) & (place != passage_of[:, None])
        better |= (scores == answer_scores[:, None]) & earlier
        for pair, passage in left_out:
            if start <= passage < start + len(block):
                better[pair, passage - start] = False
        ahead += better.sum(dim=1)
    return [part.tolist() for part in (ahead + 1).split(counts)]


def _scores(ranks: list[list[int]], relevant: list[list[int]], k: int) -> pd.DataFrame:
    """One row a query: the metrics, from the ranks of those relevant passages that have one."""
    if k < 1:
        raise ValueError(f"k is {k}: expected at least 1")
    discount = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for number, (places, answers) in enumerate(zip(ranks, relevant, strict=True)):
        top = [rank for rank in places if rank <= k]
        rows.append(
            {
                "query": number,
                f"mrr@{k}": 1 / min(top) if top else 0.0,
                f"recall@{k}": len(top) / len(answers),
                f"ndcg@{k}": sum(discount[rank - 1] for rank in top)
                / float(discount[: len(answers)].sum()),
            }
        )
    return pd.DataFrame(rows)


def _summary(scores: pd.DataFrame, per_query: bool):
    by_dim = scores.drop(columns="query").groupby("dim", sort=False, dropna=False, as_index=False)
    return (by_dim.mean(), scores) if per_query else by_dim.mean()
