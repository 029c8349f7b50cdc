"""The map of the series: its minutes are those of the published run, and of the arithmetic."""

import pandas as pd
import pytest

from helpers.artifacts import NOTEBOOKS
from helpers.config import LARGE, ROOT
from helpers.course import LESSONS, course_map, readme_map, t4_minutes

SECONDS = pd.DataFrame(
    {"preset": "wikipedia", "notebook": NOTEBOOKS, "seconds": [6.0, 60, 90, 300, 120, 30]}
).assign(machine="a laptop", run="r")


def test_every_notebook_is_a_lesson():
    assert tuple(LESSONS) == NOTEBOOKS


def test_minutes_are_seconds_of_the_run():
    found = course_map(SECONDS, LARGE)
    assert found["minutes, CPU"].tolist() == [0.1, 1.0, 1.5, 5.0, 2.0, 0.5]
    assert found.loc["03_baseline", "takes in"] == "passages, dev queries"


def test_the_t4_takes_what_the_readme_reckons():
    minutes = t4_minutes(LARGE)
    assert minutes["05_evaluation"] == pytest.approx(2 * minutes["03_baseline"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{sum(minutes.values()):.0f} minutes |" in readme
    training = minutes["04_training"] * 60 * 16e12 / 1e15
    assert f"| {training:.2f} |" in readme


def test_the_readmes_map_has_a_row_a_notebook_and_the_sum():
    lines = readme_map(SECONDS, LARGE).splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert [row.split("]")[0][3:] for row in rows] == [*NOTEBOOKS]
    assert rows[0].endswith("| 0.1 |  |")
    assert any(line.startswith("| together | | 10.1 |") for line in lines)
    assert "a laptop" in lines[-2]
