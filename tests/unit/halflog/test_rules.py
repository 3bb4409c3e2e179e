"""Every one of the 28 rules of the half log is named by a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.halflog.naive import VARIANTS

RULES = 28
_NAME = re.compile(r"^def test_rule_(\d\d)_", re.MULTILINE)


def named_rules(source: str) -> set[int]:
    return {int(number) for number in _NAME.findall(source)}


def test_each_rule_is_named_by_a_test() -> None:
    """A rule without a test of its own would not be kept."""
    here = Path(__file__).parent
    sources = [*here.glob("test_*.py"), *here.parent.glob("test_transactional*.py")]
    named = set().union(*(named_rules(source.read_text(encoding="utf-8")) for source in sources))
    assert set(range(1, RULES + 1)) - named == set()
    assert named <= set(range(1, RULES + 1))


def test_the_search_for_names_can_fail() -> None:
    """It sees a name at the start of a line, and nothing else (a negative control)."""
    assert named_rules("def test_rule_07_x() -> None: ...\n# def test_rule_08_x\n") == {7}


def test_the_rules_that_keep_messages_are_broken_by_the_exploration() -> None:
    """Each of these has a naive form that loses, doubles or disorders a message."""
    assert {v.rule for v in VARIANTS} >= {1, 3, 4, 6, 8, 10, 14, 15, 16, 17, 18, 19, 20, 21, 23, 26, 28}
