"""Encodes shards of passages: ``python -m helpers.encode_many MODEL INPUT OUTPUT``.

Ray Data hands the shards to workers, on one machine or many, that each hold the model. A worker
reads a shard, a Parquet file with the columns ``id`` and ``text``, and writes one of the same name
with ``id`` and ``embedding``, at full size: any prefix can be cut when an index is built.
Interrupted, the same command goes on with the shards that are missing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from helpers.artifacts import short
from helpers.files import sha256
from helpers.sources import model_folder

MANIFEST = "manifest.json"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Encoder:
    """A worker: holds the model, and encodes one shard after another.

    Ray sends this class itself to the workers, so it uses nothing of this package.

    Args:
        model: A folder, or an id on the Hub, that the worker's machine can read.
        revision: Commit on the Hub, else None.
        target: The folder that the embeddings are written to.
        batch_size: Passages in a forward pass.
    """

    def __init__(self, model: str, revision: str | None, target: str, batch_size: int):
        self.source, self.revision = model, revision
        self.target, self.batch_size = Path(target), batch_size
        self.model = None  # loaded with the first shard: Ray hides why this here fails

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        """Encode the shards whose paths are in ``shard``; ``num_passages`` of each comes back.

        Raises:
            ValueError: a passage without text, or a model that does not load.
        """
        return {"num_passages": [self.encode(Path(path)) for path in batch["shard"]]}

    def encode(self, shard: Path) -> int:
        """Write one shard's embeddings, whole or not at all; returns how many there are."""
        table = pq.read_table(shard, columns=["id", "text"])
        for number, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{shard}: passage {number} has {text!r} for a text: mend it")
        if self.model is None:
            self.model = self.load()
        embeddings = self.model.encode_document(
            table["text"].to_pylist(),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        ).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(embeddings.ravel(), embeddings.shape[1])
        scratch = self.target / f".{shard.name}.part"
        pq.write_table(pa.table({"id": table["id"], "embedding": column}), scratch)
        os.replace(scratch, self.target / shard.name)
        return len(embeddings)

    def load(self):
        """The model, as sentence-transformers loads it."""
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(self.source, revision=self.revision)
        except Exception as error:  # whatever a damaged folder leads to
            raise ValueError(
                f"the model {self.source} does not load: {error}\nName the folder of a "
                "sentence-transformers model that every worker can read, or an id on the Hub"
            ) from None


def encode_many(
    model: str,
    source: Path,
    target: Path,
    workers: int = 1,
    address: str | None = None,
    revision: str | None = None,
    batch_size: int = 32,
) -> int:
    """Encode shards of passages with several workers; those that are encoded already are left.

    Args:
        model: ``"pypi:PACKAGE"``, a folder, or an id on the Hub; on a cluster a folder that all
            machines share, or an id.
        source: A folder of Parquet shards with the columns ``id``, integers, and ``text``.
        target: The folder for as many shards with ``id`` and ``embedding``, ``full_dim`` float32
            of unit length; on a cluster both are on a disk that all machines share.
        workers: Shards that are encoded at a time, each on a GPU of its own where Ray has some.
        address: A Ray cluster's, such as "auto"; None starts Ray on this machine.
        revision: Commit on the Hub, else None.
        batch_size: Passages in a forward pass.

    Returns:
        The number of passages that were encoded now.

    Raises:
        ImportError: Ray is not installed.
        FileNotFoundError: no shards, or no such model.
        ValueError: a shard that is damaged or lacks a column, a passage without text, a model that
            does not load, a target with another model's embeddings, more workers than can be had.
        RuntimeError: Ray does not start, or broke off.
    """
    os.environ.update(QUIET)  # Ray reads them when it is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            f"{error}; install what is missing with: "
            "pip install -r requirements-scale.txt -c constraints.txt"
        ) from error
    source, target = Path(source).resolve(), Path(target).resolve()
    shards = _shards(source)
    for shard in shards:
        _check(shard, "id", "text")
    if address is None or Path(model).is_dir():
        model = str(model_folder(model, revision).resolve())
    _begin(target, model, revision, shards)
    missing = [str(shard) for shard in shards if not (target / shard.name).is_file()]
    if not missing:
        return 0
    with _silent():
        try:
            _start(ray, address, workers)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.raise_original_map_exception = True
            # Workers get the class itself, so they need not find this package.
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            items = [{"shard": shard} for shard in missing]
            found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Encoder,
                fn_constructor_args=(model, revision, str(target), batch_size),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                **_share(ray, workers),
            )
            return sum(row["num_passages"] for row in found.take_all())
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, ValueError):
                raise cause from None
            raise RuntimeError(
                f"Ray broke off, and the same command goes on: {type(cause).__name__}: "
                f"{str(cause).strip().splitlines()[0]}"
            ) from error
        finally:
            ray.shutdown()


