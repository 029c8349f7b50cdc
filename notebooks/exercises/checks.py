"""Check answers to the exercises: right, or a hint at the likely mistake.

For half of the exercises we list the right answer, and next to it what common mistakes give, each
under its hint. The others are open: a judge measures how good the answer is.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from textwrap import shorten

import numpy as np
import torch

from helpers.metrics import prefix
from helpers.rows import normalise

ARGUMENTS, RIGHT = "arguments", "right"  # keys of a case; the others are hints


class Wrong(Exception):
    """An answer is wrong; the message is the hint."""


class Unfilled(Exception):
    """The exercise has no answer yet."""


def check(name: str, *functions: Callable) -> None:
    """Print whether an answer is right, or a hint at what is wrong with it.

    An error in the answer is printed too, not raised, so that the notebook runs on. The answer
    is one function; that of "compress" is two, ``compress`` and ``restore``.
    """
    if name not in EXERCISES:
        raise ValueError(f"expected an exercise ({', '.join(EXERCISES)}), got {name!r}")
    names = ["compress", "restore"] if name == "compress" else [name]
    try:
        called = len(functions) == len(names) and all(map(callable, functions))
        _need(called, f"write check({name!r}, {', '.join(names)})")
        cases = list(EXERCISES[name](*map(Answer, names, functions)))
        print(f"{name}: right, on {len(cases)} cases")
    except Unfilled:
        print(f"{name}: not filled in yet")
    except Wrong as hint:
        print(f"{name}: not yet: {hint}")


class Answer:
    """A reader's function; an error in it becomes a hint."""

    def __init__(self, name: str, function: Callable):
        self.name, self.function, self.num_calls = name, function, 0

    def __call__(self, *arguments):
        self.num_calls += 1
        try:  # on a copy, since an answer may change its arguments
            answer = self.function(*copy.deepcopy(arguments))
            answer = list(answer) if isinstance(answer, Iterator) else answer
        except Exception as error:
            said = f"{type(error).__name__}: {shorten(str(error), 150)}"
            raise Wrong(f"{self.call(arguments)} raises {said}") from error
        if answer is None and self.num_calls == 1:
            raise Unfilled
        _need(answer is not None, f"{self.call(arguments)} returns None: is a return missing?")
        return answer

    def call(self, arguments: tuple) -> str:
        return f"{self.name}({', '.join(map(_short, arguments))})"


def _need(good: bool, hint: str) -> None:
    if not good:
        raise Wrong(hint)


def _short(value) -> str:
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return shorten(repr(value), 40, placeholder=" ...")


def _numbers(answer, *shape: int) -> torch.Tensor:
    """Read an answer as float64, whatever kind of array or list it is, without axes of length 1."""
    try:
        if isinstance(answer, list | tuple):  # perhaps of tensors
            answer = [part.tolist() if hasattr(part, "tolist") else part for part in answer]
        if not isinstance(answer, torch.Tensor):
            answer = torch.from_numpy(np.array(answer, dtype=np.float64))
        values = answer.detach().cpu().double().squeeze()
    except Exception:
        raise Wrong(f"expected numbers, got {_short(answer)}") from None
    _need(bool(values.isfinite().all()), "it gives NaN or infinity: do you divide by zero?")
    right = not shape or values.shape == shape
    _need(right, f"expected shape {shape}, got {tuple(values.shape)}")
    return values


def _texts(answer) -> list[str]:
    _need(isinstance(answer, list | tuple), f"expected a list of texts, got {_short(answer)}")
    return list(map(str, answer))


def _places(answer, kind: str, end: int, count: int | None = None) -> list[int]:
    """Read an answer as a list of whole numbers from 0 to ``end - 1``."""
    places = _numbers(answer).reshape(-1).tolist()
    _need(count in (None, len(places)), f"expected {count} {kind}, got {len(places)}")
    for place in places:
        _need(place in range(end), f"{place:g} is none of the {kind}, which go from 0 to {end - 1}")
    return list(map(int, places))


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, 1e-4, 1e-5)
    return type(one) is type(other) and one == other


