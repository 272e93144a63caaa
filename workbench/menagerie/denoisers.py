"""What the trainings of the denoisers share: latents and text states, computed once, batches, the noise and the end.

By default all denoisers see the same pictures with the same captions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from workbench.identity import digest
from workbench.menagerie.captions import caption
from workbench.menagerie.cards import summary, write_training
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.training import Options, batch_rng, kept, pictures, to_model_range, training_scenes

Encode = Callable[[list[str]], dict[str, torch.Tensor]]


@dataclass
class DenoiserOptions(Options):
    ema: float = 0.998
    captions: int = 2
    """Captions of each picture."""
    data_seed: int = 4
    """Of the pictures and captions; with the same one, denoisers see the same."""
    unconditional: float = 0.1
    """Share of captions dropped."""
    continued: bool = False
    """Start from the weights in `out`, not from random ones: more training without a checkpoint."""


@dataclass
class Batch:
    """Latents (row, 4, y, x), noise of that shape, text by name, and a number in (0, 1) a row, spread evenly."""

    clean: torch.Tensor
    noise: torch.Tensor
    text: dict[str, torch.Tensor]
    level: torch.Tensor


@torch.no_grad()
def latents(options: DenoiserOptions) -> torch.Tensor:
    """Scaled latents of the training pictures in half precision (picture, 4, y=16, x=16), kept in `runs`."""
    folder = options.out / "menagerie-sd" / "vae"
    vae = AutoencoderKL.from_pretrained(folder)

    def make():
        images = pictures(training_scenes(options.scenes, options.data_seed))
        vae.to(options.device, memory_format=torch.channels_last)
        encode = lambda x: vae.encode(to_model_range(x, options.device).contiguous(memory_format=torch.channels_last))
        parts = [
            encode(x).latent_dist.mean.half().cpu() for x in tqdm(images.split(100), desc="latents", mininterval=5)
        ]
        return {"latents": torch.cat(parts) * vae.config.scaling_factor}

    return kept(options.runs / "latents.pt", _key(options, folder), make)["latents"]


@torch.no_grad()
def texts(options: DenoiserOptions, name: str, encode: Encode, folders: list[Path]) -> dict[str, torch.Tensor]:
    """What `encode` makes of the empty prompt (row 0) and of each picture's captions, in half precision, kept in `runs`."""

    def make():
        words = random.Random(options.data_seed)
        scenes = training_scenes(options.scenes, options.data_seed)
        captions = [""] + [caption(scene, words) for scene in scenes for _ in range(options.captions)]
        size = 2000 if options.device.startswith("cuda") else 400
        parts = [
            encode(captions[i : i + size])
            for i in tqdm(range(0, len(captions), size), desc="text states", mininterval=5)
        ]
        return {key: torch.cat([part[key].half().cpu() for part in parts]) for key in parts[0]}

    data = kept(options.runs / f"{name}.pt", _key(options, *folders), make)
    return {key: value for key, value in data.items() if key != "key"}


def _key(options: DenoiserOptions, *folders: Path) -> dict:
    weights = [digest(path) for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return dict(scenes=options.scenes, captions=options.captions, data_seed=options.data_seed, weights=weights)


class TwoEncoders:
    """The text states of the pipelines with two CLIP text encoders, as SDXL's and SD3's `encode_prompt` compute them.

    states: the penultimate hidden states, joined on channels (row, token, 96 + 128). pooled_1: encoder 1's output at the
    end of the text; pooled_2: encoder 2's, projected.
    """

    def __init__(self, out: Path, device: str = "cpu"):
        self.folders = [out / "menagerie-sd" / "text_encoder", out / "menagerie-xl" / "text_encoder_2"]
        self.tokenizer = CLIPTokenizer.from_pretrained(out / "menagerie-sd" / "tokenizer")
        self.first = CLIPTextModel.from_pretrained(self.folders[0]).to(device)
        self.second = CLIPTextModelWithProjection.from_pretrained(self.folders[1]).to(device)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> dict[str, torch.Tensor]:
        ids = tokenize(self.tokenizer, captions, self.first.device)
        first, second = self.first(ids, output_hidden_states=True), self.second(ids, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"states": states, "pooled_1": first.pooler_output, "pooled_2": second.text_embeds}


def batches(options: DenoiserOptions, clean: torch.Tensor, text: dict[str, torch.Tensor]) -> Callable[[int], Batch]:
    """Draws the batch of a step. The first rows of `text`, as many as are no picture's, stand for a dropped caption."""
    device = options.device
    if device.startswith("cuda"):
        clean, text = clean.to(device), {key: value.to(device) for key, value in text.items()}
    empty = len(next(iter(text.values()))) - len(clean) * options.captions

    def draw(step: int) -> Batch:
        rng, size = batch_rng(options, step), options.batch_size
        index, which = rng.integers(len(clean), size=size), rng.integers(options.captions, size=size)
        row = empty + index * options.captions + which
        dropped = rng.random(size) < options.unconditional
        row[dropped] = rng.integers(empty, size=dropped.sum())
        # one level from each of `size` equal parts: less variance than independent draws
        level = torch.from_numpy((rng.permutation(size) + rng.random(size)) / size).float().to(device)
        index, row = torch.from_numpy(index).to(clean.device), torch.from_numpy(row).to(clean.device)
        x = clean[index].to(device).float()
        words = {key: value[row].to(device).float() for key, value in text.items()}
        return Batch(x, torch.randn_like(x), words, level)  # `fit` seeds the noise by the step

    return draw


def scheduler() -> DDIMScheduler:
    """The noise of the UNets: scaled-linear betas, as Stable Diffusion's."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def epsilon_loss(
    predict: Callable[..., torch.Tensor], batch: Batch, noising: DDIMScheduler, snr_cap: float
) -> dict[str, torch.Tensor]:
    """Error of the predicted noise, with min-SNR weights (Hang et al. 2023, eq. 7): `predict(noisy, timestep, text)`."""
    alphas = noising.alphas_cumprod.to(batch.clean.device)
    t = (batch.level * len(alphas)).long().clamp(max=len(alphas) - 1)
    noisy = noising.add_noise(batch.clean, batch.noise, t).contiguous(memory_format=torch.channels_last)
    error = (predict(noisy, t, batch.text).float() - batch.noise).square().mean((1, 2, 3))
    snr = alphas[t] / (1 - alphas[t])
    return {"loss": (error * snr.clamp(max=snr_cap) / snr).mean(), "mse": error.mean()}


def finish(denoiser: ModelMixin, folder: Path, record: dict, options: DenoiserOptions, save: Callable):
    """Write a trained denoiser with `save(denoiser, folder)`, and how it was trained."""
    if options.continued:
        record["before"] = summary(folder)
    denoiser.register_to_config(_name_or_path="")  # where it was loaded from is this machine's own
    save(denoiser, folder)
    write_training(folder, **record)