def read_embeddings(folder: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What :func:`encode_many` wrote, shard by shard in the order of their names.

    Yields:
        Ids, ``(num_passages,)``, and embeddings, ``(num_passages, full_dim)``, float32.

    Raises:
        FileNotFoundError: no such folder, or shards that are not encoded yet.
        ValueError: a damaged shard, embeddings that are not numbers or of different lengths.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"{short(folder)} holds no embeddings of helpers.encode_many")
    if missing := [name for name in manifest["shards"] if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{short(folder)} lacks {len(missing)} of {len(manifest['shards'])} shards, such as "
            f"{missing[0]}: run the same command again, and it goes on"
        )
    full_dim = None
    for name in manifest["shards"]:
        shard = folder / name
        again = f"delete {short(shard)}, and run the same command again"
        table = _read(shard, "id", "embedding")
        column = table["embedding"].combine_chunks()
        dim = getattr(column.type, "list_size", None)  # None where rows may differ
        full_dim = full_dim or dim
        if dim is None or dim != full_dim:
            raise ValueError(
                f"{short(shard)} has embeddings of {dim or 'various'} numbers, the others of "
                f"{full_dim}: {again}"
            )
        values = column.flatten().to_numpy(zero_copy_only=False)
        if column.null_count or not np.isfinite(values).all():
            raise ValueError(
                f"{short(shard)} has embeddings that are not numbers: look at the model, {again}"
            )
        embeddings = torch.from_numpy(values.reshape(-1, dim).copy())
        yield torch.from_numpy(table["id"].to_numpy().copy()), embeddings


def _shards(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"{short(folder)} is no folder that holds .parquet files")
    return found


def _check(shard: Path, *columns: str) -> None:
    with _parquet(shard):
        names = pq.read_schema(shard).names
    if lacking := [name for name in columns if name not in names]:
        raise ValueError(f"{short(shard)} lacks the column {lacking[0]}: it has {', '.join(names)}")


def _read(shard: Path, *columns: str) -> pa.Table:
    _check(shard, *columns)
    with _parquet(shard):
        return pq.read_table(shard, columns=[*columns])


@contextmanager
def _parquet(shard: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{short(shard)} cannot be read as Parquet: delete it, and write it again"
        ) from error


def _manifest(folder: Path) -> dict | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _begin(target: Path, model: str, revision: str | None, shards: list[Path]) -> None:
    """Write down what the embeddings in a folder are made of, or hold it against what is there."""
    weights = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    made_of = {"model": model, "revision": revision, "sha256": [sha256(file) for file in weights]}
    known = _manifest(target)
    if known and {key: known.get(key) for key in made_of} != made_of:
        raise ValueError(
            f"{short(target)} holds embeddings of another model, {known.get('model')}: name "
            "another folder, or delete this one"
        )
    if known is None and target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{short(target)} holds other files: name a new folder")
    target.mkdir(parents=True, exist_ok=True)
    content = made_of | {"shards": [shard.name for shard in shards]}
    scratch = target / f".{MANIFEST}.part"
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, target / MANIFEST)


def _start(ray, address: str | None, workers: int) -> None:
    """Reach a cluster, or start Ray here with a processor more than workers: it hands out."""
    slots = {"num_cpus": max(torch.get_num_threads(), workers) + 1, "include_dashboard": False}
    for last in (False, True):  # a busy machine may need longer than the 30 s that Ray allows
        try:
            ray.init(
                address=address or "local",  # else RAY_ADDRESS would be looked at
                log_to_driver=False,
                logging_level="CRITICAL",
                **({} if address else slots),
            )
            return
        except Exception as error:  # Ray has no class of its own for these
            ray.shutdown()
            if last or address:
                where = f"Ray is not reached at {address}" if address else "Ray does not start"
                raise RuntimeError(f"{where}: {error}") from error


def _share(ray, workers: int) -> dict[str, int]:
    """What Ray reserves for a worker; on a processor it is also how many threads it computes with.

    Raises:
        ValueError: there is not enough for all.
    """
    has = ray.cluster_resources()
    gpus, processors = int(has.get("GPU", 0)), int(has.get("CPU", 0)) - 1
    most = gpus or processors
    if not 1 <= workers <= most:
        raise ValueError(
            f"workers is {workers}: it must lie between 1 and {most}, the "
            + ("GPUs that Ray has" if gpus else "processors that Ray has, without one")
        )
    return {"num_gpus": 1} if gpus else {"num_cpus": processors // workers}


@contextmanager
def _silent() -> Iterator[None]:
    """Hide harmless errors that Ray's own processes write past Python about each worker's start.
    They stand in ``/tmp/ray/session_latest/logs`` as well.
    """
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.encode_many", description=__doc__)
    parser.add_argument("model", help="a folder, an id on the Hub, or pypi:PACKAGE")
    parser.add_argument("input", type=Path, help="a folder of Parquet shards with id and text")
    parser.add_argument("output", type=Path, help="the folder for the embeddings")
    parser.add_argument("--workers", type=int, default=1, help="shards encoded at a time")
    parser.add_argument(
        "--address",
        help="of a Ray cluster, such as auto on one of its machines; its machines have to share "
        "the model, unless it is an id on the Hub, and both folders. Default: Ray starts here",
    )
    parser.add_argument("--revision", help="of a model on the Hub: a commit, branch or tag")
    parser.add_argument("--batch-size", type=int, default=32, help="passages in a forward pass")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        count = encode_many(
            given.model,
            given.input,
            given.output,
            given.workers,
            given.address,
            given.revision,
            given.batch_size,
        )
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    print(
        f"{count:,} passages encoded, {given.workers} workers, {seconds:.1f} s with Ray's start; "
        f"embeddings are in {short(given.output.resolve())}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
