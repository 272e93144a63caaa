"""Train the grader: `python -m workbench.menagerie.train_grader --minutes 45`.

An open_clip model with a convolutional image tower: another architecture, other widths, other pictures and another seed
than the pipeline's CLIP, so that it judges generated pictures from outside. It is never used to train the pipeline.
"""

import json
import shutil
from dataclasses import dataclass

import open_clip
import torch
import tyro
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from workbench.menagerie.cards import write_training
from workbench.menagerie.train_clip import batch, contrastive_loss, tokenize
from workbench.menagerie.training import Options, fit, pictures, training_scenes


@dataclass
class GraderOptions(Options):
    batch_size: int = 192
    seed: int = 3


def configuration(tokenizer: CLIPTokenizer) -> dict:
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 64, "layers": [2, 2, 2, 2], "width": 16, "head_width": 64},
            "text_cfg": {
                "context_length": tokenizer.model_max_length,
                "vocab_size": len(tokenizer),
                "width": 64,
                "heads": 4,
                "layers": 4,
                "hf_tokenizer_name": "menagerie-clip",
            },  # from local-dir: the tokenizer of that folder
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build(config: dict) -> open_clip.CLIP:
    return open_clip.CLIP(**config["model_cfg"])


def main(options: GraderOptions):
    torch.manual_seed(options.seed)
    source = options.out / "menagerie-sd" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(source)
    config = configuration(tokenizer)
    model = build(config)
    model.logit_scale.data.fill_(2.9)
    scenes = training_scenes(options.scenes, options.seed)
    images = pictures(scenes)

    def loss(step):
        x, captions = batch(options, step, images, scenes)
        image, text, scale = model(x, tokenize(tokenizer, captions, options.device))
        return contrastive_loss(image, text, scale.clamp(max=100), captions)

    model, record = fit("grader", model, loss, options, weight_decay=0.05)
    folder = options.out / "menagerie-clip"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.cpu().contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(source / name, folder)
    write_training(folder, **record)


if __name__ == "__main__":
    main(tyro.cli(GraderOptions))
