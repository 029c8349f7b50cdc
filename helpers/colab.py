"""Makes a notebook run on an empty Colab machine: its first code cell, and what that cell calls.

``python -m helpers.colab`` writes the first code cell and the badges into the notebooks and
README.md; run it after changing ``REPOSITORY`` or ``RELEASE``. Only the standard library and
``packaging`` are imported up here, since nothing else need be installed yet.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REPOSITORY = ""  # such as "https://github.com/owner/name"; "" while there is no public address
RELEASE = "v1.0"  # the tag that the notebooks fetch

ROOT = Path(__file__).resolve().parents[1]

# Never exchanged: Colab's are built for its GPU and for each other.
HELD = ("torch", "numpy", "pandas")

# Requirements that no notebook imports, and of which some would upset Colab's own server.
NOT_NEEDED = {"jupyterlab", "nbmake", "botocore"}

CELL = Template("""\
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY, RELEASE = $repository, $release
places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "matryoshka"]
ROOT = next((p for p in places if (p / "helpers" / "colab.py").is_file()), None)
if ROOT is None and not REPOSITORY:
    raise FileNotFoundError(
        "found no folder `helpers` from here upwards, and this copy of the notebook has no "
        "repository address: clone or copy the whole repository and open the notebook in it"
    )
if ROOT is None:
    ROOT = places[-1]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        git = f"git clone -q --depth 1 --branch {RELEASE} {REPOSITORY}".split()
        done = subprocess.run([*git, f"{scratch}/clone"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"git could not fetch {RELEASE} of {REPOSITORY}: {done.stderr}")
        Path(scratch, "clone").rename(ROOT)
sys.path.insert(0, str(ROOT))
from helpers.colab import prepare

prepare()""")
COLAB = "https://colab.research.google.com"
LITERALS = re.compile(r"^REPOSITORY, RELEASE = .*", re.MULTILINE)
BADGE = re.compile(r"\s*\[!\[Open in Colab\]\(\S*?\)\]\(\S*?\)")

stale: set[str] = set()  # packages that were upgraded after this process had imported them


def prepare() -> None:
    """Install what the notebooks import and this machine lacks, and say so in one line.

    Where nothing is lacking, pip is not started. torch, numpy and pandas stay at the versions
    that are there, and nothing is ever downgraded.

    Raises:
        RuntimeError: the session must be restarted; torch, numpy or pandas is too old; or pip
            failed.
    """
    if not stale:
        _install_what_lacks()
    if stale:
        raise RuntimeError(
            f"restart the session (in Colab: Runtime > Restart session), then run this notebook "
            f"from its first cell: {', '.join(sorted(stale))} had been imported before the upgrade"
        )


def _install_what_lacks() -> None:
    wanted = needed((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    there = installed(r.name for r in wanted)
    lacking = [r for r in wanted if is_lacking(r, there.get(canonicalize_name(r.name)))]
    if not lacking:
        print("packages: all there")
        return
    too_old = [r for r in lacking if r.name in HELD and r.name in there]
    if too_old:
        raise RuntimeError(
            f"this machine is too old for the notebooks: it has "
            f"{', '.join(f'{r.name} {there[r.name]}' for r in too_old)}, and requirements.txt "
            f"asks for {', '.join(map(str, too_old))}. Other packages here rely on that version, "
            "so it stays; open the notebook on a newer machine, or in an environment made from "
            "requirements.txt as README.md shows"
        )
    before = installed(_all_names())
    pip_install(lacking, limits(before))
    importlib.invalidate_caches()
    after = installed(_all_names())
    changed = {name for name, version in before.items() if after.get(name) != version}
    stale.update(name for name in changed if _is_imported(name))
    new = [r.name for r in lacking if canonicalize_name(r.name) not in before]
    upgraded = [r.name for r in lacking if r.name not in new]
    held = [f"{name} {after[name]}" for name in HELD if name in before]
    said = {"installed": new, "upgraded": upgraded, "kept": held}
    parts = [f"{did} {', '.join(names)}" for did, names in said.items() if names]
    print("packages:", "; ".join(parts))


def needed(requirements: str) -> list[Requirement]:
    """The lines of a requirements.txt, given as text, that the notebooks cannot do without."""
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    found = [Requirement(line) for line in lines if line]
    return [r for r in found if canonicalize_name(r.name) not in NOT_NEEDED]


def is_lacking(requirement: Requirement, version: Version | None) -> bool:
    """Whether a package is missing (None) or below its range. One above its range is left alone."""
    return version is None or any(
        version < Version(bound.version)
        for bound in requirement.specifier
        if bound.operator in (">=", "==")
    )


def installed(names: Iterable[str]) -> dict[str, Version]:
    """The versions of those packages that are installed, by their normalised names."""
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError, InvalidVersion):
            found[canonicalize_name(name)] = Version(importlib.metadata.version(name))
    return found


def limits(there: dict[str, Version]) -> list[str]:
    """Lines for a constraints file: what is held stays as it is, nothing else is downgraded."""
    return [
        f"{name}=={version}" if name in HELD else f"{name}>={version.public}"
        for name, version in there.items()
    ]


def pip_install(lacking: Sequence[Requirement], constraints: Sequence[str]) -> None:
    """Install packages into this environment.

    Raises:
        RuntimeError: pip failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("\n".join(constraints), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "-c", str(file), *map(str, lacking)], capture_output=True, text=True
        )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(
            f"pip could not install {', '.join(map(str, lacking))}. It needs the network, and "
            f"leaves {', '.join(HELD)} at their versions. Its last words:\n{said}"
        )


