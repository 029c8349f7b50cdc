"""Make vectors better at every size, without the model that made them: train one matrix.

python train_adapter.py QUERIES.npy PASSAGES.npy PAIRS.csv [--out adapter.npy]

The two .npy files hold vectors in their rows, (num_queries, dim) and (num_passages, dim), from any
model or API. PAIRS.csv has a line `query,passage` for each right answer: two row numbers, from 0.
A first line of names is skipped. We hold out a tenth of the queries to choose by (dev), and another
to score (test), at most 1,000 each. The matrix starts as a rotation (PCA of training passages) and
is trained with the Matryoshka loss. If no training beats the rotation on dev, the rotation is
saved. Then a search uses, for queries and passages alike, with any DIM:

    small = vectors @ np.load("adapter.npy")[:, :DIM]
    small /= np.linalg.norm(small, axis=1, keepdims=True)
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import cross_entropy, normalize

TOP = 10
RATES, PASSES, PATIENCE = (3e-4, 1e-3, 3e-3), 30, 3  # it stops after 3 passes without progress
BATCH, STEPS, SCALE = 1024, 8, 20.0  # rows in a batch at most, batches in a pass at least
FEWEST, HELD_OUT = 200, 1000  # queries: needed in all, held out at most, twice
SEARCHED = 50_000  # passages at most: the answers of held-out queries, and others at random
SHORTER = (512, 256, 128, 64, 32)


def dims_of(full: int) -> list[int]:
    """Full size, and the usual prefixes that are shorter."""
    return [full, *(dim for dim in SHORTER if dim < full)]


def cut(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Cut vectors to their first dimensions, and bring them to unit length: ``(any, dim)``."""
    return normalize(vectors[:, :dim], dim=1)


# --- Files ---


def open_vectors(path: Path) -> np.ndarray:
    """Map a file of vectors into memory, or stop and say what is wrong with it."""
    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"expected a .npy file of vectors, got {path}: {str(error).splitlines()[0]}")
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = f"{getattr(vectors, 'dtype', 'several arrays')} {getattr(vectors, 'shape', '')}"
        sys.exit(f"expected rows of floats (num_vectors, dim) in {path}, got {found.strip()}")
    return vectors


def take(path: Path, rows: np.ndarray) -> torch.Tensor:
    """Read rows of a file, in float32 and of unit length, or stop at one that has no direction."""
    vectors = torch.from_numpy(open_vectors(path)[rows].astype(np.float32))
    length = vectors.norm(dim=1)
    if len(bad := rows[~((length > 0) & length.isfinite()).numpy()]):
        sys.exit(f"row {bad[0]} of {path} holds NaN, infinity or only zeros: mend it")
    return normalize(vectors, dim=1)


