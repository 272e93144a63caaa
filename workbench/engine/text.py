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
    with lock_of(pipeline), torch.no_grad():
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
                        module.input if inputs or site.port == "input" else part_of(module.output, site)
                    )
                tracer.stop()
    return {site: value.detach().cpu() for site, value in values.items()}


def part_of(whole, site: Site) -> torch.Tensor:
    """A site's value, of what its module gives: one of several values, or a stream's places in one."""
    value = whole[site.item] if isinstance(whole, tuple) else whole
    return value if site.span is None else value[:, slice(*site.span)]


def with_part(whole, site: Site, value: torch.Tensor):
    """What a module gives, with another value at a site."""
    if site.span is not None:
        held = whole[site.item] if isinstance(whole, tuple) else whole
        value = torch.cat([held[:, : site.span[0]], value, held[:, site.span[1] :]], 1)
    return (*whole[: site.item], value, *whole[site.item + 1 :]) if isinstance(whole, tuple) else value
