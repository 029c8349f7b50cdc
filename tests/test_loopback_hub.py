"""The loopback Hub: the real clients work against it, and its faults are what they are called."""

import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode, urlsplit

import pyarrow.parquet as pq
import pytest

from tests.loopback_hub import LoopbackHub, tiny_bge, triplet_files

ROWS = [
    {
        "query": f"what is the number {row}",
        "positive": f"the number {row} is a number of the world",
        "negative": None if row % 7 == 0 else "nothing that is known of it",
    }
    for row in range(400)
]
FILES = triplet_files(ROWS)
SHARDS = [path for path in FILES if path.endswith(".parquet")]
SHARD = SHARDS[1]
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def hub():
    hub = LoopbackHub()
    hub.add("datasets", "owner/triplets", FILES, COMMIT)
    yield hub
    hub.close()


def get(hub, path, method="GET", headers=None, data=None):
    """Status, headers and body of an answer, after its redirects."""
    request = urllib.request.Request(hub.url + path, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def shard(hub, headers=None):
    return get(hub, f"/datasets/owner/triplets/resolve/{COMMIT}/{SHARD}", headers=headers)


CLIENTS = """
import json, sys
from datasets import load_dataset, load_dataset_builder
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from sentence_transformers import SentenceTransformer

dataset, model, shard = sys.argv[1:]
api = HfApi()
said = {}
stream = load_dataset(
    "owner/triplets", "triplet-hard", split="train", streaming=True, revision=dataset
)
said["rows"] = list(stream)
builder = load_dataset_builder("owner/triplets", "triplet-hard", revision=dataset)
said["config"] = builder.config.name
kind = {"repo_type": "dataset", "revision": dataset}
with open(hf_hub_download("owner/triplets", shard, **kind), "rb") as file:
    said["shard"] = file.read().hex()
snapshot_download("owner/triplets", **kind)
verified = api.verify_repo_checksums("owner/triplets", **kind)
said["verified"] = [
    verified.checked_count,
    [*verified.mismatches, *verified.missing_paths, *verified.extra_paths],
]
said["dataset"] = api.dataset_info("owner/triplets").sha
said["siblings"] = sorted(s.rfilename for s in api.repo_info("owner/triplets", **kind).siblings)
said["sizes"] = {
    file.path: [file.size, file.lfs and file.lfs.sha256]
    for file in api.get_paths_info("owner/triplets", [shard, "README.md", "none"], **kind)
}
top = api.list_repo_tree("owner/triplets", **kind)
said["top"] = [[type(row).__name__, row.path] for row in top]
said["model"] = api.model_info("owner/bge").sha
loaded = SentenceTransformer("owner/bge", revision=model, device="cpu")
said["modules"] = [type(module).__name__ for module in loaded]
said["pooling"] = loaded[1].pooling_mode
said["length"] = loaded.max_seq_length
said["tokens"] = loaded.tokenizer.tokenize("The Moon xq")
said["shape"] = list(loaded.encode(["the moon", "water"]).shape)
said["weights"] = hf_hub_download("owner/bge", "model.safetensors", revision=model)
print(json.dumps(said))
"""


def test_the_real_clients_work(hub, tmp_path):
    model = hub.add("models", "owner/bge", tiny_bge())
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS, COMMIT, model, SHARD],
        env=env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["rows"] == ROWS
    assert said["config"] == "triplet-hard"
    assert bytes.fromhex(said["shard"]) == FILES[SHARD]
    assert said["verified"] == [len(FILES), []]
    assert said["dataset"] == COMMIT
    assert said["siblings"] == sorted(FILES)
    assert said["sizes"] == {
        SHARD: [len(FILES[SHARD]), hashlib.sha256(FILES[SHARD]).hexdigest()],
        "README.md": [len(FILES["README.md"]), None],
    }
    assert said["top"] == [["RepoFolder", "triplet-hard"], ["RepoFile", "README.md"]]
    assert said["model"] == model
    assert said["modules"] == ["Transformer", "Pooling", "Normalize"]
    assert said["pooling"] == "cls"
    assert said["length"] == 512
    assert said["tokens"] == ["the", "moon", "x", "##q"]
    assert said["shape"] == [2, 768]
    with open(said["weights"], "rb") as file:
        assert (
            hashlib.file_digest(file, "sha256").digest()
            == hashlib.sha256(tiny_bge()["model.safetensors"]).digest()
        )


