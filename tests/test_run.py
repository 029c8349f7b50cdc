"""The command that runs the notebooks: what it prints, keeps and says when something fails."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from helpers import run as runner
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


def test_an_interrupted_run_says_that_it_goes_on(runs, monkeypatch, capsys):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_notebook", interrupted)
    assert main(["smoke"]) == 130
    assert "The same command goes on from here" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["wiki", "nowhere.toml"])
def test_a_wrong_preset_is_refused_before_anything_runs(runs, name, capsys):
    with pytest.raises(SystemExit):
        main([name])
    assert name in capsys.readouterr().err
    assert not runs.exists()


def test_a_later_notebook_without_its_artefacts_names_the_earlier_one(runs, monkeypatch):
    from helpers.config import ROOT

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
