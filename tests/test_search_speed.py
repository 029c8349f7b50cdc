"""The script that times search: what it builds, chooses and writes. No time is asserted."""

from types import SimpleNamespace

import faiss
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import search_speed
from helpers.metrics import prefix
from helpers.plots import search_frame
from helpers.search import search as exact_search
from helpers.search_speed import (
    END,
    SETTINGS,
    START,
    build,
    choose,
    enlarge,
    main,
    measure,
    methods,
    readme_search,
    search,
    vectors_of,
)

SMALL = 16
COLUMNS = ["method", "full_dim", "num_vectors", "threads", "batch", "ms_per_query"]
COLUMNS += ["ratio_to_exact_full", "floor_ms", "hot_bytes_per_vector", "recall@10", "mrr@10"]
COLUMNS += ["build_seconds", "setting"]


def unit(rows, dim, seed=0):
    """Vectors whose first numbers are the largest, as those of a Matryoshka model."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.2, dim)
    return prefix(torch.randn(rows, dim, generator=generator) * spread, dim).numpy()


@pytest.fixture(scope="module")
def flat():
    return enlarge(unit(600, 64), 600, longer=False, seed=0)


@pytest.mark.parametrize("name", [*methods(SMALL, 64)])
def test_with_the_widest_setting_every_method_finds_what_is_there(flat, name):
    method = methods(SMALL, 64)[name]
    index, seconds = build(method, flat)
    queries = unit(20, 64, 1)
    found = search(method, index, flat, queries, 10, 600)
    exact = exact_search(torch.from_numpy(queries), torch.from_numpy(vectors_of(flat)), 10)
    same = (np.sort(found) == exact.sort().values.numpy()).mean()
    assert seconds >= 0
    if name == f"exact_{SMALL}":  # it does not look at the rest of the numbers
        assert 0.1 < same < 0.9
    elif name.startswith("hnsw"):
        assert same > 0.98
    else:
        assert same == 1


@pytest.mark.parametrize("name", [name for name in methods(SMALL, 64) if "hnsw" not in name])
def test_hot_bytes_are_what_the_index_keeps_a_vector(flat, name):
    method = methods(SMALL, 64)[name]
    larger = enlarge(unit(600, 64), 600 + 6400, longer=False, seed=0)
    sizes = [len(faiss.serialize_index(build(method, part)[0])) for part in (flat, larger)]
    assert (sizes[1] - sizes[0]) / 6400 == pytest.approx(method.hot_bytes(64), rel=0.01)


@pytest.mark.parametrize("name", [name for name in methods(SMALL, 64) if "hnsw" in name])
def test_hot_bytes_of_a_graph_are_vectors_links_and_where_they_lie(name):
    method = methods(SMALL, 64)[name]
    flat = enlarge(unit(6400, 64), 6400, longer=False, seed=0)
    size = len(faiss.serialize_index(build(method, flat)[0])) / flat.ntotal
    assert size == pytest.approx(method.hot_bytes(64), rel=0.03)


def test_methods_that_need_equal_parts_are_left_out_where_there_are_none():
    left_out = {*methods(SMALL, 64)} - {*methods(SMALL, 72)}
    assert left_out == {"pq_full", "pq_fastscan_full"}
    assert "funnel_int4_100" not in methods(50, 64)
    flat = enlarge(unit(600, 72), 600, longer=False, seed=0)
    for method in methods(SMALL, 72).values():
        assert build(method, flat)[0].ntotal == 600


def test_the_shortest_setting_that_finds_enough_is_chosen(flat):
    method = methods(SMALL, 64)["funnel_int8"]
    index, _ = build(method, flat)
    queries = unit(50, 64, 1)
    exact = flat.search(queries, 10)[1]

    def share(setting):
        found = search(method, index, flat, queries, 10, setting)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])

    chosen = choose(method, index, flat, queries, 10)
    before = SETTINGS[SETTINGS.index(chosen) - 1]
    assert share(before) < search_speed.WISH <= share(chosen)
    assert choose(methods(SMALL, 64)["exact_full"], flat, flat, queries, 10) is None
    assert choose(methods(SMALL, 64)["funnel_int8_1000"], index, flat, queries, 10) == 600


def test_a_method_that_never_finds_enough_gets_the_longest_allowed(flat, monkeypatch):
    monkeypatch.setattr(search_speed, "WISH", 2)
    method = methods(SMALL, 64)["funnel_binary"]
    assert choose(method, build(method, flat)[0], flat, unit(5, 64, 1), 10) == 600


def test_more_vectors_are_the_real_ones_and_noisy_copies():
    real = unit(30, 64)
    flat = enlarge(real, 75, longer=False, seed=0)
    many = vectors_of(flat)
    assert many.shape == (75, 64)
    assert np.allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    assert np.allclose(many[:30], real, atol=1e-6)
    cosines = (many[30:60] * real).sum(axis=1)
    assert (cosines < 0.9999).all() and (cosines > 0.9).all()


def test_longer_vectors_order_as_the_real_ones_do():
    real = unit(30, 64)
    flat = enlarge(real, 30, longer=True, seed=0)
    long = vectors_of(flat)
    assert long.shape == (30, 128)
    assert np.allclose(long @ long.T, real @ real.T, atol=1e-5)
    assert not np.allclose(long[:, 64:], long[:, :64])


@pytest.fixture(scope="module")
def table():
    patch = pytest.MonkeyPatch()
    patch.setattr(search_speed, "ROUNDS", 1)
    patch.setattr(search_speed, "read_bandwidth", lambda num_bytes: 1e9)
    patch.setattr(search_speed, "median_seconds", lambda action: 1.0)
    # Each action takes a second.
    patch.setattr(search_speed, "medians", lambda actions, rounds: dict.fromkeys(actions, 1.0))
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    passages, dev, test = (torch.from_numpy(unit(n, 64, i)) for i, n in enumerate((600, 40, 40)))
    relevant = (test @ passages.T).argmax(dim=1).tolist()
    qrels = [{row} for row in relevant]
    yield measure(passages, dev, test, qrels, 10, SMALL, [1, 2], [700], seed=0)
    torch.set_num_threads(threads[0])
    faiss.omp_set_num_threads(threads[1])
    patch.undo()


def test_the_table_has_a_row_a_method_and_setting_of_the_clock(table):
    assert [*table] == COLUMNS
    keys = ["method", "full_dim", "num_vectors", "threads", "batch"]
    assert not table[keys].duplicated().any()
    assert len(table) == len(methods(SMALL, 64)) * 3 * 4
    assert set(zip(table["full_dim"], table["num_vectors"], strict=True)) == {
        (64, 600),
        (64, 700),
        (128, 700),
    }


def test_what_is_found_stands_with_the_real_vectors_alone(table):
    real = table["num_vectors"] == 600
    assert table.loc[real, ["recall@10", "mrr@10"]].notna().all(axis=None)
    assert table.loc[~real, ["recall@10", "mrr@10"]].isna().all(axis=None)
    scores = table[real].drop_duplicates("method").set_index("method")
    assert scores["recall@10"]["exact_full"] == 1 == scores["mrr@10"]["exact_full"]
    assert scores["recall@10"][f"exact_{SMALL}"] < 0.9


def test_times_are_those_of_one_query(table):
    assert set(table.loc[table["batch"] == 1, "ms_per_query"]) == {1e3 / search_speed.QUERIES}
    # There are 40 test queries, fewer than a batch has.
    assert set(table.loc[table["batch"] == 100, "ms_per_query"]) == {1e3 / 40}


def test_ratios_are_to_the_quickest_exact_search_of_as_many_queries(flat, monkeypatch):
    rounds = iter([(2.0, 1.0), (8.0, 1.0), (3.0, 1.5), (4.0, 0.5)])
    monkeypatch.setattr(
        search_speed, "medians", lambda actions, _: dict(zip(actions, next(rounds), strict=True))
    )
    settings = {"exact_full": None, "funnel_int8": 20}
    rows = search_speed.time_size(flat, unit(5, 64, 1), settings, 10, SMALL, [1, 1])
    ratios = [row["ratio_to_exact_full"] for row in rows if row["method"] == "funnel_int8"]
    assert ratios == [2.0 / 1.0, 8.0 / 1.0, 2.0 / 1.5, 4.0 / 0.5]


def test_floors_are_bytes_over_bandwidth_or_products_over_their_rate(table):
    rows = table[(table["num_vectors"] == 700) & (table["full_dim"] == 64)]
    floors = rows.set_index(["threads", "batch", "method"])["floor_ms"]
    alone, batch = floors[1, 1], floors[2, 100]
    # At a byte a nanosecond: what is scanned, and at full size what is reranked.
    assert alone["exact_full"] == pytest.approx(4 * 64 * 700 / 1e6)
    setting = rows.set_index("method")["setting"]["funnel_int8"].iloc[0]
    assert alone["funnel_int8"] == pytest.approx((16 * 700 + 4 * 64 * setting) / 1e6)
    # A product of two matrices of 2048 takes a second.
    assert batch["exact_full"] == pytest.approx(1e3 * 700 * 64 / 2048**3)
    assert batch[f"exact_{SMALL}"] == pytest.approx(1e3 * 700 * SMALL / 2048**3)
    assert floors[2, 1].isna().all() and batch.notna().sum() == 2
    assert alone[["hnsw_full", f"hnsw_{SMALL}"]].isna().all()


def test_faiss_is_left_with_its_own_threshold(table):
    assert faiss.cvar.distance_compute_blas_threshold == 128_000


def test_the_readme_shows_what_the_table_holds(table):
    text = readme_search(table.assign(machine="a machine"))
    assert text.startswith(START) and text.endswith(END)
    row = search_frame(table, 64).loc["funnel int8"]
    found = f"{row['shortlist or width']:.0f} | {row['Recall@10']:.3f} | {row['MRR@10']:.3f}"
    taken = f"{row['ms at 700']:.3g} | {row['times as fast at 700']:.1f}"
    assert f"| funnel int8 | 16 | {found} | {taken} | {row['build s at 700']:.3g} |" in text
    assert (
        "| 128 dimensions | hot bytes | ms at 700 | times as fast at 700 | build s at 700 |" in text
    )


def test_the_command_writes_the_table_and_the_readme(table, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{START}\n{END}\nafter\n")
    run = SimpleNamespace(
        experiment=SimpleNamespace(name="mine", k=10, small_dim=SMALL, seed=0),
        machine=SimpleNamespace(processor="a processor", cores=2),
        load=lambda *_, **__: {"passages": None, "test": None},
        manifest=lambda _: {"sha256": {}},
    )
    data = SimpleNamespace(split=lambda _: ([], []))
    made = {"find_run": run, "load_data": data, "load_model": None, "encode_queries": None}
    for name, value in (made | {"measure": table}).items():
        monkeypatch.setattr(search_speed, name, lambda *_, value=value: value)
    monkeypatch.setattr(search_speed, "ROOT", tmp_path)
    monkeypatch.setattr(search_speed, "TARGET", tmp_path / "results" / "search.csv")
    assert main(["mine"]) == 0
    written = pd.read_csv(tmp_path / "results" / "search.csv")
    assert [*written] == [*COLUMNS, "machine", "preset", "model"]
    assert written["ms_per_query"].tolist() == pytest.approx(
        table["ms_per_query"].tolist(), rel=1e-3
    )
    assert set(written["preset"]) == {"mine"}
    text = (tmp_path / "README.md").read_text()
    assert text == f"before\n{readme_search(written)}\nafter\n"
    assert "funnel_int8" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_named(runs, capsys):
    assert main(["smoke"]) == 1
    assert "holds no run" in capsys.readouterr().err
