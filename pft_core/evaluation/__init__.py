"""Honest evaluation: tasks, parsing of choices, statistics."""
