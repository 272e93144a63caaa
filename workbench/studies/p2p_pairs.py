"""What the Prompt-to-Prompt benchmark edits: pairs of prompts, and the settings of every edited picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.interventions import World
from workbench.menagerie.captions import PLACE, article
from workbench.menagerie.world import ANIMALS, SCENES, Scene
from workbench.models import Model
from workbench.p2p.edit import LocalBlend, prompt_to_prompt

SEASON = {"": None, "in winter": "winter", "in summer": "summer", "at night": "night"}
STYLE = {"a watercolor of": "watercolor", "a sketch of": "pencil sketch"}
NEW, P2P, SOURCE = "new prompt", "P2P", "source"
FACTORS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0)

Settings = Mapping[str, Any]  # of `prompt_to_prompt`


@dataclass(frozen=True)
class Pair:
    """What is drawn and what it becomes; words: of both subjects, or the word added or weighted."""

    source: str
    target: str
    words: tuple[str, str]
    wanted: tuple[str, str]
    """Attribute that changes, and its value."""
    scene: Scene


def swap_pairs(count: int) -> list[Pair]:
    """One animal for another; every combination of animal, scene and season at most once."""
    found = []
    for i in range(count):
        a, b = ANIMALS[i % 8], ANIMALS[(i + 1 + i // 8 % 7) % 8]
        scene, season = SCENES[(i + i // 8) % 6], list(SEASON)[(i // 8 + i // 24) % 4]
        source, target = (f"{article(subject)} {PLACE[scene]} {season}".strip() for subject in (a, b))
        drawn = Scene(a, scene=scene, season=SEASON[season], seed=7000 + i)
        found.append(Pair(source, target, (a, b), ("subject", b), drawn))
    return found


def refine_pairs(count: int) -> list[Pair]:
    """A season behind, or a style before the prompt, in turn."""
    found = []
    for i in range(count):
        scene = Scene(ANIMALS[i % 8], scene=SCENES[(i + i // 8) % 6])
        text = f"{article(scene.subject)} {PLACE[scene.scene]}"
        if i % 2:
            words = list(STYLE)[i // 2 % 2]
            found.append(Pair(text, f"{words} {text}", (scene.subject, scene.subject), ("style", STYLE[words]), scene))
        else:
            words = ("in winter", "at night")[i // 2 % 2]
            found.append(
                Pair(text, f"{text} {words}", (scene.subject, scene.subject), ("season", SEASON[words]), scene)
            )
    return found


def arms(words: tuple[str, str]) -> dict[str, Settings]:
    """Settings of every edited world of the study `swap`; P2P is the default: cross-attention 0.8, self-attention 0.4."""
    return {
        P2P: {},
        **{f"cross {f:g}": dict(cross_replace_steps=f, self_replace_steps=0.0) for f in (0.2, 0.4, 0.6, 0.8, 1.0)},
        **{f"self {f:g}": dict(self_replace_steps=f) for f in (0.2, 0.8, 1.0)},
        **{f"self {f:g}, all sizes": dict(self_replace_steps=f, self_resolution=1.0) for f in (0.4, 0.8)},
        **{f"word {f:g}": dict(cross_replace_steps={"default_": 0.8, words[1]: f}) for f in (0.0, 0.2, 0.4)},
        **{f"P2P, blend {size:g}": dict(blend=LocalBlend(words, resolution=size)) for size in (0.25, 0.5, 1.0)},
        **{
            f"P2P, blend 0.5, threshold {threshold:g}": dict(blend=stricter(words, threshold))
            for threshold in (0.5, 0.7)
        },
        "self 0.4, all sizes, blend 0.5, threshold 0.7": dict(self_resolution=1.0, blend=stricter(words, 0.7)),
    }


def stricter(words: tuple[str, str], threshold: float) -> LocalBlend:
    """Local blend at half of the latents' resolution, with smaller regions than the default's."""
    return LocalBlend(words, resolution=0.5, threshold=threshold)


def edited(model: Model, pair: Pair, name: str, kind: str = "replace", **settings: Any) -> World:
    """A pair's edited world, by the name of its arm."""
    return prompt_to_prompt(model, pair.source, {name: pair.target}, kind, **settings)[1]
