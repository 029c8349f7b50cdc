"""Score retrieval with truncated embeddings: encode once, score every prefix."""

from collections.abc import Collection, Mapping, Sequence
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


Qrels = Split | Sequence[Collection[int] | Mapping[int, float]]


def evaluate_truncated(
    query_embeddings,
    corpus_embeddings,
    qrels: Qrels,
    dims: Sequence[int],
    k: int = 10,
    per_query: bool = False,
):
    """Score retrieval by cosine similarity of the first ``dim`` dimensions of each embedding.

    Each prefix is renormalised first. Passages with equal scores rank in the
    order of the corpus.

    Args:
        query_embeddings: ``(num_queries, full_dim)``, numpy or torch, any float type.
        corpus_embeddings: ``(num_passages, full_dim)``, likewise.
        qrels: A split, or if nothing is to be left out of a ranking, for each query the row
            numbers of its relevant passages, or a mapping from row number to gain. Gains of 0 and
            below mark a passage as not relevant.
        dims: Prefix lengths to score.
        k: Passages looked at for each query.
        per_query: Also return the scores of each query.

    Returns:
        A DataFrame with one row for each of ``dims``, in that order, and the columns ``dim``,
        ``mrr@k``, ``recall@k`` and ``ndcg@k`` (linear gains), means over the queries. With
        ``per_query``, a pair of it and a DataFrame with one row for each dimension and query,
        which also has the column ``query`` (a row number).

    Raises:
        ValueError: shapes that don't match, no passages or queries, NaN or infinity, a prefix
            that is all zeros, a dimension out of range or twice, ``k`` below 1, a query without
            relevant passages, or a qrel that names no passage.

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
    exclude = qrels.exclude if isinstance(qrels, Split) else None
    gains = _check_qrels(qrels, len(queries), len(corpus))
    if not len(dims) or len(set(dims)) < len(dims):
        raise ValueError(f"dims is {list(dims)}: expected at least one dimension, and none twice")
    tables = []
    for dim in dims:
        ranks = _ranks(queries, corpus, dim, gains, exclude)
        table = _scores(ranks, gains, k)
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

    Args:
        ranking: For each query, row numbers of passages, best first; -1 for none.
        qrels, k, per_query: As for :func:`evaluate_truncated`. Lists are cut to ``k``: those for
            a split should have :meth:`Split.depth` passages.
        num_passages: Passages in the corpus.

    Returns:
        As :func:`evaluate_truncated`, with one row whose ``dim`` is missing.

    Raises:
        ValueError: a passage twice in a list or not in the corpus, other numbers of lists and
            queries, or bad ``qrels`` or ``k``.
    """
    gains = _check_qrels(qrels, len(ranking), num_passages)
    exclude = qrels.exclude if isinstance(qrels, Split) else [()] * len(ranking)
    ranks = []
    for number, (row, wanted, out) in enumerate(zip(ranking, gains, exclude, strict=True)):
        found = [int(passage) for passage in row if passage >= 0 and passage not in out]
        if len(set(found)) < len(found):
            raise ValueError(f"ranking of query {number} holds a passage twice")
        if max(found, default=0) >= num_passages:
            raise ValueError(f"ranking of query {number} names passage {max(found)}: no such one")
        place = {passage: rank for rank, passage in enumerate(found, start=1)}
        ranks.append({passage: place[passage] for passage in wanted if passage in place})
    table = _scores(ranks, gains, k)
    table.insert(0, "dim", pd.array([None] * len(table), dtype="Int64"))
    return _summary(table, per_query)


