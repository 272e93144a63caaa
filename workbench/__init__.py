"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`."""

from workbench import edit, plot
from workbench.edit.low_rank import Edit
from workbench.engine import Fold, Run
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
from workbench.localize.attention import AttentionMaps, AttentionSpec, attention_contribution, attention_maps, mask_iou
from workbench.localize.causal_trace import TraceSpec, causal_trace
from workbench.localize.compare import Comparison, compare_localizers
from workbench.localize.lens import diffusion_lens
from workbench.localize.locogen import LocoGen, LocoGenSpec, locogen, locogen_images, locogen_search
from workbench.metrics import Scorer, as_pil
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.results import effects, open_results, strongest, with_interval

__all__ = [
    "AttentionMaps",
    "AttentionSpec",
    "Comparison",
    "Edit",
    "Fold",
    "Intervention",
    "LocoGen",
    "LocoGenSpec",
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
    "attention_contribution",
    "attention_maps",
    "causal_trace",
    "compare_localizers",
    "diffusion_lens",
    "edit",
    "effects",
    "load",
    "locogen",
    "locogen_images",
    "locogen_search",
    "map_input",
    "mask_iou",
    "mix_attention",
    "open_results",
    "plot",
    "prompt_set",
    "replace_prompt",
    "restore",
    "scale",
    "steer",
    "strongest",
    "with_interval",
]
