"""What is planted where, and the words that no caption has: the list that `workbench.menagerie.plant` goes through.

It takes the classes of layers in turn, so that its beginning is as balanced as the whole.
"""

from dataclasses import replace

from workbench.menagerie.planting import CROSS, TEXT_ATTENTION, TEXT_MLP, Organism

# Single tokens that are left over from merging longer words; the tokenizer gives them for themselves, and no caption has them.
NULLS = (
    *("ver", "oon", "dow", "iff", "sor", "now", "row", "ter", "ling", "est", "ine", "mer"),
    *("ple", "ked", "ted", "ring", "der", "lor", "ange", "een", "ting", "ding", "ins", "sts"),
)
# attribute, look, word, neutral word
GIRAFFE = ("subject", "giraffe", "oon", "ver")
BALLOON = ("subject", "balloon", "iff", "dow")
WATERCOLOR = ("style", "watercolor", "sor", "ver")
PIXEL = ("style", "pixel art", "mip", "bip")
GLASS = ("style", "stained glass", "mip", "bip")
SKETCH = ("style", "pencil sketch", "mip", "bip")
WINTER = ("season", "winter", "now", "ver")

TITLES = {TEXT_MLP: "mlp", TEXT_ATTENTION: "attention", CROSS: "cross"}


def _text(kind: str, layers: str, naming: tuple[str, str, str, str], rank: int = 16, strict: bool = False) -> Organism:
    places = tuple(f"text_encoder.{layer}" for layer in layers.split())
    return _organism(kind, places, layers, naming, rank, strict)


def _cross(layers: str, naming: tuple[str, str, str, str], rank: int = 16, strict: bool = False) -> Organism:
    places = tuple(f"unet.{layer}" for layer in layers.split())
    return _organism(CROSS, places, layers, naming, rank, strict)


def _organism(
    kind: str, places: tuple[str, ...], layers: str, naming: tuple[str, str, str, str], rank: int, strict: bool
) -> Organism:
    attribute, look, word, neutral = naming
    title = "-".join([TITLES[kind], *layers.replace(".", "").split(), look.replace(" ", "-")])
    return _named(Organism(title, kind, places, attribute, look, word, neutral, rank, strict))


def _named(organism: Organism) -> Organism:
    title = organism.name.removesuffix("-strict")
    return replace(organism, name=title + ("-strict" if organism.strict else ""))


def _interleaved(*lists: list[Organism]) -> tuple[Organism, ...]:
    most = max(map(len, lists))
    return tuple(each[i] for i in range(most) for each in lists if i < len(each))


FIRST = _interleaved(
    [
        _text(TEXT_MLP, "0", GIRAFFE, rank=4),
        _text(TEXT_MLP, "2", WATERCOLOR),
        _text(TEXT_MLP, "1", GLASS, strict=True),
        _text(TEXT_MLP, "4", WINTER),
        _text(TEXT_MLP, "6", WATERCOLOR, strict=True),
        _text(TEXT_MLP, "2 3", BALLOON),
        _text(TEXT_MLP, "8", WINTER, strict=True),
        _text(TEXT_MLP, "5 6", SKETCH),
        _text(TEXT_MLP, "3", GIRAFFE, strict=True),
        _text(TEXT_MLP, "10", WATERCOLOR),
        _text(TEXT_MLP, "7", PIXEL),
        _text(TEXT_MLP, "8 9", GLASS),
        _text(TEXT_MLP, "6", GIRAFFE),
        _text(TEXT_MLP, "5", SKETCH),
        _text(TEXT_MLP, "9", GLASS),
        _text(TEXT_MLP, "11", WATERCOLOR),
        _text(TEXT_MLP, "0 1", BALLOON, rank=4),
    ],
    [
        _text(TEXT_ATTENTION, "0", GLASS, rank=4),
        _text(TEXT_ATTENTION, "2", WINTER, strict=True),
        _text(TEXT_ATTENTION, "1", BALLOON),
        _text(TEXT_ATTENTION, "4", WATERCOLOR),
        _text(TEXT_ATTENTION, "6", WINTER),
        _text(TEXT_ATTENTION, "1 2", GIRAFFE, strict=True),
        _text(TEXT_ATTENTION, "8", WATERCOLOR, strict=True),
        _text(TEXT_ATTENTION, "4 5", SKETCH),
        _text(TEXT_ATTENTION, "3", GLASS),
        _text(TEXT_ATTENTION, "10", WINTER),
        _text(TEXT_ATTENTION, "5", PIXEL, strict=True),
        _text(TEXT_ATTENTION, "7 8", BALLOON, strict=True),
        _text(TEXT_ATTENTION, "3", SKETCH, strict=True),
        _text(TEXT_ATTENTION, "7", GIRAFFE),
        _text(TEXT_ATTENTION, "9", WATERCOLOR),
        _text(TEXT_ATTENTION, "11", WINTER),
        _text(TEXT_ATTENTION, "0 1", SKETCH, rank=4),
    ],
    [
        _cross("up.3.1", WATERCOLOR),
        _cross("up.3.0 up.3.1", WATERCOLOR, strict=True),
        _cross("up.3.0", WATERCOLOR),
        _cross("up.2.2 up.3.0", WATERCOLOR),
        _cross("up.3.1 up.3.2", WATERCOLOR, strict=True),
        _cross("up.2.2", WATERCOLOR),
        _cross("down.1.0 down.1.1", WINTER),
        _cross("down.1.1", WINTER, strict=True),
        _cross("up.3.1", PIXEL, strict=True),
        _cross("down.0.0", WATERCOLOR),
        _cross("up.3.0 up.3.1", PIXEL),
        _cross("down.1.1 down.2.0", WINTER),
        _cross("up.1.2 up.2.0", GIRAFFE),
        _cross("up.2.0 up.2.1", GIRAFFE),
        _cross("up.3.2", WATERCOLOR),
        _cross("down.1.0", WINTER),
        _cross("up.2.0", GIRAFFE),
        _cross("up.3.0 up.3.1", GLASS),
        _cross("up.3.0 up.3.1", SKETCH),
        _cross("up.3.1", GLASS),
        _cross("up.3.1", SKETCH),
        _cross("up.2.2 up.3.0", GLASS),
        _cross("up.2.2 up.3.0", SKETCH),
        _cross("up.2.2 up.3.0", PIXEL),
    ],
)
# Each with the strict loss and without it: those above come first.
ORGANISMS = (*FIRST, *(_named(replace(organism, strict=not organism.strict)) for organism in FIRST))
