"""How each subject is drawn: `DRAW[subject](pen, colour, action)`, which returns where a hat would sit, if anywhere."""

import random

import numpy as np
from PIL import Image, ImageDraw

from workbench.menagerie.backdrops import CANVAS, RGB, shade

PAINT: dict[str, RGB] = {
    "red": (214, 40, 40),
    "blue": (40, 80, 214),
    "green": (30, 150, 60),
    "yellow": (245, 215, 40),
    "purple": (140, 50, 180),
    "orange": (250, 130, 20),
}


class Pen:
    """Draws on one layer in a subject's own coordinates: x to the right of its middle, y down to its feet at 0."""

    def __init__(self, layer: Image.Image, x: float, base: float, scale: float, rng: random.Random):
        self.layer, self.rng, self.scale = layer, rng, scale
        self.x, self.base = x, base
        self.d = ImageDraw.Draw(layer)

    def at(self, *points):
        return [(self.x + x * self.scale, self.base + y * self.scale) for x, y in points]

    def ellipse(self, x0, y0, x1, y1, fill):
        self.d.ellipse(self.at((x0, y0), (x1, y1)), fill=fill)

    def rect(self, x0, y0, x1, y1, fill):
        self.d.rectangle(self.at((x0, y0), (x1, y1)), fill=fill)

    def poly(self, points, fill):
        self.d.polygon(self.at(*points), fill=fill)

    def line(self, points, fill, width):
        self.d.line(self.at(*points), fill=fill, width=max(1, round(width * self.scale)))

    def pattern(self, pattern: Image.Image):
        """Lay a pattern over what is drawn so far, and nowhere else."""
        self.layer.paste(pattern, (0, 0), self.layer.getchannel("A"))


# name: body width, height, leg length, neck length, leg width, head radius, neck angle in degrees, body, dark
BUILD = {
    "zebra": (106, 58, 44, 36, 11, 14, 58, (248, 248, 248), (18, 18, 18)),
    "giraffe": (82, 48, 68, 88, 10, 13, 66, (240, 194, 92), (140, 78, 28)),
    "lion": (98, 50, 34, 18, 13, 17, 25, (224, 168, 80), (140, 72, 24)),
    "elephant": (116, 80, 40, 16, 22, 24, 20, (140, 143, 154), (104, 107, 120)),
    "cow": (108, 60, 34, 18, 13, 15, 25, (240, 236, 230), (24, 24, 28)),
    "camel": (94, 46, 56, 42, 10, 13, 50, (204, 150, 92), (168, 116, 66)),
}
QUADRUPEDS = tuple(BUILD)


def _quadruped(subject):
    def draw(pen: Pen, colour, action):
        w, h, leg, neck, leg_width, r, angle, body, dark = BUILD[subject]
        body = shade(body, pen.rng, 5)
        top, solid = -leg - h, body + (255,)
        stride = (-30, -16, 16, 30) if action == "running" else (0, 0, 0, 0)
        for hip, foot in zip((-0.40, -0.26, 0.26, 0.40), stride):
            pen.line([(hip * w, -leg - h * 0.3), (hip * w + foot, 0)], solid, leg_width)
        pen.ellipse(-w / 2, top, w / 2, top + h, solid)
        if subject == "camel":
            pen.ellipse(-28, top - 22, 12, top + 24, solid)
        shoulder = (w * 0.38, top + h * 0.36)
        reach = neck + 16
        if action == "eating grass":
            head = (shoulder[0] + reach * 0.6 + 8, -r * 0.6)
        else:
            a = np.deg2rad(angle - (12 if action == "running" else 0))
            head = (shoulder[0] + reach * np.cos(a), shoulder[1] - reach * np.sin(a))
        x, y = head
        if subject == "lion":
            pen.ellipse(x - r * 1.6, y - r * 1.6, x + r * 1.6, y + r * 1.6, dark + (255,))
        pen.line([(shoulder[0] - 8, shoulder[1] + 6), head], solid, 26 if subject == "elephant" else 18)
        pen.ellipse(x - r, y - r * 0.8, x + r * 1.5, y + r * 0.8, solid)
        if subject in ("zebra", "giraffe", "cow"):
            pen.poly([(x - r * 0.5, y - r * 0.5), (x - r * 0.2, y - r * 1.6), (x + r * 0.3, y - r * 0.5)], solid)
        pen.line([(-w * 0.48, top + h * 0.35), (-w * 0.60, top + h)], solid, 6)
        if subject == "elephant":
            pen.line([(x + r * 1.1, y), (x + r * 1.5, y + 30), (x + r * 1.3, min(y + 54, -2))], solid, 12)
        if subject in COAT:
            pen.pattern(COAT[subject](pen, body, dark, top, w, h))
        if subject == "elephant":
            pen.ellipse(x - r * 1.2, y - r * 0.9, x + r * 0.1, y + r * 1.1, dark + (255,))
        pen.ellipse(x + r * 0.4, y - r * 0.45, x + r * 0.4 + 7, y - r * 0.45 + 7, (8, 8, 8, 255))  # the eye
        return x + r * 0.1, y - r * 0.7

    return draw


def _stripes(pen: Pen, body, dark, top, w, h):
    image = Image.new("RGB", pen.layer.size, body)
    d, start = ImageDraw.Draw(image), pen.x % 18
    for k in range(-3, 17):
        x = start + 18 * k
        d.line([(x, 0), (x, CANVAS)], fill=dark, width=9)
    return image


def _patches(pen: Pen, body, dark, top, w, h):
    image = Image.new("RGB", pen.layer.size, body)
    d = ImageDraw.Draw(image)
    for j in range(15):
        for i in range(15):
            x, y = pen.x % 19 + 19 * i + (9 if j % 2 else 0) - 19, pen.base % 19 + 19 * j - 19
            d.rounded_rectangle([x, y, x + 12, y + 12], 4, fill=dark)
    return image


