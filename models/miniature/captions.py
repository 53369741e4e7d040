"""Captions of scenes, and sentence banks for edit directions.

Sentences are drawn from a scene's own random stream, so that the same scene in two looks gives two sentences
of the same plan.
"""

import random
import re
from dataclasses import dataclass

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
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "summer": ("summer", "green", "lush", "leafy"),
    "autumn": ("autumn", "fall", "colorful", "golden"),
    "winter": ("winter", "snowy", "frosty", "snow covered"),
}
PINE_ADJECTIVES: dict[str, tuple[str, ...]] = ADJECTIVES | {
    "summer": ("summer", "green"),
    "autumn": ("autumn", "fall"),
}
BARE = ("with bare branches", "covered in snow", "without leaves")
FOLIAGE: dict[str, dict[str, tuple[str, ...]]] = {
    "oak": {
        "summer": ("with green leaves", "with lush foliage"),
        "autumn": ("with orange leaves", "with red leaves", "with autumn foliage"),
        "winter": BARE,
    },
    "birch": {
        "summer": ("with green leaves", "with fresh foliage"),
        "autumn": ("with yellow leaves", "with golden leaves"),
        "winter": BARE,
    },
    "pine": {
        "summer": ("with green needles", "that is evergreen"),
        "autumn": ("with dark green needles",),
        "winter": ("covered in snow", "with snowy branches"),
    },
    "mixed": {
        "summer": ("with green foliage",),
        "autumn": ("",),
        "winter": ("covered in snow",),
    },
}
LANDS = ("meadow", "field", "landscape", "hill", "countryside")
SNOWY_LANDS = ("field", "landscape", "hill", "countryside", "scene")
LAND_ADJECTIVES = {
    "summer": ("green", "summer", "grassy", "sunny"),
    "autumn": ("autumn", "golden", "brown", "fall"),
    "winter": ("snowy", "winter", "white", "snow covered"),
}
NEAR_THINGS = {  # by the Scene's field that says whether it is there
    "house": ("beside a house", "near a house", "next to a small house", "with a house"),
    "fence": ("by a fence", "with a fence"),
    "path": ("by a path", "with a path", "along a path"),
    "lake": ("by a lake", "near a lake", "beside a lake"),
    "rocks": ("near some rocks", "with rocks"),
}
DISTANCE = {  # by Scene.far
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
    """A sentence about the scene; `variant` chooses the wording.

    It names the look's species and style, and its season if `name_season`.
    """
    rng = random.Random(scene.seed * 17 + 3 + 7_919 * (variant + 1))
    return _sentence(scene, look, rng, name_season)


def bank(look: Look, count: int) -> list[str]:
    """`count` sentences about scenes in that look; the same scenes, in the same order, for every look."""
    sentences = []
    for index in range(count):
        sentences.append(_sentence(scene(BANK_SEED + index), look, random.Random(index), name_season=True))
    return sentences


def with_articles(text: str) -> str:
    """The text with "an" for "a" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


@dataclass(frozen=True)
class _Trees:
    """How a sentence speaks of the trees of a scene."""

    count: int
    species: str | None  # of all of them; None: they are of several
    with_pines: bool  # whether a pine is among them
    number: str  # "two", "a group of"
    noun: str  # "oak trees", "trees"

    @property
    def phrase(self) -> str:
        """The number and the noun."""
        return f"{self.number} {self.noun}"


def _sentence(scene: Scene, look: Look, rng: random.Random, name_season: bool) -> str:
    """An opening, the trees in one of four forms, perhaps what is near them, perhaps the time of the day."""
    view = shown(scene, look)
    trees = _trees(rng, view, look)
    form = rng.random()
    opening = rng.choice(OPENINGS[look.style])
    if form < 0.34:
        subject = _trees_in_season(rng, trees, view.season, name_season)
    elif form < 0.58:
        subject = _trees_of_season(rng, trees, view.season, name_season)
    elif form < 0.76:
        subject = _trees_with_foliage(rng, trees, view.season, name_season)
    else:
        subject = _trees_in_land(rng, trees, view.season, name_season, trees_first=form < 0.9)
    parts = [opening, subject]
    surroundings = _surroundings(scene)
    if surroundings and rng.random() < 0.6:
        place = rng.choice(surroundings)
        parts.append("near a frozen lake" if place == "near a lake" and view.season == "winter" else place)
    if rng.random() < 0.22:
        parts.append(rng.choice(TIMES[scene.time]))
    words = " ".join(parts).split()  # a part may be empty
    return with_articles(" ".join(words))


def _trees(rng: random.Random, view: Scene, look: Look) -> _Trees:
    """Number and noun of the trees; their species is named in 80 %, and always where the look names it."""
    count = len(view.trees)
    present = {tree.species for tree in view.trees}
    species = view.trees[0].species if len(present) == 1 else None
    often = rng.random() < 0.8
    noun = "tree" if count == 1 else "trees"
    if species and (often or look.species):
        noun = f"{species} {noun}"
    number = rng.choice(NUMBERS[count])
    if count == 3 and number != "three" and rng.random() < 0.5:
        number = "three"
    return _Trees(count, species, "pine" in present, number, noun)


def _trees_in_season(rng: random.Random, trees: _Trees, season: str, name_season: bool) -> str:
    """For example "an oak tree in winter"."""
    return f"{trees.phrase} {rng.choice(WHEN[season])}" if name_season else trees.phrase


def _trees_of_season(rng: random.Random, trees: _Trees, season: str, name_season: bool) -> str:
    """For example "two snowy pine trees"."""
    if not name_season:
        return trees.phrase
    adjectives = PINE_ADJECTIVES if trees.with_pines else ADJECTIVES
    return f"{trees.number} {rng.choice(adjectives[season])} {trees.noun}"


def _trees_with_foliage(rng: random.Random, trees: _Trees, season: str, name_season: bool) -> str:
    """For example "an oak tree with bare branches" or "an oak tree with bare branches in winter"."""
    if not name_season:
        return trees.phrase
    mixture = "mixed" if trees.with_pines else "oak"  # oaks and birches share the phrases of oaks
    foliage = rng.choice(FOLIAGE[trees.species or mixture][season])
    if trees.count > 1 and foliage == "that is evergreen":
        foliage = "with green needles"
    when = rng.choice(WHEN[season]) if rng.random() < 0.55 else ""
    return f"{trees.phrase} {foliage} {when}"


def _trees_in_land(
    rng: random.Random, trees: _Trees, season: str, name_season: bool, trees_first: bool
) -> str:
    """For example "two trees on a snowy hill" (the trees first) or "a summer landscape with a birch tree"."""
    land = rng.choice(SNOWY_LANDS if season == "winter" else LANDS)
    kind = f"{rng.choice(LAND_ADJECTIVES[season])} {land}" if name_season else land
    if not trees_first:
        return f"a {kind} with {trees.phrase}"
    preposition = "on" if land == "hill" else "in"
    return f"{trees.phrase} {preposition} a {kind}"


def _surroundings(scene: Scene) -> list[str]:
    """Every phrase that is true of what else the scene has."""
    phrases: list[str] = []
    for thing, wordings in NEAR_THINGS.items():
        if getattr(scene, thing):
            phrases += wordings
    phrases += DISTANCE.get(scene.far, ())
    return phrases
