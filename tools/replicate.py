"""Does the verdict hold elsewhere? ``python -m tools.replicate minilm_docstrings mpnet_wikipedia``.

A setting is a model and a kind of text: a ``.toml`` file in ``tools/settings/``, or the preset. In
each, a few recipes of the study are trained, and scored in more ways than there: also as signs,
after a rerank, and on texts of other settings. Each setting starts from a run of it that has
notebooks 1 to 3 done, ``minilm_wikipedia`` from a whole run, whose models it takes. What is scored
is kept in ``results/trainings/``: commit it. At the end, or without a name, the tables and the
figure are written from what is kept: ``results/settings*``.
"""

import argparse
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer

from helpers.compare import bm25_ranking, paired_difference
from helpers.config import PRESETS, ROOT, Experiment
from helpers.metrics import Split, evaluate_ranking, evaluate_truncated, prefix
from helpers.models import load_model
from helpers.plots import STYLE, metric_name, use_style
from helpers.runs import Run, atomic_write, start_run
from helpers.search import rerank, search
from tools import attempt
from tools.bits import round_passages
from tools.recipes import make_loss, recipe_of, start_model, train_recipe
from tools.report import renew, settings_section, write_report
from tools.study import SEEDS, Idea, Scores, Study, Texts, embed, keep, read_kept
from tools.transfer import VERSION

