"""Compares training recipes with one another: ``python -m helpers.study wikipedia``.

The named recipes (the tuned one and its controls) are trained with several seeds and scored on
dev, on test and on a second collection that nothing is trained on; ideas are trained once and
scored on dev alone. Every training starts from the data of a run and is kept in it, so the command
goes on after the last finished training. At the end it writes ``results/recipes*`` and the README's
section on them.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from helpers.artifacts import ArtifactError, Run, find_run, short, versions
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
NAMED = ("mnrl", "only_64", "matryoshka", "tuned")
TRANSFER = ("base", "mnrl", "tuned")  # what is scored on the second collection
COLUMNS = ["recipe", "seed", "split", "dim"]
TRANSFERRED = "recipes_transfer"
START, END = "<!-- recipes: start -->", "<!-- recipes: end -->"


class Distilled(torch.nn.Module):
    """Self-distillation: each prefix learns half from the right answers, half from full size.

    The second half is the KL divergence from the softmax over the batch at full size, detached, to
    that of the prefix. ``MatryoshkaLoss`` has no term across dimensions, so it is written out here.

    Args:
        model: The model that is trained.
        experiment: ``matryoshka_dims``, ``matryoshka_weights`` and ``scale``.
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
        pairs = zip(experiment.matryoshka_dims, experiment.matryoshka_weights, strict=True)
        for dim, weight in sorted(pairs, reverse=True):
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
            loss = loss + weight * value
        return loss


@dataclasses.dataclass(frozen=True)
class Idea:
    """Something that was tried, as a change of a recipe.

    Attributes:
        changes: The fields of the experiment that it sets.
        of: The recipe that it changes.
        loss: Makes the loss from the model and the experiment.
    """

    changes: dict = dataclasses.field(default_factory=dict)
    of: str = "tuned"
    loss: Callable[[SentenceTransformer, Experiment], torch.nn.Module] = make_loss

    def describe(self) -> dict:
        """The idea as JSON can hold it."""
        made_by, options = getattr(self.loss, "func", self.loss), getattr(self.loss, "keywords", {})
        found = {"of": self.of, "changes": self.changes, "loss": made_by.__name__, **options}
        return json.loads(json.dumps(found))


def ideas(experiment: Experiment) -> dict[str, Idea]:
    """Everything that was tried besides the named recipes, by name."""
    dims = experiment.matryoshka_dims
    harder = partial(make_loss, hardness_mode="all_negatives", hardness_strength=5.0)
    both_ways = partial(
        make_loss, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    return {
        # The steps from the standard recipe to the tuned one; the last step is the rotation.
        "matryoshka_short": Idea(
            {"matryoshka_dims": dims, "matryoshka_weights": (1,) * len(dims)}, of="matryoshka"
        ),
        "matryoshka_weighted": Idea({"rotate": False}),
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
        # The standard recipe in small batches of longer texts, in float32.
        "article": Idea(
            {"batch_size": 16, "max_seq_length": 256, "precision": "float32"}, of="matryoshka"
        ),
    }


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

    def score(self, name: str, model: SentenceTransformer, run: Run, on_test: bool) -> pd.DataFrame:
        """Score a model query by query, and rotated once more where its recipe has no rotation.

        Returns:
            Columns ``recipe``, ``split``, ``dim``, ``query`` and the metrics. The split is
            "dev", "test" or "second", the second collection; for an idea it is dev alone.
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
        tables = []
        for split, queries, corpus, qrels in parts:
            turns = {name: None} if rotation is None else {name: None, f"{name}_rotated": rotation}
            for label, turn in turns.items():
                q, p = (queries, corpus) if turn is None else (queries @ turn, corpus @ turn)
                _, each = evaluate_truncated(q, p, qrels, self.dims(), k, per_query=True)
                tables.append(each.assign(recipe=label, split=split))
        return pd.concat(tables, ignore_index=True)

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

    def untrained(self) -> pd.DataFrame:
        """The scores of what needs no training: BM25, the base model, and that one rotated."""
        if not self.run.has("study/free.parquet", "evaluation"):
            base = self.score("base", load_model(self.run), self.run, on_test=True)
            found = pd.concat([self.score_bm25(), base], ignore_index=True)
            self.run.save("study/free.parquet", found, "evaluation")
        found = self.run.load("study/free.parquet", "evaluation", "03_baseline")
        return found.assign(seed=pd.NA, train_seconds=0.0, num_rows=0)

    def trained(self, name: str, idea: Idea, seed: int, on_test: bool) -> pd.DataFrame:
        """The scores of one recipe, trained with one seed; those of an earlier time, if any."""
        experiment = dataclasses.replace(
            recipe(idea.of, self.run.experiment), **idea.changes, seed=seed, evals=1
        )
        run = dataclasses.replace(self.run, experiment=experiment)
        label = f"study/{name}-{seed}"
        if not run.has(f"{label}.parquet", "evaluation"):
            rows = self.rows_of(run)
            if not is_trained(run, label):
                model = start_model(run, experiment, self.rotation)
                dev_scores, loss = self.dev_scores, idea.loss(model, experiment)
                train(run, label, model, rows, dev_scores, experiment, loss)
            found = self.score(name, load_model(run, run.path(label)), run, on_test)
            seconds = pd.read_csv(run.path(f"{label}_log.csv"))["seconds"].max()
            found = found.assign(train_seconds=seconds, num_rows=len(rows))
            run.save(f"{label}.parquet", found, "evaluation")
        shutil.rmtree(run.path(label), ignore_errors=True)  # its scores are all that is needed
        return run.load(f"{label}.parquet", "evaluation", "04_training").assign(seed=seed)

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
    named = [(name, Idea(of=name), seed, True) for seed in SEEDS for name in NAMED]
    return named + [(name, idea, 0, False) for name, idea in ideas(experiment).items()]


def summary(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """Means over queries: the columns of ``results/recipes.csv``."""
    metrics = [f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"]
    keys = [*COLUMNS, "train_seconds", "num_rows"]
    means = scores.groupby(keys, sort=False, dropna=False)[metrics].mean().reset_index()
    return means[[*COLUMNS, *metrics, "train_seconds", "num_rows"]]


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


def write(study: Study, scores: pd.DataFrame, root: Path) -> list[Path]:
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
    }
    tables = {
        name: table.astype({c: "Int64" for c in ("dim", "seed") if c in table}).round(6)
        for name, table in tables.items()
    }
    about = {
        "command": f"python -m helpers.study {study.run.choice}",
        "finished": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": str(study.run.machine),
        "preset": experiment.name,
        "run": study.run.id,
        "small_dim": experiment.small_dim,
        "full_dim": experiment.full_dim,
        "seeds": list(SEEDS),
        "num_queries": {name: len(study.data.split(name)[0]) for name in ("dev", "test")},
        "recipes": {name: idea.describe() for name, idea, *_ in jobs(experiment)},
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
    options = parser.parse_args(arguments)
    try:
        disable_progress_bar()
        study = Study.of(find_run(options.preset, "04_training"))
        scores = [study.untrained()]
        todo = jobs(study.run.experiment)
        for number, (name, idea, seed, on_test) in enumerate(todo, start=1):
            begin = time.monotonic()
            print(f"{number:>2} of {len(todo)}  {name}, seed {seed}", flush=True)
            found = study.trained(name, idea, seed, on_test)
            scores.append(found)
            print(_line(found, study.run.experiment, time.monotonic() - begin), flush=True)
        for path in write(study, pd.concat(scores, ignore_index=True), ROOT):
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
