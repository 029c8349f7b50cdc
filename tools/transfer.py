"""Make a second collection: do models lose in another field what they gain where they train?

Queries are the titles of examples in botocore (``To delete an alias``), passages what its
documentation says of each operation. Nothing is trained on it.

A run's models are scored on any other collection in BEIR's layout by
``python -m tools.transfer wikipedia FOLDER``.
"""

import argparse
import gzip
import html
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from helpers.collection import RetrievalData, load_data
from helpers.compare import bm25_ranking, pca_rotation
from helpers.config import Experiment
from helpers.files import beir_files, read_beir
from helpers.metrics import evaluate_ranking, evaluate_truncated
from helpers.models import encode_passages, encode_queries, load_model
from helpers.rows import normalise
from helpers.runs import Run, start_run
from tools import attempt

PACKAGE, VERSION = "botocore", "1.44.5"
FILE = re.compile(r"botocore/data/(?P<service>[^/]+)/(?P<api>[\d-]+)/(?P<kind>[\w-]+)\.json(\.gz)?")


def _models() -> Iterator[tuple[str, dict, dict]]:
    """Each service that has examples: its name, its operations and its examples."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    for file in importlib.metadata.files(PACKAGE) or []:
        if match := FILE.fullmatch(file.as_posix()):
            versions = found.setdefault(match["service"], {})
            versions.setdefault(match["api"], {})[match["kind"]] = file
    for service, versions in sorted(found.items()):
        files = versions[max(versions)]  # the newest version of the service's interface
        if "examples-1" in files and "service-2" in files:
            operations = _read(files["service-2"])["operations"]
            yield service, operations, _read(files["examples-1"]).get("examples", {})


def _read(file) -> dict:
    content = file.locate().read_bytes()
    return json.loads(gzip.decompress(content) if file.name.endswith(".gz") else content)


def plain_text(markup: str) -> str:
    """Return what HTML says, without its tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def operations_collection(experiment: Experiment) -> RetrievalData:
    """Make the second collection; every query is of the split ``test``.

    If several operations share a title, all of them are relevant to it. The experiment says how
    many words a query and a passage must have.

    Raises:
        ValueError: botocore isn't installed, or not in the version that made the results.
    """
    found = importlib.metadata.distributions(name=PACKAGE)
    installed = next((distribution.version for distribution in found), None)
    if installed != VERSION:
        raise ValueError(
            f"the second collection needs {PACKAGE} {VERSION}, got {installed}: "
            f"pip install {PACKAGE}=={VERSION}"
        )
    passages: dict[str, tuple[str, str]] = {}  # by normalised text: the text, and its service
    asked: dict[str, tuple[str, set[str]]] = {}  # by normalised title: the title, and answers
    for service, operations, examples in _models():
        for name, operation in operations.items():
            text = plain_text(operation.get("documentation", ""))
            if len(text.split()) < experiment.min_passage_words:
                continue
            key = normalise(text)
            passages.setdefault(key, (text, service))
            for example in examples.get(name, []):
                title = (example.get("title") or "").strip(" .:")
                if len(title.split()) >= experiment.min_query_words:
                    asked.setdefault(normalise(title), (title, set()))[1].add(key)
    place = {key: number for number, key in enumerate(passages)}
    qrels = [
        (query, place[key])
        for query, (_, answers) in enumerate(asked.values())
        for key in sorted(answers, key=place.get)
    ]
    return RetrievalData(
        passages=pd.DataFrame(
            [(text, None, service) for text, service in passages.values()],
            columns=["text", "title", "topic"],
        ),
        queries=pd.DataFrame(
            {"text": [title for title, _ in asked.values()], "split": "test", "negative": None}
        ),
        qrels=pd.DataFrame(qrels, columns=["query", "passage"]),
    )


def beir_collection(path: Path) -> RetrievalData:
    """Read a collection in BEIR's layout; every query is of the split ``test``.

    As in notebook 2, equal passages are one, and so are equal queries.

    Args:
        path: Its folder, or one of its files of qrels.

    Raises:
        ValueError: it's something else, or can't be read.
    """
    files = beir_files(path)
    if files is None:
        raise ValueError(f"{path}: expected a folder with corpus.jsonl, queries.jsonl and qrels/")
    passages: dict[str, tuple] = {}  # by normalised text: the number, the text and its title
    queries: dict[str, tuple[int, str]] = {}
    qrels: dict[tuple[int, int], None] = {}
    for row in read_beir(files):
        columns = row.columns or {}
        text, query = (columns.get(name) or "" for name in ("positive", "query"))
        if not text.strip():
            continue
        about = len(passages), text, columns["title"]
        passage = passages.setdefault(normalise(text), about)[0]
        if query.strip():
            number = queries.setdefault(normalise(query), (len(queries), query))[0]
            qrels[number, passage] = None
    return RetrievalData(
        passages=pd.DataFrame(
            [(text, title, None) for _, text, title in passages.values()],
            columns=["text", "title", "topic"],
        ),
        queries=pd.DataFrame(
            {"text": [text for _, text in queries.values()], "split": "test", "negative": None}
        ),
        qrels=pd.DataFrame([*qrels], columns=["query", "passage"]),
    )


def score(run: Run, collection: RetrievalData) -> pd.DataFrame:
    """Score BM25 and a run's models on a collection: one row a model and prefix length."""
    k, dims = run.experiment.k, run.experiment.dims
    test, passages = collection.split("test"), collection.passages["text"].tolist()
    ranking = bm25_ranking(test.queries, passages, test.depth(k))
    tables = [evaluate_ranking(ranking, test, len(passages), k).assign(model="bm25")]
    for name in ("base", "mnrl", "tuned"):
        model = load_model(run, None if name == "base" else run.load(name))
        asked = encode_queries(model, test.queries, run)
        corpus = encode_passages(model, passages, run)
        tables.append(evaluate_truncated(asked, corpus, test, dims, k).assign(model=name))
        if name != "tuned":
            own = run.load(f"{name}.safetensors")["passages"]
            rotation = pca_rotation(own[load_data(run).train_passages()])
            twin = evaluate_truncated(asked @ rotation, corpus @ rotation, test, dims, k)
            tables.append(twin.assign(model=f"{name}_rotated"))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.transfer", description=__doc__)
    parser.add_argument("preset", help="of a run: a preset, or the path of a .toml file")
    parser.add_argument("collection", type=Path, help="a folder in BEIR's layout, or its qrels")
    given = parser.parse_args()

    def action() -> list[Path]:
        run = start_run(given.preset, typed=True)
        print(score(run, beir_collection(given.collection)).to_string(index=False))
        return []

    sys.exit(attempt(action))
