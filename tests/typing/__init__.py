"""Checked by mypy --strict, never run.

A module here shows what the types accept and what they refuse:

- what is right stands as an application would write it, with ``typing.assert_type`` where the
  inferred type is the point;
- what is wrong carries ``# type: ignore[code]  # what is wrong``. mypy reports an ignore that
  nothing needs, so a refusal that gets lost is an error as much as a new one.

Functions are never called, so nothing is opened. `tests/unit/test_project_typing.py` runs mypy.
"""
