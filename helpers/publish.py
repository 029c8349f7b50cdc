"""Puts a finished run into the repository: ``python -m helpers.publish wikipedia``.

Copies the executed notebooks over ``notebooks/``, results and times to ``results/``, and renews
the README's summary, map, tables and figure. Nothing is copied unless everything is there and
belongs together.
"""

import argparse
import sys
from pathlib import Path

import nbformat
import pandas as pd

from helpers.artifacts import NOTEBOOKS, ArtifactError, Run, code_sha256, find_run, short
from helpers.config import LARGE, ROOT
from helpers.course import MAP, readme_map
from helpers.plots import (
    HEADLINE,
    difference_sentences,
    lead_sentence,
    markdown_table,
    metric_name,
    plot_scores,
    use_style,
)

START, END = "<!-- results: start -->", "<!-- results: end -->"
SUMMARY = "<!-- summary: start -->", "<!-- summary: end -->"


def readme_summary(results: pd.DataFrame, compared: pd.DataFrame, small: int, figure: str) -> str:
    """The README's first screen of results, as Markdown: a table, what it says, and a figure.

    Args:
        results: The scores of one run.
        compared: The study's paired differences, seed by seed.
        small: The prefix length that the series is about.
        figure: Path of the figure, relative to the README.
    """
    mrr = next(name for name in results if name.startswith("mrr@"))
    full = int(results["dim"].max())
    score = results.set_index(["model", "dim"])[mrr]
    kept = {name: score[name, small] / score[name, full] for name in HEADLINE[1:]}
    lines = [
        SUMMARY[0],
        markdown_table(results[results["model"].isin(HEADLINE)], mrr),
        "",
        f"At {small} of {full} dimensions the tuned model keeps {kept['tuned']:.1%} of its "
        f"full-size {metric_name(mrr)}, plain MNRL, rotated, keeps {kept['mnrl_rotated']:.1%} and "
        f"the base model {kept['base']:.1%}. {lead_sentence(compared, small)}",
        "",
        f"![{metric_name(mrr)} against dimensions kept, with every control]({figure})",
        SUMMARY[1],
    ]
    return "\n".join(lines)


def readme_results(results: pd.DataFrame, differences: pd.DataFrame) -> str:
    """The README's section of results, as Markdown, from the tables that notebook 5 wrote.

    Args:
        results: The scores of one run.
        differences: Its paired differences.
    """
    mrr, recall = (next(n for n in results if n.startswith(m)) for m in ("mrr@", "recall@"))
    first = results.iloc[0]
    lines = [
        START,
        "What came out (paired differences on the same queries, 95% intervals, one training seed):",
        "",
        *(f"- {sentence}" for sentence in difference_sentences(differences, mrr)),
        "",
        markdown_table(results, mrr),
        "",
        markdown_table(results, recall),
        "",
        f"Preset `{first['preset']}`, {first['num_queries']:,} test queries on "
        f"{first['num_passages']:,} passages, seed {first['seed']}, run `{first['run']}`. "
        "Bold is the highest of a column, not a lead that can be trusted.",
        END,
    ]
    return "\n".join(lines)


def replace_section(text: str, section: str, start: str = START, end: str = END) -> str:
    """A README with the section from the line ``start`` to the line ``end`` exchanged.

    Raises:
        ValueError: it has no such section.
    """
    if start not in text or end not in text:
        raise ValueError(f"README.md lacks the lines {start} and {end}")
    return text[: text.index(start)] + section + text[text.index(end) + len(end) :]


def executed_notebooks(run: Run) -> dict[str, nbformat.NotebookNode]:
    """The six executed notebooks of a run, checked.

    Raises:
        ArtifactError: one is missing, failed, is not of this run, or was made from other code.
    """
    found = {}
    for name in NOTEBOOKS:
        path = run.folder / "notebooks" / f"{name}.ipynb"
        again = f"run again: python -m helpers.run {run.choice}"
        if not path.is_file():
            raise ArtifactError(f"{short(path)} is missing; {again}")
        notebook = nbformat.read(path, as_version=4)
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        if any(output.output_type == "error" for output in outputs):
            raise ArtifactError(f"{short(path)} stopped at an error; {again}")
        if not any(run.id in output.get("text", "") for output in outputs):
            raise ArtifactError(f"{short(path)} is not of run {run.id}; {again}")
        source = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
        if code_sha256(source) != code_sha256(notebook):
            raise ArtifactError(f"{short(path)} was made from other code than it has now; {again}")
        ran, cells = (
            [cell for cell in content.cells if cell.cell_type == "code"]
            for content in (notebook, source)
        )
        if [cell.execution_count for cell in ran] != list(range(1, len(ran) + 1)):
            raise ArtifactError(f"{short(path)} was not run from first cell to last; {again}")
        for cell, done in zip(cells, ran, strict=True):  # prose may have been mended since
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
            for output in cell.outputs:  # a table's other form is an address, new in each run
                if "pandas.io.formats.style.Styler" in output.get("data", {}).get("text/plain", ""):
                    output.data["text/plain"] = "a table, shown where HTML is"
        source.metadata = notebook.metadata
        source.metadata.pop("seconds", None)  # they stand in results/
        source.metadata["matryoshka"] = {"run": run.id, "code_sha256": code_sha256(source)}
        found[name] = source
    return found


