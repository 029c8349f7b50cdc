"""Compares training recipes with one another: ``python -m helpers.study wikipedia``.

The named recipes (the tuned one and its controls) are trained with several seeds and scored on
dev, on test and on a second collection that nothing is trained on; ideas are scored on dev alone,
and trained once where nothing else is said. Every training starts from the data of a run. Its
scores are kept in ``results/trainings/``: commit them, and the command goes on from there in any
clone. At the end it writes ``results/recipes*``, ``results/bits.csv`` and the README's section.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import ArtifactError, Run, find_run, short, versions
from helpers.bits import ROUNDINGS, score_bits
from helpers.collection import RetrievalData, load_data
from helpers.config import ROOT, Experiment
from helpers.controls import bm25_ranking, svd_rotation
from helpers.metrics import evaluate_ranking, evaluate_truncated, prefix
from helpers.mining import mine
from helpers.models import encode_passages, encode_queries, load_model
from helpers.plots import markdown_table, metric_name, plot_intervals, use_style
from helpers.publish import replace_section
from helpers.recipes import aims, recipe
from helpers.significance import mean_interval, paired_difference
from helpers.training import DevScores, is_trained, make_loss, start_model, train
from helpers.transfer import VERSION, operations_collection

SEEDS = (0, 1, 2)
NAMED = ("tuned", "mnrl", "matryoshka", "matryoshka_short", "only_64")
TRANSFER = ("base", "mnrl", "tuned", "averaged")  # what is scored on the second collection
ROUNDED = ("base", "mnrl", "mnrl_rotated", "tuned")  # what is scored with fewer bits
SHARE = 0.7  # of the tuned model's weights in the averaged one, the rest is the starting model's
COLUMNS = ["recipe", "seed", "split", "dim"]
TRANSFERRED = "recipes_transfer"
START, END = "<!-- recipes: start -->", "<!-- recipes: end -->"


class Distilled(torch.nn.Module):
    """Self-distillation: each prefix learns half from the right answers, half from full size.

    The second half is the KL divergence from the softmax over the batch at full size, detached, to
    that of the prefix. ``MatryoshkaLoss`` has no term across dimensions, so it is written out here.

    Args:
        model: The model that is trained.
        experiment: ``matryoshka_dims`` and ``scale``.
    """

    def __init__(self, model: SentenceTransformer, experiment: Experiment):
        super().__init__()
        self.model, self.experiment = model, experiment

    def forward(self, sentence_features, labels=None) -> torch.Tensor:
        queries, *columns = (self.model(f)["sentence_embedding"] for f in sentence_features)
        passages = torch.cat(columns)
        right = torch.arange(len(queries), device=queries.device)
        full, loss = None, 0.0
        experiment = self.experiment
        for dim in sorted(experiment.matryoshka_dims, reverse=True):
            similarity = experiment.scale * prefix(queries, dim) @ prefix(passages, dim).T
            value = torch.nn.functional.cross_entropy(similarity, right)
            if full is None:
                full = similarity.detach().log_softmax(dim=1)
            else:
                ours = similarity.log_softmax(dim=1)
                apart = torch.nn.functional.kl_div(
                    ours, full, log_target=True, reduction="batchmean"
                )
                value = (value + apart) / 2
            loss = loss + value
        return loss


def weighted(model: SentenceTransformer, experiment: Experiment) -> MatryoshkaLoss:
    """The Matryoshka loss in which prefixes of ``small_dim`` and below count twice."""
    dims = experiment.matryoshka_dims
    return MatryoshkaLoss(
        model,
        MultipleNegativesRankingLoss(model, scale=experiment.scale),
        matryoshka_dims=dims,
        matryoshka_weights=[2 if dim <= experiment.small_dim else 1 for dim in dims],
    )


def averaged(start: SentenceTransformer, tuned: SentenceTransformer) -> SentenceTransformer:
    """``tuned`` with the mean of its weights and those it started from: ``SHARE`` of its own.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    with torch.no_grad():
        for before, after in zip(start.parameters(), tuned.parameters(), strict=True):
            after.copy_(torch.lerp(before, after, SHARE))
    return tuned


