"""The exercises' checks: right answers pass, and each mistake gets the hint that names it.

The wrong answers are written as a reader would write them, not with the code of the checks.
"""

import runpy
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from notebooks.exercises import check
from notebooks.exercises.checks import ARGUMENTS, EXERCISES, FAULTS, RIGHT

FOLDER = Path(__file__).parents[1] / "notebooks" / "exercises" / "solutions"
SOLUTIONS = {}
for path in sorted(FOLDER.glob("*.py")):
    SOLUTIONS |= runpy.run_path(str(path))


def solution(name):
    return [SOLUTIONS[name], SOLUTIONS["restore"]] if name == "compress" else [SOLUTIONS[name]]


@pytest.fixture
def said(capsys):
    """What a check prints, without the exercise's name; it's always one line."""

    def run(name, *functions):
        check(name, *functions)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{name}: ")
        return line.removeprefix(f"{name}: ")

    return run


# --- Ways to be wrong, and other ways to be right ---


def unit(rows):
    return normalize(rows, dim=-1)


def size_of(embeddings):
    return np.square(embeddings.numpy()).mean(axis=0)


def no_spaces(text):
    return " ".join(text.lower().split())


def full_form(text):
    return no_spaces(unicodedata.normalize("NFKC", text))


def leaks(form, train, test, pick=lambda query, same: [query] if same else []):
    same = [[t for t in train if form(t) == form(query)] for query in test]
    return [one for pair in zip(test, same, strict=True) for one in pick(*pair)]


def below(share, scores, positive):
    limits = share * scores[range(len(scores)), positive]
    return torch.where(scores < limits[:, None], scores, -1).argmax(dim=1)


def ranks(ranking, relevant, k):
    return [ranking.index(one) + 1 for one in ranking[:k] if one in relevant]


def first(*case):
    return min(ranks(*case), default=0)


def mean(*case):
    return sum(1 / rank for rank in ranks(*case)) / max(1, len(ranks(*case)))


def directions(passages):
    return np.linalg.svd(passages.numpy(), full_matrices=False)[2].T


def share(q, p, dim, cut=unit):
    similarity = cut(q[:, :dim]) @ cut(p[:, :dim]).T
    return (similarity.argmax(dim=1) == torch.arange(len(q))).float().mean()


