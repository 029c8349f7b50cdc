"""Write results/README.md: every measured table, from the CSV files next to it."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from helpers.config import ROOT
from helpers.plots import (
    STYLE,
    in_order,
    lines,
    look,
    markdown,
    markdown_table,
    metric_name,
    use_style,
    wide,
)
from helpers.runs import atomic_write


def draw_scores(scores: pd.DataFrame, metric: str, models: Collection[str], dim: int) -> Figure:
    """Draw test scores over dimensions; the title says what the first ``dim`` of "tuned" keep.

    The columns ``low`` and ``high`` of the scores, if there, become error bars.
    """
    use_style()
    shown = scores[scores["model"].isin(models)]
    frame = wide(shown, metric)
    full = frame.columns[-1]
    kept = frame[dim]["tuned"] / frame[full]["tuned"]
    score = f"the tuned model's {metric_name(metric)}"
    title = f"{dim} of {full} dimensions keep {kept:.0%} of {score}"
    figure = lines(frame, title, f"test {metric_name(metric)}")
    if "low" in shown:
        (axes,) = figure.axes
        axes.set_autoscale_on(False)  # the names keep their places
        for model, part in shown.dropna(subset="dim").groupby("model"):
            half = (part["high"] - part["low"]) / 2
            bars = {"yerr": half, "fmt": "none", "ecolor": look(model)[1]}
            axes.errorbar(part["dim"], part[metric], **bars)
    return figure


def write_report(folder: Path = ROOT / "results") -> Path:
    """Write the README.md of a folder of results, from those of its tables that are there."""
    tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    runs = [name.removesuffix("_seconds") for name in tables if name.endswith("_seconds")]
    sections = [(_settings, "settings", "settings_leads", "settings_predictors")]
    sections += [(_run, run, f"{run}_differences", f"{run}_seconds") for run in runs]
    sections += [
        (_recipes, "recipes"),
        (_seed_by_seed, "recipes_differences"),
        (_second, "recipes_transfer"),
        (_bits, "bits"),
        (_search, "search"),
        (_speed, "speed"),
        (_serving, "serving"),
        (_gpu, "gpu"),
        (_minutes, "minutes"),
    ]
    parts = ["# Measured results"]
    for section, *names in sections:
        if tables.keys() >= {*names}:
            parts += section(*(tables[name] for name in names))
    with atomic_write(folder / "README.md") as scratch:
        scratch.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder / "README.md"


def _seeds_table(scores: pd.DataFrame, start: str) -> str:
    """A metric's mean over the training seeds, ± their standard deviation if there are several."""
    metric, full = _metric(scores, start), int(scores["dim"].max())
    scores = scores.assign(dim=scores["dim"].fillna(full).astype(int))
    found = scores.groupby(["recipe", "dim"], sort=False)[metric].agg(["mean", "std"])
    spread = found["std"].map(lambda x: "" if pd.isna(x) else f" ± {x:.3f}")
    frame = (found["mean"].map("{:.3f}".format) + spread).unstack().sort_index(axis=1)
    frame = frame.loc[in_order(frame.index)]
    frame.insert(0, metric_name(metric), [*map(_name, frame.index)])
    return markdown(frame)


def _metric(table: pd.DataFrame, start: str = "mrr@") -> str:
    return next(column for column in table if column.startswith(start))


def _name(model: str) -> str:
    return STYLE.get(model, (model.replace("_", " "),))[0]


def _run(results: pd.DataFrame, differences: pd.DataFrame, seconds: pd.DataFrame) -> list[str]:
    first, metric = results.iloc[0], _metric(results)
    rows = [
        (_name(r.after), _name(r.before), r.dim, r.mean, f"{r.low:+.3f} to {r.high:+.3f}")
        for r in differences.itertuples()
    ]
    columns = ["after", "before", "dimensions", "difference", "95% interval"]
    return [
        f"## One run: `{first['preset']}`",
        f"{first['num_queries']:,} test queries on {first['num_passages']:,} passages, seed "
        f"{first['seed']}, run `{first['run']}`. The notebooks took "
        f"{seconds['seconds'].sum() / 60:.1f} minutes on {seconds['machine'][0]}.",
        f"![{metric_name(metric)} by dimensions kept]({first['preset']}.png)",
        markdown_table(results, metric),
        markdown_table(results, _metric(results, "recall@")),
        f"Paired differences in {metric_name(metric)}, on the same queries. If the interval "
        "includes zero, we can't call it a difference.",
        markdown(pd.DataFrame(rows, columns=columns), 2, difference="{:+.3f}"),
    ]