SHORTLIST = 100
UNTRAINED = -1  # stands for a seed where nothing was trained


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and a kind of text.

    Attributes:
        title: What people call it.
        choice: The preset or ``.toml`` file of its run.
        seeds: For each recipe those it is trained with.
        others: Settings on whose test queries the first seed is scored, too, besides the second
            collection; None for neither.
        rates: Learning rates, of which dev chooses the best for "mnrl" at full size, with the
            first seed; empty for the run's own.
        trained: Whether the models are the run's own, those of notebook 4.
    """

    title: str
    choice: str
    seeds: dict[str, tuple[int, ...]]
    others: tuple[str, ...] | None = None
    rates: tuple[float, ...] = ()
    trained: bool = False


def _toml(name: str) -> str:
    return str(Path(__file__).with_name("settings") / f"{name}.toml")


RECIPES = ("mnrl", "tuned", "matryoshka_short")
ONCE, THRICE = (dict.fromkeys(("mnrl", "tuned"), seeds) for seeds in (SEEDS[:1], SEEDS))
SETTINGS = {
    "minilm_wikipedia": Setting(
        "MiniLM, Wikipedia", "wikipedia", ONCE, ("minilm_docstrings",), trained=True
    ),
    "minilm_docstrings": Setting(
        "MiniLM, docstrings",
        _toml("minilm_docstrings"),
        THRICE | {"matryoshka_short": SEEDS},
        ("minilm_wikipedia",),
    ),
    "mpnet_wikipedia": Setting(
        "MPNet, Wikipedia",
        _toml("mpnet_wikipedia"),
        THRICE | {"matryoshka_short": SEEDS[:1]},
        (),
        rates=(2e-5, 5e-5),
    ),
}
SETTINGS |= {  # fewer training rows
    f"{name}_{rows}": Setting(
        f"{SETTINGS[name].title}, {rows:,} rows", _toml(f"{name}_{rows}"), ONCE
    )
    for name, fewer in {
        "minilm_wikipedia": (3200, 1000),
        "minilm_docstrings": (4000, 1000, 250),
    }.items()
    for rows in fewer
}


def every_way(
    queries: torch.Tensor,
    passages: torch.Tensor,
    asked: Split,
    dims: Sequence[int],
    small: int,
    k: int,
) -> pd.DataFrame:
    """Score embeddings in every way that the tables show, query by query.

    The column ``way`` says how: "float32" at each of ``dims``; "signs" of all dimensions, with the
    query in float32; "both signs", the query as signs, too; "int8", passages of ``small``
    dimensions in 8 bits; "rerank", the best 100 of these at full size.
    """
    full, depth = queries.shape[1], asked.depth(k)

    def exact(queries: torch.Tensor, passages: torch.Tensor, dims: Sequence[int]) -> pd.DataFrame:
        return evaluate_truncated(queries, passages, asked, dims, k, per_query=True)[1]

    def ranked(ranking: torch.Tensor) -> pd.DataFrame:
        lists = ranking.tolist()
        return evaluate_ranking(lists, asked, len(passages), k, per_query=True)[1]

    signs = round_passages(passages, 1, "sign")
    # Sums of ones are exact, and many are equal: these rank in the order of the corpus.
    agreeing = round_passages(queries, 1, "sign") @ signs.T
    by_signs = agreeing.sort(dim=1, descending=True, stable=True).indices[:, :depth]
    short, cut = prefix(queries, small), round_passages(prefix(passages, small), 8, "even")
    shortlist = search(short, prefix(cut, small), SHORTLIST)
    tables = {
        ("float32", None): exact(queries, passages, dims),
        ("signs", full): exact(queries, signs, [full]),
        ("both signs", full): ranked(by_signs),
        ("int8", small): exact(short, cut, [small]),
        ("rerank", small): ranked(rerank(queries, passages, shortlist, depth)),
    }
    return pd.concat(
        [
            table.assign(way=way) if dim is None else table.assign(way=way, dim=dim)
            for (way, dim), table in tables.items()
        ],
        ignore_index=True,
    )


def texts_of(study: Study, others: Sequence[Study] | None) -> dict[str, Texts]:
    """Return what a model is scored on: dev, test, and unless ``others`` is None the test queries
    of those and of the second collection.
    """
    texts = study.texts(("dev", "test") if others is None else ("dev", "test", "second"))
    for other in others or ():
        name = other.run.experiment.name.removeprefix("minilm_")
        texts[name] = other.texts(("test",))["test"]
    return texts


def score(
    name: str, model: SentenceTransformer, study: Study, run: Run, texts: dict[str, Texts]
) -> pd.DataFrame:
    """Score a model, and its rotated twin if its recipe has no rotation, on each of ``texts``."""
    small, k, tables = run.experiment.small_dim, run.experiment.k, []
    train = study.data.train_passages()
    for label, split, q, p, asked in embed(name, model, run, texts, train):
        scores = every_way(q, p, asked, study.dims(), small, k)
        tables.append(scores.assign(recipe=label, split=split))
    return pd.concat(tables, ignore_index=True)


def score_untrained(study: Study, texts: dict[str, Texts]) -> tuple[pd.DataFrame, float]:
    """Score BM25, the base model and that rotated; also return how much the first dimensions hold.

    That is the share of the squared length of the base model's training passages which
    ``small_dim`` rotated dimensions have. The column ``passages`` says how many were searched.
    """
    k, small = study.run.experiment.k, study.run.experiment.small_dim
    tables = [score("base", load_model(study.run), study, study.run, texts)]
    for split, (asked, passages) in texts.items():
        ranking = bm25_ranking(asked.queries, passages, asked.depth(k))
        scores = evaluate_ranking(ranking, asked, len(passages), k, per_query=True)[1]
        tables.append(scores.assign(way="words", recipe="bm25", split=split))
    table = pd.concat(tables, ignore_index=True)
    sizes = {split: len(passages) for split, (_, passages) in texts.items()}
    base = study.run.load("base.safetensors")["passages"][study.data.train_passages()]
    held = (base @ study.rotation[:, :small]).square().sum() / base.square().sum()
    return table.assign(passages=table["split"].map(sizes)), held.item()


@dataclasses.dataclass(frozen=True)
class Replication:
    """A setting's study, and what is kept of it."""

    name: str
    setting: Setting
    study: Study
    others: list[Study] | None

    @classmethod
    def of(cls, name: str) -> "Replication":
        """Read what the notebooks made of a setting, and of those it is also scored on."""
        setting, made = SETTINGS[name], {}
        for each in (name, *(setting.others or ())):
            made[each] = Study.of(start_run(SETTINGS[each].choice, typed=True))
        others = None if setting.others is None else [made[other] for other in setting.others]
        return cls(name, setting, made[name], others)

    def keep_all(self) -> None:
        """Train and score everything that isn't kept."""
        self.untrained()
        rate = self.best_rate()
        for seed, (name, seeds) in itertools.product(SEEDS, self.setting.seeds.items()):
            if seed in seeds:
                self.trained(name, seed, rate)

    def best_rate(self) -> float:
        """Return the learning rate that is best for "mnrl" on dev."""
        experiment = self.study.run.experiment
        if not self.setting.rates:
            return experiment.learning_rate
        tried = [self.trained("mnrl", SEEDS[0], rate) for rate in self.setting.rates]
        scores = pd.concat(tried).assign(setting=self.name)
        (rate,) = best_rates(scores, f"mrr@{experiment.k}")["rate"].unique()
        print(f"dev chooses a learning rate of {rate:g}", flush=True)
        return float(rate)

    def untrained(self) -> None:
        """Score what needs no training, unless it is kept."""
        about = self.about("base", self.study.run.experiment, self.others)
        if read_kept(self.path("base"), about):
            return
        scores, held = score_untrained(self.study, texts_of(self.study, self.others))
        self._keep("base", about, scores, rows=0, held=held)

    def trained(self, name: str, seed: int, rate: float) -> pd.DataFrame:
        """Train a recipe with one seed and score it, unless its scores are kept."""
        study, run = self.study, self.study.run
        recipe = recipe_of(name, run.experiment.replace(learning_rate=rate))
        recipe = recipe.replace(seed=seed, evals=1)
        others = self.others if seed == SEEDS[0] else None
        path = f"{name}-{seed}" + f"-{rate:g}" * bool(self.setting.rates)
        about = self.about(name, recipe, others)
        if kept := read_kept(self.path(path), about):
            return kept.queries
        print(f"{self.name}: {path}", flush=True)
        folder = run.path("study") / path
        training = dataclasses.replace(run, folder=folder, experiment=recipe)
        if self.setting.trained:
            model = load_model(run, run.load(name))
        else:
            if not training.has("tuned"):
                model = start_model(training, study.rotation)
                loss = make_loss(model, recipe)
                train_recipe(training, model, study.rows, study.dev_scores, loss)
            model = load_model(training, training.load("tuned"))
        scores = score(name, model, study, training, texts_of(study, others))
        scores = self._keep(path, about, scores, rows=len(study.rows), seed=seed, rate=rate)
        shutil.rmtree(folder, ignore_errors=True)  # its scores are all we need
        return scores

    def path(self, name: str) -> Path:
        """Return where scores are kept."""
        return ROOT / "results" / "trainings" / self.name / f"{name}.parquet"

    def about(self, name: str, recipe: Experiment, others: list[Study] | None) -> dict:
        """Return what scores depend on besides code and machine, in JSON's types."""
        about = self.study.about(name, recipe, Idea(of=name).describe(), on_test=True)
        if others is not None:
            on = [other.about("base", other.run.experiment, {}, True)["data"] for other in others]
            about |= {"second": VERSION, "others": on}
        return about | {"shortlist": SHORTLIST}

    def _keep(self, name: str, about: dict, scores: pd.DataFrame, **columns) -> pd.DataFrame:
        scores = scores.assign(**columns, machine=str(self.study.run.machine))
        keep(self.path(name), about, Scores(scores, pd.DataFrame()))
        return scores


