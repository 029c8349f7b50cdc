"""Checks for the exercises of the notebooks: what is wrong with an answer, said as a hint."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from helpers.metrics import prefix
from helpers.triplets import normalise

RIGHT = "right"  # the name of the answer that is


class Fault(Exception):
    """An answer is wrong; the message says how, as a hint for the reader."""


class Unfilled(Exception):
    """An exercise has no answer yet."""


def _numbers(answer) -> torch.Tensor:
    """An answer as float64 on the processor; TypeError or ValueError if it is no numbers."""
    if isinstance(answer, torch.Tensor):
        return answer.detach().cpu().double()
    if isinstance(answer, list | tuple):  # of tensors, perhaps
        answer = [part.tolist() if hasattr(part, "tolist") else part for part in answer]
    return torch.from_numpy(np.array(answer, dtype=np.float64))


def _tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A copy on the processor: arrays may run backwards, tensors lie on a GPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return torch.from_numpy(np.array(value))


def _texts(answer) -> list[str]:
    if isinstance(answer, str | set | frozenset | dict):
        raise TypeError("no list")
    return [str(text) for text in answer]


def _agree(found: list, wanted: list) -> bool:
    """Whether all outcomes are the same; None stands for a case on which a function raised."""
    return all(_same(a, b) for a, b in zip(found, wanted, strict=True))


def _same(one, other, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two values are equal, their numbers up to a tolerance."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor | np.ndarray):
        one, other = _tensor(one), _tensor(other)
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other, rtol, atol)
    if isinstance(one, dict):
        return one.keys() == other.keys() and _same([*one.values()], [*other.values()], rtol, atol)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(*pair, rtol, atol) for pair in pairs)
    return one == other


@dataclass(frozen=True)
class Exercise:
    """An exercise and what its answers are held against.

    An exact one has ``answers``, the right one and those that come of mistakes; an open one has
    a ``judge``.

    Attributes:
        notebook: The notebook that sets it.
        takes: The argument names of each function that is wanted.
        cases: Makes the cases. Of an exact exercise, each is a tuple of arguments; of an open one,
            what the judge takes before the reader's functions.
        answers: What a case's answer is under :data:`RIGHT`, and under each hint what it is when
            the mistake is made of which the hint speaks; None where that raises.
        judge: Raises :class:`Fault` if the reader's functions do not do on a case.
        read: Makes an answer comparable; raises if it is of a wrong type.
        agree: Whether two lists of answers that were read, one a case, are the same.
    """

    notebook: str
    takes: tuple[str, ...]
    cases: Callable[[], list[tuple]]
    answers: Callable[..., dict] | None = None
    judge: Callable[..., None] | None = None
    read: Callable = _numbers
    agree: Callable[[list, list], bool] = _agree

    def outcomes(self) -> dict[str, list]:
        """The right answers and those of each mistake, one a case."""
        made = [self.answers(*case) for case in self.cases()]
        read = {name: [answers[name] for answers in made] for name in made[0]}
        return {name: [v if v is None else self.read(v) for v in row] for name, row in read.items()}


def check(name: str, *answer: Callable) -> None:
    """Print whether an answer is right, or what is likely wrong with it.

    What the answer does is never raised here, so that a notebook runs on.

    Args:
        name: An exercise, one of :data:`EXERCISES`.
        answer: Its function; "compress" has two, that and its ``restore``.

    Raises:
        ValueError: no such exercise.
    """
    print(f"{name}: {verdict(name, *answer)[1]}")


def verdict(name: str, *answer: Callable) -> tuple[bool | None, str]:
    """What :func:`check` prints, and whether the answer is right; None if it is not filled in.

    Raises:
        ValueError: no such exercise.
    """
    if name not in EXERCISES:
        raise ValueError(f"exercise is {name!r}: there are {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    if len(answer) != len(exercise.takes):
        return False, f"not yet: it wants {len(exercise.takes)} functions, {len(answer)} came"
    changed: set[str] = set()  # arguments that the answer changes
    functions = [_guard(*pair, changed) for pair in zip(answer, exercise.takes, strict=True)]
    cases = exercise.cases()
    right, said = True, f"right, on {len(cases)} cases"
    try:
        if exercise.judge is None:
            _compare(exercise, cases, *functions)
        else:
            for case in cases:
                exercise.judge(*case, *functions)
    except Unfilled:
        return None, "not filled in yet (or is a return missing?)"
    except Fault as fault:
        right, said = False, f"not yet: {fault}"
    if changed:
        said += f"\nIt changes {' and '.join(sorted(changed))} in place: did you mean to, or "
        said += "should it work on a copy?"
    return right, said


def _guard(function: Callable, names: str, changed: set[str]) -> Callable:
    """The reader's function, called with copies; what it does wrong comes as a fault."""
    called = False

    def guarded(*arguments):
        nonlocal called
        given, first, called = copy.deepcopy(arguments), not called, True
        try:
            answer = function(*given)
            answer = list(answer) if isinstance(answer, Iterator) else answer
        except Exception as error:
            message = (str(error).splitlines() or [""])[0][:150]
            where = _describe(names, arguments)
            raise Fault(f"it raised {type(error).__name__}: {message} on {where}") from error
        pairs = zip(names.split(), given, arguments, strict=True)
        changed.update(name for name, *both in pairs if not _same(*both, rtol=0, atol=0))
        if answer is None:
            if first:
                raise Unfilled
            raise Fault(f"it returned None on {_describe(names, arguments)}: is a return missing?")
        return answer

    return guarded


