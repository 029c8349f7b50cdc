"""A small Hugging Face Hub on 127.0.0.1, with faults on demand, to test the real clients against.

Set ``HF_ENDPOINT`` to a hub's ``url`` before the clients are imported: they read it only then. To
push to it set ``HF_HUB_DISABLE_XET`` too, since it takes large files by way of LFS alone.
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
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

LARGE = (".parquet", ".safetensors")  # kept in LFS, and served by way of a redirect
API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CDN = re.compile(r"/cdn/(datasets|models)/([^/]+/[^/]+)/([^/]+)/(.+)")
PUSH = re.compile(
    r"/(?:api/models/)?([^/]+/[^/]+?)(/preupload/main|/commit/main|\.git/info/lfs/objects/batch)"
)

WRITE_TOKEN, READ_TOKEN = "hf_write", "hf_read"

# The X-Error-Code that goes with a fault's status.
STATUSES = {
    "401": "GatedRepo",
    "403": "",
    "404": "EntryNotFound",
    "429": "",
    "500": "",
    "503": "",
    "504": "",
}
BODY_FAULTS = ("reset", "stall", "truncated", "wrong_length", "flipped", "ignore_range")
FAULTS = ("refuse", *BODY_FAULTS, *STATUSES)


class _File:
    """A file's bytes, and what a repository says of it."""

    def __init__(self, path: str, data: bytes):
        self.path = path
        self.data = data
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.large = path.endswith(LARGE)
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {len(data)}\n"
        ).encode()
        blob = pointer if self.large else data
        self.oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        self.etag = f'"{self.sha256 if self.large else self.oid}"'
        self.pointer_size = len(pointer)

    def row(self) -> dict:
        """The file's row in a tree."""
        row = {"type": "file", "path": self.path, "size": len(self.data), "oid": self.oid}
        if self.large:
            lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": self.pointer_size}
            row["lfs"] = lfs
        return row

    def sibling(self) -> dict:
        """The file's entry in a repository's info."""
        sibling = {"rfilename": self.path, "size": len(self.data), "blobId": self.oid}
        if self.large:
            lfs = {"sha256": self.sha256, "size": len(self.data), "pointerSize": self.pointer_size}
            sibling["lfs"] = lfs
        return sibling


@dataclass
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _NotThereError(Exception):
    """What was asked for is not there: the error's code, and what it says."""

    def __init__(self, code: str, message: str, commit: str = "", status: int = 404):
        super().__init__(message)
        self.code = code
        self.commit = commit
        self.status = status


def _json(rows: object) -> _Answer:
    return _Answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})


def _error(status: int, message: str, code: str = "") -> _Answer:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code:
        headers["X-Error-Code"] = code
    return _Answer(status, json.dumps({"error": message}).encode(), headers)


def _refusal(token: str, repo: str) -> _Answer | None:
    """What a push without a token that may write is answered; None for one that may."""
    if not token:
        return _error(401, "Invalid username or password.")
    if token != WRITE_TOKEN:
        owner = repo.split("/")[0]
        return _error(403, f'You don\'t have the rights to create a model under "{owner}"')
    return None


@dataclass
class _Fault:
    name: str
    path: str
    method: str
    times: float
    after: int
    seconds: float | None
    retry_after: int
    error_code: str | None

    def matches(self, method: str, path: str, asked: str | None, answer: _Answer) -> bool:
        if method != self.method or self.path not in path:
            return False
        if self.name == "ignore_range" and not asked:
            return False
        return self.name not in BODY_FAULTS or (method != "HEAD" and answer.status == 200)

    def answer(self) -> _Answer:
        """The answer of a fault that is a status."""
        usual = STATUSES[self.name]
        code = usual if self.error_code is None else self.error_code
        answer = _error(int(self.name), f"fault {self.name}", code)
        if self.name == "429":
            answer.headers["Retry-After"] = str(self.retry_after)
        return answer


