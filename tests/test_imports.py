"""Importing a helper changes nothing in the reader's process."""

import subprocess
import sys

import pytest

from helpers.config import ROOT

HELPERS = sorted(path.stem for path in (ROOT / "helpers").glob("[!_]*.py"))
# What the helpers import is imported first: its own doings are no concern of ours.
STATE = """
import importlib, os, sys, tempfile, warnings
import bm25s, datasets, faiss, matplotlib.pyplot, nbclient, pandas, sentence_transformers, torch

def state():
    threads, tempdir = torch.get_num_threads(), tempfile.tempdir
    rules, looks = [*warnings.filters], dict(matplotlib.rcParams)
    return dict(os.environ), [*sys.path], rules, looks, threads, tempdir

before = state()
for name in sys.argv[1:]:
    importlib.import_module(f"helpers.{name}")
    assert state() == before, name
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has to be told of two OpenMPs there")
def test_importing_a_helper_changes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", STATE, *HELPERS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
