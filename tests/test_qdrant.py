"""The funnel as a service: the client's local mode, and the same over HTTP."""

import socket
import warnings

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from helpers import qdrant
from helpers.metrics import prefix
from helpers.qdrant import LOCAL_MODE, connect, funnel, upload
from helpers.search import Funnel, search
from tests.loopback_qdrant import VERSION, LoopbackQdrant

DIM, FULL = 8, 32


def unit(rows, seed=0):
    return prefix(torch.randn(rows, FULL, generator=torch.Generator().manual_seed(seed)), FULL)


def topics(rows):
    return pd.DataFrame({"topic": [("Arts", "Biology", None)[row % 3] for row in range(rows)]})


def create(client, **options):
    """A collection that compares by inner product, so that lengths other than 1 would show."""
    if client.collection_exists("p"):
        client.delete_collection("p")
    quantization = models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type="int8", quantile=0.99, always_ram=True)
    )
    sizes = {
        "small": models.VectorParams(size=DIM, distance="Dot", quantization_config=quantization),
        "full": models.VectorParams(size=FULL, distance="Dot", on_disk=True),
    }
    client.create_collection("p", vectors_config=sizes, **options)
    client.create_payload_index("p", "topic", "keyword")


def expected(queries, corpus, k, shortlist):
    """The funnel by hand, in double precision."""
    queries, corpus = queries.double(), corpus.double()
    picked = search(prefix(queries, DIM), prefix(corpus, DIM), shortlist)
    scores = torch.einsum("qd,qsd->qs", queries, corpus[picked])
    return picked.gather(1, scores.topk(k, dim=1).indices)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def server(monkeypatch):
    server = LoopbackQdrant()
    monkeypatch.setenv("QDRANT_URL", server.url)
    yield server
    server.close()


def test_without_an_address_it_is_the_local_mode_and_says_so(monkeypatch):
    monkeypatch.setattr("qdrant_client.common.client_warnings.SEEN_MESSAGES", set())
    client, engine = connect()
    assert engine == LOCAL_MODE
    assert engine.startswith("local mode")
    create(client)  # with an index, which local mode would warn of
    assert client.collection_exists("p")


def test_with_an_address_it_says_the_servers_version(server):
    assert connect()[1] == f"Qdrant server {VERSION} at {server.url}"


def test_a_server_of_another_version_is_named_and_not_warned_of(server, monkeypatch):
    monkeypatch.setattr("tests.loopback_qdrant.VERSION", "1.2.3")
    assert connect()[1].startswith("Qdrant server 1.2.3 at")


def test_a_server_that_is_not_there(monkeypatch):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("QDRANT_URL", url)
        with pytest.raises(ConnectionError, match=rf"(?s)no .* answers at {url}: .*or unset it"):
            connect()


def test_what_is_no_qdrant_server(hub, monkeypatch):
    monkeypatch.setenv("QDRANT_URL", hub.url)
    with pytest.raises(ConnectionError, match=f"no Qdrant server answers at {hub.url}: .*404"):
        connect()


@pytest.mark.parametrize(
    ("key", "said"),
    [("", "wants a key: set QDRANT_API_KEY"), ("wrong", "does not accept QDRANT_API_KEY")],
)
def test_a_key_that_is_missing_or_wrong(server, monkeypatch, key, said):
    server.key = "right"
    monkeypatch.setenv("QDRANT_API_KEY", key)
    warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
    with pytest.raises(PermissionError, match=f"{server.url} {said}"):
        connect()
    monkeypatch.setenv("QDRANT_API_KEY", "right")
    assert connect()[1].startswith("Qdrant server")


def test_the_server_and_local_mode_give_the_same_answers(server, monkeypatch):
    monkeypatch.setattr(qdrant, "AT_ONCE", 7)
    remote, local = connect()[0], QdrantClient(":memory:")
    queries, corpus = unit(20), unit(60, 1)
    warnings.filterwarnings("ignore", "Payload indexes have no effect")
    for topic in (None, "Biology"):
        answers = []
        for client in (remote, local):
            create(client)
            upload(client, "p", corpus, topics(60), DIM)
            assert client.count("p").count == 60
            answers.append(funnel(client, "p", queries, 5, 15, DIM, topic))
        assert answers[0].equal(answers[1])
    assert answers[0].shape == (20, 5) and (answers[0] % 3 == 1).all()
    assert server.requests.count(("POST", "/collections/p/points/query/batch")) == 2 * 3


def test_one_query_alone_gives_what_the_same_query_gives_among_many(server):
    client, _ = connect()
    create(client)
    queries = unit(3)
    upload(client, "p", unit(30, 1), topics(30), DIM)
    query = queries[2].tolist()
    answer = client.query_points(
        "p",
        prefetch=models.Prefetch(query=query[:DIM], using="small", limit=9),
        query=query,
        using="full",
        limit=4,
    )
    found = [point.id for point in answer.points]
    assert found == funnel(client, "p", queries, 4, 9, DIM)[2].tolist()
    assert answer.points[0].payload == topics(30).iloc[found[0]].dropna().to_dict()


