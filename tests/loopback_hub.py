"""A small Hugging Face Hub on 127.0.0.1 that fails on demand, to test with the real clients.

Set ``HF_ENDPOINT`` to its ``url`` before the clients are imported: they read it only then.
"""

import base64
import functools
import hashlib
import io
import json
import re
import socket
import string
import struct
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

LARGE = (".parquet", ".safetensors")  # kept in LFS
API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+)/?(.*))?"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
ERROR_CODES = {"401": "GatedRepo", "404": "EntryNotFound"}
STATUSES = ("401", "403", "404", "429", "500", "503", "504")
BODY_FAULTS = ("reset", "truncated")


@dataclass
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(content: object, status: int = 200, **headers: str) -> _Answer:
    headers = {name.replace("_", "-"): value for name, value in headers.items() if value}
    headers |= {"Content-Type": "application/json"}
    return _Answer(status, json.dumps(content).encode(), headers)


def _error(status: int, message: str, code: str = "") -> _Answer:
    return _json({"error": message}, status, X_Error_Message=message, X_Error_Code=code)


@dataclass
class Fault:
    """What goes wrong with requests whose path contains ``path``; ``times`` says how often yet."""

    name: str
    path: str
    method: str
    times: float
    retry_after: int

    def matches(self, method: str, path: str, answer: _Answer) -> bool:
        if not self.times or method != self.method or self.path not in path:
            return False
        return self.name not in BODY_FAULTS or (method != "HEAD" and answer.status == 200)


class LoopbackHub:
    """A Hub at ``url`` that holds what :meth:`add` gave it, and fails as :meth:`fail` told it to.

    ``requests`` are the method and path of each request, in order.
    """

    def __init__(self, port: int = 0):
        self.requests: list[tuple[str, str]] = []
        self._repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def add(
        self, kind: str, repo: str, files: Mapping[str, bytes], revision: str | None = None
    ) -> str:
        """Commit these files, and no others, as the new "main" of "datasets" or "models".

        Return the commit, which follows from the content unless it's given. Earlier ones stay.
        """
        commit = revision or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        with self._lock:
            commits = self._repos.setdefault((kind, repo), {})
            commits.pop(commit, None)  # the newest is the last
            commits[commit] = dict(files)
        return commit

    def fail(
        self,
        name: str,
        path: str = "",
        method: str = "GET",
        times: float = 1,
        retry_after: int = 1,
    ) -> Fault:
        """Let the next requests with this ``method`` whose URL contains ``path`` fail.

        ``name`` is "refuse", one of ``STATUSES``, or one of ``BODY_FAULTS``, which pass over
        answers without a body. ``retry_after`` is the seconds that a 429 names.
        """
        fault = Fault(name, path, method, times, retry_after)
        with self._lock:
            self._faults.append(fault)
        return fault

    def reset(self) -> None:
        """Forget the faults and the requests."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()

    def close(self) -> None:
        """Refuse new connections."""
        self._server.shutdown()
        self._server.server_close()

    def meet(self, method: str, path: str, answer: _Answer) -> Fault | None:
        """Note a request, and return the fault that it meets, if any."""
        with self._lock:
            self.requests.append((method, path))
            fault = next((f for f in self._faults if f.matches(method, path, answer)), None)
            if fault:
                fault.times -= 1
            return fault

    def answer(self, target: str, body: bytes) -> _Answer:
        """The answer to a request that meets no fault."""
        url = urlsplit(target)
        if found := RESOLVE.fullmatch(url.path):
            dataset, repo, revision, path = (unquote(part or "") for part in found.groups())
            what, kind = "resolve", "datasets" if dataset else "models"
        elif found := API.fullmatch(url.path):
            kind, repo, what, revision, path = (unquote(part or "") for part in found.groups())
        elif url.path == "/api/repos/create":
            asked = json.loads(body)
            return _json({"url": f"{self.url}/{asked['organization']}/{asked['name']}"})
        elif url.path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        else:
            return _error(404, f"nothing is at {url.path}")
        if what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            known = {"uploadMode": "regular", "shouldIgnore": False}
            return _json({"files": [{"path": path, **known} for path in paths]})
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            contents = {file["path"]: base64.b64decode(file["content"]) for file in files}
            address = f"{self.url}/{repo}/commit/{self.add(kind, repo, contents)}"
            return _json({"commitUrl": address, "commitOid": address[-40:]})
        commits = self._repos.get((kind, repo))
        if not commits:
            return _error(404, "Repository not found", "RepoNotFound")
        commit = [*commits][-1] if revision in ("", "main") else revision
        if commit not in commits:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = commits[commit]
        if what == "resolve":
            return _content(commit, path, files.get(path))
        if what == "tree":
            return _tree(files, path.rstrip("/"), "recursive=true" in url.query.lower())
        siblings = [{"rfilename": path} for path in sorted(files)]
        return _json({"id": repo, "sha": commit, "private": False, "siblings": siblings})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _content(commit: str, path: str, data: bytes | None) -> _Answer:
    if data is None:
        answer = _error(404, "Entry not found", "EntryNotFound")
    elif path.endswith(LARGE):
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        answer = _Answer(200, data, {"X-Linked-Etag": tag, "X-Linked-Size": str(len(data))})
    else:
        answer = _Answer(200, data, {"ETag": f'"{_oid(data)}"'})
    answer.headers |= {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    return answer


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> _Answer:
    folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    if folder and folder not in folders:
        return _error(404, f"{folder} does not exist", "EntryNotFound")
    start = f"{folder}/" if folder else ""
    rows = [{"type": "directory", "path": path, "size": 0, "oid": "0"} for path in sorted(folders)]
    for path, data in sorted(files.items()):
        rows.append({"type": "file", "path": path, "size": len(data), "oid": _oid(data)})
        if path.endswith(LARGE):
            oid = hashlib.sha256(data).hexdigest()
            rows[-1]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    inside = [row for row in rows if row["path"].startswith(start)]
    return _json([r for r in inside if recursive or "/" not in r["path"].removeprefix(start)])


def _part(answer: _Answer, asked: str) -> _Answer:
    """The part of a whole answer that a Range header asks for."""
    size = len(answer.body)
    first, last = asked.removeprefix("bytes=").split("-")
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return _json({"error": "no such range"}, 416, Content_Range=f"bytes */{size}")
    headers = answer.headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return _Answer(206, answer.body[start:stop], headers)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing about a client that left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format, *args):
        """Say nothing."""

    def do_GET(self):
        hub = self.server.hub
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = hub.answer(self.path, body)
        fault = hub.meet(self.command, unquote(urlsplit(self.path).path), answer)
        name = fault.name if fault else ""
        if name == "refuse":
            return self._drop()
        if name in STATUSES:
            answer = _error(int(name), f"fault {name}", ERROR_CODES.get(name, ""))
            answer.headers |= {"Retry-After": str(fault.retry_after)} if name == "429" else {}
            return self._send(answer)
        if self.headers["Range"] and answer.status == 200:
            answer = _part(answer, self.headers["Range"])
        if name == "truncated":
            answer.body = answer.body[: len(answer.body) // 2]
        if name == "reset":
            self._send(answer, len(answer.body) // 2)
            return self._drop()
        self._send(answer)

    do_HEAD = do_POST = do_GET

    def _send(self, answer: _Answer, stop: int | None = None) -> None:
        """Send the headers of the whole answer, and its body up to ``stop``."""
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:stop])

    def _drop(self) -> None:
        """Close the connection with a reset instead of an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())
        self.close_connection = True


