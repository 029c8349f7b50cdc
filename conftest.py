"""Keeps the tests away from the reader's own runs, and lets no test be skipped in silence."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.config import PRESETS, ROOT

# Tests that may be skipped where CI is set: name, and why.
ALLOWED_SKIPS: dict[str, str] = {}


def pytest_configure(config):
    # Notebooks read these in their own processes, so they are set before any test starts.
    config.runs = tempfile.mkdtemp(prefix="matryoshka-runs-")
    os.environ["MATRYOSHKA_RUNS"] = config.runs
    os.environ.pop("MATRYOSHKA_PRESET", None)
    os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_unconfigure(config):
    shutil.rmtree(config.runs, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = {report.nodeid for report in reporter.stats.get("skipped", [])}
    unlisted = sorted(skipped - set(ALLOWED_SKIPS))
    if os.environ.get("CI") and unlisted:
        reporter.write_line(f"skipped, but not listed in ALLOWED_SKIPS: {', '.join(unlisted)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """An empty folder for runs, which this test alone sees."""
    monkeypatch.setenv("MATRYOSHKA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory) -> Path:
    """A folder of runs with the smoke preset's data and its base model's embeddings. Copy it."""
    folder = tmp_path_factory.mktemp("smoke_data")
    subprocess.run(
        [sys.executable, "-m", "helpers.run", "smoke", "--until", "03_baseline"],
        env=os.environ | {"MATRYOSHKA_RUNS": str(folder)},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def smoke():
    return PRESETS["smoke"]