def test_a_large_file_is_redirected_and_a_small_one_is_not(hub):
    path = f"/datasets/owner/triplets/resolve/{COMMIT}/{SHARD}"
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    connection.request("HEAD", path)
    answer = connection.getresponse()
    connection.close()
    assert answer.status == 302
    assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(FILES[SHARD]).hexdigest()}"'
    assert answer.headers["X-Linked-Size"] == str(len(FILES[SHARD]))
    assert answer.headers["X-Repo-Commit"] == COMMIT
    assert "X-Xet-Hash" not in answer.headers
    status, headers, body = shard(hub)
    assert (status, body) == (200, FILES[SHARD])
    status, headers, body = get(hub, "/datasets/owner/triplets/resolve/main/README.md")
    assert (status, body) == (200, FILES["README.md"])
    blob = b"blob %d\0" % len(body) + body
    assert headers["ETag"] == f'"{hashlib.sha1(blob).hexdigest()}"'
    assert [path.split("/")[1] for _, path, _ in hub.requests] == [
        "datasets",
        "datasets",
        "cdn",
        "datasets",
    ]


@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("0-9", 0, 10), ("100-", 100, None), ("-8", -8, None)]
)
def test_a_range_is_that_part(hub, asked, start, stop):
    status, headers, body = shard(hub, {"Range": f"bytes={asked}"})
    assert status == 206
    assert body == FILES[SHARD][start:stop]
    size = len(FILES[SHARD])
    first = start % size
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{size}"
    assert hub.requests[-1][2] == f"bytes={asked}"


def test_a_range_behind_the_end_is_refused(hub):
    assert shard(hub, {"Range": f"bytes={len(FILES[SHARD])}-"})[0] == 416


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/datasets/owner/triplets/resolve/{COMMIT}/none.txt", "EntryNotFound"),
        ("/datasets/owner/triplets/resolve/0000/README.md", "RevisionNotFound"),
        ("/owner/triplets/resolve/main/README.md", "RepoNotFound"),
        ("/api/datasets/owner/none", "RepoNotFound"),
        ("/api/datasets/owner/triplets/revision/0000", "RevisionNotFound"),
        ("/api/datasets/owner/triplets/tree/main/none?recursive=true", "EntryNotFound"),
        ("/api/agent-harnesses", None),
    ],
)
def test_what_is_not_there(hub, path, code):
    status, headers, body = get(hub, path)
    assert status == 404
    assert headers["X-Error-Code"] == code
    assert json.loads(body)["error"]


def test_the_newest_commit_is_main_and_the_older_ones_stay(hub):
    first = hub.add("models", "owner/model", {"a.txt": b"one"})
    second = hub.add("models", "owner/model", {"a.txt": b"two"})
    assert len({first, second}) == 2
    assert get(hub, "/owner/model/resolve/main/a.txt")[2] == b"two"
    assert get(hub, f"/owner/model/resolve/{first}/a.txt")[2] == b"one"
    assert hub.add("models", "owner/model", {"a.txt": b"one"}) == first
    assert json.loads(get(hub, "/api/models/owner/model")[2])["sha"] == first


def test_a_removed_file_is_gone_from_tree_info_and_resolve(hub):
    hub.remove("datasets", "owner/triplets", COMMIT, SHARD)
    tree = json.loads(get(hub, "/api/datasets/owner/triplets/tree/main?recursive=true")[2])
    assert [row["path"] for row in tree if row["type"] == "file"] == [
        "README.md",
        SHARDS[0],
        SHARDS[2],
    ]
    info = json.loads(get(hub, "/api/datasets/owner/triplets")[2])
    assert len(info["siblings"]) == 3
    paths = urlencode({"paths": SHARD}).encode()
    found = get(hub, "/api/datasets/owner/triplets/paths-info/main", "POST", data=paths)
    assert json.loads(found[2]) == []
    assert shard(hub)[0] == 404


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("401", "GatedRepo"),
        ("403", None),
        ("404", "EntryNotFound"),
        ("429", None),
        ("500", None),
        ("503", None),
        ("504", None),
    ],
)
def test_a_status(hub, fault, code):
    hub.fail(fault, SHARD, retry_after=7)
    status, headers, body = shard(hub)
    assert status == int(fault)
    assert headers["X-Error-Code"] == code
    assert headers["Retry-After"] == ("7" if fault == "429" else None)
    assert json.loads(body)["error"]
    assert shard(hub)[0] == 200


def test_a_status_with_another_error_code(hub):
    hub.fail("401", error_code="")
    assert "X-Error-Code" not in shard(hub)[1]


def test_a_refused_connection(hub):
    hub.fail("refuse")
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        shard(hub)
    assert shard(hub)[0] == 200


def test_a_reset_in_mid_body(hub):
    hub.fail("reset", SHARD)
    with pytest.raises(ConnectionResetError):
        shard(hub)


def test_a_stall_blocks_no_other_request_and_a_reset_ends_it(hub):
    hub.fail("stall", SHARD)
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=0.2)
    connection.request("GET", f"/cdn/datasets/owner/triplets/{COMMIT}/{SHARD}")
    answer = connection.getresponse()
    half = len(FILES[SHARD]) // 2
    assert answer.read(half) == FILES[SHARD][:half]
    assert shard(hub)[2] == FILES[SHARD]
    with pytest.raises(TimeoutError):
        answer.read(1)
    connection.close()

    hub.fail("stall", SHARD)
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
    connection.request("GET", f"/cdn/datasets/owner/triplets/{COMMIT}/{SHARD}")
    answer = connection.getresponse()
    hub.reset()
    with pytest.raises(ConnectionResetError):
        answer.read()
    connection.close()


