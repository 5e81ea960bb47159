"""The ``plan`` command: what a model needs and what a machine gives, from ``config.json`` alone."""
