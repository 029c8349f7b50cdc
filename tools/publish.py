"""Put a finished run into the repository: ``python -m tools.publish wikipedia``.

Copies the executed notebooks to ``notebooks/``, and tables, figure and times to ``results/``. It
also renews ``results/README.md`` and the measured tables of README.md. With ``--further``, copies
the optional notebooks instead: of a run on own data that's ``own_data`` and the run's scores, else
all others. Nothing is copied unless all of it is there and belongs together.

``python -m tools.publish --check`` needs no run. It reads what is in the repository, prints a line
for whatever isn't of one run and of the code as it is, and exits with 1 if there is any.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
import PIL.Image

from helpers.config import FURTHER, NOTEBOOKS, PRESETS, ROOT
from helpers.execution import WIDGET
from helpers.plots import markdown
from helpers.runs import ArtifactError, Run, atomic_write, command_line, display_path
from tools import command
from tools.report import draw_scores, renew, write_report

SHOWN = ("bm25", "base", "mnrl_rotated", "tuned")
OWN_DATA = "going_further/own_data"
TAKEAWAYS = {
    "01_setup": "the first 64 of 384 dimensions can be an embedding of their own",
    "02_data": "clean triplets and an honest split come before any loss",
    "03_baseline": "three bars to beat, none of which needs training",
    "04_training": "a rotated start and one wrapped loss, at hardly any extra time",
    "05_evaluation": "fine-tuning is the big win; what Matryoshka adds depends on model and texts",
    "06_deployment": "one model, any size: choose bits first, then dimensions, then rerank",
}


FOLDERS = "home|root|work|tmp|usr|opt|mnt|var|private|data|Users|content"
LOCAL_PATH = re.compile(rf"(?<![\w.:/])/({FOLDERS})/|\b[A-Z]:\\\w")


def code_cells(notebook) -> list:
    """Return a notebook's code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_sha256(notebook) -> str:
    """Return the SHA-256 of a notebook's code, except for the repository's address in it."""
    code = "\n\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(re.sub("(?m)^REPOSITORY = .*$", "", code).encode()).hexdigest()


def executed_notebooks(
    run: Run, names: Sequence[str], root: Path
) -> dict[str, nbformat.NotebookNode]:
    """Return notebooks of the repository with the outputs of a run, and its ``seconds``.

    Raises:
        ArtifactError: one is missing, failed, isn't of this run, or was made from other code.
    """
    notebooks = {}
    for name in names:
        path = run.folder / "notebooks" / f"{name}.ipynb"
        source = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
        done = nbformat.read(path, as_version=4) if path.is_file() else None
        if problem := _problem(done, source, run):
            again = command_line(run.choice) + " --further" * (name in FURTHER)
            raise ArtifactError(f"{display_path(path)} {problem}; run again: {again}")
        # The text may have been mended since.
        for cell, ran in zip(code_cells(source), code_cells(done), strict=True):
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
            for output in cell.outputs:  # a table's other form is an address, new in each run
                if "pandas.io.formats.style.Styler" in output.get("data", {}).get("text/plain", ""):
                    output.data["text/plain"] = "a table, shown where HTML is"
        source.metadata = done.metadata
        source.metadata["matryoshka"] = {"run": run.id, "code_sha256": code_sha256(source)}
        notebooks[name] = source
    return notebooks


def _problem(done, source, run: Run) -> str | None:
    if done is None:
        return "is missing"
    problems = output_problems(done, run.id, code_sha256(source) == code_sha256(done))
    if "seconds" not in done.metadata:
        problems.append("wasn't timed")
    return next(iter(problems), None)


def said(notebook) -> str:
    """Return all that the outputs of a notebook say in words."""
    texts = []
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        data = output.get("data", {}).items()
        texts += [output.get("text", ""), *(str(x) for kind, x in data if "image" not in kind)]
    return "\n".join(texts)


