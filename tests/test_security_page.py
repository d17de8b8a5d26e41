"""Every defence that SECURITY.md claims is shown by a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_row_names_a_test() -> None:
    for row in re.findall(r"^\|(?! Attack|---).*\|$", PAGE, flags=re.MULTILINE):
        attack, defence, tests = (cell.strip() for cell in row.strip("|").split("|"))
        assert attack and defence and "`tests/" in tests, row
