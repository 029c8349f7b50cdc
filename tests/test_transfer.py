"""The second collection: questions and reference pages of another field."""

import importlib.metadata

import pytest

from helpers import transfer
from helpers.config import PRESETS
from helpers.transfer import operations_collection, plain_text
from helpers.triplets import normalise

EXPERIMENT = PRESETS["wikipedia"]


@pytest.fixture(scope="module")
def collection():
    return operations_collection(EXPERIMENT)


def test_markup_becomes_one_line_of_text():
    assert plain_text("<p>Deletes  the <code>key</code>.</p>\n<b>A &amp; B</b>") == (
        "Deletes the key . A & B"
    )


def test_every_query_has_an_answer_and_no_passage_stands_twice(collection):
    queries, qrels = collection.split("test")
    assert all(qrels)
    assert len(queries) >= 500
    for texts in (queries, collection.passages["text"]):
        assert len({normalise(text) for text in texts}) == len(texts)
    assert collection.passages["text"].str.split().str.len().min() >= EXPERIMENT.min_passage_words


def test_an_answer_is_the_page_of_the_operation(collection):
    queries, qrels = collection.split("test")
    wanted = qrels[queries.index("To remove a tag from an IAM role")]
    text = collection.passages["text"][min(wanted)]
    assert text.startswith("Removes the specified tags from the role")


def test_a_title_that_several_operations_share_has_them_all(collection):
    _, qrels = collection.split("test")
    assert max(map(len, qrels)) > 1


@pytest.mark.parametrize("version", ["0.1", None])
def test_another_version_or_none_is_refused_with_what_to_do(monkeypatch, version):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(transfer.importlib.metadata, "version", found)
    with pytest.raises(ValueError, match=r"pip install botocore==") as error:
        operations_collection(EXPERIMENT)
    assert (version or "not installed") in str(error.value)
