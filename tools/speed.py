"""Time training, encoding and evaluation side by side: ``python -m tools.speed wikipedia``.

All variants are timed in one process on the same rows. They take turns, round after round, and we
compare medians: a busy machine slows all of them alike. It writes ``results/speed.csv``.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers.sentence_transformer.evaluation import (
    InformationRetrievalEvaluator,
    SequentialEvaluator,
)
from sentence_transformers.util import batch_to_device

from helpers.collection import load_data
from helpers.config import ROOT
from helpers.device import autocast
from helpers.metrics import Split, evaluate_truncated
from helpers.models import encode_passages, encode_queries, load_model, without_dropout
from helpers.runs import Run, versions
from helpers.seeding import seed_everything
from tools import command
from tools.recipes import make_loss
from tools.report import write_report

ROUNDS = 5
# Tokens that all-MiniLM-L6-v2 reads unless told otherwise.
DEFAULT_LENGTH = 256
COLUMNS = ["job", "variant", "value", "unit", "ratio_to_stock"]


def training_variants(run: Run) -> dict[str, tuple]:
    """Go from the recipe that articles print to that of this series, one change at a time.

    Returns:
        By name, what :class:`TrainingStep` takes besides the run.
    """
    batch, length = run.experiment.batch_size, run.experiment.max_seq_length
    fast, attention = run.precision, "eager" if run.machine.device == "cpu" else "sdpa"
    return {
        "small batches of 16, as articles print it": (16, DEFAULT_LENGTH, "float32", "sdpa", True),
        "stock": (batch, DEFAULT_LENGTH, "float32", "sdpa", True),
        f"texts cut at {length} tokens": (batch, length, "float32", "sdpa", True),
        f"and {fast}": (batch, length, fast, "sdpa", True),
        f"and {attention} attention": (batch, length, fast, attention, True),
        "and no dropout: this series": (batch, length, fast, attention, False),
    }


class TrainingStep:
    """Takes training rows through forward, backward and the optimizer, batch by batch."""

    def __init__(
        self, run: Run, batch: int, length: int, precision: str, attention: str, dropout: bool
    ):
        self.run, self.batch, self.precision = run, batch, precision
        self.model = load_model(run)
        self.model.max_seq_length = length
        self.model[0].auto_model.set_attn_implementation(attention)
        if not dropout:
            without_dropout(self.model)
        self.model.train()
        self.loss = make_loss(self.model, run.experiment)
        rate = run.experiment.learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)

    def __call__(self, rows: pd.DataFrame) -> None:
        for start in range(0, len(rows), self.batch):
            part = rows.iloc[start : start + self.batch]
            columns = [
                batch_to_device(self.model.preprocess(part[name].tolist()), self.model.device)
                for name in part
            ]
            with autocast(self.run.machine, self.precision):
                value = self.loss(columns, labels=None)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()


def medians(actions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Time each action: the median seconds of several rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round sets things up
                times[name].append(time.perf_counter() - start)
        print(f"round {number} of {rounds}", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def rates(job: str, seconds: dict[str, float], amount: float, unit: str) -> list[tuple]:
    """Make rows of the table: amounts a second, and how many times the stock variant's."""
    stock = seconds["stock"]
    return [(job, name, amount / value, unit, stock / value) for name, value in seconds.items()]


def time_training(run: Run) -> list[tuple]:
    """Time training, in rows a second, with Matryoshka and one hard negative a row."""
    experiment, rows = run.experiment, run.load("triplets.parquet")
    rows = rows.sample(experiment.batch_size, random_state=experiment.seed)
    variants = training_variants(run).items()
    actions = {name: partial(TrainingStep(run, *how), rows) for name, how in variants}
    return rates("training", medians(actions), len(rows), "rows/s")


def time_encoding(run: Run, num_passages: int = 512) -> list[tuple]:
    """Time encoding, in passages a second, against ``encode`` with its defaults."""
    passages = load_data(run).passages["text"].head(num_passages).tolist()
    model, cut, stock = (load_model(run) for _ in range(3))
    for other in (cut, stock):
        other[0].auto_model.set_attn_implementation("sdpa")
    stock.max_seq_length = DEFAULT_LENGTH
    quietly = {"show_progress_bar": False}
    actions = {
        "stock": lambda: stock.encode(passages, **quietly),
        f"texts cut at {cut.max_seq_length} tokens": lambda: cut.encode(passages, **quietly),
        f"and {run.precision}: this series": lambda: encode_passages(model, passages, run),
    }
    return rates("encoding", medians(actions), len(passages), "passages/s")


def time_evaluation(run: Run, num_queries: int = 300) -> list[tuple]:
    """Time evaluations of all dimensions, in float32; assert that both ways agree to 1e-6."""
    data, experiment = load_data(run), run.experiment.replace(precision="float32")
    run = dataclasses.replace(run, experiment=experiment)
    dev = Split(*(part[:num_queries] for part in data.split("dev")))
    answers = sorted(set().union(*dev.qrels))
    ids = [*answers, *data.passages.index.difference(answers)[: len(answers)]]
    texts = data.passages["text"].loc[ids].tolist()
    asked, qrels, _ = dev.within(ids)  # the stock evaluator leaves nothing out
    model = load_model(run)
    k, dims = experiment.k, experiment.dims
    stock = SequentialEvaluator(
        [
            InformationRetrievalEvaluator(
                queries={str(i): text for i, text in enumerate(asked)},
                corpus={str(i): text for i, text in enumerate(texts)},
                relevant_docs={str(i): set(map(str, ids)) for i, ids in enumerate(qrels)},
                truncate_dim=dim,
                name=str(dim),
                mrr_at_k=[k],
                batch_size=experiment.encode_batch_size,
                write_csv=False,
            )
            for dim in dims
        ]
    )
    scores: dict[str, object] = {}

    def once() -> None:
        queries, passages = encode_queries(model, asked, run), encode_passages(model, texts, run)
        scores["once"] = evaluate_truncated(queries, passages, qrels, dims, k)

    def again() -> None:
        scores["again"] = stock(model)

    seconds = medians({"stock": again, "one encoding: this series": once})
    for dim, score in zip(dims, scores["once"][f"mrr@{k}"], strict=True):
        assert abs(score - scores["again"][f"{dim}_cosine_mrr@{k}"]) < 1e-6
    return rates(f"evaluating {len(dims)} sizes", seconds, 60, "a minute")


def time_all(run: Run) -> list[Path]:
    """Time the jobs on a run that has notebook 2 done, and write ``results/speed.csv``."""
    load_data(run)  # say now what is missing, not after minutes of timing
    seed_everything(run.experiment.seed)
    rows = [*time_training(run), *time_encoding(run), *time_evaluation(run)]
    machine = f"{run.machine}, torch {versions()['torch']}"
    path = ROOT / "results" / "speed.csv"
    table = pd.DataFrame(rows, columns=COLUMNS).assign(machine=machine)
    table.round(3).to_csv(path, index=False)
    return [path, write_report()]


if __name__ == "__main__":
    sys.exit(command(__doc__, time_all))