def _describe(names: str, arguments: tuple) -> str:
    def one(name: str, value) -> str:
        if hasattr(value, "shape"):
            return f"{name} of shape {tuple(value.shape)}"
        shown = repr(value)
        return f"{name} {shown}" if len(shown) <= 50 else f"{name} with {len(value)} entries"

    return ", ".join(map(one, names.split(), arguments))


def _compare(exercise: Exercise, cases: list[tuple], function: Callable) -> None:
    """Raise a fault if an answer is not the right one on every case."""
    outcomes = exercise.outcomes()
    wanted = outcomes.pop(RIGHT)
    found, broken = [], None
    for case, right in zip(cases, wanted, strict=True):
        try:
            found.append(_read(exercise.read, function(*case), _kind(right)))
        except Fault as fault:  # some mistakes raise on some cases
            broken = broken or fault
            found.append(None)
    if exercise.agree(found, wanted):
        return
    for hint, mistaken in outcomes.items():
        if exercise.agree(found, mistaken):
            raise Fault(hint)
    if broken:
        raise broken
    for case, given, right in zip(cases, found, wanted, strict=True):
        if not exercise.agree([given], [right]):
            same_kind = _kind(given) == _kind(right)
            expected, came = map(_brief if same_kind else _kind, (right, given))
            where = _describe(exercise.takes[0], case)
            raise Fault(f"on {where}, {expected} was expected, {came} came")


def _read(read: Callable, answer, wanted: str):
    """An answer in the form in which it is compared; a fault if it has none."""
    try:
        value = read(answer)
    except Exception:
        raise Fault(f"{wanted} was wanted, {type(answer).__name__} came") from None
    if isinstance(value, torch.Tensor) and not value.isfinite().all():
        what = "NaN" if value.isnan().any() else "infinity"
        raise Fault(f"it gives {what}: is something divided by zero?")
    return value


def _kind(value) -> str:
    if isinstance(value, list):
        return "a list of texts"
    return f"a tensor of shape {tuple(value.shape)}" if value.ndim else "a single number"


def _brief(value, most: int = 4) -> str:
    if isinstance(value, torch.Tensor) and not value.ndim:
        return f"{value.item():.4g}"
    values = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
    shown = [f"{one:.4g}" if isinstance(one, float) else repr(one) for one in values[:most]]
    return f"[{', '.join(shown)}{', ...' if len(values) > most else ''}]"


