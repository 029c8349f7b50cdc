"""The second collection: questions and reference pages of another field."""

import pytest

from helpers.config import PRESETS
from helpers.rows import normalise
from tools import transfer
from tools.transfer import operations_collection

EXPERIMENT = PRESETS["wikipedia"]


def test_the_collection_is_made_of_different_texts_with_the_right_answers():
    collection = operations_collection(EXPERIMENT)
    queries, qrels, _ = collection.split("test")
    assert len(queries) == 1000 and len(collection.passages) == 8841  # as results/README.md says
    assert all(qrels)
    assert max(map(len, qrels)) > 1, "operations may share a title"
    for texts in (queries, collection.passages["text"]):
        assert len({normalise(text) for text in texts}) == len(texts)
    assert collection.passages["text"].str.split().str.len().min() >= EXPERIMENT.min_passage_words
    wanted = qrels[queries.index("To remove a tag from an IAM role")]
    text = collection.passages["text"][min(wanted)]
    assert text.startswith("Removes the specified tags from the role")
    assert "<" not in text


@pytest.mark.parametrize(("package", "version"), [("botocore", "0.1"), ("not-there", "1")])
def test_another_version_or_none_is_refused_with_what_to_do(monkeypatch, package, version):
    monkeypatch.setattr(transfer, "PACKAGE", package)
    monkeypatch.setattr(transfer, "VERSION", version)
    with pytest.raises(ValueError, match=f"pip install {package}=={version}"):
        operations_collection(EXPERIMENT)
