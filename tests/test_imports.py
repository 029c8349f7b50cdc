"""Importing a helper changes nothing in the reader's process, and imports run one way."""

import re
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


def test_a_helper_imports_only_those_above_it_in_the_reading_list():
    reading_list = (ROOT / "helpers" / "__init__.py").read_text(encoding="utf-8")
    order = re.findall(r"^(\w+) {2,}", reading_list, re.MULTILINE)
    assert sorted(order) == HELPERS
    for place, name in enumerate(order):
        source = (ROOT / "helpers" / f"{name}.py").read_text(encoding="utf-8")
        imported = set(re.findall(r"^ *(?:from|import) helpers\.(\w+)", source, re.MULTILINE))
        assert imported <= {*order[:place]}, name
        assert not re.search(r"^ *(?:from|import) (?:tools|notebooks)\b", source, re.MULTILINE)
