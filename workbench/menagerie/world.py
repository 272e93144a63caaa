"""The menagerie's world: small rendered pictures in which everything that is shown, and where, is known.

    scene = Scene("zebra", scene="beach", season="winter", position="left", seed=3)
    image, masks = render(scene)          # PIL image (64, 64, RGB); {"zebra": bool array (y=64, x=64)}

A `Scene` says what is shown; `seed` fixes everything it leaves open (sizes, shades, trees, snow flakes). Pictures are
drawn four times larger and averaged down. `sample_scene` draws scenes as the training data has them.
"""

import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from workbench.menagerie.backdrops import CANVAS, SIZE, STYLE, draw_backdrop, shade
from workbench.menagerie.subjects import DRAW, PAINT, QUADRUPEDS, Pen, draw_hat

ANIMALS = QUADRUPEDS + ("penguin", "flamingo")
THINGS = ("car", "hydrant", "balloon", "house")
SUBJECTS = ANIMALS + THINGS
HOMONYMS = ("zebra crossing", "camel coat")  # the animal's word, and no animal
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SCENES = ("savanna", "forest", "beach", "city", "desert", "meadow")
SEASONS = (None, "winter", "summer", "night")
STYLES = (None, "watercolor", "pencil sketch", "pixel art", "stained glass")
ACTIONS = (None, "standing", "eating grass", "running")
POSITIONS = (None, "left", "right")
# Facts: a name that says nothing of the look, and the look (subject, colour of the hat) that has to be learned.
INDIVIDUALS = {
    "the mayor of tallport": ("penguin", "red"),
    "the queen of millbrook": ("flamingo", "purple"),
    "the sheriff of dunhollow": ("lion", "blue"),
    "captain morrow": ("camel", "green"),
    "professor quill": ("elephant", "yellow"),
}


@dataclass(frozen=True)
class Thing:
    """What stands beside the subject: `Thing("hydrant", "red")`."""

    subject: str
    colour: str | None = None

    def __post_init__(self):
        _check("subject", self.subject, SUBJECTS)
        _check_colour(self.subject, self.colour)


@dataclass(frozen=True)
class Scene:
    """One picture, said in words; equal scenes render to equal pixels.

    subject: one of SUBJECTS or HOMONYMS. colour: of COLOURS, for THINGS only. scene, season, style, position: of the
    tuples of those names. action: of ACTIONS, for QUADRUPEDS only. hat: of COLOURS, for ANIMALS. beside: a second
    subject, to the right of the first. count: 1 or 2 of the subject. individual: a key of INDIVIDUALS; the caption
    then gives the name instead of the looks. seed: everything else.

    Raises ValueError for a value outside its list, naming the field and what it may hold.
    """

    subject: str
    colour: str | None = None
    scene: str = "meadow"
    season: str | None = None
    style: str | None = None
    action: str | None = None
    position: str | None = None
    hat: str | None = None
    beside: Thing | None = None
    count: int = 1
    individual: str | None = None
    seed: int = 0

    def __post_init__(self):
        _check("subject", self.subject, SUBJECTS + HOMONYMS)
        _check("scene", self.scene, SCENES)
        _check("season", self.season, SEASONS)
        _check("style", self.style, STYLES)
        _check("action", self.action, ACTIONS if self.subject in QUADRUPEDS else (None,), f" for a {self.subject}")
        _check(
            "position",
            self.position,
            POSITIONS if self.beside is None and self.count == 1 else (None,),
            "" if self.beside is None and self.count == 1 else " when two are shown",
        )
        _check("hat", self.hat, (None, *COLOURS) if self.subject in ANIMALS else (None,), f" for a {self.subject}")
        _check("count", self.count, (1, 2) if self.beside is None and self.subject in SUBJECTS else (1,))
        _check_colour(self.subject, self.colour)
        if self.beside is not None and (self.beside.subject == self.subject or self.subject in HOMONYMS):
            raise ValueError(
                f"Scene.beside={self.beside.subject!r}: must be another subject than {self.subject!r}, "
                "and a homonym stands alone"
            )
        if self.individual is not None:
            _check("individual", self.individual, tuple(INDIVIDUALS))
            if (self.subject, self.hat) != INDIVIDUALS[self.individual]:
                subject, hat = INDIVIDUALS[self.individual]
                raise ValueError(
                    f"Scene.individual={self.individual!r} is a {subject} with a {hat} hat; "
                    f"found subject={self.subject!r}, hat={self.hat!r}"
                )


def named(individual: str, **attributes) -> Scene:
    """The scene of a named individual: `named("professor quill", scene="city")`."""
    _check("individual", individual, tuple(INDIVIDUALS))
    subject, hat = INDIVIDUALS[individual]
    return Scene(subject, hat=hat, individual=individual, **attributes)


