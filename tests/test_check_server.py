"""The script that checks a server, against a small one that does what real ones do wrong."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from helpers.config import ROOT
from helpers.models import with_rotation
from helpers.sharing import check_vectors
from tests.loopback_hub import tiny_bge, write_files

SCRIPT = ROOT / "notebooks" / "scripts" / "check_server.py"
FULL, SMALL, LIMIT = 96, 64, 64  # a token is a letter here: short texts just fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a rotation, and its check.json."""
    base, folder = (tmp_path_factory.mktemp(name) for name in ("base", "release"))
    write_files(base, tiny_bge(hidden=FULL))
    layers = [Transformer(str(base), max_seq_length=LIMIT), Pooling(FULL, "mean"), Normalize()]
    model = SentenceTransformer(modules=layers, device="cpu")
    with_rotation(model, torch.linalg.qr(torch.randn(FULL, FULL)).Q).save(str(folder))
    (folder / "check.json").write_text(json.dumps(check_vectors(folder, SMALL)))
    return folder


class Server:
    """Serves a model's embeddings; ``model`` and the options can be changed to do it wrong."""

    def __init__(self, folder):
        self.model = SentenceTransformer(str(folder), device="cpu")
        self.takes_dimensions, self.takes_long, self.normalises = True, False, True
        self.key = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, {"data": [{"id": "the-model"}]})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, asked["model"]) == ("/v1/embeddings", "the-model")
                if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                    return self.answer(401, {"error": "no key"})
                self.answer(*server.embed(asked))

            def answer(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def embed(self, asked):
        texts, dim = asked["input"], asked.get("dimensions")
        if dim and not self.takes_dimensions:
            return 400, {"error": "does not support Matryoshka embeddings"}
        longest = max(map(len, self.model.tokenizer(texts)["input_ids"]))
        cuts = self.takes_long or asked.get("truncate_prompt_tokens") == -1
        if longest > LIMIT and not cuts:
            return 400, {"error": f"the limit is {LIMIT} tokens"}
        vectors = self.model.encode(texts, truncate_dim=dim, normalize_embeddings=self.normalises)
        rows = [{"index": n, "embedding": row} for n, row in enumerate(vectors.tolist())]
        return 200, {"data": rows[::-1]}  # in an order of its own


@pytest.fixture
def server(folder):
    server = Server(folder)
    yield server
    server.http.shutdown()
    server.http.server_close()


def check(server, folder, **env):
    command = [sys.executable, "-I", str(SCRIPT), server.url, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_server_with_the_models_vectors_is_right(server, folder):
    code, said = check(server, folder)
    assert code == 0
    assert re.findall(r"^(\d+) dimensions: right", said, re.MULTILINE) == [str(FULL), str(SMALL)]
    assert f"more than {LIMIT} tokens need truncate_prompt_tokens = -1" in said
    server.takes_long, server.key = True, "secret"
    code, said = check(server, folder, OPENAI_API_KEY="secret")
    assert code == 0 and "truncate_prompt_tokens" not in said
    code, said = check(server, folder)
    assert code == 1 and "the texts are refused: 401" in said


def wrong_pooling(server):
    server.model[1].pooling_mode = "cls"


def without(server, kind):
    kept = [module for module in server.model if type(module).__name__ != kind]
    server.model = SentenceTransformer(modules=kept, device="cpu")


def no_rotation(server):
    without(server, "Dense")


def not_normalised(server):
    without(server, "Normalize")
    server.normalises = False


def cut_elsewhere(server):
    server.takes_long, server.model.max_seq_length = True, LIMIT - 16


def refused_dimensions(server):
    server.takes_dimensions = False


def ignored_dimensions(server):
    embed = server.embed
    server.embed = lambda asked: embed(asked | {"dimensions": None})


def another_model(server):
    server.model[2].linear.weight.data = torch.linalg.qr(torch.randn(FULL, FULL)).Q


def another_size(server):
    server.model[2].linear.weight.data = torch.randn(FULL // 2, FULL)


POOLING, LENGTHS = r"wrong pooling \(cls\)", "not normalised: lengths from"


@pytest.mark.parametrize(
    ("faults", "at_full", "at_small"),
    [
        ([wrong_pooling], POOLING, POOLING),
        ([no_rotation], "no rotation", "no rotation"),
        ([wrong_pooling, no_rotation], f"{POOLING}, no rotation", f"{POOLING}, no rotation"),
        ([not_normalised], LENGTHS, LENGTHS),
        ([lambda server: setattr(server, "normalises", False)], "right", LENGTHS),
        ([cut_elsewhere], "cut at another length", "cut at another length"),
        ([refused_dimensions], "right", "dimensions refused: 400 "),
        ([ignored_dimensions], "right", f"dimensions ignored: expected {SMALL}, got {FULL}"),
        ([another_model], "another model: the vectors", "another model: the vectors"),
        ([another_size], f"another model: expected {FULL} dimensions, got 48", "another model"),
    ],
)
def test_each_fault_is_named(server, folder, faults, at_full, at_small):
    for fault in faults:
        fault(server)
    code, said = check(server, folder)
    assert code == 1
    for size, words in ((FULL, at_full), (SMALL, at_small)):
        lines = re.findall(rf"^{size} dimensions: (.*)$", said, re.MULTILINE)
        assert len(lines) == 1 and re.match(words, lines[0]), said


def test_what_is_no_such_server_and_no_release_is_said_in_one_line(server, folder, tmp_path):
    code, said = check(server, tmp_path)
    assert code == 1 and said.startswith("expected a release with a check.json")
    server.http.shutdown()
    server.http.server_close()
    code, said = check(server, folder)
    assert code == 1 and said.startswith("expected an OpenAI-compatible server at")
    assert said.count("\n") == 1


def test_the_notebook_asks_a_server_that_runs(server, folder, monkeypatch, capsys):
    monkeypatch.delenv("MATRYOSHKA_VLLM", raising=False)
    monkeypatch.setenv("MATRYOSHKA_SERVER_URL", server.url)
    notebook = nbformat.read(ROOT / "notebooks" / "going_further" / "serving.ipynb", as_version=4)
    space = {"torch": torch, "queries": ["a question"], "small": SMALL, "release": folder}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "serving-05" <= cell.id <= "serving-09":
            exec(cell.source, space)
    assert capsys.readouterr().out.endswith("1.000, the length of a vector\n")
    texts = ["the sea is deep", "a much longer text " * 20]
    expected = server.model.encode(texts, truncate_dim=SMALL, normalize_embeddings=True)
    assert space["served"](texts, SMALL).numpy() == pytest.approx(expected, abs=1e-5)
