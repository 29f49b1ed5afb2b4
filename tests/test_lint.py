"""Style, and what neither the kit nor its lessons may use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medvlp_kit import code_rules

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "medvlp_kit").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_ruff_is_content():
    command = [sys.executable, "-m", "ruff", "check", "medvlp_kit", "tests", "--output-format", "concise"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


RULES = (code_rules.banned_use, code_rules.network_use, code_rules.cuda_use, code_rules.half_precision_use)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources_use_nothing_banned(rule):
    found = [
        f"{path.relative_to(ROOT)}: {name}: {message}"
        for path in SOURCES
        for name, message in rule(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


def test_no_content_delivery_network_in_sources():
    pattern = re.compile(r"unpkg\.com|cdn\.jsdelivr|cdnjs\.cloudflare|googleapis\.com")
    others = [path for path in SOURCES if path.name != "audit.py"]  # which names them to find them
    assert not [path for path in others if pattern.search(path.read_text(encoding="utf-8"))]


def test_public_functions_say_what_they_do():
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if ast.get_docstring(node) is None and len(node.body) > 3:
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)


def test_every_source_file_opens_with_its_idea():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_no_test_is_excused():
    """Tests are fast because sizes are tiny: nothing is marked to be skipped or to fail."""
    mark = re.compile(r"mark\.(skip|xfail)\b|pytest\.xfail")
    others = [path for path in TESTS if path != Path(__file__)]
    assert not [path.name for path in others if mark.search(path.read_text(encoding="utf-8"))]
