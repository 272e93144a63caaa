"""The grid of subjects and styles that `erase_grid` erases: its pictures, who erases what, and what counts in which column."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import pandas as pd

from workbench.prompts import with_article
from workbench.studies.hidden_edits import GUIDES, PHOTO, STYLES

UNEDITED = "unedited"
BEST = ("recipe x 1.2", "oblique, rank 4", "resist 1")
EVERY = (
    *BEST,
    "UCE",
    "SPEED, 0.2",
    "oblique, by layer",
    "orthogonal",
    "resist all",
    "oblique, rank 1",
    "erase",
    "recipe",
    "recipe, null space",
    "LocoEdit",
    "recipe, hardened 3 x",
    "Diff-QuickFix",
    "text encoder, last mlp",
    "SPEED",
)
SOME = ("zebra", "penguin", "balloon", "house", "watercolor", "pixel art")  # targets of every editor
GROUPS = {  # of targets that are told in one number
    "some subjects": tuple(name for name in SOME if name in GUIDES),
    "some styles": tuple(name for name in SOME if name in STYLES),
    "all subjects": tuple(GUIDES),
    "all styles": tuple(STYLES),
}
COLOURED = ("car", "hydrant", "balloon", "house")  # which the model hardly draws without a colour
PLACES = ("in the savanna", "in the city")
ONE_OF = 7  # pictures without the target, of an editor that is not among the best


@dataclass(frozen=True)
class Scene:
    """A cell of the grid at one place. seed: of all its pictures. even: whether it is in half of the grid, as on a chessboard."""

    prompt: str
    subject: str
    style: str
    seed: int
    even: bool

    def of(self, target: str) -> bool:
        return target in (self.subject, self.style)


@cache
def scenes() -> tuple[Scene, ...]:
    """Every subject in every style and as a photo, at every place."""
    found = []
    for s, subject in enumerate(GUIDES):
        phrase = f"a red {subject}" if subject in COLOURED else with_article(subject)
        for k, (style, words) in enumerate({**STYLES, "none": PHOTO}.items()):
            for p, place in enumerate(PLACES):
                text = f"{words} of {phrase} {place}"
                found.append(Scene(text, subject, style, len(found), (s + k + p) % 2 == 0))
    return tuple(found)


def graded_scenes(editor: str, target: str) -> list[Scene]:
    """Those that a grid job draws: all, or half of the target's and some of the others."""
    if editor in (UNEDITED, *BEST):
        return list(scenes())
    return attacked_scenes(target) + [scene for scene in scenes() if not scene.of(target)][::ONE_OF]


def attacked_scenes(target: str) -> list[Scene]:
    return [scene for scene in scenes() if scene.of(target) and scene.even]


def canvas(table: pd.DataFrame, target: str) -> dict[str, pd.Series]:
    """What counts in each column, of graded scenes (subject, style, shown, looks)."""
    own, other = (("style", "looks"), ("subject", "shown"))[:: 1 if target in STYLES else -1]
    at = table[own[0]] == target
    gone, kept = table[at], table[~at]
    return {
        "UA": gone[own[1]] != target,
        "IRA": kept[own[1]] == kept[own[0]],
        "CRA": kept[other[1]] == kept[other[0]],
    }


def distinct(editor: str, targets: Iterable[str]) -> set[int]:
    """Seeds of the scenes that are drawn without their target."""
    return {scene.seed for target in targets for scene in graded_scenes(editor, target) if not scene.of(target)}
