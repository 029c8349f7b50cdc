"""A notebook alone in an empty folder, with the Python and the packages that Colab has."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers.config import ROOT

PYTHON = "3.13"  # and its packages, of August 2026
PACKAGES = Path(__file__).with_name("colab_packages.txt")
KERNEL = "import google.colab; from ipykernel.kernelapp import launch_new_instance as go; go()"


def run(*command, **options) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def colabs_python() -> str:
    """The path of a Python of Colab's version, or a skipped test."""
    for name in filter(shutil.which, (sys.executable, f"python{PYTHON}")):
        asked = [name, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
        if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == PYTHON:
            return name
    pytest.skip(f"Colab has Python {PYTHON}, and there is none here")


class Machine:
    """An empty folder, and a kernel with Colab's packages. It knows the repository's address."""

    def __init__(self, folder: Path):
        python = colabs_python()
        run(python, "-m", "venv", folder / "venv")
        self.folder, self.bin = folder, folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.pip("install", "-q", "-r", PACKAGES)
        site = run(self.bin / "python", "-c", "import sysconfig as s; print(s.get_path('purelib'))")
        stub = Path(site.strip()) / "google" / "colab" / "__init__.py"
        stub.parent.mkdir(parents=True)
        stub.write_text("")
        kernel = folder / "jupyter" / "kernels" / "colab" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        argv = [str(self.bin / "python"), "-c", KERNEL, "-f", "{connection_file}"]
        path = os.pathsep.join([str(self.bin), os.environ["PATH"]])
        kernel.write_text(json.dumps({"argv": argv, "display_name": "", "env": {"PATH": path}}))
        self.address = self.release(folder / "release.git").as_uri()

    def pip(self, *arguments) -> str:
        return run(self.bin / "python", "-m", "pip", "--disable-pip-version-check", *arguments)

    def versions(self) -> dict[str, str]:
        return {
            one["name"]: one["version"] for one in json.loads(self.pip("list", "--format=json"))
        }

    def release(self, bare: Path) -> Path:
        """A bare repository whose one commit is the working tree as it stands."""
        run("git", "init", "-q", "--bare", bare)
        git = ("git", "-C", ROOT, "--git-dir", bare, "--work-tree", ROOT)
        run(*git, "add", "--all")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        run(*git, *who, "-c", "commit.gpgsign=false", "commit", "-q", "-m", "release")
        return bare

    def open(self, name: str, content: Path, *more: str, until: int | None = None) -> str:
        """Run a notebook in a folder where nothing else is; return what its cells print.

        Cells of code ``more`` come after the first, which gets the repository's address.
        """
        content.mkdir(exist_ok=True)
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:until]
        ours = f'REPOSITORY = "{self.address}"'
        cells[0].source = re.sub('REPOSITORY = ".*"', ours, cells[0].source)
        cells[1:1] = map(nbformat.v4.new_code_cell, more)
        notebook.cells = cells
        place = {"metadata": {"path": str(content)}}
        NotebookClient(notebook, timeout=900, kernel_name="colab", resources=place).execute()
        outputs = [output for cell in cells for output in cell.outputs]
        return "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.delenv("MATRYOSHKA_RUNS", raising=False)
        yield Machine(folder)


def test_a_notebook_alone_fetches_the_rest_and_leaves_torch_as_it_is(machine):
    before = machine.versions()
    said = machine.open("01_setup", machine.folder / "content", "%env MATRYOSHKA_PRESET=smoke")
    after = machine.versions()
    assert "preset     smoke" in said
    for name in ("torch", "numpy", "pandas"):
        assert after[name] == before[name]
    assert after["sentence-transformers"].startswith("6.")


def test_a_later_notebook_says_which_line_makes_what_it_needs(machine):
    with pytest.raises(CellExecutionError) as error:
        machine.open("04_training", machine.folder / "session", until=2)
    line = re.search(r"this line in a cell:\n\s+(!cd .+)", str(error.value))[1]
    assert line.endswith("&& python -m helpers.run wikipedia --until 03_baseline")
    line = line.replace("wikipedia", "smoke")
    said = machine.open("04_training", machine.folder / "session", line, until=2)
    assert "training rows: query, positive, negative" in said