def test_a_stall_of_some_seconds_goes_on(hub):
    hub.fail("stall", SHARD, seconds=0.3)
    began = time.monotonic()
    assert shard(hub)[2] == FILES[SHARD]
    assert time.monotonic() - began >= 0.3


def test_a_truncated_body_says_that_it_is_whole(hub):
    hub.fail("truncated", SHARD)
    status, headers, body = shard(hub)
    assert status == 200
    assert body == FILES[SHARD][: len(FILES[SHARD]) // 2]
    assert headers["Content-Length"] == str(len(body))


def test_a_wrong_length_promises_more_than_comes(hub):
    hub.fail("wrong_length", SHARD)
    with pytest.raises(http.client.IncompleteRead) as error:
        shard(hub)
    assert error.value.partial == FILES[SHARD][: len(FILES[SHARD]) // 2]


def test_a_flipped_body_differs_in_one_letter(hub):
    hub.fail("flipped", SHARD, times=2)
    for asked, whole in [({}, FILES[SHARD]), ({"Range": "bytes=99-"}, FILES[SHARD][99:])]:
        _, _, body = shard(hub, asked)
        assert len(body) == len(whole)
        changed = [pair for pair in zip(body, whole, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
        assert bytes(changed[0]).isalpha()


def test_an_ignored_range_is_a_whole_file(hub):
    hub.fail("ignore_range", SHARD)
    assert shard(hub)[0] == 200
    status, headers, body = shard(hub, {"Range": "bytes=0-9"})
    assert (status, body) == (200, FILES[SHARD])
    assert "Content-Range" not in headers
    assert shard(hub, {"Range": "bytes=0-9"})[0] == 206


def test_times_after_path_and_method_say_which_requests_fail(hub):
    hub.fail("500", "README", times=2, after=1)
    readme = "/datasets/owner/triplets/resolve/main/README.md"
    assert get(hub, readme, "HEAD")[0] == 200
    assert shard(hub)[0] == 200
    assert [get(hub, readme)[0] for _ in range(5)] == [200, 500, 500, 200, 200]
    hub.fail("503", "README", method="HEAD", times=None)
    assert [get(hub, readme, "HEAD")[0] for _ in range(5)] == [503] * 5
    assert get(hub, readme)[0] == 200
    hub.reset()
    assert hub.requests == []
    assert get(hub, readme, "HEAD")[0] == 200
    assert hub.requests == [("HEAD", readme, None)]


def test_faults_are_met_in_the_order_of_the_calls(hub):
    hub.fail("500")
    hub.fail("503", after=1)
    statuses = [get(hub, "/api/datasets/owner/triplets")[0] for _ in range(4)]
    assert statuses == [500, 200, 503, 200]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "ignore_range"])
def test_what_changes_a_body_waits_for_one(hub, fault):
    hub.fail(fault, SHARD)
    asked = {"Range": "bytes=9-"}
    assert get(hub, f"/cdn/datasets/owner/triplets/{COMMIT}/{SHARD}", "HEAD", asked)[0] == 206
    assert get(hub, f"/cdn/datasets/owner/triplets/{COMMIT}/{SHARD}.none", headers=asked)[0] == 404
    assert shard(hub, asked)[2] != FILES[SHARD][9:]
    assert shard(hub, asked)[2] == FILES[SHARD][9:]


def test_an_unknown_fault(hub):
    with pytest.raises(ValueError, match="fault is 'flood': allowed are refuse, reset"):
        hub.fail("flood")


def test_a_closed_hub_answers_no_more(hub):
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=5)
    connection.request("GET", "/api/datasets/owner/triplets")
    assert connection.getresponse().read()
    hub.close()
    with pytest.raises(ConnectionError):
        connection.request("GET", "/api/datasets/owner/triplets")
        connection.getresponse()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        shard(hub)


def test_rows_are_in_order_over_the_shards():
    tables = [pq.ParquetFile(io.BytesIO(FILES[path])) for path in SHARDS]
    assert [row for table in tables for row in table.read().to_pylist()] == ROWS
    assert [f"triplet-hard/train-0000{n}-of-00003.parquet" for n in range(3)] == SHARDS
    assert [table.num_row_groups for table in tables] == [3, 3, 3]
    files = triplet_files(ROWS[:2], num_shards=1, config="triplet")
    assert [*files] == ["README.md", "triplet/train-00000-of-00001.parquet"]


def test_the_model_follows_from_its_seed():
    again = tiny_bge.__wrapped__(hidden=24)
    assert again == tiny_bge.__wrapped__(hidden=24)
    assert again["model.safetensors"] != tiny_bge.__wrapped__(1, 24)["model.safetensors"]