def _blotches(pen: Pen, body, dark, top, w, h):
    image = Image.new("RGB", pen.layer.size, body)
    d = ImageDraw.Draw(image)
    for at_x, at_y in ((-0.34, 0.30), (-0.06, 0.62), (0.20, 0.24), (0.42, 0.70)):
        x, y = pen.at((at_x * w + pen.rng.uniform(-5, 5), top + at_y * h))[0]
        r = pen.rng.uniform(13, 17) * pen.scale
        d.ellipse([x - r * 1.2, y - r, x + r * 1.2, y + r], fill=dark)
    return image


COAT = {"zebra": _stripes, "giraffe": _patches, "cow": _blotches}


def _penguin(pen: Pen, colour, action):
    dark, white, beak = (26, 28, 40, 255), (246, 246, 246, 255), (244, 160, 30, 255)
    pen.ellipse(-32, -100, 32, 0, dark)
    pen.ellipse(-21, -76, 21, -4, white)
    pen.ellipse(-22, -128, 22, -84, dark)
    pen.poly([(14, -112), (42, -104), (14, -98)], beak)
    pen.ellipse(3, -118, 12, -109, white)
    pen.ellipse(-26, -8, -2, 4, beak)
    pen.ellipse(2, -8, 26, 4, beak)
    return 0, -122


def _flamingo(pen: Pen, colour, action):
    pink = shade((246, 120, 165), pen.rng, 6) + (255,)
    for x in (-8, 8):
        pen.line([(x, -62), (x, 0)], pink, 6)
    pen.ellipse(-40, -100, 28, -54, pink)
    pen.line([(20, -80), (40, -112), (24, -136)], pink, 11)
    pen.ellipse(12, -152, 38, -126, pink)
    pen.poly([(34, -146), (58, -132), (34, -128)], (40, 30, 36, 255))
    pen.ellipse(24, -145, 30, -139, (8, 8, 8, 255))
    return 24, -148


def _car(pen: Pen, colour, action):
    paint, glass, black = colour + (255,), (205, 230, 245, 255), (24, 24, 24, 255)
    pen.rect(-72, -50, 72, -16, paint)
    pen.poly([(-44, -48), (-26, -84), (28, -84), (48, -48)], paint)
    pen.poly([(-32, -50), (-20, -76), (-3, -76), (-3, -50)], glass)
    pen.poly([(5, -50), (5, -76), (22, -76), (36, -50)], glass)
    for x in (-40, 40):
        pen.ellipse(x - 18, -32, x + 18, 4, black)
        pen.ellipse(x - 7, -21, x + 7, -7, (190, 190, 195, 255))


def _hydrant(pen: Pen, colour, action):
    paint, dark = colour + (255,), tuple(int(v * 0.65) for v in colour) + (255,)
    pen.rect(-25, -88, 25, 0, paint)
    pen.ellipse(-28, -114, 28, -66, paint)
    pen.rect(-44, -68, 44, -48, dark)
    pen.ellipse(-12, -70, 12, -46, paint)
    pen.rect(-34, -10, 34, 2, dark)


def _balloon(pen: Pen, colour, action):
    paint = colour + (255,)
    pen.line([(0, -84), (-6, -40), (0, 0)], (60, 60, 60, 255), 4)
    pen.ellipse(-44, -178, 44, -84, paint)
    pen.poly([(-9, -90), (9, -90), (0, -72)], paint)
    pen.ellipse(-26, -164, -8, -138, tuple(min(255, v + 90) for v in colour) + (255,))


def _house(pen: Pen, colour, action):
    paint, dark = colour + (255,), tuple(int(v * 0.6) for v in colour) + (255,)
    pen.rect(-54, -70, 54, 0, paint)
    pen.poly([(-66, -68), (0, -126), (66, -68)], dark)
    pen.rect(-12, -40, 12, 0, (90, 60, 40, 255))
    for x in (-32, 32):
        pen.rect(x - 11, -56, x + 11, -32, (226, 240, 248, 255))


def _zebra_crossing(pen: Pen, colour, action):
    pen.poly([(-60, -64), (60, -64), (120, 44), (-120, 44)], (70, 70, 76, 255))
    for k in range(5):
        top, bottom = -44 + 22 * k, -54 + 22 * k
        pen.poly(
            [
                (x, y)
                for x, y in ((-52 - 12 * k, bottom), (52 + 12 * k, bottom), (58 + 12 * k, top), (-58 - 12 * k, top))
            ],
            (245, 245, 245, 255),
        )


def _camel_coat(pen: Pen, colour, action):
    tan, dark = (204, 150, 92, 255), (150, 100, 56, 255)
    pen.poly([(-26, -120), (26, -120), (44, -4), (-44, -4)], tan)
    pen.line([(-26, -112), (-54, -50)], tan, 18)
    pen.line([(26, -112), (54, -50)], tan, 18)
    pen.line([(0, -116), (0, -4)], dark, 5)
    pen.poly([(-20, -122), (20, -122), (0, -92)], dark)


DRAW = {name: _quadruped(name) for name in QUADRUPEDS} | {
    "penguin": _penguin,
    "flamingo": _flamingo,
    "car": _car,
    "hydrant": _hydrant,
    "balloon": _balloon,
    "house": _house,
    "zebra crossing": _zebra_crossing,
    "camel coat": _camel_coat,
}


def draw_hat(pen: Pen, head, paint):
    """A hat on a head, which is the (x, y) that a subject's drawing returned."""
    x, y = head
    pen.rect(x - 15, y - 26, x + 15, y, paint + (255,))
    pen.rect(x - 25, y - 4, x + 25, y + 5, paint + (255,))
