"""Keep the tests away from the reader's own runs, and let no test be skipped in silence."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from nbclient import NotebookClient

# What only some tests need is imported in its fixture, so that the others don't wait for it.
ROOT = Path(__file__).parent

# Tests that may be skipped where CI is set, and why.
COLAB, WINDOWS = "no Python of Colab's version", "Windows sends no SIGINT to one process"
OLDER = "the workflow's job `older` names Pythons with older versions"
ALLOWED_SKIPS = {
    "tests/test_sharing.py::test_an_older_library_has_equal_vectors[None]": OLDER,
    "tests/test_colab.py::test_a_notebook_alone_fetches_the_rest_and_leaves_torch_as_it_is": COLAB,
    "tests/test_colab.py::test_a_later_notebook_says_which_line_makes_what_it_needs": COLAB,
    "tests/test_run.py::test_ctrl_c_ends_in_one_line_and_leaves_no_process": WINDOWS,
}


# To answer a widget, nbclient sends on the channel where it waits for the cell's end, and sometimes
# misses that (its issue 312). Nobody drags a slider here.
NotebookClient.handle_comm_msg = lambda *arguments: None


def pytest_configure(config):
    # Notebooks read these in their own processes, and the Hub's clients when they are imported,
    # so they are set before any test starts. No test leaves this machine for the Hub: its address
    # is a port that refuses connections until a test asks for the loopback Hub.
    config.scratch = Path(tempfile.mkdtemp(prefix="matryoshka-"))
    config.hub_socket = socket.socket()
    config.hub_socket.bind(("127.0.0.1", 0))
    os.environ |= {
        "MATRYOSHKA_RUNS": str(config.scratch / "runs"),
        "HF_ENDPOINT": "http://127.0.0.1:{1}".format(*config.hub_socket.getsockname()),
        "HF_HOME": str(config.scratch / "huggingface"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
    }
    for name in ("MATRYOSHKA_PRESET", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        os.environ.pop(name, None)


def pytest_unconfigure(config):
    config.hub_socket.close()
    shutil.rmtree(config.scratch, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = {report.nodeid for report in reporter.stats.get("skipped", [])}
    unlisted = sorted(skipped - set(ALLOWED_SKIPS))
    if os.environ.get("CI") and unlisted:
        reporter.write_line(f"skipped, but not listed in ALLOWED_SKIPS: {', '.join(unlisted)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def started_hub(request):
    """The loopback Hub, at the address in HF_ENDPOINT."""
    from tests.loopback_hub import LoopbackHub

    port = request.config.hub_socket.getsockname()[1]
    request.config.hub_socket.close()
    hub = LoopbackHub(port)
    yield hub
    hub.close()


@pytest.fixture
def hub(request, started_hub):
    """The Hub that the clients of this process talk to; nothing is in their cache at first."""
    shutil.rmtree(request.config.scratch / "huggingface", ignore_errors=True)
    yield started_hub
    started_hub.reset()


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """An empty folder for runs, which this test alone sees."""
    monkeypatch.setenv("MATRYOSHKA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def smoke_data(request) -> Path:
    """The folder of runs that the tests of notebooks share. Copy it.

    The smoke preset has at least its data there, and the base model's embeddings.
    """
    folder = request.config.scratch / "runs"
    if not (folder / "smoke" / "base.safetensors.manifest.json").is_file():
        command = [sys.executable, "-m", "helpers.run", "smoke", "--until", "03_baseline"]
        env = os.environ | {"MATRYOSHKA_RUNS": str(folder)}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture
def smoke():
    from helpers.config import PRESETS

    return PRESETS["smoke"]


@pytest.fixture(scope="module")
def browser():
    """The Chromium of this machine, without a window."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on PATH")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()
