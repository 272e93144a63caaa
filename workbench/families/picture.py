"""What every diffusion has besides text encoders and denoiser: latents between the steps, and mostly a VAE that decodes the last."""

from workbench.families.base import IMAGE, LATENTS, Site


def grid_of(height: int, width: int, factor: int, patch: int = 1) -> tuple[int, int]:
    """Rows and columns of the latents of a picture; ValueError for a size that the pipeline does not draw.

    factor: pixels for each of the latents. patch: rows of latents that the denoiser takes together.
    """
    unit = max(8, factor) if patch == 1 else factor * patch
    if wrong := [name for name, side in (("height", height), ("width", width)) if side < unit or side % unit]:
        raise ValueError(f"height={height}, width={width}: {' and '.join(wrong)} must be a multiple of {unit} pixels")
    return height // factor, width // factor


def transformer_size(pipeline) -> tuple[int, int]:
    """Height and width in pixels that a pipeline with a transformer over latents draws when not told."""
    side = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    return side, side


def shift_of(pipeline, pixels: int, most: float) -> float:
    """How far a flow-matching schedule is shifted for a picture of so many of the denoiser's pixels. most: the largest, where the
    scheduler says none."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipeline.scheduler.config
    lengths = [config.get(name, value) for name, value in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))]
    return calculate_shift(pixels, *lengths, config.get("base_shift", 0.5), config.get("max_shift", most))


def end_sites(pipeline, channels: int, grid: tuple[int, int]) -> list[Site]:
    """The latents between two steps, and those that the VAE decodes."""
    sizes = (channels, *grid)
    # a VAE without that layer gives the latents to its decoder as they are
    module = (
        "vae.post_quant_conv" if getattr(pipeline.vae, "post_quant_conv", None) is not None else "vae.decoder.conv_in"
    )
    decoded = Site(
        "vae.latents", "decoder", "vae", "vae", "latents", module, "input", IMAGE, sizes, grid=grid, stream=True
    )
    return [between_steps(channels, grid), decoded]


def between_steps(channels: int, grid: tuple[int, int]) -> Site:
    """What one denoising step hands to the next."""
    sizes = (channels, *grid)
    return Site(LATENTS, "latents", "", LATENTS, LATENTS, "", "step", IMAGE, sizes, grid=grid, stream=True)
