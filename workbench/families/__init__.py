"""What the engine must know of an architecture, as one file of tables each; `check_pipeline` finds it or refuses.

A new family is a file like `sd.py` and a line in FAMILIES: nothing else of the package names an architecture.
"""

import torch
from diffusers import DiffusionPipeline

from workbench.families.base import Encoder, Family, Reading, Site, read_together, set_length
from workbench.families.deepfloyd import DEEPFLOYD
from workbench.families.flux import FLUX
from workbench.families.pixart import PIXART, PIXART_SIGMA
from workbench.families.sd import SD
from workbench.families.sd3 import SD3
from workbench.families.sdxl import SDXL

FAMILIES = (SD, SDXL, SD3, FLUX, PIXART, PIXART_SIGMA, DEEPFLOYD)

__all__ = [
    "FAMILIES",
    "Encoder",
    "Family",
    "Reading",
    "Site",
    "check_class",
    "check_pipeline",
    "check_unet",
    "family_of",
    "length_read",
    "set_length",
]


def check_class(name: str) -> Family:
    """The family of a pipeline's class, by its name; ValueError for one that no family knows."""
    for family in FAMILIES:
        if name in family.pipelines:
            return family
        if name in family.refused:
            raise ValueError(f"wb.load: the pipeline is of the class {name}, which {family.refused[name]}")
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise ValueError(
        f"wb.load: the pipeline is of the class {name}; supported are {known} (Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, FLUX.1, "
        "PixArt, DeepFloyd IF's stage I, text to image). "
        "Load the checkpoint into one of these, if it is of such an architecture"
    )


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family of a live pipeline, by its class."""
    return check_class(type(pipeline).__name__)


def length_read(pipeline: DiffusionPipeline, tokenizer: str) -> int | None:
    """How many tokens of a prompt the encoder of a tokenizer is given, where the pipeline's call says it; None where the tokenizer does."""
    family = next((each for each in FAMILIES if type(pipeline).__name__ in each.pipelines), None)
    if family is None or family.read is read_together:
        return None
    return next((each.length for each in family.read(family, pipeline) if tokenizer in each.tokenizers), None)


def check_unet(pipeline: DiffusionPipeline, function: str, why: str):
    """Raise ValueError for a pipeline whose denoiser is no UNet of latents. function: what was asked. why: what it would need, in words."""
    if (family := family_of(pipeline)).denoiser != "unet" or family.decoder is None:
        raise ValueError(
            f"{function}: {why}, which is written for UNets of latents alone; this is a {type(pipeline).__name__} of the family "
            f"{family.name}"
        )


def check_pipeline(pipeline: DiffusionPipeline) -> Family:
    """The family of a live pipeline; ValueError for one that no family handles, saying what about it is not known."""
    family = family_of(pipeline)
    missing = [
        name
        for encoder in family.encoders
        if not (encoder.optional and getattr(pipeline, encoder.component, None) is None)
        for name in (encoder.component, encoder.tokenizer)
        if getattr(pipeline, name, None) is None
    ]
    missing += [
        name
        for name in (family.denoiser, family.decoder, "scheduler")
        if name and getattr(pipeline, name, None) is None
    ]
    if missing:
        raise ValueError(
            f"wb.load: the {type(pipeline).__name__} has no {', '.join(missing)}; it needs all of its components "
            "(a refiner or a bare denoiser is not supported)"
        )
    compiled = [
        n for n, part in pipeline.components.items() if isinstance(part, torch.nn.Module) and hasattr(part, "_orig_mod")
    ]
    if compiled:
        raise ValueError(
            f"{', '.join(compiled)} went through torch.compile, whose graph no intervention reaches; put the module itself "
            f"back: pipeline.{compiled[0]} = pipeline.{compiled[0]}._orig_mod"
        )
    family.check(pipeline)
    return family
