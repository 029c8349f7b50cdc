"""Time vector search, method by method: ``python -m tools.search_speed wikipedia``.

What a method finds is measured on the tuned model's own vectors. How long it takes is measured
there and on more and longer ones: noisy copies, and vectors followed by a shuffled copy. Those are
good for times only, which are lower bounds: a larger corpus needs longer shortlists than the real
one. It takes some twelve gigabytes of memory, and writes ``results/search.csv``.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch

from helpers.collection import load_data
from helpers.config import ROOT
from helpers.device import median_seconds
from helpers.metrics import evaluate_ranking, prefix
from helpers.models import encode_queries, load_model
from helpers.runs import Run, versions
from helpers.search import overlap
from tools import command
from tools.bits import rabitq_index
from tools.report import write_report
from tools.speed import medians

TARGET_RECALL = 0.99  # share of the full-size answer that a method's setting is chosen for, on dev
SIZES = (100_000, 1_000_000)
ROUNDS, QUERIES, BATCH = 5, 10, 100
NOISE = 0.01
SAMPLE = 10_000  # vectors that a quantiser learns from
LONG = 1000  # a shortlist for corpora that are much larger than the real one
LINKS = 16  # of a passage in HNSW's graph; on its lowest level it has twice as many
# Lengths of a shortlist, and widths of HNSW's search.
SETTINGS = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
# Dimensions of unit-length vectors are between -1 and 1, so this fits them into a byte without
# training. FAISS cuts off decimals: the half makes it round.
INT8_SCALE, INT8_OFFSET = 127, 128.5
COLUMNS = ["method", "full_dim", "num_vectors", "threads", "batch", "ms_per_query"]
COLUMNS += ["ratio_to_exact_full", "floor_ms", "hot_bytes_per_vector", "build_seconds", "setting"]


@dataclass(frozen=True)
class Method:
    """One way to search.

    Attributes:
        make: Makes an empty FAISS index for vectors of so many dimensions; None for the flat index
            of the vectors themselves.
        hot_bytes: Bytes a vector that must be in fast memory, by its dimensions.
        rerank: Whether a shortlist is reranked at full size.
        scan: Whether every vector is looked at.
        setting: A fixed length of the shortlist; None to choose one.
    """

    make: Callable[[int], faiss.Index] | None
    hot_bytes: Callable[[int], int]
    rerank: bool = True
    scan: bool = True
    setting: int | None = None


def prefix_index(full_dim: int, codes: faiss.Index, *more) -> faiss.IndexPreTransform:
    """Make an index that cuts vectors, brings them to unit length, and stores them in ``codes``.

    Squared distances of unit-length vectors order as cosine similarities do.
    """
    index = faiss.IndexPreTransform(codes)
    cut = faiss.RemapDimensionsTransform(full_dim, codes.d, False)
    for transform in (*more, faiss.NormalizationTransform(codes.d), cut):
        index.prepend_transform(transform)
    return index


def int8_index(full_dim: int, dim: int) -> faiss.IndexPreTransform:
    """Make a prefix index that stores each dimension as a byte."""
    scale = faiss.LinearTransform(dim, dim, True)
    faiss.copy_array_to_vector(np.diag(np.full(dim, INT8_SCALE, np.float32)).ravel(), scale.A)
    faiss.copy_array_to_vector(np.full(dim, INT8_OFFSET, np.float32), scale.b)
    scale.is_trained = True
    codes = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2)
    return prefix_index(full_dim, codes, scale)


def _quantiser(make, parts: int, bits: int, dim: int) -> faiss.Index:
    index = make(dim, parts, bits, faiss.METRIC_L2)
    index.pq.cp.min_points_per_centroid = 1  # or FAISS warns of a small sample
    return index


def methods(small: int, full: int) -> dict[str, Method]:
    """Return the methods for a prefix of ``small`` of ``full`` dimensions, ``exact_full`` first."""
    l2 = faiss.METRIC_L2
    graph = 4 * 2 * LINKS + 16  # links on the lowest level, and where they and the upper ones are
    int8, float_bytes = partial(int8_index, dim=small), 4 * small

    def flat(full: int) -> faiss.Index:
        return prefix_index(full, faiss.IndexFlatL2(small))

    def int4(dim: int) -> Method:
        return Method(
            lambda full: prefix_index(full, _quantiser(faiss.IndexPQFastScan, dim, 4, dim)),
            lambda full: -(-dim // 2),
        )

    by_name = {
        "exact_full": Method(None, lambda full: 4 * full, rerank=False),
        f"exact_{small}": Method(flat, lambda full: float_bytes, rerank=False),
        "funnel_float32": Method(flat, lambda full: float_bytes),
        "funnel_int8": Method(int8, lambda full: small),
        f"funnel_int8_{LONG}": Method(int8, lambda full: small, setting=LONG),
        "funnel_int4": int4(small),
        "funnel_binary": Method(
            lambda full: prefix_index(full, faiss.IndexLSH(small, small, False, False)),
            lambda full: -(-small // 8),
        ),
    }
    if 2 * small <= full:
        by_name[f"funnel_int4_{2 * small}"] = int4(2 * small)
    # Quantisers of the full-size vector, of as many bytes as int8 has for the prefix.
    for name, make, parts, bits in (
        ("pq_full", faiss.IndexPQ, small, 8),
        ("pq_fastscan_full", faiss.IndexPQFastScan, 2 * small, 4),
    ):
        if full % parts == 0:  # it needs parts of equal length
            by_name[name] = Method(partial(_quantiser, make, parts, bits), lambda full: small)
    return by_name | {
        # Queries are rounded to 4 bits, FAISS's default.
        "rabitq_full": Method(
            partial(rabitq_index, metric=l2, query_bits=4), lambda full: -(-full // 8) + 8
        ),
        "binary_full": Method(
            lambda full: faiss.IndexLSH(full, full, True, False), lambda full: -(-full // 8)
        ),
        f"hnsw_{small}": Method(
            lambda full: prefix_index(full, faiss.IndexHNSWFlat(small, LINKS, l2)),
            lambda full: float_bytes + graph,
            scan=False,
        ),
        "hnsw_full": Method(
            lambda full: faiss.IndexHNSWFlat(full, LINKS, l2),
            lambda full: 4 * full + graph,
            rerank=False,
            scan=False,
        ),
    }


def build(method: Method, flat: faiss.IndexFlat) -> tuple[faiss.Index, float]:
    """Index the vectors that ``flat`` holds; return the index, and the seconds it took."""
    if method.make is None:
        return flat, 0.0
    vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    index = method.make(flat.d)
    start = time.perf_counter()
    learned = vectors
    if len(vectors) > SAMPLE:  # at random: a corpus is often sorted by topic or date
        learned = vectors[np.random.default_rng(0).choice(len(vectors), SAMPLE, replace=False)]
    index.train(learned)
    index.add(vectors)
    return index, time.perf_counter() - start


def search(
    method: Method, index: faiss.Index, flat: faiss.IndexFlat, queries, k: int, setting: int | None
) -> np.ndarray:
    """Find ``(num_queries, k)`` row numbers; ``flat`` has the full-size vectors to rerank with."""
    if not method.scan:
        graph = faiss.downcast_index(getattr(index, "index", index))
        graph.hnsw.efSearch = setting
    if not method.rerank:
        return index.search(queries, k)[1]
    # FAISS takes a multiple of k and rounds down: half a passage more keeps the last one.
    options = faiss.IndexRefineSearchParameters(k_factor=(setting + 0.5) / k)
    return faiss.IndexRefine(index, flat).search(queries, k, params=options)[1]


def choose(method: Method, index, flat, queries, k: int) -> int | None:
    """Return the smallest setting that reaches the target recall, else the largest one."""
    if method.scan and not method.rerank:
        return None
    if method.setting:
        return min(method.setting, flat.ntotal)
    wanted = torch.from_numpy(flat.search(queries, k)[1])
    allowed = [setting for setting in (k, *SETTINGS) if k <= setting <= flat.ntotal]
    for setting in allowed:
        found = search(method, index, flat, queries, k, setting)
        if overlap(torch.from_numpy(found), wanted) >= TARGET_RECALL:
            break
    return setting


def enlarge(real: np.ndarray, num_vectors: int, longer: bool, seed: int) -> faiss.IndexFlatL2:
    """Make a flat index of vectors to time: the real ones, then copies of them with noise.

    With ``longer``, a shuffled copy of itself follows each one, for twice the dimensions.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(real.shape[1])
    flat = faiss.IndexFlatL2(real.shape[1] * (2 if longer else 1))
    while flat.ntotal < num_vectors:
        block = real[: num_vectors - flat.ntotal].copy()
        if flat.ntotal:
            block += NOISE * generator.standard_normal(block.shape, dtype=np.float32)
        if longer:
            block = np.hstack([block, block[:, order]])
        flat.add(block / np.linalg.norm(block, axis=1, keepdims=True))
    return flat


