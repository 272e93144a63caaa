"""A mechanistic-interpretability workbench for text-to-image diffusion models: `import workbench as wb`."""

from workbench import edit, plot
from workbench.edit.low_rank import Edit
from workbench.engine import Fold, Run
from workbench.experiments.results import effects, open_results, strongest, with_interval
from workbench.interventions import (
    Intervention,
    Window,
    World,
    ablate,
    add_noise,
    apply,
    blend_latents,
    map_input,
    mix_attention,
    remove,
    replace_prompt,
    restore,
    scale,
    set_to,
    steer,
    window,
)
from workbench.localize.attention import AttentionMaps, AttentionSpec, attention_contribution, attention_maps, mask_iou
from workbench.localize.causal_trace import TraceSpec, causal_trace
from workbench.localize.compare import Comparison, compare_localizers
from workbench.localize.lens import diffusion_lens
from workbench.localize.locogen import LocoGen, locogen, locogen_images, locogen_search
from workbench.localize.patching import LocoGenSpec
from workbench.metrics import Metric
from workbench.models import Model, load
from workbench.p2p.alignment import Alignment, align
from workbench.p2p.edit import LocalBlend, PromptToPrompt, prompt_to_prompt
from workbench.p2p.inversion import Inversion, invert
from workbench.pictures import as_pil
from workbench.prompts import Prompt, PromptSet, prompt_pairs, prompt_set
from workbench.scorer import Scorer
from workbench.steering.adaptive import AdaptiveSpec, adaptive_strength
from workbench.steering.direction import Direction, direction
from workbench.steering.experiment import Concept, SteerSpec
from workbench.steering.search import Search, SearchSpec, steer_search
from workbench.steering.sweep import Sweep, SweepSpec, steer_sweep

__all__ = [
    "AdaptiveSpec",
    "Alignment",
    "AttentionMaps",
    "AttentionSpec",
    "Comparison",
    "Concept",
    "Direction",
    "Edit",
    "Fold",
    "Intervention",
    "Inversion",
    "LocalBlend",
    "LocoGen",
    "LocoGenSpec",
    "Metric",
    "Model",
    "Prompt",
    "PromptSet",
    "PromptToPrompt",
    "Run",
    "Scorer",
    "Search",
    "SearchSpec",
    "SteerSpec",
    "Sweep",
    "SweepSpec",
    "TraceSpec",
    "Window",
    "World",
    "ablate",
    "adaptive_strength",
    "add_noise",
    "align",
    "apply",
    "as_pil",
    "attention_contribution",
    "attention_maps",
    "blend_latents",
    "causal_trace",
    "compare_localizers",
    "diffusion_lens",
    "direction",
    "edit",
    "effects",
    "invert",
    "load",
    "locogen",
    "locogen_images",
    "locogen_search",
    "map_input",
    "mask_iou",
    "mix_attention",
    "open_results",
    "plot",
    "prompt_pairs",
    "prompt_set",
    "prompt_to_prompt",
    "remove",
    "replace_prompt",
    "restore",
    "scale",
    "set_to",
    "steer",
    "steer_search",
    "steer_sweep",
    "strongest",
    "window",
    "with_interval",
]
