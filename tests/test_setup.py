"""pyproject, constraints, environment.yml, Makefile and .ci/run say the same thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from medvlp_kit.course import contract

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along on Python 3.10
    import tomli as tomllib

FILES = ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run", "README.md", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository) -> dict[str, list[Requirement]]:
    """Exact versions by normalised name; a package may have one for each Python version."""
    found: dict[str, list[Requirement]] = {}
    for line in (repository / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin = Requirement(line)
            found.setdefault(normal(pin.name), []).append(pin)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(project: dict, *extras: str) -> list[Requirement]:
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def test_constraints_are_exact_versions(pins):
    for name, lines in pins.items():
        for pin in lines:
            assert re.fullmatch(r"==[\w.+!]+", str(pin.specifier)), f"{name} is not pinned exactly"
            assert "+" not in str(pin.specifier), f"{name} names a local build that PyPI does not have"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_a_pin_above_its_floor(project, pins, python):
    for requirement in wanted(project, "test", "dicom"):
        surroundings = {"python_version": python, "python_full_version": f"{python}.0"}
        fitting = [
            pin for pin in pins.get(normal(requirement.name), [])
            if pin.marker is None or pin.marker.evaluate(surroundings)
        ]  # fmt: skip
        assert fitting, f"constraints.txt has no {requirement.name} for Python {python}"
        for pin in fitting:
            assert Version(next(iter(pin.specifier)).version) in requirement.specifier


def test_requirements_are_floors_only(project):
    for requirement in wanted(project, *project["optional-dependencies"]):
        assert [one.operator for one in requirement.specifier] == [">="], f"{requirement} is not a floor"


def test_environment_is_in_step(repository, project):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    [version] = [line.split("=")[1] for line in environment["dependencies"] if str(line).startswith("python=")]
    assert Version(version) in SpecifierSet(project["requires-python"])
    [through_pip] = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    extras = re.search(r"-e '\.\[([\w,]+)\]'", (repository / "Makefile").read_text())[1]
    assert through_pip == ["--constraint constraints.txt", f"--editable .[{extras}]"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", FILES)
def test_no_index_address_anywhere(repository, name):
    text = (repository / name).read_text()
    assert not re.search(r"index-url|extra-index|find-links|trusted-host|/simple\b|download\.pytorch", text)


def test_make_lists_the_promised_targets(repository):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make (\w+)", shown)) >= {"tour", "test", "lab", "bench", "notebooks", "help", "clean"}


@pytest.mark.parametrize("target", ["tour", "test", "lab", "bench", "notebooks"])
def test_each_target_installs_first(repository, tmp_path, target):
    """In a checkout without .venv, make would create it, install under the constraints, and fall back to pip."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    command = ["make", "--dry-run", target]
    plan = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    steps = [plan.index(step) for step in ("-m venv .venv", "pip install --quiet", "-m uv pip install", "touch .venv")]
    assert steps == sorted(steps)
    assert plan.count("-c constraints.txt -e '.[test,dicom,explore,faiss]'") == 2  # uv, and pip in its place


def test_make_bench_finds_every_benchmark(repository):
    """pytest passes by files that are not named test_*.py unless they are named one by one."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    plan = subprocess.run(["make", "--dry-run", "bench"], cwd=repository, capture_output=True, text=True, check=True)
    [arguments] = re.findall(r"-m pytest (.*)", plan.stdout)
    command = f"{sys.executable} -m pytest {arguments} --collect-only --quiet"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # not as a worker of xdist
    ended = subprocess.run(command, shell=True, cwd=repository, env=alone, capture_output=True, text=True)
    found = ended.stdout
    files = {path.name for path in (repository / "tests" / "benchmarks").glob("*.py")}
    assert files and set(re.findall(r"(\w+\.py)::test_", found)) == files, found + ended.stderr


def test_an_old_python_is_refused_in_one_line(repository, tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ended = subprocess.run(["make", f"PYTHON={old}", "tour"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode and "is older than 3.10" in ended.stdout and not (tmp_path / ".venv").exists()


def test_ci_runs_the_suite_on_real_studies(repository):
    script = repository / ".ci" / "run"
    text = script.read_text()
    assert os.access(script, os.X_OK) and "set -euo pipefail" in text
    assert "../shared/data" in text and text.rstrip().endswith("make test")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_citation_names_the_survey(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    survey = citation["references"][0]
    assert survey["title"] == "Medical Vision Language Pretraining: A survey" and len(survey["authors"]) == 5
    assert survey["identifiers"][0]["value"] == "arXiv:2312.06224"


def test_version_is_said_once(repository, project):
    import medvlp_kit

    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert project["version"] == medvlp_kit.__version__ == str(citation["version"])


def test_licence_covers_code_and_text(repository):
    text = (repository / "LICENSE").read_text()
    for words in ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "CC BY 4.0"):
        assert words in text


def test_readme_leads_to_what_exists(repository):
    text = (repository / "README.md").read_text()
    assert "make tour" in text and "make lab" in text and "2312.06224" in text
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        if target.startswith("notebooks/") and Path(target).stem not in contract.EXPECTED:
            continue
        assert (repository / target).exists(), f"README points to {target}"
    for alt in re.findall(r"!\[([^\]]*)\]", text):
        assert len(alt) >= 20
