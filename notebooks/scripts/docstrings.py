"""Make pairs of a question and a passage from the docstrings of installed packages.

python docstrings.py [PACKAGE ...] [--out FOLDER]

The first sentence of a docstring is the query, what follows it is the passage. Without a PACKAGE,
reads eight that these notebooks install. It imports none of them. Writes, or writes again:

docstrings.csv   the columns `query` and `positive`
docstrings.toml  settings to train and score a model on them
"""

import argparse
import ast
import csv
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("scipy", "pandas", "sklearn", "numpy", "networkx", "sympy", "matplotlib", "torch")
PYPI_NAMES = {"sklearn": "scikit-learn"}
# Not part of what a package offers, or of other packages, or not there for every Python.
SKIPPED = {"tests", "test", "conftest.py", "externals", "distutils"}
QUERY_WORDS, PASSAGE_WORDS = range(4, 41), 30
BEGINNING = 40  # words, about 64 tokens: passages that begin alike can't be told apart
SETTINGS = """\
# Written by docstrings.py. Run it with: python -m helpers.run docstrings.toml
preset = "wikipedia"
dataset = "docstrings.csv"
max_seq_length = 64  # tokens, then a text is cut: several times quicker than whole passages
max_train = 3000     # of the queries: a laptop without a GPU is done in 10 to 30 minutes
num_dev = {held_out}
num_test = {held_out}
"""

INDENTED = r"(?:\n(?:\1 +\S.*| *$))*"  # lines further in than group 1, and blank ones
UNDERLINE = r"([-=~^*#])\2{2,} *$"
# What isn't prose, and what takes its place, in this order.
BLOCKS = [
    (r"\A[\w.]+\([^)]*\)(?: *->.*)?(?:\s*--)?\n *\n", ""),  # a signature
    (r"^ *>>>.*(?:\n.*\S.*)*", ""),  # an example, with what it prints
    (rf"^(examples?|references?|see also) *\n{UNDERLINE}(?:\n(?!.*\S.*\n([-=~^])\3\3).*)*", ""),
    (rf"^(.*\S) *\n{UNDERLINE}", r"\n\1:"),  # a heading
    (r"^[-=+| ]{3,}$", ""),  # a line of a table
    (r"^( *)\.\.(?! ?(?:note|warning|hint|tip|important)::)(?: .*|\w.*::.*|)$" + INDENTED, ""),
    (r"^ *\.\. ?\w+::", ""),  # a note's mark: its text stays
    (r"^( *)(.*)::$" + INDENTED, r"\1\2:"),  # code
    (r"^ *(?:examples?)?:$", ""),
]
MARKS = [
    (r"\s*<[^<>`]*>`", "`"),  # the target of a link
    (r":[\w:+-]+:`", "`"),  # a role, such as :func:
    (r"`__?(?!\w)", ""),  # the end of a link
    (r"(?<!`)`[~!]?\.?(?=[A-Za-z_])|`", ""),
    (r"(?<![\w*])(\*\*?)(\w(?:[^*]*\w)?)\1(?![\w*])", r"\2"),  # emphasis
    (r"\[[\w#, ]+\]_(?!\w)", ""),  # a citation
    (r"%\([\w:]+\)s", ""),  # filled in when the package is imported
    (r"\\ ", ""),
    (r"\\([*_|])", r"\1"),
    (r"\s+", " "),
    (r" (?=[.,;)](?:\s|$))", ""),  # what a citation leaves
]
BLOCKS, MARKS = (
    [(re.compile(old, re.MULTILINE | re.IGNORECASE), new) for old, new in table]
    for table in (BLOCKS, MARKS)
)
SENTENCE = re.compile(r".*?(?<!e\.g)(?<!i\.e)(?<! al)(?<!vs)(?<!cf)[.!?](?= [A-Z\"'(]|$)")


def replace(text: str, table: list[tuple[re.Pattern, str]]) -> str:
    """Replace each pattern of a table in turn."""
    for pattern, new in table:
        text = pattern.sub(new, text)
    return text.strip()


def split(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first sentence and the rest, both without markup."""
    first, *rest = re.split(r"\n\s*\n", replace(docstring, BLOCKS), maxsplit=1)
    first = replace(first, MARKS)
    sentence = found[0] if (found := SENTENCE.match(first)) else first
    return sentence, f"{first[len(sentence) :]} {replace(' '.join(rest), MARKS)}".strip()


def folders(package: str) -> list[Path]:
    """Find an installed package without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of a package's public functions, classes and methods, by file name."""

    def search(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if text := ast.get_docstring(node):
                yield text
            if isinstance(node, ast.ClassDef):
                yield from search(node.body)

    for folder in folders(package):
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
        for path in paths:
            *parents, name = path.split("/")
            private = any(part.startswith("_") and part != "_core" for part in parents)
            if private or SKIPPED & {*parents, name}:
                continue
            try:
                yield from search(ast.parse((folder / path).read_bytes()).body)
            except (SyntaxError, ValueError):  # a template, or for another Python
                continue


def pairs(texts: Iterator[str]) -> list[tuple[str, str]]:
    """Make pairs of docstrings: no passage begins as another one, and no query occurs twice."""
    by_beginning = {}
    for query, passage in map(split, texts):
        words = passage.split()
        if len(query.split()) in QUERY_WORDS and query[-1] != ":" and len(words) >= PASSAGE_WORDS:
            by_beginning.setdefault(" ".join(words[:BEGINNING]).casefold(), (query, passage))
    times = Counter(query.casefold() for query, _ in by_beginning.values())
    return [
        (query, passage) for query, passage in by_beginning.values() if times[query.casefold()] == 1
    ]


def read(package: str) -> Iterator[str]:
    """Say which package is read, and yield its docstrings."""
    try:
        version = importlib.metadata.version(PYPI_NAMES.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        version = ""
    print(f"reading {package} {version}".strip(), flush=True)
    yield from docstrings(package)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", default=PACKAGES)
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER")
    args = parser.parse_args()
    packages = [*dict.fromkeys(args.packages)]
    if missing := [name for name in packages if not folders(name)]:
        others = [name for name in packages if name not in missing] or ["PACKAGE"]
        names = " ".join(PYPI_NAMES.get(name, name) for name in missing)
        sys.exit(
            f"not installed here as a package: {', '.join(missing)}. Run pip install {names}, or "
            f"go on with others: docstrings.py {' '.join(others)}"
        )
    warnings.simplefilter("ignore", SyntaxWarning)  # what a file says isn't ours to mend
    rows = pairs(text for name in packages for text in read(name))
    if not rows:
        sys.exit(
            f"expected docstrings of a sentence and {PASSAGE_WORDS} more words in "
            f"{', '.join(packages)}, got none: name other packages"
        )
    table, settings = args.out / "docstrings.csv", args.out / "docstrings.toml"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(table, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("query", "positive"), *rows])
        text = SETTINGS.format(held_out=min(1000, len(rows) // 6 or 1))
        settings.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        sys.exit(f"can't write to {args.out}: {error.strerror}; choose another folder with --out")
    print(f"{len(rows):,} pairs in {table}\nNext: python -m helpers.run {settings}")


if __name__ == "__main__":
    main()
