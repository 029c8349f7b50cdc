"""Build the book: ``python -m tools.book`` makes web pages of the committed notebooks.

The pages are of README.md, the notebooks, their glossary and scripts, and the measured results.
They go to ``build/book/`` and need no network. No notebook is run.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

from helpers.config import FURTHER, NOTEBOOKS, ROOT

COLAB = "https://colab.research.google.com/github"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^():#\s]+)(#[^)\s]*)?\)")
CONTENTS = {
    "The series": NOTEBOOKS,
    "Going further": FURTHER,
    "More": ("../run", "scripts/README", "glossary", "../results/README"),
}


def write_sources(folder: Path) -> None:
    """Write what Sphinx reads: copies, with solutions and links for download added."""
    for part in ("notebooks", "results"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.csv"))
    shutil.copytree(ROOT / "notebooks", folder / "download")
    shutil.copytree(ROOT / "helpers", folder / "helpers", ignore=lambda *_: ["__pycache__"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen, rest = readme.split("\n## Run it\n")
    title, _, text = first_screen.partition("\n")
    start = f"[Start reading: the first notebook](notebooks/{NOTEBOOKS[0]}.ipynb)"
    index = f"{title}\n\n{start}\n{text}{_contents()}"
    (folder / "index.md").write_text(index, encoding="utf-8")
    (folder / "run.md").write_text(f"# Run it yourself\n{rest}", encoding="utf-8")
    for name in NOTEBOOKS + FURTHER:
        path = folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        complete(notebook, name)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _mend_links(cell.source, path, folder)
        nbformat.write(notebook, path)
    for path in folder.rglob("*.md"):
        text = _mend_links(path.read_text(encoding="utf-8"), path, folder)
        path.write_text(text, encoding="utf-8")


def _contents() -> str:
    trees = []
    for caption, names in CONTENTS.items():
        pages = "\n".join(os.path.normpath(f"notebooks/{name}") for name in names)
        trees.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n")
    return "".join(trees)


def complete(notebook, name: str) -> None:
    """Add links to the notebook itself, the figures' alt texts, and the solutions.

    Solutions are folded, and so is the code of figures.
    """
    title, _, rest = notebook.cells[0].source.partition("\n")
    project = "../" * name.count("/") + "../run.md"
    links = f"[Download this notebook](path:/download/{name}.ipynb) (in [the project]({project}))"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].metadata["tags"] = ["remove-cell"]  # it finds the repository
    if address := re.search('REPOSITORY = "https://github.com/(.+)"', code[0].source):
        links += f" · [Open it in Colab]({COLAB}/{address[1]}/blob/HEAD/notebooks/{name}.ipynb)"
    notebook.cells[0].source = f"{title}\n\n{links}\n{rest}"
    for cell in code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                image = output.metadata["image/png"]
                show = {
                    "code_prompt_show": "Show how it's drawn",
                    "code_prompt_hide": "Hide the code",
                    "image": {"alt": image["alt"]},
                }
                cell.metadata |= {"tags": ["hide-input"], "mystnb": show}
                del image["height"]  # it follows from the width, which a phone makes smaller
    solution = ROOT / "notebooks" / "exercises" / "solutions" / f"{name}.py"
    if solution.is_file():
        cell = nbformat.v4.new_code_cell(solution.read_text(encoding="utf-8"))
        show = {"code_prompt_show": "Show the solutions", "code_prompt_hide": "Hide the solutions"}
        cell.metadata |= {"tags": ["hide-input"], "mystnb": show}
        notebook.cells.insert(-1, cell)


def _mend_links(text: str, page: Path, folder: Path) -> str:
    """Point links at the pages of the book; what isn't in it keeps its name and loses its link."""

    def mended(link: re.Match) -> str:
        name, target, anchor = link.groups(default="")
        path = Path(os.path.normpath(page.parent / target))
        if path == folder / "README.md":
            target = os.path.relpath(folder / ("run.md" if anchor else "index.md"), page.parent)
        elif not path.is_file():
            return name
        return f"[{name}]({target}{anchor})"

    return LINK.sub(mended, text)


def build(target: Path) -> int:
    """Build the book in a folder; return 0, or 1 if there was a warning."""
    with tempfile.TemporaryDirectory() as name:
        source, doctrees = Path(name).resolve() / "source", Path(name) / "doctrees"
        write_sources(source)
        shutil.rmtree(target, ignore_errors=True)
        here = Path(__file__).parent
        app = Sphinx(source, here, target, doctrees, "html", status=None, warningiserror=True)
        app.build()
    return app.statuscode


if __name__ == "__main__":
    failed = build(ROOT / "build" / "book")
    print("build/book/index.html")
    sys.exit(failed)