def _need(good: bool, hint: str) -> None:
    if not good:
        raise Fault(hint)


def _matrix(answer, *shape: int) -> torch.Tensor:
    """An answer as numbers of a shape."""
    matrix = _read(_numbers, answer, f"a tensor of shape {shape}")
    _need(matrix.shape == shape, f"a tensor of shape {shape} was wanted, {_kind(matrix)} came")
    return matrix


def _places(answer, kind: str, end: int, count: int | None = None) -> list[int]:
    """An answer as whole numbers from 0 to below ``end``, ``count`` of them if that is given."""
    row = _read(_numbers, answer, f"a list of {kind}")
    _need(row.ndim == 1, f"a list of {kind} was wanted, {_kind(row)} came")
    _need(count in (None, len(row)), f"{count} {kind} were wanted, {len(row)} came")
    for place in row.tolist():
        _need(place in range(end), f"{place:g} is none of the {kind}, which go from 0 to {end - 1}")
    return [int(place) for place in row]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _error(rows: torch.Tensor, shorter: torch.Tensor) -> float:
    """Mean absolute error of the cosine similarities of some rows, taken from shorter ones."""
    full, short = (_unit(m.double()) @ _unit(m.double()).T for m in (rows, shorter))
    return (full - short).abs().mean().item()


# 1. Setup


def _cut_cases() -> list[tuple]:
    return [(_random(0, 5, 12), 4), (_random(1, 3, 8), 8), (3 * _random(2, 10, 6), 2)]


def _cut_answers(embeddings: torch.Tensor, dim: int) -> dict:
    short, whole = embeddings[:, :dim], _unit(embeddings)
    return {
        RIGHT: prefix(embeddings, dim),
        "did you bring the prefix to unit length after cutting?": short,
        "the rows had unit length before cutting: do they have it after?": whole[:, :dim],
        "are these the last numbers, and not the first?": _unit(embeddings[:, -dim:]),
        "all rows are divided by one length: has each row its own?": short / short.norm(),
        "the columns have unit length: along which axis lies a text?": short / short.norm(dim=0),
        "these are the first texts: did you cut rows in place of columns?": _unit(embeddings[:dim]),
    }


def _dims_cases() -> list[tuple]:
    """Embeddings to look at, others of the same kind to judge by, and how many to keep."""
    cases = []
    for seed, full_dim, dim in ((0, 48, 12), (1, 64, 16), (2, 96, 10)):
        lengths = (0.8 * _random(seed, full_dim)).exp()
        embeddings = _unit(_random(seed + 10, 500, full_dim) * lengths)
        cases.append((embeddings[:300], embeddings[300:], dim))
    return cases


def _judge_dims(embeddings: torch.Tensor, others: torch.Tensor, dim: int, choose) -> None:
    full_dim = embeddings.shape[1]
    kept = _places(choose(embeddings, dim), "dimensions", full_dim, dim)
    _need(len(set(kept)) == dim, f"dimension {Counter(kept).most_common(1)[0][0]} is named twice")
    order = embeddings.square().mean(dim=0).argsort(descending=True)
    found, best = (_error(others, others[:, rows]) for rows in (kept, order[:dim]))
    if found <= 1.1 * best:
        return
    first, least = set(range(dim)), set(order[-dim:].tolist())
    _need(set(kept) != first, f"these are the first {dim}: what do the others hold?")
    turned = len(set(kept) & least) > 0.7 * dim
    _need(not turned, "these hold the least of the length: is the order turned round?")
    draws = [_random(seed, full_dim).argsort()[:dim] for seed in range(10)]
    chance = np.mean([_error(others, others[:, draw]) for draw in draws])
    better = found <= (best + chance) / 2
    _need(better, "hardly better than at random: which numbers hold most of the length?")
    raise Fault(
        f"the similarities are off by {found:.3f}, {best:.3f} can be reached: "
        "do you measure each dimension over all texts?"
    )