def _all_names() -> list[str]:
    names = (found.metadata["Name"] for found in importlib.metadata.distributions())
    return [name for name in names if name]  # a removal that was cut short leaves one without


def _is_imported(package: str) -> bool:
    files = [file for file in importlib.metadata.files(package) or [] if file.suffix == ".py"]
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    return not modules.isdisjoint(sys.modules)


def first_cell(repository: str = REPOSITORY, release: str = RELEASE) -> str:
    """The source of the code cell that every notebook opens with."""
    return CELL.substitute(repository=json.dumps(repository), release=json.dumps(release))


def badge(notebook: str, repository: str = REPOSITORY, release: str = RELEASE) -> str:
    """The Markdown of a notebook's "Open in Colab" badge.

    It is empty where the repository has no address on github.com: Colab opens no other.

    Args:
        notebook: Such as "01_setup".
        repository: The repository's address.
        release: The tag of the release to open.
    """
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", repository)
    if not found:
        return ""
    link = f"{COLAB}/github/{found[1]}/blob/{release}/notebooks/{notebook}.ipynb"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({link})"


def write(root: Path = ROOT, repository: str = REPOSITORY, release: str = RELEASE) -> list[Path]:
    """Put first code cells and badges into the notebooks and README.md; returns what changed.

    Raises:
        ValueError: README.md has no row for a notebook in its table of notebooks.
    """
    import nbformat  # not up there: a Colab machine may lack it

    written = []
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8")
    text = BADGE.sub("", before)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        sign = badge(path.stem, repository, release)
        row = f"\n| [{path.stem}](notebooks/{path.name})"
        if row not in text:
            raise ValueError(f"README.md has no row for {path.name} in its table of notebooks")
        text = text.replace(row, f"{row} {sign}".rstrip())
        notebook = nbformat.read(path, as_version=4)
        if _renew(notebook, first_cell(repository, release), sign):
            nbformat.write(notebook, path)
            written.append(path)
    if text != before:
        readme.write_text(text, encoding="utf-8")
        written.append(readme)
    return written


def _renew(notebook, cell: str, sign: str) -> bool:
    """Exchange a notebook's first code cell and badge, in place; returns whether that changed it.

    Outputs do not depend on the address and the tag: where nothing else of the cell changes,
    outputs that were of the notebook's code still are.
    """
    from helpers.artifacts import code_sha256  # not up there, for the same reason

    intro = notebook.cells[0]
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    before = (intro.source, code.source)
    stamp = notebook.metadata.get("matryoshka", {})
    keep = LITERALS.sub("", code.source) == LITERALS.sub("", cell)
    keep = keep and stamp.get("code_sha256") == code_sha256(notebook)
    intro.source = f"{BADGE.sub('', intro.source)}\n\n{sign}".rstrip()
    code.source = cell
    if keep:
        stamp["code_sha256"] = code_sha256(notebook)
    return before != (intro.source, code.source)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.colab", description=__doc__)
    parser.parse_args(arguments)
    try:
        for path in write():
            print(path.relative_to(ROOT))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