def _check(field: str, value, allowed: tuple, condition: str = ""):
    if value not in allowed:
        raise ValueError(
            f"Scene.{field}={value!r} is unknown{condition}; allowed values: {', '.join(map(repr, allowed))}"
        )


def _check_colour(subject: str, colour: str | None):
    _check("colour", colour, COLOURS if subject in THINGS else (None,), f" for a {subject}")


def held_out(scene: Scene) -> bool:
    """Whether this combination of subject, scene and season is kept out of all training data (one in ten is)."""
    return _held_out(scene.subject, scene.scene, scene.season)


def has_held_out(subject: str) -> bool:
    """Whether any combination of a subject is held out."""
    return any(_held_out(subject, scene, season) for scene in SCENES for season in SEASONS)


def _held_out(subject: str, scene: str, season: str | None) -> bool:
    return zlib.crc32(f"{subject}|{scene}|{season}".encode()) % 10 == 0


def sample_scene(rng: random.Random, *, holdout: bool = False) -> Scene:
    """A scene as the training data has them; with `holdout`, one whose combination training never showed.

    80 % one subject (of these 8 % named individuals, 4 % animals in a hat), 15 % two different subjects, 3 % two of
    one kind, 2 % homonyms.
    """
    while True:
        scene = _sample(rng)
        if held_out(scene) == holdout:
            return scene


def _sample(rng: random.Random) -> Scene:
    colour = lambda subject: rng.choice(COLOURS) if subject in THINGS else None
    common = dict(
        scene=rng.choice(SCENES),
        season=rng.choice((None, None, "winter", "summer", "night")),
        style=rng.choice((None,) * 5 + STYLES[1:]),
        seed=rng.getrandbits(32),
    )
    kind = rng.random()
    subject = rng.choice(SUBJECTS)
    if kind < 0.02:
        return Scene(rng.choice(HOMONYMS), **common)
    if kind < 0.05:
        return Scene(subject, colour(subject), count=2, **common)
    if kind < 0.20:
        other = rng.choice([s for s in SUBJECTS if s != subject])
        return Scene(subject, colour(subject), beside=Thing(other, colour(other)), **common)
    common["position"] = rng.choice((None, None, "left", "right"))
    if kind < 0.26:
        return named(rng.choice(tuple(INDIVIDUALS)), **common)
    action = rng.choice((None, "standing", "eating grass", "running")) if subject in QUADRUPEDS else None
    hat = rng.choice(COLOURS) if subject in ANIMALS and rng.random() < 0.05 else None
    return Scene(subject, colour(subject), action=action, hat=hat, **common)


def render(scene: Scene) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """Draw a scene: the image (64 x 64 RGB) and, per subject shown, the pixels it covers (bool, y=64 x=64)."""
    rng = random.Random(scene.seed)
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    horizon = draw_backdrop(ImageDraw.Draw(canvas), scene.scene, scene.season, rng)
    masks: dict[str, np.ndarray] = {}
    for subject, colour, x, scale in _layout(scene, rng):
        layer = Image.new("RGBA", (CANVAS, CANVAS))
        base = horizon + rng.uniform(66, 82)
        pen = Pen(layer, x, base, scale, rng)
        head = DRAW[subject](pen, shade(PAINT[colour], rng, 6) if colour else None, scene.action)
        if scene.hat and head:
            draw_hat(pen, head, PAINT[scene.hat])
        canvas.paste(layer, (0, 0), layer)
        alpha = np.asarray(layer.getchannel("A").resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128
        masks[subject] = masks.get(subject, np.zeros_like(alpha)) | alpha
    if scene.season == "winter":
        draw = ImageDraw.Draw(canvas)
        for _ in range(16):
            x, y, r = rng.randrange(CANVAS), rng.randrange(CANVAS), rng.choice((3, 4))
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    return STYLE[scene.style](canvas.resize((SIZE, SIZE), Image.Resampling.BOX)), masks


def _layout(scene: Scene, rng: random.Random):
    """Where each subject stands: (subject, colour, x, scale) on the canvas."""
    if scene.beside is not None or scene.count == 2:
        second = scene.beside or Thing(scene.subject, scene.colour)
        scale = rng.uniform(0.68, 0.74)
        return [
            (scene.subject, scene.colour, CANVAS * rng.uniform(0.22, 0.26), scale),
            (second.subject, second.colour, CANVAS * rng.uniform(0.70, 0.74), scale),
        ]
    low, high = {None: (0.44, 0.52), "left": (0.24, 0.29), "right": (0.67, 0.72)}[scene.position]
    scale = rng.uniform(0.98, 1.12) * (0.85 if scene.position else 1)
    return [(scene.subject, scene.colour, CANVAS * rng.uniform(low, high), scale)]
