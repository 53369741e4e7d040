"""Short prompts with what they claim, for the scorer: a contrastive batch holds many texts that are true of many pictures."""

import random
from typing import NamedTuple

from models.miniature.scenes import SEASONS, STYLES, Look, Scene, season_of, trees_of

SEASON_WORDS = {"summer": ("summer",), "autumn": ("autumn", "fall"), "winter": ("winter", "winter")}
SEASON_ADJECTIVES = {"summer": ("green", "leafy"), "autumn": ("golden", "colorful"), "winter": ("snowy", "snow covered")}
STYLE_WORDS = {"photo": ("photo", "picture", "image"), "sketch": ("pencil sketch", "sketch", "drawing")}
BACKGROUND_WORDS = {
    "mountains": ("mountains",), "hills": ("hills",), "distant trees": ("distant trees", "forest"), "sky": ("sky",),
    "ground": ("ground", "field"),
}  # fmt: skip
OBJECT_WORDS = {  # noun phrases by the nouns of scenes.instances
    "tree": ("tree",), "house": ("house", "small house", "building"), "lake": ("lake", "pond"), "path": ("path",), "fence": ("fence",),
    "rocks": ("rocks", "stones"), **BACKGROUND_WORDS,
}  # fmt: skip
NOUNS = tuple(OBJECT_WORDS)
PLURALS = {"rocks", "stones", "mountains", "hills", "distant trees"}
SPECIES_NAMES = ("oak", "birch", "pine", "mixed", "none")
ANY = -1


class Facts(NamedTuple):
    """What a picture shows: indices into SEASONS, SPECIES_NAMES, STYLES; `nouns` and the background bit as a mask."""

    season: int
    species: int
    style: int
    nouns: int


def facts(scene: Scene, look: Look, nouns: list[str]) -> Facts:
    """The facts of a picture of these objects of the scene."""
    species = {tree.species for tree in trees_of(scene, look)}
    shown = "none" if "tree" not in nouns else species.pop() if len(species) == 1 else "mixed"
    bits = sum(1 << NOUNS.index(noun) for noun in nouns) | any(noun in BACKGROUND_WORDS for noun in nouns) << len(NOUNS)
    return Facts(SEASONS.index(season_of(scene, look)), SPECIES_NAMES.index(shown), STYLES.index(look.style), bits)


def _article(phrase):
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def indefinite(phrase: str) -> str:
    """The phrase with "a" or "an", unless it is a plural."""
    return phrase if phrase in PLURALS else _article(phrase)


def scene_prompt(rng: random.Random, shown: Facts) -> tuple[str, Facts]:
    """(a short text true of a whole scene, what it claims); ANY where it claims nothing."""
    season, style = SEASONS[shown.season], STYLES[shown.style]
    says_season, says_species = rng.random() < 0.6, shown.species < 3 and rng.random() < 0.45
    says_style = rng.random() < 0.35 or not (says_season or says_species)
    season_or_any, species_or_any = shown.season if says_season else ANY, shown.species if says_species else ANY
    claims = Facts(season_or_any, species_or_any, shown.style if says_style else ANY, 0)
    word, form = rng.choice(SEASON_WORDS[season]), rng.random()
    if says_season and not says_species and form < 0.35:
        phrase = rng.choice((word, f"a {word} landscape", f"a {word} scene", f"trees in {word}", f"in {word}"))
        phrase = phrase.replace("a autumn", "an autumn")
    elif says_style and not (says_season or says_species) and form < 0.4:
        return rng.choice(("a ", "")) + rng.choice(STYLE_WORDS[style]), claims
    else:
        phrase = f"{SPECIES_NAMES[shown.species]} tree" if says_species else "tree"
        if says_season and form < 0.5:
            phrase = f"{rng.choice(SEASON_ADJECTIVES[season] + (word,))} {phrase}"
        elif says_season:
            phrase = f"{phrase} in {word}"
        if rng.random() < 0.8:
            phrase = _article(phrase)
    if says_style:
        opening = rng.choice(STYLE_WORDS[style]) + " of"
        return (_article(opening) if rng.random() < 0.8 else opening) + " " + phrase, claims
    return phrase, claims


def object_prompt(rng: random.Random, shown: Facts, noun: str) -> tuple[str, Facts]:
    """(a short text that names the single object shown, what it claims)."""
    if noun in BACKGROUND_WORDS and rng.random() < 0.15:
        return rng.choice(("the background", "background")), Facts(ANY, ANY, ANY, 1 << len(NOUNS))
    phrase, season, species = rng.choice(OBJECT_WORDS[noun]), ANY, ANY
    if noun == "tree":
        if shown.species < 3 and rng.random() < 0.35:
            phrase, species = f"{SPECIES_NAMES[shown.species]} tree", shown.species
        if rng.random() < 0.25:
            phrase, season = f"{phrase} in {SEASONS[shown.season]}", shown.season
    if noun in ("sky", "ground") and rng.random() < 0.7:
        phrase = f"the {phrase}"
    elif phrase not in PLURALS and rng.random() < 0.8:
        phrase = _article(phrase)
    opening = rng.choice(("", "", "a photo of ", "a picture of ")) if shown.style == 0 else rng.choice(("", "a sketch of "))
    return opening + phrase, Facts(season, species, ANY, 1 << NOUNS.index(noun))
