"""What a pipeline is called with: the one way for plain pictures, runs with interventions, and text alone."""

import warnings
from collections.abc import Sequence

import torch

from workbench.families import family_of


def guided(pipeline, guidance_scale: float) -> bool:
    """Whether the pipeline doubles its batch at this guidance: what it says itself, never `guidance_scale > 1`."""
    before = getattr(pipeline, "_guidance_scale", None)
    pipeline._guidance_scale = guidance_scale
    try:
        own = family_of(pipeline).halves and guidance_scale > 1  # of a pipeline that does not say
        return bool(getattr(pipeline, "do_classifier_free_guidance", own))
    finally:
        pipeline._guidance_scale = before


def guiding(pipeline) -> str:
    """What to do for guidance, as an error says it."""
    if getattr(family_of(pipeline).model(pipeline).config, "time_cond_proj_dim", None) is not None:
        return "this model takes guidance_scale as an input and has no unconditional half (LCM): leave it out"
    if not hasattr(pipeline, "do_classifier_free_guidance") and not family_of(pipeline).halves:
        return "this model takes guidance_scale as an input and has no unconditional half (FLUX): leave it out"
    return "raise guidance_scale above 1"


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator a row, on the CPU: starting noise, and the noise of stochastic schedulers, are the seed's own in any batch."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def negative_prompts(pipeline, given: Sequence[str | None], is_guided: bool) -> list[str] | None:
    """Negative prompts of the rows as the pipeline takes them; None for its own default.

    Raises ValueError where some rows have one and others the pipeline's zeros, which one call cannot give.
    """
    if all(text is None for text in given):
        return None
    if not is_guided:
        warnings.warn(f"negative_prompt= has no effect without guidance; {guiding(pipeline)}", stacklevel=4)
        return None
    if pipeline.config.get("force_zeros_for_empty_prompt", False) and any(text is None for text in given):
        raise ValueError(
            "negative_prompt: some worlds have one and others none, for which this pipeline takes zeros; give every world of a run "
            'a negative prompt ("" is one), or none of them'
        )
    return [text or "" for text in given]


def arguments(
    pipeline,
    prompts: Sequence[str],
    negatives: Sequence[str | None],
    seeds: Sequence[int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    height: int | None,
    width: int | None,
    latents: torch.Tensor | None = None,
) -> dict:
    """Keyword arguments of the pipeline's call for some rows, each with its prompt and seed."""
    family = family_of(pipeline)
    rows, columns = family.size(pipeline)
    call = dict(
        prompt=list(prompts),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height or rows,
        width=width or columns,
        generator=generators(seeds),
        **family.keywords(pipeline),
    )
    if (negative := negative_prompts(pipeline, negatives, guided(pipeline, guidance_scale))) is not None:
        call["negative_prompt"] = negative
    if guidance_rescale:
        call["guidance_rescale"] = guidance_rescale
    if latents is not None:
        call["latents"] = family.packed(latents).to(pipeline.device, family.model(pipeline).dtype)
    return call


def pictures_of(pipeline, output, rows: Sequence[str]) -> torch.Tensor:
    """What a pipeline drew, (row, colour, y, x) in [0, 1]. rows: whose the pictures are.

    Raises RuntimeError for pictures that its safety checker blacks out: no metric may read them.
    """
    images, flags = family_of(pipeline).pictures(pipeline, output)
    if flags is not None and any(flags):
        flagged = list(dict.fromkeys(row for row, flag in zip(rows, flags) if flag))
        raise RuntimeError(
            f"the safety checker blacked out {sum(map(bool, flags))} of {len(flags)} pictures, of {flagged[:5]}: they would be scored as "
            "pictures; load the model without it, wb.load(..., safety_checker=False), or change prompts or seeds"
        )
    return images