def test_what_a_collection_is_made_of_reaches_the_server(server):
    create(connect()[0], shard_number=3, replication_factor=2)
    made = server.created["p"]
    assert (made["shard_number"], made["replication_factor"]) == (3, 2)
    assert made["vectors"]["small"]["quantization_config"]["scalar"]["quantile"] == 0.99
    assert made["vectors"]["full"]["on_disk"] is True
    assert server.indexed == ["topic"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), rows=st.integers(8, 40), data=st.data())
def test_the_funnel_is_the_one_by_hand_and_that_of_faiss(seed, k, rows, data):
    shortlist = data.draw(st.integers(k, rows))
    client, _ = connect()
    create(client)
    queries, corpus = unit(3, seed), unit(rows, seed + 1)
    upload(client, "p", corpus, topics(rows), DIM)
    found = funnel(client, "p", queries, k, shortlist, DIM)
    assert found.equal(expected(queries, corpus, k, shortlist))
    assert found.equal(Funnel(corpus, DIM, "float32").search(queries, k, shortlist)[1])
    exact = funnel(client, "p", queries, k, rows, DIM)
    assert exact.equal(search(queries.double(), corpus.double(), k))


def test_a_filter_fills_the_shortlist_with_its_topic():
    client, _ = connect()
    create(client)
    queries, corpus = unit(5), unit(60, 1)
    upload(client, "p", corpus, topics(60), DIM)
    arts = torch.arange(0, 60, 3)
    found = funnel(client, "p", queries, 4, 6, DIM, topic="Arts")
    assert found.equal(arts[expected(queries, corpus[arts], 4, 6)])


def test_fewer_passages_than_asked_for_are_filled_up():
    client, _ = connect()
    create(client)
    upload(client, "p", unit(7), topics(7), DIM)
    found = funnel(client, "p", unit(2, 1), 4, 5, DIM, topic="Biology")
    assert found.sort(dim=1).values.tolist() == [[-1, -1, 1, 4]] * 2
    assert (funnel(client, "p", unit(2, 1), 4, 5, DIM, topic="none such") == -1).all()


def test_prefixes_are_brought_to_unit_length():
    client, _ = connect()
    create(client)
    upload(client, "p", unit(5), topics(5), DIM)
    (point,) = client.retrieve("p", [3], with_vectors=True)
    assert torch.tensor(point.vector["small"]).norm().item() == pytest.approx(1)
    assert torch.tensor(point.vector["full"]).allclose(unit(5)[3])
    assert point.payload == {"topic": "Arts"}


def test_missing_values_are_left_out_of_the_payload(server):
    client, _ = connect()
    create(client)
    upload(client, "p", unit(3), topics(3).assign(number=[1.5, float("nan"), 2]), DIM)
    for topic, answers in (("Arts", 1), ("nan", 0)):
        found = funnel(client, "p", unit(1), 1, 3, DIM, topic)
        assert (found >= 0).sum() == answers


@pytest.mark.parametrize("states", [["yellow", "yellow"], ["grey"]])
def test_upload_waits_until_it_is_indexed(server, states):
    client, _ = connect()
    create(client)
    server.statuses = states
    upload(client, "p", unit(5), topics(5), DIM)
    assert server.statuses == []


def test_upload_does_not_wait_for_ever(server):
    client, _ = connect()
    create(client)
    server.statuses = ["yellow"] * 100
    with pytest.raises(TimeoutError, match=r"p is still being indexed after 0\.3 s"):
        upload(client, "p", unit(5), topics(5), DIM, patience=0.3)
    server.statuses = ["red"]
    with pytest.raises(RuntimeError, match="p could not be indexed: ok"):
        upload(client, "p", unit(5), topics(5), DIM)


def nan():
    broken = unit(5)
    broken[3, 1] = float("nan")
    return broken


def flat():
    broken = unit(5)
    broken[2, :DIM] = 0
    return broken


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (
            lambda c: upload(c, "p", unit(5), topics(4), DIM),
            "payload has 4 rows, emb",
        ),
        (lambda c: upload(c, "p", nan(), topics(5), DIM), "embeddings: row 3 holds NaN"),
        (lambda c: upload(c, "p", flat(), topics(5), DIM), "row 2: the first 8 numbers are all"),
        (lambda c: upload(c, "p", unit(5), topics(5), 4), "expected dim: 8, got 4"),
        (lambda c: upload(c, "q", unit(5), topics(5), DIM), "Collection q not found"),
        (lambda c: funnel(c, "p", nan(), 1, 2, DIM), "queries: row 3 holds NaN"),
        (lambda c: funnel(c, "p", unit(1), 3, 2, DIM), "k is 3: it must lie between 1 and the sh"),
        (lambda c: funnel(c, "p", unit(1), 0, 2, DIM), "k is 0"),
    ],
)
def test_bad_input_is_named(action, said):
    client, _ = connect()
    create(client)
    with pytest.raises(ValueError, match=said):
        action(client)
    assert client.count("p").count == 0