def run_seconds(run: Run) -> pd.DataFrame:
    """How long each executed notebook of a run took: ``preset``, ``notebook``, ``seconds``,
    ``machine`` and ``run``, one row a notebook.

    Raises:
        ArtifactError: one was not timed, or notebook 4 found its models trained already.
    """
    again = f"delete {short(run.folder)} and run again: python -m helpers.run {run.choice}"
    rows = []
    for name in NOTEBOOKS:
        executed = nbformat.read(run.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        if "seconds" not in executed.metadata:
            raise ArtifactError(f"{name} was not timed; {again}")
        rows.append((run.experiment.name, name, executed.metadata["seconds"]))
    frame = pd.DataFrame(rows, columns=["preset", "notebook", "seconds"])
    results = run.load("results.csv", "evaluation", "05_evaluation").drop_duplicates("model")
    if frame.set_index("notebook")["seconds"]["04_training"] <= results["train_seconds"].sum():
        raise ArtifactError(f"04_training was timed without its trainings; {again}")
    return frame.assign(machine=str(run.machine), run=run.id)


def publish(run: Run, root: Path = ROOT) -> list[Path]:
    """Copy a finished run into the repository; returns what was written.

    Raises:
        ArtifactError: the run is not finished, or its parts do not belong together.
        ValueError: the README has no place for the results.
    """
    results = run.load("results.csv", "evaluation", "05_evaluation")
    differences = run.load("differences.csv", "evaluation", "05_evaluation")
    for table in (results, differences):
        if set(table["run"]) != {run.id}:
            raise ArtifactError(
                f"the results are of run {table['run'].iloc[0]}, not of {run.id}; run again: "
                f"python -m helpers.run {run.choice}"
            )
    notebooks = executed_notebooks(run)
    name = run.experiment.name
    readme = root / "README.md"
    figure = root / "results" / f"{name}.png"
    seconds = run_seconds(run)
    compared = pd.read_csv(ROOT / "results" / "recipes_differences.csv")
    small = run.experiment.small_dim
    text = readme.read_text(encoding="utf-8")
    for section, (start, end) in (
        (readme_summary(results, compared, small, f"results/{name}.png"), SUMMARY),
        (readme_results(results, differences), (START, END)),
        (readme_map(seconds, LARGE), MAP),
    ):
        text = replace_section(text, section, start, end)
    (root / "results").mkdir(exist_ok=True)
    (root / "notebooks").mkdir(exist_ok=True)
    use_style()
    plot_scores(results, f"mrr@{run.experiment.k}").savefig(
        figure, dpi=160, bbox_inches="tight", metadata={"Description": run.id}
    )
    tables = {
        f"{name}.csv": results,
        f"{name}_differences.csv": differences,
        f"{name}_seconds.csv": seconds,
    }
    for file, table in tables.items():
        if "dim" in table:  # BM25 has none, so pandas would write fractions
            table = table.astype({"dim": "Int64"})
        table.to_csv(root / "results" / file, index=False)
    readme.write_text(text, encoding="utf-8")
    written = [readme, figure, *(root / "results" / file for file in tables)]
    for notebook, content in notebooks.items():
        path = root / "notebooks" / f"{notebook}.ipynb"
        nbformat.write(content, path)
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.publish", description=__doc__)
    parser.add_argument("preset", help="the run to publish: a preset, or the path of a TOML file")
    options = parser.parse_args(arguments)
    try:
        run = find_run(options.preset, NOTEBOOKS[0])
        for path in publish(run):
            print(short(path))
    except (ArtifactError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
