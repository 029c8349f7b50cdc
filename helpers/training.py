"""The plumbing of a training run: its arguments, its progress, and going on where it stopped."""

import hashlib
import itertools
import json
import math
import shutil
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.util import is_dist_initialized
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

from helpers.artifacts import Run
from helpers.config import Experiment
from helpers.metrics import evaluate_truncated
from helpers.models import (
    column_prompts,
    encode_passages,
    encode_queries,
    load_model,
    with_rotation,
    without_dropout,
)
from helpers.seeding import seed_everything


class WholePasses(DefaultBatchSampler):
    """Batches without equal texts, of all epochs one after the other, known before training.

    An equal text in a batch would be a false negative. ``NO_DUPLICATES`` of sentence-transformers
    leaves such rows for a later batch, so rows with few distinct texts need more batches than its
    length says, and the trainer stops at that length. A pass ends where only one row at a time
    could be trained: alone in its batch, it is told apart from nothing but its own negatives.

    Args:
        dataset: Training rows.
        batch_size: Rows in a batch at most.
        drop_last: Leave out batches that are not full, which loses rows with frequent texts.
        epochs: Passes over the rows.
        generator: Draws the order; a new one where there is none.
        seed: Of the first pass; each further one has the next.
        options: Handed on to sentence-transformers.
    """

    def __init__(
        self, dataset, batch_size, drop_last, *, epochs=1, generator=None, seed=0, **options
    ):
        options |= {"generator": generator or torch.Generator(), "seed": seed}
        super().__init__(dataset, batch_size, drop_last, **options)
        # With drop_last it would draw rows a second time, to reach the length that it says.
        batches = NoDuplicatesBatchSampler(dataset, batch_size, drop_last=False, **options)
        self.batches = []
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            for batch in itertools.takewhile(lambda batch: len(batch) > 1, batches):
                if len(batch) == batch_size or not drop_last:
                    self.batches.append(batch)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def checkpoint_folder(run: Run, name: str, recipe: Experiment) -> Path:
    """Where the training of ``name`` keeps its checkpoints: one place a configuration, and another
    for several processes, which take fewer steps.
    """
    several = [torch.distributed.get_world_size()] if is_dist_initialized() else []
    numbers = json.dumps([recipe.up_to("training"), run.precision, *several], sort_keys=True)
    digest = hashlib.sha256(numbers.encode()).hexdigest()[:8]
    return run.folder / "checkpoints" / f"{name}-{digest}"


