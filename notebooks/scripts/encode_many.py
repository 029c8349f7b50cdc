"""Encode shards of passages with Ray Data, on one machine or a cluster.

python encode_many.py MODEL INPUT_FOLDER OUTPUT_FOLDER [--workers N]

Each input shard is a .parquet file with the columns `id` and `text`. It becomes an output shard of
the same name with `id` and `embedding`, of unit length and full size: cut it to a prefix when you
build an index. After an interruption the same command encodes the shards that are still missing.
Ray starts on this machine, or joins the cluster that RAY_ADDRESS names; its machines have to share
both folders and the model.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Ray's own processes write long logs; errors of a shard are printed below.
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "ERROR"}


class Encoder:
    """A worker: loads the model once, then encodes one shard after another."""

    def __init__(self, name: str, output: Path):
        self.name, self.output, self.model = name, output, None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        shard = Path(batch["shard"][0])
        try:
            return {"shard": [shard.name], "passages": [self.encode(shard)], "error": [""]}
        except Exception as error:  # raised here, it would come with a page of Ray's own stack
            message = f"{type(error).__name__}: {error}"
            return {"shard": [shard.name], "passages": [0], "error": [message]}

    def encode(self, shard: Path) -> int:
        """Write the embeddings of one shard, and return how many there are."""
        if self.model is None:
            from sentence_transformers import SentenceTransformer

            self.model = SentenceTransformer(self.name, model_kwargs={"dtype": "float32"})
        table = pq.read_table(shard, columns=["id", "text"])
        embeddings = self.model.encode_document(
            table["text"].to_pylist(), normalize_embeddings=True, show_progress_bar=False
        )
        numbers = np.asarray(embeddings, dtype=np.float32).ravel()  # of an empty shard, none
        dim = self.model.get_embedding_dimension()
        column = pa.FixedSizeListArray.from_arrays(numbers, dim)
        unfinished = self.output / f"{shard.name}.part"
        pq.write_table(pa.table({"id": table["id"], "embedding": column}), unfinished)
        os.replace(unfinished, self.output / shard.name)  # a shard is whole, or isn't there
        return len(table)


def claim(output: Path, model: str) -> None:
    """Note in `model.txt` what encodes a folder's shards, and refuse those of another model."""
    weights = sorted(Path(model).rglob("*.safetensors"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in weights]
    name, note = "-".join(hashes) or model, output / "model.txt"
    before = note.read_text(encoding="utf-8") if note.is_file() else "an unknown model"
    if before != name and any(output.glob("*.parquet")):
        sys.exit(f"{output} has shards of {before}, expected {name}: choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(name, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    os.environ |= QUIET  # Ray reads them when it is imported
    try:
        import ray.data
    except ImportError as error:
        sys.exit(f'{error}: pip install "ray[data]"')
    shards, output = sorted(args.input.resolve().glob("*.parquet")), args.output.resolve()
    if not shards:
        sys.exit(f"expected a folder of .parquet files, got {args.input}")
    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    claim(output, model)
    missing = [{"shard": str(shard)} for shard in shards if not (output / shard.name).is_file()]
    print(f"{len(missing)} of {len(shards)} shards to encode", flush=True)
    if not missing:
        return

    # "local", or it joins whatever other Ray runs on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if any(machine.get("GPU") for machine in machines) else "CPU"
    each = [int(machine.get(kind, 0)) for machine in machines]
    if not 1 <= args.workers <= sum(each):
        sys.exit(f"expected 1 to {sum(each)} workers, a {kind} for each, got {args.workers}")
    cores = min(max(each), sum(each) // args.workers)  # Ray gives a worker as many threads
    rows = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
        Encoder,
        fn_constructor_args=(model, output),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        **({"num_gpus": 1} if kind == "GPU" else {"num_cpus": cores}),
    )
    for row in rows.iter_rows():
        if row["error"]:
            sys.exit(f"{row['shard']}: {row['error']}")
        print(f"{row['shard']}: {row['passages']:,} passages", flush=True)


if __name__ == "__main__":
    main()
