"""The program that times search: what it builds, chooses and writes. No time is asserted."""

import faiss
import numpy as np
import pandas as pd
import pytest
import torch

from helpers.metrics import prefix
from helpers.search import search as exact_search
from tools import search_speed
from tools.search_speed import SETTINGS, build, choose, enlarge, measure, methods, search

SMALL = 16


def unit(rows, dim, seed=0):
    """Vectors whose first dimensions are the largest, as those of a Matryoshka model."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.2, dim)
    return prefix(torch.randn(rows, dim, generator=generator) * spread, dim).numpy()


def vectors_of(flat):
    return flat.reconstruct_n(0, flat.ntotal)


@pytest.fixture(scope="module")
def flat():
    return enlarge(unit(600, 64), 600, longer=False, seed=0)


@pytest.mark.parametrize("name", [*methods(SMALL, 64)])
def test_with_the_widest_setting_every_method_finds_what_is_there(flat, name):
    method = methods(SMALL, 64)[name]
    queries = unit(20, 64, 1)
    found = search(method, build(method, flat)[0], flat, queries, 10, 600)
    exact = exact_search(torch.from_numpy(queries), torch.from_numpy(vectors_of(flat)), 10)
    same = (np.sort(found) == exact.sort().values.numpy()).mean()
    if name == f"exact_{SMALL}":  # it doesn't look at the other dimensions
        assert 0.1 < same < 0.9
    else:
        assert same > (0.98 if name.startswith("hnsw") else 0.9999)


@pytest.mark.parametrize("name", [*methods(SMALL, 64)])
def test_hot_bytes_are_what_the_index_keeps_a_vector(name):
    method = methods(SMALL, 64)[name]
    few, many = (enlarge(unit(600, 64), 600 + n, longer=False, seed=0) for n in (0, 6400))
    sizes = [len(faiss.serialize_index(build(method, part)[0])) for part in (few, many)]
    assert (sizes[1] - sizes[0]) / 6400 == pytest.approx(method.hot_bytes(64), rel=0.03)


def test_methods_that_need_equal_parts_are_left_out_where_there_are_none():
    assert {*methods(SMALL, 64)} - {*methods(SMALL, 72)} == {"pq_full", "pq_fastscan_full"}
    flat = enlarge(unit(600, 72), 600, longer=False, seed=0)
    for method in methods(SMALL, 72).values():
        assert build(method, flat)[0].ntotal == 600


def test_the_shortest_setting_that_finds_enough_is_chosen(flat, monkeypatch):
    known, queries = methods(SMALL, 64), unit(50, 64, 1)
    method = known["funnel_int8"]
    index, exact = build(method, flat)[0], flat.search(queries, 10)[1]

    def share(setting):
        found = search(method, index, flat, queries, 10, setting)
        return np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)])

    chosen = choose(method, index, flat, queries, 10)
    before = SETTINGS[SETTINGS.index(chosen) - 1]
    assert share(before) < search_speed.TARGET_RECALL <= share(chosen)
    assert choose(known["exact_full"], flat, flat, queries, 10) is None
    assert choose(known["funnel_int8_1000"], index, flat, queries, 10) == 600
    monkeypatch.setattr(search_speed, "TARGET_RECALL", 2)  # out of reach
    assert choose(method, index, flat, queries, 10) == 600


def test_larger_collections_are_noisy_copies_and_longer_ones_order_alike():
    real = unit(30, 64)
    many = vectors_of(enlarge(real, 75, longer=False, seed=0))
    assert many.shape == (75, 64)
    assert np.allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    assert np.allclose(many[:30], real, atol=1e-6)
    cosines = (many[30:60] * real).sum(axis=1)
    assert (cosines < 0.9999).all() and (cosines > 0.9).all()
    long = vectors_of(enlarge(real, 30, longer=True, seed=0))
    assert long.shape == (30, 128)
    assert np.allclose(long @ long.T, real @ real.T, atol=1e-5)
    assert not np.allclose(long[:, 64:], long[:, :64])


@pytest.fixture(scope="module")
def table():
    """A small table in which each action takes a second."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    passages, dev, test = (torch.from_numpy(unit(n, 64, i)) for i, n in enumerate((600, 40, 40)))
    qrels = [{row} for row in (test @ passages.T).argmax(dim=1).tolist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_speed, "SIZES", (700,))
        patch.setattr(search_speed, "ROUNDS", 1)
        patch.setattr(search_speed, "read_bandwidth", lambda num_bytes: 1e9)
        patch.setattr(search_speed, "median_seconds", lambda action: 1.0)
        patch.setattr(search_speed, "medians", lambda actions, _: dict.fromkeys(actions, 1.0))
        yield measure(passages, dev, test, qrels, 10, SMALL, [1, 2], seed=0)
    torch.set_num_threads(threads[0])
    faiss.omp_set_num_threads(threads[1])