# 2. Data


def _leaks_cases() -> list[tuple]:
    train = ["What is tea?", "the river  in winter", "Caf\u00e9 music", "gold", "H\u2082O"]
    test = ["Gold", "snow on roofs", "The River in\u00a0Winter ", "what is tea?", "What is tea?"]
    accents = ["cafe\u0301 music", "bread", "h2o", "\uff47\uff4f\uff4c\uff44"]
    return [(train, test), (train, accents), (train, ["bees", "law"]), (["Jazz"], ["jazz", "Jazz"])]


def _leaks_answers(train: list[str], test: list[str]) -> dict:
    def seen(form: Callable[[str], str]) -> list[str]:
        return [query for query in test if form(query) in map(form, train)]

    right, spelling = seen(normalise), {normalise(query): query for query in train}
    return {
        RIGHT: right,
        "texts are compared as they stand: are 'Tea' and 'tea' two queries?": seen(str),
        "case no longer matters, but do spaces, two in a row or at an end?": seen(str.casefold),
        "case and spaces no longer matter: has one letter several Unicode forms?": seen(
            lambda text: " ".join(text.casefold().split())
        ),
        "is this how train spells them, and not test?": [spelling[normalise(q)] for q in right],
        "training has not seen these: is a 'not' too many?": [q for q in test if q not in right],
    }


def _negatives_cases() -> list[tuple]:
    """Scores, the positives' columns, and which candidates are right though nobody marked them."""
    cases = []
    for seed, lowest in ((0, 0.6), (1, 0.3)):
        rng = np.random.default_rng(seed)
        own = rng.uniform(lowest, 0.85, size=(150, 1))
        size = (150, 200)
        place = rng.permuted(np.tile(np.arange(200), (150, 1)), axis=1)
        hard, unmarked = place < 6, (place >= 6) & (place < 6 + rng.integers(0, 3, size=(150, 1)))
        share = np.where(hard, rng.uniform(0.8, 0.9, size), rng.uniform(-0.2, 0.6, size))
        share = np.where(unmarked, rng.uniform(0.97, 1.1, size), share)
        positive = place.argmax(axis=1)
        np.put_along_axis(share, positive[:, None], 1, axis=1)
        cases.append((torch.tensor(own * share).float(), torch.tensor(positive), unmarked))
    return cases


def _judge_negatives(scores: torch.Tensor, positive: torch.Tensor, unmarked, pick) -> None:
    num_queries, num_candidates = scores.shape
    chosen = _places(pick(scores, positive), "columns", num_candidates, num_queries)
    rows = list(range(num_queries))
    own = (torch.tensor(chosen) == positive).sum().item()
    _need(not own, f"for {own} of {num_queries} queries it is the positive: did you leave it out?")
    wrong = unmarked[rows, chosen].mean()
    _need(
        wrong <= 0.03,
        f"for {wrong:.0%} of the queries it is a right answer that nobody marked: did you keep a "
        "distance to the positive's score?",
    )
    own = scores[rows, positive]
    best = scores.masked_fill(scores > 0.95 * own[:, None], -1).amax(dim=1)
    found, reached = ((score / own).mean().item() for score in (scores[rows, chosen], best))
    _need(
        found >= 0.85 * reached,
        f"they are too easy: they score {found:.0%} of what positives do, {reached:.0%} can be "
        "reached. Did you take the highest of those that are left?",
    )


# 3. Baseline


def _ranking_cases() -> list[tuple]:
    ranking = [4, 1, 7, 3, 0, 2, 6, 5]
    return [
        (ranking, {7, 0}, 6),
        (ranking, {6}, 5),
        (ranking, {4, 3, 2}, 4),
        (ranking, {3, 9}, 4),
        (ranking, {9}, 8),
    ]