def output_problems(notebook, run: str, of_this_code: bool) -> list[str]:
    """Return what is wrong with the outputs of a notebook.

    Args:
        notebook: The notebook.
        run: The id of the run that the outputs must be of.
        of_this_code: Whether the outputs are of the code as it is.
    """
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    counts = [cell.execution_count for cell in code_cells(notebook)]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = said(notebook)
    problems = {
        "stopped at an error": any(output.output_type == "error" for output in outputs),
        f"isn't of run {run}": run not in text,
        "was made from other code": not of_this_code,
        "wasn't run from first cell to last": counts != [*range(1, len(counts) + 1)],
        "shows a warning": re.search("[Ww]arning", text)
        or any(output.get("name") == "stderr" for output in outputs),
        "shows a path of one machine": LOCAL_PATH.search(text),
        "shows a progress bar": "it/s" in text or WIDGET in kinds,
        "has a figure without a text that says what it shows": not all(
            figure.metadata.get("image/png", {}).get("alt") for figure in figures
        ),
    }
    return [problem for problem, there in problems.items() if there]


def publish(run: Run, root: Path = ROOT) -> list[Path]:
    """Copy a finished run into the repository; return what was written.

    Raises:
        ArtifactError: the run isn't finished, or its parts don't belong together.
        ValueError: README.md has no place for the tables.
    """
    name, again = run.experiment.name, f"run again: {command_line(run.choice)}"
    tables = {name: run.load("results.csv"), f"{name}_differences": run.load("differences.csv")}
    for table in tables.values():
        if {*table["run"]} != {run.id}:
            raise ArtifactError(f"expected run {run.id}, got results of {table['run'][0]}; {again}")
    notebooks = executed_notebooks(run, NOTEBOOKS, root)
    took = {notebook: content.metadata.pop("seconds") for notebook, content in notebooks.items()}
    trained = tables[name].drop_duplicates("model").set_index("model")["train_seconds"]
    if took["04_training"] <= trained[["mnrl", "tuned"]].sum():
        raise ArtifactError(
            "04_training was timed without its trainings; "
            f"delete {display_path(run.folder)} and {again}"
        )
    tables[f"{name}_seconds"] = pd.DataFrame(
        [(name, notebook, value, str(run.machine), run.id) for notebook, value in took.items()],
        columns=["preset", "notebook", "seconds", "machine", "run"],
    )
    metric = f"mrr@{run.experiment.k}"
    figure = draw_scores(tables[name], metric, SHOWN, run.experiment.small_dim)
    files = _files(notebooks, root)
    if name == "wikipedia":  # what README.md and notebook 1 show
        tables["demo"] = run.load("demo.csv")
        readme = root / "README.md"
        text = readme.read_text(encoding="utf-8")
        gpu, minutes = (pd.read_csv(root / "results" / f"{t}.csv") for t in ("gpu", "minutes"))
        seconds = tables[f"{name}_seconds"]
        files[readme] = renew(text, "map", map_section(seconds, gpu, minutes))
    for stem, table in tables.items():
        if "dim" in table:  # BM25 has none, so pandas would write fractions
            table = table.astype({"dim": "Int64"})
        files[root / "results" / f"{stem}.csv"] = table.to_csv(index=False)
    _write(files)
    picture = root / "results" / f"{name}.png"
    figure.savefig(picture, dpi=160, bbox_inches="tight", metadata={"Description": run.id})
    return [*files, picture, write_report(root / "results")]


def publish_further(run: Run, root: Path = ROOT) -> list[Path]:
    """Copy the optional notebooks of a run into the repository; return what was written.

    Raises:
        ArtifactError: as :func:`executed_notebooks`.
    """
    own_data = run.experiment.name not in PRESETS
    names = [name for name in FURTHER if (name == OWN_DATA) == own_data]
    notebooks = executed_notebooks(run, names, root)
    for notebook in notebooks.values():
        del notebook.metadata["seconds"]
    files = _files(notebooks, root)
    if own_data:
        scores = run.load("results.csv").astype({"dim": "Int64"})
        files[root / "results" / "own_data.csv"] = scores.to_csv(index=False)
    return _write(files)


def _files(notebooks: dict[str, nbformat.NotebookNode], root: Path) -> dict[Path, str]:
    return {root / "notebooks" / f"{n}.ipynb": nbformat.writes(c) for n, c in notebooks.items()}


def _write(files: dict[Path, str]) -> list[Path]:
    for path, content in files.items():
        with atomic_write(path) as scratch:
            scratch.write_text(content, encoding="utf-8")
    return [*files]


