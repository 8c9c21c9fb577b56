"""Mutations of critical lines, as data: the tests must notice each one. ``python -m tests.mutants`` tries them."""