def triplet_files(
    rows: Sequence[Mapping[str, str | None]], num_shards: int = 3, config: str = "triplet-hard"
) -> dict[str, bytes]:
    """A dataset repository of (query, positive, negative) rows, in order over Parquet shards.

    The shards have no checksums and no compression: a letter that changes on the way changes a
    row, and no reader notices.
    """
    front = f"configs:\n- config_name: {config}\n  data_files:\n  - split: train\n"
    files = {"README.md": f"---\n{front}    path: {config}/train-*\n---\n".encode()}
    schema = pa.schema([(name, pa.string()) for name in ("query", "positive", "negative")])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    ends = [len(rows) * shard // num_shards for shard in range(num_shards + 1)]
    for shard in range(num_shards):
        part = table.slice(ends[shard], ends[shard + 1] - ends[shard])
        target = io.BytesIO()
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(part, target, row_group_size=50, **options)
        files[f"{config}/train-{shard:05}-of-{num_shards:05}.parquet"] = target.getvalue()
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a repository to a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@functools.cache
def tiny_bge(hidden: int = 768) -> dict[str, bytes]:
    """A model repository like BAAI/bge-base-en-v1.5, with one layer of random weights.

    A second call returns the same dictionary: don't change it.
    """
    # Imported here: a test that needs no model shouldn't wait for them.
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    signs = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *signs, *(f"##{sign}" for sign in signs)]
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=64,
    )
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as name:
        bert, folder = Path(name, "bert"), Path(name, "model")
        torch.manual_seed(0)
        BertModel(config).save_pretrained(bert)
        BertTokenizerFast(vocab=ids, do_lower_case=True, model_max_length=512).save_pretrained(bert)
        modules = [Transformer(str(bert)), Pooling(hidden, "cls"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(
            str(folder), create_model_card=False
        )
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
