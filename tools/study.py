"""Compare training recipes with one another: ``python -m tools.study wikipedia``.

The named recipes (the tuned one and its controls) are trained with several seeds, and scored on
dev, on test and on a second collection that nothing is trained on. Other ideas are scored on dev
only, most with one seed. Every training starts from the data of a run that has notebooks 1 to 3
done. Its scores are kept in ``results/trainings/``: commit them, and the command goes on from there
in any clone. At the end it writes ``results/recipes*`` and ``results/bits.csv``.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
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

from helpers.collection import RetrievalData, load_data
from helpers.compare import bm25_ranking, mean_interval, paired_difference, pca_rotation
from helpers.config import ROOT, Experiment
from helpers.metrics import Split, evaluate_ranking, evaluate_truncated, prefix
from helpers.models import encode_passages, encode_queries, load_model
from helpers.runs import Run, atomic_write, versions
from helpers.training import DevScores
from tools import command
from tools.bits import ROUNDINGS, score_bits
from tools.recipes import make_loss, mine, recipe_of, start_model, train_recipe
from tools.report import draw_scores, write_report
from tools.transfer import VERSION, operations_collection

SEEDS = (0, 1, 2)
NAMED = ("tuned", "mnrl", "matryoshka", "matryoshka_short", "only_64")
TRANSFER = ("base", "mnrl", "tuned", "averaged")  # what is scored on the second collection
ROUNDED = ("base", "mnrl", "mnrl_rotated", "tuned")  # what is scored with fewer bits
# Settings that mining, training and scoring read; the texts, which the others choose, are hashed.
READ = (
    *("model", "model_revision", "full_dim", "max_seq_length", "query_prompt", "document_prompt"),
    *("precision", "encode_batch_size", "num_negatives", "negative_margin", "negative_candidates"),
    *("small_dim", "matryoshka_dims", "rotate", "epochs", "batch_size", "learning_rate"),
    *("warmup", "scale", "seed", "eval_dims", "k"),
)
SHARE = 0.7  # of the tuned model's weights in the averaged one; the rest is the starting model's
Texts = tuple[Split, list[str]]  # queries with their qrels, and passages
DRAWN = ("base_rotated", "mnrl", "mnrl_rotated", "matryoshka", "tuned")  # in results/recipes.png


class Distilled(torch.nn.Module):
    """Distil full size into each prefix, which learns half of it from the right answers.

    The other half is the KL divergence from the softmax over the batch at full size, detached, to
    that of the prefix. ``MatryoshkaLoss`` has no term across dimensions, so we write it out here.
    """

    def __init__(self, model: SentenceTransformer, experiment: Experiment):
        super().__init__()
        self.model, self.experiment = model, experiment

    def forward(self, sentence_features, labels=None) -> torch.Tensor:
        queries, *columns = (self.model(f)["sentence_embedding"] for f in sentence_features)
        passages = torch.cat(columns)
        right = torch.arange(len(queries), device=queries.device)
        full, loss = None, 0.0
        for dim in sorted(self.experiment.matryoshka_dims, reverse=True):
            similarity = self.experiment.scale * prefix(queries, dim) @ prefix(passages, dim).T
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


def weighted(model: SentenceTransformer, experiment: Experiment) -> torch.nn.Module:
    """Make a Matryoshka loss in which prefixes of ``small_dim`` and below count twice."""
    weights = [2 if dim <= experiment.small_dim else 1 for dim in experiment.matryoshka_dims]
    return make_loss(model, experiment, weights)


def averaged(start: SentenceTransformer, tuned: SentenceTransformer) -> SentenceTransformer:
    """Average the weights of ``tuned``, in place, with those it started from.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    with torch.no_grad():
        for before, after in zip(start.parameters(), tuned.parameters(), strict=True):
            after.copy_(torch.lerp(before, after, SHARE))
    return tuned


@dataclasses.dataclass(frozen=True)
class Idea:
    """Something to try: ``changes`` of the settings of the recipe ``of``, or another loss."""

    changes: dict = dataclasses.field(default_factory=dict)
    of: str = "tuned"
    loss: Callable[[SentenceTransformer, Experiment], torch.nn.Module] = make_loss
    seeds: tuple[int, ...] = (0,)

    def describe(self) -> dict:
        """Return the idea in JSON's types."""
        made_by, options = getattr(self.loss, "func", self.loss), getattr(self.loss, "keywords", {})
        description = {"of": self.of, "changes": self.changes, "loss": made_by.__name__, **options}
        return json.loads(json.dumps(description))


