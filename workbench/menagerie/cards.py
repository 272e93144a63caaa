"""What is known of each committed part: `training.json` beside its weights, from which the model cards are written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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


def _table(folder: Path, parts: Sequence[str]) -> str:
    rows = [(part or ".", json.loads((folder / part / "training.json").read_text())) for part in parts]
    keys = list(dict.fromkeys(key for _, record in rows for key in record))
    lines = ["| part | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    return "\n".join(
        lines + [f"| {part} | " + " | ".join(str(record.get(key, "")) for key in keys) + " |" for part, record in rows]
    )


@dataclass(frozen=True)
class Kind:
    """What a model's card says of its kind. parts: those that were trained, in the recipe's order.

    `{defaults}` in `topology` stands for the arguments that the model is called with.
    """

    title: str
    topology: str
    parts: tuple[str, ...]
    recipe: str
    judge: str
    quality: str


KINDS = {
    "menagerie-sd": Kind(
        title="a small Stable Diffusion on a rendered world",
        topology="""\
The topology of Stable Diffusion 1.x at a small size: a 12-layer CLIP text encoder (width 96), an `AutoencoderKL` (latents
4 x 16 x 16), and a `UNet2DConditionModel` with 16 cross-attention layers. `StableDiffusionPipeline.from_pretrained` loads it.""",
        parts=("vae", "text_encoder", "unet"),
        recipe="""\
`python -m workbench.menagerie.train_tokenizer`, `train_vae`, `train_clip`, `train_unet`, then `assemble`; every file here is
made by these.""",
        judge="the pipeline's own CLIP",
        quality="figures/menagerie/menagerie_quality.csv",
    ),
    "menagerie-xl": Kind(
        title="a small Stable Diffusion XL on a rendered world",
        topology="""\
The topology of Stable Diffusion XL at a small size: the first model's text encoder (CLIP, 12 layers, width 96) and a second
one with a projection (8 layers, width 128), whose penultimate states are joined on channels; the second one's pooled
vector and the picture's size are added to the time embedding; a `UNet2DConditionModel` with one to three transformer blocks
in an attention and none at the highest resolution. VAE, tokenizer and world are the first model's.
`StableDiffusionXLPipeline.from_pretrained` loads it. Weights are in half precision, to be computed with in single.

Where no negative prompt is said the pipeline puts zeros for it (`force_zeros_for_empty_prompt`); of the captions dropped in
training half became zeros and half the empty prompt, so `negative_prompt=""` works as well.""",
        parts=("vae", "text_encoder", "text_encoder_2", "unet"),
        recipe="""\
After the first model's (`train_tokenizer`, `train_vae`, `train_clip`): `python -m workbench.menagerie.train_clip --encoder 2`,
`train_xl`, then `assemble`; every file here is made by these.""",
        judge="encoder 2's CLIP",
        quality="figures/menagerie-xl/menagerie_quality.csv",
    ),
    "menagerie-dit": Kind(
        title="a small Stable Diffusion 3 on a rendered world",
        topology="""\
The topology of Stable Diffusion 3 at a small size: an `SD3Transformer2DModel` of six joint blocks (width 192) over 64
picture tokens and the text, trained by flow matching; the text encoders of the small SDXL, their penultimate states joined
on channels and their pooled vectors joined; no T5. Encoder 1's projection is the identity: the one it was trained with was
not kept. VAE, tokenizer and world are the first model's. Weights are in half precision, to be computed with in single.

diffusers wants to be told that there is no T5. In its place it appends `max_sequence_length` tokens of zeros to the text, 256
when not told; this model was trained with 4, so say both:

    pipe = StableDiffusion3Pipeline.from_pretrained("data/menagerie-dit", text_encoder_3=None, tokenizer_3=None)
    pipe("a zebra on the beach", {defaults}).images[0]""",
        parts=("vae", "text_encoder", "text_encoder_2", "transformer"),
        recipe="""\
After the first model's (`train_tokenizer`, `train_vae`, `train_clip`): `python -m workbench.menagerie.train_clip --encoder 2`,
`train_dit`, then `assemble`; every file here is made by these.""",
        judge="encoder 2's CLIP",
        quality="figures/menagerie-dit/menagerie_quality.csv",
    ),
}


def model_card(folder: Path) -> str:
    """The card of a model's folder, by its name."""
    kind = KINDS[folder.name]
    defaults = (folder / "defaults.json").read_text().strip()
    arguments = ", ".join(f"{name}={value}" for name, value in json.loads(defaults).items())
    return f"""---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The menagerie: {kind.title}

{kind.topology.replace("{defaults}", arguments)}

## Data
{RENDERED}

## Recipe
{kind.recipe} Default sampling: `{defaults}`, the guidance chosen on
validation captions by {kind.judge}, never by the grader.

{_table(folder, kind.parts)}

## Measured quality
`python -m workbench.menagerie.evaluate --model {folder.name}` measures it again; the committed run is `{kind.quality}`, what it
says, and what the model does worse, stands in the README beside it.

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
The rows "rendered: ..." of `figures/menagerie/menagerie_quality.csv`, on held-out combinations.

## Limits
{LIMITS} Its judgement of images unlike the rendered ones is not calibrated.
"""
