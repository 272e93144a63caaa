"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`."""

from workbench import edit, plot
from workbench.edit.low_rank import Edit
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
from workbench.localize.causal_trace import TraceSpec, causal_trace
from workbench.metrics import Scorer, as_pil
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.results import effects, open_results, strongest

__all__ = [
    "Edit",
    "Intervention",
    "Model",
    "Prompt",
    "PromptSet",
    "Run",
    "Scorer",
    "TraceSpec",
    "World",
    "ablate",
    "add_noise",
    "as_pil",
    "causal_trace",
    "edit",
    "effects",
    "load",
    "map_input",
    "mix_attention",
    "open_results",
    "plot",
    "prompt_set",
    "replace_prompt",
    "restore",
    "scale",
    "steer",
    "strongest",
]
