"""What is known of each committed part: `training.json` beside its weights, from which the model cards are written."""

import json
from pathlib import Path

RENDERED = """Rendered pictures of the menagerie's world (`workbench/menagerie/world.py`, `captions.py`), 64 x 64 pixels, with
captions from its grammar. One in ten combinations of subject, scene and season is held out of all training, as are some
wordings. Pictures and weights: CC0-1.0."""

LIMITS = """It knows 12 subjects, 6 colours, 6 scenes, 3 seasons or times, 4 styles, 3 actions, 3 positions and 5 named
individuals, nothing else, and reads 32 tokens. It ignores positions ("on the left"). It is for research on methods, not for making
pictures."""


def write_training(folder: Path, **record):
    """Keep how a part was trained beside its weights."""
    (Path(folder) / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def summary(folder: Path) -> str:
    """One line on how the weights in a folder were trained, the runs before the last one included."""
    last = json.loads((Path(folder) / "training.json").read_text())
    line = f"{last['steps']} steps of {last['batch_size']} in {last['minutes']} min on {last['hardware']}, seed {last['seed']}"
    return f"{last['before']}; {line}" if "before" in last else line


def _table(folder: Path, parts: list[str]) -> str:
    rows = [(part or ".", json.loads((folder / part / "training.json").read_text())) for part in parts]
    keys = list(dict.fromkeys(key for _, record in rows for key in record))
    lines = ["| part | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    return "\n".join(
        lines + [f"| {part} | " + " | ".join(str(record.get(key, "")) for key in keys) + " |" for part, record in rows]
    )


def pipeline_card(folder: Path) -> str:
    return f"""---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The menagerie: a small Stable Diffusion on a rendered world

The topology of Stable Diffusion 1.x at a small size: a 12-layer CLIP text encoder (width 96), an `AutoencoderKL` (latents
4 x 16 x 16), and a `UNet2DConditionModel` with 16 cross-attention layers. `StableDiffusionPipeline.from_pretrained` loads it.

## Data
{RENDERED}

## Recipe
`python -m workbench.menagerie.train_tokenizer`, `train_vae`, `train_clip`, `train_unet`, then `assemble`; every file here is
made by these. Default sampling: `{(folder / "defaults.json").read_text().strip()}`, the guidance chosen on validation captions by the
pipeline's own CLIP, never by the grader.

{_table(folder, ["vae", "text_encoder", "unet"])}

## Measured quality
`python -m workbench.menagerie.evaluate` measures it again; the committed run is `figures/menagerie_quality.csv`, summed up in
the project's README.

## Limits
{LIMITS}
"""


def grader_card(folder: Path) -> str:
    return f"""---
license: cc0-1.0
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---
# The menagerie's grader: a small CLIP that judges its pictures

An open_clip model (convolutional image tower, 4-layer text tower), of another architecture, seed and training run than the
pipeline's CLIP, and never used to train or to choose anything in the pipeline.
`open_clip.create_model_and_transforms("local-dir:data/menagerie-clip")` loads it.

## Data
{RENDERED}

## Recipe
`python -m workbench.menagerie.train_grader`; rendered pictures only, never generated ones.

{_table(folder, [""])}

## Measured quality
The rows "rendered: ..." of `figures/menagerie_quality.csv`, on held-out combinations.

## Limits
{LIMITS} Its judgement of images unlike the rendered ones is not calibrated.
"""
