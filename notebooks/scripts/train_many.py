"""Fine-tune with Matryoshka on a file of triplets, in one process or many.

torchrun --standalone --nproc_per_node 2 train_many.py MODEL TRIPLETS.parquet OUTPUT_FOLDER

The processes share each batch of 64 rows, or of --batch-size: N of them train the same batches as
one, and every query is told from the passages of the whole batch. Each process takes a GPU; without
a GPU they run on the CPU.
"""

import argparse
import gc
import os
import sys
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import (
    BatchSamplers,
    SentenceTransformerTrainingArguments,
)
from transformers.utils.logging import disable_progress_bar


def train(model_name: str, rows: Dataset, output: str, batch_size: int, processes: int) -> None:
    """Train a model together with the other processes; the first one saves it."""
    args = SentenceTransformerTrainingArguments(
        output_dir=f"{output}-checkpoints",
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        accelerator_config={"split_batches": True},  # so that is the size for all processes
        dataloader_drop_last=True,  # a batch that isn't full has no equal shares
        learning_rate=5e-5,
        warmup_steps=0.1,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    try:
        model = SentenceTransformer(model_name, model_kwargs={"dtype": "float32"})
    except (OSError, ValueError) as error:
        sys.exit(f"can't load the model {model_name}: {str(error).splitlines()[0]}")
    kinds = {name: "query" if name == "query" else "document" for name in rows.column_names}
    prompts = {name: text for name, kind in kinds.items() if (text := model.prompts.get(kind))}
    args.prompts = prompts or None
    loss = losses.MultipleNegativesRankingLoss(model, gather_across_devices=processes > 1)
    full_dim = model.get_embedding_dimension()
    dims = [full_dim, *(dim for dim in (256, 128, 64, 32) if dim < full_dim)]
    loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=dims)
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss)
    trainer.train()
    if trainer.is_world_process_zero():
        model.save(output)
    trainer.accelerator.end_training()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("triplets", type=Path)
    parser.add_argument("output")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets both
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 0)), torch.cuda.device_count()
    if here > gpus > 0 or (gpus > 1 and not here):
        sys.exit(f"expected torchrun with at most {gpus} processes, one for each GPU, got {here}")
    if args.batch_size < 1 or args.batch_size % processes:
        sys.exit(f"expected a batch size that {processes} can share, got {args.batch_size}")
    if not args.triplets.is_file():
        sys.exit(f"expected a .parquet file of triplets, got {args.triplets}")
    rows = Dataset.from_parquet(str(args.triplets))
    if len(rows) < args.batch_size:
        sys.exit(f"expected {args.batch_size} rows, one batch, got {len(rows)}: lower --batch-size")
    disable_progress_bar()  # of loading and saving, in each process; the trainer's stays
    disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # what torch tells accelerate
    train(args.model, rows, args.output, args.batch_size, processes)
    gc.collect()  # frees the trainer, whose network threads have to end before Python does


if __name__ == "__main__":
    main()
