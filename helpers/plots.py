"""One look for every figure and table of the series."""

import io
import itertools
from collections.abc import Callable, Collection, Mapping

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

# Okabe and Ito's palette, which colour-blind readers can tell apart, and one of Tol's for the last
# colour. A model keeps its colour, its name and its place through the series.
STYLE = {
    "bm25": ("BM25, words only", "#7f7f7f", ":"),
    "base_random": ("base, random dimensions", "#CC79A7", "--"),
    "base": ("base", "#000000", "-"),
    "base_rotated": ("base, rotated", "#E69F00", "--"),
    "mnrl": ("plain MNRL", "#56B4E9", "-"),
    "mnrl_rotated": ("plain MNRL, rotated", "#0072B2", "--"),
    "mnrl_rotated_first": ("plain MNRL, rotated before", "#0072B2", ":"),
    "matryoshka": ("standard Matryoshka", "#009E73", "-"),
    "matryoshka_rotated": ("standard Matryoshka, rotated", "#009E73", "--"),
    "matryoshka_short": ("standard + a shorter prefix", "#009E73", ":"),
    "only_64": ("trained at one short size", "#882255", "-."),
    "tuned": ("tuned Matryoshka", "#D55E00", "-"),
    "averaged": ("tuned, averaged with base", "#D55E00", ":"),
}
MODELS = tuple(STYLE)
HEADLINE = ("bm25", "base", "mnrl_rotated", "tuned")  # what the first table of the series shows
# Ways to search keep a colour by what they compare first: the beginning of their name.
SEARCH_COLOURS = {
    "exact": "#000000",
    "funnel": "#D55E00",
    "pq": "#0072B2",
    "binary": "#0072B2",
    "rabitq": "#CC79A7",
    "hnsw": "#009E73",
}


