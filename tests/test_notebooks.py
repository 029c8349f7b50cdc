"""What a reader may expect of every notebook, and of the repository around them."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager

from helpers.collection import collect
from helpers.config import FURTHER, NOTEBOOKS, PRESETS, ROOT
from helpers.triplets import TripletFilter
from notebooks.exercises.checks import EXERCISES

PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
OPTIONAL = [ROOT / "notebooks" / f"{name}.ipynb" for name in FURTHER]


def read(path):
    found = nbformat.read(path, as_version=4)
    found.metadata["path"] = path
    return found


@pytest.fixture(params=PATHS, ids=NOTEBOOKS)
def notebook(request):
    """Each numbered notebook."""
    return read(request.param)


@pytest.fixture(params=OPTIONAL, ids=FURTHER)
def optional(request):
    return read(request.param)


@pytest.fixture(params=PATHS + OPTIONAL, ids=NOTEBOOKS + FURTHER)
def any_notebook(request):
    return read(request.param)


def is_exercise(cell):
    return "exercise" in cell.metadata.get("tags", [])


def code_cells(notebook):
    """The code cells of a lesson: without the hidden first one and the exercises."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells[1:] if not is_exercise(cell)]


def prose(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    return "\n".join(cell.source for cell in cells if not is_exercise(cell))


def test_every_notebook_is_in_the_lists_and_each_optional_one_is_linked():
    assert sorted(PATHS) == sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(OPTIONAL) == sorted((ROOT / "notebooks" / "going_further").glob("*.ipynb"))
    linked = set()
    for path in PATHS:
        linked |= set(re.findall(r"\]\((going_further/\w+)\.ipynb\)", prose(read(path))))
    assert linked == {*FURTHER}


def test_an_optional_one_asks_one_question_and_answers_it(optional):
    title, answer = optional.cells[0].source.split("\n\n")[:2]
    assert re.fullmatch(r"# .+\?", title)
    assert answer.startswith("**The answer:** ")
    assert "](../glossary.md)" in optional.cells[0].source
    last = optional.cells[-1].source
    assert last[last.index("## Recap") :].count("\n- ") >= 3 and "**Back to**" in last


def test_code_can_be_read_on_half_a_screen(any_notebook):
    for cell in code_cells(any_notebook):
        lines = cell.source.splitlines()
        most = 25 if "SentenceTransformerTrainer(" in cell.source else 20
        assert len(lines) <= most, cell.source
        assert max(map(len, lines)) <= 79, max(lines, key=len)


def first_cell(path):
    return next(cell for cell in read(path).cells if cell.cell_type == "code")


def test_no_query_finds_its_own_text_in_notebook_5_or_6():
    """Each text is a query, and the passage that answers another one."""
    pairs = [(f"How is thing {i}", f"Tell me how {i} is") for i in range(40)]
    experiment = PRESETS["smoke"].replace(num_dev=10, num_test=20, batch_size=2, full_dim=96)
    kept = TripletFilter(experiment.replace(min_passage_words=1))
    for query, positive in pairs + [pair[::-1] for pair in pairs]:
        kept.add({"query": query, "positive": positive})
    data = collect(kept)
    test, texts = data.split("test"), data.passages["text"].tolist()
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.functional.normalize(torch.randn(80, 96, generator=generator), dim=1)
    rows = [texts.index(text) for text in test.queries]
    q = p[rows] + p[[min(right) for right in test.qrels]] / 2
    known = {"experiment": experiment, "test": test, "passages": texts, "pd": pd}
    known |= {"q": q, "p": p, "full": 96, "small": 64, "k": 10, "embeddings": {"tuned": (q, p)}}
    for name, part in (("05_evaluation", "evaluate_ranking(ranking"), ("06_deployment", "def ")):
        for cell in code_cells(read(ROOT / "notebooks" / f"{name}.ipynb")):
            if part in cell.source:
                exec(cell.source, known)
    scores = known["scores"].set_index(["model", "dim"])["mrr@10"]
    assert scores["tuned", 96] == 1
    for dim in (64, 96):
        assert known["mrr"](q, p, dim) == scores["tuned", dim]
    ranking = known["funnel"](q, p, 80, test.depth(10)).tolist()
    assert known["evaluate_ranking"](ranking, test, 80, 10)["mrr@10"].item() == 1


@pytest.mark.parametrize(("lost", "rows"), [(1, 99), (2, 100)])
def test_queries_without_a_mined_negative_train_with_a_random_one_if_they_are_many(lost, rows):
    """One of a hundred is dropped; from two on, all of them are filled."""
    cells = nbformat.read(ROOT / "notebooks" / "02_data.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "mined.columns" in cell.source)
    table = pd.DataFrame(
        {"query": [f"q{i}" for i in range(100)], "positive": "p", "negative": None}
    )
    mined = table[lost:].assign(negative="n").set_axis(["query", "positive", "negative_1"], axis=1)
    data = SimpleNamespace(fill_negatives=lambda rows, seed: rows.fillna(f"random {seed}"))
    known = {"rows": table, "mined": mined, "data": data, "experiment": PRESETS["smoke"]}
    exec(source, known)
    found = known["triplets"]
    assert len(found) == rows and [*found] == [*table] and [*found.index] == [*range(rows)]
    assert (found["negative"] == "random 2611").sum() == rows - 100 + lost


def test_the_first_cell_is_hidden_and_the_same_in_all(any_notebook):
    first = first_cell(any_notebook.metadata["path"])
    assert first.source == first_cell(PATHS[0]).source
    assert first.metadata["jupyter"]["source_hidden"] and first.metadata["cellView"] == "form"
    assert (ROOT / "requirements-colab.txt").is_file() and "requirements-colab.txt" in first.source


def test_the_first_cell_finds_the_repository_or_says_where_to_run_it(tmp_path):
    code = TransformerManager().transform_cell(first_cell(PATHS[0]).source)
    code += "\nimport helpers; print(helpers.__file__)"
    for folder in (ROOT, ROOT / "notebooks" / "going_further", tmp_path):
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if folder == tmp_path:
            line = f"Run this in the repository's notebooks/, not in {tmp_path}\n"
            assert done.stderr == line
        else:
            assert Path(done.stdout.strip()).parent == ROOT / "helpers", done.stderr


def test_the_preset_is_chosen_in_one_cell_of_the_first_notebook():
    for path in PATHS:
        chosen = [cell for cell in code_cells(read(path)) if "nbmake" in cell.metadata]
        assert len(chosen) == (path.stem == "01_setup")
        for cell in chosen:
            assert cell.source.startswith('PRESET = "wikipedia"')
            assert cell.metadata["nbmake"]["mock"]["PRESET"] in PRESETS
            assert cell.metadata["tags"] == ["parameters"], "papermill sets it with -p PRESET"


def test_a_text_says_why_before_code(any_notebook):
    kinds = [cell.cell_type for cell in any_notebook.cells]
    for before, kind in itertools.pairwise(kinds):
        assert kind != "code" or before == "markdown"


def test_it_opens_with_the_takeaway_and_closes_with_a_recap(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    for promise in ("**The one takeaway:**", "In this notebook we", "](glossary.md)"):
        assert promise in first
    text = prose(notebook)
    recap = text[text.index("## Recap") :]
    assert recap.count("\n- ") >= 3
    assert "**Written:**" in recap and "**Go further:**" in recap and "**Next:**" in last


def test_two_exercises_end_it_and_are_checked(notebook):
    marked = [is_exercise(cell) for cell in notebook.cells]
    assert marked == [False] * (len(marked) - 5) + [True] * 4 + [False]
    name = notebook.metadata["path"].stem
    solution = ROOT / "notebooks" / "exercises" / "solutions" / f"{name}.py"
    assert f"](exercises/solutions/{name}.py)" in notebook.cells[-5].source
    for text, code in zip(notebook.cells[-5:-1:2], notebook.cells[-4:-1:2], strict=True):
        checked = re.search(r'^check\("(\w+)", (.*)\)$', code.source, re.MULTILINE)
        assert checked[1] in EXERCISES
        for function in checked[2].split(", "):
            stub = re.search(rf"^def ({function}\(.*\)): \.\.\.$", code.source, re.MULTILINE)
            assert f"`{stub[1]}`" in text.source, "the text names function and arguments"
            assert f"def {function}(" in solution.read_text(encoding="utf-8")


def anchors(path):
    """The headings of a notebook or a Markdown file, as links name them."""
    if path.suffix == ".ipynb":
        text = prose(nbformat.read(path, as_version=4))
        return {h.replace("`", "").replace(" ", "-") for h in re.findall("^#+ (.+)$", text, re.M)}
    headings = re.findall("^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize(
    "path",
    [
        *PATHS,
        *OPTIONAL,
        *map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "notebooks/scripts/README.md")),
    ],
    ids=lambda p: p.name,
)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for target, anchor in re.findall(r"\]\(([^)#\s]+)(?:#([^)]+))?\)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).resolve().exists(), target
            assert not anchor or anchor in anchors((path.parent / target).resolve()), anchor


def test_no_score_is_typed_into_prose(any_notebook):
    # A score has two or three decimals; prose leaves those to the cells that print them.
    assert not re.findall(r"(?<![\w.])0?\.\d{2,3}\b", prose(any_notebook))
