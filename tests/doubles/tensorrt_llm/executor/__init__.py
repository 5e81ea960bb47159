"""Requests of the high-level interface."""