def use_style() -> None:
    """Set the look of every figure that follows: white ground, no frame, a faint grid."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Show a figure inline at twice the screen's resolution, with a text for who cannot see it.

    Raises:
        ValueError: the text is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight")
    plt.close(figure)
    image = Image(buffer.getvalue(), retina=True, alt=alt)
    display(image, metadata={"image/png": {"alt": alt}})


def plot_scores(scores: pd.DataFrame, metric: str) -> Figure:
    """Score against dimension in two panels: absolute, and as a share of full size.

    Args:
        scores: Columns ``model``, ``dim`` and ``metric``; a model without dimensions (BM25) has
            one row with a missing ``dim``.
        metric: The column to draw.

    Raises:
        ValueError: a column is missing, or a model is not one of ``MODELS``.
    """
    if missing := {"model", "dim", metric} - set(scores.columns):
        raise ValueError(f"scores has no column {sorted(missing)[0]!r}")
    if unknown := sorted(set(scores["model"]) - set(STYLE)):
        raise ValueError(f"model is {unknown[0]!r}: allowed are {', '.join(MODELS)}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    ends, shares = {}, {}
    for model in [model for model in MODELS if model in set(scores["model"])]:
        score = scores[scores["model"] == model].set_index("dim")[metric]
        if score.index.hasnans:
            _level(left, model, score.iloc[0])
            continue
        score = score.set_axis(score.index.astype(int)).sort_index(ascending=False)
        _line(left, model, score, ends)
        _line(right, model, 100 * score / score.iloc[0], shares)
    left.set_title(metric_name(metric))
    right.set_title("Share of its own full-size score, %")
    dims = sorted(scores["dim"].dropna().astype(int).unique())
    for axes in (left, right):
        _dimension_axis(axes, dims)
    left.set_ylim(0, 1)
    right.set_ylim(0, 104)
    _label_ends(left, ends)
    _label_ends(right, shares)
    figure.tight_layout()
    return figure


def plot_intervals(intervals: pd.DataFrame, metric: str) -> Figure:
    """Score against dimension with the 95% interval of each score as a bar.

    Args:
        intervals: Columns ``recipe``, ``dim``, ``mean``, ``low`` and ``high``; a recipe without
            dimensions (BM25) has one row with a missing ``dim``.
        metric: What the scores are.
    """
    figure, axes = plt.subplots(figsize=(8.5, 5))
    ends = {}
    present = [name for name in MODELS if name in set(intervals["recipe"])]
    for number, name in enumerate(present):
        label, colour, line = STYLE[name]
        rows = intervals[intervals["recipe"] == name].sort_values("dim")
        if rows["dim"].isna().any():
            _level(axes, name, rows["mean"].iloc[0])
            continue
        ends[label] = (rows["mean"].iloc[0], colour, line)
        # Side by side, so that no bar hides another.
        places = rows["dim"].astype(float) * 2 ** (0.02 * (number - len(present) / 2))
        errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3}
        axes.errorbar(places, rows["mean"], yerr=errors, elinewidth=1.2, **style)
    dims = sorted(intervals["dim"].dropna().astype(int).unique())
    _dimension_axis(axes, dims)
    axes.set_ylim(0, 1)
    axes.set_title(metric_name(metric))
    _label_ends(axes, ends)
    figure.tight_layout()
    return figure


def plot_training(
    logs: Mapping[str, pd.DataFrame], untrained: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Training in two panels: the loss as a share of its first value, and the dev scores.

    Args:
        logs: For each model the log of its training: columns ``step``, ``loss`` and, for both
            sizes, one such as ``dev_mrr@10_at_64``; NaN where a step has none.
        untrained: For each model its dev scores before training, by the same columns.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
    losses, scores = {}, {}
    for name, log in logs.items():
        label, colour, _ = STYLE[name]
        loss = log.dropna(subset="loss").set_index("step")["loss"]
        left.plot(loss / loss.iloc[0], color=colour)
        losses[label] = (loss.iloc[-1] / loss.iloc[0], colour, "-")
        columns = sorted(untrained[name], key=lambda column: int(column.rsplit("_", 1)[1]))
        for column, line in zip(columns, (":", "-"), strict=True):
            taken = log.dropna(subset=column)
            points = [untrained[name][column], *taken[column]]
            right.plot([0, *taken["step"]], points, color=colour, linestyle=line, marker="o", ms=4)
            scores[f"{label}, {column.rsplit('_', 1)[1]}"] = (points[-1], colour, line)
    metric = metric_name(columns[0].split("_")[1])
    left.set_title("Loss, as a share of its first value")
    right.set_title(f"Dev {metric} by dimensions")
    left.set_ylim(bottom=0)
    for axes, ends in ((left, losses), (right, scores)):
        axes.set_xlabel("step")
        _label_ends(axes, ends)
    figure.tight_layout()
    return figure


def plot_differences(scores: pd.DataFrame, reference: str, title: str) -> Figure:
    """Scores of models as differences from one of them, against the dimensions kept.

    Args:
        scores: One row a model, one column a dimension.
        reference: The model that the others are compared with.
        title: What the differences are of.
    """
    figure, axes = plt.subplots(figsize=(9, 4.2))
    ends = {}
    for name, difference in (scores - scores.loc[reference]).drop(reference).iterrows():
        _line(axes, name, difference.sort_index(ascending=False), ends)
    label, colour, line = STYLE[reference]
    axes.axhline(0, color=colour, linestyle=line)
    ends[label] = (0, colour, line)
    _dimension_axis(axes, sorted(scores.columns))
    axes.set_title(title)
    _label_ends(axes, ends)
    figure.tight_layout()
    return figure


def plot_blocks(scores: pd.DataFrame, title: str) -> Figure:
    """What each block of numbers finds by itself: one line a model.

    Args:
        scores: One row a model, one column a block, called by its first number.
        title: What the scores are.
    """
    figure, axes = plt.subplots(figsize=(9, 4.2))
    ends = {}
    for name, row in scores.iterrows():
        _line(axes, name, row, ends)
    axes.set_xticks(scores.columns)
    axes.set_xlabel("first number of the block")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    _label_ends(axes, ends)
    figure.tight_layout()
    return figure


def plot_shortlists(found: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """What a funnel finds by the length of its shortlist: one panel a column, one line a model.

    Args:
        found: Columns ``model``, ``shortlist`` and those of ``titles``.
        titles: What the columns are called above their panels.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(11, 4.2))
    lengths = sorted(found["shortlist"].unique())
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        ends = {}
        for model in [model for model in MODELS if model in set(found["model"])]:
            rows = found[found["model"] == model].set_index("shortlist")
            _line(axes, model, rows[column].sort_index(), ends)
        axes.set_xscale("log")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("passages in the shortlist")
        axes.set_title(title)
        _label_ends(axes, ends)
    figure.tight_layout()
    return figure


