"""What stands behind the subjects, and the styles in which a finished picture is shown."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

SIZE = 64
SUPERSAMPLE = 4
CANVAS = SIZE * SUPERSAMPLE

RGB = tuple[int, int, int]
SKY: dict[str, RGB] = {
    "savanna": (165, 205, 230),
    "forest": (150, 195, 205),
    "beach": (140, 205, 240),
    "city": (175, 190, 205),
    "desert": (205, 215, 225),
    "meadow": (140, 195, 240),
}
GROUND: dict[str, RGB] = {
    "savanna": (200, 170, 85),
    "forest": (75, 110, 55),
    "beach": (238, 218, 155),
    "city": (125, 125, 130),
    "desert": (228, 182, 112),
    "meadow": (115, 185, 75),
}
SNOW: RGB = (242, 245, 250)


def shade(colour: RGB, rng: random.Random, amount: int = 8) -> RGB:
    shift = rng.randint(-amount, amount)
    return tuple(max(0, min(255, v + shift)) for v in colour)


@dataclass(frozen=True)
class Light:
    """What a season does to the colours of the scenery."""

    season: str | None

    @property
    def window(self) -> RGB:
        return (250, 222, 120) if self.season == "night" else (215, 228, 236)

    def lit(self, colour: RGB) -> RGB:
        return tuple(int(v * 0.42) for v in colour) if self.season == "night" else colour

    def snowy(self, colour: RGB) -> RGB:
        return SNOW if self.season == "winter" else self.lit(colour)


def draw_backdrop(d: ImageDraw.ImageDraw, scene: str, season: str | None, rng: random.Random) -> int:
    """Sky, ground and what makes the scene known by its shapes in every season and style; returns the horizon's y."""
    light = Light(season)
    sky = {"winter": (205, 214, 228), "summer": (85, 175, 255), "night": (20, 24, 66)}.get(season, SKY[scene])
    horizon = SUPERSAMPLE * (34 if scene == "city" else rng.randint(31, 35))
    d.rectangle([0, 0, CANVAS, horizon], fill=shade(sky, rng, 5))
    d.rectangle([0, horizon, CANVAS, CANVAS], fill=shade(light.snowy(GROUND[scene]), rng, 5))
    if season == "night":
        d.ellipse([20, 14, 56, 50], fill=(242, 242, 205))
        d.ellipse([34, 10, 66, 42], fill=sky)
        for _ in range(9):
            x, y = rng.randint(60, CANVAS - 6), rng.randint(4, 60)
            d.rectangle([x, y, x + 4, y + 4], fill=(240, 240, 230))
    if season == "summer":
        d.ellipse([CANVAS - 60, 12, CANVAS - 16, 56], fill=(255, 222, 50))
    BACKDROP[scene](d, horizon, rng, light)
    return horizon


def _savanna(d, horizon, rng, light):
    for x in (rng.randint(20, 90), rng.randint(160, 240)):  # flat-topped acacias
        d.rectangle([x - 4, horizon - 46, x + 4, horizon + 4], fill=light.lit((110, 80, 50)))
        d.ellipse([x - 40, horizon - 66, x + 40, horizon - 40], fill=light.snowy((105, 135, 55)))


def _forest(d, horizon, rng, light):
    for k in range(6):
        x, h = 22 + 42 * k + rng.randint(-8, 8), rng.randint(72, 104)
        d.rectangle([x - 4, horizon - 20, x + 4, horizon + 6], fill=light.lit((90, 60, 40)))
        d.polygon(
            [(x - 24, horizon - 8), (x, horizon - h), (x + 24, horizon - 8)],
            fill=light.snowy(shade((35, 100, 50), rng)),
        )


def _beach(d, horizon, rng, light):
    d.rectangle([0, horizon - 28, CANVAS, horizon + 8], fill=light.lit((30, 110, 200)))
    x = rng.choice((24, 232)) + rng.randint(-6, 6)  # a palm
    d.rectangle([x - 4, horizon - 72, x + 4, horizon + 28], fill=light.lit((130, 95, 60)))
    for dx, dy in ((-34, -56), (34, -56), (-28, -92), (28, -92)):
        d.line([(x, horizon - 74), (x + dx, horizon + dy)], fill=light.snowy((40, 130, 60)), width=9)