def renew(text: str, name: str, section: str) -> str:
    """Renew what stands in README.md between ``<!-- name: start -->`` and ``<!-- name: end -->``.

    Raises:
        ValueError: such a line is missing.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    if start not in text or end not in text:
        raise ValueError(f"README.md has no place for the {name}: add {start} and {end}")
    return f"{text.partition(start)[0]}{start}\n{section}\n{end}{text.partition(end)[2]}"


def settings_section(scores: pd.DataFrame, leads: pd.DataFrame) -> str:
    """Write what README.md shows of the settings that have several seeds."""
    seeds = scores.groupby("setting", sort=False)["seed"].nunique()
    shown = scores["setting"].isin(seeds[seeds > 1].index)
    return settings_table(scores[shown], leads, ("bm25", "base", "mnrl_rotated", "tuned"), False)


def settings_table(
    scores: pd.DataFrame,
    leads: pd.DataFrame,
    recipes: Collection[str] = STYLE,
    spread: bool = True,
) -> str:
    """Write test scores of some recipes and tuned's lead over the rotated control by settings.

    Scores are means over the seeds. A lead says how many of its seeds have a 95% interval without
    zero; with ``spread``, it has the lowest and highest of them in parentheses.
    """
    metric, small = _metric(scores), int(_small(leads))
    scores = scores[scores["recipe"].isin(recipes)]
    test = scores[scores["split"] == "test"]
    settings = test["setting"].unique()
    test = test.assign(full=test.groupby("setting")["dim"].transform("max"))
    exact = test[test["way"] == "float32"]
    full = exact[(exact["dim"] == exact["full"]) & ~exact["recipe"].str.endswith("_rotated")]
    parts = {
        "": test[test["way"] == "words"],
        f" at {small}": exact[exact["dim"] == small],
        " at full size": full,
    }
    sizes = test.groupby("setting")[["rows", "passages"]].max().map("{:,.0f}".format)
    rows = {"training rows": sizes["rows"], "passages searched": sizes["passages"]}
    for said, part in parts.items():
        means = part.groupby(["recipe", "setting"])[metric].mean().unstack()
        for recipe in in_order(means.index):
            rows[_name(recipe) + said] = means.loc[recipe].map("{:.3f}".format, "ignore")
    control = _of_control(leads, metric)
    for dim in (small, small // 2):
        chosen = control[(control["dim"] == dim) & (control["way"] == "float32")]
        cells = {name: _lead(part, spread) for name, part in chosen.groupby("setting")}
        rows[f"tuned minus control, rotated, at {dim}"] = pd.Series(cells)
    frame = pd.DataFrame(rows).T[settings].fillna("")
    return markdown(frame.reset_index(names=metric_name(metric)))


def _small(leads: pd.DataFrame) -> int:
    """The prefix that the series is about: the shortest but one that was compared."""
    return sorted(leads["dim"].unique())[1]


def _of_control(leads: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Tuned against the rotated control on test."""
    chosen = (leads["before"] == "mnrl_rotated") & (leads["after"] == "tuned")
    return leads[chosen & (leads["split"] == "test") & (leads["metric"] == metric)]


def _lead(seeds: pd.DataFrame, spread: bool) -> str:
    clear = ((seeds["low"] > 0) | (seeds["high"] < 0)).sum()
    means = seeds["mean"]
    ends = f" ({means.min():+.3f} to {means.max():+.3f})" if spread and len(seeds) > 1 else ""
    return f"{means.mean():+.3f}{ends}, {clear} of {len(seeds)} clear"


