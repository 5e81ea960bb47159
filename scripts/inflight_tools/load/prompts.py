"""Seeded prompts of a wanted length for load tests. Pure: the same seed gives the same prompts everywhere.

The prompts are runs of common English words, so that tokenizers of any model give about one token a word; how many
exactly is measured at the server (`scripts/load_test.py` asks it once). No two prompts begin alike, so that a prefix
cache has nothing to reuse.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother area
    money story fact month lot right study book eye job word business issue side kind head house service friend father
    power hour game line end member law car city community name president team minute idea body information back parent
    face others level office door health person art war history party result change morning reason research girl guy
    moment air teacher force education foot boy age policy process music market sense nation plan college interest death
    experience effect use class control field development role effort rate heart drug show leader light voice wife
    police mind return price report decision son view relationship town road arm difference value building action season
    society tax director position player record paper space ground form event official matter center couple site project
    activity star table need court oil situation cost industry figure street image phone data picture practice piece
    land product doctor wall patient worker news test movie north love step baby computer type attention film tree
    source hair window culture chance brother energy period course summer plant opportunity term letter condition choice
    rule daughter south husband floor campaign material population call economy hospital church risk fire future bank
    """
WORDS = tuple(_WORDS.split())


def prompts(seed: int | str, words: int) -> Iterator[str]:
    """Endless prompts of `words` words each."""
    chooser = random.Random(f"inflight prompts {seed}")
    while True:
        yield " ".join(chooser.choices(WORDS, k=max(words, 1)))
