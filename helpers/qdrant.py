"""The funnel as a service: one Qdrant query picks a shortlist and reranks it.

A collection has two vectors a passage: "small", a prefix, and "full", the whole embedding. Which
server holds it, or none, makes no difference to what is called here.
"""

import os
import time
import warnings

import pandas as pd
import torch
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.models import (
    CollectionStatus,
    FieldCondition,
    Filter,
    MatchValue,
    Prefetch,
    QueryRequest,
)

from helpers.metrics import as_matrix, prefix

LOCAL_MODE = "local mode: exact, in Python, in this process; for trying out"
SECONDS = 30  # that one answer may take
PATIENCE = 300.0  # seconds for a server to index what it was given
AT_ONCE = 100  # queries, or passages, in one request


def connect() -> tuple[QdrantClient, str]:
    """A client, and a sentence that says what it talks to.

    ``QDRANT_URL`` names a server or any node of a cluster, and ``QDRANT_API_KEY`` its key; the
    port is 6333 unless the address has another. Without ``QDRANT_URL`` it is the client's local
    mode, which keeps nothing when the process ends.

    Raises:
        ConnectionError: no Qdrant server answers there.
        PermissionError: it does not accept the key, or wants one.
    """
    url = os.environ.get("QDRANT_URL")
    if not url:
        # It compares every vector with the query, and LOCAL_MODE says so.
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant")
        return QdrantClient(":memory:"), LOCAL_MODE
    key = os.environ.get("QDRANT_API_KEY") or None
    client = QdrantClient(url=url, api_key=key, timeout=SECONDS, check_compatibility=False)
    try:
        version = client.info().version
        client.get_collections()  # wants the key, which the version does not
    except (ResponseHandlingException, UnexpectedResponse) as error:
        if getattr(error, "status_code", None) in (401, 403):
            state = "does not accept QDRANT_API_KEY" if key else "wants a key: set QDRANT_API_KEY"
            raise PermissionError(f"the Qdrant server at {url} {state}") from error
        reason = str(getattr(error, "source", error)).splitlines()[0]
        raise ConnectionError(
            f"no Qdrant server answers at {url}: {reason}\n"
            "Start it, or correct QDRANT_URL (the port is 6333 unless it names one), or unset it "
            "to use the client's local mode."
        ) from error
    return client, f"Qdrant server {version} at {url}"


def upload(
    client: QdrantClient,
    collection: str,
    embeddings: torch.Tensor,
    payload: pd.DataFrame,
    dim: int,
    patience: float = PATIENCE,
) -> None:
    """Put passages into a collection; a passage's id is its row number.

    Returns when the collection is indexed.

    Args:
        client: From :func:`connect`.
        collection: Its name; it has the vectors "small" and "full".
        embeddings: ``(num_passages, full_dim)``; brought to unit length here.
        payload: A row a passage, such as title and topic; missing values are left out.
        dim: Numbers of "small": a prefix, brought to unit length again.
        patience: Seconds that indexing may take.

    Raises:
        ValueError: other numbers of rows, NaN or infinity, a prefix without direction.
        RuntimeError: the server failed to index.
        TimeoutError: it was still at it after ``patience`` seconds.
    """
    full = as_matrix(embeddings, "embeddings").float()
    if len(payload) != len(full):
        raise ValueError(f"payload has {len(payload)} rows, embeddings have {len(full)}")
    rows = payload.to_dict("records")
    client.upload_collection(
        collection,
        vectors={"small": prefix(full, dim).numpy(), "full": prefix(full, full.shape[1]).numpy()},
        payload=[{name: v for name, v in row.items() if pd.notna(v)} for row in rows],
        ids=range(len(full)),
        batch_size=AT_ONCE,
        wait=True,
    )
    begin = time.monotonic()
    while (info := client.get_collection(collection)).status != CollectionStatus.GREEN:
        if info.status == CollectionStatus.RED:
            raise RuntimeError(f"{collection} could not be indexed: {info.optimizer_status}")
        if time.monotonic() - begin > patience:
            raise TimeoutError(
                f"{collection} is still being indexed after {patience:g} s: its answers are "
                "right, but slow; wait for the status green"
            )
        time.sleep(0.2)


def funnel(
    client: QdrantClient,
    collection: str,
    queries: torch.Tensor,
    k: int,
    shortlist: int,
    dim: int,
    topic: str | None = None,
) -> torch.Tensor:
    """The funnel in one query a text: a shortlist by "small", reranked by "full".

    Args:
        client: From :func:`connect`.
        collection: Its name, filled by :func:`upload`.
        queries: ``(num_queries, full_dim)``.
        k: Passages to return, best first.
        shortlist: Passages that the first stage hands to the second, at least ``k``.
        dim: Numbers of "small".
        topic: Look only at passages of this topic; the shortlist holds no others.

    Returns:
        ``(num_queries, k)`` row numbers; -1 where fewer passages have the topic.

    Raises:
        ValueError: NaN or infinity, or ``k`` not between 1 and ``shortlist``.
    """
    if not 1 <= k <= shortlist:
        raise ValueError(f"k is {k}: it must lie between 1 and the shortlist, {shortlist}")
    only = None
    if topic is not None:
        only = Filter(must=[FieldCondition(key="topic", match=MatchValue(value=topic))])
    found = torch.full((len(queries), k), -1)
    requests = [
        QueryRequest(
            prefetch=Prefetch(query=query[:dim], using="small", limit=shortlist, filter=only),
            query=query,
            using="full",
            limit=k,
        )
        for query in as_matrix(queries, "queries").tolist()
    ]
    for start in range(0, len(requests), AT_ONCE):
        answers = client.query_batch_points(collection, requests[start : start + AT_ONCE])
        for row, answer in enumerate(answers, start):
            ids = [point.id for point in answer.points]
            found[row, : len(ids)] = torch.tensor(ids)
    return found
