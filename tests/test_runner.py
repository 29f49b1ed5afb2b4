"""The runner: parameters are checked first, nothing hangs, nothing is lost, nothing reaches the network."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nbformat
import pytest
from build_notebook import PARAMETERS, code, notebook, parameters, printed, prose, shown
from hypothesis import given
from hypothesis import strategies as st

from medvlp_kit import notebook as documents
from medvlp_kit import runner, webpage
from medvlp_kit.errors import KitError
from medvlp_kit.kernel import is_local

GOOD = notebook(
    prose("# 00. Good\n\nA formula $\\frac{a}{b}$ and $$L = -\\sum_i \\log p_i$$ and `code $x$`."),
    parameters(PARAMETERS + "\nscale = 1.0"),
    "import os\nprint(budget, os.environ['MEDVLP_BUDGET'], seed, scale, 'MEDVLP_DATA' in os.environ)",
    "import sys\nprint('a real warning', file=sys.stderr)",
    "import socket, time\nfrom tqdm import tqdm\nfor _ in tqdm(range(3)):\n    time.sleep(0.15)",
    "import http.server\n"
    "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
    "socket.create_connection(server.server_address).close()\nserver.server_close()",
    "object()",
    "from medvlp_kit import figures\n"
    "fig, ax = figures.new()\nax.plot([1, 2])\n"
    "figures.show(fig, alt='A line that rises from one to two', caption='Line')",
    code("import pandas\nfigures.table(pandas.DataFrame({'AUROC': [0.91234]}), caption='Zero-shot')", tags=("result",)),
    "import ipywidgets\nipywidgets.HTML('<b>hello</b>')",
)
BLOCKED = "print('so far')\nimport time\nwhile True:\n    time.sleep(1)"
SWALLOWED = """
import socket
try:
    socket.create_connection(("hub.example.org", 80), timeout=1)
except Exception as error:
    print("caught")
"""
HIDDEN = """
from ipywidgets import IntSlider, interactive_output
from IPython.display import display
def show(x):
    raise ValueError("hidden")
