"""Put the trained parts together: `python -m workbench.menagerie.assemble`.

Copies the parts that the models share (those of the small SDXL and SD3 in half precision), writes the schedulers and
`model_index.json`, chooses each default guidance on validation captions with a CLIP of the pipeline's own (never with the
grader), and writes model cards and SHA-256 manifests.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from workbench.identity import write_manifest
from workbench.loading import DATA, DEFAULTS
from workbench.menagerie import denoisers, train_dit
from workbench.menagerie.captions import caption
from workbench.menagerie.cards import grader_card, model_card
from workbench.menagerie.sampling import Sampler
from workbench.menagerie.train_clip import NAME, tokenize
from workbench.menagerie.training import save_half, to_model_range, training_scenes


@dataclass
class AssembleOptions:
    models: tuple[str, ...] = ("menagerie-sd", "menagerie-xl", "menagerie-dit")
    out: Path = DATA
    runs: Path = Path("runs/menagerie")
    guidances: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 5.0, 7.5)
    captions: int = 48
    """Validation captions on which the guidance is chosen; 0 leaves it as it was."""
    seed: int = 9
    device: str = "cpu"


def stable_diffusion(out: Path) -> StableDiffusionPipeline:
    folder = out / "menagerie-sd"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=denoisers.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(out: Path) -> StableDiffusionXLPipeline:
    first, folder = out / "menagerie-sd", out / "menagerie-xl"
    vae, text_encoder = (
        AutoencoderKL.from_pretrained(first / "vae"),
        CLIPTextModel.from_pretrained(first / "text_encoder"),
    )
    share(first, folder, vae, text_encoder)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=denoisers.scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def stable_diffusion_3(out: Path) -> StableDiffusion3Pipeline:
    first, folder = out / "menagerie-sd", out / "menagerie-dit"
    vae = AutoencoderKL.from_pretrained(first / "vae")
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it
    text_encoder = with_identity_projection(CLIPTextModel.from_pretrained(first / "text_encoder"))
    share(first, folder, vae, text_encoder)
    shutil.copytree(out / "menagerie-xl" / "text_encoder_2", folder / "text_encoder_2", dirs_exist_ok=True)
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        text_encoder_3=None,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        tokenizer_3=None,
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=train_dit.scheduler(),
    )


def with_identity_projection(text_encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """A text encoder whose pooled vector is its state at the end of the text: its own projection was not kept."""
    config = type(text_encoder.config)(
        **text_encoder.config.to_dict() | {"projection_dim": text_encoder.config.hidden_size}
    )
    projected = CLIPTextModelWithProjection(config)
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers 4 nests CLIPTextModel's
    projected.text_model.load_state_dict(inner.state_dict())
    torch.nn.init.eye_(projected.text_projection.weight)
    return projected.eval()


def share(source: Path, folder: Path, vae: AutoencoderKL, text_encoder: torch.nn.Module):
    """Give a folder its own copy of the first model's parts: weights in half precision, the tokenizer for both encoders."""
    for name, part in (("vae", vae), ("text_encoder", text_encoder)):
        save_half(part, folder / name)
        shutil.copy(source / name / "training.json", folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / "tokenizer", folder / name, dirs_exist_ok=True)


PIPELINES: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "menagerie-sd": stable_diffusion,
    "menagerie-xl": stable_diffusion_xl,
    "menagerie-dit": stable_diffusion_3,
}
CALLED_WITH = {"menagerie-dit": {"max_sequence_length": train_dit.ZERO_TOKENS}}
JUDGE = {"menagerie-sd": NAME[1], "menagerie-xl": NAME[2], "menagerie-dit": NAME[2]}


@torch.no_grad()
def choose_guidance(sampler: Sampler, judge: CLIPModel, options: AssembleOptions) -> dict[float, float]:
    """Mean similarity of generated images to their captions, by guidance, on the same captions and noise."""
    rng = random.Random(options.seed)
    captions = [caption(scene, rng) for scene in training_scenes(options.captions, options.seed)]
    ids = tokenize(sampler.pipeline.tokenizer, captions)
    texts = F.normalize(judge.get_text_features(input_ids=ids).pooler_output, dim=-1)
    similarity = {}
    for guidance in options.guidances:
        images = sampler(captions, range(options.captions), guidance_scale=guidance)
        pixels = to_model_range(torch.stack([pil_to_tensor(image) for image in images]))
        features = F.normalize(judge.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        similarity[guidance] = round((features * texts).sum(-1).mean().item(), 4)
        print(f"guidance {guidance}: {similarity[guidance]}", flush=True)
    return similarity


def assemble(name: str, options: AssembleOptions):
    """Write all of one model's folder but what was trained."""
    folder = options.out / name
    pipeline = PIPELINES[name](options.out)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(pipeline.to_json_string())
    if options.captions:
        defaults = {"num_inference_steps": 25, "guidance_scale": 1.0} | CALLED_WITH.get(name, {})
        (folder / DEFAULTS).write_text(json.dumps(defaults) + "\n")
        judge = CLIPModel.from_pretrained(options.runs / JUDGE[name])
        similarity = choose_guidance(Sampler.of(folder, options.device), judge, options)
        defaults["guidance_scale"] = max(similarity, key=similarity.get)
        (folder / DEFAULTS).write_text(json.dumps(defaults) + "\n")
    (folder / "README.md").write_text(model_card(folder))
    write_manifest(folder)


def main(options: AssembleOptions):
    for name in options.models:
        assemble(name, options)
    grader = options.out / "menagerie-clip"
    (grader / "README.md").write_text(grader_card(grader))
    write_manifest(grader)


if __name__ == "__main__":
    main(tyro.cli(AssembleOptions))
