"""The wiring of one model, without a word of Triton: `model.py` beside this package is its only user."""
