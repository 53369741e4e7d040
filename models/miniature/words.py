"""Which looks of the miniature's world two words ask for. Light: configs/ reads it for every command."""

from __future__ import annotations

import re

# What a word says of a Look, by the field that it sets.
WORDS = {
    "season": {
        "summer": "summer",
        "summertime": "summer",
        "green": "summer",
        "leafy": "summer",
        "lush": "summer",
        "grassy": "summer",
        "sunny": "summer",
        "autumn": "autumn",
        "fall": "autumn",
        "autumnal": "autumn",
        "golden": "autumn",
        "colorful": "autumn",
        "winter": "winter",
        "wintertime": "winter",
        "snow": "winter",
        "snowy": "winter",
        "frosty": "winter",
        "frozen": "winter",
        "bare": "winter",
    },
    "species": {
        "oak": "oak",
        "oaks": "oak",
        "birch": "birch",
        "birches": "birch",
        "pine": "pine",
        "pines": "pine",
    },
    "style": {
        "photo": "photo",
        "photograph": "photo",
        "photos": "photo",
        "sketch": "sketch",
        "sketches": "sketch",
        "drawing": "sketch",
        "pencil": "sketch",
    },
}
# What else its captions speak of (models/miniature/captions.py), which changes no look. Any other word is of
# a thing that it cannot show, as 'photo of a cat', or of a colour that may be a house's or a season's.
OTHERS = """
a along an at behind beside blue branches by cloudy countryside covered dark day daylight during
evening evergreen fence field foliage forest fresh front grass grey group hill hills house image in
is lake landscape leaves lone many meadow morning mountain mountains nature near needles next of on
one open painting pair path picture rocks scene scenery several single sky small some sunset tall
that the three to tree trees two under view with without wood
"""
BEGIN = {"season": "summer"}  # what an input shows where the words do not say
HOLDS = "summer, autumn and winter; oaks, birches and pines; photographs and pencil sketches"


def looks_of(source: str, target: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """The fields of models.miniature.scenes.Look of an input and of its true edit; None for unknown words.

    What the target does not name stays as in the source: 'oak tree' to 'pine tree' is one in summer too.
    """
    before = fields(source)
    after = fields(target)
    if before is None or after is None:
        return None
    input_look = BEGIN | before
    true_look = input_look | after
    return None if true_look == input_look else (input_look, true_look)


def fields(text: str) -> dict[str, str] | None:
    """The fields of a Look that the words of a text name; None where it speaks of what the world has not."""
    found: dict[str, str] = {}
    others = OTHERS.split()
    for word in re.findall(r"\w+", text.lower()):
        named = {field: values[word] for field, values in WORDS.items() if word in values}
        if not named and word not in others:
            return None
        found |= named
    return found
