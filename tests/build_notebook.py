"""Notebooks made for tests: single cells, and a whole lesson that keeps the contract, to be broken in one place."""

from __future__ import annotations

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from medvlp_kit.course import contract

PARAMETERS = "budget = None\nseed = 0"
HEADER = """\
# 08. A lesson for tests

**You will be able to** tell a kept promise from a broken one.

**Prerequisites:** none.

| budget | minutes | memory (GB) |
|---|---|---|
| tiny | 0.5 | 1.0 |
| laptop | 4 | 1.5 |
| gpu | not measured | not measured |

Every image is synthetic. Not for clinical use.
"""
PICTURE = (
    '<figure><img src="data:image/png;base64,AAAA" alt="A line that rises from one to two">'
    "<figcaption>Line</figcaption></figure>"
)


def code(source: str, *outputs: NotebookNode, tags: tuple[str, ...] = ()) -> NotebookNode:
    cell = new_code_cell(source, outputs=list(outputs), execution_count=1)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def parameters(source: str = PARAMETERS) -> NotebookNode:
    return code(source, tags=("parameters",))


def prose(text: str) -> NotebookNode:
    return new_markdown_cell(text)


def notebook(*cells: NotebookNode | str) -> NotebookNode:
    """A notebook of these cells; strings become code cells."""
    return new_notebook(cells=[code(cell) if isinstance(cell, str) else cell for cell in cells])


def printed(text: str, *, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def shown(**data: str) -> NotebookNode:
    """A display output; `text_html="..."` stands for the kind text/html."""
    return new_output("display_data", data={kind.replace("_", "/"): value for kind, value in data.items()})


def lesson(**changes: str | int | None) -> NotebookNode:
    """A lesson that keeps the contract and passes the audit.

    Changes: header, parameters, outcome, questionnaire (texts; None leaves the cell out), code_cells, words (numbers),
    without (a section to leave out), long_cell (lines of one cell).
    """
    header, questionnaire = changes.get("header", HEADER), "## Questionnaire\n\n1. Why?\n2. How?\n3. When?"
    cells = [prose(header), parameters(changes.get("parameters", PARAMETERS))]
    sections = [name for name in contract.SECTIONS if name != changes.get("without")]
    cells += [prose(f"## {name}") for name in sections]
    cells.insert(4, code("print('hello')", printed("hello\n"), shown(text_html=PICTURE)))
    outcome = changes.get("outcome", "score = 0.9\nassert score > 0.5")
    if outcome is not None:
        cells.append(code(outcome, tags=("outcome",)))
    if changes.get("questionnaire", "") is not None:
        cells.append(prose(changes.get("questionnaire") or questionnaire))
    if "long_cell" in changes:
        cells.insert(5, code("\n".join(f"step_{i} = {i}" for i in range(changes["long_cell"]))))
    document = notebook(*cells)
    missing = changes.get("code_cells", 24) - sum(cell.cell_type == "code" for cell in document.cells)
    document.cells[5:5] = [code(f"value_{i} = {i}") for i in range(missing)]
    document.cells.insert(3, prose("word " * (changes.get("words", 1_500) - contract.words(document))))
    return document
