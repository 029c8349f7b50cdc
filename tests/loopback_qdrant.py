"""A small Qdrant server on 127.0.0.1: the client's local mode behind as much of REST as is used."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qdrant_client import QdrantClient, models
from qdrant_client.http.models import PointsList

VERSION = "1.20.1"
PATH = re.compile(r"/collections(?:/([^/?]+)(/[^?]*)?)?(?:\?.*)?")


class LoopbackQdrant:
    """A server that answers from memory.

    Attributes:
        url: The value for ``QDRANT_URL``.
        created: The body of each request that made a collection, by the collection's name.
        indexed: The fields with a payload index, in order.
        requests: The method and path of each request, in order.
        key: The value for ``QDRANT_API_KEY``; None where it wants none.
        statuses: What the next requests say of a collection's state, before it is "green".
    """

    def __init__(self):
        self.key: str | None = None
        self.created: dict[str, dict] = {}
        self.indexed: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.statuses: list[str] = []
        self._engine = QdrantClient(":memory:")
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Refuse new connections."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, key: str | None, body: bytes) -> tuple[int, object]:
        """The status, and the result or what is wrong."""
        with self._lock:
            self.requests.append((method, path))
            if path == "/":  # the one that asks for no key, as in Qdrant's src/actix/mod.rs
                return 200, {"title": "qdrant - vector search engine", "version": VERSION}
            if self.key is not None and key != self.key:
                return 401, "Invalid API key or JWT"
            found = PATH.fullmatch(path)
            if not found:
                return 404, f"nothing is at {path}"
            try:
                return 200, self._result(method, found[1], found[2] or "", body)
            except ValueError as error:  # pydantic's own are among them
                return 404 if "not found" in str(error) else 400, str(error)

    def _result(self, method: str, name: str | None, what: str, body: bytes):
        engine = self._engine
        match method, what:
            case "GET", "" if name is None:
                return engine.get_collections()
            case "GET", "/exists":
                return {"exists": engine.collection_exists(name)}
            case "PUT", "":
                wanted = models.CreateCollection.model_validate_json(body)
                self.created[name] = json.loads(body)
                return engine.create_collection(name, vectors_config=wanted.vectors)
            case "GET", "":
                info = engine.get_collection(name)
                status = self.statuses.pop(0) if self.statuses else "green"
                return info.model_copy(update={"status": models.CollectionStatus(status)})
            case "DELETE", "":
                return engine.delete_collection(name)
            case "PUT", "/index":
                self.indexed.append(models.CreateFieldIndex.model_validate_json(body).field_name)
                return models.UpdateResult(operation_id=0, status="completed")
            case "PUT", "/points":
                return engine.upsert(name, PointsList.model_validate_json(body).points)
            case "POST", "/points/count":
                return engine.count(name)
            case "POST", "/points/query":
                return self._query(name, models.QueryRequest.model_validate_json(body))
            case "POST", "/points/query/batch":
                batch = models.QueryRequestBatch.model_validate_json(body)
                return [self._query(name, request) for request in batch.searches]
        raise ValueError(f"{method} {what} is not there: not found")

    def _query(self, name: str, request: models.QueryRequest) -> models.QueryResponse:
        return self._engine.query_batch_points(name, [request])[0]


def _plain(result):
    """A result as json can write it."""
    if isinstance(result, list):
        return [_plain(part) for part in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


def _handler(server: LoopbackQdrant) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, result = server.answer(
                self.command, self.path, self.headers.get("api-key"), body
            )
            reply = {"result": _plain(result), "status": "ok", "time": 0.0}
            if status != 200:
                reply = {"status": {"error": result}, "time": 0.0}
            if self.path == "/":
                reply = result
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *args):
            pass

    return Handler
