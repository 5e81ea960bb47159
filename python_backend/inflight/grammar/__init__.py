"""Guides as grammars that cost the engine little, whatever the text.

A regular expression, a list of choices, a JSON Schema or a client's own EBNF becomes one small form here (`nodes`), is
made deterministic (`automaton`, `network`) and printed as EBNF. Pure: no thread, no process, no engine.
"""