def plot_search(measured: pd.DataFrame, title: str, hollow: Collection[str] = ()) -> Figure:
    """Milliseconds a query against hot bytes a vector, one point a way to search.

    Args:
        measured: Columns ``method``, ``hot_bytes_per_vector`` and ``ms_per_query``.
        title: Of how many vectors, on what.
        hollow: Methods whose points are drawn hollow.
    """
    figure, axes = plt.subplots(figsize=(8.5, 5))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    for row in measured.itertuples():
        colour = SEARCH_COLOURS[row.method.partition("_")[0]]
        inside = "white" if row.method in hollow else colour
        axes.plot(row.hot_bytes_per_vector, row.ms_per_query, "o", color=colour, mfc=inside)
    axes.margins(x=0.22, y=0.1)
    axes.minorticks_off()
    axes.set_xlabel("hot bytes a vector")
    axes.set_ylabel("milliseconds a query")
    axes.set_title(title)
    figure.tight_layout()
    _label_points(axes, measured)
    return figure


def _label_points(axes: Axes, measured: pd.DataFrame) -> None:
    """Write each point's name beside it, where no other name stands."""
    places = axes.transData.transform(measured[["hot_bytes_per_vector", "ms_per_query"]])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for (x, y), name in zip(places, measured["method"], strict=True):
        for up, side in itertools.product((0, 13, -13, 26, -26), (1, -1)):
            text = axes.annotate(
                name.replace("_", " "),
                axes.transData.inverted().transform((x, y)),
                xytext=(7 * side, 0.72 * up),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                color=SEARCH_COLOURS[name.partition("_")[0]],
                fontsize=9.5,
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            if (up, side) != (-26, -1):
                text.remove()


def search_frame(measured: pd.DataFrame, full_dim: int) -> pd.DataFrame:
    """Ways to search in rows: what each keeps, finds and takes, one query on one core.

    Args:
        measured: ``results/search.csv``.
        full_dim: Which of its vectors; what is found was measured on the shorter, real ones.

    Returns:
        Columns ``hot bytes``, ``shortlist or width``, ``Recall@k``, ``MRR@k``, for each number of
        vectors above the real ones ``ms`` and ``times as fast`` as an exact search at full size,
        and for the largest ``build s``.
    """
    chosen = measured[(measured["threads"] == 1) & (measured["batch"] == 1)]
    score_names = [name for name in measured if name.startswith(("recall@", "mrr@"))]
    real = chosen[chosen[score_names[0]].notna()].set_index("method")
    frame = real[["setting", *score_names]].rename(columns={"setting": "shortlist or width"})
    timed = chosen[(chosen["full_dim"] == full_dim) & chosen[score_names[0]].isna()]
    hot = timed.drop_duplicates("method").set_index("method")["hot_bytes_per_vector"]
    frame.insert(0, "hot bytes", hot)
    for count, part in timed.groupby("num_vectors"):
        part = part.set_index("method")
        frame[f"ms at {count:,}"] = part["ms_per_query"]
        frame[f"times as fast at {count:,}"] = part["ratio_to_exact_full"]
    frame[f"build s at {count:,}"] = part["build_seconds"]
    frame.index = frame.index.str.replace("_", " ")
    return frame.rename(columns={name: metric_name(name) for name in score_names})


def search_forms(frame: pd.DataFrame) -> dict[str, str]:
    """How the numbers of each column of :func:`search_frame` are written."""
    forms = {
        name: "{:.3f}" if "@" in name else "{:.3g}" if name[:2] in ("ms", "bu") else "{:.1f}"
        for name in frame
    }
    return forms | dict.fromkeys({"hot bytes", "shortlist or width"} & {*frame}, "{:.0f}")


def search_table(frame: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """:func:`search_frame` for display, the best of each column of times in bold."""
    quickest = [name for name in frame if name.startswith("times")]
    return frame.style.format(
        search_forms(frame) | _bold_highest(frame[quickest], "{:.1f}"), na_rep=""
    ).set_table_styles([{"selector": "td, th", "props": "text-align: right"}])


def _dimension_axis(axes: Axes, dims: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.invert_xaxis()  # from left to right, more is cut, and the lines come apart
    axes.set_xlabel("dimensions kept")


def metric_name(metric: str) -> str:
    """A metric's column name as the field writes it: ``mrr@10`` becomes ``MRR@10``."""
    name, _, k = metric.partition("@")
    return {"mrr": "MRR", "recall": "Recall", "ndcg": "nDCG"}[name] + "@" + k


def _line(
    axes: Axes, model: str, values: pd.Series, ends: dict[str, tuple[float, str, str]]
) -> None:
    """Draw a model's values from left to right and note in ``ends`` where its line ends."""
    label, colour, line = STYLE[model]
    axes.plot(values, color=colour, linestyle=line, marker="o", markersize=4)
    ends[label] = (values.iloc[-1], colour, line)


def _level(axes: Axes, model: str, value: float) -> None:
    """Draw the score of a model that has no dimensions, with its name on the line."""
    label, colour, line = STYLE[model]
    axes.axhline(value, color=colour, linestyle=line)
    across = axes.get_yaxis_transform()
    axes.text(0.01, value, label, color=colour, va="bottom", transform=across, fontsize=10)


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str, str]]) -> None:
    """Write each line's name beside its right end, moved apart where they would overlap, after a
    piece of the line that leads there.

    Args:
        axes: Where the lines are; set its limits first.
        ends: For each name the height at which its line ends, its colour and how it is drawn.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 0.058
    places = sorted(ends.items(), key=lambda item: item[1][0])
    heights = [value for _, (value, _, _) in places]
    across = axes.get_yaxis_transform()
    for _ in range(100):  # push each pair that is too close apart, equally
        for i in range(1, len(heights)):
            if (short := gap - (heights[i] - heights[i - 1])) > 1e-6:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
    for (label, (value, colour, line)), height in zip(places, heights, strict=True):
        lead, sample = [(1, value), (1.03, height)], [(1.03, height), (1.09, height)]
        drawn = {"colors": colour, "linewidths": 1.2, "transform": across, "clip_on": False}
        axes.add_artist(LineCollection([lead], alpha=0.4, **drawn))
        axes.add_artist(LineCollection([sample], linestyles=line, **drawn))
        axes.text(1.1, height, label, color=colour, va="center", transform=across, fontsize=10)


def _bold_highest(frame: pd.DataFrame, form: str) -> dict[str, Callable[[float], str]]:
    """For each column how its values are written, the highest in bold: by a tag, which remains
    where a page strips a table's styles.
    """

    def written(highest: float) -> Callable[[float], str]:
        return lambda value: (
            f"<b>{form.format(value)}</b>" if value == highest else form.format(value)
        )

    return {column: written(frame[column].max()) for column in frame}


def score_table(scores: pd.DataFrame, metric: str) -> "pd.io.formats.style.Styler":
    """Models by dimensions, the best of each column in bold.

    Args:
        scores: As for :func:`plot_scores`.
        metric: The column to show.
    """
    wide = wide_scores(scores, metric)
    return (
        wide.style.format(_bold_highest(wide, "{:.3f}"), na_rep="")
        .set_caption(metric_name(metric))
        .set_table_styles([{"selector": "td, th", "props": "text-align: right"}])
    )


def before_after_frame(scores: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The base and the tuned model, and their difference: rows metric and model.

    Args:
        scores: As for :func:`plot_scores`, with the models ``base`` and ``tuned``.
        metrics: The columns to show.
    """
    blocks = {}
    for metric in metrics:
        wide = wide_scores(scores, metric)
        names = {"before": STYLE["base"][0], "after": STYLE["tuned"][0]}
        block = wide.loc[list(names.values())].set_axis([*names], axis=0)
        block.loc["difference"] = block.loc["after"] - block.loc["before"]
        blocks[metric_name(metric)] = block
    return pd.concat(blocks)


