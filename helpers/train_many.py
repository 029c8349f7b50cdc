"""Trains the tuned model on several GPUs or processes: ``torchrun --nproc_per_node N -m
helpers.train_many PRESET``.

The run must hold what notebooks 2 and 3 make. The model takes the place of ``tuned`` in it, and
``python -m helpers.run PRESET --from 04_training`` goes on from there. The processes, all on one
machine, train together what notebook 4 trains in one: ``batch_size`` rows in a step, an equal
share in each process, and the passages of all of them are every query's candidates. Interrupted,
the same command goes on from the last checkpoint. On a processor, put ``OMP_NUM_THREADS=C`` before
it, the cores of one process.
"""

import argparse
import gc
import hashlib
import os
import sys
import time
import warnings

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import ArtifactError, Run, find_run, short
from helpers.collection import load_data
from helpers.controls import svd_rotation
from helpers.training import DevScores, make_loss, start_model, train

# What torch says to those who wrote accelerate and sentence-transformers.
DEPRECATED = r"`broadcast_buffers`|torch\.distributed\.nn\.functional\.all_gather"


def check(run: Run, processes: int, num_rows: int) -> None:
    """Whether a run can be trained by that many processes.

    Raises:
        ValueError: there are fewer GPUs than processes, the batch has no equal shares, or the
            training rows do not fill it.
    """
    batch_size = run.experiment.batch_size
    if run.machine.device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"{processes} processes need as many GPUs; this machine has {torch.cuda.device_count()}"
        )
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, for all {processes} processes: it must be a multiple "
            f"of {processes}"
        )
    if processes > 1 and num_rows < batch_size:
        raise ValueError(
            f"{num_rows} training rows do not fill one batch: batch_size is {batch_size}"
        )


def weights_hash(model: torch.nn.Module) -> str:
    """Twelve hexadecimal digits that stand for a model's weights, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def train_tuned(run: Run) -> None:
    """Train a run's tuned model in this process and those that torchrun started with it.

    Raises:
        ArtifactError: what notebook 2 or 3 makes is missing, damaged, or made with another
            configuration.
        ValueError: as for :func:`check`.
    """
    frame = run.load("triplets.parquet", stage="data", made_by="02_data")
    data = load_data(run)
    stored = run.load("base.safetensors", stage="data", made_by="03_baseline")
    check(run, int(os.environ.get("WORLD_SIZE", 1)), len(frame))

    state = PartialState(cpu=run.machine.device == "cpu")  # picks this process's GPU
    first, many = state.is_main_process, state.num_processes > 1
    if first:
        backend = f", backend {state.backend}" if state.backend else ""
        print(f"{state.num_processes} process{'es' * many}{backend}", flush=True)
        if not many:
            print("for several: torchrun --nproc_per_node N -m helpers.train_many", run.choice)
    rotation = svd_rotation(stored["passages"][data.train_passages()])
    model = start_model(run, run.experiment, rotation)
    dev_scores = DevScores(*data.split("dev"), data.passages["text"].tolist(), run)
    rows = Dataset.from_pandas(frame, preserve_index=False)
    loss = make_loss(model, run.experiment, gather_across_devices=many)
    train(run, "tuned", model, rows, dev_scores, run.experiment, loss)

    hashes = [weights_hash(model)]
    if many:
        hashes = [None] * state.num_processes
        torch.distributed.all_gather_object(hashes, weights_hash(model))
    if first:
        for rank, found in enumerate(hashes):
            print(f"rank {rank}  weights {found}")
        print(short(run.path("tuned")))
    state.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc_per_node N -m helpers.train_many", description=__doc__
    )
    parser.add_argument("preset", help="a run with notebooks 1 to 3 done: a preset, or a TOML file")
    options = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", 0))
    try:
        disable_progress_bar()
        warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
        train_tuned(find_run(options.preset, "04_training"))
        # The trainer, a cycle of references, holds the process group. Its threads have to end
        # before Python does: one that gloo still works in then aborts the process.
        gc.collect()
    except KeyboardInterrupt:
        if not rank:
            print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ArtifactError, ValueError, FileNotFoundError) as error:
        if rank:
            time.sleep(60)  # rank 0 says it, and torchrun then ends the others
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
