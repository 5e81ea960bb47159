"""Seeds of requests."""
