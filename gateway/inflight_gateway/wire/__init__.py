"""Dialects: JSON to internal requests, and internal events to bytes. Pure: no socket, no clock of its own."""
