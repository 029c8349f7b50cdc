"""What every notebook must keep to, read from the files; nbmake executes them besides."""

import ast
import itertools
import re

import nbformat
import pytest

from helpers.artifacts import NOTEBOOKS
from helpers.config import PRESETS, ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]


@pytest.fixture(params=PATHS, ids=NAMES)
def notebook(request):
    found = nbformat.read(request.param, as_version=4)
    found.metadata["path"] = request.param
    return found


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
    assert 25 <= len(notebook.cells) <= 60


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
    for promise in ("**After this notebook you can**", "**Needs**", "**Takes**"):
        assert promise in first
    for part in ("## Recap", "**Written:**", "**Try it.**", "**Next:**"):
        assert part in last


def test_links_lead_somewhere(notebook):
    for target in re.findall(r"\]\(([^)#]+)\)", markdown(notebook)):
        assert (ROOT / "notebooks" / target).exists() or target.startswith("https://"), target


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
