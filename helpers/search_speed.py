"""Times vector search, method by method: ``python -m helpers.search_speed wikipedia``.

What a method finds is measured on the tuned model's own vectors. How long it takes is measured
there and on more and longer ones: the same vectors again and again with small noise added, and
each beside a shuffled copy of itself. That is good for times alone, so recall and MRR stand only
in rows of the real vectors. Shortlists are those that suffice for the real ones; a corpus that is
larger needs longer ones, so the times of methods with a shortlist are lower bounds there.

In each setting all methods have their turn, round after round, and medians are compared. What is
timed is FAISS alone, without the checks of :class:`helpers.search.Funnel`. Writes
``results/search.csv`` and the README's tables of it. Takes some twelve gigabytes of memory.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np
import pandas as pd
import torch
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import ArtifactError, find_run, fingerprint, short, versions
from helpers.bits import rabitq_index
from helpers.collection import load_data
from helpers.config import ROOT
from helpers.device import median_seconds, read_bandwidth
from helpers.metrics import evaluate_ranking, prefix
from helpers.models import encode_queries, load_model
from helpers.plots import search_forms, search_frame
from helpers.publish import replace_section
from helpers.search import overlap, rerank_options, sample, shortlist_index
from helpers.speed import medians

WISH = 0.99  # share of the full-size answer that a method's settings are chosen for, on dev
SIZES = (100_000, 1_000_000)
ROUNDS, QUERIES, BATCH = 5, 10, 100
NOISE = 0.01
SAMPLE = 10_000  # vectors that a quantiser learns from
LONG = 1000  # a shortlist for corpora that are much larger than the real one
LINKS = 16  # of a passage in HNSW's graph; on its lowest level it has twice as many
# Lengths of a shortlist, and widths of HNSW's search.
SETTINGS = (10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800, 1000)
TARGET = ROOT / "results" / "search.csv"
TIMED = ("method", "full_dim", "num_vectors", "threads", "batch", "ms_per_query")
TIMED += ("ratio_to_exact_full", "floor_ms", "hot_bytes_per_vector")
START, END = "<!-- search: start -->", "<!-- search: end -->"


@dataclass(frozen=True)
class Method:
    """One way to search.

    Attributes:
        make: An empty FAISS index that takes vectors of so many numbers; None for the flat index
            of the vectors themselves.
        hot_bytes: Bytes a vector that have to lie in fast memory, by the numbers of a vector.
        rerank: Whether a shortlist is compared again at full size.
        scan: Whether every vector is looked at.
        setting: A fixed length of the shortlist; None to choose one.
    """

    make: Callable[[int], faiss.Index] | None
    hot_bytes: Callable[[int], int]
    rerank: bool = True
    scan: bool = True
    setting: int | None = None


def _quiet(index: faiss.Index) -> faiss.Index:
    index.pq.cp.min_points_per_centroid = 1  # FAISS would warn of a small sample
    return index


def _hnsw_prefix(full_dim: int, dim: int) -> faiss.Index:
    index = faiss.IndexPreTransform(faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_L2))
    index.prepend_transform(faiss.NormalizationTransform(dim))
    index.prepend_transform(faiss.RemapDimensionsTransform(full_dim, dim, False))
    return index


def methods(small: int, full: int) -> dict[str, Method]:
    """The methods by name, ``exact_full`` first; those that need parts of equal length are left
    out where ``full`` has none.

    Args:
        small: Numbers of the short prefix.
        full: Numbers of a vector.
    """

    def funnel(storage: str, bits: int, dim: int = small, setting: int | None = None) -> Method:
        make = partial(shortlist_index, dim=dim, storage=storage)
        return Method(make, lambda full: -(-dim * bits // 8), setting=setting)

    l2 = faiss.METRIC_L2
    graph = 4 * 2 * LINKS + 16  # links on the lowest level, and where they and the upper ones lie
    found = {
        "exact_full": Method(None, lambda full: 4 * full, rerank=False),
        f"exact_{small}": Method(
            partial(shortlist_index, dim=small, storage="float32"),
            lambda full: 4 * small,
            rerank=False,
        ),
        "funnel_float32": funnel("float32", 32),
        "funnel_int8": funnel("int8", 8),
        f"funnel_int8_{LONG}": funnel("int8", 8, setting=LONG),
        "funnel_int4": funnel("int4", 4),
        "funnel_binary": funnel("binary", 1),
    }
    if 2 * small <= full:
        found[f"funnel_int4_{2 * small}"] = funnel("int4", 4, 2 * small)
    # Quantisers of the full-size vector, of as many bytes as int8 has at the short prefix.
    if full % small == 0:
        found["pq_full"] = Method(
            lambda full: _quiet(faiss.IndexPQ(full, small, 8, l2)), lambda full: small
        )
    if full % (2 * small) == 0:
        found["pq_fastscan_full"] = Method(
            lambda full: _quiet(faiss.IndexPQFastScan(full, 2 * small, 4, l2)), lambda full: small
        )
    return found | {
        # A bit a number after a random rotation, and two numbers of its own for each vector;
        # queries are rounded to 4 bits, FAISS's default.
        "rabitq_full": Method(
            partial(rabitq_index, metric=l2, query_bits=4), lambda full: -(-full // 8) + 8
        ),
        "binary_full": Method(
            lambda full: faiss.IndexLSH(full, full, True, False), lambda full: -(-full // 8)
        ),
        f"hnsw_{small}": Method(
            partial(_hnsw_prefix, dim=small), lambda full: 4 * small + graph, scan=False
        ),
        "hnsw_full": Method(
            lambda full: faiss.IndexHNSWFlat(full, LINKS, l2),
            lambda full: 4 * full + graph,
            rerank=False,
            scan=False,
        ),
    }


def vectors_of(flat: faiss.IndexFlat) -> np.ndarray:
    """What a flat index holds, ``(num_vectors, dim)``, without a copy: valid while it lives."""
    view = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    return view.reshape(flat.ntotal, flat.d)


def build(method: Method, flat: faiss.IndexFlat) -> tuple[faiss.Index, float]:
    """A method's index of the vectors that ``flat`` holds, and the seconds it took."""
    if method.make is None:
        return flat, 0.0
    vectors = vectors_of(flat)
    index = method.make(flat.d)
    start = time.perf_counter()
    index.train(sample(vectors, SAMPLE))
    index.add(vectors)
    return index, time.perf_counter() - start


