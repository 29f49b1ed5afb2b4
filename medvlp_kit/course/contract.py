"""The lesson contract: what every notebook promises its reader, as checks on the document alone.

`problems(notebook)` is empty for a lesson that keeps it. CONTRIBUTING.md says the same in words for authors.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import notebook as documents
from ..errors import KitError

if TYPE_CHECKING:
    from nbformat import NotebookNode

BUDGETS = ("tiny", "laptop", "gpu")
# Lessons that a checkout must hold; a test fails when one is missing. Add the name together with the lesson.
EXPECTED: tuple[str, ...] = (
    "00_tour", "01_phantoms_and_reports", "02_real_studies", "03_augmentation", "04_image_encoders_cnn",
    "05_image_encoders_vit", "06_text_encoders", "07_fusion", "08_global_contrastive", "09_local_contrastive",
    "10_false_negatives", "11_masked_prediction", "12_matching", "13_captioning", "14_hybrid", "15_pretraining_on_a_gpu",
    "16_zero_shot", "17_transfer", "18_retrieval", "19_grounding",
)  # fmt: skip
LONGEST_CELL = 40  # lines
SECTIONS = (
    "Idea", "Build it", "Prove it", "Train it", "See it", "Break it", "What the field did", "Check yourself",
)  # fmt: skip
ROW = re.compile(r"^\|\s*[`*]*(tiny|laptop|gpu)[`*]*\s*\|\s*([^|]*)\|\s*([^|]*)\|", re.M)
FIRST_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Terms:
    """The measures of one lesson: inclusive bounds, and the section headings it must have."""

    code_cells: tuple[int, int] = (20, 35)
    words: tuple[int, int] = (1_200, 2_500)
    sections: tuple[str, ...] = SECTIONS


def terms(name: str) -> Terms:
    """The terms of the lesson file `name`: the first three lessons build no model part, so they are held to less."""
    if name.startswith("00"):
        return Terms(code_cells=(10, 35), words=(700, 2_500), sections=("Check yourself",))
    if name.startswith(("01", "02", "03")):
        return Terms(sections=("Idea", "See it", "Break it", "Check yourself"))
    return Terms()


def problems(notebook: str | os.PathLike | NotebookNode, *, name: str = "") -> list[str]:
    """Every breach of the contract, in words; empty when the lesson keeps it.

    notebook: a path, or a document together with the file `name` it would have ("08_global_contrastive.ipynb")
    """
    if isinstance(notebook, (str, os.PathLike)):
        name = name or Path(notebook).name
        notebook = documents.read(notebook)
    agreed = terms(name)
    found = [problem for rule in RULES for problem in rule(notebook)]
    found += title_number(notebook, name)
    found += sections(notebook, agreed.sections)
    found += amounts(notebook, agreed)
    return found


def stated(document: NotebookNode) -> dict[str, dict[str, float | None]]:
    """Minutes and memory (GB) a budget, from the header's table; None where a cell of it holds no number.

    The table is plain Markdown, so what the machine checks is what the reader reads::

        | budget | minutes | memory (GB) |
        |---|---|---|
        | tiny | 0.5 | 1.2 |
        | laptop | 4 | 1.5 |
        | gpu | not measured | not measured |
    """
    rows = ROW.findall(header(document))
    return {budget: {"minutes": _number(minutes), "memory_gb": _number(memory)} for budget, minutes, memory in rows}


def header(document: NotebookNode) -> str:
    """The Markdown before the first code cell."""
    texts = []
    for cell in document.cells:
        if cell.cell_type == "code":
            break
        texts.append(cell.source)
    return "\n\n".join(texts)


# ---------------------------------------------------------------- rules


def title_number(document: NotebookNode, name: str) -> Iterator[str]:
    first = next((line for line in header(document).splitlines() if line.strip()), "")
    found = re.match(r"# (\d\d)\. \S", first)
    if not found:
        yield f"the first line must be a title such as '# 08. Global contrastive', not {first[:60]!r}"
    elif name and not name.startswith(found[1]):
        yield f"the title says lesson {found[1]}, the file is called {name}"


def promises(document: NotebookNode) -> Iterator[str]:
    text = header(document)
    for words, meaning in (
        ("you will be able to", "the learning objectives, after the words 'You will be able to'"),
        ("prerequisites", "the prerequisites, under the word 'Prerequisites'"),
        ("synthetic", "what is synthetic"),
        ("not for clinical use", "the words 'Not for clinical use'"),
    ):
        if words not in text.casefold():
            yield f"the header lacks {meaning}"


def costs(document: NotebookNode) -> Iterator[str]:
    known = stated(document)
    for budget in BUDGETS:
        if budget not in known:
            yield f"the header's table has no row for the {budget} budget: | {budget} | minutes | memory (GB) |"
        elif budget != "gpu" and None in known[budget].values():  # a GPU is not always at hand to measure
            yield f"the header's table gives no minutes or no memory for the {budget} budget"


def parameter_cell(document: NotebookNode) -> Iterator[str]:
    """One cell of parameters, with the budget left open and a seed."""
    try:
        defaults = documents.parameters(document)
    except KitError as error:
        yield str(error)
        return
    for name in ("budget", "seed"):
        if name not in defaults:
            yield f"the parameters cell lacks {name!r}"
    if defaults.get("budget") is not None:
        yield "the parameter budget must be None by default: then MEDVLP_BUDGET decides, and laptop without it"
    if "seed" in defaults and type(defaults["seed"]) is not int:
        yield "the parameter seed must be a whole number"


def longest_cell(document: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(document.cells, start=1):
        lines = len(cell.source.rstrip().splitlines())
        if cell.cell_type == "code" and lines > LONGEST_CELL:
            yield f"cell {number} has {lines} lines, at most {LONGEST_CELL} are allowed: split it"


def outcome(document: NotebookNode) -> Iterator[str]:
    cells = [cell for cell in documents.code_cells(document) if "outcome" in documents.tags(cell)]
    if not cells:
        yield "no cell is tagged 'outcome': assert there what the lesson must have taught"
    elif not any(_asserts(cell.source) for cell in cells):
        yield "the outcome cell asserts nothing: code that runs but learns nothing must fail"


def questionnaire(document: NotebookNode) -> Iterator[str]:
    texts = [cell.source for cell in document.cells if cell.cell_type == "markdown"]
    place = next((i for i, text in enumerate(texts) if re.search(r"^#+ .*Questionnaire", text, re.M | re.I)), None)
    if place is None:
        yield "there is no questionnaire: end with a heading 'Questionnaire' and numbered questions"
    elif len(re.findall(r"^\s*\d+\. ", "\n".join(texts[place:]), re.M)) < 3:
        yield "the questionnaire needs at least three numbered questions"


def sections(document: NotebookNode, wanted: tuple[str, ...]) -> Iterator[str]:
    """Headings of level two that begin with the contract's words, in its order."""
    texts = "\n".join(cell.source for cell in document.cells if cell.cell_type == "markdown")
    headings = [heading.strip().casefold() for heading in re.findall(r"^## (.*)$", texts, re.M)]
    last = -1
    for section in wanted:
        place = next((i for i, heading in enumerate(headings) if heading.startswith(section.casefold())), None)
        if place is None:
            yield f"there is no section '## {section}'"
        elif place < last:
            yield f"the section '## {section}' comes too early: keep the order {', '.join(wanted)}"
        else:
            last = place


def amounts(document: NotebookNode, agreed: Terms) -> Iterator[str]:
    count = sum(bool(cell.source.strip()) for cell in documents.code_cells(document))
    prose = words(document)
    for amount, (low, high), noun in ((count, agreed.code_cells, "code cells"), (prose, agreed.words, "words")):
        if not low <= amount <= high:
            yield f"{amount:,} {noun}, the contract asks for {low:,} to {high:,}"


def words(document: NotebookNode) -> int:
    """Words of prose in the Markdown cells; formulas, pictures, tables' rules and code in fences do not count."""
    text = "\n".join(cell.source for cell in document.cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|!\[[^\]]*\]\([^)]*\)|<[^>]+>", " ", text, flags=re.S)
    return len(re.findall(r"[^\W_][\w'’-]*", text))


RULES: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    promises, costs, parameter_cell, longest_cell, outcome, questionnaire,
)  # fmt: skip


def _number(text: str) -> float | None:
    found = FIRST_NUMBER.search(text)
    return float(found.group()) if found else None


def _asserts(source: str) -> bool:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant) for node in ast.walk(tree))
