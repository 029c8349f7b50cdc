import re
import subprocess
import sys

import pytest

from helpers.config import ROOT


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([A-Za-z0-9][\w.-]*)\s*([^#]*)", line) for line in lines]
    return {m[1].lower().replace("_", "-"): m[2].strip() for m in found if m}


def test_every_requirement_has_a_tested_version():
    files = sorted(ROOT.glob("requirements*.txt"))
    assert len(files) == 5
    for file in files:
        assert set(requirements(file.name)) <= set(requirements("constraints.txt")), file.name
    assert all(v.startswith("==") for v in requirements("constraints.txt").values())


def test_the_readme_has_the_two_commands_and_both_take_the_tested_versions():
    text = (ROOT / "README.md").read_text()
    files = {"main": "requirements.txt", "test": "requirements-dev.txt"}
    for name, file in files.items():
        command = text.split(f"<!-- {name} command -->")[1].split("```")[1]
        assert f"-r {file} -c constraints.txt" in command


def test_conda_takes_the_tested_versions():
    packages = (ROOT / "environment.yml").read_text().split("pip:")[1]
    assert "- -r requirements.txt\n" in packages and "- -c constraints.txt\n" in packages
