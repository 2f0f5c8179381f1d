"""The ground the project stands on: pins, extras, the conda environment, the Makefile's words and the licence."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
GROUND = ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run", ".gitignore")
# What a wheel of torch for another device brings is pinned by torch itself.
OF_THE_DEVICE = re.compile(r"nvidia-|cuda-|triton|intel-|pytorch-triton")

ENVIRONMENT_OF_ITS_OWN = {"lmms_eval"}
"""Imported by a plugin that the package itself imports; as an extra it would bring torchvision."""


def declared(*extras: str) -> list[Requirement]:
    """The requirements of the project with these extras."""
    return [Requirement(word) for word in [*PROJECT["dependencies"], *(w for extra in extras for w in EXTRAS[extra])]]


def pin_lines() -> list[str]:
    """The lines of constraints.txt that are not comments."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """{distribution: version} of constraints.txt."""
    return {name: version for name, _, version in (line.partition("==") for line in pin_lines())}


def needed() -> dict[str, str]:
    """{distribution: installed version} of everything the project and the Makefile's extras need, direct or not."""
    waiting, seen = declared("demo", "serve", "test", "lint"), set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for inner in map(Requirement, metadata.requires(requirement.name) or []):
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                waiting.append(inner)
    return {name: metadata.version(name) for name, _ in seen}


def third_party_imports() -> Iterator[tuple[Path, str]]:
    """(file, top-level module) of every import in the packages that is neither theirs nor the standard library's."""
    own = {"fvl_lightning", "datamodules", *ENVIRONMENT_OF_ITS_OWN, *sys.stdlib_module_names}
    for path in [*(ROOT / "fvl_lightning").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            yield from ((path, module.split(".")[0]) for module in modules if module.split(".")[0] not in own)


def test_pins_are_exact_sorted_and_not_of_one_build() -> None:
    for line in pin_lines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
    assert pin_lines() == sorted(pin_lines())
    assert len(pins()) == len(pin_lines())


def test_every_needed_distribution_is_pinned_at_the_version_in_use() -> None:
    in_use = {name: Version(version).public for name, version in needed().items() if not OF_THE_DEVICE.match(name)}
    assert in_use == {name: pins().get(name) for name in in_use}


def test_pins_satisfy_what_is_declared() -> None:
    for requirement in declared(*EXTRAS):
        version = pins().get(canonicalize_name(requirement.name))
        if requirement in declared("demo", "serve", "test", "lint"):
            assert version is not None, f"constraints.txt has no pin for {requirement}"
        assert version is None or requirement.specifier.contains(version), f"{requirement}, pinned at {version}"


def test_what_is_imported_is_declared() -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared(*EXTRAS.keys() - {"test", "lint"})}
    distributions = metadata.packages_distributions()
    undeclared = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in third_party_imports()
        if names.isdisjoint(map(canonicalize_name, distributions.get(module, [module])))  # an extra may be left out
    ]
    assert not undeclared


def test_torchvision_is_neither_installed_nor_asked_for() -> None:
    assert importlib.util.find_spec("torchvision") is None, "torchmetrics fails beside one that does not match"
    assert "torchvision" not in pins()
    assert all(requirement.name != "torchvision" for requirement in declared(*EXTRAS))


def test_the_conda_environment_is_in_step_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    python, installer, pip = environment["dependencies"]
    assert installer == "pip"
    minimum = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"])
    assert minimum is not None
    assert python == f"python={minimum[1]}"
    constraints, project = pip["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", project)
    assert extras is not None
    assert extras[1] == makefile_extras()
    assert set(extras[1].split(",")) <= set(EXTRAS)


def makefile_extras() -> str:
    """The extras that `make` installs."""
    found = re.search(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_tools_are_set_to_the_oldest_python() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    oldest = tools["mypy"]["python_version"]
    assert tools["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert SpecifierSet(PROJECT["requires-python"]).contains(oldest)


def make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What `make` with these words says."""
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False)


def test_make_help_names_every_target_and_is_the_default() -> None:
    listed = make("--no-print-directory").stdout
    assert re.findall(r"^make (\S+) +\S", listed, re.MULTILINE) == [
        "help", "demo", "test", "test-slow", "test-lmms", "lint", "ui",
    ]  # fmt: skip
    assert listed == make("--no-print-directory", "help").stdout


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", ".venv/bin/fvl demo"),
        ("test", '.venv/bin/python -m pytest -m "not slow"'),
        ("test-slow", ".venv/bin/python -m pytest -m slow"),
        ("lint", ".venv/bin/ruff check ."),
        ("lint", ".venv/bin/mypy"),
        ("lint", "torchvision is installed"),
        ("ui", ".venv/bin/fvl ui"),
    ],
)
def test_a_target_sets_up_and_runs(target: str, command: str) -> None:
    shown = make("-n", "--always-make", target)
    assert shown.returncode == 0, shown.stderr
    places = [shown.stdout.find(part) for part in ("grep '^torch=='", '-e ".[demo,serve,test,lint]"', command)]
    assert -1 not in places
    assert places == sorted(places)


def test_lmms_eval_has_an_environment_of_its_own() -> None:
    shown = make("-n", "--always-make", "test-lmms").stdout
    folder = ROOT / "tests" / "lmms"
    installed = ("-r tests/lmms/requirements.txt", "--no-deps -r tests/lmms/requirements-no-deps.txt")
    parts = (*installed, "pytest --noconftest tests/lmms")
    places = [shown.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    wanted = [*(folder / "requirements.txt").open(), *(folder / "requirements-no-deps.txt").open()]
    assert all(re.fullmatch(r"[a-z0-9_-]+==[\d.]+", line.strip()) for line in wanted if not line.startswith("#"))
    assert "torchvision" not in {line.partition("==")[0] for line in wanted}


def test_a_set_up_does_not_go_ahead_with_an_old_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    done = make("lint", "PYTHON=false", folder=tmp_path)
    assert done.returncode != 0
    assert "fvl-lightning needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_gate_runs_the_tests_and_the_linters() -> None:
    gate = ROOT / ".ci" / "run"
    assert gate.stat().st_mode & 0o111, ".ci/run is not executable"
    lines = gate.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make")] == ["make test", "make lint"]


def test_the_licence_is_the_one_named() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert re.search(r"Copyright \d{4} the fvl_lightning authors", text)


@pytest.mark.parametrize("name", GROUND)
def test_no_registry_and_no_path_of_one_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|index-url|find-links|/(work|opt|root|home|tmp)/", text)