def _ranking_answers(ranking: list[int], relevant: set[int], k: int) -> dict:
    everywhere = [rank for rank, one in enumerate(ranking, start=1) if one in relevant]
    ranks = [rank for rank in everywhere if rank <= k]
    first, last = min(ranks, default=math.inf), max(ranks, default=math.inf)
    return {
        RIGHT: 1 / first,
        "does your first rank count as 0? It is 1.": 1 / (first - 1) if first > 1 else None,
        "did you look beyond the first k?": 1 / min(everywhere, default=math.inf),
        "this is the last relevant passage: where does the first one stand?": 1 / last,
        "this is a mean: is the first relevant passage not all that counts?": (
            sum(1 / rank for rank in ranks) / max(1, len(ranks))
        ),
        "this is recall: where does the rank come in?": len(ranks) / len(relevant),
        "this is precision: where does the rank come in?": len(ranks) / k,
        "this is the rank: what about one over it?": first if ranks else 0,
    }


def _spectrum_cases() -> list[tuple]:
    """Training passages and others, whose length lies in few directions, none along an axis."""
    cases = []
    for seed, dim in ((0, 48), (1, 72)):
        basis = torch.linalg.qr(_random(seed, dim, dim))[0]
        rows = _random(seed + 10, 900, dim) * torch.arange(1, dim + 1) ** -0.6
        rows = _unit(rows @ basis)
        cases.append((rows[:700], rows[700:]))
    return cases


def _judge_rotation(passages: torch.Tensor, others: torch.Tensor, rotate) -> None:
    dim = passages.shape[1]
    rotation = _matrix(rotate(passages), dim, dim)
    gap = (rotation.T @ rotation - torch.eye(dim)).abs().max().item()
    _need(
        gap <= 1e-3,
        f"it is not orthogonal, off by {gap:.2g}: does it scale the directions, and so change "
        "full-size similarities?",
    )
    kept, others = dim // 6, others.double()
    plain = _error(others, others[:, :kept])

    def gain(turn: torch.Tensor) -> float:
        return plain - _error(others, (others @ turn)[:, :kept])

    svd = torch.linalg.svd(passages.double(), full_matrices=False)[2].T
    found, bar = gain(rotation), 0.8 * gain(svd)
    if found >= bar:
        return
    flipped, turned = gain(rotation.flip(1)), gain(rotation.T)
    _need(flipped < bar, "the directions that hold least come first: is the order turned round?")
    _need(turned < bar, "its transpose does better: is passages @ rotation what you meant?")
    _need(found > 0.3 * bar, "next to nothing is gained: in which directions do passages lie most?")
    raise Fault(f"it gains {found:.3f}, {bar:.3f} is wanted: does it look at all passages?")


# 4. Training


def _accuracy_cases() -> list[tuple]:
    cases = []
    for seed, dim in ((0, 6), (2, 12)):
        queries = _random(seed, 40, 16)
        others = torch.cat([queries + 0.9 * _random(seed + 1, 40, 16), _random(seed + 5, 160, 16)])
        # Hard negatives: the first numbers of some query, and of another length.
        others[40:80, :8] = 0.7 * queries[:, :8] + 0.5 * others[40:80, :8]
        cases.append((_unit(queries), _unit(others), dim))
    return cases


def _accuracy_answers(queries: torch.Tensor, passages: torch.Tensor, dim: int) -> dict:
    own = torch.arange(len(queries))

    def share(similarity: torch.Tensor) -> torch.Tensor:
        return (similarity.argmax(dim=1) == own).double().mean()

    cosine = prefix(queries, dim) @ prefix(passages, dim).T
    return {
        RIGHT: share(cosine),
        "did you bring the passages' prefixes to unit length?": share(
            queries[:, :dim] @ passages[:, :dim].T
        ),
        "this is full size: what becomes of dim?": share(queries @ passages.T),
        "where are the hard negatives, the passages after the positives?": share(
            cosine[:, : len(queries)]
        ),
        "does each positive choose among queries? Each query chooses among passages.": share(
            cosine[:, : len(queries)].T
        ),
        "this is how many: what share of the queries is it?": share(cosine) * len(queries),
        "this is the share that is wrong: is it turned round?": 1 - share(cosine),
    }