def _settings(scores: pd.DataFrame, leads: pd.DataFrame, predictors: pd.DataFrame) -> list[str]:
    metric, ndcg = _metric(scores), _metric(scores, "ndcg@")
    control = _of_control(leads, metric)
    keys = ["setting", "way", "dim"]
    gains = control.groupby(keys, sort=False).agg(
        {"mean": "mean", "gained": "sum", "lost": "sum", "queries": "sum"}
    )
    for count in ("gained", "lost"):
        gains[count] = 1000 * gains[count] / gains["queries"]
    scored = scores[(scores["split"] == "test") & ~scores["way"].isin(["words", "float32"])]
    ways = scored[scored["recipe"].isin(["mnrl", "mnrl_rotated", "tuned"])]
    ways = ways.pivot_table(metric, keys, "recipe", sort=False)
    ways = ways[in_order(ways)].rename(columns=_name)
    away = scores[~scores["split"].isin(["dev", "test"]) & scores["way"].isin(["words", "float32"])]
    full = away.groupby("setting")["dim"].transform("max")
    away = away.assign(recipe=away["recipe"].map(_name), dim=away["dim"].fillna(full).astype(int))
    away = away.pivot_table(ndcg, ["setting", "split", "recipe"], "dim", sort=False)
    away = away.sort_index(axis=1).rename(columns=str)
    said = predictors.rename(columns=lambda name: name.replace("_", " "))
    return [
        "## Other models, other texts",
        "A setting is a model and a kind of text. In each, recipes are trained on its training "
        "rows and scored on its test queries, with 64 tokens of a text. MPNet's has other queries "
        "and fewer passages, so compare within a column. "
        "*Clear* counts the seeds whose 95% interval excludes zero; in parentheses are the lowest "
        "and the highest seed.",
        "![Tuned's lead over the rotated control, setting by setting](settings.png)",
        settings_table(scores, leads),
        f"Tuned's lead over the rotated control in test {metric_name(metric)}, and of 1,000 "
        "queries how many have a right passage first only with tuned (*gained*) or only with the "
        "control (*lost*).",
        markdown(
            gains.drop(columns="queries").reset_index(),
            2,
            mean="{:+.3f}",
            gained="{:.0f}",
            lost="{:.0f}",
        ),
        "With rounded passages, and after a rerank of the 100 best of int8; *both signs* has the "
        "query as signs, too, and all else has it in float32. With MiniLM on "
        "Wikipedia these are of one run, not of three seeds.",
        markdown(ways.reset_index().astype({"dim": int}), 2, **dict.fromkeys(ways, "{:.3f}")),
        f"{metric_name(ndcg)} on texts that nothing was tuned on, of the first seed. *Second* is "
        "described below; with docstrings' filters it has 1,310 queries, else 1,000. The "
        "others are the test queries of another setting. BM25, which has no dimensions, stands "
        "under full size.",
        markdown(away.reset_index(), 3, **dict.fromkeys(away, "{:.3f}")),
        "Can dev predict the lead on test? Two candidates: how much of the squared length the "
        "first 64 rotated dimensions of base hold, and what plain fine-tuning keeps at 64, cut or "
        "rotated. With fewer rows the first grows by itself, as its rotation is fitted on fewer "
        "texts. In the three settings with several seeds, neither puts the leads at 64 in order.",
        markdown(said, 1, **dict.fromkeys(said.columns[2:], "{:.3f}")),
    ]


def _recipes(scores: pd.DataFrame) -> list[str]:
    machines = scores["machine"].str.replace(r" \(.*", "", regex=True).unique()
    return [
        "## Recipes",
        "Test queries, means of three training seeds ± their standard deviation. The bars in the "
        f"figure are 95% intervals over queries. Trained on {' and '.join(machines)}. *Standard* "
        "has no prefix below 64 and no rotated start; *rotated* after a comma: after training.",
        f"![{metric_name(_metric(scores))} by dimensions kept, with intervals](recipes.png)",
        _seeds_table(scores[scores["split"] == "test"], "mrr@"),
        "On dev, with all that we tried once:",
        _seeds_table(scores[scores["split"] == "dev"], "mrr@"),
    ]


def _seed_by_seed(differences: pd.DataFrame) -> list[str]:
    rows = []
    keys = ["before", "before_dim", "after", "after_dim"]
    for (before, before_dim, after, dim), part in differences.groupby(keys, sort=False):
        sizes = f"{dim}" if dim == before_dim else f"{dim} against {before_dim}"
        spread = f"{part['mean'].min():+.3f} to {part['mean'].max():+.3f}"
        clear = ((part["low"] > 0) | (part["high"] < 0)).sum()
        mean, seeds = part["mean"].mean(), f"{clear} of {len(part)}"
        rows.append((f"{_name(after)} - {_name(before)}", sizes, mean, seeds, spread))
    columns = ["after - before", "dimensions", "difference", "clear", "lowest to highest seed"]
    return [
        "Paired differences in MRR on the test queries, means of the seeds. *Clear* counts the "
        "seeds whose 95% interval excludes zero.",
        markdown(pd.DataFrame(rows, columns=columns), 2, difference="{:+.3f}"),
    ]


