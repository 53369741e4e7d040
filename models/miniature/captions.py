"""Captions of scenes, and sentence banks for edit directions.

Sentences are drawn from a scene's own random stream, so that the same scene in two looks gives two sentences of the same plan.
"""

import random
import re

from models.miniature.scenes import Look, Scene, scene, shown

NUMBERS = {
    1: ("a", "one", "a single", "a lone"),
    2: ("two", "a pair of"),
    3: ("three", "several", "a group of"),
}
WHEN = {
    "summer": ("in summer", "in the summer", "during summer", "on a summer day", "in summertime"),
    "autumn": ("in autumn", "in the autumn", "in fall", "on an autumn day", "during autumn"),
    "winter": ("in winter", "in the winter", "during winter", "on a winter day", "in the snow"),
}
ADJECTIVES = {
    "summer": ("summer", "green", "lush", "leafy"),
    "autumn": ("autumn", "fall", "colorful", "golden"),
    "winter": ("winter", "snowy", "frosty", "snow covered"),
}
PINE_ADJECTIVES = ADJECTIVES | {"summer": ("summer", "green"), "autumn": ("autumn", "fall")}
BARE = ("with bare branches", "covered in snow", "without leaves")
FOLIAGE = {
    "oak": {"summer": ("with green leaves", "with lush foliage"),
            "autumn": ("with orange leaves", "with red leaves", "with autumn foliage"), "winter": BARE},
    "birch": {"summer": ("with green leaves", "with fresh foliage"),
              "autumn": ("with yellow leaves", "with golden leaves"), "winter": BARE},
    "pine": {"summer": ("with green needles", "that is evergreen"),
             "autumn": ("with dark green needles",), "winter": ("covered in snow", "with snowy branches")},
    "mixed": {"summer": ("with green foliage",), "autumn": ("",), "winter": ("covered in snow",)},
}  # fmt: skip
LANDS = ("meadow", "field", "landscape", "hill", "countryside")
SNOWY_LANDS = ("field", "landscape", "hill", "countryside", "scene")
LAND_ADJECTIVES = {
    "summer": ("green", "summer", "grassy", "sunny"),
    "autumn": ("autumn", "golden", "brown", "fall"),
    "winter": ("snowy", "winter", "white", "snow covered"),
}
SURROUNDINGS = {  # by what the scene has
    "house": ("beside a house", "near a house", "next to a small house", "with a house"),
    "fence": ("by a fence", "with a fence"),
    "path": ("by a path", "with a path", "along a path"),
    "lake": ("by a lake", "near a lake", "beside a lake"),
    "rocks": ("near some rocks", "with rocks"),
    "mountains": ("with mountains", "in front of mountains"),
    "hills": ("with hills behind",),
}
OPENINGS = {  # as many for every style, so that a style changes no later draw
    "photo": ("a photo of", "a picture of", "an image of", "a painting of", "a view of", ""),
    "sketch": ("a sketch of", "a pencil sketch of", "a drawing of") * 2,
}
TIMES = {
    "sunset": ("at sunset", "in the evening"),
    "morning": ("in the morning",),
    "overcast": ("under a grey sky", "on a cloudy day"),
    "day": ("under a blue sky", "in daylight"),
}
BANK_SEED = 10_000_000  # far from the seeds of every picture


def caption(scene: Scene, look: Look, variant: int = 0, name_season: bool = True) -> str:
    """A sentence about the scene; `variant` chooses the wording. It names the look's species and style, and its season if `name_season`."""
    return _sentence(scene, look, random.Random(scene.seed * 17 + 3 + 7_919 * (variant + 1)), name_season)


def bank(look: Look, count: int) -> list[str]:
    """`count` sentences about scenes in that look; the same scenes, in the same order, for every look."""
    return [_sentence(scene(BANK_SEED + index), look, random.Random(index), True) for index in range(count)]


def with_articles(text: str) -> str:
    """The text with "an" for "a" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _sentence(scene, look, rng, name_season):
    view = shown(scene, look)
    season, trees = view.season, view.trees
    count, present = len(trees), {tree.species for tree in trees}
    species = trees[0].species if len(present) == 1 else None
    named = (rng.random() < 0.8 or look.species is not None) and species is not None
    noun = (f"{species} " if named else "") + ("tree" if count == 1 else "trees")
    number = rng.choice(NUMBERS[count])
    if count == 3 and number != "three" and rng.random() < 0.5:
        number = "three"
    surroundings = [
        phrase
        for what, phrases in SURROUNDINGS.items()
        if getattr(scene, what, scene.far == what)
        for phrase in phrases
    ]
    form = rng.random()
    opening = rng.choice(OPENINGS[look.style])
    if form < 0.34:  # a photo of an oak tree in winter
        parts = [f"{number} {noun}", rng.choice(WHEN[season]) if name_season else ""]
    elif form < 0.58:  # two snowy pine trees
        adjectives = (PINE_ADJECTIVES if "pine" in present else ADJECTIVES)[season]
        parts = [f"{number} {rng.choice(adjectives)} {noun}" if name_season else f"{number} {noun}"]
    elif form < 0.76:  # an oak tree with bare branches (in winter)
        leaves = species or ("mixed" if "pine" in present else "oak")
        foliage = rng.choice(FOLIAGE[leaves][season]) if name_season else ""
        if count > 1 and foliage == "that is evergreen":
            foliage = "with green needles"
        parts = [
            f"{number} {noun}",
            foliage,
            rng.choice(WHEN[season]) if name_season and rng.random() < 0.55 else "",
        ]
    else:
        land = rng.choice(SNOWY_LANDS if season == "winter" else LANDS)
        kind = f"{rng.choice(LAND_ADJECTIVES[season])} {land}" if name_season else land
        place = f"{'on' if land == 'hill' else 'in'} a {kind}"  # two trees on a snowy hill, or a summer landscape with a birch tree
        parts = [f"{number} {noun}", place] if form < 0.9 else [f"a {kind} with {number} {noun}"]
    if surroundings and rng.random() < 0.6:
        place = rng.choice(surroundings)
        parts.append("near a frozen lake" if place == "near a lake" and season == "winter" else place)
    if rng.random() < 0.22:
        parts.append(rng.choice(TIMES[scene.time]))
    return with_articles(" ".join(" ".join([opening, *parts]).split()))
