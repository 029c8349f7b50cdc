"""What the trainer needs besides the recipe: batches, dev scores, progress, and resuming."""

import hashlib
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
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

from helpers.config import Experiment
from helpers.metrics import Split, evaluate_truncated
from helpers.models import encode_passages, encode_queries
from helpers.runs import Run


class PlannedBatches(DefaultBatchSampler):
    """Batches without equal texts, for all epochs, known before training starts.

    An equal text in a batch would be a false negative, so ``NO_DUPLICATES`` of
    sentence-transformers leaves such rows for a later batch. That can take more batches than its
    length says, and the trainer stops at that length; here the length is right. A batch of one
    row is left out: its query has no other passages to be told from.

    Batches that aren't full are trained on as well, whatever ``drop_last`` says. ``seed`` is of
    the first pass; each further pass has the next one.
    """

    def __init__(
        self, dataset, batch_size, drop_last, *, epochs=1, generator=None, seed=0, **options
    ):
        options |= {"generator": generator or torch.Generator(), "seed": seed}
        super().__init__(dataset, batch_size, drop_last, **options)
        batches = NoDuplicatesBatchSampler(dataset, batch_size, drop_last=False, **options)
        self.batches = []
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            self.batches += [batch for batch in batches if len(batch) > 1]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def plan_batches(rows: Dataset, recipe: Experiment) -> tuple[partial, int]:
    """Return a sampler for the trainer, and how many steps it takes for all of a recipe's epochs.

    Raises ValueError if no two rows can share a batch.
    """
    sampler = partial(PlannedBatches, epochs=recipe.epochs)
    batches = sampler(rows, recipe.batch_size, drop_last=False, seed=recipe.seed)
    if not len(batches):
        raise ValueError(f"the {len(rows):,} training rows don't hold two whose texts all differ")
    left_out = len(rows) - sum(map(len, batches)) // recipe.epochs
    if left_out > len(rows) / 100:
        print(
            f"{left_out:,} of {len(rows):,} rows aren't trained on: each was left alone in its "
            "batch, with no other passages to be told from"
        )
    return sampler, len(batches)


def trainer_defaults(run: Run, name: str, recipe: Experiment, steps: int) -> dict:
    """Return the trainer's arguments that teach nothing: where, on what device, when to log.

    Each model, recipe and number format has a folder of checkpoints of its own.
    """
    settings = json.dumps([recipe.up_to("training"), run.precision], sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    often = math.ceil(steps / recipe.evals)
    return {
        "output_dir": str(run.path("checkpoints") / f"{name}-{digest}"),
        "bf16": run.precision == "bf16",
        "fp16": run.precision == "fp16",
        "use_cpu": run.machine.device == "cpu",
        "dataloader_pin_memory": run.machine.device == "cuda",
        "eval_strategy": "steps",
        "eval_steps": often,
        "save_steps": often,
        "save_total_limit": 2,
        "logging_steps": max(1, steps // 40),
        "disable_tqdm": True,  # `Progress` shows one bar and some lines
        "report_to": "none",
    }


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest whole checkpoint in a folder, or None.

    The trainer writes ``trainer_state.json`` last. A checkpoint without a readable one was cut
    short, and is deleted.
    """
    checkpoints = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(checkpoints):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            shutil.rmtree(checkpoint)
        else:
            return str(checkpoint)
    return None


class DevScores(SentenceEvaluator):
    """Scores dev queries at ``small_dim`` and at full size while the model trains, by MRR@10.

    To be quick it searches only the passages that answer dev queries. If they're fewer than 1,000,
    others make up that number. So its scores are higher than those of a search through the whole
    corpus. The experiment's ``k``, which may change after training, plays no part. A query's own
    text is left out of its ranking.
    """

    def __init__(self, dev: Split, passages: list[str], run: Run):
        super().__init__()
        relevant = sorted(set().union(*dev.qrels))
        others = sorted(set(range(len(passages))).difference(relevant))
        self.ids = relevant + others[: max(0, 1000 - len(relevant))]
        self.passages, self.run = [passages[i] for i in self.ids], run
        self.dev = dev.within(self.ids)
        self.dims = sorted({run.experiment.small_dim, run.experiment.full_dim})

    def __call__(
        self, model: SentenceTransformer, output_path=None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        return self.score(
            encode_queries(model, self.dev.queries, self.run),
            encode_passages(model, self.passages, self.run),
        )

    def score(self, queries: torch.Tensor, passages: torch.Tensor) -> dict[str, float]:
        """Score embeddings of the queries, and of the passages that ``ids`` names."""
        table = evaluate_truncated(queries, passages, self.dev, self.dims, k=10)
        scores = table.set_index("dim")["mrr@10"]
        return {f"dev_mrr@10_at_{dim}": float(score) for dim, score in scores.items()}


class Progress(TrainerCallback):
    """Shows a bar, and a line for each dev score; counts the seconds of training.

    Those are of the training steps only, without dev scores and checkpoints. The trainer's log
    keeps them, so the count goes on after an interruption.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = max((row.get("seconds", 0) for row in state.log_history), default=0)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False)
        if state.global_step:
            print(f"resuming at step {state.global_step} of {state.max_steps}")

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the GPU would still be at work
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


def train(trainer: SentenceTransformerTrainer, run: Run, name: str) -> None:
    """Run the trainer, from its last checkpoint if there is one, and save model and log.

    They're called ``name`` in the run: "tuned" or "mnrl". The checkpoints are deleted.
    """
    trainer.remove_callback(PrinterCallback)  # `Progress` says it in fewer words
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    log = pd.DataFrame(trainer.state.log_history)
    scores = [column for column in log if "dev_mrr" in column]
    scores.sort(key=lambda column: int(column.rsplit("_", 1)[1]))  # resuming changes the order
    log = log.reindex(columns=["step", "seconds", "loss", *scores]).dropna(thresh=3)
    run.save(f"{name}_log.csv", log.rename(columns=lambda column: column.removeprefix("eval_")))
    run.save(name, trainer.model)
    shutil.rmtree(trainer.args.output_dir)


def is_trained(run: Run, name: str) -> bool:
    """Whether the run holds a trained model and the log of its training."""
    return run.has(name) and run.has(f"{name}_log.csv")
