"""Search with a shortlist at few dimensions and a rerank at full size, over FAISS."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch

from helpers.files import sha256
from helpers.metrics import as_matrix, prefix

MANIFEST = "manifest.json"
# Numbers of unit-length vectors lie between -1 and 1, so this fits them to a byte without training.
# FAISS cuts decimals off towards zero: half of one, and no number below zero, make it round.
INT8_SCALE, INT8_OFFSET = 127, 128.5
# Levels of an int4 number; how many passages their places are learned from.
INT4_LEVELS, INT4_SAMPLE = 16, 50_000


@contextmanager
def one_core() -> Iterator[None]:
    """A context in which torch and FAISS work on one core."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


def search(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` passages most similar to each query, exact: ``(num_queries, k)`` row numbers.

    Args:
        queries: ``(num_queries, dim)``, of unit length.
        corpus: ``(num_passages, dim)``, of unit length.
        k: Passages to return, best first.

    Raises:
        ValueError: dimensions that differ, or ``k`` not between 1 and the corpus's size.
    """
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the corpus {corpus.shape[1]}: "
            "cut both to the same"
        )
    _check_k(k, len(corpus))
    return (queries @ corpus.T).topk(k, dim=1).indices


def shortlist_index(full_dim: int, dim: int, storage: str) -> faiss.IndexPreTransform:
    """An empty FAISS index that takes full-size vectors and compares their prefixes.

    It cuts, brings the prefix to unit length again, and keeps it in one of these forms:

    - "float32": as it is, 4 bytes a number;
    - "int8": 1 byte a number;
    - "int4": half a byte a number, on levels that are learned (a product quantiser with one
      number a part), scanned in the processor's registers;
    - "binary": the sign alone, 1 bit a number.

    On vectors of unit length the squared distance orders as cosine similarity does, and FAISS
    scans int8 faster by it than by inner product, since both sides stay integers.

    Args:
        full_dim: Numbers of a full-size vector.
        dim: Numbers of the prefix.
        storage: One of the four.

    Raises:
        ValueError: no such storage, or ``dim`` not between 1 and ``full_dim``.
    """
    makers = {
        "float32": lambda: faiss.IndexFlatL2(dim),
        "int8": lambda: faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2
        ),
        "int4": lambda: faiss.IndexPQFastScan(dim, dim, 4, faiss.METRIC_L2),
        "binary": lambda: faiss.IndexLSH(dim, dim, False, False),
    }
    if storage not in makers:
        raise ValueError(f"storage is {storage!r}: allowed are {', '.join(makers)}")
    if not 1 <= dim <= full_dim:
        raise ValueError(f"dim is {dim}: it must lie between 1 and {full_dim}")
    codes = makers[storage]()
    index = faiss.IndexPreTransform(codes)
    if storage == "int8":
        scale = faiss.LinearTransform(dim, dim, True)
        faiss.copy_array_to_vector(np.diag(np.full(dim, INT8_SCALE, np.float32)).ravel(), scale.A)
        faiss.copy_array_to_vector(np.full(dim, INT8_OFFSET, np.float32), scale.b)
        scale.is_trained = True
        index.prepend_transform(scale)
    if storage == "int4":
        codes.pq.cp.min_points_per_centroid = 1  # few passages are no reason for a warning
    index.prepend_transform(faiss.NormalizationTransform(dim))
    index.prepend_transform(faiss.RemapDimensionsTransform(full_dim, dim, False))
    return index


def rerank_options(k: int, shortlist: int) -> faiss.IndexRefineSearchParameters:
    """What tells a FAISS index that reranks how long its shortlist is.

    FAISS takes it as a multiple of ``k`` in float32 and rounds down: half a passage more keeps the
    last one from getting lost.
    """
    return faiss.IndexRefineSearchParameters(k_factor=(shortlist + 0.5) / k)


def sample(vectors: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, drawn at random: a corpus is often sorted by topic or date."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.random.default_rng(0).choice(len(vectors), most, replace=False)]


class Funnel:
    """Two stages: a shortlist by the first ``dim`` numbers, reranked by all of them.

    The short vectors are scanned for every query and belong in fast memory; of the full ones
    only a shortlist is read, so they may lie on a disk (:meth:`load`).

    Args:
        corpus: ``(num_passages, full_dim)``, numpy or torch; brought to unit length here. A
            passage's id is its row number.
        dim: Numbers that the first stage looks at.
        storage: How it keeps them, as :func:`shortlist_index` says.

    Raises:
        ValueError: what :func:`shortlist_index` says, no passages, NaN or infinity, a vector
            whose first ``dim`` numbers are all zero, fewer passages than "int4" has levels.
    """

    def __init__(self, corpus: torch.Tensor, dim: int = 64, storage: str = "int8"):
        corpus = as_matrix(corpus, "corpus")
        full_dim = corpus.shape[1]
        self.storage, self.about, self.on_disk = storage, {}, False
        short = shortlist_index(full_dim, dim, storage)
        if storage == "int4" and len(corpus) < INT4_LEVELS:
            raise ValueError(
                f"corpus has {len(corpus)} passages: int4 learns its {INT4_LEVELS} levels from at "
                f"least {INT4_LEVELS}; take another storage"
            )
        self.index = faiss.IndexRefine(short, faiss.IndexFlatL2(full_dim))
        vectors = self._vectors(corpus, "corpus")
        self.index.train(sample(vectors, INT4_SAMPLE))
        self.index.add(vectors)

    @property
    def dim(self) -> int:
        """Numbers that the first stage looks at."""
        return faiss.downcast_index(self.index.base_index).index.d

    @property
    def full_dim(self) -> int:
        """Numbers of a full-size vector."""
        return self.index.d

    @property
    def hot_bytes(self) -> int:
        """Bytes a passage that the first stage reads for every query."""
        codes = faiss.downcast_index(faiss.downcast_index(self.index.base_index).index)
        return codes.code_size

    def __len__(self) -> int:
        return self.index.ntotal

    def add(self, embeddings: torch.Tensor) -> None:
        """More passages; their row numbers go on from the last. "int4" keeps its first levels.

        Args:
            embeddings: ``(num_passages, full_dim)``.

        Raises:
            ValueError: another dimension, NaN or infinity, no direction, or an index on a disk.
        """
        if self.on_disk:
            raise ValueError("this index lies on a disk: load it with on_disk=False to add to it")
        self.index.add(self._vectors(as_matrix(embeddings, "embeddings"), "embeddings"))

    def search(
        self, queries: torch.Tensor, k: int, shortlist: int = 200
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``k`` passages of the shortlist that are most similar at full size.

        Args:
            queries: ``(num_queries, full_dim)``; brought to unit length here.
            k: Passages to return, best first.
            shortlist: Passages that the first stage hands to the second, at least ``k``.

        Returns:
            Cosine similarities and row numbers, both ``(num_queries, k)``.

        Raises:
            ValueError: another dimension, NaN or infinity, ``k`` or a shortlist out of range.
        """
        _check_k(k, len(self))
        if not k <= shortlist <= len(self):
            raise ValueError(
                f"shortlist is {shortlist}: it must lie between k, {k}, and the {len(self)} "
                "passages"
            )
        options = rerank_options(k, shortlist)
        vectors = self._vectors(as_matrix(queries, "queries"), "queries")
        distances, rows = self.index.search(vectors, k, params=options)
        return torch.from_numpy(1 - distances / 2), torch.from_numpy(rows)

    def save(self, folder: Path, about: Mapping[str, str] | None = None) -> None:
        """Write the index and its manifest; cut short, an older one is still there and whole.

        Args:
            folder: Made if it is not there; an index in it is replaced.
            about: What else the manifest should say, such as the model of the embeddings.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / ".index.part"
        faiss.write_index(self.index, str(scratch))
        digest = sha256(scratch)
        manifest = {
            "file": f"index-{digest[:12]}.faiss",
            "storage": self.storage,
            "dim": self.dim,
            "full_dim": self.full_dim,
            "num_passages": len(self),
            "faiss": faiss.__version__,
            "about": dict(about or self.about),
            "sha256": digest,
        }
        os.replace(scratch, folder / manifest["file"])
        scratch.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, folder / MANIFEST)  # from here on the new index counts
        for older in folder.glob("index-*.faiss"):
            if older.name != manifest["file"]:
                older.unlink()

    @classmethod
    def load(cls, folder: Path, on_disk: bool = False) -> "Funnel":
        """Read a saved index back; ``about`` holds what :meth:`save` was told.

        Args:
            folder: Where it was saved.
            on_disk: Leave it in its file, and let the operating system keep in memory what
                searches read: all short vectors, and the full ones of shortlists. It cannot be
                added to. The file is read through once, for its hash.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is damaged.
        """
        folder = Path(folder)
        again = "build it again from the embeddings: Funnel(embeddings).save(folder)"
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} holds no index: {again}")
        funnel = cls.__new__(cls)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            file, wanted = folder / manifest["file"], manifest["sha256"]
            funnel.storage, funnel.about = manifest["storage"], manifest["about"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged: {again}") from error
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {again}")
        if sha256(file) != wanted:
            raise ValueError(f"{file} is damaged, its SHA-256 is not the manifest's: {again}")
        try:
            funnel.index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC if on_disk else 0)
        except RuntimeError as error:
            raise ValueError(
                f"{file} was written by FAISS {manifest.get('faiss')}, which {faiss.__version__} "
                f"cannot read: {again}"
            ) from error
        funnel.on_disk = on_disk
        return funnel

    def _vectors(self, embeddings: torch.Tensor, name: str) -> np.ndarray:
        """Embeddings as FAISS wants them, of unit length."""
        if embeddings.shape[1] != self.full_dim:
            raise ValueError(
                f"{name} have {embeddings.shape[1]} dimensions, the index {self.full_dim}: both "
                "must come from one model, at full size"
            )
        prefix(embeddings, self.dim)  # refuses what has no direction once it is cut
        return prefix(embeddings.float(), self.full_dim).contiguous().numpy()


def overlap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of ``wanted`` that ``found`` holds, row by row, on average.

    Args:
        found: ``(num_queries, any)`` row numbers of passages.
        wanted: ``(num_queries, any)``, likewise.
    """
    return (wanted[:, :, None] == found[:, None, :]).any(dim=2).double().mean().item()


def _check_k(k: int, num_passages: int) -> None:
    if not 1 <= k <= num_passages:
        raise ValueError(f"k is {k}: it must lie between 1 and the {num_passages} passages")