def search(
    method: Method, index: faiss.Index, flat: faiss.IndexFlat, queries, k: int, setting: int | None
) -> np.ndarray:
    """Row numbers that a method finds, ``(num_queries, k)``.

    Args:
        method: How.
        index: What :func:`build` made.
        flat: The full-size vectors, for the rerank.
        queries: ``(num_queries, full_dim)``, of unit length.
        k: Passages to return.
        setting: The length of the shortlist, or the width of HNSW's search.
    """
    if not method.scan:
        graph = faiss.downcast_index(getattr(index, "index", index))
        graph.hnsw.efSearch = setting
    if not method.rerank:
        return index.search(queries, k)[1]
    options = rerank_options(k, setting)
    return faiss.IndexRefine(index, flat).search(queries, k, params=options)[1]


def choose(method: Method, index, flat, queries, k: int) -> int | None:
    """The smallest setting that finds the wished share of the exact answer, else the largest."""
    if method.scan and not method.rerank:
        return None
    if method.setting:
        return min(method.setting, flat.ntotal)
    wanted = torch.from_numpy(flat.search(queries, k)[1])
    allowed = [setting for setting in (k, *SETTINGS) if k <= setting <= flat.ntotal]
    for setting in allowed:
        found = search(method, index, flat, queries, k, setting)
        if overlap(torch.from_numpy(found), wanted) >= WISH:
            break
    return setting


def enlarge(real: np.ndarray, num_vectors: int, longer: bool, seed: int) -> faiss.IndexFlatL2:
    """Vectors of unit length for timing, in a flat index.

    Args:
        real: ``(num_passages, full_dim)``.
        num_vectors: How many are wanted; beyond the real ones, copies with noise.
        longer: Whether each stands beside a shuffled copy of itself, at twice the length.
        seed: Of noise and shuffling.
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


def floor_seconds(
    name: str, method: Method, flat, setting: int | None, batch: int, threads: int, small: int
) -> float | None:
    """Seconds that a query must take. For one alone on one core these are the bytes that it reads,
    of the scan and of the rerank, over the bandwidth. Exact searches of a batch read the vectors
    once for all of it: then it is multiplications over the matrix rate of all threads.
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
    """Rows of the table for the vectors in ``flat``.

    Args:
        flat: The vectors.
        queries: ``(num_queries, dim)`` of the same length.
        settings: What :func:`choose` found for each method.
        k: Passages to return.
        small: Numbers of the short prefix.
        cores: Numbers of threads to time with, fewest first.
    """
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
                rows.append(
                    {
                        "method": name,
                        "full_dim": flat.d,
                        "num_vectors": flat.ntotal,
                        "threads": threads,
                        "batch": batch,
                        "ms_per_query": 1e3 * value / asked,
                        "ratio_to_exact_full": exact / value,
                        "floor_ms": floor and 1e3 * floor,
                        "hot_bytes_per_vector": method.hot_bytes(flat.d),
                        "build_seconds": built[name][1],
                        "setting": settings[name],
                    }
                )
    faiss.cvar.distance_compute_blas_threshold = default
    return rows


