"""One look for figures and tables: a model keeps its name, colour and place in all of them."""

import io
from collections.abc import Iterable

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

# Okabe and Ito's palette, which colour-blind readers can tell apart, and one colour of Tol's.
STYLE = {
    "bm25": ("BM25", "#7f7f7f", ":"),
    "base_random": ("base, random dimensions", "#CC79A7", "--"),
    "base": ("base", "#000000", "-"),
    "base_rotated": ("base, rotated", "#E69F00", "--"),
    "adapter": ("base, with an adapter", "#E69F00", "-"),
    "mnrl": ("plain MNRL", "#56B4E9", "-"),
    "mnrl_rotated": ("plain MNRL, rotated", "#0072B2", "--"),
    "mnrl_rotated_first": ("plain MNRL, rotated first", "#0072B2", ":"),
    "matryoshka": ("standard Matryoshka", "#009E73", "-"),
    "matryoshka_rotated": ("standard, rotated", "#009E73", "--"),
    "matryoshka_short": ("standard + a prefix of 32", "#009E73", ":"),
    "matryoshka_short_rotated": ("standard + 32, rotated", "#009E73", "-."),
    "only_64": ("trained for 64 only", "#882255", "-."),
    "tuned": ("tuned Matryoshka", "#D55E00", "-"),
    "averaged": ("tuned, averaged with base", "#D55E00", ":"),
}


def look(model: str) -> tuple[str, str, str]:
    """Return a model's name for people, colour and line; one that isn't in STYLE is grey."""
    return STYLE.get(model, (model, "#999999", "-"))


def in_order(models: Iterable[str]) -> list[str]:
    """Sort models as in STYLE, then those that aren't in it."""
    return sorted(models, key=lambda model: [*STYLE, model].index(model))


def use_style() -> None:
    """Set the look of the figures that follow: white ground, no frame, a faint grid."""
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
    """Show a figure at twice the screen's resolution, with a text for who can't see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight")
    plt.close(figure)
    image = Image(buffer.getvalue(), retina=True)  # Colab's IPython knows no `alt` here
    display(image, metadata={"image/png": {"alt": alt}})


def metric_name(metric: str) -> str:
    """Write a metric's column name as people do: ``mrr@10`` becomes ``MRR@10``."""
    name, _, k = metric.partition("@")
    return {"mrr": "MRR", "recall": "Recall", "ndcg": "nDCG"}[name] + "@" + k


def wide(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Turn the columns ``model``, ``dim`` and ``metric`` into one row a model, one column a dim.

    BM25, which has no ``dim``, is put under full size.
    """
    full = int(scores["dim"].dropna().max())
    rows = scores.assign(dim=scores["dim"].fillna(full).astype(int))
    frame = rows.pivot(index="model", columns="dim", values=metric)
    return frame.loc[in_order(frame.index)]


def score_table(frame: pd.DataFrame, caption: str = "", form: str = "{:.3f}") -> Styler:
    """Style scores, as from :func:`wide`, for display."""
    named = frame.rename(index=lambda model: STYLE.get(model, (model,))[0])
    named = named.rename_axis(index=None, columns=None)
    right = {"selector": "td, th", "props": "text-align: right"}
    table = named.style.format(form, na_rep="").format_index(escape="html")
    return table.set_caption(caption).set_table_styles([right])


def markdown(frame: pd.DataFrame, texts: int = 1, **forms: str) -> str:
    """Write a Markdown table: its first columns are texts, ``forms`` say how to write numbers."""
    rows = [[*frame], ["---"] * texts + ["---:"] * (len(frame.columns) - texts)]
    for row in frame.itertuples(index=False, name=None):
        cells = zip(frame, row, strict=True)
        rows.append(["" if pd.isna(x) else forms.get(n, "{}").format(x) for n, x in cells])
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def markdown_table(scores: pd.DataFrame, metric: str) -> str:
    """Write scores, as for :func:`wide`, as a Markdown table."""
    frame = wide(scores, metric)
    cells = frame.map("{:.3f}".format, na_action="ignore")
    cells.index = [look(model)[0] for model in frame.index]
    return markdown(cells.reset_index(names=metric_name(metric)))


def lines(
    frame: pd.DataFrame,
    title: str,
    ylabel: str = "",
    xlabel: str = "dimensions kept",
    log: bool = True,
) -> Figure:
    """Draw one line a model, over a logarithmic axis if ``log``, with its name at the line's end.

    ``frame`` has one row a model, and one ascending numeric column for each point. A model with a
    single value, such as BM25, becomes a level.
    """
    figure, axes = plt.subplots(figsize=(3.8, 3.4))
    ends = {}
    for model, row in frame.iterrows():
        label, colour, line = look(model)
        values = row.dropna()
        if len(values) == 1:
            axes.axhline(values.iloc[0], color=colour, linestyle=line)
        else:
            axes.plot(values, color=colour, linestyle=line, marker="o", markersize=4)
        ends[label] = (values.iloc[-1], colour)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_xticks([*frame.columns], [f"{column:g}" for column in frame.columns])
        axes.minorticks_off()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    label_ends(axes, ends)
    return figure


def label_ends(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Write each line's name to the right of its end, moved apart where names would overlap.

    ``ends`` has for each name the height of its line's end, and its colour. Set the limits first.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 0.068
    names = sorted(ends, key=lambda name: ends[name][0])
    heights = [ends[name][0] for name in names]
    for _ in range(1000):  # push pairs that are too close apart, and none into the title
        for i in range(1, len(heights)):
            if (short := gap - (heights[i] - heights[i - 1])) > 0:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
        heights[-1] = min(heights[-1], high - gap / 2)
    across = axes.get_yaxis_transform()
    for name, height in zip(names, heights, strict=True):
        value, colour = ends[name]
        axes.annotate(
            name,
            (1, value),
            (1.04, height),
            xycoords=across,
            textcoords=across,
            color=ink(colour),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "shrinkA": 0},
        )


def ink(colour: str) -> tuple[float, ...]:
    """Return a colour as dark as text must be on white: a contrast of 4.5 (WCAG 2, level AA)."""
    parts = to_rgb(colour)
    luminance = sum(w * part**2.2 for w, part in zip((0.21, 0.72, 0.07), parts, strict=True))
    darker = min(1.0, 0.18 / max(luminance, 0.18)) ** (1 / 2.2)
    return tuple(darker * part for part in parts)
