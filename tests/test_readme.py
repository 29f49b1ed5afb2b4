"""What the README shows is what the files hold."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_recipes_is_the_file():
    spec = importlib.util.spec_from_file_location("recipes_results", ROOT / "assets" / "results" / "recipes.py")
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    shown = README.split(results.MARKS[0])[1].split(results.MARKS[1])[0].strip()
    assert shown == results.markdown(), "python assets/results/recipes.py --readme renews it"


def test_what_is_linked_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_every_lesson_is_listed():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"(notebooks/{path.name})" in README, path.name
