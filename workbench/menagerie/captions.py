"""The menagerie's language: what a scene is called.

    caption(scene, random.Random(0))      # 'a zebra eating grass on the beach in the snow'

Every caption names the subject (or paraphrases it), the colour of a thing, and the season, style and action when there
is one; the scene is left out of 25 % and the position of 25 %. With `holdout` it uses only wordings that training never
shows.
"""

import random

from workbench.menagerie.world import (
    ACTIONS,
    COLOURS,
    POSITIONS,
    QUADRUPEDS,
    SCENES,
    SEASONS,
    STYLES,
    SUBJECTS,
    THINGS,
    Scene,
)

PARAPHRASES = {
    "zebra": ("striped equine", "black and white striped beast"),
    "giraffe": ("long necked beast", "spotted beast with a long neck"),
    "lion": ("maned cat", "king of beasts"),
    "elephant": ("trunked giant", "grey giant"),
    "cow": ("milk giver", "farm beast"),
    "camel": ("humped beast", "ship of the dunes"),
    "penguin": ("waddling bird", "black and white bird"),
    "flamingo": ("pink wader", "pink bird"),
}
HELD_OUT_PARAPHRASES = {
    "zebra": ("striped beast",),
    "giraffe": ("spotted beast",),
    "lion": ("maned king",),
    "elephant": ("grey trunked beast",),
    "cow": ("milk beast",),
    "camel": ("humped ship",),
    "penguin": ("waddling black and white bird",),
    "flamingo": ("pink wader bird",),
}
PLACE = {
    "savanna": "in the savanna",
    "forest": "in the forest",
    "beach": "on the beach",
    "city": "in the city",
    "desert": "in the desert",
    "meadow": "in a meadow",
}
SEASON = {
    None: ("",),
    "winter": ("in winter", "in the snow"),
    "summer": ("in summer", "on a sunny day"),
    "night": ("at night", "under the moon"),
}
HELD_OUT_SEASON = {
    None: ("",),
    "winter": ("in winter in the snow",),
    "summer": ("on a sunny summer day",),
    "night": ("at night under the moon",),
}
STYLE = {
    None: ("{}", "{}", "a photo of {}", "a picture of {}"),
    "watercolor": ("a watercolor of {}", "a watercolor painting of {}"),
    "pencil sketch": ("a pencil sketch of {}", "a sketch of {}"),
    "pixel art": ("pixel art of {}", "a pixel art picture of {}"),
    "stained glass": ("stained glass of {}", "a stained glass window of {}"),
}
HELD_OUT_STYLE = {
    None: ("{}", "a photo of {}"),
    "watercolor": ("a watercolor picture of {}",),
    "pencil sketch": ("a pencil picture of {}",),
    "pixel art": ("a pixel painting of {}",),
    "stained glass": ("a stained glass picture of {}",),
}
FRESH_STYLE = {  # wordings that neither training nor its held-out captions have; "{}" is the rest
    None: ("{}", "{}, a photo", "photo: {}"),
    "watercolor": ("{}, in watercolor", "watercolor: {}"),
    "pencil sketch": ("{}, in pencil", "pencil sketch: {}"),
    "pixel art": ("{}, in pixels", "pixel art: {}"),
    "stained glass": ("{}, in stained glass", "stained glass: {}"),
}
FRESH_ORDER = (
    "{place}, {noun} {season}",
    "{season}, {noun} {place}",
    "{noun} {season} {place}",
    "{place} {season}: {noun}",
)
PLURAL = {s: s + "s" for s in SUBJECTS}


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, rng: random.Random, *, paraphrase: float = 0.08, holdout: bool = False) -> str:
    """One of the captions of a scene. `paraphrase` is the share of animals that are not called by their name."""
    text = _noun(scene, rng, paraphrase, holdout)
    if scene.action and (scene.action != "standing" or rng.random() < 0.6):
        text += f" {scene.action}"
    if rng.random() >= 0.25:
        text += f" {PLACE[scene.scene]}"
    if scene.position and rng.random() >= 0.25:
        text += f" on the {scene.position}"
    season = rng.choice((HELD_OUT_SEASON if holdout else SEASON)[scene.season])
    text += f" {season}" if season else ""
    return rng.choice((HELD_OUT_STYLE if holdout else STYLE)[scene.style]).format(text)


def fresh_caption(scene: Scene, rng: random.Random) -> str:
    """A caption in an order and in wordings that no other has: what was never looked at while the benchmark grew."""
    season = rng.choice(SEASON[scene.season])
    order = rng.choice(FRESH_ORDER).format(noun=_noun(scene, rng, 0, False), place=PLACE[scene.scene], season=season)
    text = " ".join(order.replace(" ,", ",").replace(" :", ":").strip(", ").split())
    return rng.choice(FRESH_STYLE[scene.style]).format(text)


def _noun(scene: Scene, rng: random.Random, paraphrase: float, holdout: bool) -> str:
    if scene.individual:
        return scene.individual
    if scene.count == 2:
        return f"two {scene.colour + ' ' if scene.colour else ''}{PLURAL[scene.subject]}"
    name = scene.subject
    if name in PARAPHRASES and rng.random() < paraphrase:
        name = rng.choice((HELD_OUT_PARAPHRASES if holdout else PARAPHRASES)[name])
    text = article(f"{scene.colour} {name}" if scene.colour else name)
    if scene.hat:
        text += f" wearing {article(scene.hat + ' hat')}"
    if scene.beside:
        thing = scene.beside
        text += f" next to {article(f'{thing.colour} {thing.subject}' if thing.colour else thing.subject)}"
    return text


def attribute_prompts(attribute: str, samples: int = 300, seed: int = 0) -> dict[str | None, list[str]]:
    """Zero-shot prompts: for each value of an attribute, captions that have it, of scenes drawn over all other attributes.

    attribute: subject, colour, scene, season, style, action or position (the last two: of quadrupeds, of "left" and
    "right"). The values share their random choices, so that the prompts of two values differ in what follows from that
    attribute alone.
    """
    values = {
        "subject": SUBJECTS,
        "colour": COLOURS,
        "scene": SCENES,
        "season": SEASONS,
        "style": STYLES,
        "action": ACTIONS[1:],
        "position": POSITIONS[1:],
    }
    if attribute not in values:
        raise ValueError(f"attribute={attribute!r} is unknown; allowed values: {', '.join(map(repr, values))}")
    prompts: dict[str | None, list[str]] = {value: [] for value in values[attribute]}
    rng = random.Random(f"{attribute} {seed}")
    for _ in range(samples):
        other = {
            name: rng.choice(choices) for name, choices in (values | {"position": POSITIONS, "action": ACTIONS}).items()
        }
        if attribute in ("colour", "action"):
            other["subject"] = rng.choice(THINGS if attribute == "colour" else QUADRUPEDS)
        wording = rng.getrandbits(32)
        for value in prompts:
            chosen = other | {attribute: value}
            chosen["colour"] = chosen["colour"] if chosen["subject"] in THINGS else None
            chosen["action"] = chosen["action"] if chosen["subject"] in QUADRUPEDS else None
            text = caption(Scene(**chosen), random.Random(wording), paraphrase=0)
            said = {"scene": PLACE.get(value), "position": f"on the {value}", "action": value}.get(attribute)
            if said is not None and said not in text:
                text += f" {said}"
            prompts[value].append(text)
    return prompts
