"""Twelve applications with one mistake each."""
