"""A query of the reader's own, searched at any number of dimensions: a slider, and a table."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import ipywidgets
import pandas as pd
import torch
from IPython.display import display

from helpers.metrics import prefix
from helpers.plots import STYLE
from helpers.search import search

FEWEST = 8  # dimensions at the left end of the slider


class Explorer:
    """Searches one corpus with several models, at any prefix length.

    Args:
        encoders: For each model, by its name in ``STYLE``, what turns a query's text into an
            embedding: ``(full_dim,)``.
        corpora: For each model, the embeddings of the passages: ``(num_passages, full_dim)``.
        titles: What is shown of each passage, in the order of the rows.
        k: Passages to show for each model.

    Raises:
        ValueError: models that differ, no passages, or other numbers of titles than of passages.
    """

    def __init__(
        self,
        encoders: Mapping[str, Callable[[str], torch.Tensor]],
        corpora: Mapping[str, torch.Tensor],
        titles: Sequence[str],
        k: int = 5,
    ):
        if not encoders or set(encoders) != set(corpora):
            raise ValueError(
                f"encoders are of {sorted(encoders)}, corpora of {sorted(corpora)}: "
                "both must hold the same models"
            )
        if unknown := sorted(set(encoders) - set(STYLE)):
            raise ValueError(f"model is {unknown[0]!r}: allowed are {', '.join(STYLE)}")
        if not len(titles):
            raise ValueError("there are no passages to search")
        if wrong := {len(corpus) for corpus in corpora.values()} - {len(titles)}:
            raise ValueError(f"there are {len(titles)} titles, but {wrong.pop()} passages")
        self.encoders, self.corpora, self.titles = dict(encoders), dict(corpora), list(titles)
        self.k = min(k, len(titles))
        self.full_dim = min(corpus.shape[1] for corpus in corpora.values())
        self.asked: dict[str, torch.Tensor] = {}  # the embeddings of the last query
        self.right: dict[str, set[int]] = {}  # what is found for it at full size

    def ask(self, query: str) -> None:
        """Embed a query with every model; what is found is read with :meth:`found`."""
        self.asked = {name: encode(query)[None] for name, encode in self.encoders.items()}
        self.right = {name: {*self.found(name, self.full_dim)} for name in self.asked}

    def found(self, name: str, dim: int) -> list[int]:
        """Row numbers of the first ``k`` passages for the last query, best first."""
        query, corpus = self.asked[name], self.corpora[name]
        return search(prefix(query.float(), dim), prefix(corpus.float(), dim), self.k)[0].tolist()

    def table(self, dim: int) -> str:
        """What each model finds at ``dim`` dimensions, as HTML.

        Passages that the same model does not find at full size are in italics.
        """
        columns = {}
        for name in self.encoders:
            columns[STYLE[name][0]] = [
                _cell(self.titles[row], row in self.right[name]) for row in self.found(name, dim)
            ]
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        rows = "".join(
            f"<tr><td>{rank}</td>{''.join(cells)}</tr>"
            for rank, cells in enumerate(zip(*columns.values(), strict=True), start=1)
        )
        return (
            f'<table class="matryoshka-passages"><thead><tr><th>rank</th>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )

    def overview(self, query: str) -> pd.DataFrame:
        """The first passage at several sizes, and how many of the first ``k`` full size finds, too.

        One row a size, two columns a model.
        """
        self.ask(query)
        rows = {}
        dims = [FEWEST * 2**i for i in range(20) if FEWEST * 2**i < self.full_dim]
        for dim in [*dims, self.full_dim]:
            row = rows[dim] = {}
            for name in self.encoders:
                here = self.found(name, dim)
                same = len({*here} & self.right[name])
                row[STYLE[name][0], "first passage"] = self.titles[here[0]]
                row[STYLE[name][0], "found at full size, too"] = f"{same} of {self.k}"
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("dimensions")
        frame.columns = pd.MultiIndex.from_tuples(frame.columns)
        return frame

    def show(self, query: str) -> None:
        """Display the overview, which needs no widgets, and below it a query and a slider.

        Where widgets do not run (on a code host, in a saved page) the overview is all that is seen.
        """
        left = {"selector": "td, th", "props": "text-align: left"}
        display(self.overview(query).style.set_table_styles([left]).set_caption(query))
        display(self.widget(query))

    def widget(self, query: str) -> ipywidgets.VBox:
        """A text box, a slider over the dimensions, and the passages that belong to both."""
        self.ask(query)
        wide = ipywidgets.Layout(width="36em")
        text = ipywidgets.Text(query, description="query", continuous_update=False, layout=wide)
        slider = ipywidgets.IntSlider(
            self.full_dim,
            min=min(FEWEST, self.full_dim),
            max=self.full_dim,
            description="dimensions",
            layout=wide,
        )
        passages = ipywidgets.HTML(self.table(slider.value))

        def renew(change) -> None:
            if change["owner"] is text and text.value.strip():
                self.ask(text.value)
            passages.value = self.table(slider.value)

        for control in (text, slider):
            control.observe(renew, "value")
        box = ipywidgets.VBox([text, slider, passages])
        box.add_class("matryoshka-explorer")
        return box


def _cell(title: str, right: bool) -> str:
    text = escape(title) if right else f"<i>{escape(title)}</i>"
    return f'<td style="text-align: left">{text}</td>'
