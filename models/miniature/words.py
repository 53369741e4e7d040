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
        "autumn": "autumn",
        "fall": "autumn",
        "autumnal": "autumn",
        "golden": "autumn",
        "winter": "winter",
        "wintertime": "winter",
        "snow": "winter",
        "snowy": "winter",
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
        "sketch": "sketch",
        "drawing": "sketch",
        "pencil": "sketch",
    },
}
BEGIN = {"season": "summer"}  # what an input shows where the words do not say
HOLDS = "summer, autumn and winter; oaks, birches and pines; photographs and pencil sketches"


def looks_of(source: str, target: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """The fields of models.miniature.scenes.Look of an input and of its true edit; None for unknown words.

    What the target does not name stays as in the source: 'oak tree' to 'pine tree' is one in summer too.
    """
    input_look = BEGIN | fields(source)
    true_look = input_look | fields(target)
    return None if true_look == input_look else (input_look, true_look)


def fields(text: str) -> dict[str, str]:
    """The fields of a Look that the words of a text name."""
    found = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        for field, values in WORDS.items():
            if word in values:
                found[field] = values[word]
    return found