def _rows_cases() -> list[tuple]:
    cases = []
    for seed, size, texts, batch_size in ((0, 40, 200, 8), (1, 90, 40, 16), (2, 7, 30, 10)):
        rng = np.random.default_rng(seed)
        pairs = rng.integers(texts, size=(size, 2)).tolist()
        cases.append(([(f"query {a}", f"passage {b}") for a, b in pairs], batch_size))
    often = [("query 0", f"passage {n}") if n % 5 == 4 else (f"query {n}", "p") for n in range(20)]
    return [*cases, (often, 4)]


def _judge_batches(rows: list[tuple[str, str]], batch_size: int, make) -> None:
    answer = make(rows, batch_size)
    try:
        listed = None if isinstance(answer, str | dict) else list(answer)
    except TypeError:  # a tensor of no dimension is iterable until it is tried
        listed = None
    _need(listed is not None, f"a list of batches was wanted, {type(answer).__name__} came")
    batches = [batch for one in listed if (batch := _places(one, "rows", len(rows)))]
    count = Counter(row for batch in batches for row in batch)
    missing = [row for row in range(len(rows)) if not count[row]]
    _need(not missing, f"{len(missing)} of {len(rows)} rows are in no batch: {_brief(missing)}")
    twice = [row for row in count if count[row] > 1]
    _need(not twice, f"some rows are in the batches twice: {_brief(twice)}")
    largest = max(map(len, batches))
    _need(largest <= batch_size, f"a batch has {largest} rows, at most {batch_size} are allowed")
    for batch in batches:
        for text, times in Counter(text for row in batch for text in rows[row]).items():
            _need(times == 1, f"{text!r} is in one batch twice: would it be its own negative?")
    most = max(Counter(text for row in rows for text in row).values())
    fewest = max(math.ceil(len(rows) / batch_size), most)
    _need(
        len(batches) <= 1.5 * fewest,
        f"{len(batches)} batches, and about {fewest} would do: can a row that does not fit into "
        "one go into another, and later rows take its place?",
    )


# 5. Evaluation


def _scores_cases() -> list[tuple]:
    cases = []
    for seed, num_queries, gain in ((0, 200, 0.05), (1, 300, -0.04), (2, 250, 0.1), (3, 400, 0.03)):
        rng = np.random.default_rng(seed)
        before = rng.uniform(0.1, 0.8, size=num_queries)
        cases.append((before, before + rng.normal(gain, 0.1, size=num_queries)))
    return cases


def _interval_answers(before: np.ndarray, after: np.ndarray) -> dict:
    """Normal intervals, which those of a bootstrap come near to; nothing is resampled."""
    difference = after - before
    mean, spread, root = difference.mean(), difference.std(), math.sqrt(len(before))
    error, unpaired = spread / root, math.sqrt(before.var() + after.var()) / root

    def around(middle: float, error: float, z: float = 1.96) -> tuple[float, float]:
        return middle - z * error, middle + z * error

    return {
        RIGHT: around(mean, error),
        "too wide: are the two scores of a query drawn together?": around(mean, unpaired),
        "that holds 90%: do 2.5% lie beyond each end?": around(mean, error, z=1.645),
        "this is how single queries spread: and their mean?": around(mean, spread),
        "is the sign turned round? It is after minus before.": around(-mean, error),
        "the higher end comes first: is low the smaller one?": around(mean, -error),
    }


def _intervals_agree(found: list, wanted: list) -> bool:
    """Each end up to noise of resampling; their width, on average, more closely."""
    if any(one is None or one.shape != (2,) for one in found):
        return False
    found, wanted = torch.stack(found), torch.stack(wanted)
    half = (wanted[:, 1] - wanted[:, 0]) / 2  # below zero where the ends are swapped
    apart = (found - wanted) / half[:, None]
    return apart.abs().max().item() < 0.3 and apart.diff(dim=1).mean().abs().item() < 0.16


