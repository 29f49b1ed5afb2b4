"""The lesson contract: kept by every lesson there is, and each clause fires on a lesson that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_notebook import HEADER, PARAMETERS, code, lesson, parameters

from medvlp_kit.course import contract

LESSONS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAME = "08_test.ipynb"
BROKEN = {
    "the first line must be a title": {"header": HEADER.replace("# 08. A", "# A")},
    "the title says lesson 09": {"header": HEADER.replace("# 08.", "# 09.")},
    "learning objectives": {"header": HEADER.replace("You will be able to", "We shall")},
    "the prerequisites": {"header": HEADER.replace("Prerequisites", "Before")},
    "what is synthetic": {"header": HEADER.replace("synthetic", "made up")},
    "'Not for clinical use'": {"header": HEADER.replace("Not for clinical use.", "")},
    "no row for the gpu budget": {"header": HEADER.replace("| gpu | not measured | not measured |\n", "")},
    "no minutes or no memory for the laptop budget": {"header": HEADER.replace("| laptop | 4 |", "| laptop | soon |")},
    "lacks 'seed'": {"parameters": "budget = None"},
    "lacks 'budget'": {"parameters": "seed = 0"},
    "budget must be None by default": {"parameters": PARAMETERS.replace("None", "'tiny'")},
    "seed must be a whole number": {"parameters": "budget = None\nseed = 0.5"},
    "may hold only 'name = literal' lines": {"parameters": PARAMETERS + "\nsize = len('abc')"},
    "is not Python": {"parameters": PARAMETERS + "\nsize ="},
    "no cell is tagged 'outcome'": {"outcome": None},
    "asserts nothing": {"outcome": "print('assert score > 0.5')"},
    "there is no questionnaire": {"questionnaire": None},
    "at least three numbered questions": {"questionnaire": "## Questionnaire\n\n1. Why?\n2. How?"},
    "19 code cells": {"code_cells": 19},
    "36 code cells": {"code_cells": 36},
    "1,199 words": {"words": 1_199},
    "2,501 words": {"words": 2_501},
    "has 41 lines": {"long_cell": 41},
    **{f"there is no section '## {section}'": {"without": section} for section in contract.SECTIONS},
}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_keeps_the_contract(path):
    assert contract.problems(path) == []


def test_expected_lessons_are_there():
    assert set(contract.EXPECTED) <= {path.stem for path in LESSONS}


def test_a_lesson_that_keeps_the_contract_has_no_problem():
    assert contract.problems(lesson(), name=NAME) == []


BOUNDS = [{"code_cells": 20}, {"code_cells": 35}, {"words": 1_200}, {"words": 2_500}, {"long_cell": 40}]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_belong_to_the_contract(bounds):
    assert contract.problems(lesson(**bounds), name=NAME) == []


@pytest.mark.parametrize(("message", "change"), BROKEN.items(), ids=BROKEN)
def test_each_breach_is_one_problem(message, change):
    problems = contract.problems(lesson(**change), name=NAME)
    assert len(problems) == 1 and message in problems[0]


def test_one_parameters_cell_exactly():
    document = lesson()
    document.cells.append(parameters())
    assert "2 cells tagged 'parameters'" in contract.problems(document, name=NAME)[0]
    untagged = lesson()
    untagged.cells[1].metadata.pop("tags")
    assert "0 cells tagged 'parameters'" in contract.problems(untagged, name=NAME)[0]


def test_an_assertion_of_a_constant_is_no_outcome():
    assert contract.problems(lesson(outcome="assert True"), name=NAME)


def test_sections_keep_their_order():
    document = lesson()
    places = [i for i, cell in enumerate(document.cells) if cell.source in ("## Idea", "## Break it")]
    first, second = places
    document.cells[first], document.cells[second] = document.cells[second], document.cells[first]
    assert any("comes too early" in problem for problem in contract.problems(document, name=NAME))


def test_first_lessons_are_held_to_less():
    tour = lesson(header=HEADER.replace("# 08.", "# 00."), code_cells=12, words=800, without="Build it")
    assert contract.problems(tour, name="00_tour.ipynb") == []
    assert contract.terms("01_phantoms_and_reports").sections == ("Idea", "See it", "Break it", "Check yourself")
    assert contract.terms("04_image_encoders").sections == contract.SECTIONS


def test_stated_reads_the_table_people_read():
    assert contract.stated(lesson()) == {
        "tiny": {"minutes": 0.5, "memory_gb": 1.0},
        "laptop": {"minutes": 4.0, "memory_gb": 1.5},
        "gpu": {"minutes": None, "memory_gb": None},
    }


def test_words_leave_out_formulas_code_and_pictures():
    document = lesson()
    before = contract.words(document)
    document.cells[2].source += "\n\n$$a + b$$ $x_i$ `code` ![a picture](x.png)\n\n```\nfour more words here\n```"
    assert contract.words(document) - before == 1  # `code` is read aloud


def test_empty_code_cells_do_not_count():
    document = lesson(code_cells=35)
    document.cells.append(code("  "))
    assert contract.problems(document, name=NAME) == []