@dataclasses.dataclass(frozen=True)
class Idea:
    """Something that was tried, as a change of a recipe.

    Attributes:
        changes: The fields of the experiment that it sets.
        of: The recipe that it changes.
        loss: Makes the loss from the model and the experiment.
        seeds: What it is trained with.
    """

    changes: dict = dataclasses.field(default_factory=dict)
    of: str = "tuned"
    loss: Callable[[SentenceTransformer, Experiment], torch.nn.Module] = make_loss
    seeds: tuple[int, ...] = (0,)

    def describe(self) -> dict:
        """The idea as JSON can hold it."""
        made_by, options = getattr(self.loss, "func", self.loss), getattr(self.loss, "keywords", {})
        found = {"of": self.of, "changes": self.changes, "loss": made_by.__name__, **options}
        return json.loads(json.dumps(found))


def ideas(experiment: Experiment) -> dict[str, Idea]:
    """Everything that was tried besides the named recipes, by name."""
    harder = partial(make_loss, hardness_mode="all_negatives", hardness_strength=5.0)
    both_ways = partial(
        make_loss, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    return {
        # With all seeds, as it was once the recipe.
        "weighted": Idea(loss=weighted, seeds=SEEDS),
        # One change of the tuned recipe each.
        "no_negatives": Idea({"num_negatives": 0}),
        "distilled": Idea(loss=Distilled),
        "hardness": Idea(loss=harder),
        "symmetric": Idea(loss=both_ways),
        "larger_scale": Idea({"scale": 1.5 * experiment.scale}),
        "twice_the_rate": Idea({"learning_rate": 2 * experiment.learning_rate}),
        "half_the_batch": Idea({"batch_size": experiment.batch_size // 2}),
        "twice_the_batch": Idea({"batch_size": 2 * experiment.batch_size}),
        "two_epochs": Idea({"epochs": 2 * experiment.epochs}),
        "no_warmup": Idea({"warmup": 0.0}),
        "longer_warmup": Idea({"warmup": 0.3}),
        # What the rotation does without Matryoshka: the plain loss, on the rotated start.
        "mnrl_rotated_first": Idea({"rotate": True}, of="mnrl"),
        # More budget, with the control that had as much.
        "three_negatives": Idea({"num_negatives": 3}),
        "mnrl_three_negatives": Idea({"num_negatives": 3}, of="mnrl"),
    }


class Scores(NamedTuple):
    """What a training reached.

    Attributes:
        queries: Query by query, columns as :meth:`Study.score` gives them, with ``seed``,
            ``num_rows`` and ``machine``.
        bits: With fewer bits a dimension, with ``seed``; empty where that is not scored.
    """

    queries: pd.DataFrame
    bits: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Kept:
    """The scores of a finished training in ``results/trainings/``.

    Attributes:
        name: Of its files, with the preset's folder.
        about: What the scores depend on, :meth:`Study.about`; those that were made with something
            else are not there.
    """

    name: str
    about: dict

    @property
    def path(self) -> Path:
        return ROOT / "results" / "trainings" / f"{self.name}.parquet"

    def there(self) -> bool:
        """Whether the scores are there."""
        if not self.path.is_file():
            return False
        return json.loads(pq.read_schema(self.path).metadata.get(b"about", b"{}")) == self.about

    def write(self, queries: pd.DataFrame, bits: pd.DataFrame) -> None:
        """Keep both tables in one file, the smaller one in its metadata."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pandas(queries, preserve_index=False)
        more = {"about": json.dumps(self.about), "bits": bits.round(6).to_json(orient="records")}
        table = table.replace_schema_metadata({**table.schema.metadata, **more})
        scratch = self.path.with_suffix(".part")
        pq.write_table(table, scratch, compression="zstd")
        os.replace(scratch, self.path)

    def read(self, seed) -> Scores:
        """The scores, with the seed that they were trained with."""
        table = pq.read_table(self.path)
        bits = pd.DataFrame(json.loads(table.schema.metadata[b"bits"]))
        return Scores(table.to_pandas().assign(seed=seed), bits.assign(seed=seed))


@dataclasses.dataclass(frozen=True)
class Study:
    """A run's data, and what every recipe is trained and scored with.

    Attributes:
        run: The run whose data is used; everything of the study is kept in its folder.
        data: Corpus, queries and qrels.
        second: The second collection.
        rows: Training rows.
        rotation: ``(full_dim, full_dim)``, of the base model's training passages.
        dev_scores: Scored at the end of each training.
    """

    run: Run
    data: RetrievalData
    second: RetrievalData
    rows: Dataset
    rotation: torch.Tensor
    dev_scores: DevScores

    @classmethod
    def of(cls, run: Run) -> "Study":
        """Read what notebooks 2 and 3 made.

        Raises:
            ArtifactError: it is missing, damaged, or made with another configuration.
            ValueError: the second collection is not there.
        """
        data = load_data(run)
        stored = run.load("base.safetensors", "data", "03_baseline")
        return cls(
            run,
            data,
            operations_collection(run.experiment),
            Dataset.from_pandas(
                run.load("triplets.parquet", "data", "02_data"), preserve_index=False
            ),
            svd_rotation(stored["passages"][data.train_passages()]),
            DevScores(*data.split("dev"), data.passages["text"].tolist(), run),
        )

    def dims(self) -> list[int]:
        """The run's prefix lengths, and half and a quarter of ``small_dim``."""
        experiment = self.run.experiment
        small = experiment.small_dim
        return sorted({small // 4, small // 2, *experiment.dims})

    def score(
        self, name: str, model: SentenceTransformer, run: Run, on_test: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Score a model, and its rotated twin where its recipe has no rotation.

        Returns:
            A pair. First, query by query: columns ``recipe``, ``split``, ``dim``, ``query`` and the
            metrics; the split is "dev", "test" or "second", the second collection. Then, for what
            is named in ``ROUNDED``, :func:`helpers.bits.score_bits`' columns with ``recipe`` and
            ``split``.
        """
        k = run.experiment.k
        passages = encode_passages(model, self.data.passages["text"], run)
        rotation = None
        if not run.experiment.rotate or name == "base":
            rotation = svd_rotation(passages[self.data.train_passages()])
        parts = []
        for split in ("dev", "test") if on_test else ("dev",):
            queries, qrels = self.data.split(split)
            parts.append((split, encode_queries(model, queries, run), passages, qrels))
        if name in TRANSFER:
            queries, qrels = self.second.split("test")
            corpus = encode_passages(model, self.second.passages["text"], run)
            parts.append(("second", encode_queries(model, queries, run), corpus, qrels))
        tables, rounded = [], []
        for split, queries, corpus, qrels in parts:
            turns = {name: None} if rotation is None else {name: None, f"{name}_rotated": rotation}
            for label, turn in turns.items():
                q, p = (queries, corpus) if turn is None else (queries @ turn, corpus @ turn)
                _, each = evaluate_truncated(q, p, qrels, self.dims(), k, per_query=True)
                tables.append(each.assign(recipe=label, split=split))
                if label in ROUNDED and split != "second":
                    found = score_bits(q, p, qrels, self.dims(), k)
                    rounded.append(found.assign(recipe=label, split=split))
        bits = pd.concat(rounded, ignore_index=True) if rounded else pd.DataFrame()
        return pd.concat(tables, ignore_index=True), bits

    def score_bm25(self) -> pd.DataFrame:
        """BM25 in the form of :meth:`score`; its ``dim`` is missing."""
        k = self.run.experiment.k
        tables = []
        for split, data, part in (
            ("dev", self.data, "dev"),
            ("test", self.data, "test"),
            ("second", self.second, "test"),
        ):
            queries, qrels = data.split(part)
            passages = data.passages["text"].tolist()
            ranking = bm25_ranking(queries, passages, k)
            _, each = evaluate_ranking(ranking, qrels, len(passages), k, per_query=True)
            tables.append(each.assign(recipe="bm25", split=split))
        return pd.concat(tables, ignore_index=True)

    def untrained(self) -> "Scores":
        """The scores of what needs no training: BM25, the base model, and that one rotated."""
        experiment = self.run.experiment
        place = Kept(f"{experiment.name}/base", self.about("base", experiment, {}, on_test=True))
        if not place.there():
            base, rounded = self.score("base", load_model(self.run), self.run, on_test=True)
            found, machine = pd.concat([self.score_bm25(), base]), str(self.run.machine)
            place.write(found.assign(num_rows=0, machine=machine), rounded)
        return place.read(pd.NA)

    def trained(self, name: str, idea: Idea, seed: int, on_test: bool) -> "Scores":
        """The scores of one recipe, trained with one seed; those of an earlier time, if any."""
        experiment = dataclasses.replace(
            recipe(idea.of, self.run.experiment), **idea.changes, seed=seed, evals=1
        )
        run = dataclasses.replace(self.run, experiment=experiment)
        about = self.about(name, experiment, idea.describe(), on_test)
        place = Kept(f"{experiment.name}/{name}-{seed}", about)
        if not place.there():
            label = f"study/{name}-{seed}"
            rows = self.rows_of(run)
            if not is_trained(run, label):
                model = start_model(run, experiment, self.rotation)
                dev_scores, loss = self.dev_scores, idea.loss(model, experiment)
                train(run, label, model, rows, dev_scores, experiment, loss)
            model = load_model(run, run.path(label))
            found, rounded = self.score(name, model, run, on_test)
            if name == "tuned":
                mean = averaged(start_model(run, experiment, self.rotation), model)
                found = pd.concat([found, self.score("averaged", mean, run, on_test)[0]])
            found = found.assign(num_rows=len(rows), machine=str(run.machine))
            place.write(found, rounded)
            shutil.rmtree(run.path(label))  # its scores are all that is needed
        return place.read(seed)

    def about(self, name: str, experiment: Experiment, idea: dict, on_test: bool) -> dict:
        """What scores depend on besides code and machine, as JSON can hold it."""
        data = self.data
        texts = [*data.passages["text"], *data.queries["text"], *data.queries["split"]]
        found = {
            "configuration": experiment.up_to("evaluation"),
            "idea": idea,
            "on_test": on_test,
            "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "second": VERSION if name in TRANSFER else None,
            "roundings": ROUNDINGS if {name, f"{name}_rotated"} & {*ROUNDED} else None,
            "averaged": SHARE if name == "tuned" else None,
        }
        return json.loads(json.dumps(found))

    def rows_of(self, run: Run) -> Dataset:
        """The training rows with as many negatives as the recipe asks for."""
        wanted = run.experiment.num_negatives
        if wanted == self.run.experiment.num_negatives:
            return self.rows
        frame = self.data.training_rows()[["query", "positive"]]
        pairs = Dataset.from_pandas(frame, preserve_index=False)
        return mine(pairs, load_model(self.run), run) if wanted else pairs


def jobs(experiment: Experiment) -> list[tuple[str, Idea, int, bool]]:
    """What is trained, in order: name, what it changes, seed, and whether test is scored."""
    named = [(name, Idea(of=name, seeds=SEEDS), True) for name in NAMED]
    tried = [(name, idea, False) for name, idea in ideas(experiment).items()]
    return [(name, idea, seed, test) for name, idea, test in named + tried for seed in idea.seeds]


def summary(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """Means over queries: the columns of ``results/recipes.csv``."""
    metrics = [f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"]
    keys = [*COLUMNS, "num_rows", "machine"]
    means = scores.groupby(keys, sort=False, dropna=False)[metrics].mean().reset_index()
    return means[[*COLUMNS, *metrics, "num_rows", "machine"]]


def intervals(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Test scores, each query's averaged over the seeds, with their bootstrap intervals."""
    rows = []
    test = scores[scores["split"] == "test"]
    for (name, dim), part in test.groupby(["recipe", "dim"], sort=False, dropna=False):
        each = part.groupby("query")[metric].mean()
        found = mean_interval(each)
        rows.append({"recipe": name, "dim": dim, **found._asdict()})
    return pd.DataFrame(rows)


def differences(scores: pd.DataFrame, experiment: Experiment, metric: str) -> pd.DataFrame:
    """Paired differences on test, seed by seed: ``after`` minus ``before``."""
    small, full = experiment.small_dim, experiment.full_dim
    pairs = [
        (before, dim, "tuned", dim)
        for dim in (small // 2, small, full)
        for before in ("mnrl", "mnrl_rotated", "matryoshka", "matryoshka_rotated", "only_64")
        if dim != full or not before.endswith("_rotated")  # at full size it changes nothing
    ]
    pairs += [("base", full, "tuned", small // 2), ("base", small, "tuned", small // 4)]
    test = scores[scores["split"] == "test"]
    at = {
        (name, dim, None if pd.isna(seed) else seed): part.sort_values("query")[metric].to_numpy()
        for (name, dim, seed), part in test.groupby(["recipe", "dim", "seed"], dropna=False)
    }
    rows = []
    for before, before_dim, after, after_dim in pairs:
        for seed in SEEDS:
            old = at[before, before_dim, None if before == "base" else seed]
            found = paired_difference(old, at[after, after_dim, seed], seed)
            names = {"before": before, "before_dim": before_dim}
            names |= {"after": after, "after_dim": after_dim}
            rows.append({**names, "seed": seed, **found._asdict()})
    return pd.DataFrame(rows)


def readme_recipes(tables: dict[str, pd.DataFrame], about: dict) -> str:
    """The README's section on recipes, as Markdown.

    Args:
        tables: ``recipes``, ``recipes_differences`` and ``recipes_transfer``.
        about: What ``results/recipes.json`` holds.
    """
    scores, compared = tables["recipes"], tables["recipes_differences"]
    metric, ndcg = (next(c for c in scores if c.startswith(m)) for m in ("mrr@", "ndcg@"))
    means = []
    for table, score in ((scores[scores["split"] == "test"], metric), (tables[TRANSFERRED], ndcg)):
        mean = table.groupby(["recipe", "dim"], dropna=False)[score].mean().reset_index()
        means.append(markdown_table(mean.rename(columns={"recipe": "model"}), score))
    lines = [
        START,
        f"![{metric_name(metric)} against dimensions kept, with intervals](results/recipes.png)",
        "",
        means[0],
        "",
        "What the tuned recipe was meant to reach, and what it did:",
        "",
        "| aim | found | reached |",
        "| --- | --- | --- |",
    ]
    for row in aims(scores, compared, about["small_dim"], about["full_dim"]):
        lines.append(f"| {row['aim']} | {row['found']} | {'yes' if row['reached'] else 'no'} |")
    second = about["second"]
    lines += [
        "",
        f"Out of domain, on a collection that nothing was fine-tuned on ({second['queries']:,} "
        f"titles of usage examples as queries, {second['passages']:,} descriptions of AWS "
        "operations as passages):",
        "",
        means[1],
        "",
        f"Test queries, averages of the training seeds {', '.join(map(str, about['seeds']))}; bars "
        "are 95% intervals over queries. Bold is the highest of a column, not a lead that can be "
        f"trusted. By `{about['command']}`, finished {about['finished']}, on: {about['machine']}.",
        END,
    ]
    return "\n".join(lines)


def bits_table(rounded: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What a byte buys: ``results/bits.csv``.

    Several ways of rounding to the same bits are compared on dev, averaged over models, sizes and
    seeds; on test the best one alone is shown. For one bit FAISS's RaBitQ is shown as well.

    Args:
        rounded: Of all models, :attr:`Scores.bits`.
        metric: What chooses.
    """
    table = rounded.rename(columns={"recipe": "model"})
    dev = table[(table["split"] == "dev") & (table["rounding"] != "rabitq")]
    means = dev.groupby(["bits", "rounding"])[metric].mean()
    best = set(means.groupby("bits").idxmax())
    chosen = pd.MultiIndex.from_frame(table[["bits", "rounding"]]).isin(best)
    shown = (table["split"] == "dev") | (table["rounding"] == "rabitq") | chosen
    columns = ["model", "seed", "split", "dim", "bits", "rounding", "bytes"]
    return table.loc[shown, [*columns, *(c for c in table if "@" in c)]]


def write(study: Study, scores: pd.DataFrame, rounded: pd.DataFrame, root: Path) -> list[Path]:
    """Write a finished study to ``results/`` and the README; returns what was written.

    Raises:
        ValueError: the README has no place for it.
    """
    experiment = study.run.experiment
    metric = f"mrr@{experiment.k}"
    means = summary(scores, experiment.k)
    second = means["split"] == "second"
    tables = {
        "recipes": means[~second],
        "recipes_intervals": intervals(scores, metric),
        "recipes_differences": differences(scores, experiment, metric),
        TRANSFERRED: means[second].drop(columns="split"),
        "bits": bits_table(rounded, metric),
    }
    tables = {
        name: table.astype({c: "Int64" for c in ("dim", "seed") if c in table}).round(6)
        for name, table in tables.items()
    }
    about = {
        "command": f"python -m helpers.study {study.run.choice}",
        "finished": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": " and ".join(sorted(scores["machine"].unique())),
        "preset": experiment.name,
        "run": study.run.id,
        "small_dim": experiment.small_dim,
        "full_dim": experiment.full_dim,
        "seeds": list(SEEDS),
        "num_queries": {name: len(study.data.split(name)[0]) for name in ("dev", "test")},
        "recipes": {
            name: idea.describe() | {"seeds": list(idea.seeds)}
            for name, idea, *_ in jobs(experiment)
        },
        "second": {
            "version": VERSION,
            "queries": len(study.second.queries),
            "passages": len(study.second.passages),
        },
        "versions": versions(),
    }
    readme = root / "README.md"
    section = readme_recipes(tables, about)
    text = replace_section(readme.read_text(encoding="utf-8"), section, START, END)
    folder = root / "results"
    folder.mkdir(exist_ok=True)
    use_style()
    figure = plot_intervals(tables["recipes_intervals"], metric)
    figure.savefig(folder / "recipes.png", dpi=160, bbox_inches="tight")
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "recipes.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    readme.write_text(text, encoding="utf-8")
    written = [f"{name}.csv" for name in tables] + ["recipes.png", "recipes.json"]
    return [*(folder / name for name in written), readme]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.study", description=__doc__)
    parser.add_argument("preset", help="a run with notebooks 1 to 3 done: a preset, or a TOML file")
    parser.add_argument(
        "--part",
        type=int,
        nargs=2,
        metavar=("I", "N"),
        help="train only every N-th recipe from the I-th, counted from 0, and write no tables: for "
        "several processes at once; run it without this when all are done",
    )
    options = parser.parse_args(arguments)
    try:
        disable_progress_bar()
        study = Study.of(find_run(options.preset, "04_training"))
        first, step = options.part or (0, 1)
        if not 0 <= first < step:
            parser.error(f"--part is {first} {step}: I is a number from 0 to N - 1")
        found = [study.untrained()] if first == 0 else []
        todo = [*enumerate(jobs(study.run.experiment), start=1)]
        for number, (name, idea, seed, on_test) in todo[first::step]:
            begin = time.monotonic()
            print(f"{number:>2} of {len(todo)}  {name}, seed {seed}", flush=True)
            found.append(study.trained(name, idea, seed, on_test))
            seconds = time.monotonic() - begin
            print(_line(found[-1].queries, study.run.experiment, seconds), flush=True)
        if options.part:
            return 0
        scores = pd.concat([each.queries for each in found], ignore_index=True)
        rounded = pd.concat([each.bits for each in found if len(each.bits)], ignore_index=True)
        for path in write(study, scores, rounded, ROOT):
            print(short(path))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ArtifactError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _line(found: pd.DataFrame, experiment: Experiment, seconds: float) -> str:
    """The dev scores of one training, on a line for each way of cutting."""
    dev = found[found["split"] == "dev"]
    wide = dev.pivot_table(index="recipe", columns="dim", values=f"mrr@{experiment.k}", sort=False)
    lines = [
        f"    {name}: dev " + "  ".join(f"{value:.3f} at {dim}" for dim, value in row.items())
        for name, row in wide.iterrows()
    ]
    return "\n".join([*lines, f"    {seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