def test_the_table_has_the_committed_columns_and_a_row_a_method_and_size(table):
    committed = pd.read_csv(search_speed.ROOT / "results" / "search.csv")
    assert [*table, "machine", "preset", "model"] == [*committed]
    assert len(table) == len(methods(SMALL, 64)) * 3 * 4
    sizes = table.groupby(["full_dim", "num_vectors"]).groups.keys()
    assert {*sizes} == {(64, 600), (64, 700), (128, 700)}
    assert faiss.cvar.distance_compute_blas_threshold == 128_000, "FAISS's own"


def test_what_is_found_is_of_the_real_vectors_only(table):
    real = table["num_vectors"] == 600
    assert table.loc[real, ["recall@10", "mrr@10"]].notna().all(axis=None)
    assert table.loc[~real, ["recall@10", "mrr@10"]].isna().all(axis=None)
    scores = table[real].drop_duplicates("method").set_index("method")
    assert scores["recall@10"]["exact_full"] == 1 == scores["mrr@10"]["exact_full"]
    assert scores["recall@10"][f"exact_{SMALL}"] < 0.9


def test_times_are_those_of_one_query_and_floors_bytes_over_bandwidth(table):
    assert {*table.loc[table["batch"] == 1, "ms_per_query"]} == {1e3 / search_speed.QUERIES}
    assert {*table.loc[table["batch"] == 100, "ms_per_query"]} == {1e3 / 40}  # of 40 queries
    rows = table[(table["num_vectors"] == 700) & (table["full_dim"] == 64)]
    floors = rows.set_index(["threads", "batch", "method"])["floor_ms"]
    alone, batch = floors[1, 1], floors[2, 100]
    # At a byte a nanosecond: what is scanned, and at full size what is reranked.
    assert alone["exact_full"] == pytest.approx(4 * 64 * 700 / 1e6)
    setting = rows.set_index("method")["setting"]["funnel_int8"].iloc[0]
    assert alone["funnel_int8"] == pytest.approx((16 * 700 + 4 * 64 * setting) / 1e6)
    # A product of two matrices of 2048 takes a second.
    assert batch["exact_full"] == pytest.approx(1e3 * 700 * 64 / 2048**3)
    assert floors[2, 1].isna().all() and batch.notna().sum() == 2
    assert alone[["hnsw_full", f"hnsw_{SMALL}"]].isna().all()


def test_ratios_are_to_the_quickest_exact_search_of_as_many_queries(flat, monkeypatch):
    rounds = iter([(2.0, 1.0), (8.0, 1.0), (3.0, 1.5), (4.0, 0.5)])
    monkeypatch.setattr(
        search_speed, "medians", lambda actions, _: dict(zip(actions, next(rounds), strict=True))
    )
    settings = {"exact_full": None, "funnel_int8": 20}
    rows = search_speed.time_size(flat, unit(5, 64, 1), settings, 10, SMALL, [1, 1])
    ratios = [row["ratio_to_exact_full"] for row in rows if row["method"] == "funnel_int8"]
    assert ratios == [2.0 / 1.0, 8.0 / 1.0, 2.0 / 1.5, 4.0 / 0.5]
