"""Importing a helper changes nothing in the reader's process."""

import os
import subprocess
import sys

import pytest

from helpers.config import ROOT

HELPERS = sorted(path.stem for path in (ROOT / "helpers").glob("[!_]*.py"))
# What the helpers import is imported first: its own doings are no concern of ours.
STATE = """
import importlib, os, sys, tempfile, warnings
import bm25s, datasets, faiss, matplotlib.pyplot, nbclient, pandas, sentence_transformers, torch
from pandas._config.config import _global_config as options

def state():
    threads, tempdir = torch.get_num_threads(), tempfile.tempdir
    rules, looks = [*warnings.filters], dict(matplotlib.rcParams)
    return dict(os.environ), repr(options), [*sys.path], rules, looks, threads, tempdir

before = state()
for name in sys.argv[1:]:
    importlib.import_module(f"helpers.{name}")
    assert state() == before, name
"""
JAX = """
import sys
import helpers.compare
assert "jax" not in sys.modules
import jax.lax
"""


def run(program, *arguments, path=()):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path]))}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has to be told of two OpenMPs there")
def test_importing_a_helper_changes_nothing():
    done = run(STATE, *HELPERS)
    assert done.returncode == 0, done.stderr


def test_searching_by_words_does_not_start_jax(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('JAX starts')")
    (tmp_path / "jax" / "lax.py").write_text("top_k = lambda scores, k: None")
    done = run(JAX, path=[tmp_path])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "JAX starts\n", "once, when the reader imports it"
