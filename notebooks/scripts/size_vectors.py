"""How small can your vectors be? Measured on the vectors alone, without labels or a model.

python size_vectors.py VECTORS.npy [--queries QUERIES.npy] [--target 0.95]

Both files hold rows of floats, (num_vectors, dim). We search exactly at full size, then with fewer
dimensions, as they are or after a rotation (PCA), and with fewer bits for each; alone, or as a
shortlist that is reranked at full size. A score is the share of the exact top 10 that is found.
The smallest size that reaches the target is marked, and the lines that make it are printed.
Of a large file we read samples: a million vectors of 1,536 dimensions take under 4 GB.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

TOP, SHORTLIST = 10, 100
NUM_QUERIES, NUM_FITTED = 500, 20_000  # at most: held-out queries, rows for the rotation
NUM_SEARCHED, NUM_FLOATS = 100_000, 80_000_000  # at most: rows to search, and numbers in them
FEWEST = 1000  # rows below which the scores say nothing
FORMS = {"float32": 32, "float16": 16, "int8": 8, "4 bits": 4, "2 bits": 2, "1 bit": 1, "signs": 1}
# Even steps, in standard deviations, that are best for normal values (Max, 1960), by bits.
STEPS = {8: 0.031, 4: 0.335, 2: 0.996}
TYPES = {"float32": "vector", "float16": "halfvec", "signs": "bit"}  # pgvector's
NEAR = 0.02  # a difference that makes none


class Size(NamedTuple):
    """One way to store a vector, with the share of the exact top 10 that it finds."""

    num_bytes: int
    rotated: bool
    dim: int
    form: str
    alone: float
    reranked: float


def unit(vectors: np.ndarray) -> np.ndarray:
    """Bring rows to unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the row numbers of the ``k`` largest dot products, ``(num_queries, k)``."""
    queries, vectors = (np.ascontiguousarray(x, dtype=np.float32) for x in (queries, vectors))
    return faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)[1]


def overlap(results: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of ``wanted`` that ``results`` hold, row by row, on average."""
    return float((wanted[:, :, None] == results[:, None, :]).any(axis=2).mean())


def fit_rotation(vectors: np.ndarray) -> np.ndarray:
    """Return the rotation that puts the directions of most variance first: uncentred PCA."""
    products = vectors.T.astype(np.float64) @ vectors
    return np.linalg.eigh(products)[1][:, ::-1].astype(np.float32)


def rounded(vectors: np.ndarray, form: str) -> np.ndarray:
    """Round vectors, and return them as they are read back.

    Rounded to codes, they lack a constant in each dimension: it moves all scores of a query by the
    same, and changes no ranking.
    """
    bits = FORMS[form]
    if bits == 32:
        return vectors
    if bits == 16:
        return vectors.astype(np.float16).astype(np.float32)
    if bits == 1:
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    step = STEPS[bits] * vectors.std(axis=0) + 1e-12
    codes = (vectors - vectors.mean(axis=0)) / step
    np.floor(codes, out=codes)
    np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=codes)
    codes *= step
    return codes


# --- The file ---


def open_vectors(path: Path) -> np.ndarray:
    """Map a file into memory, or stop and say what is wrong with it."""
    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"expected a .npy file of vectors, got {path}: {str(error).splitlines()[0]}")
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = f"{getattr(vectors, 'dtype', 'several arrays')} {getattr(vectors, 'shape', '')}"
        sys.exit(f"expected rows of floats (num_vectors, dim) in {path}, got {found.strip()}")
    return vectors