def read_all(folder: Path) -> pd.DataFrame:
    """Read every score that is kept in a folder, query by query, with the column ``setting``.

    A setting without a tuned model isn't finished, and left out. Of the published setting, the
    scores of trained models in float32 on its own texts are those of the study, which has more
    seeds. All else is of a whole run: the column ``source`` says it.
    """
    tables = []
    for name, setting in SETTINGS.items():
        if not any((folder / name).glob("tuned-*")):
            continue
        source = "run" if setting.trained else "training"
        for path in sorted((folder / name).glob("*.parquet")):
            scores = pq.read_table(path).to_pandas().assign(setting=setting.title, source=source)
            if setting.trained and path.stem != "base":
                in_study = scores["split"].isin(("dev", "test")) & (scores["way"] == "float32")
                scores = scores[~in_study]
            tables.append(scores)
        if setting.trained:
            for recipe, seed in itertools.product(RECIPES, SEEDS):
                scores = pq.read_table(folder / setting.choice / f"{recipe}-{seed}.parquet")
                scores = scores.to_pandas().rename(columns={"num_rows": "rows"})
                scores = scores[scores["split"].isin(("dev", "test"))]
                scores = scores[scores["recipe"].str.removesuffix("_rotated") == recipe]
                about = {
                    "seed": seed,
                    "way": "float32",
                    "setting": setting.title,
                    "source": "training",
                }
                tables.append(scores.assign(**about))
    return pd.concat(tables, ignore_index=True)


