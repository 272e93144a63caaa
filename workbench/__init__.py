"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`."""

from workbench.engine import Run
from workbench.interventions import (
    Intervention,
    World,
    ablate,
    add_noise,
    map_input,
    mix_attention,
    replace_prompt,
    restore,
    scale,
    steer,
)
from workbench.metrics import Scorer
from workbench.models import Model, load

__all__ = [
    "Intervention",
    "Model",
    "Run",
    "Scorer",
    "World",
    "ablate",
    "add_noise",
    "load",
    "map_input",
    "mix_attention",
    "replace_prompt",
    "restore",
    "scale",
    "steer",
]
