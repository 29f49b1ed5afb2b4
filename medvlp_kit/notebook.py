"""A notebook as a document: its parameters, the hash of its code, whether its outputs are stale, and a clean copy."""

from __future__ import annotations

import ast
import copy
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import KitError, unknown

if TYPE_CHECKING:
    from nbformat import NotebookNode

INJECTED = "injected-parameters"  # papermill's tag on the cell it adds
ERROR_MARKER = "papermill-error-cell-tag"
KEPT_METADATA = ("tags", "jupyter", "nbgrader", "slideshow", "editable", "deletable")
PROGRESS_BAR = re.compile(r"^.*(\d+%\|.*\||\d+it \[|\[\d+:\d\d(:\d\d)?[<,]).*$")  # what tqdm leaves on stderr
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,16}\b")  # where an object lay in memory: different in every run
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def read(path: str | os.PathLike) -> NotebookNode:
    """The notebook at `path`; KitError when there is none or it is not one."""
    import nbformat

    path = Path(path)
    if not path.is_file():
        raise KitError(f"no notebook at {path}: give the path of an .ipynb file")
    try:
        document = nbformat.read(path, as_version=4)
        nbformat.validate(document)
    except Exception as error:  # nbformat raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KitError(f"{path} is not a readable notebook ({reason}): open and save it in JupyterLab") from None
    return document


def write(document: NotebookNode, path: str | os.PathLike) -> None:
    """Write atomically: the old file stays until the new one is whole."""
    import nbformat

    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        nbformat.write(document, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def code_cells(document: NotebookNode) -> list[NotebookNode]:
    """The author's code cells, without what papermill injected."""
    return [cell for cell in document.cells if cell.cell_type == "code" and INJECTED not in tags(cell)]


# ---------------------------------------------------------------- parameters


def parameters(document: NotebookNode, *, name: str = "the notebook") -> dict[str, Any]:
    """Names and default values from the cell tagged `parameters`.

    KitError unless there is exactly one such cell and it holds nothing but ``name = literal`` lines: then a parameter
    can be checked before anything runs, and cannot be overwritten afterwards in silence.
    """
    cells = [cell for cell in code_cells(document) if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise KitError(f"{name} has {len(cells)} cells tagged 'parameters': tag exactly one")
    defaults: dict[str, Any] = {}
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise KitError(f"the parameters cell of {name} is not Python (line {error.lineno}): mend it") from None
    for statement in statements:
        target, value = _assignment(statement)
        if target is None and isinstance(value, ast.Constant) and isinstance(value.value, str):
            continue  # a docstring
        try:
            if target is None:
                raise ValueError
            defaults[target] = ast.literal_eval(value)
        except ValueError:
            line = ast.unparse(statement).splitlines()[0]
            message = f"the parameters cell of {name} may hold only 'name = literal' lines, not {line!r}"
            raise KitError(message) from None
    return defaults


def _assignment(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return statement.target.id, statement.value
    return None, getattr(statement, "value", None)


def check_parameters(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given`, each value checked against the type of its default. KitError for an unknown name or a wrong type."""
    for name, value in given.items():
        if name not in defaults:
            raise unknown("parameter", name, defaults)
        default = defaults[name]
        if default is None or value is None and default is None:
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if type(value) is not type(default):
            kinds = f"{type(default).__name__} (its default is {default!r}), not {type(value).__name__} {value!r}"
            raise KitError(f"parameter {name!r} needs a value of type {kinds}")
    return dict(given)


def parse_parameters(texts: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """``["epochs=2"]`` from a command line, each value read as the type of its default."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise KitError(f"parameter {text!r} has no value: write name=value")
        if name not in defaults:
            raise unknown("parameter", name, defaults)
        if name in values:
            raise KitError(f"parameter {name!r} is given twice: give it once")
        values[name] = value if isinstance(defaults[name], str) else _literal(name, value, defaults[name])
    return check_parameters(values, defaults)


def _literal(name: str, text: str, default: Any) -> Any:
    text = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if default is None:
            return text
        raise KitError(f"parameter {name!r} needs a value of type {type(default).__name__}, not {text!r}") from None


# ---------------------------------------------------------------- hash, staleness, clean copy


def code_hash(document: NotebookNode) -> str:
    """The hash of the author's code cells; prose may change without running a lesson again."""
    sources = [cell.source.rstrip() for cell in code_cells(document)]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def stale(document: NotebookNode) -> str:
    """Why the committed outputs do not belong to the code; empty when they do."""
    record = document.metadata.get("medvlp", {})
    if "code_hash" not in record:
        return "it was never run by medvlp run --in-place"
    if record["code_hash"] != code_hash(document):
        return "its code cells changed after the outputs were made"
    if record.get("budget") != "laptop":
        return f"its outputs are of the {record.get('budget')} budget, not laptop"
    if any(cell.source.strip() and cell.execution_count is None for cell in code_cells(document)):
        return "some code cells have no outputs"
    return ""


def tidy(document: NotebookNode) -> NotebookNode:
    """A copy without papermill's bookkeeping (paths and dates); of a progress bar only the last state stays."""
    document = copy.deepcopy(document)
    document.cells = [cell for cell in document.cells if ERROR_MARKER not in tags(cell)]
    document.metadata.pop("papermill", None)
    for cell in document.cells:
        cell.metadata.pop("papermill", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n"))
    return document


def publishable(document: NotebookNode) -> NotebookNode:
    """A copy fit to be committed: nothing in it changes from one run to the next unless a result did.

    Injected parameters, execution times, progress bars, memory addresses and widget views go; code, results, figures,
    printed text and real warnings stay.
    """
    document = tidy(document)
    document.cells = [cell for cell in document.cells if INJECTED not in tags(cell)]
    document.metadata.pop("widgets", None)  # a stored widget does not come back to life; its static picture does
    document.metadata.kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    document.metadata.language_info = {"name": "python"}
    count = 0
    for cell in document.cells:
        for key in set(cell.metadata) - set(KEPT_METADATA):
            del cell.metadata[key]
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell.execution_count = count if cell.source.strip() else None
        cell.outputs = [output for output in map(_quiet, cell.outputs) if output is not None]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return document


def _quiet(output: NotebookNode) -> NotebookNode | None:
    """One output without noise; None when it was nothing but noise."""
    if output.output_type == "stream":
        lines = output.text.split("\n")
        if output.name == "stderr":
            lines = [line for line in lines if not PROGRESS_BAR.match(line)]
        output.text = ADDRESS.sub("0x…", "\n".join(lines))
        return output if output.text.strip() else None
    if WIDGET_VIEW in output.get("data", {}):
        return None
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = ADDRESS.sub("0x…", output.data["text/plain"])
    return output