def training_arguments(
    run: Run,
    name: str,
    recipe: Experiment,
    rows: Dataset,
    prompts: dict[str, str] | None = None,
) -> SentenceTransformerTrainingArguments:
    """A recipe's numbers, as the trainer of sentence-transformers takes them.

    Several processes get an equal share of each batch, so the batches are those of one process.
    A last batch that is not full is left out then, as it need not have equal shares.

    Args:
        run: Says where checkpoints are kept, on which device to train and in which precision.
        name: The model that is trained; its checkpoints are kept under this name.
        recipe: The numbers.
        rows: Training rows; how many steps they take depends on which texts are equal.
        prompts: What is put before the texts of each column.

    Raises:
        ValueError: the rows make no batch.
    """
    many = is_dist_initialized()
    sampler = partial(WholePasses, epochs=recipe.epochs)
    batches = sampler(rows, recipe.batch_size, drop_last=many, seed=recipe.seed)
    steps = len(batches)
    if not steps:
        what = "a full batch of" if many else "two"
        raise ValueError(
            f"the {len(rows):,} training rows do not hold {what} rows whose texts all differ"
            + (f": set batch_size, {recipe.batch_size}, lower" if many else "")
        )
    # Several processes split a batch among them, several GPUs of one process multiply it.
    devices = 1 if many or run.machine.device == "cpu" else torch.cuda.device_count()
    left = len(rows) - sum(map(len, batches)) // recipe.epochs
    if left > len(rows) / 100:
        print(
            f"{left:,} of {len(rows):,} rows are not trained on: their texts are in so many rows "
            "that no batch of different texts is left for them"
        )
    return SentenceTransformerTrainingArguments(
        output_dir=str(checkpoint_folder(run, name, recipe)),
        max_steps=steps,  # the sampler goes through the rows as often as the recipe says
        per_device_train_batch_size=recipe.batch_size // devices,
        accelerator_config={"split_batches": many},
        dataloader_drop_last=many,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup,  # below 1, it is a share of all steps
        prompts=prompts or None,
        batch_sampler=sampler,
        seed=recipe.seed,
        bf16=run.precision == "bf16",
        fp16=run.precision == "fp16",
        use_cpu=run.machine.device == "cpu",
        eval_strategy="steps",
        eval_steps=math.ceil(steps / recipe.evals),
        save_steps=math.ceil(steps / recipe.evals),
        save_total_limit=2,
        logging_steps=max(1, steps // 40),
        disable_tqdm=True,  # `Progress` below shows one bar, and lines that stay
        report_to="none",
        dataloader_pin_memory=run.machine.device == "cuda",
    )


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest whole checkpoint in a folder, to go on from; None where there is none.

    The trainer writes a checkpoint's ``trainer_state.json`` last, so a checkpoint without a
    readable one was cut short: it is deleted.
    """
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            shutil.rmtree(checkpoint)
        else:
            return str(checkpoint)
    return None


class DevScores(SentenceEvaluator):
    """MRR@k of the dev queries at ``small_dim`` and at full size, while the model trains.

    To stay quick it searches only the passages that answer dev queries, and as many others:
    its numbers are higher than those of a search through the whole corpus.

    Args:
        queries: Dev queries.
        qrels: For each, the ids of its relevant passages.
        passages: The corpus; an id is a place in it.
        run: Says how to encode, and ``k``.
    """

    def __init__(self, queries: list[str], qrels: list[set[int]], passages: list[str], run: Run):
        super().__init__()
        relevant = sorted(set().union(*qrels))
        known = set(relevant)
        others = [i for i in range(len(passages)) if i not in known][: len(relevant)]
        place = {passage: row for row, passage in enumerate(relevant + others)}
        self.queries, self.run = queries, run
        self.passages = [passages[i] for i in relevant + others]
        self.qrels = [{place[passage] for passage in wanted} for wanted in qrels]
        self.dims = sorted({run.experiment.small_dim, run.experiment.full_dim})

    def __call__(
        self, model: SentenceTransformer, output_path=None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        k = self.run.experiment.k
        table = evaluate_truncated(
            encode_queries(model, self.queries, self.run),
            encode_passages(model, self.passages, self.run),
            self.qrels,
            self.dims,
            k,
        )
        scores = table.set_index("dim")[f"mrr@{k}"]
        return {f"dev_mrr@{k}_at_{dim}": float(score) for dim, score in scores.items()}


class Progress(TrainerCallback):
    """A bar while the trainer runs, a line for each dev score, and the seconds of training.

    The seconds are those of the training steps alone, without dev scores and checkpoints. They
    are kept in the trainer's log, so that they go on after an interruption.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = max((row.get("seconds", 0) for row in state.log_history), default=0)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False)
        if state.global_step:
            print(f"going on from step {state.global_step} of {state.max_steps}")

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the GPU is still at work on the step
        self.seconds += time.perf_counter() - self.begin
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        state.log_history[-1]["seconds"] = self.seconds
        scores = {key.rsplit("_", 1)[1]: v for key, v in (logs or {}).items() if "dev_mrr" in key}
        if scores:
            shown = "  ".join(f"{value:.3f} at {dim}" for dim, value in scores.items())
            print(
                f"step {state.global_step:>4} of {state.max_steps}   dev MRR  {shown}"
                f"   {self.seconds:.0f} s of training"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def start_model(run: Run, recipe: Experiment, rotation: torch.Tensor) -> SentenceTransformer:
    """The model that a recipe's training starts from: the base model, without dropout.

    Args:
        run: Names the base model.
        recipe: Says whether it is rotated.
        rotation: ``(full_dim, full_dim)``, from the base model's training passages.
    """
    model = without_dropout(load_model(run))
    return with_rotation(model, rotation) if recipe.rotate else model


def make_loss(model: SentenceTransformer, recipe: Experiment, **options) -> MatryoshkaLoss:
    """The ranking loss, once for each of the recipe's prefix lengths, added up.

    Args:
        model: The model that is trained.
        recipe: ``scale`` and ``matryoshka_dims``. Full size alone makes this the plain ranking
            loss.
        options: Handed on to ``MultipleNegativesRankingLoss``.
    """
    return MatryoshkaLoss(
        model,
        MultipleNegativesRankingLoss(model, scale=recipe.scale, **options),
        matryoshka_dims=recipe.matryoshka_dims,
    )


def train(
    run: Run,
    name: str,
    model: SentenceTransformer,
    rows: Dataset,
    dev_scores: SentenceEvaluator,
    recipe: Experiment,
    loss: torch.nn.Module | None = None,
) -> None:
    """Train a model and save it in the run as ``name``, with the log of its training.

    Interrupted, the same call goes on from the last checkpoint, and ends with the same weights.
    Of several processes the first one prints and saves.

    Args:
        run: Where the model is saved.
        name: What it is called there.
        model: The untrained one.
        rows: Columns ``query``, ``positive`` and, where there are some, ``negative``.
        dev_scores: What is scored while it trains.
        recipe: The numbers of the training.
        loss: In place of :func:`make_loss`'s.
    """
    seed_everything(recipe.seed)
    # The same prompts as in evaluation and search.
    prompts = column_prompts(model, rows.column_names)
    arguments = training_arguments(run, name, recipe, rows, prompts)
    first = arguments.process_index == 0
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss or make_loss(model, recipe),
        evaluator=dev_scores,
        callbacks=[Progress()] if first else [],
    )
    trainer.remove_callback(PrinterCallback)  # `Progress` says it in fewer words
    with arguments.main_process_first():  # it deletes broken ones
        checkpoint = last_checkpoint(arguments.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()  # each process writes to the checkpoints
    if first:
        run.save(f"{name}_log.csv", training_log(trainer), stage="training")
        run.save(name, model, stage="training")
        shutil.rmtree(arguments.output_dir)


def is_trained(run: Run, name: str) -> bool:
    """Whether the run holds the model ``name`` and the log of its training."""
    return run.has(name, "training") and run.has(f"{name}_log.csv", "training")


def training_log(trainer) -> pd.DataFrame:
    """What the trainer logged: ``step``, ``seconds``, ``loss`` and the dev scores by step."""
    log = pd.DataFrame(trainer.state.log_history)
    names = {name: name.removeprefix("eval_") for name in log if "dev_mrr" in name}
    columns = ["step", "seconds", "loss", *names]
    return log.reindex(columns=columns).dropna(thresh=3).rename(columns=names)
