"""Keeps the tests away from the reader's own runs, and lets no test be skipped in silence."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.config import PRESETS, ROOT
from tests.loopback_hub import LoopbackHub

# Tests that may be skipped where CI is set: name, and why.
ALLOWED_SKIPS = {
    "tests/test_study.py::test_the_committed_study_is_of_the_recipes_as_they_stand": (
        "the study is being made again; it stops being skipped when results/trainings is complete"
    ),
}


def pytest_configure(config):
    # Notebooks read these in their own processes, and the Hub's clients when they are imported,
    # so they are set before any test starts. No test leaves this machine for the Hub.
    config.scratch = Path(tempfile.mkdtemp(prefix="matryoshka-"))
    config.hub = LoopbackHub()
    os.environ |= {
        "MATRYOSHKA_RUNS": str(config.scratch / "runs"),
        "HF_ENDPOINT": config.hub.url,
        "HF_HOME": str(config.scratch / "huggingface"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DISABLE_XET": "1",  # what is pushed goes by way of the older protocol
    }
    others = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "QDRANT_URL", "QDRANT_API_KEY")
    for name in ("MATRYOSHKA_PRESET", *others):
        os.environ.pop(name, None)


def pytest_unconfigure(config):
    config.hub.close()
    shutil.rmtree(config.scratch, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = {report.nodeid for report in reporter.stats.get("skipped", [])}
    unlisted = sorted(skipped - set(ALLOWED_SKIPS))
    if os.environ.get("CI") and unlisted:
        reporter.write_line(f"skipped, but not listed in ALLOWED_SKIPS: {', '.join(unlisted)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def hub(request) -> LoopbackHub:
    """The Hub that the clients of this process talk to; its faults end with the test."""
    yield request.config.hub
    request.config.hub.reset()


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """An empty folder for runs, which this test alone sees."""
    monkeypatch.setenv("MATRYOSHKA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory) -> Path:
    """A folder of runs with the smoke preset's data and its base model's embeddings. Copy it."""
    folder = tmp_path_factory.mktemp("smoke_data")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.run", "smoke", "--until", "03_baseline"],
        env=os.environ | {"MATRYOSHKA_RUNS": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture
def smoke():
    return PRESETS["smoke"]