def before_after(scores: pd.DataFrame, metrics: list[str]) -> "pd.io.formats.style.Styler":
    """:func:`before_after_frame` for display: three decimals, differences with a sign."""
    frame = before_after_frame(scores, metrics)
    differences = pd.IndexSlice[pd.IndexSlice[:, "difference"], :]
    return frame.style.format("{:.3f}").format("{:+.3f}", subset=differences)


def left_aligned(
    styler: "pd.io.formats.style.Styler", columns: list[str]
) -> "pd.io.formats.style.Styler":
    """A table for display with columns of text to the left; numbers stay to the right."""
    rules = {column: [{"selector": "", "props": "text-align: left"}] for column in columns}
    return styler.set_table_styles(rules, overwrite=False)


def prediction_table(
    predicted: Mapping[str, float], measured: Mapping[str, float], form: str = "{:.3f}"
) -> "pd.io.formats.style.Styler":
    """What was predicted and what was measured, in rows, and the difference with its sign.

    Args:
        predicted: The values by what they are of; a unit stands in the name.
        measured: The same names.
        form: How a value is written.

    Raises:
        ValueError: something was predicted and not measured, or the other way round.
    """
    if odd := set(predicted) ^ set(measured):
        raise ValueError(f"{sorted(odd)[0]!r} is not in both predicted and measured")
    frame = pd.DataFrame({"predicted": predicted, "measured": measured}).loc[list(predicted)]
    frame["measured - predicted"] = frame["measured"] - frame["predicted"]
    signed = form.replace("{:", "{:+")
    return frame.style.format(form).format(signed, subset=["measured - predicted"])