def _same(found: list, expected: list) -> bool:
    return all(map(_equal, found, expected))


def _compare(cases: Callable, answer: Answer, agree: Callable = _same) -> Iterator:
    """Compare an answer with the right one, and if it's wrong with those of common mistakes."""
    cases, found, error = list(cases()), [], None
    read = _texts if isinstance(cases[0][RIGHT], list) else _numbers
    for case in cases:
        try:
            found.append(read(answer(*case[ARGUMENTS])))
        except Wrong as wrong:  # some mistakes raise in some cases
            found.append(None)
            error = error or wrong
    for hint in [hint for hint in cases[0] if hint != ARGUMENTS]:
        if agree(found, [None if case[hint] is None else read(case[hint]) for case in cases]):
            _need(hint == RIGHT, hint)
            yield from cases
            return
    if error:
        raise error
    for case, given in zip(cases, found, strict=True):
        right = read(case[RIGHT])
        if not agree([given], [right]):
            call = answer.call(case[ARGUMENTS])
            raise Wrong(f"{call}: expected {_values(right)}, got {_values(given)}")


def _values(value: torch.Tensor | list) -> str:
    if isinstance(value, list):
        return _short(value)
    shape = f" of shape {tuple(value.shape)}" if value.ndim else ""
    return _short(value.round(decimals=4).tolist()) + shape


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _error(rows: torch.Tensor, shorter: torch.Tensor) -> float:
    """Return how far cosine similarities of shorter rows are from the full ones on average."""
    full, short = (_unit(m.double()) @ _unit(m.double()).T for m in (rows, shorter))
    return (full - short).abs().mean().item()


def _cut() -> Iterator:
    for seed, size, dim in ((0, (5, 12), 4), (1, (3, 8), 8), (2, (10, 6), 2)):
        embeddings = (seed + 1) * _random(seed, *size)
        short = embeddings[:, :dim]
        yield {
            ARGUMENTS: (embeddings, dim),
            RIGHT: prefix(embeddings, dim),
            "the rows aren't of unit length: normalise them after cutting": short,
            "you normalise before cutting: do it after": _unit(embeddings)[:, :dim],
            "these are the last dimensions: keep the first": _unit(embeddings[:, -dim:]),
            "you divide all rows by one length: each row has its own": short / short.norm(),
            "you normalise the columns: normalise the rows": short / short.norm(dim=0),
            "you cut the rows: cut the columns": _unit(embeddings[:dim]),
        }


def _choose_dims(choose: Answer) -> Iterator:
    for seed, full_dim, dim in ((0, 48, 12), (1, 64, 16), (2, 96, 10)):
        rows = _unit(_random(seed + 10, 500, full_dim) * (0.8 * _random(seed, full_dim)).exp())
        embeddings, others = rows[:300], rows[300:]
        kept = _places(choose(embeddings, dim), "dimensions", full_dim, dim)
        dimension, times = Counter(kept).most_common(1)[0]
        _need(times == 1, f"dimension {dimension} is in the list twice")
        order = embeddings.square().mean(dim=0).argsort(descending=True).tolist()
        found, best = (_error(others, others[:, dims]) for dims in (kept, order[:dim]))
        if found > 1.1 * best:
            first, least = set(kept) == set(range(dim)), set(kept) & set(order[-dim:])
            _need(not first, f"these are the first {dim}: do other dimensions matter more?")
            _need(len(least) <= 0.7 * dim, "these matter least: is your order reversed?")
            reached = f"similarities are off by {found:.3f}, and {best:.3f} is possible"
            raise Wrong(f"{reached}: which dimensions have the largest values over all texts?")
        yield


