"""Put the trained parts together: `python -m workbench.menagerie.assemble`.

Writes the scheduler and `model_index.json`, chooses the default guidance on validation captions with the pipeline's own
CLIP (never with the grader), and writes both model cards and SHA-256 manifests.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from workbench.menagerie.captions import caption
from workbench.menagerie.cards import grader_card, pipeline_card
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.train_unet import scheduler
from workbench.menagerie.training import to_model_range, training_scenes
from workbench.models import DATA, DEFAULTS, Model, write_manifest


@dataclass
class AssembleOptions:
    out: Path = DATA
    runs: Path = Path("runs/menagerie")
    guidances: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 5.0, 7.5)
    captions: int = 48
    """Validation captions on which the guidance is chosen; 0 leaves it as it was."""
    seed: int = 9


@torch.no_grad()
def choose_guidance(model: Model, judge: CLIPModel, options: AssembleOptions) -> dict[float, float]:
    """Mean similarity of generated images to their captions, by guidance, on the same captions and noise."""
    rng = random.Random(options.seed)
    captions = [caption(scene, rng) for scene in training_scenes(options.captions, options.seed)]
    texts = F.normalize(
        judge.get_text_features(input_ids=tokenize(model.pipeline.tokenizer, captions)).pooler_output, dim=-1
    )
    found = {}
    for guidance in options.guidances:
        images = model.generate(captions, seeds=range(options.captions), guidance_scale=guidance)
        pixels = to_model_range(torch.stack([pil_to_tensor(image) for image in images]))
        features = F.normalize(judge.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        found[guidance] = round((features * texts).sum(-1).mean().item(), 4)
        print(f"guidance {guidance}: {found[guidance]}", flush=True)
    return found


def main(options: AssembleOptions):
    folder, grader = options.out / "menagerie-sd", options.out / "menagerie-clip"
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(pipeline.to_json_string())
    if options.captions:
        found = choose_guidance(
            Model(pipeline, num_inference_steps=25), CLIPModel.from_pretrained(options.runs / "clip"), options
        )
        defaults = {"num_inference_steps": 25, "guidance_scale": max(found, key=found.get)}
        (folder / DEFAULTS).write_text(json.dumps(defaults) + "\n")
    (folder / "README.md").write_text(pipeline_card(folder))
    (grader / "README.md").write_text(grader_card(grader))
    write_manifest(folder)
    write_manifest(grader)


if __name__ == "__main__":
    main(tyro.cli(AssembleOptions))