class LoopbackHub:
    """A Hub that holds what :meth:`add` gave it, and fails as :meth:`fail` told it to.

    Models may be pushed to it with ``WRITE_TOKEN``, and read with any token where they are private.

    Large files are redirected to ``/cdn/KIND/OWNER/NAME/COMMIT/PATH`` on another port, since
    clients treat a redirect to the same port in another way.

    Attributes:
        url: The value for ``HF_ENDPOINT``.
        requests: The method, path and Range header (or None) of each request, in order.
    """

    def __init__(self):
        self.requests: list[tuple[str, str, str | None]] = []
        self.closed = False
        self._repos: dict[tuple[str, str], dict[str, dict[str, _File]]] = {}
        self._private: set[str] = set()  # models
        self._uploads: dict[str, bytes] = {}  # by SHA-256
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._stalls_end = threading.Event()
        self._servers = [_Server(self), _Server(self)]
        self.url, self._cdn = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def add(
        self, kind: str, repo: str, files: Mapping[str, bytes], revision: str | None = None
    ) -> str:
        """Commit these files, and no others, as the repository's new "main".

        Args:
            kind: "datasets" or "models".
            repo: As "owner/name".
            files: Their contents, by path.
            revision: The commit, in place of one that follows from the content.

        Returns:
            The commit, 40 hexadecimal digits. Earlier ones stay served.
        """
        held = {path: _File(path, data) for path, data in files.items()}
        content = sorted((file.path, file.sha256) for file in held.values())
        commit = revision or hashlib.sha1(repr(content).encode()).hexdigest()
        with self._lock:
            commits = self._repos.setdefault((kind, repo), {})
            commits.pop(commit, None)  # the newest is the last
            commits[commit] = held
        return commit

    def remove(self, kind: str, repo: str, commit: str, path: str) -> None:
        """Take one file out of a commit.

        Raises:
            KeyError: it is not there.
        """
        del self._repos[kind, repo][commit][path]

    def fail(
        self,
        fault: str,
        path: str = "",
        method: str = "GET",
        times: int | None = 1,
        after: int = 0,
        *,
        seconds: float | None = None,
        retry_after: int = 1,
        error_code: str | None = None,
    ) -> None:
        """Let the next matching requests fail.

        A request meets the first fault that is due, in the order of the calls, and those behind
        it do not count that request. What changes a body (reset, stall, truncated, wrong_length,
        flipped, ignore_range) passes over answers without one: redirects, errors and HEAD.

        Args:
            fault: One of ``FAULTS``.
            path: What the URL's path must contain. A large file's name is in two of them: put
                "/cdn/" before it, or "/resolve/", to mean one.
            method: The method that the request must have.
            times: How many requests fail; None: all.
            after: How many matching requests pass first.
            seconds: How long a stall lasts before the rest of the body follows; None: until the
                hub is reset or closed, and then the connection is dropped.
            retry_after: The seconds that a 429 names.
            error_code: The X-Error-Code of a status, in place of the usual one; "" for none.

        Raises:
            ValueError: there is no such fault.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault is {fault!r}: allowed are {', '.join(FAULTS)}")
        times = float("inf") if times is None else times
        with self._lock:
            self._faults.append(
                _Fault(fault, path, method, times, after, seconds, retry_after, error_code)
            )

    def reset(self) -> None:
        """Forget the faults and the requests, and end every stall."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self._stalls_end.set()
            self._stalls_end = threading.Event()

    def close(self) -> None:
        """Stop: refuse new connections, and drop the open ones at their next request."""
        self.closed = True
        self._stalls_end.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _meet(
        self, method: str, path: str, asked: str | None, answer: _Answer
    ) -> tuple[_Fault | None, threading.Event]:
        """Note a request; the fault that it meets or None, and what ends a stall."""
        with self._lock:
            self.requests.append((method, path, asked))
            for fault in self._faults:
                if not fault.times or not fault.matches(method, path, asked, answer):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault, self._stalls_end
            return None, self._stalls_end

    def _answer(self, method: str, target: str, body: bytes, token: str) -> _Answer:
        """The answer to a request that meets no fault."""
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/api/repos/create":
                return self._create(json.loads(body), token)
            if url.path == "/api/validate-yaml":
                return _json({"errors": [], "warnings": []})
            if method == "POST" and (found := PUSH.fullmatch(url.path)):
                return self._push(*found.groups(), body, token)
            if method == "PUT":
                self._uploads[hashlib.sha256(body).hexdigest()] = body
                return _Answer(200)
            if found := RESOLVE.fullmatch(url.path):
                dataset, repo, revision, path = (unquote(part or "") for part in found.groups())
                self._hide(repo, token)
                return self._resolve("datasets" if dataset else "models", repo, revision, path)
            if found := CDN.fullmatch(url.path):
                commit, file = self._file(*map(unquote, found.groups()))
                return self._content(commit, file)
            if found := API.fullmatch(url.path):
                kind, repo, what, revision, folder = (unquote(p or "") for p in found.groups())
                self._hide(repo, token)
                commit, files = self._commit(kind, repo, revision or "main")
                if (what == "paths-info") != (method == "POST"):
                    return _error(405, f"{method} is not for this path")
                if what == "paths-info":
                    paths = parse_qs(body.decode()).get("paths", [])
                    return _json(self._rows_of(files, paths))
                if what == "tree":
                    return _json(self._tree(files, folder, query.get("recursive") == "true"))
                return _json(self._info(repo, commit, files, query.get("blobs") == "true"))
        except _NotThereError as error:
            answer = _error(error.status, str(error), error.code)
            if error.commit:
                answer.headers["X-Repo-Commit"] = error.commit
            return answer
        return _error(404, f"nothing is at {url.path}")

    def _create(self, asked: dict, token: str) -> _Answer:
        repo = f"{asked['organization']}/{asked['name']}"
        if refusal := _refusal(token, repo):
            return refusal
        answer = _json({"url": f"{self.url}/{repo}"})
        if ("models", repo) in self._repos:
            answer.status = 409
            return answer
        if asked.get("visibility") == "private":
            self._private.add(repo)
        self.add("models", repo, {".gitattributes": b""})
        return answer

    def _push(self, repo: str, step: str, body: bytes, token: str) -> _Answer:
        """The answer to a step of a push: which files are large, where they go, the commit."""
        if refusal := _refusal(token, repo):
            return refusal
        _, held = self._commit("models", repo, "main")
        if "preupload" in step:
            rows = json.loads(body)["files"]
            for row in rows:
                mode = "lfs" if row["path"].endswith(LARGE) else "regular"
                row |= {"uploadMode": mode, "shouldIgnore": False}
            return _json({"files": rows})
        if "batch" in step:
            rows = json.loads(body)["objects"]
            for row in rows:
                row["actions"] = {"upload": {"href": f"{self._cdn}/upload/{row['oid']}"}}
            return _json({"objects": rows})
        files = {path: file.data for path, file in held.items()}
        for line in map(json.loads, body.splitlines()[1:]):  # the first one is the message
            file = line["value"]
            small = line["key"] == "file"
            files[file["path"]] = (
                base64.b64decode(file["content"]) if small else self._uploads[file["oid"]]
            )
        commit = self.add("models", repo, files)
        return _json({"commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"})

    def _hide(self, repo: str, token: str) -> None:
        """Let a private model be found with a token only."""
        if repo in self._private and not token:
            raise _NotThereError("RepoNotFound", "Invalid username or password.", status=401)

    def _commit(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, _File]]:
        with self._lock:
            commits = dict(self._repos.get((kind, repo), {}))
        if not commits:
            raise _NotThereError("RepoNotFound", "Repository not found")
        commit = [*commits][-1] if revision == "main" else revision
        if commit not in commits:
            raise _NotThereError("RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, commits[commit]

    def _file(self, kind: str, repo: str, revision: str, path: str) -> tuple[str, _File]:
        commit, files = self._commit(kind, repo, revision)
        if path not in files:
            raise _NotThereError("EntryNotFound", "Entry not found", commit)
        return commit, files[path]

    def _resolve(self, kind: str, repo: str, revision: str, path: str) -> _Answer:
        commit, file = self._file(kind, repo, revision, path)
        if not file.large:
            return self._content(commit, file)
        headers = {
            "Location": f"{self._cdn}/cdn/{kind}/{repo}/{commit}/{quote(path)}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": file.etag,
            "X-Linked-Size": str(len(file.data)),
            "Accept-Ranges": "bytes",
        }
        return _Answer(302, headers=headers)

    @staticmethod
    def _content(commit: str, file: _File) -> _Answer:
        headers = {"X-Repo-Commit": commit, "ETag": file.etag, "Accept-Ranges": "bytes"}
        return _Answer(200, file.data, headers | {"Content-Type": "application/octet-stream"})

    def _info(self, repo: str, commit: str, files: dict[str, _File], blobs: bool) -> dict:
        siblings = [files[path].sibling() for path in sorted(files)]
        if not blobs:
            siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
        author = repo.split("/")[0]
        return {
            "id": repo,
            "author": author,
            "sha": commit,
            "private": repo in self._private,
            "gated": False,
            "siblings": siblings,
        }

    @staticmethod
    def _rows_of(files: dict[str, _File], paths: Sequence[str]) -> list[dict]:
        """The rows of these paths; one that is not there has none."""
        folders = _folders(files)
        rows = [files[path].row() for path in paths if path in files]
        return rows + [_folder_row(path) for path in paths if path in folders]

    @staticmethod
    def _tree(files: dict[str, _File], folder: str, recursive: bool) -> list[dict]:
        folder = folder.rstrip("/")
        folders = _folders(files)
        if folder and folder not in folders:
            raise _NotThereError("EntryNotFound", f"{folder} does not exist")
        start = f"{folder}/" if folder else ""
        rows = [_folder_row(path) for path in sorted(folders)]
        rows += [files[path].row() for path in sorted(files)]
        return [
            row
            for row in rows
            if row["path"].startswith(start)
            and (recursive or "/" not in row["path"].removeprefix(start))
        ]


def _folders(files: Mapping[str, _File]) -> set[str]:
    return {str(folder) for path in files for folder in Path(path).parents} - {"."}


def _folder_row(path: str) -> dict:
    return {
        "type": "directory",
        "path": path,
        "size": 0,
        "oid": hashlib.sha1(path.encode()).hexdigest(),
    }


def _part(answer: _Answer, asked: str) -> _Answer:
    """The part of a whole answer that a Range header asks for."""
    size = len(answer.body)
    first, last = asked.removeprefix("bytes=").split("-")
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        wrong = _error(416, "Range not satisfiable")
        wrong.headers["Content-Range"] = f"bytes */{size}"
        return wrong
    headers = answer.headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return _Answer(206, answer.body[start:stop], headers)


def _flip(body: bytes) -> bytes:
    """Change one letter, behind the middle where there is one.

    It is the second of three letters in a row: a lone byte that looks like a letter may be a
    length or a number, and a reader would notice that.

    Raises:
        ValueError: no three lower-case letters stand in a row.
    """
    letters = re.compile(rb"[a-z]{3}")
    found = letters.search(body, len(body) // 2) or letters.search(body)
    if not found:
        raise ValueError("there is no word to flip a letter of")
    at = found.start() + 1
    return body[:at] + (b"b" if body[at : at + 1] == b"a" else b"a") + body[at + 1 :]


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LoopbackHub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request, client_address):
        """Say nothing of a client that left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format, *args):
        """Say nothing."""

    def do_GET(self):
        hub = self.server.hub
        if hub.closed:
            return self._drop()
        asked = self.headers["Range"]
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        answer = hub._answer(self.command, self.path, body, token)
        path = unquote(urlsplit(self.path).path)
        fault, stalls_end = hub._meet(self.command, path, asked, answer)
        name = fault.name if fault else ""
        if name == "refuse":
            return self._drop()
        if name in STATUSES:
            return self._send(fault.answer())
        if asked and answer.status == 200 and name != "ignore_range":
            answer = _part(answer, asked)
        half = len(answer.body) // 2
        if name == "flipped":
            answer.body = _flip(answer.body)
        if name == "truncated":
            answer.body = answer.body[:half]
        if name not in ("reset", "stall", "wrong_length"):
            return self._send(answer)
        self._send(answer, half)
        if name == "wrong_length":
            self.close_connection = True
        elif name == "reset" or stalls_end.wait(fault.seconds):
            self._drop()
        else:
            self.wfile.write(answer.body[half:])

    do_HEAD = do_POST = do_PUT = do_GET

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
        """Close the connection with a reset in place of an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())
        self.close_connection = True


