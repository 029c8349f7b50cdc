"""The main command: what it runs, prints and keeps, and what it says when something fails."""

import signal
import subprocess
import sys

import nbformat
import psutil
import pytest

from helpers import execution
from helpers import run as module
from helpers.config import ROOT
from helpers.run import main


@pytest.fixture(autouse=True)
def another_preset(runs, monkeypatch):
    """What is typed counts, whatever the environment says."""
    monkeypatch.setenv("MATRYOSHKA_PRESET", "msmarco")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a notebook of these cells in place of the first one."""
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def written(*sources):
        cells = [nbformat.v4.new_markdown_cell("# A title")]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        (tmp_path / "notebooks").mkdir()
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(notebook, tmp_path / "notebooks" / "01_setup.ipynb")

    return written


@pytest.fixture
def seen(monkeypatch):
    """The notebooks that would have run, in order, each with its preset."""
    found = []

    def run_notebook(source, target, choice):
        found.append((source.stem, choice))

    monkeypatch.setattr(execution, "run_notebook", run_notebook)
    return found


def kept(runs):
    notebook = nbformat.read(runs / "smoke" / "notebooks" / "01_setup.ipynb", as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_prints_each_cell_and_what_it_prints_and_keeps_the_notebook(runs, write, capsys):
    write("\nprint('so far')\nx = 1", "import os\nprint(os.environ['MATRYOSHKA_PRESET'])", "x + 1")
    assert main(["smoke", "--until", "01_setup"]) == 0
    lines = [line.split("s  ", 1)[1] for line in capsys.readouterr().out.splitlines()[:5]]
    assert lines == [
        "cell  1 of 3  print('so far')",
        "    so far",
        "cell  2 of 3  import os",
        "    smoke",
        "cell  3 of 3  x + 1",
    ]
    notebook, cells = kept(runs)
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert cells[2].outputs[0]["data"]["text/plain"] == "2"
    assert 0 < notebook.metadata["seconds"] < 60


def test_a_cell_that_fails_ends_the_run_with_its_message(runs, write, capsys):
    write("print('before')", "raise ValueError('no such thing')", "print('after')")
    assert main(["smoke"]) == 1
    said = capsys.readouterr().out
    assert "01_setup stopped at a cell that failed" in said
    assert "ValueError: no such thing" in said and "\x1b" not in said
    assert "smoke/notebooks/01_setup.ipynb" in said
    _, cells = kept(runs)
    assert [len(cell.outputs) for cell in cells] == [1, 1, 0]


MAIN_IN = """
import sys; from pathlib import Path; import helpers.run as module
module.ROOT = Path(sys.argv[1]); print("begin", flush=True); sys.exit(module.main(["smoke"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_in_one_line_and_leaves_no_process(runs, write, tmp_path):
    write("print('asleep')\nimport time; time.sleep(60)")
    command = [sys.executable, "-c", MAIN_IN, str(tmp_path)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    process = subprocess.Popen(command, **options)
    said = [process.stdout.readline()]
    while "    asleep" not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], said
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    line = "Interrupted. The same command goes on from here; finished work is kept."
    assert (process.returncode, rest.strip()) == (130, line)
    assert psutil.wait_procs(kernels, timeout=10)[1] == []
    assert kept(runs)


def test_some_notebooks_run_alone_on_a_file_of_ones_own(seen, tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('preset = "smoke"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["mine.toml", "--from", "02_data", "--until", "03_baseline"]) == 0
    choice = str(tmp_path / "mine.toml")  # notebooks run in a folder of their own
    assert seen == [("02_data", choice), ("03_baseline", choice)]
    seen.clear()
    assert main(["mine.toml", "--further", "--from", "bits"]) == 0
    rest = ("bits", "databases", "serving", "frozen", "own_data")
    assert seen == [(name, choice) for name in rest]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wiki"], "preset is 'wiki': expected wikipedia, "),
        (["nowhere.toml"], "there is no configuration file"),
        (["smoke", "--from", "bits"], "no notebook 'bits'; expected one of 01_setup, "),
        (["smoke", "--further", "--from", "01_setup"], "expected one of recipes, mistakes, "),
        (["smoke", "--from", "03_baseline", "--until", "02_data"], "comes after --until 02_data"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(runs, seen, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not seen and not runs.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('dataset = "faq.csv"', "no column 'query' or 'anchor'; it has 'question'"),
        ('dataset = "labels.csv"', "the column 'is' isn't read, and holds 0 and 1"),
        ('model = "owner/nothing"', "owner/nothing"),
    ],
)
def test_a_file_or_model_that_will_not_do_is_an_error_before_anything_runs(
    hub, seen, tmp_path, capsys, line, said
):
    (tmp_path / "mine.toml").write_text(f'preset = "smoke"\n{line}\n')
    (tmp_path / "faq.csv").write_text("question,answer\na,b\n")
    (tmp_path / "labels.csv").write_text("query,positive,is\na,b,0\nc,d,1\n")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "mine.toml"), "--until", "02_data"])
    assert said in capsys.readouterr().err
    assert not seen
