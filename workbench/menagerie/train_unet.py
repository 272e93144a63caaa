"""Train the menagerie's denoiser: `python -m workbench.menagerie.train_unet --minutes 150`.

`UNet2DConditionModel` with Stable Diffusion 1.x block types (16 cross-attention layers), on latents and text states that
are computed once. Epsilon prediction, scaled-linear betas, captions dropped to the empty prompt for classifier-free
guidance (Ho & Salimans 2022), min-SNR-5 weights (Hang et al. 2023, eq. 7).
"""

import os
import random
from dataclasses import dataclass

import torch
import tyro
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from workbench.menagerie.captions import caption
from workbench.menagerie.cards import summary, write_training
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.training import Options, batch_rng, fit, pictures, to_model_range, training_scenes
from workbench.models import digest


@dataclass
class UNetOptions(Options):
    seed: int = 4
    ema: float = 0.998
    captions: int = 2
    """Captions of each picture."""
    unconditional: float = 0.1
    """Share of captions dropped."""
    snr_cap: float = 5.0
    continued: bool = False
    """Start from the weights in `out`, not from random ones: more training without a checkpoint."""


def build(width: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=2,
        cross_attention_dim=width,
        attention_head_dim=4,  # the number of heads, as in SD 1.x
        norm_num_groups=8,
    )
    residual = {UNet2DConditionModel: "conv_out", ResnetBlock2D: "conv2", Transformer2DModel: "proj_out"}
    for module in unet.modules():  # Stable Diffusion starts these at zero; diffusers leaves it to the trainer
        if type(module) in residual:
            for parameter in getattr(module, residual[type(module)]).parameters():
                torch.nn.init.zeros_(parameter)
    return unet


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1)  # fmt: skip


@torch.no_grad()
def prepare(options: UNetOptions) -> dict[str, torch.Tensor]:
    """Latents (picture, 4, y=16, x=16) and text states (picture x caption, token, channel), kept in `runs`."""
    folder, path = options.out / "menagerie-sd", options.runs / "unet_data.pt"
    key = dict(scenes=options.scenes, captions=options.captions, seed=options.seed,
               sources=[digest(path) for part in ("vae", "text_encoder") for path in (folder / part).glob("*.safetensors")])  # fmt: skip
    if path.exists() and (data := torch.load(path, weights_only=True))["key"] == key:
        return data
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(options.device, memory_format=torch.channels_last)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").to(options.device)
    scenes, words = training_scenes(options.scenes, options.seed), random.Random(options.seed)
    latents = [vae.encode(to_model_range(x, options.device).contiguous(memory_format=torch.channels_last)).latent_dist.mean.half().cpu()
               for x in tqdm(pictures(scenes).split(100), desc="latents", mininterval=5)]  # fmt: skip
    captions = [""] + [caption(scene, words) for scene in scenes for _ in range(options.captions)]
    ids = tokenize(tokenizer, captions).split(400)
    states = [
        text_encoder(x.to(options.device)).last_hidden_state.half().cpu()
        for x in tqdm(ids, desc="text states", mininterval=5)
    ]
    states = torch.cat(states)
    data = {"key": key, "latents": torch.cat(latents) * vae.config.scaling_factor, "empty": states[0],
            "states": rearrange(states[1:], "(p c) t d -> p c t d", c=options.captions)}  # fmt: skip
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.save(data, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    return data


def main(options: UNetOptions):
    torch.manual_seed(options.seed)
    folder = options.out / "menagerie-sd" / "unet"
    data = prepare(options)
    latents, states, empty = data["latents"], data["states"], data["empty"]
    unet = UNet2DConditionModel.from_pretrained(folder) if options.continued else build(states.shape[-1])
    unet = unet.to(memory_format=torch.channels_last)
    noising = scheduler()
    alphas = noising.alphas_cumprod.to(options.device)

    def loss(step):
        rng, size = batch_rng(options, step), options.batch_size
        index, which = rng.integers(len(latents), size=size), rng.integers(states.shape[1], size=size)
        text = states[index, which].float()
        text[torch.from_numpy(rng.random(size) < options.unconditional)] = empty.float()
        clean = latents[index].float().to(options.device)
        # one timestep from each of `size` equal parts of the schedule: less variance than independent draws
        t = torch.from_numpy((rng.permutation(size) + rng.random(size)) / size * len(alphas)).long().to(options.device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype="float32")).to(options.device)
        noisy = noising.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        error = (unet(noisy, t, text.to(options.device)).sample - noise).square().mean((1, 2, 3))
        snr = alphas[t] / (1 - alphas[t])
        return {"loss": (error * snr.clamp(max=options.snr_cap) / snr).mean(), "mse": error.mean()}

    unet, record = fit("unet", unet, loss, options)
    if options.continued:
        record["before"] = summary(folder)
    unet.register_to_config(_name_or_path="")  # where it was loaded from is this machine's own
    unet.save_pretrained(folder)
    write_training(folder, **record)


if __name__ == "__main__":
    main(tyro.cli(UNetOptions))