def measure(
    passages, dev, test, qrels, k: int, small: int, cores, sizes, seed: int
) -> pd.DataFrame:
    """The whole table.

    Args:
        passages: ``(num_passages, full_dim)``.
        dev: ``(num_queries, full_dim)``; settings are chosen on these.
        test: ``(num_queries, full_dim)``; recall and MRR are measured on these.
        qrels: Of the test queries.
        k: Passages to return.
        small: Numbers of the short prefix.
        cores: Numbers of threads to time with, fewest first.
        sizes: Numbers of vectors to time besides the real ones.
        seed: Of the noise.
    """
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
        shown = ", ".join(f"{key} {value:.3f}" for key, value in quality[name].items())
        print(f"{name}: setting {settings[name]}, {shown}", flush=True)
    rows = time_size(flat, test, settings, k, small, cores)
    rows = [row | quality[row["method"]] for row in rows]
    order = np.random.default_rng(seed).permutation(real.shape[1])
    for longer in (False, True):
        queries = np.hstack([test, test[:, order]]) / np.sqrt(2) if longer else test
        for size in sizes:
            flat = enlarge(real, size, longer, seed)
            print(f"{size:,} vectors of {flat.d}", flush=True)
            rows += time_size(flat, queries.astype(np.float32), settings, k, small, cores)
    columns = [*TIMED, f"recall@{k}", f"mrr@{k}", "build_seconds", "setting"]
    return pd.DataFrame(rows)[columns].astype({"setting": "Int64"})


def readme_search(table: pd.DataFrame) -> str:
    """The README's section of search, as Markdown: one query on one core."""
    lines = [START]
    real = table["num_vectors"].min()
    for full_dim in sorted(table["full_dim"].unique()):
        frame = search_frame(table, full_dim)
        if full_dim != table["full_dim"].min():  # what is found was said above
            frame = frame[
                [name for name in frame if name.startswith(("hot", "ms", "times", "build"))]
            ]
        lines += [
            f"| {full_dim} dimensions | " + " | ".join(frame.columns) + " |",
            "| --- " + "| ---: " * len(frame.columns) + "|",
        ]
        forms = search_forms(frame).items()
        for method, row in frame.iterrows():
            cells = ["" if pd.isna(row[name]) else form.format(row[name]) for name, form in forms]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        f"Recall and MRR: on the {real:,} passages and the test queries of the tuned model, with "
        f"the shortest shortlist (for HNSW, the narrowest search) that finds {WISH:.0%} of the "
        f"exact answer on dev, or the longest tried; *{LONG}* has a fixed one. A larger corpus "
        "needs longer ones, so there the times are lower bounds. Times: medians of "
        f"{ROUNDS}, milliseconds for one query on one core, by `python -m helpers.search_speed`, "
        f"on: {table['machine'].iloc[0]}.",
    ]
    return "\n".join([*lines, END])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.search_speed", description=__doc__)
    parser.add_argument("preset", help="a finished run: a preset, or a TOML file")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of vectors")
    options = parser.parse_args(arguments)
    try:
        run = find_run(options.preset, "06_deployment")
        data = load_data(run)
        disable_progress_bar()
        folder = run.load("tuned", stage="training", made_by="04_training")
        embeddings = run.load("tuned.safetensors", stage="training", made_by="05_evaluation")
        dev = encode_queries(load_model(run, folder), data.split("dev")[0], run)
        table = measure(
            embeddings["passages"],
            dev,
            embeddings["test"],
            data.split("test")[1],
            run.experiment.k,
            run.experiment.small_dim,
            sorted({1, run.machine.cores}),
            options.sizes,
            run.experiment.seed,
        )
    except (ArtifactError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    machine = f"{run.machine.processor}, {run.machine.cores} cores"
    table["machine"] = f"{machine}, faiss {faiss.__version__}, torch {versions()['torch']}"
    table["preset"] = run.experiment.name
    table["model"] = fingerprint(run.manifest("tuned"))
    table.to_csv(TARGET, index=False, float_format="%.6g")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    section = readme_search(pd.read_csv(TARGET))
    readme.write_text(replace_section(text, section, START, END), encoding="utf-8")
    shown = table.drop(columns=["machine", "preset", "model"])
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(f"\n{short(TARGET)} and the README are renewed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