def _second(scores: pd.DataFrame) -> list[str]:
    return [
        "## A second collection",
        "Nothing was trained on it: titles of usage examples are the queries, descriptions of AWS "
        "operations the passages.",
        _seeds_table(scores, "ndcg@"),
        _seeds_table(scores, "mrr@"),
    ]


def _bits(bits: pd.DataFrame) -> list[str]:
    metric, test = _metric(bits), bits[bits["split"] == "test"]
    frame = test.groupby(["bytes", "dim", "bits", "rounding", "model"])[metric].mean().unstack()
    models = in_order(frame)
    frame = frame[models].reset_index().rename(columns=_name)
    return [
        "## What a byte buys",
        f"{metric_name(metric)} on the test queries by the bytes of a passage, without a rerank, "
        "means of the seeds. Dev chose how to round; queries stay in float32.",
        markdown(frame, 4, **dict.fromkeys(map(_name, models), "{:.3f}")),
    ]


def _search(measured: pd.DataFrame) -> list[str]:
    alone = measured[(measured["threads"] == 1) & (measured["batch"] == 1)]
    keys, real = ["full_dim", "method"], alone["num_vectors"].min()
    methods = alone.drop_duplicates(keys).set_index(keys)
    frame, forms = methods[[]], {"shortlist or width": "{:.0f}"}
    for size, part in alone.groupby("num_vectors"):
        frame[f"ms at {size:,}"] = part.set_index(keys)["ms_per_query"]
        forms[f"ms at {size:,}"] = "{:.3g}"
    frame["hot bytes"] = methods["hot_bytes_per_vector"]
    frame["shortlist or width"] = methods["setting"]
    for metric in [name for name in alone if "@" in name]:
        frame[metric_name(metric)] = alone.set_index(keys)[metric].dropna()
        forms[metric_name(metric)] = "{:.3f}"
    frame = frame.reset_index().rename(columns={"full_dim": "dimensions"})
    return [
        "## Search",
        f"One query on one core of {measured['machine'][0]}. *Hot bytes* of a vector must be in "
        f"fast memory. Recall is the share of the exact top 10, on the {real:,} real passages, "
        "with the shortest shortlist (for HNSW, the narrowest search) that reaches 99% on dev, or "
        "else the longest that was tried. The larger collections are noisy copies, good for times "
        "only: real ones need longer lists.",
        markdown(frame, 2, **forms),
    ]


def _speed(times: pd.DataFrame) -> list[str]:
    rate = [f"{row.value:.3g} {row.unit}" for row in times.itertuples()]
    frame = times[["job", "variant"]].assign(rate=rate, ratio=times["ratio_to_stock"])
    return [
        "## Speed",
        f"One change at a time, timed in turns on {times['machine'][0]}. *Stock* is "
        "sentence-transformers with its defaults, at our batch size; *ratio* is to that.",
        markdown(frame, 2, ratio="{:.2f}"),
    ]


def _serving(measured: pd.DataFrame) -> list[str]:
    return [
        "## A server",
        f"The release of run `{measured['run'][0]}`, served by vLLM, and the same work "
        f"in-process, on {measured['machine'][0]}. Test MRR is at the size in the last column.",
        markdown(measured[["what", "how", "value", "unit or size"]], 2, value="{:.3g}"),
    ]


def _gpu(measured: pd.DataFrame) -> list[str]:
    what = measured["what"] + ", " + measured["unit"]
    made_with = measured.drop_duplicates("device").set_index("device")["versions"]
    frame = measured.assign(what=what).pivot(index="what", columns="device", values="value")
    return [
        "## On a GPU",
        f"The preset `{measured['preset'][0]}`, on "
        + " and on ".join(f"{device} with {those}" for device, those in made_with.items())
        + ": older versions than the requirements now ask for.",
        markdown(frame.loc[what.unique()].reset_index()),
    ]


def _minutes(measured: pd.DataFrame) -> list[str]:
    return ["## How long the six notebooks took", markdown(measured, 3)]