FAULTS = {
    "leaky split": "does a test query stand in train too, perhaps in another spelling?",
    "duplicate passages": "does a passage stand there twice, perhaps in another spelling?",
    "unnormalised prefixes": "how long are the embeddings, rounding aside?",
    "right negatives": "is a negative a positive of the same query, perhaps of another row?",
}


def _experiment(faults: set[str], seed: int) -> dict:
    """A small experiment with some faults; with an odd seed, texts are spelt in another way."""

    def respelt(text: str) -> str:
        return f" {text.upper()}".replace("A", "\uff21") if seed % 2 else text

    passages = [f"passage number {n} has this to say" for n in range(30)]
    train = [
        (f"what is asked as number {n // 2}", passages[n], passages[(n + 7) % 20])
        for n in range(20)
    ]
    test, qrels = [f"what the test asks {n}" for n in range(10)], [{20 + n} for n in range(10)]
    embeddings = _unit(_random(seed, 30, 24))
    if "leaky split" in faults:
        test[4] = respelt(train[6][0])
    if "right negatives" in faults:
        train[8] = (*train[8][:2], respelt(train[9 - seed % 2][1]))
    if "duplicate passages" in faults:
        passages[25] = respelt(passages[3])
    embeddings = embeddings[:, :16] if "unnormalised prefixes" in faults else embeddings
    named = {"train": train, "test": test, "passages": passages, "qrels": qrels}
    return named | {"embeddings": embeddings}


def _audit_cases() -> list[tuple]:
    planted = [set(), *({fault} for fault in FAULTS), set(FAULTS), *({fault} for fault in FAULTS)]
    planted.append({"leaky split", "right negatives"})
    return [(_experiment(faults, seed), faults) for seed, faults in enumerate(planted)]


def _judge_audit(experiment: dict, planted: set[str], audit) -> None:
    answer = audit(experiment)
    listed = isinstance(answer, set | frozenset | list | tuple)
    _need(listed, f"a set of names was wanted, {type(answer).__name__} came")
    strange = [one for one in answer if not (isinstance(one, str) and one in FAULTS)]
    _need(not strange, f"it names {_brief(strange)}: there are {', '.join(map(repr, FAULTS))}")
    for name, hint in FAULTS.items():
        _need(name in answer or name not in planted, f"it missed {name!r}: {hint}")
        _need(name in planted or name not in answer, f"it found {name!r} in one without: {hint}")


# 6. Deployment


def _stages_cases() -> list[tuple]:
    cases = []
    for seed, num, full_dim, dim, shortlist, k in ((0, 60, 16, 4, 12, 5), (1, 100, 24, 6, 15, 10)):
        passages = _unit(_random(seed, num, full_dim))
        query = _unit(passages[seed] + 0.2 * _random(seed + 10, full_dim))
        cases.append((query, passages, dim, shortlist, k))
    return cases


def _stages_answers(query, passages, dim: int, shortlist: int, k: int) -> dict:
    short, full = prefix(passages, dim) @ query[:dim], passages @ query

    def rerank(scores: torch.Tensor, shortlist: int) -> tuple[torch.Tensor, torch.Tensor]:
        near = scores.topk(shortlist).indices
        places = full[near].topk(k).indices
        return near[places], places

    right, places = rerank(short, shortlist)
    raw = passages[:, :dim] @ query[:dim]
    return {
        RIGHT: right,
        "did you bring the passages' prefixes to unit length?": rerank(raw, shortlist)[0],
        "these are places within the shortlist: which rows stand there?": places,
        "this is the order of the prefixes: did you rerank at full size?": short.topk(k).indices,
        "all passages are compared at full size: why a shortlist?": full.topk(k).indices,
        "is the shortlist as long as shortlist says, and not as k?": rerank(short, k)[0],
    }


