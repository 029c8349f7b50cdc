"""The first code cell of the notebooks, on a machine that has nothing of the repository yet."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.version import Version

from helpers import colab
from helpers.artifacts import NOTEBOOKS, code_sha256
from helpers.config import ROOT

ADDRESS = "https://github.com/owner/name"
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
NEEDED = {r.name: r for r in colab.needed(REQUIREMENTS)}


def first_code(notebook):
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


# What is written into the repository


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_hold_the_cell_and_the_badge_as_the_constants_say(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert first_code(nbformat.read(path, as_version=4)).source == colab.first_cell()
    for file in (path, ROOT / "README.md"):
        links = re.findall(rf"{colab.COLAB}/github/\S*/{name}\.ipynb", file.read_text("utf-8"))
        assert len(links) == (1 if colab.badge(name) else 0)
    if not colab.REPOSITORY:
        for file in (path, *ROOT.glob("*.md")):
            assert f"{colab.COLAB}/github" not in file.read_text(encoding="utf-8")


def test_the_cell_is_short_and_formatted_with_a_long_address():
    cell = colab.first_cell("https://github.com/some-owner/a-repository-of-a-long-name", "v1.10.0")
    assert len(cell.splitlines()) <= 25
    command = [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "a.py", "-"]
    assert subprocess.run(command, input=cell + "\n", text=True, cwd=ROOT).returncode == 0


def test_only_an_address_on_github_has_a_badge():
    link = f"{colab.COLAB}/github/owner/name/blob/v2/notebooks/01_setup.ipynb"
    for address in (ADDRESS, f"{ADDRESS}/", f"{ADDRESS}.git"):
        assert colab.badge("01_setup", address, "v2").endswith(f"]({link})")
    for address in ("", "https://gitlab.com/owner/name", "https://github.com/owner"):
        assert colab.badge("01_setup", address, "v2") == ""


def test_writing_changes_cells_and_badges_alone_and_once(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    colab.write(tmp_path, "")
    files = [tmp_path / "README.md", *(tmp_path / "notebooks").glob("*.ipynb")]
    unset = {file: file.read_bytes() for file in files}
    example = tmp_path / "notebooks" / "02_data.ipynb"
    before = nbformat.read(example, as_version=4)

    assert set(colab.write(tmp_path, ADDRESS, "v2")) == set(files)
    assert colab.write(tmp_path, ADDRESS, "v2") == []
    assert (tmp_path / "README.md").read_text("utf-8").count(f"{colab.COLAB}/github") == 6
    after = nbformat.read(example, as_version=4)
    sign = colab.badge("02_data", ADDRESS, "v2")
    assert after.cells[0].source == f"{before.cells[0].source}\n\n{sign}"
    assert first_code(after).source == colab.first_cell(ADDRESS, "v2")
    for notebook in (before, after):
        notebook.metadata["matryoshka"].pop("code_sha256")
    after.cells[0].source = before.cells[0].source
    first_code(after).source = first_code(before).source
    assert after == before

    colab.write(tmp_path, "")
    assert {file: file.read_bytes() for file in files} == unset


def test_outputs_stay_stamped_where_the_address_alone_changes():
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("print('other')")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["matryoshka"] = {"code_sha256": code_sha256(notebook)}
    assert colab._renew(notebook, colab.first_cell(""), "")
    assert notebook.metadata["matryoshka"]["code_sha256"] != code_sha256(notebook)
    notebook.metadata["matryoshka"] = {"code_sha256": code_sha256(notebook)}
    assert colab._renew(notebook, colab.first_cell(ADDRESS), "")
    assert notebook.metadata["matryoshka"]["code_sha256"] == code_sha256(notebook)


def test_a_readme_without_the_table_is_named(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "README.md").write_text("# Nothing\n")
    with pytest.raises(ValueError, match=r"README\.md has no row for 01_setup\.ipynb"):
        colab.write(tmp_path)


# What the cell does


def run_cell(folder, *literals):
    cell = colab.first_cell(*literals)
    return subprocess.run(
        [sys.executable, "-c", f"{cell}\nprint(ROOT.name)"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_in_the_repository_it_finds_it_and_starts_nothing():
    done = run_cell(ROOT / "notebooks" / "scripts", "file:///nowhere")
    assert done.stdout.splitlines() == ["packages: all there", ROOT.name], done.stderr


def test_without_an_address_it_says_what_to_do(tmp_path):
    done = run_cell(tmp_path, "")
    assert "FileNotFoundError: found no folder `helpers`" in done.stderr
    assert "clone or copy the whole repository and open the notebook in it" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_clone_that_fails_says_what_was_asked_for_and_leaves_nothing(tmp_path):
    address = (tmp_path / "nowhere.git").as_uri()
    done = run_cell(tmp_path, address, "v9")
    assert f"RuntimeError: git could not fetch v9 of {address}: fatal: " in done.stderr
    assert list(tmp_path.iterdir()) == []


# What prepare() does


class Shelf:
    """A folder of made-up packages that this process can import, and a pip that renews them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked = []

    def put(self, name, version):
        for old in self.folder.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        (self.folder / f"{name}.py").write_text("")
        facts = self.folder / f"{name}-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
        (facts / "RECORD").write_text(f"{name}.py,,\n")

    def ask_for(self, *lines):
        (self.folder / "requirements.txt").write_text("\n".join(lines))

    def pip_install(self, lacking, constraints):
        self.asked.append((list(map(str, lacking)), constraints))
        for requirement in lacking:
            self.put(requirement.name, next(iter(requirement.specifier)).version)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    found = Shelf(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    monkeypatch.setattr(colab, "stale", set())
    monkeypatch.setattr(colab, "pip_install", found.pip_install)
    yield found
    for name in ("shelved_one", "shelved_two"):
        sys.modules.pop(name, None)


def test_it_installs_what_is_missing_or_below_its_range_and_holds_the_rest(shelf, capsys):
    shelf.put("shelved_one", "1.0")
    shelf.ask_for(
        "shelved_one>=2  # why", "", "# a line", "shelved_two==0.1.0", "torch>=2", "nbmake"
    )
    colab.prepare()
    ((asked, constraints),) = shelf.asked
    assert asked == ["shelved_one>=2", "shelved_two==0.1.0"]
    there = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "pandas")}
    assert {f"{name}=={version}" for name, version in there.items()} <= set(constraints)
    assert "shelved-one>=1.0" in constraints  # never downgraded
    kept = ", ".join(f"{name} {version}" for name, version in there.items())
    assert capsys.readouterr().out == (
        f"packages: installed shelved_two; upgraded shelved_one; kept {kept}\n"
    )
    colab.prepare()
    assert capsys.readouterr().out == "packages: all there\n"
    assert len(shelf.asked) == 1