def difference_table(differences: pd.DataFrame, metric: str) -> "pd.io.formats.style.Styler":
    """Paired differences for display, those that are seen in bold.

    Args:
        differences: Columns ``before``, ``after`` (models), ``dim``, ``mean``, ``low``, ``high``
            (of after minus before) and ``p_value``.
        metric: What was compared.
    """
    names = {model: label for model, (label, _, _) in STYLE.items()}
    shown = differences.replace({"before": names, "after": names})
    seen = (differences["low"] > 0) | (differences["high"] < 0)
    shown["mean"] = [
        f"<b>{mean:+.3f}</b>" if bold else f"{mean:+.3f}"
        for mean, bold in zip(shown["mean"], seen, strict=True)
    ]
    shown["95% interval"] = [
        f"{low:+.3f} to {high:+.3f}" for low, high in shown[["low", "high"]].values
    ]
    shown["p"] = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in shown["p_value"]]
    columns = ["dim", "before", "after", "mean", "95% interval", "p"]
    table = (
        shown[columns]
        .style.format(escape="html", subset=["before", "after", "p"])
        .set_caption(f"{metric_name(metric)}, after minus before")
        .hide()
    )
    return left_aligned(table, ["before", "after"])


def seeds_frame(differences: pd.DataFrame) -> pd.DataFrame:
    """Paired differences of several training seeds, one row for each pair of methods.

    Args:
        differences: Columns ``before``, ``before_dim``, ``after``, ``after_dim``, ``seed``,
            ``mean``, ``low``, ``high`` and ``p_value``.

    Returns:
        Columns ``before``, ``after``, ``mean`` over the seeds, ``min`` and ``max`` of them, and
        in how many seeds the whole interval lies above zero (``gains``) or below (``losses``).
    """
    rows = []
    keys = ["before", "before_dim", "after", "after_dim"]
    for (before, before_dim, after, after_dim), part in differences.groupby(keys, sort=False):
        rows.append(
            {
                "before": f"{STYLE[before][0]} at {before_dim}",
                "after": f"{STYLE[after][0]} at {after_dim}",
                "mean": part["mean"].mean(),
                "min": part["mean"].min(),
                "max": part["mean"].max(),
                "gains": f"{(part['low'] > 0).sum()} of {len(part)}",
                "losses": f"{(part['high'] < 0).sum()} of {len(part)}",
            }
        )
    return pd.DataFrame(rows)


