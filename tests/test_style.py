import doctest
import re

import pytest

from helpers import collection, compare, metrics, search, triplets
from helpers.config import ROOT


@pytest.mark.parametrize("module", [collection, compare, metrics, search, triplets])
def test_the_examples_in_docstrings_are_right(module):
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([A-Za-z0-9][\w.-]*)\s*([^#]*)", line) for line in lines]
    return {m[1].lower().replace("_", "-"): m[2].strip() for m in found if m}


def test_every_requirement_has_a_tested_version():
    tested = set(requirements("constraints.txt"))
    for file in ROOT.glob("requirements*.txt"):
        if "an environment of its own" not in file.read_text().partition("\n")[0]:
            assert set(requirements(file.name)) <= tested, file.name
    assert all(v.startswith("==") for v in requirements("constraints.txt").values())


def test_the_commands_of_the_readme_and_conda_take_the_tested_versions():
    text = (ROOT / "README.md").read_text()
    files = {"main": "requirements.txt", "test": "requirements-dev.txt"}
    for name, file in files.items():
        command = text.split(f"<!-- {name} command -->")[1].split("```")[1]
        assert f"-r {file} -c constraints.txt" in command
    packages = (ROOT / "environment.yml").read_text().split("pip:")[1]
    assert "- -r requirements.txt\n" in packages and "- -c constraints.txt\n" in packages