def map_section(seconds: pd.DataFrame, gpu: pd.DataFrame, minutes: pd.DataFrame) -> str:
    """Write what README.md shows of the notebooks: their takeaways, and how long they take.

    The last column is of the card in ``gpu``, as in ``results/gpu.csv``. What it says of machines
    without bf16 is from ``minutes``, as in ``results/minutes.csv``.
    """
    names, each = [*seconds["notebook"], None], [*(seconds["seconds"] / 60)]
    slow = minutes.loc[minutes["precision"] == "float32", "minutes"]
    timed = gpu[(gpu["unit"] == "minutes") & gpu["device"].str.startswith("NVIDIA")]
    columns = {
        "notebook": [f"[{name}](notebooks/{name}.ipynb)" for name in names[:-1]] + ["all six"],
        "the one takeaway": map(TAKEAWAYS.get, names),
        "minutes": [*each, sum(each)],
        "on a GPU": [*timed.set_index("what")["value"][names[:-1]], timed["value"].sum()],
    }
    forms = {"minutes": "{:.1f}", "on a GPU": "{:.1f}"}
    return f"""{markdown(pd.DataFrame(columns), 2, **forms)}

Measured on {seconds["machine"][0]}, and on {timed["device"].iloc[0]}. Two cores without bf16 took
{slow.min():.0f} to {slow.max():.0f} minutes."""


def check(root: Path = ROOT) -> list[str]:
    """Look whether what is published is of one run and of the code as it is.

    Returns:
        A line for each problem.
    """
    results, lines = root / "results", []
    stems = "wikipedia", "wikipedia_differences", "wikipedia_seconds"
    scores, differences, seconds = (pd.read_csv(results / f"{stem}.csv") for stem in stems)
    run = scores["run"].iloc[0]
    own_data = pd.read_csv(results / "own_data.csv")["run"].iloc[0]
    texts = {}
    for name in NOTEBOOKS + FURTHER:
        notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
        made_from = notebook.metadata.get("matryoshka", {}).get("code_sha256")
        of_this_code = made_from == code_sha256(notebook)
        problems = output_problems(notebook, own_data if name == OWN_DATA else run, of_this_code)
        lines += [f"notebooks/{name}.ipynb {problem}" for problem in problems]
        texts[name] = said(notebook)
    for stem, table in zip(stems, (scores, differences, seconds), strict=True):
        if {*table["run"]} != {run}:
            lines.append(f"results/{stem}.csv isn't of run {run}")
    if PIL.Image.open(results / "wikipedia.png").text.get("Description") != run:
        lines.append(f"results/wikipedia.png isn't of run {run}")
    if tuple(seconds["notebook"]) != NOTEBOOKS:
        lines.append("results/wikipedia_seconds.csv isn't of the six notebooks")
    (model,) = pd.read_csv(results / "search.csv")["model"].unique()
    if f"fingerprint {model}" not in "".join(texts[name] for name in NOTEBOOKS):
        lines.append(f"results/search.csv is of another model, {model}")
    if not databases_agree(texts["going_further/databases"]):
        lines.append("notebooks/going_further/databases.ipynb doesn't find what its text says")
    return lines


def databases_agree(text: str) -> bool:
    """Whether the outputs of ``databases`` are what its text says."""
    same = sorted(float(share) for share in re.findall(r"([\d.]+)% of FAISS's answers", text))
    filtered = [int(share) for share in re.findall(r"(\d+)% of the exact answers", text)]
    if (len(same), len(filtered), text.count("refused: ")) != (5, 2, 2):
        return False
    # Signs are coarser; a graph filters too late unless it goes on.
    return same[0] > 94 and same[1] > 98 and filtered[0] < 60 and filtered[1] > 95


def main(arguments: list[str] | None = None) -> int:
    if (sys.argv[1:] if arguments is None else arguments) == ["--check"]:
        problems = check()
        print("\n".join(problems) or "what is published is of one run and of the code as it is")
        return int(bool(problems))
    return command(__doc__, publish, arguments, further=publish_further)


if __name__ == "__main__":
    sys.exit(main())