display(interactive_output(show, {"x": IntSlider()}))
"""


def written(document, folder: Path, name: str = "lesson.ipynb") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, folder / name)
    return folder / name


def texts(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good lesson, run twice in place, on a machine whose registered python3 kernel is broken."""
    folder = tmp_path_factory.mktemp("good")
    kernels = folder / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    broken = {"argv": ["/bin/false"], "display_name": "broken", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(broken))
    path = written(GOOD, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("MEDVLP_DATA", str(folder))
        patch.setenv("MEDVLP_BUDGET", "gpu")  # the one asked for counts
        first = runner.run(path, budget="tiny", out=folder / "runs", in_place=True, progress=True)
        kept = path.read_text(encoding="utf-8")
        runner.run(path, budget="tiny", out=folder / "again", in_place=True, html=False).check()
    return first, path, kept


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocked")
    path = written(notebook(parameters(), "1 + 1", BLOCKED, "2 + 2"), folder)
    started = time.perf_counter()
    result = runner.run(path, budget="tiny", out=folder / "runs", timeout=2)
    return result, time.perf_counter() - started


def test_good_run_passes_and_leaves_copy_page_and_log(good):
    result, _, _ = good
    assert result.check() is result and result.failure is None
    for path in (result.notebook, result.html, result.log):
        assert path.is_file() and path.name.startswith("lesson-tiny")
    assert 0 < result.seconds < 120 and 20 < result.peak_memory_mb < 4_000
    assert result.tables == ("Zero-shot\nAUROC\n0.912",)


def test_budget_reaches_the_notebook_both_ways_and_real_data_do_not_reach_a_committed_one(good):
    result, path, _ = good
    for document in (documents.read(result.notebook), documents.read(path)):
        cell = next(cell for cell in documents.code_cells(document) if "MEDVLP_BUDGET" in cell.source)
        assert texts(cell).split() == ["tiny", "tiny", "0", "1.0", "False"]


def test_terminal_log_has_one_line_a_cell_and_stderr(good):
    log = good[0].log.read_text(encoding="utf-8")
    assert sum(line.startswith("[") and line.rstrip().endswith(" s") for line in log.splitlines()) >= 7
    assert "a real warning" in log and "import socket, time" in log


def test_committed_copy_keeps_results_and_drops_noise(good):
    result, path, _ = good
    document = documents.read(path)
    cells = documents.code_cells(document)
    assert [cell.source for cell in document.cells] == [cell.source for cell in GOOD.cells]
    assert texts(cells[2]) == "a real warning\n"
    assert cells[3].outputs == []  # the progress bar
    assert "0x…" in cells[5].outputs[0].data["text/plain"]
    assert cells[8].outputs == [] and "widgets" not in document.metadata
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "papermill" not in path.read_text() and str(path.parent) not in path.read_text()
    record = document.metadata["medvlp"]
    assert record["budget"] == "tiny" and record["code_hash"] == documents.code_hash(GOOD)
    assert "torch" in record["packages"] and record["seconds"] > 0 and record["peak_memory_mb"] > 0


def test_a_second_run_changes_nothing_but_what_it_took(good):
    _, path, kept = good
    first, second = json.loads(kept), json.loads(path.read_text())
    for one in (first, second):
        for name in ("seconds", "peak_memory_mb"):
            del one["metadata"]["medvlp"][name]
    assert first == second


def test_page_needs_no_network(good):
    page = good[0].html.read_text(encoding="utf-8")
    assert webpage.FETCH.search(page) is None and "<script" not in page
    assert page.count("<math") == 2 and "code $x$" in page
    assert 'alt="A line that rises from one to two"' in page and "data:image/png;base64," in page
    assert "<title>lesson</title>" in page


def test_fetch_pattern_finds_what_the_stock_page_loads():
    from nbconvert import HTMLExporter

    assert webpage.FETCH.search(HTMLExporter().from_notebook_node(notebook("1"))[0])
    assert webpage.FETCH.search('<link rel="stylesheet" href="//fonts.example.org/a.css">')
    assert not webpage.FETCH.search('<a href="https://example.org">survey</a>')


def test_a_formula_that_cannot_be_read_stays_as_source():
    assert "<math" in webpage.mathml("x_i", display="inline")
    assert webpage.mathml(r"\begin{unknown} <", display="inline").startswith(("<code>", "<math"))


def test_blocked_cell_ends_with_its_source_quoted(blocked):
    result, seconds = blocked
    assert seconds < 60
    assert result.failure.kind == "timeout" and not result.ok
    assert "while True:" in result.problems[0] and "after 2 s" in result.problems[0]
    with pytest.raises(AssertionError, match="while True:"):
        result.check()


def test_blocked_notebook_is_not_lost(blocked):
    document = documents.read(blocked[0].notebook)
    cells = documents.code_cells(document)
    assert cells[1].outputs[0].data["text/plain"] == "2"
    assert texts(cells[2]) == "so far\n" and cells[2].outputs[-1].output_type == "error"
    assert cells[3].outputs == [] and blocked[0].html.is_file()
    assert [one.rule for one in blocked[0].findings] == []  # the failure is told once


def test_kernel_death_is_named_and_the_file_left_alone(tmp_path):
    path = written(notebook(parameters(), "import os\nos._exit(9)", "2 + 2"), tmp_path)
    before = path.read_bytes()
    result = runner.run(path, budget="tiny", out=tmp_path / "runs", html=False, in_place=True)
    assert result.failure.kind == "kernel died" and "os._exit" in str(result.failure)
    assert path.read_bytes() == before


def test_swallowed_network_use_hidden_error_and_wrong_cell_are_all_found(tmp_path):
    path = written(notebook(parameters(), SWALLOWED, HIDDEN, "1 / 0", "print('never')"), tmp_path)
    before = path.read_bytes()
    result = runner.run(path, budget="tiny", out=tmp_path / "runs", html=False, in_place=True)
    assert result.failure.kind == "error" and "ZeroDivisionError" in str(result.failure)
    assert {one.rule for one in result.findings} == {"network use", "error in widget state", "banned call"}
    assert any("hub.example.org" in problem for problem in result.problems)
    cells = documents.code_cells(documents.read(result.notebook))
    assert texts(cells[1]) == "caught\n" and cells[4].outputs == []
    assert path.read_bytes() == before and not list(tmp_path.glob(".*.partial"))


# ---------------------------------------------------------------- before anything runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "lapto"}, "unknown budget 'lapto': did you mean 'laptop'"),
        ({"parameters": {"sed": 1}}, "unknown parameter 'sed': did you mean 'seed'"),
        ({"parameters": {"seed": "1"}}, "'seed' needs a value of type int"),
        ({"parameters": {"seed": True}}, "not bool"),
        ({"parameters": {"seed": 1.0}}, "not float"),
        ({"parameters": {"scale": "x"}}, "'scale' needs a value of type float"),
        ({"parameters": {"scale": True}}, "not bool"),
        ({"parameters": {"budget": "gpu"}}, "two budgets"),
        ({"parameters": {"seed": 1}, "in_place": True}, "in_place"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(tmp_path, options, message):
    path = written(notebook(parameters(PARAMETERS + "\nscale = 1.0"), "open('ran', 'w')"), tmp_path)
    with pytest.raises(KitError, match=message):
        runner.run(path, **{"budget": "tiny", "out": tmp_path / "runs", **options})
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (notebook("1"), "0 cells tagged 'parameters'"),
        (notebook(parameters(), parameters()), "2 cells tagged 'parameters'"),
        (notebook(parameters("seed = 0")), "has no 'budget'"),
        (notebook(parameters("budget = None\nx = f()")), "may hold only 'name = literal' lines"),
    ],
)
def test_notebooks_without_sound_parameters_are_refused(tmp_path, document, message):
    with pytest.raises(KitError, match=message):
        runner.run(written(document, tmp_path), budget="tiny", out=tmp_path / "runs")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(KitError, match="no notebook at"):
        runner.run(tmp_path / "none.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(KitError, match="not a readable notebook"):
        runner.run(tmp_path / "broken.ipynb")


DEFAULTS = {"budget": None, "seed": 0, "scale": 1.0, "name": "a", "fast": True, "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("given_text", "value"),
    [
        ("seed=3", 3), ("scale=2", 2), ("scale=0.5", 0.5), ("name=3", "3"), ("name=a=b", "a=b"), ("name=", ""),
        ("fast=false", False), ("fast=True", True), ("sizes=[3, 4]", [3, 4]), ("budget=tiny", "tiny"),
    ],
)  # fmt: skip
def test_command_line_values_take_the_type_of_the_default(given_text, value):
    [(_, parsed)] = documents.parse_parameters([given_text], DEFAULTS).items()
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", "seed=x seed=1.5 fast=1 scale=wide sizes=3 seed none=1 seed=true".split())
def test_command_line_values_of_another_type_are_refused(text):
    with pytest.raises(KitError, match="parameter"):
        documents.parse_parameters([text], DEFAULTS)


def test_a_parameter_is_given_once():
    with pytest.raises(KitError, match="twice"):
        documents.parse_parameters(["seed=1", "seed=2"], DEFAULTS)


# ---------------------------------------------------------------- documents


def test_outputs_go_stale_with_code_but_not_with_prose():
    document = notebook(prose("Text"), parameters(), "print(1)")
    document.metadata["medvlp"] = {"code_hash": documents.code_hash(document), "budget": "laptop"}
    assert documents.stale(document) == ""
    document.cells[0].source = "Other text"
    document.cells[2].source += "  "
    assert documents.stale(document) == ""
    document.cells[2].source = "print(2)"
    assert "changed" in documents.stale(document)
    assert "never run" in documents.stale(notebook("1"))
    document.metadata["medvlp"] = {"code_hash": documents.code_hash(document), "budget": "tiny"}
    assert "tiny" in documents.stale(document)
    document.metadata["medvlp"]["budget"] = "laptop"
    document.cells[2].execution_count = None
    assert "no outputs" in documents.stale(document)


def test_hash_sees_where_one_cell_ends():
    assert documents.code_hash(notebook("a", "b")) != documents.code_hash(notebook("a\nb"))
    assert documents.code_hash(notebook("a", "b")) != documents.code_hash(notebook("b", "a"))


@given(st.lists(st.text(alphabet="ab0x12345678\r\n%| [:,<]it/s", max_size=40), max_size=4))
def test_publishing_twice_changes_nothing(lines):
    outputs = [*(printed(line, name="stderr") for line in lines), shown(text_plain="a")]
    document = notebook(parameters(), code("f()", *outputs))
    once = documents.publishable(document)
    assert documents.publishable(once) == once


def test_tidy_keeps_the_last_state_of_a_progress_bar_and_every_warning():
    text = "\r  0%|    | 0/2\r100%|████| 2/2 [00:01<00:00]\nUserWarning: 5% of rows | dropped\n"
    document = notebook(code("f()", printed(text, name="stderr")))
    assert texts(documents.tidy(document).cells[0]).startswith("100%|")
    assert texts(documents.publishable(document).cells[0]) == "UserWarning: 5% of rows | dropped\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "", None, "0.0.0.0", 5, b"/run/x.sock"])
def test_this_machine_is_local(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "192.168.1.5", "8.8.8.8", "2001:db8::1", b"example.org"])
def test_other_machines_are_not(host):
    assert not is_local(host)