def draw(path: Path, most: int) -> np.ndarray:
    """Read rows of a file at random, leave out what can't be compared, and say what was odd."""
    total = len(open_vectors(path))
    places = np.random.default_rng(0).choice(total, min(most, total), replace=False)
    # A part at a time, or the pages of the file that were touched add up in memory.
    parts = np.array_split(np.sort(places), 1 + len(places) // 2000)
    rows = np.concatenate([open_vectors(path)[part].astype(np.float32) for part in parts])
    print(f"{path}: {total:,} vectors of {rows.shape[1]:,} dimensions, {len(rows):,} read")
    lengths = np.linalg.norm(rows, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    if bad := int((~usable).sum()):
        print(f"- {bad:,} hold NaN, infinity or only zeros. We leave them out; so should you.")
    rows, lengths = rows[usable], lengths[usable]
    if (odd := np.abs(lengths - 1) > 0.01).any():
        print(
            f"- {odd.sum():,} aren't of unit length: they go from {lengths.min():.3g} to "
            f"{lengths.max():.3g}. We compare by cosine, at unit length."
        )
    rows = unit(rows)
    first = {hash(row.tobytes()): place for place, row in reversed([*enumerate(rows)])}
    if twice := len(rows) - len(first):
        print(f"- {twice:,} are duplicates of another one. We keep one of each.")
        rows = rows[sorted(first.values())]
    return np.random.default_rng(1).permutation(rows)


def prepare(path: Path, queries: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return queries, the vectors to search, and a rotation, None if there are too few to fit it.

    It is fitted on vectors that aren't searched.
    """
    total, dim = open_vectors(path).shape
    most = min(NUM_SEARCHED, NUM_FLOATS // dim)
    if queries and (found := open_vectors(queries).shape[1]) != dim:
        sys.exit(f"expected queries of {dim} dimensions, as in {path}, got {found} in {queries}")
    rows = draw(path, most + NUM_FITTED + NUM_QUERIES)
    if len(rows) < FEWEST:
        sys.exit(f"expected {FEWEST:,} different vectors or more in {path}, got {len(rows):,}")
    if queries:
        asked = draw(queries, NUM_QUERIES)
        if not len(asked):
            sys.exit(f"expected queries in {queries}, got none that can be compared")
    else:
        held_out = min(NUM_QUERIES, len(rows) // 10)
        asked, rows = rows[:held_out], rows[held_out:]
    fitted = min(NUM_FITTED, len(rows) // 4)
    rotation = None
    if fitted < dim:
        print(f"- Too few to fit a rotation: it takes {dim:,} vectors that we don't search.")
    else:
        rotation, rows = fit_rotation(rows[:fitted]), rows[fitted:]
        print(f"- The rotation is fitted on {fitted:,} vectors, and judged on others.")
    rows = rows[:most]
    print(f"- {len(asked):,} queries search {len(rows):,} vectors.")
    if not queries:
        print(
            "- The queries are held-out vectors. Real ones are better (--queries): questions are "
            "unlike passages, and what keeps a passage's neighbours may lose a question's."
        )
    if len(rows) < 0.5 * total:
        print(
            f"- That is a sample. All {total:,} are harder to search: expect a little less, and "
            "take the next larger size if it's close."
        )
    return asked, rows, rotation


# --- The measurement ---


def dims_of(full: int) -> list[int]:
    """Full size and the powers of two below it, down to 8."""
    return [full, *(2**n for n in range(20, 2, -1) if 2**n < full)]


def measure(
    queries: np.ndarray, vectors: np.ndarray, rotation: np.ndarray | None = None
) -> list[Size]:
    """Measure each size, as they are and rotated. All are of unit length, ``(any, dim)``."""
    exact, found = nearest(queries, vectors, TOP), []
    for rotated in (False, True) if rotation is not None else (False,):
        q, p = (queries @ rotation, vectors @ rotation) if rotated else (queries, vectors)
        for dim in dims_of(vectors.shape[1]):
            print(f"  searching {dim} dimensions{', rotated' * rotated}", file=sys.stderr)
            asked, kept = q[:, :dim], p if dim == p.shape[1] else unit(p[:, :dim])
            for form, bits in FORMS.items():
                one = rounded(asked, form) if form == "signs" else asked
                short = nearest(one, rounded(kept, form), SHORTLIST)
                shares = overlap(short[:, :TOP], exact), overlap(short, exact)
                found.append(Size(-(-dim * bits // 8), rotated, dim, form, *shares))
    return found


def nests(queries: np.ndarray, vectors: np.ndarray, sizes: list[Size]) -> bool:
    """Whether a quarter of the dimensions does as well unrotated, and its last ones don't."""
    dim = next((d for d in dims_of(vectors.shape[1]) if d <= vectors.shape[1] / 4), None)
    alone = {s.rotated: s.alone for s in sizes if s.dim == dim and s.form == "float32"}
    if len(alone) < 2 or alone[False] < alone[True] - NEAR:
        return False
    found = nearest(queries[:, -dim:], unit(vectors[:, -dim:]), TOP)
    return overlap(found, nearest(queries, vectors, TOP)) < alone[False] - 2 * NEAR


def smallest(sizes: list[Size], way: str, target: float) -> Size | None:
    """Return the smallest size that reaches the target; of equal ones, one without a rotation.

    ``way`` is "alone" or "reranked". None if no size reaches it.
    """
    enough = [size for size in sizes if getattr(size, way) >= target]
    return min(enough, key=lambda s: (s.num_bytes, s.rotated, -getattr(s, way)), default=None)


def table(sizes: list[Size], target: float) -> str:
    """Lay out the sizes by bytes, the smallest of each column that reaches the target marked."""
    columns = [(way, r) for way in ("alone", "reranked") for r in {s.rotated for s in sizes}]
    marked = [
        (way, smallest([s for s in sizes if s.rotated == r], way, target)) for way, r in columns
    ]
    names = [f"{'rotated' if r else 'prefix'}{', reranked' * (w != 'alone')}" for w, r in columns]
    lines = [f"{'bytes':>6}  {'dimensions':>10}  {'form':8}" + "".join(f"{n:>19}" for n in names)]
    rows = {}
    for size in sizes:
        rows.setdefault((-size.num_bytes, -size.dim, size.form), {})[size.rotated] = size
    for _, row in sorted(rows.items(), key=lambda item: item[0]):
        cells = [(getattr(row[r], way), (way, row[r]) in marked) for way, r in columns]
        if max(share for share, _ in cells) >= 0.5:
            size = row[False]
            lines.append(
                f"{size.num_bytes:>6,}  {size.dim:>10,}  {size.form:8}"
                + "".join(f"{share:>18.1%}{'*' if mark else ' '}" for share, mark in cells)
            )
    return "\n".join(line.rstrip() for line in lines)


# --- The lines that make it ---


def numpy_lines(size: Size, path: Path, rerank: bool) -> str:
    """Write numpy that stores vectors of a size, and searches them with one ``query``."""
    bits, dim = FORMS[size.form], size.dim
    lines = [
        "import numpy as np",
        "",
        "def unit(x): return x / np.linalg.norm(x, axis=-1, keepdims=True)",
        "",
        f"vectors = unit(np.load({str(path)!r}).astype('float32'))  # in parts, if they are many",
        "query = unit(query)",
    ]
    small, asked = f"vectors[:, :{dim}]", f"query[:{dim}]"
    if size.rotated:
        lines += [
            f"sample = vectors[:: max(1, len(vectors) // {NUM_FITTED})]",
            "directions = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]",
            f"rotation = directions[:, :{dim}]  # keep it: each query needs it as well",
        ]
        small, asked = "vectors @ rotation", "query @ rotation"
    lines += [f"small, asked = unit({small}), {asked}"]
    if bits == 32:
        lines += ["stored = small", "scores = stored @ asked"]
    elif bits == 16:
        lines += ["stored = small.astype('float16')", "scores = stored.astype('float32') @ asked"]
    elif size.form == "signs":
        lines += [
            "stored, signs = np.packbits(small > 0, axis=1), np.packbits(asked > 0)",
            "scores = -np.unpackbits(stored ^ signs, axis=1).sum(axis=1, dtype=int)",
        ]
    elif bits == 1:
        lines += [
            "stored = np.packbits(small > 0, axis=1)",
            f"signs = np.unpackbits(stored, axis=1, count={dim})",
            "scores = signs @ (2 * asked) - asked.sum()",
        ]
    else:
        lines += [
            f"mean, step = small.mean(axis=0), {STEPS[bits]} * small.std(axis=0) + 1e-12",
            f"codes = np.floor((small - mean) / step) + {2 ** (bits - 1)}",
            f"codes = np.clip(codes, 0, {2**bits - 1}).astype('uint8')",
        ]
        if bits == 8:
            lines += ["stored = codes"]
        else:
            packed = f"np.unpackbits(codes[..., None], axis=2)[..., {8 - bits}:]"
            weights = [2**place for place in reversed(range(bits))]
            lines += [
                f"stored = np.packbits({packed}.reshape(len(codes), -1), axis=1)",
                f"codes = np.unpackbits(stored, axis=1, count={dim * bits})  # to search, unpack",
                f"codes = codes.reshape(-1, {dim}, {bits}) @ {weights}",
            ]
        lines += ["scores = codes @ (asked * step)"]
    if rerank:
        lines += [
            f"short = np.argsort(-scores)[:{SHORTLIST}]",
            f"best = short[np.argsort(-vectors[short] @ query)[:{TOP}]]",
        ]
    else:
        lines += [f"best = np.argsort(-scores)[:{TOP}]"]
    return "\n".join(lines)


def sql_lines(size: Size, full: int, rerank: bool) -> str:
    """Write the same for a table ``passages`` with a column ``embedding`` of pgvector."""
    kind, dim = TYPES[size.form], size.dim

    def small(vector: str) -> str:
        cut = vector if dim == full else f"subvector({vector}, 1, {dim})"
        return f"({f'binary_quantize({cut})' if kind == 'bit' else cut})::{kind}({dim})"

    query = f":query::vector({full})"
    distance, measured = ("<~>", "hamming") if kind == "bit" else ("<=>", "cosine")
    stored, asked = small("embedding"), small(query)
    if not rerank:
        return f"""\
CREATE TABLE small AS SELECT id, {stored} AS embedding FROM passages;
SELECT id FROM small ORDER BY embedding {distance} {asked} LIMIT {TOP};"""
    return f"""\
CREATE INDEX ON passages USING hnsw (({stored}) {kind}_{measured}_ops);
SET hnsw.ef_search = {SHORTLIST};
WITH shortlist AS MATERIALIZED (
    SELECT id, embedding FROM passages ORDER BY {stored} {distance} {asked} LIMIT {SHORTLIST})
SELECT id FROM shortlist ORDER BY embedding <=> {query} LIMIT {TOP};"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vectors", type=Path, metavar="VECTORS.npy")
    parser.add_argument("--queries", type=Path, metavar="QUERIES.npy")
    parser.add_argument("--target", type=float, default=0.95, metavar="SHARE")
    args = parser.parse_args()
    if not 0 < args.target <= 1:
        parser.error(f"expected a target such as 0.95, above 0 and at most 1, got {args.target}")
    queries, vectors, rotation = prepare(args.vectors, args.queries)
    full = vectors.shape[1]
    sizes = measure(queries, vectors, rotation)
    if nests(queries, vectors, sizes):
        print("- They nest already: a Matryoshka model made them, or a rotation. A prefix will do.")
    print(f"\nShare of the exact top {TOP} that is found, * the smallest with {args.target:.0%}:\n")
    print(table(sizes, args.target))
    print(
        f"\nReranked: a shortlist of {SHORTLIST}, ordered again at full size. Queries stay in "
        "float32, but for signs. Rows below 50% everywhere are left out."
    )
    for way, how in (("alone", "alone"), ("reranked", f"after a rerank of {SHORTLIST}")):
        size, rerank = smallest(sizes, way, args.target), way == "reranked"
        in_sql = size.form in TYPES and not size.rotated
        lines = sql_lines(size, full, rerank) if in_sql else numpy_lines(size, args.vectors, rerank)
        print(
            f"\nThe smallest with {args.target:.0%} {how}: {size.dim:,} dimensions"
            f"{' after the rotation' * size.rotated}, {size.form}, {size.num_bytes:,} bytes, "
            f"{4 * full / size.num_bytes:.3g} times smaller. In {'SQL' if in_sql else 'numpy'}:\n"
            f"\n{lines}"
        )


if __name__ == "__main__":
    main()
