"""Measure what a server makes of a run's release: ``python -m tools.serving wikipedia``.

It runs the notebook ``going_further/serving`` with a server, and copies the table that this writes
to ``results/serving.csv``. MATRYOSHKA_VLLM names a Python that has vLLM, or MATRYOSHKA_SERVER_URL a
server of the release.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers.config import ROOT
from helpers.execution import run_notebook
from helpers.runs import Run
from tools import command
from tools.report import write_report

NOTEBOOK = "going_further/serving.ipynb"


def measure(run: Run, root: Path = ROOT) -> Iterable[Path]:
    """Run the notebook, and return the files that were written below ``root``.

    Raises:
        ValueError: neither variable is set, so that there is no server to measure.
    """
    if not any(map(os.environ.get, ("MATRYOSHKA_VLLM", "MATRYOSHKA_SERVER_URL"))):
        raise ValueError("set MATRYOSHKA_VLLM or MATRYOSHKA_SERVER_URL: there is no server")
    run_notebook(ROOT / "notebooks" / NOTEBOOK, run.folder / "notebooks" / NOTEBOOK, run.choice)
    table = root / "results" / "serving.csv"
    pd.read_csv(run.path("serving.csv")).to_csv(table, index=False, float_format="%.6g")
    return [table, write_report(root / "results")]


if __name__ == "__main__":
    sys.exit(command(__doc__, measure))
