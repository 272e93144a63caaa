"""Text alone: what the denoiser is given for a prompt, and values inside the text encoders. The denoiser never runs."""

from collections.abc import Sequence

import torch

from workbench.engine.nn import save
from workbench.engine.trace import untouched, wrapped
from workbench.families import Site, family_of
from workbench.families.attention import explicit_attention
from workbench.locks import lock_of


def encode(pipeline, prompts: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts as the denoiser is given them: states (prompt, token, channel) and pooled vectors (prompt, channel), if it is given any."""
    prompts = prompts if isinstance(prompts, str) else list(prompts)
    with torch.no_grad():
        return family_of(pipeline).encode(pipeline, prompts)


def text_values(
    model, prompts: Sequence[str], sites: Sequence[Site], *, inputs: bool = False
) -> dict[Site, torch.Tensor]:
    """Values at text-encoder sites for each prompt, or what the sites' modules are given: (prompt, [token,] channel), on the CPU."""
    values, pipeline = {}, model.pipeline
    with lock_of(pipeline), untouched(pipeline), explicit_attention(pipeline, sites), torch.no_grad():
        nn = wrapped(pipeline)
        with nn.trace() as tracer:
            keywords = model.family.keywords(pipeline)
            with tracer.invoke(list(prompts), num_inference_steps=1, guidance_scale=1.0, **keywords):
                pass
            with tracer.invoke():
                for site in [site for site in model.sites if site in sites]:  # in execution order
                    module = nn.get(site.module)
                    values[site] = save(
                        module.input if inputs or site.port == "input" else first(module.output, site.item)
                    )
                tracer.stop()
    return {site: value.detach().cpu() for site, value in values.items()}


def first(output, item: int = 0):
    """The value proper of a module that gives more, or another of its values."""
    return output[item] if isinstance(output, tuple) else output
