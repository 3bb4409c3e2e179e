"""Deliberately broken backends: each keeps every promise but the one that its docstring names."""
