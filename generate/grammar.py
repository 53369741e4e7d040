"""Sentences about anything: the built-in bank for words that have no file.

The same openings, places and light for every word, so that in the difference of two banks only the word is left; varied, so that the
direction is not tied to one template (users of template banks found theirs "entangled").
"""

import random
from itertools import product

OPENINGS = (
    "a photo of", "a picture of", "an image of", "a close-up photo of", "a bright photo of", "a dark photo of", "a blurry photo of",
    "a cropped photo of", "a black and white photo of", "a snapshot of", "a professional photo of", "a view of", "a painting of",
    "a watercolor of", "a drawing of", "an illustration of", "a postcard of", "there is", "we can see", "look at",
)  # fmt: skip
QUALITIES = ("", "beautiful", "small", "large", "single", "typical", "strange", "lovely", "famous", "lonely")
PLACES = (
    "", "in a park", "in a garden", "in front of a house", "on a hill", "in a field", "near a lake", "by the sea", "in the mountains",
    "in the city", "on a quiet street", "beside a fence", "in the countryside", "at the edge of a forest", "at home", "on a farm",
    "in the distance", "in the middle of the picture", "on the left",
)  # fmt: skip
LIGHTS = (
    "", "at sunset", "in the morning", "at noon", "at night", "on a sunny day", "on a cloudy day", "in soft light", "in the fog",
    "after the rain", "under a clear sky", "with a plain background", "in warm colors",
)  # fmt: skip
DETERMINERS = ("a ", "an ", "the ", "one ", "two ", "three ", "some ", "many ")


def sentences(words: str, count: int) -> list[str]:
    """`count` different sentences about the words ('cat', 'cherry blossom tree', 'two dogs'); the same slots for any."""
    slots = list(product(OPENINGS, QUALITIES, PLACES, LIGHTS))
    return [_sentence(words, *slot) for slot in random.Random(0).sample(slots, min(count, len(slots)))]


def _sentence(words: str, opening: str, quality: str, place: str, light: str) -> str:
    if words.startswith(DETERMINERS):
        quality = ""  # 'two small dogs' would have to be parsed
    phrase = f"{quality} {words}".strip()
    if not words.startswith(DETERMINERS):
        phrase = ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase
    return " ".join(part for part in (opening, phrase, place, light) if part)