def _vectors_cases() -> list[tuple]:
    """Vectors to search, others to be compressed in between, and queries."""
    cases = []
    for seed in (0, 1):
        lengths = torch.arange(1, 65) ** -0.3
        vectors = _unit(_random(seed, 4000, 64) * lengths)
        others = _unit(_random(seed + 10, 500, 64) + 0.5)
        cases.append((vectors, others, _unit(_random(seed + 20, 100, 64) * lengths)))
    return cases


def _judge_codes(vectors: torch.Tensor, others: torch.Tensor, queries, compress, restore) -> None:
    def pack(rows: torch.Tensor):
        codes = compress(rows)
        kind = str(getattr(codes, "dtype", type(codes).__name__)).removeprefix("torch.")
        _need(kind == "uint8", f"codes as uint8 were wanted, {kind} came")
        rows_wanted = codes.ndim == 2 and len(codes) == len(rows)
        wanted = f"a tensor of shape ({len(rows)}, at most 32)"
        _need(rows_wanted, f"{wanted} was wanted, {_kind(codes)} came")
        width = codes.shape[1]
        _need(width <= 32, f"a code has {width} bytes, 32 are allowed: can two share a byte?")
        return codes

    codes = pack(vectors)
    restored = _matrix(restore(codes), len(vectors), 64)
    pack(others)
    again = _matrix(restore(codes[1::2]), len(vectors) // 2, 64)  # has it nothing but the codes?
    _need(
        _same(again, restored[1::2]),
        "what a code is restored to changes with the other codes, or with what was packed last: "
        "does restore use what only compress can know, such as levels learnt from its vectors?",
    )
    wanted = (queries.double() @ vectors.double().T).topk(10).indices
    top = (queries.double() @ restored.T).topk(30).indices
    found = (wanted[:, :, None] == top[:, None, :]).any(dim=2).double().mean().item()
    if found >= 0.9:
        return
    large = vectors.abs() > vectors.abs().flatten().topk(vectors.numel() // 200).values[-1]
    wrapped = (restored[large] * vectors[large] < 0).double().mean() > 0.2
    _need(
        not wrapped,
        f"{found:.0%} of the top 10 are found, and large numbers come back with another sign: did "
        "they wrap round (a byte ends at 255, half of one at 15), or change places?",
    )
    raise Fault(
        f"it is too coarse: {found:.0%} of the top 10 are found, 90% are wanted. Do you use all 32 "
        "bytes, and in which range do most of the numbers lie?"
    )


EXERCISES = {
    "cut": Exercise("01_setup", ("embeddings dim",), _cut_cases, _cut_answers),
    "choose_dims": Exercise("01_setup", ("embeddings dim",), _dims_cases, judge=_judge_dims),
    "leaks": Exercise("02_data", ("train test",), _leaks_cases, _leaks_answers, read=_texts),
    "pick_negatives": Exercise(
        "02_data", ("scores positive",), _negatives_cases, judge=_judge_negatives
    ),
    "reciprocal_rank": Exercise(
        "03_baseline", ("ranking relevant k",), _ranking_cases, _ranking_answers
    ),
    "rotate": Exercise("03_baseline", ("passages",), _spectrum_cases, judge=_judge_rotation),
    "batch_accuracy": Exercise(
        "04_training", ("queries passages dim",), _accuracy_cases, _accuracy_answers
    ),
    "make_batches": Exercise(
        "04_training", ("rows batch_size",), _rows_cases, judge=_judge_batches
    ),
    "interval": Exercise(
        "05_evaluation",
        ("before after",),
        _scores_cases,
        _interval_answers,
        agree=_intervals_agree,
    ),
    "audit": Exercise("05_evaluation", ("experiment",), _audit_cases, judge=_judge_audit),
    "two_stages": Exercise(
        "06_deployment", ("query passages dim shortlist k",), _stages_cases, _stages_answers
    ),
    "compress": Exercise("06_deployment", ("vectors", "codes"), _vectors_cases, judge=_judge_codes),
}
