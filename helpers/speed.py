"""Times training, encoding and evaluation side by side: ``python -m helpers.speed wikipedia``.

Every variant is timed in the same process on the same rows, in turn, round after round, and the
medians are compared: a busy machine slows all of them alike. Writes ``results/speed.csv`` and the
README's table of it.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    InformationRetrievalEvaluator,
    SequentialEvaluator,
)
from sentence_transformers.util import batch_to_device
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import ArtifactError, Run, find_run, short, versions
from helpers.collection import load_data
from helpers.config import ROOT
from helpers.device import DTYPES, autocast, device
from helpers.metrics import evaluate_truncated
from helpers.models import encode_passages, encode_queries, load_model, without_dropout
from helpers.publish import replace_section
from helpers.seeding import seed_everything
from helpers.training import make_loss

ROUNDS = 5
# Tokens that all-MiniLM-L6-v2 reads unless told otherwise.
DEFAULT_LENGTH = 256
ARTICLE, SERIES = "small batches of 16, as articles print it", "and no dropout: this series"
COLUMNS = ["job", "variant", "value", "unit", "ratio_to_stock", "machine"]
START, END = "<!-- speed: start -->", "<!-- speed: end -->"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: What stands in the table.
        batch_size: Training rows in a step.
        max_seq_length: Tokens after which a text is cut.
        precision: Of the matrix products.
        attention: Implementation of attention in transformers.
        dropout: Whether the model's dropout is on.
    """

    name: str
    batch_size: int
    max_seq_length: int
    precision: str
    attention: str
    dropout: bool


def training_variants(run: Run) -> list[Variant]:
    """From the recipe that tutorials print to that of this series, one change at a time."""
    experiment = run.experiment
    batch, length = experiment.batch_size, experiment.max_seq_length
    attention = "eager" if run.machine.device == "cpu" else "sdpa"
    return [
        Variant(ARTICLE, 16, DEFAULT_LENGTH, "float32", "sdpa", True),
        Variant("stock", batch, DEFAULT_LENGTH, "float32", "sdpa", True),
        Variant(f"texts cut at {length} tokens", batch, length, "float32", "sdpa", True),
        Variant(f"and {run.precision}", batch, length, run.precision, "sdpa", True),
        Variant(f"and {attention} attention", batch, length, run.precision, attention, True),
        Variant(SERIES, batch, length, run.precision, attention, False),
    ]


class TrainingStep:
    """Takes training rows through forward, backward and the optimizer, batch by batch.

    Args:
        variant: How to train.
        run: The model and its recipe.
        one_forward: Whether positives and negatives go through the model together; the loss is
            the same.
    """

    def __init__(self, variant: Variant, run: Run, one_forward: bool = False):
        self.variant, self.run, self.one_forward = variant, run, one_forward
        self.model = load_model(run)
        self.model.max_seq_length = variant.max_seq_length
        self.model[0].auto_model.set_attn_implementation(variant.attention)
        if not variant.dropout:
            without_dropout(self.model)
        self.model.train()
        self.loss = make_loss(self.model, run.experiment)
        rate = run.experiment.learning_rate
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)

    def batches(self, rows: pd.DataFrame) -> Iterator[list[dict]]:
        """The tokenised columns of each batch."""
        for start in range(0, len(rows), self.variant.batch_size):
            part = rows.iloc[start : start + self.variant.batch_size]
            texts = [part[name].tolist() for name in part]
            if self.one_forward:
                texts = [texts[0], list(itertools.chain(*texts[1:]))]
            yield [self.model.preprocess(column) for column in texts]

    def learn(self, columns: list[dict]) -> None:
        """One step on one batch."""
        columns = [batch_to_device(dict(column), self.model.device) for column in columns]
        with autocast(self.run.machine, self.variant.precision):
            value = self.loss(columns, labels=None)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()

    def __call__(self, rows: pd.DataFrame) -> None:
        for columns in self.batches(rows):
            self.learn(columns)