def _leaks() -> Iterator:
    known = ["What is tea?", "the river  in winter", "Caf\u00e9 music", "gold", "H\u2082O"]
    queries = ["Gold", "snow on roofs", "The River in\u00a0Winter ", "what is tea?", "What is tea?"]
    accents = ["cafe\u0301 music", "bread", "h2o", "\uff47\uff4f\uff4c\uff44"]
    jazz = (["Jazz"], ["jazz", "Jazz"])
    for train, test in ((known, queries), (known, accents), (known, ["bees", "law"]), jazz):

        def seen(form: Callable, train=train, test=test) -> list[str]:
            return [query for query in test if form(query) in map(form, train)]

        right, spelling = seen(normalise), {normalise(query): query for query in train}
        no_spaces = seen(lambda text: " ".join(text.casefold().split()))
        unseen = [query for query in test if query not in right]
        as_train = [spelling[normalise(query)] for query in right]
        yield {
            ARGUMENTS: (train, test),
            RIGHT: right,
            "you compare exact texts: 'Tea' and 'tea' are the same query": seen(str),
            "you ignore case, but not double spaces and those at the ends": seen(str.casefold),
            "you ignore case and spaces, but not a letter's Unicode forms": no_spaces,
            "return the queries as test spells them, not train": as_train,
            "these are the queries that train doesn't have: is there a 'not' too many?": unseen,
        }


def _pick_negatives(pick: Answer) -> Iterator:
    for seed, lowest in ((0, 0.6), (1, 0.3)):
        rng, size = np.random.default_rng(seed), (150, 200)
        own = rng.uniform(lowest, 0.85, size=(150, 1))
        place = rng.permuted(np.tile(np.arange(200), (150, 1)), axis=1)
        # Six candidates are hard, and up to two more are right answers that nobody marked.
        hard, unmarked = place < 6, (place >= 6) & (place < 6 + rng.integers(0, 3, size=(150, 1)))
        share = np.where(hard, rng.uniform(0.8, 0.9, size), rng.uniform(-0.2, 0.6, size))
        share = np.where(unmarked, rng.uniform(0.97, 1.1, size), share)
        positive, rows = place.argmax(axis=1), range(150)
        share[rows, positive] = 1
        scores = torch.tensor(own * share).float()
        chosen = _places(pick(scores, torch.tensor(positive)), "columns", 200, 150)
        same = (np.array(chosen) == positive).sum()
        _need(not same, f"for {same} of 150 queries you pick the positive: leave it out")
        wrong = unmarked[rows, chosen].mean()
        unsafe = f"{wrong:.0%} of your picks are right answers that nobody marked"
        _need(wrong <= 0.03, f"{unsafe}: do you keep a distance to the positive's score?")
        share = scores / scores[rows, positive][:, None]
        found = share[rows, chosen].mean()
        best = share.masked_fill(share > 0.95, -1).amax(dim=1).mean()
        easy = f"too easy: {found:.0%} of the positives' scores, and {best:.0%} is possible"
        _need(found >= 0.85 * best, f"{easy}: do you take the highest candidate that's left?")
        yield


def _reciprocal_rank() -> Iterator:
    ranking = [4, 1, 7, 3, 0, 2, 6, 5]
    for relevant, k in (({7, 0}, 6), ({6}, 5), ({4, 3, 2}, 4), ({3, 9}, 4), ({9}, 8)):
        everywhere = [rank for rank, one in enumerate(ranking, start=1) if one in relevant]
        ranks = [rank for rank in everywhere if rank <= k]
        first, last = min(ranks, default=math.inf), max(ranks, default=math.inf)
        found = len(ranks)
        yield {
            ARGUMENTS: (ranking, relevant, k),
            RIGHT: 1 / first,
            "your first rank is 0: count from 1": 1 / (first - 1) if first > 1 else None,
            "you look beyond the first k": 1 / min(everywhere, default=math.inf),
            "you score the last relevant passage: score the first": 1 / last,
            "this is a mean: only the first relevant passage counts": (
                sum(1 / rank for rank in ranks) / max(1, found)
            ),
            "this is recall: only the first one's rank counts": found / len(relevant),
            "this is precision: only the first one's rank counts": found / k,
            "this is the rank: return one over it": first if ranks else 0,
        }


