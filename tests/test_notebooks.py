"""What every notebook must keep to, read from the files; nbmake executes them besides."""

import ast
import itertools
import re

import nbformat
import pytest

from helpers.artifacts import NOTEBOOKS
from helpers.config import PRESETS, ROOT
from helpers.exercises import EXERCISES

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]


@pytest.fixture(params=PATHS, ids=NAMES)
def notebook(request):
    found = nbformat.read(request.param, as_version=4)
    found.metadata["path"] = request.param
    return found


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_exercise(cell):
    return "exercise" in cell.metadata.get("tags", [])


def markdown(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_the_notebooks_are_the_six():
    assert tuple(NAMES) == NOTEBOOKS


def test_one_configuration_cell_of_literals_that_carries_its_mock(notebook):
    mocked = [cell for cell in code_cells(notebook) if "nbmake" in cell.metadata]
    assert len(mocked) == 1
    tree = ast.parse(mocked[0].source)
    values = {}
    for statement in tree.body:
        assert isinstance(statement, ast.Assign), "the configuration cell only assigns"
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    mock = mocked[0].metadata["nbmake"]["mock"]
    assert set(mock) <= set(values), "a mock of a name that is not assigned does nothing"
    assert values == {"PRESET": "auto"}
    assert mock["PRESET"] in PRESETS


def test_the_first_cells_are_the_same_in_all():
    starts = {
        tuple(cell.source for cell in code_cells(nbformat.read(path, as_version=4))[:2])
        for path in PATHS
    }
    assert len(starts) == 1


def test_every_code_cell_follows_a_text_that_says_why(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    for before, kind in itertools.pairwise(kinds):
        assert kind != "code" or before == "markdown"
    assert all(cell.source.strip() for cell in notebook.cells)


def test_cells_are_short_and_the_notebook_is_not_long(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 25, cell.source
    assert 25 <= len([cell for cell in notebook.cells if not is_exercise(cell)]) <= 60


def test_nothing_of_helpers_is_defined_again(notebook):
    public = set()
    for path in (ROOT / "helpers").glob("*.py"):
        public |= {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        }
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in public


def test_it_opens_and_closes_as_promised(notebook):
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    parts = ("**After this notebook you can**", "**Needs**", "**Takes**", "](glossary.md)")
    for promise in parts:
        assert promise in first
    recap = next(cell.source for cell in notebook.cells if cell.source.startswith("## Recap"))
    promised, said = (len(re.findall("^- ", text, re.MULTILINE)) for text in (first, recap))
    assert said >= promised, "the recap mirrors what the opening promises"
    assert "**Written:**" in recap
    assert "**Next:**" in last


def test_two_exercises_end_it_and_are_checked(notebook):
    marked = [is_exercise(cell) for cell in notebook.cells]
    assert marked == [False] * (len(marked) - 5) + [True] * 4 + [False]
    texts, codes = notebook.cells[-5:-1:2], notebook.cells[-4:-1:2]
    name = notebook.metadata["path"].stem
    assert f"](solutions/{name}.py)" in texts[0].source
    for text, code, kind in zip(texts, codes, ("**Easy.**", "**Open.**"), strict=True):
        checked = re.search(r'^check\("(\w+)", (.*)\)$', code.source, re.MULTILINE)
        assert EXERCISES[checked[1]].notebook == name
        assert kind in text.source
        for function in checked[2].split(", "):
            stub = re.search(rf"^def ({function}\(.*\)): \.\.\.$", code.source, re.MULTILINE)
            assert f"`{stub[1]}`" in text.source, "the text names function and arguments"


def test_every_notebook_predicts_before_it_measures(notebook):
    seen = [cell.source for cell in code_cells(notebook)]
    predicted = next(i for i, source in enumerate(seen) if re.search(r"\bpredicted\b.* =", source))
    tables = ("prediction_table(", "measured / predicted", "measured - predicted")
    measured = next(i for i, source in enumerate(seen) if any(part in source for part in tables))
    assert predicted < measured


def anchors(path):
    """The headings of a notebook or a Markdown file, as links name them."""
    if path.suffix == ".ipynb":
        text = markdown(nbformat.read(path, as_version=4))
        return {h.replace("`", "").replace(" ", "-") for h in re.findall("^#+ (.+)$", text, re.M)}
    headings = re.findall("^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links_lead_somewhere(notebook):
    for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", markdown(notebook)):
        if target.startswith("https://"):
            continue
        path = (ROOT / "notebooks" / target).resolve()
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_glossary_is_of_words_that_are_used_and_prose_keeps_to_them():
    text = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
    words = [w for row in re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.M) for w in row.split(", ")]
    assert len(words) == len(set(words)) > 30
    prose = "\n".join(markdown(nbformat.read(path, as_version=4)) for path in PATHS).lower()
    prose = " ".join(prose.split())
    assert [word for word in words if word.lower() not in prose] == []
    plain = re.sub(r"`[^`]*`|```.*?```", "", prose, flags=re.DOTALL)
    for other in (
        "document",
        "ground truth",
        "chunk",
        "full dimension",
        "sub-vector",
        "baseline model",
    ):
        assert not re.findall(rf"\b{other}s?\b", plain), other


def test_no_number_of_a_result_is_typed_into_the_prose(notebook):
    # A score has three decimals here; prose leaves those to the cells that print them.
    assert not re.findall(r"(?<![\w.])0?\.\d{3}\b", markdown(notebook))


def test_helpers_import_one_way():
    imports = {}
    for path in (ROOT / "helpers").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        imports[path.stem] = {
            node.module.split(".")[1]
            for node in tree
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers.")
        }
    done = set()
    while len(done) < len(imports):
        free = {name for name in imports if name not in done and imports[name] <= done}
        assert free, f"these import each other: {sorted(set(imports) - done)}"
        done |= free


def test_no_code_outside_config_asks_for_a_preset_by_name():
    sources = {
        path: path.read_text(encoding="utf-8")
        for path in [*(ROOT / "helpers").glob("*.py"), *(ROOT / "notebooks").rglob("*.py")]
        if path.stem != "config"
    }
    for path in PATHS:
        cells = code_cells(nbformat.read(path, as_version=4))
        sources[path] = "\n".join(cell.source for cell in cells if "nbmake" not in cell.metadata)
    for path, source in sources.items():
        strings = {
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & set(PRESETS), path.name
