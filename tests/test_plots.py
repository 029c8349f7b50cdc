"""Tables and figures, on scores that are easy to check by eye."""

import ast
import itertools
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.text import Text

from helpers.config import ROOT
from helpers.plots import STYLE, lines, markdown_table, score_table, wide

ROWS = [
    ("tuned", 64, 0.4, 0.9),
    ("tuned", 384, 0.8, 0.95),
    ("bm25", None, 0.6, 0.7),
    ("base", 64, 0.2, 0.3),
    ("base", 384, 0.5, 0.6),
    ("mnrl", 384, 0.8, 0.85),
    ("mnrl", 64, 0.55, 0.65),
    ("mnrl_rotated", 64, 0.55, 0.7),
    ("mnrl_rotated", 384, 0.8, 0.85),
]
SCORES = pd.DataFrame(ROWS, columns=["model", "dim", "mrr@10", "recall@10"])
MODELS = ["bm25", "base", "mnrl", "mnrl_rotated", "tuned"]  # the order of all tables and figures
NAMES = [STYLE[model][0] for model in MODELS]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_both_tables_hold_the_scores_with_a_row_a_model():
    head, rule, *rows = markdown_table(SCORES, "mrr@10").splitlines()
    assert (head, rule) == ("| MRR@10 | 64 | 384 |", "| --- | ---: | ---: |")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == NAMES
    frame = wide(SCORES, "mrr@10")
    assert [*frame.index] == MODELS and frame.loc["bm25", 384] == 0.6
    found = [[float(cell or -1) for cell in row[1:]] for row in cells]
    assert found == frame.fillna(-1).to_numpy().tolist()
    assert rows[2] == "| plain MNRL | 0.550 | 0.800 |"
    html = score_table(frame, "MRR@10 on test").to_html()
    assert re.findall(r'level0 row\d" >([^<]+)<', html) == NAMES and "nan" not in html.lower()


def test_the_figure_has_a_line_a_model_and_bm25_as_a_level():
    frame = wide(SCORES, "mrr@10")
    (axes,) = lines(frame, "a finding", ylabel="MRR").axes
    drawn = {line.get_color(): line for line in axes.lines if line.get_linestyle() != "None"}
    assert drawn[STYLE["tuned"][1]].get_xydata().tolist() == [[64, 0.4], [384, 0.8]]
    assert drawn[STYLE["bm25"][1]].get_xydata().tolist() == [[0, 0.6], [1, 0.6]]  # all across
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "384"]
    assert (axes.get_title("left") or axes.get_title(), axes.get_ylabel()) == ("a finding", "MRR")


@pytest.mark.parametrize(("models", "spread"), [(MODELS, 1), (MODELS, 0), ([*STYLE], 0)])
def test_every_line_has_its_name_and_no_two_overlap(models, spread):
    frame = wide(SCORES, "mrr@10").reindex(models).fillna(0.5)
    frame[384] = 0.8 + (frame[384] - 0.8) * spread  # at 0 all lines end in one point
    figure = lines(frame, "a finding")
    (axes,) = figure.axes
    figure.canvas.draw()
    texts = sorted(axes.texts, key=lambda text: text.get_position()[1])
    assert sorted(text.get_text() for text in texts) == sorted(STYLE[model][0] for model in models)
    boxes = [Text.get_window_extent(text) for text in texts]  # without the arrow
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    assert all(box.x0 > axes.get_window_extent().x1 for box in boxes)


@pytest.mark.parametrize(("name", "cell"), [("02_data", "02-06"), ("05_evaluation", "05-22")])
def test_html_in_texts_is_shown_and_not_obeyed(name, cell):
    texts = pd.DataFrame({"rows": [2], "title": ["<script>x</script> & so on"]}, index=["<i>"])
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    source = next(found.source for found in notebook.cells if found.id == cell)
    table = ast.unparse(ast.parse(source).body[-2:])  # the table, and how it is shown
    space = {
        "kept": SimpleNamespace(table=lambda: texts),
        "demo": SimpleNamespace(loc={8: texts}),
        "QUERY": "",
        "left": {"selector": "td", "props": "text-align: left"},
    }
    exec(table, space)
    page = space["table"].to_html() + score_table(texts[["rows"]]).to_html()
    assert "&lt;script&gt;x&lt;/script&gt; &amp; so on" in page
    assert page.count("&lt;i&gt;") == 1 + (name == "02_data"), "rows' names too, where texts are"