def _rotate(rotate: Answer) -> Iterator:
    for seed, dim in ((0, 48), (1, 72)):
        # The rows vary most in a few directions, none of which is along an axis.
        basis = torch.linalg.qr(_random(seed, dim, dim))[0]
        rows = _unit(_random(seed + 10, 900, dim) * torch.arange(1, dim + 1) ** -0.6 @ basis)
        passages, others = rows[:700], rows[700:].double()
        rotation = _numbers(rotate(passages), dim, dim)
        gap = (rotation.T @ rotation - torch.eye(dim)).abs().max()
        _need(gap <= 1e-3, f"not orthogonal (off by {gap:.2g}): does it scale the directions?")
        svd = torch.linalg.svd(passages.double(), full_matrices=False).Vh.T
        turns = (torch.eye(dim).double(), rotation, svd, rotation.flip(1), rotation.T)
        errors = [_error(others, (others @ turn)[:, : dim // 6]) for turn in turns]
        found, best, flipped, transposed = (errors[0] - error for error in errors[1:])
        target = 0.8 * best
        if found < target:
            _need(flipped < target, "the most important directions come last: reverse the order")
            _need(transposed < target, "the transpose does better: directions must be columns")
            gain = f"it gains {found:.3f} (target: {target:.3f})"
            raise Wrong(f"{gain}: in which directions do all passages together vary most?")
        yield


def _batch_accuracy() -> Iterator:
    def share(similarity: torch.Tensor) -> torch.Tensor:
        return (similarity.argmax(dim=1) == torch.arange(40)).double().mean()

    for seed, dim in ((0, 6), (2, 12)):
        queries = _random(seed, 40, 16)
        rows = torch.cat([queries + 0.9 * _random(seed + 1, 40, 16), _random(seed + 5, 160, 16)])
        # Hard negatives are near some query in the first dimensions, and of another length.
        rows[40:80, :8] = 0.7 * queries[:, :8] + 0.5 * rows[40:80, :8]
        queries, passages = _unit(queries), _unit(rows)
        raw = share(queries[:, :dim] @ passages[:, :dim].T)
        cosine = prefix(queries, dim) @ prefix(passages, dim).T
        easy, swapped = share(cosine[:, :40]), share(cosine[:, :40].T)
        yield {
            ARGUMENTS: (queries, passages, dim),
            RIGHT: share(cosine),
            "bring the passages' prefixes to unit length": raw,
            "this is full size: cut to dim dimensions": share(queries @ passages.T),
            "you leave out the hard negatives, the passages after the positives": easy,
            "each positive chooses among queries: let queries choose among passages": swapped,
            "this is a count: return a share of the queries": share(cosine) * 40,
            "this is the share that's wrong: return the share that's right": 1 - share(cosine),
        }


def _make_batches(make: Answer) -> Iterator:
    cases = []
    for seed, size, texts, batch_size in ((0, 40, 200, 8), (1, 90, 40, 16), (2, 7, 30, 10)):
        pairs = np.random.default_rng(seed).integers(texts, size=(size, 2)).tolist()
        cases.append(([(f"query {a}", f"passage {b}") for a, b in pairs], batch_size))
    often = [("query 0", f"passage {n}") if n % 5 == 4 else (f"query {n}", "p") for n in range(20)]
    for rows, batch_size in [*cases, (often, 4)]:
        answer = make(rows, batch_size)
        listed = isinstance(answer, list | tuple)
        _need(listed, f"expected a list of batches, got {_short(answer)}")
        batches = [batch for one in answer if (batch := _places(one, "rows", len(rows)))]
        count = Counter(row for batch in batches for row in batch)
        missing = [row for row in range(len(rows)) if not count[row]]
        _need(not missing, f"{len(missing)} of {len(rows)} rows are in no batch: {_short(missing)}")
        twice = [row for row in count if count[row] > 1]
        _need(not twice, f"some rows are in the batches twice: {_short(twice)}")
        largest = max(map(len, batches))
        _need(largest <= batch_size, f"a batch has {largest} rows, expected at most {batch_size}")
        for batch in batches:
            for text, times in Counter(text for row in batch for text in rows[row]).items():
                _need(times == 1, f"{text!r} is in one batch twice: it's its own negative there")
        most = max(Counter(text for row in rows for text in row).values())
        fewest = max(math.ceil(len(rows) / batch_size), most)
        many = f"you make {len(batches)} batches where {fewest} may do"
        few = len(batches) <= 1.5 * fewest
        _need(few, f"{many}: if a row doesn't fit into a batch, can later rows still go into it?")
        yield


def _interval() -> Iterator:
    for seed, num_queries, gain in ((0, 200, 0.05), (1, 300, -0.04), (2, 250, 0.1), (3, 400, 0.03)):
        rng = np.random.default_rng(seed)
        before = rng.uniform(0.1, 0.8, size=num_queries)
        after = before + rng.normal(gain, 0.1, size=num_queries)
        mean, spread = (after - before).mean(), (after - before).std()
        # A normal interval: that of a bootstrap comes close.
        error = np.array([-1.96, 1.96]) * spread / num_queries**0.5
        unpaired = error * math.hypot(before.std(), after.std()) / spread
        yield {
            ARGUMENTS: (before, after),
            RIGHT: mean + error,
            "too wide: draw both scores of a query together": mean + unpaired,
            "this holds 90%: leave out 2.5% at each end": mean + error * 1.645 / 1.96,
            "this is the spread of queries: we want their mean's": mean + error * num_queries**0.5,
            "the sign is wrong: it's after minus before": -mean + error,
            "the higher end comes first: return low, high": mean - error,
        }


def _near(found: list, expected: list) -> bool:
    """Whether intervals are equal up to a bootstrap's noise, which evens out over the cases."""
    if any(one is None or one.shape != (2,) for one in found):
        return False
    found, expected = torch.stack(found), torch.stack(expected)
    half = (expected[:, 1] - expected[:, 0]) / 2  # negative if the ends are swapped
    apart = (found - expected) / half[:, None]
    return apart.abs().max().item() < 0.3 and apart.diff(dim=1).mean().abs().item() < 0.16


FAULTS = {
    "leaky split": "is a test query also in train, perhaps in another spelling?",
    "duplicate passages": "is a passage there twice, perhaps in another spelling?",
    "unnormalised prefixes": "how long are the embeddings, apart from rounding?",
    "right negatives": "is a negative a positive of the same query, perhaps in another row?",
}


def _experiment(faults: set[str], seed: int) -> dict:
    def respell(text: str) -> str:
        return f" {text.upper()}".replace("A", "\uff21") if seed % 2 else text

    passages = [f"passage number {n} has this to say" for n in range(30)]
    train = [(f"what is {n // 2}", passages[n], passages[(n + 7) % 20]) for n in range(20)]
    test, qrels = [f"what the test asks {n}" for n in range(10)], [{20 + n} for n in range(10)]
    embeddings = _unit(_random(seed, 30, 24))
    if "leaky split" in faults:
        test[4] = respell(train[6][0])
    if "right negatives" in faults:
        train[8] = (*train[8][:2], respell(train[9 - seed % 2][1]))
    if "duplicate passages" in faults:
        passages[25] = respell(passages[3])
    if "unnormalised prefixes" in faults:
        embeddings = embeddings[:, :16]
    return dict(train=train, test=test, passages=passages, qrels=qrels, embeddings=embeddings)


def _audit(audit: Answer) -> Iterator:
    each = [{fault} for fault in FAULTS]
    planted = [set(), *each, set(FAULTS), *each, {"leaky split", "right negatives"}]
    for seed, faults in enumerate(planted):
        answer = audit(_experiment(faults, seed))
        named = isinstance(answer, set | frozenset | list | tuple)
        _need(named, f"expected a set of names, got {_short(answer)}")
        for one in answer:
            known = isinstance(one, str) and one in FAULTS
            _need(known, f"it names {_short(one)}; expected some of {', '.join(FAULTS)}")
        for fault, hint in FAULTS.items():
            _need(fault in answer or fault not in faults, f"it misses {fault!r}: {hint}")
            _need(fault in faults or fault not in answer, f"{fault!r} is a false alarm: {hint}")
        yield


def _two_stages() -> Iterator:
    for seed, num, full_dim, dim, shortlist, k in ((0, 60, 16, 4, 12, 5), (1, 100, 24, 6, 15, 10)):
        passages = _unit(_random(seed, num, full_dim))
        query = _unit(passages[seed] + 0.2 * _random(seed + 10, full_dim))
        full, short = passages @ query, prefix(passages, dim) @ query[:dim]
        near, first = short.topk(shortlist).indices, short.topk(k).indices
        raw = (passages[:, :dim] @ query[:dim]).topk(shortlist).indices
        places = full[near].topk(k).indices
        yield {
            ARGUMENTS: (query, passages, dim, shortlist, k),
            RIGHT: near[places],
            "bring the passages' prefixes to unit length": raw[full[raw].topk(k).indices],
            "these are places in the shortlist: return row numbers": places,
            "this is the order by prefix: rank the shortlist again at full size": first,
            "you compare all passages at full size: only rank the shortlist": full.topk(k).indices,
            "your shortlist is k long: make it longer": first[full[first].topk(k).indices],
        }


def _compress(compress: Answer, restore: Answer) -> Iterator:
    def pack(rows: torch.Tensor):
        codes = compress(rows)
        kind = str(getattr(codes, "dtype", type(codes).__name__)).removeprefix("torch.")
        _need(kind == "uint8", f"expected codes of type uint8, got {kind}")
        fits = codes.ndim == 2 and len(codes) == len(rows)
        _need(fits, f"expected codes of shape ({len(rows)}, at most 32), got {_short(codes)}")
        size = f"a code has {codes.shape[1]} bytes, expected at most 32"
        _need(codes.shape[1] <= 32, f"{size}: can two values share a byte?")
        return codes

    for seed in (0, 1):
        sizes = torch.arange(1, 65) ** -0.3
        vectors = _unit(_random(seed, 4000, 64) * sizes)
        queries = _unit(_random(seed + 20, 100, 64) * sizes).double()
        codes = pack(vectors)
        restored = _numbers(restore(codes), 4000, 64)
        pack(_unit(_random(seed + 10, 500, 64) + 0.5))  # restore mustn't depend on these
        again = _numbers(restore(codes[1::2]), 2000, 64)
        changes = "the same code comes back as another vector later"
        alone = _equal(again, restored[1::2])
        _need(alone, f"{changes}: does restore use a range that compress measured?")
        exact = (queries @ vectors.double().T).topk(10).indices
        top = (queries @ restored.T).topk(30).indices
        found = (exact[:, :, None] == top[:, None, :]).any(dim=2).double().mean().item()
        if found < 0.9:
            coarse = f"it finds {found:.0%} of the top 10 (target: 90%)"
            large = vectors.abs() > vectors.abs().flatten().topk(1280).values[-1]
            flipped = (restored[large] * vectors[large] < 0).double().mean() > 0.2
            wrap = "do they wrap round (half a byte ends at 15), or change places?"
            _need(not flipped, f"{coarse}, and large values change their sign: {wrap}")
            raise Wrong(f"{coarse}: do you use 32 bytes, and in which range are most values?")
        yield


EXERCISES = {
    "cut": partial(_compare, _cut),
    "choose_dims": _choose_dims,
    "leaks": partial(_compare, _leaks),
    "pick_negatives": _pick_negatives,
    "reciprocal_rank": partial(_compare, _reciprocal_rank),
    "rotate": _rotate,
    "batch_accuracy": partial(_compare, _batch_accuracy),
    "make_batches": _make_batches,
    "interval": partial(_compare, _interval, agree=_near),
    "audit": _audit,
    "two_stages": partial(_compare, _two_stages),
    "compress": _compress,
}
