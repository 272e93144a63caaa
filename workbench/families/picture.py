"""What every latent diffusion has besides text encoders and denoiser: latents between the steps, and a VAE that decodes the last."""

from workbench.families.base import IMAGE, LATENTS, Site


def grid_of(height: int, width: int, factor: int, patch: int = 1) -> tuple[int, int]:
    """Rows and columns of the latents of a picture; ValueError for a size that the pipeline does not draw.

    factor: pixels for each of the latents. patch: rows of latents that the denoiser takes together.
    """
    unit = max(8, factor) if patch == 1 else factor * patch
    if wrong := [name for name, side in (("height", height), ("width", width)) if side < unit or side % unit]:
        raise ValueError(f"height={height}, width={width}: {' and '.join(wrong)} must be a multiple of {unit} pixels")
    return height // factor, width // factor


def end_sites(pipeline, channels: int, grid: tuple[int, int]) -> list[Site]:
    """The latents between two steps, and those that the VAE decodes."""
    sizes = (channels, *grid)
    between = Site(LATENTS, "latents", "", LATENTS, LATENTS, "", "step", IMAGE, sizes, grid=grid, stream=True)
    # a VAE without that layer gives the latents to its decoder as they are
    module = (
        "vae.post_quant_conv" if getattr(pipeline.vae, "post_quant_conv", None) is not None else "vae.decoder.conv_in"
    )
    decoded = Site(
        "vae.latents", "decoder", "vae", "vae", "latents", module, "input", IMAGE, sizes, grid=grid, stream=True
    )
    return [between, decoded]
