"""Check that a server gives the vectors of a released model.

python check_server.py URL FOLDER [--model NAME]

URL is an OpenAI-compatible server, such as http://localhost:8000. FOLDER holds the release's
check.json: five texts and their vectors. We ask for them at full size and at a shorter one, as
`dimensions`, and say what is wrong: wrong pooling, no rotation, not normalised, cut at another
length, dimensions refused, or another model. Exits with 1 if anything is.
If the server wants a key, set OPENAI_API_KEY.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

NEAR = 0.999  # cosine: half precision stays above it
UNIT = 0.01  # how far from 1 a length may be
TIMEOUT = 120  # seconds


class RefusedError(Exception):
    """The server answered with an error; the text is its own."""


def ask(url: str, body: dict | None = None) -> dict:
    """Send a GET request, or a POST of JSON, and return the JSON that comes back.

    Raises:
        RefusedError: the status is an error's.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        raise RefusedError(f"{error.code} {said[:300]}") from error


def embed(url: str, model: str, texts: list[str], **options) -> np.ndarray:
    """Return the server's vectors of texts, ``(num_texts, dim)``."""
    body = {"model": model, "input": texts, "encoding_format": "float"} | options
    rows = sorted(ask(f"{url}/embeddings", body)["data"], key=lambda row: row["index"])
    return np.array([row["embedding"] for row in rows], dtype=np.float64)


def embed_cut(url: str, model: str, texts: list[str], **options) -> tuple[np.ndarray, bool]:
    """Return vectors of texts, and whether the server had to be told to cut long ones.

    vLLM refuses long texts unless it is. Other servers may refuse the option.
    """
    try:
        return embed(url, model, texts, **options), False
    except RefusedError as first:
        try:
            return embed(url, model, texts, truncate_prompt_tokens=-1, **options), True
        except RefusedError:
            raise first from None


def cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows, ``(num_rows,)``; zero where a row is all zeros."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return (got * expected).sum(axis=1) / np.maximum(lengths, 1e-12)


def faults(got: np.ndarray, expected: np.ndarray, known: dict[str, np.ndarray]) -> list[str]:
    """Say in words what is wrong with a server's vectors; nothing if they are right.

    Args:
        got: The server's vectors, ``(num_texts, dim)``; the last text is a long one, if it's
            there at all.
        expected: The model's, ``(5, dim)``.
        known: By fault, the vectors that it gives, ``(5, full_dim)``.
    """
    dim, short = got.shape[1], len(expected) - 1
    if dim != expected.shape[1]:
        return [f"another model: expected {expected.shape[1]} dimensions, got {dim}"]
    said = []
    kinds = {"": expected} | {name: v[:, :dim] for name, v in known.items() if v.shape[1] >= dim}
    near = {name: cosines(got, v[: len(got)]) for name, v in kinds.items()}
    name = max(near, key=lambda name: near[name][:short].min())
    if near[name][:short].min() < NEAR:
        return ["another model: the vectors are neither right, nor what a known fault gives"]
    if name:
        said.append(name)
    if near[name][short:].min(initial=1) < NEAR:
        said.append("cut at another length: only the long text's vector differs")
    lengths = np.linalg.norm(got, axis=1)
    if abs(lengths - 1).max() > UNIT:
        said.append(f"not normalised: lengths from {lengths.min():.2f} to {lengths.max():.2f}")
    return said


def check(url: str, model: str, folder: Path) -> bool:
    """Print what is right and wrong with a server's vectors; return whether all are right."""
    told = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    texts, limit = told["texts"], told["max_seq_length"]
    known = {name: np.array(vectors) for name, vectors in told["faults"].items()}
    sizes = sorted((int(size) for size in told["vectors"]), reverse=True)
    right = True
    for size in sizes:
        shorter = {} if size == sizes[0] else {"dimensions": size}
        expected = np.array(told["vectors"][str(size)])
        said = []
        try:
            got, _ = embed_cut(url, model, texts[:-1], **shorter)
        except RefusedError as error:
            what = "dimensions refused" if shorter else "the texts are refused"
            said = [f"{what}: {error}"]
        else:
            try:
                long, needs_option = embed_cut(url, model, texts[-1:], **shorter)
            except RefusedError as error:
                print(f"A text of more than {limit} tokens is refused: {error}")
            else:
                got = np.concatenate([got, long])
                if needs_option and not shorter:
                    print(f"Texts of more than {limit} tokens need truncate_prompt_tokens = -1.")
            if shorter and got.shape[1] == sizes[0]:
                said = [f"dimensions ignored: expected {size}, got {sizes[0]}"]
            else:
                said = faults(got, expected, known)
        for line in said:
            print(f"{size} dimensions: {line}")
        if not said:
            closest = cosines(got, expected[: len(got)]).min()
            print(f"{size} dimensions: right, cosine {closest:.6f} or more")
        right = right and not said
    return right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="its name there; unless given, the first one served")
    args = parser.parse_args()
    if not (args.folder / "check.json").is_file():
        sys.exit(f"expected a release with a check.json, got {args.folder}")
    url = args.url.rstrip("/").removesuffix("/v1") + "/v1"
    try:
        model = args.model or ask(f"{url}/models")["data"][0]["id"]
        right = check(url, model, args.folder)
    except RefusedError as error:
        sys.exit(f"{url} doesn't answer as an OpenAI-compatible server does: {error}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f"expected an OpenAI-compatible server at {url}, got {error!r}")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