def test_a_version_above_its_range_is_left_alone(shelf, capsys):
    shelf.put("shelved_one", "7.1")
    shelf.put("shelved_two", "0.2.0")
    shelf.ask_for("shelved_one>=6,<7", "shelved_two==0.1.0")
    colab.prepare()
    assert shelf.asked == []


def test_an_upgraded_module_that_was_imported_asks_for_a_restart_until_there_is_one(shelf):
    shelf.put("shelved_one", "1.0")
    shelf.put("shelved_two", "1.0")
    __import__("shelved_one")
    shelf.ask_for("shelved_one>=2", "shelved_two>=2")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Runtime > Restart session") as caught:
            colab.prepare()
        assert "shelved-one had been imported" in str(caught.value)
        assert "shelved-two" not in str(caught.value)
    assert len(shelf.asked) == 1


def test_a_held_package_below_its_range_is_named_before_anything_is_installed(shelf):
    shelf.put("pandas", "1.5.3")
    shelf.ask_for("pandas>=2.2", "shelved_one>=2")
    with pytest.raises(RuntimeError, match="too old for the notebooks") as caught:
        colab.prepare()
    assert "it has pandas 1.5.3, and requirements.txt asks for pandas>=2.2" in str(caught.value)
    assert shelf.asked == []


def test_where_everything_is_there_nothing_is_started(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    colab.prepare()
    assert capsys.readouterr().out == "packages: all there\n"


def test_a_pip_that_fails_is_quoted(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="pip could not install no-such-package-at-all>=1") as e:
        colab.pip_install([Requirement("no-such-package-at-all>=1")], [])
    assert "No matching distribution found" in str(e.value)


def test_what_is_not_needed_is_a_requirement_and_is_left_out():
    names = set(re.findall(r"^[A-Za-z][\w.-]*", REQUIREMENTS, re.MULTILINE))
    assert names - set(NEEDED) == colab.NOT_NEEDED


def test_it_can_be_imported_where_nothing_is_installed():
    body = ast.parse(Path(colab.__file__).read_text(encoding="utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
    assert {n.split(".")[0] for n in names} - {"packaging"} <= sys.stdlib_module_names


# The whole of it, as on Colab

OLDER = ("sentence-transformers==5.1.2", "datasets==3.6.0", "pandas==2.2.3", "numpy==2.0.2")
VERSIONS = (
    "import json, importlib.metadata as m; print(json.dumps("
    "{d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lend_torch(site: Path) -> None:
    """Put this environment's torch into another one, as hard links: its CUDA builds are large."""
    for found in importlib.metadata.distributions():
        if re.match(r"(torch|triton)$|(nvidia|cuda)-", found.metadata["Name"]):
            for file in found.files or ():
                source, target = Path(found.locate_file(file)), site / file
                if ".." not in file.parts and source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        os.link(source, target)
                    except OSError:  # on another disk
                        shutil.copy2(source, target)


@pytest.fixture
def machine(monkeypatch):
    """An empty folder, and a Python such as Colab's that runs the kernel called colab."""
    with tempfile.TemporaryDirectory(prefix="matryoshka-colab-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))")
        lend_torch(Path(site.strip()))
        run(python, "-m", "pip", "install", "-q", "--no-compile", "ipykernel", *OLDER)
        kernel = folder / "jupyter" / "kernels" / "colab" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        launch = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.write_text(json.dumps({"argv": launch, "display_name": "", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
        monkeypatch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
        monkeypatch.setenv("MATRYOSHKA_RUNS", str(folder / "runs"))
        monkeypatch.setenv("MATRYOSHKA_PRESET", "smoke")
        (folder / "content").mkdir()
        yield folder / "content", python


def release(folder: Path, tag: str) -> Path:
    """A bare repository whose one commit, with that tag, is the working tree as it stands."""
    run("git", "init", "-q", "--bare", folder)
    git = ("git", "--git-dir", folder, "--work-tree", ROOT)
    run(*git, "add", "--all", cwd=ROOT)
    settings = ("user.name=test", "user.email=test@example.org", "commit.gpgsign=false")
    who = [word for setting in settings for word in ("-c", setting)]
    run(*git, *who, "commit", "-q", "-m", tag, cwd=ROOT)
    run(*git, "tag", tag, cwd=ROOT)
    return folder


def execute(path: Path) -> str:
    """Execute a notebook in its own folder; returns what its first code cell printed."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="colab", resources=place).execute()
    return "".join(output.text for output in first_code(notebook).outputs)


def test_on_a_colab_machine_a_notebook_alone_runs_whole_in_the_first_go(machine, monkeypatch):
    content, python = machine
    before = json.loads(run(python, "-c", VERSIONS))
    bare = release(content.parent / "release.git", "v0-test")
    notebook = nbformat.read(ROOT / "notebooks" / "01_setup.ipynb", as_version=4)
    first_code(notebook).source = colab.first_cell(bare.as_uri(), "v0-test")
    nbformat.write(notebook, content / "01_setup.ipynb")

    said = execute(content / "01_setup.ipynb")
    after = json.loads(run(python, "-c", VERSIONS))
    assert re.fullmatch(r"packages: installed .*; upgraded .*; kept torch .*\n", said), said
    assert "upgraded sentence-transformers, datasets; kept" in said
    assert str(content) not in said
    for name in ("sentence-transformers", "datasets"):
        assert not NEEDED[name].specifier.contains(before[name])
    for name, requirement in NEEDED.items():
        assert requirement.specifier.contains(after[name]), name
    for name, version in before.items():
        assert Version(after[name]) >= Version(version), name
    for name in ("torch", "numpy", "pandas"):
        assert after[name] == before[name]
    assert not colab.NOT_NEEDED & set(after)
    assert {path.name for path in content.iterdir()} == {"01_setup.ipynb", "matryoshka"}

    # The first cell once more: with nothing to fetch from, it finds all that it needs.
    shutil.rmtree(bare)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    notebook.cells = [first_code(notebook)]
    nbformat.write(notebook, content / "again.ipynb")
    assert execute(content / "again.ipynb") == "packages: all there\n"
    assert json.loads(run(python, "-c", VERSIONS)) == after
