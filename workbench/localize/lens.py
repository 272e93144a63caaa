"""Diffusion Lens: what picture does the prompt give after each layer of the text encoder? (Toker et al. 2024, arXiv 2403.05846)"""

from collections.abc import Sequence

import xarray as xr

from workbench.arguments import checked
from workbench.inputs import text
from workbench.interventions import World, ablate
from workbench.models import Model


@checked(encoder=text)
def diffusion_lens(
    model: Model,
    prompt: str,
    *,
    seeds: Sequence[int] = (0,),
    encoder: str = "text_encoder",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> xr.DataArray:
    """One image for each layer of the text encoder, as if the layers behind it were not there.

    The hidden state of layer l goes through the encoder's final layer norm (SDXL uses none) as the prompt's embedding: attention and
    mlp of the later layers are ablated to zero, so that the residual stream carries it through unchanged. The prompt's
    own call only; the negative prompt keeps the whole encoder. encoder: "text_encoder" or "text_encoder_2", the other kept whole.

    Returns float in [0, 1], (layer, seed, y, x, colour), layer the name of a hidden state ("text_encoder.3.hidden"); the last one
    is the plain image. Raises KeyError for an encoder that the model lacks.

    >>> pictures = wb.diffusion_lens(model, "a photo of a zebra")
    >>> dict(pictures.sizes)
    {'layer': 12, 'seed': 1, 'y': 64, 'x': 64, 'colour': 3}
    >>> str(pictures.layer.values[-1])
    'text_encoder.11.hidden'
    """
    hidden = [site.name for site in model.sites(f"{encoder}.*.hidden")]
    worlds = []
    for number, name in enumerate(hidden):
        later = [
            site for i in range(number + 1, len(hidden)) for site in (f"{encoder}.{i}.attention", f"{encoder}.{i}.mlp")
        ]
        worlds.append(World(name, prompt, [ablate(later)] if later else []))
    run = model.run(
        worlds,
        seeds=seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    return run.images.rename(world="layer")
