"""Names of operations that stay the same from run to run."""

from __future__ import annotations

import re
from functools import cache

__all__ = ["stable"]

_RANDOM = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*")
_SPACE = re.compile(r"\s+")


@cache
def stable(name: str) -> str:
    """A group, topic or transactional id as it stands in a label: random ids in it become ``*``."""
    return _SPACE.sub("_", _RANDOM.sub("*", name))