def read_bandwidth(num_bytes: int) -> float:
    """Measure the bytes a second at which torch reads a block of this size, over and over.

    A block that fits the CPU's cache is read faster than one that comes from memory. Blocks over
    half a gigabyte are read alike, so that much is measured for all of them.
    """
    block = torch.ones(min(num_bytes, 2**29) // 4)
    return block.nbytes / median_seconds(block.sum)


def floor_seconds(
    name: str, method: Method, flat, setting: int | None, batch: int, threads: int, small: int
) -> float | None:
    """Return the seconds that a query takes at least; None if we don't know.

    For one query on one core it's the bytes that it reads, over the bandwidth. An exact search of
    a batch reads the vectors once for all of it: there it's multiplications over the matrix rate.
    """
    if batch == 1:
        scanned = method.hot_bytes(flat.d) * flat.ntotal
        reranked = 4 * flat.d * setting if method.rerank else 0
        alone = method.scan and threads == 1
        return (scanned + reranked) / read_bandwidth(scanned) if alone else None
    if not name.startswith("exact"):
        return None
    dim = flat.d if name == "exact_full" else small
    matrix = torch.ones(2048, 2048)
    rate = len(matrix) ** 3 / median_seconds(lambda: matrix @ matrix)
    return flat.ntotal * dim / rate


def time_size(flat, queries, settings: dict[str, int | None], k: int, small: int, cores) -> list:
    """Time all methods on the vectors in ``flat``, with each number of ``cores``, fewest first."""
    known = methods(small, flat.d)
    faiss.omp_set_num_threads(max(cores))
    built = {name: build(known[name], flat) for name in settings}
    default = faiss.cvar.distance_compute_blas_threshold
    rows, alone = [], None
    for threads in cores:
        faiss.omp_set_num_threads(threads)
        torch.set_num_threads(threads)
        for batch in (1, BATCH):
            # By its own threshold FAISS would compare the queries of this batch one by one, which
            # takes several times as long on few cores.
            faiss.cvar.distance_compute_blas_threshold = default if batch == 1 else 1
            parts = [queries[i : i + batch] for i in range(QUERIES if batch == 1 else 1)]
            asked = sum(map(len, parts))

            def action(name, parts=parts):
                for part in parts:
                    search(known[name], built[name][0], flat, part, k, settings[name])

            seconds = medians({name: partial(action, name) for name in settings}, ROUNDS)
            exact = seconds["exact_full"]
            if batch == 1:  # with several threads FAISS may scan for one query more slowly
                exact = alone = min(exact, alone or exact)
            for name, value in seconds.items():
                method = known[name]
                floor = floor_seconds(name, method, flat, settings[name], batch, threads, small)
                about = name, flat.d, flat.ntotal, threads, batch
                times = 1e3 * value / asked, exact / value, floor and 1e3 * floor
                cost = method.hot_bytes(flat.d), built[name][1], settings[name]
                rows.append(dict(zip(COLUMNS, about + times + cost, strict=True)))
    faiss.cvar.distance_compute_blas_threshold = default
    return rows


def measure(passages, dev, test, qrels, k: int, small: int, cores, seed: int) -> pd.DataFrame:
    """Make the whole table: choose settings on ``dev``, score ``test``, and time all sizes."""
    real, dev, test = (prefix(part, part.shape[1]).numpy() for part in (passages, dev, test))
    flat = enlarge(real, len(real), longer=False, seed=seed)
    wanted = torch.from_numpy(flat.search(test, k)[1])
    settings, quality = {}, {}
    for name, method in methods(small, real.shape[1]).items():
        index, _ = build(method, flat)
        settings[name] = choose(method, index, flat, dev, k)
        found = search(method, index, flat, test, k, settings[name])
        quality[name] = {
            f"recall@{k}": overlap(torch.from_numpy(found), wanted),
            f"mrr@{k}": evaluate_ranking(found.tolist(), qrels, len(real), k)[f"mrr@{k}"].item(),
        }
        print(f"{name}: setting {settings[name]}, {quality[name]}", flush=True)
    rows = time_size(flat, test, settings, k, small, cores)
    rows = [row | quality[row["method"]] for row in rows]
    order = np.random.default_rng(seed).permutation(real.shape[1])
    for longer in (False, True):
        queries = np.hstack([test, test[:, order]]) / np.sqrt(2) if longer else test
        for size in SIZES:
            flat = enlarge(real, size, longer, seed)
            print(f"{size:,} vectors of {flat.d}", flush=True)
            rows += time_size(flat, queries.astype(np.float32), settings, k, small, cores)
    columns = [*COLUMNS[:-2], f"recall@{k}", f"mrr@{k}", *COLUMNS[-2:]]
    return pd.DataFrame(rows)[columns].astype({"setting": "Int64"})


def time_search(run: Run) -> list[Path]:
    """Time the searches of a finished run, and write ``results/search.csv``."""
    data, stored, experiment = load_data(run), run.load("tuned.safetensors"), run.experiment
    vectors = (
        stored["passages"],
        encode_queries(load_model(run, run.load("tuned")), data.split("dev").queries, run),
        stored["test"],
    )
    cores, sizes = sorted({1, run.machine.cores}), (experiment.k, experiment.small_dim)
    table = measure(*vectors, data.split("test"), *sizes, cores, experiment.seed)
    machine = f"{run.machine.processor}, {run.machine.cores} cores"
    table["machine"] = f"{machine}, faiss {faiss.__version__}, torch {versions()['torch']}"
    table["preset"] = experiment.name
    table["model"] = run.fingerprint("tuned")
    path = ROOT / "results" / "search.csv"
    table.to_csv(path, index=False, float_format="%.6g")
    return [path, write_report()]


if __name__ == "__main__":
    sys.exit(command(__doc__, time_search))
