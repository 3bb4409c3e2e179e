"""The pytest fixture that comes with txbus; loads nothing of it until a test asks."""

from __future__ import annotations

import pytest

__all__ = ["txbus_url"]


@pytest.fixture
def txbus_url() -> str:
    """A fresh ``memory://`` URL for the buses of one test."""
    from txbus.testing import memory_url  # everybody who installs txbus loads this plugin

    return memory_url()
