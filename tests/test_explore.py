"""The slider: what it finds at each size, and what is shown where widgets do not run."""

import pytest
import torch

from helpers.explore import Explorer
from helpers.plots import STYLE

# At 8 numbers the query is nearest to "far", at 16 to "near"; "<b>" must not become a tag.
TITLES = ["near", "far", "other", "<b>"]
PASSAGES = torch.zeros(4, 16)
PASSAGES[0, [0, 1, 9]] = torch.tensor([0.5, 0.3, 0.8])
PASSAGES[1, [0, 10]] = torch.tensor([0.6, 0.8])
PASSAGES[2, [2, 11]] = torch.tensor([0.6, 0.8])
PASSAGES[3, [3, 12]] = torch.tensor([0.6, 0.8])
QUERY = torch.zeros(16)
QUERY[[0, 9]] = torch.tensor([0.6, 0.8])


@pytest.fixture
def explorer():
    asked = []

    def encode(text):
        asked.append(text)
        return QUERY if text == "where" else PASSAGES[2]

    found = Explorer(
        {"base": encode, "tuned": encode}, dict.fromkeys(("base", "tuned"), PASSAGES), TITLES, k=2
    )
    found.texts = asked
    return found


def test_it_finds_what_the_prefix_finds(explorer):
    explorer.ask("where")
    assert explorer.found("base", 8)[0] == 1
    assert explorer.found("base", 16)[0] == 0


def test_the_overview_has_a_row_a_size_and_says_how_much_stays(explorer):
    overview = explorer.overview("where")
    assert [*overview.index] == [8, 16]
    base = overview[STYLE["base"][0]]
    assert base["first passage"].tolist() == ["far", "near"]
    assert base["found at full size, too"].tolist() == ["2 of 2", "2 of 2"]


def test_the_slider_and_the_text_box_change_the_table(explorer):
    text, slider, passages = explorer.widget("where").children
    assert (slider.min, slider.max, slider.value) == (8, 16, 16)
    at_full = passages.value
    assert at_full.index("near") < at_full.index("far")
    slider.value = 8
    assert passages.value.index("far") < passages.value.index("near")
    text.value = "what else"
    assert explorer.texts[-1] == "what else"
    assert "other" in passages.value
    before = passages.value
    text.value = "  "
    assert passages.value == before


def test_moving_the_slider_embeds_nothing_again(explorer):
    _, slider, _ = explorer.widget("where").children
    asked = len(explorer.texts)
    slider.value = 9
    assert len(explorer.texts) == asked


def test_what_full_size_does_not_find_is_in_italics_and_titles_are_escaped(explorer):
    explorer.k = 1
    explorer.ask("where")
    assert "<i>far</i>" in explorer.table(8)
    assert "<i>" not in explorer.table(16)
    explorer.k = 4
    explorer.ask("where")
    assert "<i>" not in explorer.table(8)
    assert "&lt;b&gt;" in explorer.table(8)
    assert "<b>" not in explorer.table(8)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="both must hold the same models"):
        Explorer({"base": len}, {"tuned": PASSAGES}, TITLES)
    with pytest.raises(ValueError, match="there are 3 titles, but 4 passages"):
        Explorer({"base": len}, {"base": PASSAGES}, TITLES[:3])
    with pytest.raises(ValueError, match="there are no passages"):
        Explorer({"base": len}, {"base": PASSAGES[:0]}, [])
    with pytest.raises(ValueError, match="model is 'best': allowed are bm25"):
        Explorer({"best": len}, {"best": PASSAGES}, TITLES)


def test_a_page_without_widgets_has_the_overview(explorer, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("helpers.explore.display", shown.append)
    explorer.show("where")
    table, widget = shown
    assert "near" in table.to_html()
    assert "where" in table.to_html()
    assert "matryoshka-explorer" in widget._dom_classes