def prefix(embeddings: torch.Tensor, dim: int, first_row: int = 0) -> torch.Tensor:
    """Cut each row to its first ``dim`` dimensions, and renormalise it.

    Turns ``(num_rows, full_dim)`` into ``(num_rows, dim)``. ``first_row`` is the number of the
    first row in error messages.

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


def _check_qrels(qrels, num_queries: int, num_passages: int) -> list[dict[int, float]]:
    """Each query's relevant passages with their gains, checked."""
    qrels = qrels.qrels if isinstance(qrels, Split) else qrels
    if len(qrels) != num_queries:
        raise ValueError(f"qrels are for {len(qrels)} queries, but there are {num_queries}")
    if not num_queries:
        raise ValueError("there are no queries to score")
    checked = []
    for number, relevant in enumerate(qrels):
        gains = dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1.0)
        if isinstance(relevant, str) or any(isinstance(passage, str) for passage in gains):
            raise ValueError(f"qrels of query {number} are {relevant!r}: expected row numbers")
        gains = {int(passage): float(gain) for passage, gain in gains.items() if gain > 0}
        if not gains:
            raise ValueError(f"query {number} has no relevant passage: leave it out")
        for passage in gains:
            if not 0 <= passage < num_passages:
                raise ValueError(
                    f"qrels of query {number} name passage {passage}, but the corpus has "
                    f"{num_passages} passages, numbered from 0"
                )
        checked.append(gains)
    return checked


def _ranks(
    queries: torch.Tensor, corpus: torch.Tensor, dim: int, gains, exclude=None
) -> list[dict[int, int]]:
    """The rank, from 1, of each relevant passage in the whole corpus.

    A rank is one more than the number of passages that score higher, or as high and come earlier.
    Counting them needs no sort and can go block by block. Products are float64 rounded to float32,
    so that equal passages have equal scores anywhere in the corpus.
    """
    query_of = torch.tensor([query for query, wanted in enumerate(gains) for _ in wanted])
    passage_of = torch.tensor([passage for wanted in gains for passage in wanted])
    left_out = [
        (pair, passage)
        for pair, query in enumerate(query_of.tolist() if exclude else ())
        for passage in exclude[query]
    ]
    asked = prefix(queries.double(), dim)
    step = max(1, BLOCK // dim)
    pairs = zip(query_of.split(step), passage_of.split(step), strict=True)
    own = [(asked[q] * prefix(corpus[p].double(), dim)).sum(dim=1).float() for q, p in pairs]
    own = torch.cat(own)
    ahead = torch.zeros(len(own), dtype=torch.int64)
    step = max(1, BLOCK // len(own))
    for start in range(0, len(corpus), step):
        block = prefix(corpus[start : start + step].double(), dim, first_row=start)
        scores = (asked @ block.T).float()[query_of]  # (relevant pairs, passages of the block)
        place = torch.arange(start, start + len(block))
        earlier = place < passage_of[:, None]
        better = (scores > own[:, None]) & (place != passage_of[:, None])
        better |= (scores == own[:, None]) & earlier
        for pair, passage in left_out:
            if start <= passage < start + len(block):
                better[pair, passage - start] = False
        ahead += better.sum(dim=1)
    found = iter((ahead + 1).tolist())
    return [{passage: next(found) for passage in wanted} for wanted in gains]


def _scores(ranks: list[dict[int, int]], gains: list[dict[int, float]], k: int) -> pd.DataFrame:
    """One row a query: the metrics, from the ranks of those relevant passages that have one."""
    if k < 1:
        raise ValueError(f"k is {k}: expected at least 1")
    discount = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for number, (place, gain) in enumerate(zip(ranks, gains, strict=True)):
        found = {passage: rank for passage, rank in place.items() if rank <= k}
        ideal = np.sort(list(gain.values()))[::-1][:k]
        rows.append(
            {
                "query": number,
                f"mrr@{k}": 1 / min(found.values()) if found else 0.0,
                f"recall@{k}": len(found) / len(gain),
                f"ndcg@{k}": sum(gain[p] * discount[rank - 1] for p, rank in found.items())
                / float(ideal @ discount[: len(ideal)]),
            }
        )
    return pd.DataFrame(rows)


def _summary(scores: pd.DataFrame, per_query: bool):
    by_dim = scores.drop(columns="query").groupby("dim", sort=False, dropna=False, as_index=False)
    return (by_dim.mean(), scores) if per_query else by_dim.mean()
