"""Repetition, presence, frequency."""