def ideas(experiment: Experiment) -> dict[str, Idea]:
    """Return everything we try besides the named recipes, by name."""
    harder = partial(make_loss, hardness_mode="all_negatives", hardness_strength=5.0)
    both_ways = partial(
        make_loss, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    return {
        # With all seeds, as it was the recipe once.
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
    """What a training reached, query by query, and with fewer bits if it's in ``ROUNDED``.

    Both have the columns ``recipe`` and ``split``: "dev", "test" or "second".
    """

    queries: pd.DataFrame
    bits: pd.DataFrame


def read_kept(path: Path, about: dict) -> Scores | None:
    """Read the scores of an earlier training; None if there are none, or of another ``about``."""
    if not path.is_file():
        return None
    table = pq.read_table(path)
    if json.loads(table.schema.metadata.get(b"about", b"{}")) != about:
        return None
    return Scores(table.to_pandas(), pd.DataFrame(json.loads(table.schema.metadata[b"bits"])))


def keep(path: Path, about: dict, scores: Scores) -> None:
    """Write the scores of a training to one file, the smaller table into its metadata."""
    table = pa.Table.from_pandas(scores.queries, preserve_index=False)
    more = {"about": json.dumps(about), "bits": scores.bits.round(6).to_json(orient="records")}
    table = table.replace_schema_metadata({**table.schema.metadata, **more})
    with atomic_write(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def embed(
    name: str, model: SentenceTransformer, run: Run, texts: dict[str, Texts], train: list[int]
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor, Split]]:
    """Encode queries and their corpora, and rotate them too if the recipe has no rotation.

    The rotation is that of the passages ``train`` of the first corpus.

    Yields:
        The model's or its rotated twin's name, the name of the texts, the embeddings of queries
        and passages, and the queries.
    """
    corpora, rotation = {}, None
    for split, (asked, passages) in texts.items():
        if id(passages) not in corpora:  # dev and test share theirs
            corpora[id(passages)] = encode_passages(model, passages, run)
        corpus, queries = corpora[id(passages)], encode_queries(model, asked.queries, run)
        yield name, split, queries, corpus, asked
        if name == "base" or not run.experiment.rotate:
            rotation = pca_rotation(corpus[train]) if rotation is None else rotation
            yield f"{name}_rotated", split, queries @ rotation, corpus @ rotation, asked


@dataclasses.dataclass(frozen=True)
class Study:
    """A run's data, and what every recipe is trained and scored with.

    Trainings under way are kept in the run's folder. ``second`` is the second collection,
    ``rotation`` that of the base model's training passages.
    """

    run: Run
    data: RetrievalData
    second: RetrievalData
    rows: Dataset
    rotation: torch.Tensor
    dev_scores: DevScores

    @classmethod
    def of(cls, run: Run) -> "Study":
        """Read what notebooks 2 and 3 made."""
        data = load_data(run)
        base = run.load("base.safetensors")["passages"]
        return cls(
            run,
            data,
            operations_collection(run.experiment),
            Dataset.from_pandas(run.load("triplets.parquet"), preserve_index=False),
            pca_rotation(base[data.train_passages()]),
            DevScores(data.split("dev"), data.passages["text"].tolist(), run),
        )

    def dims(self) -> list[int]:
        """Return the run's prefix lengths, and half and a quarter of ``small_dim``."""
        small = self.run.experiment.small_dim
        return sorted({small // 4, small // 2, *self.run.experiment.dims})

    def texts(self, splits: Sequence[str]) -> dict[str, Texts]:
        """Return what a model is scored on: splits of the run's data, or "second"."""
        corpus, second = (data.passages["text"].tolist() for data in (self.data, self.second))
        texts = {name: (self.data.split(name), corpus) for name in splits if name != "second"}
        if "second" in splits:
            texts["second"] = self.second.split("test"), second
        return texts

    def score(self, name: str, model: SentenceTransformer, run: Run, on_test: bool) -> Scores:
        """Score a model, and its rotated twin if its recipe has no rotation."""
        k, tables, rounded = run.experiment.k, [], []
        splits = ["dev"] + ["test"] * on_test + ["second"] * (name in TRANSFER)
        train = self.data.train_passages()
        for label, split, q, p, asked in embed(name, model, run, self.texts(splits), train):
            _, each = evaluate_truncated(q, p, asked, self.dims(), k, per_query=True)
            tables.append(each.assign(recipe=label, split=split))
            if label in ROUNDED and split != "second":
                scores = score_bits(q, p, asked, self.dims(), k)
                rounded.append(scores.assign(recipe=label, split=split))
        bits = pd.concat(rounded, ignore_index=True) if rounded else pd.DataFrame()
        return Scores(pd.concat(tables, ignore_index=True), bits)

    def score_bm25(self) -> pd.DataFrame:
        """Score BM25, query by query; its ``dim`` is missing."""
        k, tables = self.run.experiment.k, []
        for split, (asked, passages) in self.texts(("dev", "test", "second")).items():
            ranking = bm25_ranking(asked.queries, passages, asked.depth(k))
            _, each = evaluate_ranking(ranking, asked, len(passages), k, per_query=True)
            tables.append(each.assign(recipe="bm25", split=split))
        return pd.concat(tables, ignore_index=True)

    def untrained(self) -> Scores:
        """Score what needs no training: BM25, the base model, and that rotated."""
        path = self.path("base")
        about = self.about("base", self.run.experiment, {}, on_test=True)
        if not read_kept(path, about):
            base, bits = self.score("base", load_model(self.run), self.run, on_test=True)
            queries = pd.concat([self.score_bm25(), base])
            queries = queries.assign(num_rows=0, machine=str(self.run.machine))
            keep(path, about, Scores(queries, bits))
        return Scores(*(table.assign(seed=pd.NA) for table in read_kept(path, about)))

    def trained(self, name: str, idea: Idea, seed: int, on_test: bool) -> Scores:
        """Train a recipe with one seed and score it, unless its scores are kept."""
        recipe = recipe_of(idea.of, self.run.experiment)
        recipe = recipe.replace(**idea.changes, seed=seed, evals=1)
        path = self.path(f"{name}-{seed}")
        about = self.about(name, recipe, idea.describe(), on_test)
        if not read_kept(path, about):
            folder = self.run.path("study") / f"{name}-{seed}"
            run = dataclasses.replace(self.run, folder=folder, experiment=recipe)
            rows = self.rows_of(recipe)
            if not run.has("tuned"):
                model = start_model(run, self.rotation)
                train_recipe(run, model, rows, self.dev_scores, idea.loss(model, recipe))
            model = load_model(run, run.load("tuned"))
            queries, bits = self.score(name, model, run, on_test)
            if name == "tuned":
                mean = averaged(start_model(run, self.rotation), model)
                queries = pd.concat([queries, self.score("averaged", mean, run, on_test).queries])
            queries = queries.assign(num_rows=len(rows), machine=str(run.machine))
            keep(path, about, Scores(queries, bits))
            shutil.rmtree(folder)  # its scores are all we need
        return Scores(*(table.assign(seed=seed) for table in read_kept(path, about)))

    def path(self, name: str) -> Path:
        """Return where the scores of a training are kept."""
        return ROOT / "results" / "trainings" / self.run.experiment.name / f"{name}.parquet"

    def about(self, name: str, experiment: Experiment, idea: dict, on_test: bool) -> dict:
        """Return what scores depend on besides code and machine, in JSON's types."""
        data, settings = self.data, experiment.up_to("evaluation")
        queries, qrels = data.queries, data.qrels
        negatives = queries["negative"].map(lambda texts: None if texts is None else [*texts])
        texts = [*data.passages["text"]], [*queries["text"]], [*queries["split"]], [*negatives]
        right = qrels["query"].tolist(), qrels["passage"].tolist()
        about = {
            "configuration": {name: settings[name] for name in READ},
            "idea": idea,
            "on_test": on_test,
            "data": hashlib.sha256(json.dumps([texts, right]).encode()).hexdigest(),
            "second": VERSION if name in TRANSFER else None,
            "roundings": ROUNDINGS if {name, f"{name}_rotated"} & {*ROUNDED} else None,
            "averaged": SHARE if name == "tuned" else None,
        }
        return json.loads(json.dumps(about))

    def rows_of(self, recipe: Experiment) -> Dataset:
        """Return the training rows with as many negatives as the recipe asks for."""
        if recipe.num_negatives == self.run.experiment.num_negatives:
            return self.rows
        frame = self.data.training_rows()[["query", "positive"]]
        pairs = Dataset.from_pandas(frame, preserve_index=False)
        run = dataclasses.replace(self.run, experiment=recipe)
        return mine(pairs, load_model(run), run) if recipe.num_negatives else pairs


def jobs(experiment: Experiment) -> list[tuple[str, Idea, int, bool]]:
    """Return what is trained, in order: name, idea, seed, and whether test is scored."""
    named = [(name, Idea(of=name, seeds=SEEDS), True) for name in NAMED]
    tried = [(name, idea, False) for name, idea in ideas(experiment).items()]
    return [(name, idea, seed, test) for name, idea, test in named + tried for seed in idea.seeds]


def summary(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """Average over the queries: the columns of ``results/recipes.csv``."""
    metrics = [f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"]
    keys, more = ["recipe", "seed", "split", "dim"], ["num_rows", "machine"]
    means = scores.groupby(keys + more, sort=False, dropna=False)[metrics].mean().reset_index()
    return means[keys + metrics + more]


def intervals(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Average each query's test scores over the seeds, and add bootstrap intervals."""
    rows = []
    test = scores[scores["split"] == "test"]
    for (name, dim), part in test.groupby(["recipe", "dim"], sort=False, dropna=False):
        interval = mean_interval(part.groupby("query")[metric].mean())
        rows.append({"recipe": name, "dim": dim, **interval._asdict()})
    return pd.DataFrame(rows)


def differences(scores: pd.DataFrame, experiment: Experiment, metric: str) -> pd.DataFrame:
    """Compare recipes on test, seed by seed: ``after`` minus ``before``."""
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
            gain = paired_difference(old, at[after, after_dim, seed], seed)
            rows.append((before, before_dim, after, after_dim, seed, *gain))
    columns = ["before", "before_dim", "after", "after_dim", "seed", *gain._fields]
    return pd.DataFrame(rows, columns=columns)


def bits_table(rounded: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Choose what ``results/bits.csv`` holds of the scores with fewer bits.

    Of several ways to round to as many bits, dev chooses the best one by ``metric``, on average
    over models, sizes and seeds. Only that one keeps its test scores, and RaBitQ.
    """
    table = rounded.rename(columns={"recipe": "model"})
    dev = table[(table["split"] == "dev") & (table["rounding"] != "rabitq")]
    means = dev.groupby(["bits", "rounding"])[metric].mean()
    best = set(means.groupby("bits").idxmax())
    chosen = pd.MultiIndex.from_frame(table[["bits", "rounding"]]).isin(best)
    shown = (table["split"] == "dev") | (table["rounding"] == "rabitq") | chosen
    columns = ["model", "seed", "split", "dim", "bits", "rounding", "bytes"]
    return table.loc[shown, [*columns, *(c for c in table if "@" in c)]]


def write(study: Study, scores: pd.DataFrame, rounded: pd.DataFrame) -> list[Path]:
    """Write the tables and the figure of a finished study; return what was written."""
    experiment = study.run.experiment
    metric = f"mrr@{experiment.k}"
    means = summary(scores, experiment.k)
    second = means["split"] == "second"
    tables = {
        "recipes": means[~second],
        "recipes_intervals": intervals(scores, metric),
        "recipes_differences": differences(scores, experiment, metric),
        "recipes_transfer": means[second].drop(columns="split"),
        "bits": bits_table(rounded, metric),
    }
    about = {
        "finished": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": " and ".join(sorted(scores["machine"].unique())),
        "preset": experiment.name,
        "run": study.run.id,
        "small_dim": experiment.small_dim,
        "full_dim": experiment.full_dim,
        "seeds": SEEDS,
        "recipes": {name: {**i.describe(), "seeds": i.seeds} for name, i, *_ in jobs(experiment)},
        "second": {"version": VERSION, "queries": len(study.second.queries)},
        "versions": versions(),
    }
    folder = ROOT / "results"
    written = [folder / "recipes.json", folder / "recipes.png"]
    written[0].write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    drawn = tables["recipes_intervals"].rename(columns={"recipe": "model", "mean": metric})
    figure = draw_scores(drawn, metric, DRAWN, experiment.small_dim)
    figure.savefig(written[1], dpi=160, bbox_inches="tight")
    for name, table in tables.items():
        whole = {column: "Int64" for column in ("dim", "seed") if column in table}
        written.append(folder / f"{name}.csv")
        table.astype(whole).round(6).to_csv(written[-1], index=False)
    return [*written, write_report(folder)]


def study(run: Run) -> list[Path]:
    """Train and score everything that isn't kept, and write the tables."""
    made = Study.of(run)
    trainings = [made.untrained()]
    todo = jobs(run.experiment)
    for number, (name, idea, seed, on_test) in enumerate(todo, start=1):
        print(f"{number:>2} of {len(todo)}  {name}, seed {seed}", flush=True)
        trainings.append(made.trained(name, idea, seed, on_test))
        queries = trainings[-1].queries
        dev = queries[queries["split"] == "dev"].groupby(["recipe", "dim"], sort=False)
        print(dev[f"mrr@{run.experiment.k}"].mean().unstack().round(3).to_string(), flush=True)
    scores = pd.concat([each.queries for each in trainings], ignore_index=True)
    rounded = pd.concat([each.bits for each in trainings if len(each.bits)], ignore_index=True)
    return write(made, scores, rounded)


if __name__ == "__main__":
    sys.exit(command(__doc__, study))