def best_rates(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Keep the scores of the learning rate that dev has chosen, where there were several."""
    if "rate" not in scores:
        return scores
    chosen = (scores["split"] == "dev") & (scores["recipe"] == "mnrl")
    chosen &= scores["seed"] == SEEDS[0]
    tried = scores[chosen & (scores["way"] == "float32") & (scores["dim"] == _full(scores))]
    means = tried.groupby(["setting", "rate"])[metric].mean()
    best = means.groupby("setting").idxmax().map(lambda key: key[1])
    rate = scores["setting"].map(best)
    return scores[scores["rate"].isna() | rate.isna() | (scores["rate"] == rate)]


def _full(scores: pd.DataFrame) -> pd.Series:
    """The full size of each row's setting."""
    return scores.groupby("setting")["dim"].transform("max")


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Average over the queries: the columns of ``results/settings.csv``."""
    keys = ["setting", "recipe", "seed", "split", "way", "dim"]
    more = ["passages", "rows", "rate", "source", "machine"]
    metrics = [column for column in scores if "@" in column]
    groups = scores.groupby([*keys, *more], sort=False, dropna=False)
    means = groups[metrics].mean()
    return means.assign(queries=groups.size()).reset_index()[[*keys, *metrics, "queries", *more]]


def leads(scores: pd.DataFrame, small: int, k: int) -> pd.DataFrame:
    """Compare recipes on the same queries, setting by setting and seed by seed.

    ``gained`` is how many queries have a right passage first only ``after``, ``lost`` how many
    only ``before``.
    """
    first, rows = f"mrr@{k}", []
    for (setting, split), part in scores.groupby(["setting", "split"], sort=False):
        full, seeds = int(part["dim"].max()), sorted(part["seed"].dropna().unique())
        keys = part[["recipe", "way", "dim", "seed"]].fillna({"seed": UNTRAINED})
        at = {key: each.sort_values("query") for key, each in part.groupby([*keys.T.values])}
        for before, after, way, dim, metric in _pairs(small, full, k):
            for seed in [UNTRAINED] if after.startswith("base") else seeds:
                old = at.get((before, way, dim, UNTRAINED if before.startswith("base") else seed))
                new = at.get((after, way, dim, seed))
                if old is None or new is None:
                    continue
                was, now = old[first].to_numpy() == 1, new[first].to_numpy() == 1
                about = (setting, split, before, after, way, dim, seed, metric)
                gain = paired_difference(old[metric], new[metric])
                rows.append((*about, *gain, (now & ~was).sum(), (was & ~now).sum(), len(was)))
    columns = ["setting", "split", "before", "after", "way", "dim", "seed", "metric"]
    table = pd.DataFrame(rows, columns=[*columns, *gain._fields, "gained", "lost", "queries"])
    return table.replace({"seed": {UNTRAINED: None}})


def _pairs(small: int, full: int, k: int) -> Iterator[tuple[str, str, str, int, str]]:
    """What is compared: before, after, way, size and metric."""
    mrr, recall, ndcg = f"mrr@{k}", f"recall@{k}", f"ndcg@{k}"
    for dim in (small // 2, small, 2 * small, full):
        yield "mnrl_rotated", "tuned", "float32", dim, mrr
    for way, dim in (("signs", full), ("both signs", full), ("int8", small), ("rerank", small)):
        yield "mnrl_rotated", "tuned", way, dim, mrr
    for dim in (small // 2, small):
        yield "matryoshka_short", "tuned", "float32", dim, mrr
    yield "mnrl", "tuned", "float32", full, recall
    for before, after in (("base", "base_rotated"), ("mnrl", "mnrl_rotated")):
        yield before, after, "float32", small, mrr
    for dim in (small, full):
        for after in ("mnrl_rotated", "tuned"):
            yield "base_rotated", after, "float32", dim, ndcg


def predictors(means: pd.DataFrame, gains: pd.DataFrame, held: dict, small: int, k: int):
    """What may say beforehand, on dev, where Matryoshka leads, and its mean lead on test."""
    metric, rows = f"mrr@{k}", []
    for setting in means["setting"].unique():
        part = means[(means["setting"] == setting) & (means["split"] == "dev")]
        full = int(part["dim"].max())
        at = part.groupby(["recipe", "way", "dim"], dropna=False)[metric].mean()
        exact = at.xs("float32", level="way")
        lead = gains[(gains["setting"] == setting) & (gains["split"] == "test")]
        lead = lead[(lead["before"] == "mnrl_rotated") & (lead["way"] == "float32")]
        lead = lead[lead["metric"] == metric].groupby("dim")["mean"].mean()
        rows.append(
            {
                "setting": setting,
                "rows": part["rows"].max(),
                "bm25": at["bm25"].item(),
                "base": exact["base", full],
                "squared_length_held": held[setting],
                "plain_kept": exact["mnrl", small] / exact["mnrl", full],
                "rotated_kept": exact["mnrl_rotated", small] / exact["mnrl", full],
                f"lead_at_{small // 2}": lead[small // 2],
                f"lead_at_{small}": lead[small],
            }
        )
    return pd.DataFrame(rows)


def draw_leads(gains: pd.DataFrame, dims: Sequence[int], metric: str) -> Figure:
    """Draw tuned's lead over the rotated control on test: a row for each setting and seed.

    Settings with one seed are left out.
    """
    use_style()
    gains = gains[gains.groupby("setting")["seed"].transform("nunique") > 1]
    shown = gains[(gains["split"] == "test") & (gains["way"] == "float32")]
    shown = shown[(shown["before"] == "mnrl_rotated") & (shown["after"] == "tuned")]
    shown = shown[(shown["metric"] == metric) & shown["dim"].isin(dims)]
    shape = {"figsize": (5.6, 6.4), "layout": "constrained"}
    figure, panels = plt.subplots(len(dims), 1, sharex=True, sharey=True, **shape)
    places, ticks = {}, {}
    height = 0.0
    for setting in shown["setting"].unique():
        seeds = sorted(shown.loc[shown["setting"] == setting, "seed"].unique())
        for seed in seeds:
            places[setting, seed] = height
            height -= 1
        ticks[setting] = height + (len(seeds) + 1) / 2
        height -= 0.8
    for axes, dim in zip(panels, dims, strict=True):
        axes.axvline(0, color="#444444", linewidth=1)
        for setting, part in shown[shown["dim"] == dim].groupby("setting", sort=False):
            heights = [places[setting, seed] for seed in part["seed"]]
            ends = [part["mean"] - part["low"], part["high"] - part["mean"]]
            colour = STYLE["tuned"][1]
            axes.errorbar(part["mean"], heights, xerr=ends, fmt="o", markersize=4, color=colour)
            mean = part["mean"].mean()
            axes.annotate(
                f"{mean:+.3f}",
                (1, sum(heights) / len(heights)),
                xycoords=axes.get_yaxis_transform(),
                xytext=(-2, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=colour,
            )
        axes.set_title(f"at {dim} dimensions")
        axes.set_yticks([*ticks.values()], [*ticks])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    ahead = shown.assign(ahead=shown["low"] > 0).groupby("dim")["ahead"].agg(["sum", "size"])
    said = [f"in {row['sum']} of {row['size']} trainings at {dim}" for dim, row in ahead.iterrows()]
    figure.suptitle(f"Matryoshka is clearly ahead of a rotation\n{', '.join(said)}")
    figure.supxlabel(f"tuned minus the rotated control, test {metric_name(metric)}", fontsize=11)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high + (high - low) * 0.3)  # room for the means
    return figure


def write(folder: Path = ROOT / "results") -> list[Path]:
    """Write the tables and the figure from all that is kept; return what was written."""
    experiment = PRESETS["wikipedia"]
    small, k = experiment.small_dim, experiment.k
    scores = best_rates(read_all(folder / "trainings"), f"mrr@{k}")
    tables = {"settings": summary(scores), "settings_leads": leads(scores, small, k)}
    base = scores[scores["recipe"] == "base"].drop_duplicates("setting")
    held = base.set_index("setting")["held"].to_dict()
    tables["settings_predictors"] = predictors(*tables.values(), held, small, k)
    written = []
    for name, table in tables.items():
        counts = {"dim", "seed", "passages", "rows"}.intersection(table)
        written.append(folder / f"{name}.csv")
        table.astype(dict.fromkeys(counts, "Int64")).round(6).to_csv(written[-1], index=False)
    figure = draw_leads(tables["settings_leads"], (small // 2, small), f"mrr@{k}")
    written.append(folder / "settings.png")
    figure.savefig(written[-1], dpi=160, bbox_inches="tight")
    readme = folder.parent / "README.md"
    section = settings_section(tables["settings"], tables["settings_leads"])
    text = renew(readme.read_text(encoding="utf-8"), "settings", section)
    with atomic_write(readme) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return [*written, readme, write_report(folder)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.replicate", description=__doc__)
    parser.add_argument("settings", nargs="*", choices=[*SETTINGS, []], metavar="SETTING")
    given = parser.parse_args()

    def action() -> list[Path]:
        for name in given.settings:
            Replication.of(name).keep_all()
        return write()

    sys.exit(attempt(action))