def sliced(rows, batch_size):
    return [list(range(len(rows)))[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def bootstrap(before, after, ends=(2.5, 97.5), paired=True, seed=1):
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(1000):
        one = rng.integers(len(before), size=len(before))
        other = one if paired else rng.integers(len(before), size=len(before))
        means.append(after[one].mean() - before[other].mean())
    return np.percentile(means, ends)


def same_row_only(experiment):
    rows = experiment["train"]
    found = SOLUTIONS["audit"](experiment) - {"right negatives"}
    same = any(full_form(positive) == full_form(negative) for _, positive, negative in rows)
    return found | set(["right negatives"] if same else [])


def best(k, rows, query):
    return np.argsort(-(rows @ query).numpy())[:k]


def two_stages(query, passages, dim, shortlist, k, cut=unit, places=False):
    near = best(shortlist, cut(passages[:, :dim]), query[:dim])
    top = best(k, passages[near], query)
    return top if places else near[top]


def int4(limit, clip=True):
    def compress(vectors):
        level = np.round((vectors.numpy() + limit) / (2 * limit) * 15).astype(int)
        level = np.clip(level, 0, 15) if clip else level % 16
        return (level[:, ::2] << 4 | level[:, 1::2]).astype(np.uint8)

    def restore(codes):
        level = np.stack([codes >> 4, codes & 15], axis=2).reshape(len(codes), -1)
        return level / 15 * 2 * limit - limit

    return compress, restore


def int8(vectors):
    return ((vectors + 1) * 127).round().to(torch.uint8)


def signs():
    def restore(codes):
        return np.unpackbits(codes, axis=1) * 2.0 - 1

    return lambda vectors: np.packbits(vectors.numpy() > 0, axis=1), restore


WRONG = [  # exercise, part of the hint, functions
    ("cut", "normalise them after cutting", lambda e, dim: e[:, :dim]),
    ("cut", "you normalise before cutting", lambda e, dim: unit(e)[:, :dim]),
    ("cut", "last dimensions", lambda e, dim: unit(e[:, e.shape[1] - dim :])),
    ("cut", "by one length", lambda e, dim: e[:, :dim] / torch.linalg.norm(e[:, :dim])),
    ("cut", "you normalise the columns", lambda e, dim: normalize(e[:, :dim], dim=0)),
    ("cut", "you cut the rows", lambda e, dim: unit(e[:dim])),
    ("choose_dims", "expected 12 dimensions, got 11", lambda e, dim: range(dim - 1)),
    ("choose_dims", "order reversed", lambda e, dim: np.argsort(size_of(e))[:dim]),
    ("choose_dims", "largest values over all texts", lambda e, dim: e[0].square().topk(dim)[1]),
    ("leaks", "exact texts", partial(leaks, str)),
    ("leaks", "but not double spaces", partial(leaks, str.lower)),
    ("leaks", "Unicode forms", partial(leaks, no_spaces)),
    ("leaks", "as test spells", partial(leaks, full_form, pick=lambda _, same: same[:1])),
    ("leaks", "a 'not' too many", partial(leaks, full_form, pick=lambda q, s: [q] * (not s))),
    ("pick_negatives", "you pick the positive", lambda scores, positive: positive),
    ("pick_negatives", "keep a distance", partial(below, 1.0)),
    ("pick_negatives", "too easy", lambda scores, positive: scores.argmin(dim=1)),
    ("pick_negatives", "too easy", partial(below, 0.5)),
    ("reciprocal_rank", "count from 1", lambda *case: first(*case) and 1 / (first(*case) - 1)),
    ("reciprocal_rank", "beyond the first k", lambda *case: 1 / (first(*case[:2], 8) or np.inf)),
    ("reciprocal_rank", "score the last", lambda *case: 1 / max(ranks(*case), default=np.inf)),
    ("reciprocal_rank", "this is a mean", mean),
    ("reciprocal_rank", "recall", lambda r, right, k: len({*r[:k]} & right) / len(right)),
    ("reciprocal_rank", "precision", lambda r, right, k: len({*r[:k]} & right) / k),
    ("reciprocal_rank", "this is the rank", lambda *case: first(*case)),
    ("rotate", "not orthogonal", lambda p: 2 * directions(p)),
    ("rotate", "come last", lambda p: torch.linalg.eigh(p.T @ p).eigenvectors),
    ("rotate", "directions must be columns", lambda p: directions(p).T),
    ("rotate", "vary most", lambda p: torch.linalg.svd(p[:12]).Vh.T),
    ("batch_accuracy", "to unit length", partial(share, cut=lambda rows: rows)),
    ("batch_accuracy", "full size", lambda q, p, dim: share(q, p, 16)),
    ("batch_accuracy", "hard negatives", lambda q, p, dim: share(q, p[: len(q)], dim)),
    ("batch_accuracy", "each positive chooses", lambda q, p, dim: share(p[: len(q)], q, dim)),
    ("batch_accuracy", "a count", lambda q, p, dim: share(q, p, dim) * len(q)),
    ("batch_accuracy", "that's wrong", lambda q, p, dim: 1 - share(q, p, dim)),
    ("make_batches", "are in no batch", lambda rows, size: sliced(rows, size)[1:]),
    ("make_batches", "in the batches twice", lambda rows, size: [*sliced(rows, size), [0]]),
    ("make_batches", "its own negative", sliced),
    ("make_batches", "a batch has 9 rows", lambda rows, size: sliced(rows, size + 1)),
    ("interval", "draw both", partial(bootstrap, paired=False)),
    ("interval", "this holds 90%", partial(bootstrap, ends=(5, 95))),
    ("interval", "spread of queries", lambda b, a: np.percentile(a - b, [2.5, 97.5])),
    ("interval", "sign", lambda b, a: bootstrap(a, b)),
    ("interval", "higher end comes first", lambda b, a: bootstrap(b, a)[::-1]),
    ("audit", "it misses 'leaky split'", lambda experiment: set()),
    ("audit", "'leaky split' is a false alarm", lambda experiment: set(FAULTS)),
    ("audit", "it misses 'right negatives'", same_row_only),
    ("two_stages", "prefixes to unit length", partial(two_stages, cut=lambda rows: rows)),
    ("two_stages", "places in the shortlist", partial(two_stages, places=True)),
    ("two_stages", "order by prefix", lambda q, p, d, _, k: best(k, unit(p[:, :d]), q[:d])),
    ("two_stages", "all passages", lambda q, p, dim, shortlist, k: best(k, p, q)),
    ("two_stages", "k long", lambda q, p, dim, shortlist, k: two_stages(q, p, dim, k, k)),
    ("compress", "64 bytes, expected at most 32", int8, lambda codes: codes),
    ("compress", "large values change their sign", *int4(0.25, clip=False)),
    ("compress", "it finds 4", *signs()),
    ("compress", "which range", *int4(0.15)),
    ("compress", "write check('compress', compress, restore)", int4(0.6)[0]),
]

RIGHT_IN_OTHER_WAYS = [
    ("cut", lambda e, dim: unit(e[:, :dim]).numpy()),
    ("cut", lambda e, dim: list(unit(e.double()[:, :dim]).requires_grad_())),
    ("choose_dims", lambda e, dim: tuple(e.var(dim=0).topk(dim).indices)),
    ("leaks", lambda train, test: (q for q in leaks(full_form, train, test))),
    ("pick_negatives", lambda s, positive: below(0.9, s, positive)[:, None].tolist()),
    ("reciprocal_rank", lambda *c: torch.tensor([max([0, *(1 / r for r in ranks(*c))])])),
    ("rotate", lambda p: torch.linalg.svd(p - p.mean(dim=0)).Vh.T.tolist()),
    ("make_batches", lambda rows, size: map(np.array, SOLUTIONS["make_batches"](rows, size))),
    *(("interval", partial(bootstrap, seed=seed)) for seed in range(5)),
    ("audit", lambda experiment: sorted(SOLUTIONS["audit"](experiment))),
    ("compress", *int4(1.0)),
]


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_are_right(name, said):
    assert said(name, *solution(name)).startswith("right, on ")


@pytest.mark.parametrize("case", RIGHT_IN_OTHER_WAYS, ids=lambda case: case[0])
def test_right_answers_in_another_style_pass(case, said):
    assert said(*case).startswith("right, on ")


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}, {case[1]}")
def test_a_wrong_answer_gets_its_hint(case, said):
    name, hint, *functions = case
    found = said(name, *functions)
    assert found.startswith("not yet: ")
    assert hint in found


@pytest.mark.parametrize("name", [n for n, j in EXERCISES.items() if isinstance(j, partial)])
def test_every_listed_hint_is_reached(name, said):
    listed = set(next(EXERCISES[name].args[0]())) - {ARGUMENTS, RIGHT}
    found = {said(name, *case[2:]).removeprefix("not yet: ") for case in WRONG if case[0] == name}
    assert listed <= found


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_not_filled_in_and_an_answer_that_raises_is_reported_with_its_case(name, said):
    def stub(*arguments): ...

    def broken(*arguments):
        raise KeyError("lost\nand more")

    def late(*arguments):
        yield 0
        raise KeyError("lost")

    number = len(solution(name))
    assert said(name, *[stub] * number) == "not filled in yet"
    for function in (broken, late):
        found = said(name, *[function] * number)
        assert found.startswith(f"not yet: {name}(")
        assert "raises KeyError: 'lost" in found


@pytest.mark.parametrize("name", EXERCISES)
def test_a_strange_answer_is_wrong_and_raises_nothing(name, said):
    codes = torch.zeros(4000, 2, dtype=torch.uint8)
    strange = ["text", 7, [], {"a": 1}, object(), [[1, 2], [3]], [None], [["text"]], True, print]
    strange += [float("nan"), 1e300, torch.zeros(0), torch.zeros(3, 4, 5), np.array(["x"]), codes]
    for value in strange:
        functions = [lambda *arguments, value=value: value] * len(solution(name))
        assert said(name, *functions).startswith("not yet: "), value


def test_the_solution_never_picks_the_positive_even_if_it_scores_below_zero():
    pick = SOLUTIONS["pick_negatives"]
    assert pick(torch.tensor([[-0.1, -0.2, -0.3]]), torch.tensor([0])).tolist() == [1]
