"""Make a second collection: do models lose in another field what they gain where they train?

Queries are the titles of examples in botocore (``To delete an alias``), passages what its
documentation says of each operation. Nothing is trained on it.
"""

import gzip
import html
import importlib.metadata
import json
import re
from collections.abc import Iterator

import pandas as pd

from helpers.collection import RetrievalData
from helpers.config import Experiment
from helpers.rows import normalise

PACKAGE, VERSION = "botocore", "1.44.5"
FILE = re.compile(r"botocore/data/(?P<service>[^/]+)/(?P<api>[\d-]+)/(?P<kind>[\w-]+)\.json(\.gz)?")


def _models() -> Iterator[tuple[str, dict, dict]]:
    """Each service that has examples: its name, its operations and its examples."""
    services: dict[str, dict[str, dict[str, object]]] = {}
    for file in importlib.metadata.files(PACKAGE) or []:
        if match := FILE.fullmatch(file.as_posix()):
            versions = services.setdefault(match["service"], {})
            versions.setdefault(match["api"], {})[match["kind"]] = file
    for service, versions in sorted(services.items()):
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
    distributions = importlib.metadata.distributions(name=PACKAGE)
    installed = next((distribution.version for distribution in distributions), None)
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
