"""The exercises' checks: solutions pass, and each wrong answer gets the hint that belongs to it.

The wrong answers are written as a reader would write them, not with the checks' own code.
"""

import importlib.util
import random
import unicodedata
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from helpers.artifacts import NOTEBOOKS
from helpers.config import ROOT
from helpers.exercises import EXERCISES, FAULTS, RIGHT, check, verdict
from helpers.significance import paired_difference

UNFILLED = "not filled in yet (or is a return missing?)"
EXACT = [name for name, exercise in EXERCISES.items() if exercise.answers]


def solutions(notebook):
    path = ROOT / "notebooks" / "solutions" / f"{notebook}.py"
    spec = importlib.util.spec_from_file_location(f"solutions_{notebook}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def solution(name):
    found = solutions(EXERCISES[name].notebook)
    return [found[name], found["restore"]] if name == "compress" else [found[name]]


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_pass(name):
    exercise = EXERCISES[name]
    assert verdict(name, *solution(name)) == (True, f"right, on {len(exercise.cases())} cases")


def test_two_exercises_a_notebook_one_exact_and_one_open():
    assert Counter(exercise.notebook for exercise in EXERCISES.values()) == dict.fromkeys(
        NOTEBOOKS, 2
    )
    assert {EXERCISES[name].notebook for name in EXACT} == set(NOTEBOOKS)
    for exercise in EXERCISES.values():
        assert (exercise.answers is None) != (exercise.judge is None)


@pytest.mark.parametrize("name", EXACT)
def test_cases_tell_mistakes_from_the_right_answer_and_from_one_another(name):
    exercise = EXERCISES[name]
    outcomes = exercise.outcomes()
    assert RIGHT in outcomes
    for one, other in combinations(outcomes, 2):
        assert not exercise.agree(outcomes[one], outcomes[other]), (one, other)
        assert not exercise.agree(outcomes[other], outcomes[one]), (other, one)
    assert all(hint.endswith(("?", ".")) for hint in outcomes if hint != RIGHT)


# 1. Setup


def unit(rows):
    return normalize(rows, dim=-1)


def shares(embeddings):
    return np.square(embeddings.numpy()).mean(axis=0)


def mostly_the_best(embeddings, dim):
    """Most of the best, but not all."""
    order = shares(embeddings).argsort()[::-1]
    return [*order[: dim - dim // 4], *order[len(order) // 2 :][: dim // 4]]


def nearly_the_best(embeddings, dim):
    order = shares(embeddings).argsort()[::-1]
    return [*order[: dim - 1], order[dim]]


def first_in_the_last_case(embeddings, dim):
    return range(dim) if dim == 10 else nearly_the_best(embeddings, dim)


# 2. Data


def squeezed(text):
    return " ".join(text.lower().split())


def whole_form(text):
    return squeezed(unicodedata.normalize("NFKC", text))


def in_trains_spelling(train, test):
    return [
        next(t for t in train if whole_form(t) == whole_form(q))
        for q in test
        if whole_form(q) in map(whole_form, train)
    ]


def not_seen(train, test):
    return [query for query in test if whole_form(query) not in map(whole_form, train)]


def top_but_the_positive(scores, positive):
    scores[range(len(scores)), positive] = -1
    return scores.argmax(dim=1)


def below(margin):
    def pick(scores, positive):
        chosen = []
        for row, own in zip(scores.numpy(), positive.tolist(), strict=True):
            allowed = [n for n in range(len(row)) if n != own and row[n] < row[own] * (1 - margin)]
            chosen.append(max(allowed, key=lambda n: row[n]))
        return chosen

    return pick


def drawn(scores, positive):
    rng = np.random.default_rng(0)
    limits = 0.9 * scores.gather(1, positive[:, None])
    return [rng.choice(np.flatnonzero(low)) for low in (scores < limits).numpy()]


def below_one_score_for_all(scores, positive):
    scores[range(len(scores)), positive] = -1
    return torch.where(scores < 0.7, scores, -1).argmax(dim=1)


# 3. Baseline


def ranks(ranking, relevant, k):
    return [ranking.index(one) + 1 for one in ranking[:k] if one in relevant]


def from_zero(ranking, relevant, k):
    for place, passage in enumerate(ranking[:k]):
        if passage in relevant:
            return 1 / place
    return 0


def from_zero_in_numpy(ranking, relevant, k):
    hits = np.flatnonzero(np.isin(ranking[:k], list(relevant)))
    with np.errstate(divide="ignore"):
        return np.float64(1) / hits[0] if len(hits) else 0.0


def beyond_k(ranking, relevant, k):
    return next((1 / rank for rank, one in enumerate(ranking, 1) if one in relevant), 0)


def last(ranking, relevant, k):
    found = 0.0
    for rank, passage in enumerate(ranking[:k], start=1):
        if passage in relevant:
            found = 1 / rank
    return found


def mean(ranking, relevant, k):
    found = ranks(ranking, relevant, k)
    return sum(1 / rank for rank in found) / len(found) if found else 0.0


def principal(passages):
    return np.linalg.svd(passages.numpy(), full_matrices=False)[2].T


def whitening(passages):
    _, sizes, directions = torch.linalg.svd(passages, full_matrices=False)
    return directions.T / sizes


def turned_at_random(passages):
    return np.linalg.qr(np.random.default_rng(5).normal(size=(passages.shape[1],) * 2))[0]


def half_seen(passages):
    """From a few texts, so it knows few directions."""
    return torch.linalg.svd(passages[:12], full_matrices=True).Vh.T


# 4. Training


def won(q, p, dim, cut=unit):
    """One query after the other."""
    hits = 0
    for number, query in enumerate(q):
        scores = [float(cut(query[:dim]) @ cut(passage[:dim])) for passage in p]
        hits += scores.index(max(scores)) == number
    return hits / len(q)


def unit_before_cutting(q, p, dim):
    return won(unit(q), unit(p), dim, cut=lambda row: row)


def positives_choose(q, p, dim):
    scores = unit(q[:, :dim]) @ unit(p[: len(q), :dim]).T
    return (scores.argmax(dim=0) == torch.arange(len(q))).float().mean()


def cut_in_place(q, p, dim):
    for rows in (q, p):
        rows[:, :dim] /= rows[:, :dim].norm(dim=1, keepdim=True)
    return unit_before_cutting(q + 0, p + 0, dim)


def sliced(rows, batch_size):
    return [list(range(len(rows)))[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def skipping(rows, batch_size):
    """Fill a batch from those that are left, passing over what does not fit."""
    left, batches = list(range(len(rows))), []
    while left:
        batch, texts = [], set()
        for row in left:
            if len(batch) < batch_size and not texts & set(rows[row]):
                batch.append(row)
                texts |= set(rows[row])
        left = [row for row in left if row not in batch]
        batches.append(batch)
    return batches


def wasteful(rows, batch_size):
    """A batch more than needed, where there are several."""
    *batches, end = skipping(rows, batch_size)
    return (
        [*batches[1:], batches[0][:1], batches[0][1:], end] if len(batches) > 3 else [*batches, end]
    )


def queries_only(rows, batch_size):
    """Looks at the queries alone."""
    return skipping([(query, n) for n, (query, _) in enumerate(rows)], batch_size)


def dropping(rows, batch_size):
    """A row that does not fit is left out."""
    batches = []
    for batch in sliced(rows, batch_size):
        texts, kept = set(), []
        for row in batch:
            if not texts & set(rows[row]):
                kept.append(row)
                texts |= set(rows[row])
        batches.append(kept)
    return batches


def closing(rows, batch_size):
    """A row that does not fit ends the batch."""
    batches, texts = [[]], set()
    for number, row in enumerate(rows):
        if texts & set(row) or len(batches[-1]) == batch_size:
            batches.append([])
            texts = set()
        batches[-1].append(number)
        texts |= set(row)
    return batches


# 5. Evaluation


def bootstrap(before, after, ends=(2.5, 97.5), paired=True, resamples=1000):
    rng = np.random.default_rng(1)
    means = []
    for _ in range(resamples):
        one = rng.integers(len(before), size=len(before))
        other = one if paired else rng.integers(len(before), size=len(before))
        means.append(after[one].mean() - before[other].mean())
    return np.percentile(means, ends)


def normal_interval(before, after):
    gaps = np.subtract(after, before)
    half = 1.96 * gaps.std(ddof=1) / len(gaps) ** 0.5
    return [gaps.mean() - half, gaps.mean() + half]


def found_by(experiment, form=whole_form, rounding=1e-4, same_row=False, per_query=True):
    """A right audit, but for what is said otherwise."""
    found = set()
    if {form(text) for text in experiment["test"]} & {form(row[0]) for row in experiment["train"]}:
        found.add("leaky split")
    if max(Counter(map(form, experiment["passages"])).values()) > 1:
        found.add("duplicate passages")
    lengths = np.linalg.norm(experiment["embeddings"].numpy(), axis=1)
    if np.any(np.abs(lengths - 1) > rounding):
        found.add("unnormalised prefixes")
    right = {}
    for query, positive, _ in experiment["train"]:
        right.setdefault(form(query) if per_query else 0, set()).add(form(positive))
    for query, positive, negative in experiment["train"]:
        own = right.get(form(query), right.get(0))
        if form(negative) in (own if not same_row else {form(positive)}):
            found.add("right negatives")
    return found


# 6. Deployment


def two_stages(query, passages, dim, shortlist, k):
    short = {n: float(unit(row[:dim]) @ unit(query[:dim])) for n, row in enumerate(passages)}
    near = sorted(short, key=short.get, reverse=True)[:shortlist]
    return sorted(near, key=lambda n: -float(passages[n] @ query))[:k]


def raw_prefixes(query, passages, dim, shortlist, k):
    near = np.argsort(-(passages[:, :dim] @ query[:dim]).numpy())[:shortlist]
    return near[np.argsort(-(passages[near] @ query).numpy())[:k]]


def places(query, passages, dim, shortlist, k):
    near = (unit(passages[:, :dim]) @ query[:dim]).argsort(descending=True)[:shortlist]
    return (passages[near] @ query).argsort(descending=True)[:k]


def pack(levels):
    return levels[:, ::2] << 4 | levels[:, 1::2]


def unpack(codes):
    return np.stack([codes >> 4, codes & 15], axis=2).reshape(len(codes), -1)


def int4(limit, clip=True):
    """Sixteen levels from minus to plus ``limit``."""

    def compress(vectors):
        share = (vectors.numpy() + limit) / (2 * limit)
        share = np.clip(share, 0, 1) if clip else share
        return pack(np.round(share * 15).astype(np.int64).astype(np.uint8) % 16)

    return compress, lambda codes: unpack(codes) / 15 * 2 * limit - limit


def signs():
    def restore(codes):
        return np.unpackbits(codes, axis=1) * 2.0 - 1

    return lambda vectors: np.packbits(vectors.numpy() > 0, axis=1), restore


def learnt():
    """Levels that compress finds and restore remembers."""
    limit = {}

    def compress(vectors):
        limit["now"] = vectors.abs().max().item()
        return int4(limit["now"])[0](vectors)

    return compress, lambda codes: int4(limit["now"])[1](codes)


def remembered():
    """The vectors themselves, kept aside."""
    kept = {}

    def compress(vectors):
        kept["vectors"] = vectors
        return torch.zeros(len(vectors), 1, dtype=torch.uint8)

    return compress, lambda codes: kept["vectors"].repeat(9, 1)[: len(codes)]


def centred():
    """Restored to what depends on the other codes."""
    compress, restore = int4(0.6)
    return compress, lambda codes: restore(codes) - restore(codes).mean(axis=0)


def int8():
    def compress(vectors):
        return torch.round((vectors + 1) * 127).to(torch.uint8)

    return compress, lambda codes: codes / 127 - 1


def unsigned():
    """Numbers below zero wrap round, and nobody turns them back."""

    def compress(vectors):
        return (vectors[:, :32].numpy() * 127).astype(np.int64).astype(np.uint8)

    return compress, lambda codes: np.pad(codes / 127, ((0, 0), (0, 32)))


def no_sign(vectors):
    return (vectors[:, :32] * 127).to(torch.int8)


WRONG = [  # exercise, what is said, the reader's functions
    ("cut", "unit length after cutting?", lambda e, dim: e[:, :dim]),
    ("cut", "had unit length before cutting", lambda e, dim: unit(e)[:, :dim]),
    ("cut", "last numbers", lambda e, dim: unit(e[:, e.shape[1] - dim :])),
    ("cut", "divided by one length", lambda e, dim: e[:, :dim] / torch.linalg.norm(e[:, :dim])),
    ("cut", "columns have unit length", lambda e, dim: normalize(e[:, :dim], dim=0)),
    ("cut", "rows in place of columns", lambda e, dim: unit(e[:dim])),
    ("choose_dims", "12 dimensions were wanted, 11", lambda e, dim: range(dim - 1)),
    ("choose_dims", "48 is none of the dimensions", lambda e, dim: range(48, 48 + dim)),
    ("choose_dims", "-1 is none of", lambda e, dim: [-1, *range(dim - 1)]),
    ("choose_dims", "3 is named twice", lambda e, dim: [3, 3, *range(4, dim + 2)]),
    ("choose_dims", "these are the first 12", lambda e, dim: list(range(dim))),
    ("choose_dims", "turned round", lambda e, dim: np.argsort(shares(e))[:dim]),
    (
        "choose_dims",
        "better than at random",
        lambda e, dim: random.Random(3).sample(range(e.shape[1]), dim),
    ),
    ("choose_dims", "these are the first 10", first_in_the_last_case),
    ("choose_dims", "are off by", mostly_the_best),
    ("leaks", "as they stand", lambda train, test: [q for q in test if q in train]),
    (
        "leaks",
        "do spaces",
        lambda train, test: [q for q in test if q.lower() in [t.lower() for t in train]],
    ),
    (
        "leaks",
        "Unicode forms",
        lambda train, test: [q for q in test if squeezed(q) in map(squeezed, train)],
    ),
    ("leaks", "how train spells", in_trains_spelling),
    ("leaks", "has not seen", not_seen),
    ("pick_negatives", "it is the positive", lambda scores, positive: positive),
    ("pick_negatives", "it is the positive", lambda scores, positive: scores.argmax(dim=1)),
    ("pick_negatives", "keep a distance", top_but_the_positive),
    ("pick_negatives", "keep a distance", below(0.0)),
    ("pick_negatives", "keep a distance", below_one_score_for_all),
    ("pick_negatives", "too easy", lambda scores, positive: scores.argmin(dim=1)),
    ("pick_negatives", "too easy", drawn),
    ("pick_negatives", "too easy", below(0.5)),
    ("pick_negatives", "150 columns were wanted, 1 ", lambda scores, positive: [0]),
    ("pick_negatives", "a list of columns", lambda scores, positive: scores),
    ("reciprocal_rank", "count as 0", from_zero),
    ("reciprocal_rank", "count as 0", from_zero_in_numpy),
    ("reciprocal_rank", "beyond the first k", beyond_k),
    ("reciprocal_rank", "the last relevant", last),
    ("reciprocal_rank", "a mean", mean),
    ("reciprocal_rank", "recall", lambda r, relevant, k: len({*r[:k]} & relevant) / len(relevant)),
    ("reciprocal_rank", "precision", lambda r, relevant, k: len({*r[:k]} & relevant) / k),
    ("reciprocal_rank", "this is the rank", lambda *case: min(ranks(*case), default=0)),
    ("rotate", "shape (48, 48) was wanted", lambda p: principal(p)[:, :8]),
    ("rotate", "not orthogonal", whitening),
    ("rotate", "order turned round", lambda p: torch.linalg.eigh(p.T @ p).eigenvectors),
    ("rotate", "its transpose", lambda p: principal(p).T),
    ("rotate", "next to nothing", lambda p: torch.eye(p.shape[1])),
    ("rotate", "next to nothing", turned_at_random),
    ("rotate", "it gains", half_seen),
    ("batch_accuracy", "prefixes to unit length", unit_before_cutting),
    ("batch_accuracy", "full size", lambda q, p, dim: won(q, p, q.shape[1])),
    ("batch_accuracy", "hard negatives", lambda q, p, dim: won(q, p[: len(q)], dim)),
    ("batch_accuracy", "choose among queries", positives_choose),
    ("batch_accuracy", "what share", lambda q, p, dim: round(won(q, p, dim) * len(q))),
    ("batch_accuracy", "turned round", lambda q, p, dim: 1 - won(q, p, dim)),
    ("batch_accuracy", "changes passages and queries in place", cut_in_place),
    ("make_batches", "are in no batch", dropping),
    ("make_batches", "batches twice", lambda rows, size: [*sliced(rows, size), [0]]),
    ("make_batches", "is in one batch twice", sliced),
    ("make_batches", "is in one batch twice", queries_only),
    ("make_batches", "a batch has 9 rows", lambda rows, size: skipping(rows, size + 1)),
    ("make_batches", "about 5 would do", lambda rows, size: [[n] for n in range(len(rows))]),
    ("make_batches", "would do", closing),
    ("make_batches", "40 is none of the rows", lambda rows, size: [[len(rows)]]),
    ("make_batches", "list of rows was wanted", lambda rows, size: [[rows[0]]]),
    ("make_batches", "list of batches was wanted, int", lambda rows, size: len(rows)),
    ("interval", "drawn together", lambda b, a: bootstrap(b, a, paired=False)),
    ("interval", "that holds 90%", lambda b, a: bootstrap(b, a, (5, 95))),
    ("interval", "single queries", lambda b, a: np.percentile(a - b, [2.5, 97.5])),
    ("interval", "sign turned round", lambda b, a: bootstrap(a, b)),
    ("interval", "higher end comes first", lambda b, a: bootstrap(b, a)[::-1]),
    (
        "interval",
        "shape (2,) was expected, a tensor of shape (4,) came",
        lambda b, a: paired_difference(b, a),
    ),
    ("audit", "it missed 'leaky split'", lambda experiment: set()),
    ("audit", "it found 'leaky split' in one without", lambda experiment: set(FAULTS)),
    ("audit", "it missed 'leaky split'", lambda e: found_by(e, form=str)),
    ("audit", "it missed 'leaky split'", lambda e: found_by(e, form=squeezed)),
    ("audit", "it missed 'duplicate passages'", lambda e: found_by(e) - {"duplicate passages"}),
    ("audit", "it found 'unnormalised prefixes' in one without", lambda e: found_by(e, rounding=0)),
    ("audit", "it missed 'unnormalised prefixes'", lambda e: found_by(e, rounding=1)),
    ("audit", "it missed 'right negatives'", lambda e: found_by(e, same_row=True)),
    ("audit", "it found 'right negatives' in one without", lambda e: found_by(e, per_query=False)),
    ("audit", "it names ['leak']", lambda e: {"leak"}),
    ("two_stages", "prefixes to unit length", raw_prefixes),
    ("two_stages", "places within the shortlist", places),
    (
        "two_stages",
        "order of the prefixes",
        lambda q, p, dim, _, k: (unit(p[:, :dim]) @ q[:dim]).argsort(descending=True)[:k],
    ),
    ("two_stages", "at full size", lambda q, p, dim, shortlist, k: torch.argsort(-(p @ q))[:k]),
    ("two_stages", "and not as k", lambda q, p, dim, shortlist, k: two_stages(q, p, dim, k, k)),
    ("compress", "64 bytes, 32 are allowed", *int8()),
    ("compress", "codes as uint8 were wanted, int8 came", no_sign, lambda codes: codes),
    ("compress", "shape (4000, 64) was wanted", signs()[0], lambda codes: codes),
    ("compress", "wrap round", *int4(0.25, clip=False)),
    ("compress", "wrap round", *int4(0.5, clip=False)),
    ("compress", "wrap round", *unsigned()),
    ("compress", "too coarse: 4", *signs()),
    ("compress", "too coarse", *int4(0.15)),
    ("compress", "levels learnt", *learnt()),
    ("compress", "levels learnt", *remembered()),
    ("compress", "levels learnt", *centred()),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}, {case[1]}")
def test_a_wrong_answer_gets_its_hint(case):
    name, said, *functions = case
    right, hint = verdict(name, *functions)
    assert right is False
    assert hint.startswith("not yet: ")
    assert said in hint
    assert len(hint.splitlines()) <= 2


@pytest.mark.parametrize("name", EXACT)
def test_every_mistake_is_made_by_a_wrong_answer(name):
    hints = [f"not yet: {hint}" for hint in EXERCISES[name].outcomes() if hint != RIGHT]
    said = [verdict(name, *case[2:])[1] for case in WRONG if case[0] == name]
    assert set(hints) <= set(said)


RIGHT_IN_OTHER_WAYS = [
    ("cut", lambda e, dim: (unit(e[:, :dim])).numpy()),
    ("cut", lambda e, dim: unit(e.double()[:, :dim]).tolist()),
    ("cut", lambda e, dim: list(unit(e[:, :dim]).requires_grad_())),
    ("choose_dims", lambda e, dim: shares(e).argsort()[-dim:].copy()),
    ("choose_dims", lambda e, dim: e.var(dim=0).topk(dim).indices.float()),
    ("choose_dims", lambda e, dim: tuple(e.abs().mean(dim=0).topk(dim).indices)),
    ("choose_dims", nearly_the_best),
    ("leaks", lambda train, test: (q for q in test if whole_form(q) in map(whole_form, train))),
    ("leaks", lambda train, test: np.array(solution("leaks")[0](train, test))),
    ("pick_negatives", below(0.05)),
    ("pick_negatives", below(0.15)),
    ("pick_negatives", lambda s, positive: np.array(below(0.1)(s, positive), dtype=np.int32)),
    ("reciprocal_rank", lambda *case: max([1 / rank for rank in ranks(*case)], default=0)),
    ("reciprocal_rank", lambda *case: torch.tensor(solution("reciprocal_rank")[0](*case))),
    ("rotate", principal),
    ("rotate", lambda p: torch.linalg.eigh(p.T @ p).eigenvectors.flip(1).tolist()),
    ("rotate", lambda p: torch.linalg.svd(p - p.mean(dim=0), full_matrices=False).Vh.T),
    ("batch_accuracy", won),
    ("batch_accuracy", lambda *case: np.float32(won(*case))),
    ("make_batches", skipping),
    ("make_batches", wasteful),
    ("make_batches", lambda rows, size: ([*map(np.int64, b)] for b in skipping(rows, size))),
    ("make_batches", lambda rows, size: [np.array(b) for b in skipping(rows, size)] + [[]]),
    ("interval", bootstrap),
    ("interval", normal_interval),
    ("interval", lambda b, a: paired_difference(b, a)[1:3]),
    ("audit", found_by),
    ("audit", lambda e: sorted(found_by(e, rounding=0.01))),
    ("two_stages", two_stages),
    ("compress", *int4(0.5)),
    ("compress", *int4(0.7)),
    ("compress", *int4(1.0)),
]


@pytest.mark.parametrize("case", RIGHT_IN_OTHER_WAYS, ids=lambda case: case[0])
def test_right_answers_in_other_styles_pass(case):
    right, said = verdict(*case)
    assert right, said


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), resamples=st.sampled_from([1000, 3000]))
def test_noise_of_resampling_is_neither_wrong_nor_taken_for_90_percent(seed, resamples):
    def drawn(ends):
        def answer(before, after):
            rng = np.random.default_rng([seed, len(before)])
            gaps = (after - before)[rng.integers(len(before), size=(resamples, len(before)))]
            return np.percentile(gaps.mean(axis=1), ends)

        return answer

    assert verdict("interval", drawn([2.5, 97.5]))[0]
    assert "90%" in verdict("interval", drawn([5, 95]))[1]


def nothing(*arguments): ...


@pytest.mark.parametrize("name", EXERCISES)
def test_not_filled_in(name, capsys):
    functions = [nothing] * len(EXERCISES[name].takes)
    assert verdict(name, *functions) == (None, UNFILLED)
    check(name, *functions)
    assert capsys.readouterr().out == f"{name}: {UNFILLED}\n"


def test_one_of_two_functions_is_not_filled_in():
    assert verdict("compress", solution("compress")[0], nothing) == (None, UNFILLED)
    assert verdict("compress", nothing) == (False, "not yet: it wants 2 functions, 1 came")


def test_a_return_that_is_missing_in_one_case():
    def reciprocal_rank(ranking, relevant, k):
        for rank, passage in enumerate(ranking[:k], start=1):
            if passage in relevant:
                return 1 / rank

    _, said = verdict("reciprocal_rank", reciprocal_rank)
    assert said.startswith("not yet: it returned None on ranking [4, 1, 7")
    assert "relevant {6}, k 5: is a return missing?" in said


def broken(*arguments):
    raise ValueError("no such thing\nand more lines")


@pytest.mark.parametrize("name", EXERCISES)
def test_what_an_answer_raises_is_printed(name, capsys):
    check(name, *[broken] * len(EXERCISES[name].takes))
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: not yet: it raised ValueError: no such thing on ")
    assert len(out.splitlines()) == 1


def test_a_case_is_described():
    where = "embeddings of shape (5, 12), dim 4"
    assert verdict("cut", broken)[1].endswith(where)
    assert "batch_size 8" in verdict("make_batches", broken)[1]
    assert "rows with 40 entries" in verdict("make_batches", broken)[1]
    _, said = verdict("cut", lambda e, dim: torch.zeros(len(e), dim))
    assert said.startswith(f"not yet: on {where}, [") and "[0, 0, 0, 0, ...] came" in said
    _, said = verdict("reciprocal_rank", lambda *case: 0.25)
    assert said.endswith("k 6, 0.3333 was expected, 0.25 came")


STRANGE = [
    "text",
    7,
    [],
    {},
    {"a": 1},
    object(),
    [[1, 2], [3]],
    [[["text"]]],
    [None],
    float("nan"),
    1e300,
    torch.zeros(0),
    torch.zeros(3, 4, 5),
    np.array(["text"]),
    torch.tensor(3),
    print,
    True,
    torch.zeros(4000, 2, dtype=torch.uint8),
]


def test_the_solution_never_takes_the_positive_even_below_zero():
    pick = solutions("02_data")["pick_negatives"]
    assert pick(torch.tensor([[-0.1, -0.2, -0.3]]), torch.tensor([0])).tolist() == [1]


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: type(value).__name__)
def test_strange_answers_are_wrong_and_raise_nothing(name, strange):
    functions = [lambda *arguments: strange] * len(EXERCISES[name].takes)
    right, said = verdict(name, *functions)
    assert right is False
    assert said.startswith("not yet: ")


@pytest.mark.parametrize("name", EXERCISES)
def test_a_generator_that_raises_is_reported(name):
    def answer(*arguments):
        yield 0
        raise KeyError("lost")

    said = verdict(name, *[answer] * len(EXERCISES[name].takes))[1]
    assert said.startswith("not yet: it raised KeyError")


def test_another_shape_is_named():
    _, said = verdict("cut", lambda e, dim: e[:, : dim + 1])
    assert "a tensor of shape (5, 4) was expected, a tensor of shape (5, 5) came" in said
    _, said = verdict("batch_accuracy", lambda *case: [1.0, 2.0])
    assert "a single number was expected, a tensor of shape (2,) came" in said
    _, said = verdict("cut", lambda e, dim: "no numbers")
    assert said == "not yet: a tensor of shape (5, 4) was wanted, str came"
    _, said = verdict("leaks", lambda train, test: set(test))
    assert said == "not yet: a list of texts was wanted, set came"


def test_nan_has_a_hint_of_its_own():
    assert "it gives NaN: " in verdict("cut", lambda e, dim: e[:, :dim] * float("nan"))[1]
    assert "it gives infinity: " in verdict("rotate", lambda p: p.T @ p / 0)[1]
    found = verdict("compress", solution("compress")[0], lambda codes: np.full((4000, 64), np.nan))
    assert "it gives NaN: " in found[1]


def test_a_change_in_place_spoils_nothing_and_is_mentioned():
    def cut(embeddings, dim):
        embeddings /= embeddings[:, :dim].norm(dim=1, keepdim=True)
        return embeddings[:, :dim]

    right, said = verdict("cut", cut)
    assert right
    assert said.startswith("right, on 3 cases\nIt changes embeddings in place")
    assert verdict("cut", *solution("cut")) == (True, "right, on 3 cases")

    def make_batches(rows, batch_size):
        batches = skipping(rows, batch_size)
        rows.clear()
        return batches

    right, said = verdict("make_batches", make_batches)
    assert right
    assert "It changes rows in place" in said

    def audit_in_double(experiment):
        experiment["embeddings"] = experiment["embeddings"].double()
        return found_by(experiment)

    right, said = verdict("audit", audit_in_double)
    assert right
    assert "It changes experiment in place" in said

    def audit(experiment):
        found = found_by(experiment)
        experiment["embeddings"] *= 1 + 1e-6
        return found

    assert "It changes experiment in place" in verdict("audit", audit)[1]


@pytest.mark.parametrize("name", EXERCISES)
def test_no_random_state_of_the_reader_is_touched(name):
    states = [torch.get_rng_state(), np.random.get_state()[1], random.getstate()]  # noqa: NPY002
    first = verdict(name, *solution(name))
    verdict(name, *[nothing] * len(EXERCISES[name].takes))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    torch.manual_seed(1)
    assert verdict(name, *solution(name)) == first


def test_an_exercise_that_is_not_there():
    with pytest.raises(ValueError, match="exercise is 'cutt': there are cut, choose_dims, leaks"):
        check("cutt", nothing)