def read_pairs(path: Path, num_queries: int, num_passages: int) -> np.ndarray:
    """Read pairs of row numbers, ``(num_pairs, 2)``, each once, or stop."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        names = not lines[0].replace(",", "").strip().isdigit()
        pairs = np.loadtxt(lines[names:], delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, ValueError) as error:
        sys.exit(f"expected lines of two row numbers in {path}, such as 0,17: {error}")
    if pairs.shape[1] != 2:
        sys.exit(f"expected lines of two row numbers in {path}, got {pairs.shape[1]} columns")
    for column, (kind, number) in enumerate((("query", num_queries), ("passage", num_passages))):
        wrong = pairs[(pairs[:, column] < 0) | (pairs[:, column] >= number), column]
        if len(wrong):
            sys.exit(f"{path} names {kind} {wrong[0]}, but the rows are 0 to {number - 1}")
    return np.unique(pairs, axis=0)


def split(pairs: np.ndarray) -> dict[str, np.ndarray]:
    """Split pairs into test, dev and train; queries that share an answer stay together."""
    queries, passages = pairs[:, 0], pairs[:, 0].max() + 1 + pairs[:, 1]
    links = coo_array((np.ones(len(pairs)), (queries, passages)), shape=(passages.max() + 1,) * 2)
    group = connected_components(links, directed=False)[1]  # of each query, then of each passage
    asked = np.unique(queries)
    if len(asked) < FEWEST:
        sys.exit(f"expected pairs of {FEWEST} different queries or more, got {len(asked)}")
    held_out = min(HELD_OUT, len(asked) // 10)
    sizes = np.bincount(group[asked])  # how many queries a group has
    drawn = np.random.default_rng(0).permutation(len(sizes))
    drawn = drawn[np.argsort(sizes[drawn] > held_out // 10, kind="stable")]  # the largest go last
    ends = np.empty(len(sizes), dtype=int)
    ends[drawn] = sizes[drawn].cumsum()
    part = np.searchsorted([held_out, 2 * held_out], ends)[group[queries]]
    found = {name: pairs[part == n] for n, name in enumerate(("test", "dev", "train"))}
    if not all(map(len, found.values())):
        sys.exit("most queries share their answers, so that no tenth of them can be held out")
    return found


# --- Training and scoring ---


def fit_rotation(vectors: torch.Tensor) -> torch.Tensor:
    """Return the rotation that puts the directions of most variance first: uncentred PCA."""
    products = vectors.T.double() @ vectors.double()
    return torch.linalg.eigh(products)[1].flip(1).float()


def train(
    start: torch.Tensor, queries: torch.Tensor, passages: torch.Tensor, pairs: torch.Tensor, rate
) -> Iterator[torch.Tensor]:
    """Train an adapter, ``(dim, dim)``, and yield it after each pass over the pairs.

    Row ``i`` of ``queries`` and of ``passages`` has the row numbers ``pairs[i]``: they tell which
    passages of a batch are right as well, and are no negatives.
    """
    adapter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([adapter], lr=rate)
    order = torch.Generator().manual_seed(0)
    size = min(BATCH, max(2, len(pairs) // STEPS))
    while True:
        for rows in torch.randperm(len(pairs), generator=order).split(size):
            same = (pairs[rows, None] == pairs[rows]).any(dim=2).fill_diagonal_(False)
            asked, found = queries[rows] @ adapter, passages[rows] @ adapter
            loss = 0
            for dim in dims_of(len(start)):
                cosine = cut(asked, dim) @ cut(found, dim).T
                scores = (SCALE * cosine).masked_fill(same, -torch.inf)
                loss = loss + cross_entropy(scores, torch.arange(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield adapter.detach().clone()


def mrr(
    queries: torch.Tensor, passages: torch.Tensor, right: list[list[int]], dim: int
) -> np.ndarray:
    """Return MRR@10 of each query, ``(num_queries,)``, with prefixes of ``dim`` dimensions.

    ``right`` has the rows of each query's right passages. Of equal scores, wrong ones come first.
    """
    passages, found = cut(passages, dim), []
    for start in range(0, len(queries), 100):
        scores = cut(queries[start : start + 100], dim) @ passages.T
        for row, rows in zip(scores, right[start : start + 100], strict=True):
            best = row[rows].max().item()
            row[rows] = -torch.inf
            rank = 1 + int((row >= best).sum())
            found.append(1 / rank if rank <= TOP else 0.0)
    return np.array(found)


class HeldOut:
    """The queries of some pairs, ``(num_queries, dim)``, and the rows of their right passages.

    ``ids`` says which passage is in which row of those that are searched.
    """

    def __init__(self, pairs: np.ndarray, path: Path, ids: np.ndarray):
        numbers, first = np.unique(pairs[:, 0], return_index=True)
        rows = np.searchsorted(ids, pairs[:, 1])
        self.queries = take(path, numbers)
        self.right = [part.tolist() for part in np.split(rows, first[1:])]

    def scores(self, adapter: torch.Tensor, passages: torch.Tensor) -> np.ndarray:
        """Score each query at each size: ``(num_dims, num_queries)``."""
        queries, passages = self.queries @ adapter, passages @ adapter
        return np.stack([mrr(queries, passages, self.right, d) for d in dims_of(len(adapter))])


def choose(start, dev: HeldOut, passages, asked, answers, pairs) -> torch.Tensor:
    """Train with several rates, and return the adapter that is best on dev, over all sizes."""
    best, best_score = start, dev.scores(start, passages).mean()
    print(f"dev MRR@{TOP}, the mean over all sizes: rotated {best_score:.3f}", flush=True)
    for rate in RATES:
        steps, reached = train(start, asked, answers, pairs, rate), []
        for adapter in itertools.islice(steps, PASSES):
            reached.append(dev.scores(adapter, passages).mean())
            if reached[-1] > best_score:
                best, best_score = adapter, reached[-1]
            if max(reached[-PATIENCE:]) < max(reached):
                break
        print(f"  rate {rate:g}, {len(reached)} passes: {max(reached):.3f} at best", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("queries", type=Path, metavar="QUERIES.npy")
    parser.add_argument("passages", type=Path, metavar="PASSAGES.npy")
    parser.add_argument("pairs", type=Path, metavar="PAIRS.csv")
    parser.add_argument("--out", type=Path, default=Path("adapter.npy"), metavar="FILE.npy")
    args = parser.parse_args()
    if args.out.suffix != ".npy":
        parser.error(f"expected a .npy file to write to, got {args.out}")
    (num_queries, dim), (num_passages, other) = (
        open_vectors(path).shape for path in (args.queries, args.passages)
    )
    if dim != other:
        sys.exit(f"expected queries and passages of one size, got {dim} and {other} dimensions")
    parts = split(read_pairs(args.pairs, num_queries, num_passages))

    answers = np.unique(np.concatenate([parts[name][:, 1] for name in ("dev", "test")]))
    others = np.setdiff1d(np.arange(num_passages), answers)
    some = np.random.default_rng(0).permutation(others)[: max(0, SEARCHED - len(answers))]
    ids = np.sort(np.concatenate([answers, some]))
    passages = take(args.passages, ids)
    dev, test = (HeldOut(parts[name], args.queries, ids) for name in ("dev", "test"))
    pairs = parts["train"]
    asked, right = take(args.queries, pairs[:, 0]), take(args.passages, pairs[:, 1])
    rotation = fit_rotation(take(args.passages, np.unique(pairs[:, 1])))
    print(
        f"{len(pairs):,} pairs to train on, {len(dev.right):,} dev and {len(test.right):,} test "
        f"queries, {len(ids):,}{' (a sample)' * (len(ids) < num_passages)} passages to search"
    )
    adapter = choose(rotation, dev, passages, asked, right, torch.from_numpy(pairs))

    ways = {"as they are": torch.eye(dim), "rotated": rotation, "adapter": adapter}
    scores = {name: test.scores(matrix, passages) for name, matrix in ways.items()}
    gains = scores["adapter"] - scores["rotated"]
    print(f"\ntest MRR@{TOP}{''.join(f'{name:>13}' for name in ways)}    gain over rotated")
    for place, size in enumerate(dims_of(dim)):
        shown = "".join(f"{found[place].mean():>13.3f}" for found in scores.values())
        half = 1.96 * gains[place].std() / len(gains[place]) ** 0.5  # of a 95% interval
        print(f"{size:>11}{shown}{gains[place].mean():>+13.3f} ± {half:.3f}")
    if adapter is rotation:
        print("No training is better than the rotation on dev, so that is what we save.")
    try:
        np.save(args.out, adapter.numpy())
    except OSError as error:
        sys.exit(f"can't write {args.out}: {error.strerror}")
    print(f"{args.out}: ({dim}, {dim}), for queries and passages alike; --help shows how to use it")


if __name__ == "__main__":
    main()