def _city(d, horizon, rng, light):
    x = 0
    while x < CANVAS:  # everything on a grid of 4 pixels, like the windows of real facades
        w, h = 16 * rng.randint(2, 3), 16 * rng.randint(3, 6)
        d.rectangle([x, horizon - h, x + w - 3, horizon], fill=light.lit(shade((112, 106, 122), rng, 18)))
        for y in range(horizon - h + 6, horizon - 10, 16):
            for wx in range(x + 5, x + w - 8, 16):
                d.rectangle([wx, y, wx + 7, y + 8], fill=light.window)
        d.rectangle([x, horizon - h - 4, x + w - 3, horizon - h], fill=light.snowy((90, 85, 98)))
        x += w


def _desert(d, horizon, rng, light):
    for k in range(3):  # dunes behind, cacti before
        x, r = 40 + 88 * k + rng.randint(-14, 14), rng.randint(54, 76)
        d.chord(
            [x - r, horizon - r // 2, x + r, horizon + r // 2], 180, 360, fill=light.snowy(shade((212, 160, 90), rng))
        )
    for x in (rng.randint(14, 40), rng.randint(216, 242)):
        green = light.lit((60, 130, 70))
        d.rectangle([x - 5, horizon - 34, x + 5, horizon + 26], fill=green)
        d.rectangle([x - 18, horizon - 16, x - 12, horizon + 4], fill=green)
        d.rectangle([x - 18, horizon - 2, x, horizon + 4], fill=green)
        d.rectangle([x + 12, horizon - 24, x + 18, horizon - 4], fill=green)
        d.rectangle([x, horizon - 10, x + 18, horizon - 4], fill=green)


def _meadow(d, horizon, rng, light):
    fence = light.lit((150, 110, 70))
    for y in (horizon - 22, horizon - 10):
        d.rectangle([0, y, CANVAS, y + 4], fill=fence)
    for x in range(12, CANVAS, 32):
        d.rectangle([x, horizon - 30, x + 7, horizon + 2], fill=fence)
    for _ in range(14):
        x, y = rng.randrange(CANVAS), rng.randint(horizon + 14, CANVAS)
        d.ellipse(
            [x - 4, y - 4, x + 4, y + 4],
            fill=light.snowy(rng.choice(((240, 80, 120), (250, 230, 80), (250, 250, 250)))),
        )


BACKDROP = {
    "savanna": _savanna,
    "forest": _forest,
    "beach": _beach,
    "city": _city,
    "desert": _desert,
    "meadow": _meadow,
}


def _watercolor(image):
    return Image.blend(image.filter(ImageFilter.GaussianBlur(1.2)), Image.new("RGB", image.size, (252, 244, 228)), 0.35)


def _pencil_sketch(image):
    grey = image.convert("L")
    lines = ImageOps.autocontrast(ImageOps.invert(grey.filter(ImageFilter.FIND_EDGES)).crop((1, 1, SIZE - 1, SIZE - 1)))
    lines = ImageOps.expand(lines, 1, 255).convert("RGB")
    wash = Image.blend(ImageEnhance.Color(image).enhance(0.9), Image.new("RGB", image.size, (255, 255, 255)), 0.45)
    return Image.fromarray(
        (np.asarray(wash, np.float32) * (0.35 + 0.65 * np.asarray(lines, np.float32) / 255)).astype(np.uint8)
    )


def _pixel_art(image):
    small = ImageOps.posterize(
        ImageEnhance.Contrast(image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX)).enhance(1.2), 3
    )
    return small.point(lambda v: v * 255 // 224).resize(image.size, Image.Resampling.NEAREST)


def _stained_glass(image):
    image = ImageEnhance.Color(image).enhance(1.5)
    d = ImageDraw.Draw(image)
    for at in range(0, SIZE + 1, 16):
        d.line([(at, 0), (at, SIZE)], fill=(20, 18, 24))
        d.line([(0, at), (SIZE, at)], fill=(20, 18, 24))
    return image


STYLE = {
    None: lambda image: image,
    "watercolor": _watercolor,
    "pencil sketch": _pencil_sketch,
    "pixel art": _pixel_art,
    "stained glass": _stained_glass,
}
