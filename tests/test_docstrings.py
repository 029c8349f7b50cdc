"""Pairs made of docstrings: what becomes of markup, what is left out, and what the series reads."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

from helpers.config import from_toml
from tests.loopback_hub import write_files
from tests.test_style import requirements
from tests.test_triplets import gather

SCRIPT = Path(__file__).parents[1] / "notebooks" / "scripts" / "docstrings.py"
REST = " ".join(f"word{number}" for number in range(30))
MODULE = f'''
raise RuntimeError("this file was imported")


def first(x):
    r"""first(x, /) -> float

    Return the *mean* of ``x``, e.g. Of a column. It uses :func:`~numpy.sum` [1]_.

    .. versionadded:: 1.2
       With a new option.

    .. note:: Numbers are summed in pairs.

    Parameters
    ----------
    x : `.Column`
        A column, see `the guide <https://example.org>`_. {REST}

    See Also
    --------
    second : Return the largest number.

    Notes
    -----
    The formula is:

    .. math::

        m = s / n

    and so on::

        code(x)

    References
    ----------
    .. [1] A book.

    Examples
    --------
    >>> first(x)
    2.0

    """


class Base:
    def fit(self):
        """Fit the model to data.

        Of the base. {REST}
        """

    async def score(self):
        """Return the score of data.

        Of both. {REST}
        """


class Child(Base):
    """Hold a child of something.

    It has {REST}
    """

    def fit(self):
        """Fit the model to data.

        Of the child. {REST}
        """

    def score(self):
        """Return the score of data.

        Of both. {REST}
        """
'''
EXPECTED = [
    (
        "Return the mean of x, e.g. Of a column.",
        "It uses numpy.sum. Numbers are summed in pairs. Parameters: x : Column A column, see the "
        f"guide. {REST} Notes: The formula is: and so on:",
    ),
    ("Return the score of data.", f"Of both. {REST}"),
    ("Hold a child of something.", f"It has {REST}"),
]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script in a folder that has a package called tiny, and return what it printed."""
    hidden = 'def found():\n    """Return what isn\'t public.\n\n    {} {}\n    """\n'
    files = {"a/__init__.py": "", "a/_module.py": MODULE, "z_template.py": "{{ name }} ="}
    for place in ("tests", "_private"):
        files[f"{place}/module.py"] = hidden.format(place, REST)
    write_files(tmp_path / "tiny", {name: text.encode() for name, text in files.items()})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run_script(*arguments):
        monkeypatch.setattr(sys, "argv", ["docstrings.py", *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_a_package_becomes_pairs_without_markup_which_the_series_reads(run, tmp_path):
    written = set()
    for folder in ("one", "one", "two/deep"):
        assert "3 pairs in " in run("tiny", "--out", folder)
        files = [tmp_path / folder / f"docstrings.{kind}" for kind in ("csv", "toml")]
        written.add(tuple(file.read_bytes() for file in files))
    assert len(written) == 1, "the same bytes each time"
    assert "tiny" not in sys.modules, "it isn't imported"
    with open(files[0], encoding="utf-8", newline="") as file:
        assert [*map(tuple, csv.reader(file))] == [("query", "positive"), *EXPECTED]
    kept = gather(from_toml(files[1]))
    assert kept.counts == {"kept: a new query": 3}


def test_a_package_that_is_not_installed_is_named(run):
    with pytest.raises(SystemExit, match=r"pip install nothing, or go on with others: .* tiny$"):
        run("tiny", "nothing")


def test_the_packages_read_are_installed_with_tested_versions():
    names = runpy.run_path(str(SCRIPT))
    pinned = requirements("constraints.txt")
    for package in names["PACKAGES"]:
        assert names["folders"](package), package
        assert names["PYPI_NAMES"].get(package, package) in pinned