def triplet_files(
    rows: Sequence[Mapping[str, str | None]],
    num_shards: int = 3,
    rows_per_group: int = 50,
    config: str = "triplet-hard",
) -> dict[str, bytes]:
    """A dataset repository of (query, positive, negative) rows, in order over Parquet shards.

    The shards are uncompressed, without dictionaries, statistics or checksums, so that a letter
    changed on the way changes a row and nothing notices.
    """
    front = f"configs:\n- config_name: {config}\n  data_files:\n  - split: train\n"
    readme = f"---\n{front}    path: {config}/train-*\n---\n\n# Triplets\n"
    files = {"README.md": readme.encode()}
    schema = pa.schema([(name, pa.string()) for name in ("query", "positive", "negative")])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    ends = [len(rows) * shard // num_shards for shard in range(num_shards + 1)]
    for shard in range(num_shards):
        held = io.BytesIO()
        pq.write_table(
            table.slice(ends[shard], ends[shard + 1] - ends[shard]),
            held,
            row_group_size=rows_per_group,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )
        files[f"{config}/train-{shard:05}-of-{num_shards:05}.parquet"] = held.getvalue()
    return files


WORDS = """
a about above across after again against age air all almost alone along already also always among
an and animal another answer any are area around art as ask at away back bank be bear because
become been before began begin behind being believe best better between big bird black blood blue
board boat body book both bring brother brown build built business but buy by call came can cannot
car care carry case cause cell center century certain change child children church city class clear
close cold color come common company complete cost could country course cover cross cut dark day
dead deal death deep did die different dinner direct disease do doctor does dog done door down draw
drink drive during each early earth east eat effect egg eight end energy engine enough even ever
every example eye face fact fall family far farm fast father feel feet few field find fine fire
first fish five floor follow food foot for force form found four free friend from front full game
garden gave general get girl give glass go gold good government great green ground group grow had
half hand happen hard has have he head health hear heart heat heavy help her here high hill him his
history hold home horse hot hour house how human hundred i ice if important in inch increase is
island it its keep kind king know land language large last late law lead learn leave left length
less letter level life light like line list little live long look lose love low machine made main
make man many mark market may me mean measure meat medicine metal mile milk mind money month moon
more most mother mountain move much music must my name nation near need never new next night no
north nose not note now number of off office oil old on once one only open or order other our out
over page paper part party pass past pay people per person place plane plant play point poor power
president price problem produce public put question quick rain reach read red rest rice rich right
river road rock room round rule run said salt same sand say school science sea second see seed sell
set seven several shape she ship short should show side since sing six size skin sleep slow small
snow so soil some song soon sound south space speak stand star start state stay steel step still
stone stop story street strong such sugar summer sun sure system table take tea teach tell ten than
that the their them then there these they thing think this those thought thousand three through
time to today together told too took top town trade train travel tree true try turn two type under
unit until up us use value very voice wait walk wall want war warm was watch water wave way we
weather week weight well went were west what wheel when where which while white who whole why wide
will wind window winter wire with woman wood word work world would write year yes yet you young
your
"""


@functools.cache
def tiny_bge(seed: int = 0, hidden: int = 768) -> dict[str, bytes]:
    """A model repository laid out as BAAI/bge-base-en-v1.5, with one layer of random weights.

    Weights and tokenizer are saved by the library. The files that sentence-transformers reads
    are as an older version wrote them and as that repository still has them. Do not change the
    dictionary: a second call returns the same one.
    """
    # Imported here, since a test that needs no model should not wait for it.
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"##{piece}" for piece in [*letters, "ed", "er", "es", "ing", "ly"])]
    vocabulary = list(dict.fromkeys([*special, *string.punctuation, *pieces, *WORDS.split()]))
    files = {
        "README.md": "---\nlibrary_name: sentence-transformers\n---\n\n# Random weights\n",
        "vocab.txt": "\n".join(vocabulary) + "\n",
        "special_tokens_map.json": dict(
            zip(
                ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
                special,
                strict=True,
            )
        ),
        "modules.json": [
            {
                "idx": place,
                "name": str(place),
                "path": path,
                "type": f"sentence_transformers.{kind}",
            }
            for place, (path, kind) in enumerate(
                [
                    ("", "models.Transformer"),
                    ("1_Pooling", "models.Pooling"),
                    ("2_Normalize", "models.Normalize"),
                ]
            )
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "__version__": {
                "sentence_transformers": "2.2.2",
                "transformers": "4.28.1",
                "pytorch": "1.13.0+cu117",
            }
        },
    }
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=64,
    )
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
        ids = {piece: place for place, piece in enumerate(vocabulary)}
        BertTokenizerFast(vocab=ids, do_lower_case=True, model_max_length=512).save_pretrained(
            folder
        )
        for path, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2)
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
