"""The command line: thin, honest about errors, and with the right exit codes."""

from __future__ import annotations

import re
import sys

import pytest
from build_notebook import code, lesson, notebook, parameters
from nbformat import write
from typer.testing import CliRunner

from medvlp_kit import cli, doctor, runner
from medvlp_kit import notebook as documents
from medvlp_kit.budget import BUDGETS
from medvlp_kit.errors import KitError


def called(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `medvlp ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "--recipe", "convrt"), "unknown recipe 'convrt': did you mean 'convirt'?"),
        (("pretrain", "--budget", "huge"), "unknown budget 'huge'"),
        (("pretrain", "--data", "mimic"), "unknown data set 'mimic'"),
        (("pretrain", "--data", "vqa-rad"), "root"),
        (("pretrain", "--data", "vqa-rad", "--manifest", "m.csv"), "choose one"),
        (("pretrain", "--manifest", "no/such.csv", "--budget", "tiny"), "no/such.csv"),
        (("evaluate", "no/run"), "holds no run"),
        (("evaluate", "no/run.pt"), "pickle"),
        (("evaluate", "x", "--manifest", "m.csv", "--data", "vqa-rad"), "leave out --data"),
        (("run", "no.ipynb"), "no notebook at no.ipynb"),
        (("data", "check", "no/folder"), "no/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = called(capsys, *arguments)
    assert status == 2 and err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert not list(tmp_path.rglob("*"))  # nothing half-written


@pytest.mark.parametrize("arguments", [("--debug", "run", "no.ipynb"), ("run", "no.ipynb", "--debug")])
def test_debug_shows_where_it_came_from(arguments):
    with pytest.raises(KitError, match="no notebook"):
        cli.main(list(arguments))


def test_a_wrong_parameter_on_the_command_line(capsys, tmp_path):
    write(lesson(), tmp_path / "a.ipynb")
    for text, message in (("sed=1", "did you mean 'seed'"), ("seed=x", "type int"), ("seed", "name=value")):
        status, _, err = called(capsys, "run", tmp_path / "a.ipynb", "-p", text, "--out", tmp_path / "runs")
        assert status == 2 and message in err
    assert not (tmp_path / "runs").exists()


def test_run_prints_table_page_and_problems(capsys, tmp_path, monkeypatch):
    asked = {}

    def fake(path, **options):
        asked.update(options, path=path)
        fault = runner.Failure("timeout", 3, "while True:\n    pass", "the cell was stopped after 2 s")
        page = tmp_path / "runs" / "a-tiny.html"
        return runner.RunResult(page.with_suffix(".ipynb"), page, page, "tiny", 61.0, 512, fault, (), ("AUROC 0.93",))

    monkeypatch.setattr(runner, "run", fake)
    monkeypatch.chdir(tmp_path)
    write(lesson(), tmp_path / "a.ipynb")
    status, out, err = called(capsys, "run", "a.ipynb", "-b", "tiny", "-p", "seed=3", "--timeout", "5", "--slack", "2")
    assert status == 1
    assert "AUROC 0.93" in out and "HTML page: runs/a-tiny.html" in out and "512 MB" in out
    assert "problem: cell 3: timeout" in err and "while True:" in err
    assert asked["budget"] == "tiny" and asked["parameters"] == {"seed": 3} and asked["timeout"] == 5
    assert asked["slack"] == 2


def test_stale_leaves_out_what_is_up_to_date(capsys, tmp_path, monkeypatch):
    ran = []
    page = tmp_path / "x"
    result = runner.RunResult(page, None, page, "laptop", 1.0, 1)
    monkeypatch.setattr(runner, "run", lambda path, **options: ran.append(path.name) or result)
    fresh, old = lesson(), notebook(parameters(), code("1"))
    fresh.metadata["medvlp"] = {"code_hash": documents.code_hash(fresh), "budget": "laptop"}
    write(fresh, tmp_path / "fresh.ipynb")
    write(old, tmp_path / "old.ipynb")
    status, out, _ = called(capsys, "run", "--stale", tmp_path / "fresh.ipynb", tmp_path / "old.ipynb")
    assert status == 0 and ran == ["old.ipynb"] and "up to date" in out and "never run" in out


@pytest.mark.slow
def test_pretrain_then_evaluate(capsys, tmp_path):
    command = ("pretrain", "--budget", "tiny", "--train-studies", "16", "--epochs", "1", "--out", tmp_path / "run")
    status, out, _ = called(capsys, *command, "--seed", "3")
    assert status == 0 and "convirt on 16 studies of phantoms" in out and "(1 steps)" in out and "--epochs" in out
    assert '"seed": 3' in (tmp_path / "run" / "run.json").read_text()
    assert called(capsys, *command)[0] == 2  # the folder holds a run already
    status, out, _ = called(capsys, "evaluate", tmp_path / "run", "--task", "zero_shot")
    assert status == 0 and "AUROC" in out and "control" in out


def test_lists(capsys):
    status, out, _ = called(capsys, "budgets")
    assert status == 0 and all(name in out for name in BUDGETS) and "train_studies" in out
    status, out, _ = called(capsys, "recipes")
    assert status == 0 and "convirt" in out
    status, out, _ = called(capsys, "data", "list")
    assert status == 0 and all(name in out for name in ("phantoms", "covid-chestxray", "vqa-rad", "manifest"))


def test_every_command_has_help_without_jargon():
    result = CliRunner().invoke(cli.app, ["--help"])
    names = re.findall(r"^  (\w+) ", result.output.split("Commands:")[1], re.M)
    assert set(names) >= {"run", "pretrain", "evaluate", "data", "doctor", "lab", "recipes", "budgets"}
    for name in names:
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0


def test_lab_starts_the_jupyterlab_of_this_environment(capsys, monkeypatch, tmp_path):
    import subprocess

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(subprocess, "call", lambda command: asked.append(command) or 0)
    assert called(capsys, "lab", "--no-browser")[0] == 0
    assert asked == [[sys.executable, "-m", "jupyterlab", "notebooks", "--no-browser"]]


# ---------------------------------------------------------------- doctor


def test_doctor_finds_nothing_missing_here(capsys, monkeypatch):
    monkeypatch.delenv("MEDVLP_DATA", raising=False)
    status, out, _ = called(capsys, "doctor")
    assert status == 0 and "Nothing is missing." in out
    for word in ("python", "torch", "device", "widgets in JupyterLab", "cores", "disk", "chromium", "MEDVLP_DATA"):
        assert word in out


def test_doctor_says_what_is_missing_and_how_to_mend_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVLP_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [doctor.package("no-such-thing", ">=1")], doctor.data))
    status, out, _ = called(capsys, "doctor")
    assert status == 1 and out.count("mend: ") == 2 and "2 to mend" in out
    assert "run: pip install -c constraints.txt 'no-such-thing>=1'" in out


@pytest.mark.parametrize(("name", "specifier", "state"), [
    ("typer", ">=0.1", doctor.OK), ("typer", ">=99", doctor.MISSING), ("no-such-thing", "", doctor.MISSING),
])  # fmt: skip
def test_versions_are_held_against_their_floors(name, specifier, state):
    assert doctor.package(name, specifier).state == state


@pytest.mark.parametrize(("kernel", "page", "fits"), [
    ("8.1.9", "3.0.17", True), ("7.8.1", "1.1.11", True), ("8.1.9", "1.1.11", False), ("7.8.1", "3.0.17", False),
])  # fmt: skip
def test_halves_of_the_widgets_belong_together(kernel, page, fits):
    assert doctor.paired(kernel, page) is fits