def seeds_table(differences: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """:func:`seeds_frame` for display: differences with a sign."""
    frame = seeds_frame(differences)
    shown = frame.style.format("{:+.3f}", subset=["mean", "min", "max"]).hide()
    return left_aligned(shown, ["before", "after"])


def lead_sentence(differences: pd.DataFrame, dim: int) -> str:
    """How far the tuned recipe leads the rotated control, over the seeds of the study.

    Args:
        differences: As for :func:`seeds_frame`, with that pair at ``dim``.
        dim: Dimensions kept.
    """
    pair = (differences["before"] == "mnrl_rotated") & (differences["after"] == "tuned")
    part = differences[pair & (differences["after_dim"] == dim)]
    row = seeds_frame(part).iloc[0]
    return (
        f"That is one training. Over the {len(part)} seeds of the study that notebooks 4 and 5 "
        f"read, the lead at {dim} over {STYLE['mnrl_rotated'][0]}, is {row['mean']:+.3f} on "
        f"average ({row['min']:+.3f} to {row['max']:+.3f}), and sure in {row['gains']}: there its "
        "95% interval lies above zero."
    )


def difference_sentences(differences: pd.DataFrame, metric: str) -> list[str]:
    """Each paired difference as a sentence, for a reader who skips tables.

    Args:
        differences: As for :func:`difference_table`.
        metric: What was compared.
    """
    sentences = []
    for row in differences.itertuples():
        before, after = STYLE[row.before][0], STYLE[row.after][0]
        if row.low <= 0 <= row.high:
            verdict = "no difference seen between"
            names = f"{after} and {before}"
        else:
            verdict = f"{after} {'gains' if row.mean > 0 else 'loses'} {abs(row.mean):.3f} against"
            names = before
        interval = f"({row.low:+.3f} to {row.high:+.3f})"
        sentences.append(f"{metric_name(metric)} at {row.dim}: {verdict} {names} {interval}.")
    return sentences


def markdown_table(scores: pd.DataFrame, metric: str) -> str:
    """:func:`wide_scores` as a Markdown table, the best of each column in bold."""
    wide = wide_scores(scores, metric)
    best = wide.max()
    lines = [
        f"| {metric_name(metric)} | " + " | ".join(wide.columns) + " |",
        "| --- " + "| ---: " * len(wide.columns) + "|",
    ]
    for name, row in wide.iterrows():
        cells = ["" if pd.isna(value) else f"{value:.3f}" for value in row]
        cells = [
            f"**{text}**" if value == best[dim] else text
            for text, (dim, value) in zip(cells, row.items(), strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def wide_scores(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a model, under its full name, and one column a dimension; BM25 under the last."""
    full = int(scores["dim"].dropna().max())
    rows = scores.assign(dim=scores["dim"].fillna(full).astype(int))
    wide = rows.pivot(index="model", columns="dim", values=metric)
    wide = wide.loc[[model for model in MODELS if model in wide.index]]
    wide.index = [STYLE[model][0] for model in wide.index]
    wide.columns = [f"{dim} dims" if dim != full else f"full ({dim})" for dim in wide.columns]
    return wide
