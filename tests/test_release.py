"""The model that is shipped: it loads without this package, and a push hands on what was saved."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from helpers.artifacts import open_run
from helpers.metrics import prefix
from helpers.models import encode_passages, encode_queries, load_model, with_rotation
from tests.loopback_hub import READ_TOKEN, WRITE_TOKEN

CARD = "---\nlibrary_name: sentence-transformers\ntags: [matryoshka]\n---\n\n# Söme model\n"
# The last one is longer than the model reads.
TEXTS = ["a text", "the sea is deep", "war and peace", "one more word of it " * 40]
SIZES = (64, None)


@pytest.fixture
def run(runs):
    run = open_run("smoke", "06_deployment", quiet=True)
    changes = {"precision": "float32", "query_prompt": "search for: "}
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, **changes))


@pytest.fixture
def model(run):
    rotation = torch.linalg.qr(torch.randn(384, 384, generator=torch.Generator().manual_seed(0)))
    return with_rotation(load_model(run), rotation.Q)


@pytest.fixture
def release(run, model):
    return run.save("release", model, stage="evaluation", card=CARD)


@pytest.fixture
def expected(run, model):
    """What the helpers make of TEXTS as queries and as passages, at each of SIZES."""
    full = [encode(model, TEXTS, run) for encode in (encode_queries, encode_passages)]
    return [[prefix(kind, size or 384) for kind in full] for size in SIZES]


@pytest.fixture
def small(tmp_path):
    """A folder to push that holds a card and nothing else."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "small"


def assert_same(found, expected):
    for at_size, right in zip(found, expected, strict=True):
        for kind, vectors in zip(at_size, right, strict=True):
            torch.testing.assert_close(torch.tensor(kind), vectors, rtol=0, atol=1e-5)


ELSEWHERE = """
import importlib.util, json, sys
from sentence_transformers import SentenceTransformer

assert importlib.util.find_spec("helpers") is None
source, texts, sizes = map(json.loads, sys.argv[1:])
found = []
for size in sizes:
    model = SentenceTransformer(source, truncate_dim=size, device="cpu")
    encoders = (model.encode_query, model.encode_document)
    found.append([encode(texts, normalize_embeddings=True).tolist() for encode in encoders])
print(json.dumps(found))
"""


def encode_elsewhere(source, tmp_path):
    """What sentence-transformers makes of TEXTS in a process that finds no helpers."""
    (tmp_path / "empty").mkdir()
    arguments = [json.dumps(value) for value in (str(source), TEXTS, SIZES)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *arguments],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_saved_folder_gives_the_same_vectors_where_there_are_no_helpers(
    release, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_same(encode_elsewhere(release, tmp_path), expected)


def push(model, repo, folder):
    return model.push_to_hub(repo, private=True, exist_ok=True, local_model_path=str(folder))


def test_what_is_pushed_is_the_saved_folder(hub, model, release, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    repo = "someone/model"
    url = push(model, repo, release)
    assert url == f"{hub.url}/{repo}/commit/{HfApi().model_info(repo).sha}"
    verified = HfApi().verify_repo_checksums(repo, local_dir=release)
    assert verified.mismatches == verified.extra_paths == []
    assert verified.missing_paths == [".gitattributes"]  # the Hub's own
    assert verified.checked_count == sum(path.is_file() for path in release.rglob("*"))
    assert Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8") == CARD
    assert_same(encode_elsewhere(repo, tmp_path), expected)


def test_a_pushed_model_is_private(hub, model, small, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    push(model, "someone/private", small)
    assert HfApi().model_info("someone/private").private
    for api, seen in ((HfApi(), True), (HfApi(token=False), False)):
        assert api.repo_exists("someone/private") is seen
        assert api.file_exists("someone/private", "README.md") is seen


def test_a_second_push_renews_the_first(hub, model, small, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    push(model, "someone/renewed", small)
    (small / "README.md").write_text("another")
    push(model, "someone/renewed", small)
    assert Path(hf_hub_download("someone/renewed", "README.md")).read_text() == "another"


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "401 Unauthorized"), (READ_TOKEN, "Make sure your token has the correct permissions")],
)
def test_a_token_that_is_missing_or_only_reads_is_told_and_changes_nothing(
    hub, model, small, monkeypatch, token, said
):
    monkeypatch.setenv("HF_TOKEN", token)
    commit = hub.add("models", "someone/there", {"README.md": b"as it was"})
    for repo in ("someone/none", "someone/there"):
        with pytest.raises(HfHubHTTPError, match=said):
            push(model, repo, small)
    assert not HfApi().repo_exists("someone/none")
    assert HfApi().model_info("someone/there").sha == commit
