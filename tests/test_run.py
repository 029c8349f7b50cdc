"""The command that runs the notebooks: what it prints, keeps and says when something fails."""

import os
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import psutil
import pytest
from nbclient.exceptions import CellExecutionError

from helpers import run as runner
from helpers.artifacts import NOTEBOOKS, open_run
from helpers.config import ROOT
from helpers.run import main, run_notebook, tidy


def write(path, *sources):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbformat.write(notebook, path)


def test_it_prints_cells_and_what_they_print_and_saves_outputs(tmp_path, capsys):
    write(tmp_path / "a.ipynb", "print('so far')\nx = 1", "x + 1")
    run_notebook(tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb")
    said = capsys.readouterr().out
    assert "cell  1 of 2  print('so far')" in said
    assert "    so far" in said
    cells = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4).cells
    assert cells[1].outputs[0]["data"]["text/plain"] == "2"
    assert [cell.execution_count for cell in cells] == [1, 2]
    took = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4).metadata["seconds"]
    assert 0 < took < 60


def test_long_silence_is_broken(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "SILENCE", 0.5)
    write(tmp_path / "a.ipynb", "import time; time.sleep(3)")
    run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert "still at work" in capsys.readouterr().out


def test_a_failing_notebook_is_kept_as_far_as_it_came(tmp_path):
    write(tmp_path / "a.ipynb", "print('before')", "1 / 0", "print('after')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    cells = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells
    assert cells[0].outputs[0]["text"] == "before\n"
    assert cells[1].outputs[0]["ename"] == "ZeroDivisionError"
    assert cells[2].outputs == []


def test_a_failing_cell_ends_the_run_with_its_message(runs, monkeypatch, tmp_path, capsys):
    (tmp_path / "notebooks").mkdir()
    write(tmp_path / "notebooks" / "01_setup.ipynb", "raise ValueError('no such thing')")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    assert main(["smoke"]) == 1
    said = capsys.readouterr().out
    assert "01_setup stopped at a cell that failed" in said
    assert "ValueError: no such thing" in said


MAIN_WITH_ROOT = (
    "import sys; from pathlib import Path; import helpers.run as r;"
    "r.ROOT = Path(sys.argv[1]); sys.exit(r.main(['smoke']))"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_that_it_goes_on_and_leaves_no_process(runs, tmp_path, number):
    (tmp_path / "notebooks").mkdir()
    write(tmp_path / "notebooks" / "01_setup.ipynb", "print('asleep')\nimport time; time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN_WITH_ROOT, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    while "    asleep" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130, rest
    assert "The same command goes on from here" in rest
    assert "Traceback" not in rest
    assert psutil.wait_procs(kernels, timeout=10)[1] == []
    assert (runs / "smoke" / "notebooks" / "01_setup.ipynb").is_file()


@pytest.mark.parametrize("error", [CellExecutionError("", "KeyboardInterrupt", ""), None])
def test_an_interrupt_counts_whatever_the_cell_says(tmp_path, monkeypatch, error):
    """The kernel may still answer that its cell failed, or the last cell may be through."""

    def execute(watcher, **options):
        watcher.interrupt()
        if error:
            raise error

    monkeypatch.setattr(runner.Watcher, "execute", execute)
    write(tmp_path / "a.ipynb", "1")
    with pytest.raises(KeyboardInterrupt):
        run_notebook(tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb")
    assert (tmp_path / "out" / "a.ipynb").is_file()


def test_a_finished_run_prints_the_tables_and_where_things_lie(runs, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        runner, "run_notebook", lambda source, target, preset: seen.append((source.stem, preset))
    )
    rows = [(m, d, 0.25 + d / 1000, 0.5) for m in ("base", "mnrl", "tuned") for d in (64, 384)]
    results = pd.DataFrame(rows, columns=["model", "dim", "mrr@10", "recall@10"])
    more = {"num_queries": 80, "num_passages": 600, "train_seconds": 12.3}
    run = open_run("smoke", "05_evaluation", quiet=True)
    run.save("results.csv", results.assign(**more), "evaluation")
    assert main(["smoke"]) == 0
    said = capsys.readouterr().out
    assert seen == [(name, "smoke") for name in NOTEBOOKS]
    parts = ("0.314", "0.634", "Recall@10", "80 test queries, 600 passages", run.id, "release")
    for part in (*parts, "trained in 12 s", str(run.machine), "sentence-transformers 6"):
        assert part in said


def test_one_notebook_alone_and_an_empty_choice(runs, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        runner, "run_notebook", lambda source, target, preset: seen.append(source.stem)
    )
    assert main(["smoke", "--from", "02_data", "--until", "03_baseline"]) == 0
    assert seen == ["02_data", "03_baseline"]
    with pytest.raises(SystemExit):
        main(["smoke", "--from", "03_baseline", "--until", "02_data"])
    assert "--from 03_baseline comes after --until 02_data" in capsys.readouterr().err


def test_running_leaves_the_environment_as_it_was(runs, monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    source = "import os; assert os.environ['MATRYOSHKA_PRESET'] == 'smoke'"
    write(tmp_path / "notebooks" / "01_setup.ipynb", source)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    before = dict(os.environ)
    assert main(["smoke", "--until", "01_setup"]) == 0
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["wiki", "nowhere.toml"])
def test_a_wrong_preset_is_refused_before_anything_runs(runs, name, capsys):
    with pytest.raises(SystemExit):
        main([name])
    assert name in capsys.readouterr().err
    assert not runs.exists()


def test_a_model_that_the_hub_lacks_is_said_without_a_traceback(runs, hub, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\nmodel = "owner/nothing"\n')
    with pytest.raises(SystemExit):
        main([str(path)])
    assert "does not give the model owner/nothing" in capsys.readouterr().err


def test_a_later_notebook_without_its_artefacts_names_the_earlier_one(runs, monkeypatch):
    monkeypatch.setenv("MATRYOSHKA_PRESET", "smoke")
    with pytest.raises(CellExecutionError, match=r"Run notebooks/04_training.ipynb first"):
        run_notebook(ROOT / "notebooks" / "06_deployment.ipynb", runs / "06.ipynb")


def test_progress_bars_and_times_are_taken_out():
    bar = nbformat.v4.new_output("stream", name="stderr", text="\r 10%|# | 1/10\r100%|##| 10/10\n")
    widget = nbformat.v4.new_output(
        "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": ""}
    )
    warning = nbformat.v4.new_output("stream", name="stderr", text="UserWarning: look here\n")
    cell = nbformat.v4.new_code_cell("x", outputs=[bar, widget, warning])
    cell.metadata["execution"] = {"iopub.execute_input": "now"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    tidy(notebook)
    assert cell.outputs == [warning]
    assert "execution" not in cell.metadata
    assert "widgets" not in notebook.metadata