def medians(actions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each action: the median of several rounds in which each has its turn."""
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


def rates(job: str, seconds: dict[str, float], amount: float, unit: str, stock: str) -> list[dict]:
    """Rows of the table: amounts a second, and how many times the stock variant's."""
    return [
        {
            "job": job,
            "variant": name,
            "value": amount / value,
            "unit": unit,
            "ratio_to_stock": seconds[stock] / value,
        }
        for name, value in seconds.items()
    ]


def matrix_rate(precision: str, size: int = 2048) -> float:
    """Operations a second of a large matrix product on this machine's processor or GPU."""
    dtype = DTYPES.get(precision, torch.float32)
    matrix = torch.ones(size, size, dtype=dtype, device=device())
    seconds = medians({"product": lambda: matrix @ matrix}, rounds=3 * ROUNDS)["product"]
    return 2 * size**3 / seconds


def share(job: str, action: Callable[[], object], seconds: float, run: Run) -> dict:
    """A row of the table: the share of the matrix rate that an action reaches, in percent.

    Operations are counted by torch; those of padding are among them.
    """
    with FlopCounterMode(display=False) as counter:
        action()
    reached = counter.get_total_flops() / seconds / matrix_rate(run.precision)
    name = f"share of the {run.precision} matrix rate"
    return {"job": job, "variant": name, "value": 100 * reached, "unit": "%"}


def time_training(run: Run) -> list[dict]:
    """Training rows a second, with Matryoshka and one hard negative a row."""
    frame = run.load("triplets.parquet", "data", "02_data")
    rows = frame.sample(run.experiment.batch_size, random_state=run.experiment.seed)
    actions = {}
    for variant in training_variants(run):
        actions[variant.name] = partial(TrainingStep(variant, run), rows)
    seconds = medians(actions)
    ours = variant.name
    table = rates("training", seconds, len(rows), "rows/s", "stock")
    return [*table, share("training", actions[ours], seconds[ours], run)]


def time_batching(run: Run, num_batches: int = 4) -> list[dict]:
    """Training rows a second when batches are put together otherwise."""
    frame = run.load("triplets.parquet", "data", "02_data")
    size = run.experiment.batch_size
    rows = frame.sample(min(num_batches * size, len(frame)), random_state=run.experiment.seed)
    ordered = rows.loc[rows["positive"].str.len().sort_values().index]
    variant = training_variants(run)[-1]
    step, together = (TrainingStep(variant, run, one_forward=flag) for flag in (False, True))
    tokenised = list(step.batches(rows))
    stock = "as the trainer does it"
    actions = {
        stock: lambda: step(rows),
        "tokenised ahead, by a loader that costs nothing": lambda: [*map(step.learn, tokenised)],
        "texts of like length in a batch": lambda: step(ordered),
        "positives and negatives in one forward": lambda: together(rows),
    }
    return rates("batching", medians(actions), len(rows), "rows/s", stock)


def time_encoding(run: Run, num_passages: int = 512) -> list[dict]:
    """Passages a second, against ``encode`` as it is when nothing is said."""
    passages = load_data(run).passages["text"].head(num_passages).tolist()
    model, stock = load_model(run), load_model(run)
    stock.max_seq_length = DEFAULT_LENGTH
    stock[0].auto_model.set_attn_implementation("sdpa")
    cut = load_model(run)
    cut[0].auto_model.set_attn_implementation("sdpa")
    actions = {
        "stock": lambda: stock.encode(passages, show_progress_bar=False),
        f"texts cut at {run.experiment.max_seq_length} tokens": lambda: cut.encode(
            passages, show_progress_bar=False
        ),
        f"and {run.precision}: this series": lambda: encode_passages(model, passages, run),
    }
    seconds = medians(actions)
    ours = [*actions][-1]
    table = rates("encoding", seconds, len(passages), "passages/s", "stock")
    return [*table, share("encoding", actions[ours], seconds[ours], run)]


def time_evaluation(run: Run, num_queries: int = 200, num_passages: int = 600) -> list[dict]:
    """Evaluations a minute, each of all dimensions, in float32 both ways.

    Raises:
        AssertionError: the two ways disagree by more than 1e-6.
    """
    data = load_data(run)
    experiment = dataclasses.replace(run.experiment, precision="float32")
    run = dataclasses.replace(run, experiment=experiment)
    queries, qrels = (part[:num_queries] for part in data.split("dev"))
    wanted = sorted(set().union(*qrels))
    others = [i for i in range(len(data.passages)) if i not in set(wanted)]
    chosen = (wanted + others)[: max(num_passages, len(wanted))]
    place = {passage: row for row, passage in enumerate(chosen)}
    passages = data.passages["text"].iloc[chosen].tolist()
    qrels = [{place[passage] for passage in relevant} for relevant in qrels]
    model: SentenceTransformer = load_model(run)
    k, dims = experiment.k, experiment.dims
    stock = SequentialEvaluator(
        [
            InformationRetrievalEvaluator(
                queries={str(i): text for i, text in enumerate(queries)},
                corpus={str(i): text for i, text in enumerate(passages)},
                relevant_docs={str(i): set(map(str, found)) for i, found in enumerate(qrels)},
                truncate_dim=dim,
                name=str(dim),
                mrr_at_k=[k],
                batch_size=experiment.encode_batch_size,
                write_csv=False,
            )
            for dim in dims
        ]
    )
    found: dict[str, object] = {}

    def once() -> None:
        embeddings = encode_queries(model, queries, run), encode_passages(model, passages, run)
        found["once"] = evaluate_truncated(*embeddings, qrels, dims, k)

    def again() -> None:
        found["again"] = stock(model)

    seconds = medians({"stock": again, "one encoding: this series": once})
    for dim, score in zip(dims, found["once"][f"mrr@{k}"], strict=True):
        assert abs(score - found["again"][f"{dim}_cosine_mrr@{k}"]) < 1e-6
    return rates(f"evaluating {len(dims)} sizes", seconds, 60, "a minute", "stock")


def readme_speed(table: pd.DataFrame) -> str:
    """The README's section of speed, as Markdown."""
    lines = [START, "| job | variant | rate | times stock |", "| --- | --- | ---: | ---: |"]
    lines += [
        f"| {row.job} | {row.variant} | {row.value:.3g} {row.unit} | "
        + ("|" if pd.isna(row.ratio_to_stock) else f"{row.ratio_to_stock:.2f} |")
        for row in table.itertuples()
    ]
    training = table[table["job"] == "training"].set_index("variant")["value"]
    gain = training[SERIES] / training[ARTICLE]
    lines += [
        "",
        f"Against the batches of 16 that articles print, training is {gain:.1f} times as fast. "
        "Where no variant is called stock, the first of its job counts as stock. Medians of "
        f"{ROUNDS}, by `python -m helpers.speed`, on: {table['machine'][0]}.",
    ]
    return "\n".join([*lines, END])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.speed", description=__doc__)
    parser.add_argument("preset", help="a run whose data is made: a preset, or a TOML file")
    options = parser.parse_args(arguments)
    try:
        run = find_run(options.preset, "01_setup")
        load_data(run)  # what is missing is said now, not after minutes of timing
        seed_everything(run.experiment.seed)
        disable_progress_bar()
        jobs = (time_training, time_batching, time_encoding, time_evaluation)
        rows = [row for job in jobs for row in job(run)]
    except (ArtifactError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    machine = f"{run.machine}, torch {versions()['torch']}"
    table = pd.DataFrame(rows).assign(machine=machine)[COLUMNS].round(3)
    target = ROOT / "results" / "speed.csv"
    table.to_csv(target, index=False)
    readme: Path = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replace_section(text, readme_speed(table), START, END), encoding="utf-8")
    print(table.drop(columns="machine").to_string(index=False))
    print(f"\n{short(target)} and the README are renewed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
