"""Edits as LoRA files that other programs load: `edit.to_lora("zebra.safetensors")`."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from workbench import schema
from workbench.edit.card import prompts_of
from workbench.edit.low_rank import Edit, Layout, Update
from workbench.files import safetensors_bytes, write_bytes
from workbench.inputs import user_path

TRAVELS = re.compile(
    r"unet\..+|transformer\..+|text_encoder(_2)?\.(text_model\.)?encoder\.layers\.\d+\.(self_attn\.out_proj|mlp\.fc[12])"
)
# What stands for a component in the keys of Kohya's layout; programs tell SDXL's two encoders by number.
PREFIXES = {
    "sd": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
# Which base model a LoRA is for, by family and width of the text states, as programs that sort LoRA files read it.
LAYOUTS = {
    "sd": ("kohya", "peft"),
    "sdxl": ("kohya", "peft"),
    "sd3": ("peft",),
    "flux": ("peft",),
    "deepfloyd": ("peft",),
}  # that diffusers loads, by family
MODELS = {
    ("sd", 768): {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"},
    ("sd", 1024): {
        "ss_base_model_version": "sd_v2",
        "ss_v2": "True",
        "modelspec.architecture": "stable-diffusion-v2/lora",
    },
    ("flux", None): {"modelspec.architecture": "flux-1-dev/lora"},
    ("sd3", None): {"modelspec.architecture": "stable-diffusion-3/lora"},
    ("sdxl", None): {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
}
CROSS = re.compile(r"attn2\.to_[kv]$")
TEXT = re.compile(r"text_encoder\.")
FACTORS = {"kohya": ("lora_up", "lora_down"), "peft": ("lora_B", "lora_A")}
TEXT_ENCODER = re.compile(r"text_encoder(_2)?\.")
# In text encoders diffusers knows lora_A and lora_B of attention alone: a file of mlp layers only would not load.
OF_TEXT = ("lora_linear_layer.up", "lora_linear_layer.down")
MOST_PROMPTS = 200  # that the metadata lists


def to_lora(edit: Edit, path: str | Path, layout: Layout = "kohya") -> Path:
    """Write an edit as one LoRA file, at strength 1 exactly the edit: W + b @ a.

    path: of the file, ending in .safetensors; plain diffusers loads it in both layouts, `pipeline.load_lora_weights(path)`. layout:
    "kohya", which ComfyUI and AUTOMATIC1111 know too, or "peft", diffusers' own names. The metadata holds what made the edit, its
    prompts, and the SHA-256 of the weights that it was made for. Factors are those of `Update.balanced`, ranks padded with zeros to
    one, since not every loader follows a rank or an alpha of a layer's own. Returns the path.

    A loaded LoRA and a commit agree up to rounding; in float32 that is 1e-5 of a pixel's range. In half precision both round, each at
    another place: a commit the sum W + b a once, so that it loses about 2^-9 |W| / |b a| of the change in bfloat16 (on the embedded
    model 0.8 % for an edit of |b a| = 0.24 |W|, 7 % for a tenth of it, half for a hundredth: then `commit` warns); a LoRA its factors
    and each layer's two parts, which keeps the change itself to 0.24 % whatever its size (6 % before factors were balanced). So the
    LoRA's weights are nearer to the float32 edit unless the edit is as large as the weight, while the layers' outputs differ from
    exact ones about as much either way: by 0.21 % committed, 0.31 % as LoRA, and 0.17 % with no edit. Denoising amplifies any such
    difference: pixels differ by 0.5 of 255 on average and by tens at edges, between LoRA and commit (0.5, largest 31), as between
    either and float32's edit (0.7, 76) and between the unedited model in bfloat16 and in float32 (0.6, 65); float16: 0.06 and 8. An
    edit that was made for bfloat16 weights therefore warns here.

    Raises ValueError for what a LoRA cannot hold, such as rows of an embedding, for a model whose LoRA files have no such layout,
    and for a path that names no such file.
    """
    schema.choice(layout, "to_lora(layout=)", tuple(FACTORS))
    path = user_path(path, "to_lora(path=)")
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(
            f"to_lora(path={str(path)!r}): give the path of one file that ends in .safetensors, as zebra.safetensors"
        )
    if stays := [update.site for update in edit.updates if not TRAVELS.fullmatch(update.module)]:
        raise ValueError(
            f"to_lora: {', '.join(stays)} cannot travel as LoRA, which holds linear layers of the denoiser and the CLIP text encoders "
            "only; share the edit itself (edit.save), or the whole model (model.save_pretrained)"
        )
    families = {update.family for update in edit.updates}
    if len(families) > 1 or (family := families.pop()) not in LAYOUTS:
        raise ValueError(
            f"to_lora: the edit was made for {', '.join(sorted({update.family for update in edit.updates}))}; LoRA files are written "
            f"for one of {', '.join(LAYOUTS)}; share the edit itself (edit.save)"
        )
    if layout not in LAYOUTS[family]:
        raise ValueError(
            f"to_lora(layout={layout!r}): diffusers loads no such file into a pipeline of the family {family}; give "
            f"layout={LAYOUTS[family][0]!r}"
        )
    if any(update.dtype == "bfloat16" for update in edit.updates):
        warnings.warn(
            "to_lora: the edit was made for bfloat16 weights, where a LoRA's images differ from the commit's as much as bfloat16's "
            "from float32's (0.5 of 255 on average, tens at edges); make it on the model in float32 to compare them closer",
            stacklevel=3,
        )
    tensors = {key: tensor for update in edit.updates for key, tensor in _tensors(update, layout, edit.rank)}
    return write_bytes(path, safetensors_bytes(tensors, _metadata(edit, family)))


def _tensors(update: Update, layout: Layout, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    in_text = layout == "peft" and TEXT_ENCODER.match(update.module)
    (up, down), (b, a), short = OF_TEXT if in_text else FACTORS[layout], update.balanced(), rank - update.rank
    key = _key(update, layout)
    yield f"{key}.{up}.weight", F.pad(b, (0, short))
    yield f"{key}.{down}.weight", F.pad(a, (0, 0, 0, short))
    if layout == "kohya":
        yield f"{key}.alpha", torch.tensor(float(rank))


def _key(update: Update, layout: Layout) -> str:
    """The module as LoRA files name it, in every version of transformers: with the text encoders' inner `text_model`."""
    named = re.sub(r"^(text_encoder(?:_2)?)\.(?!text_model\.)", r"\1.text_model.", update.module)
    if layout == "peft":
        return named
    component, _, inner = named.partition(".")
    return f"{PREFIXES[update.family][component]}_{inner.replace('.', '_')}"


def _metadata(edit: Edit, family: str) -> dict[str, str]:
    """What the file says of itself, by keys that other programs show (`ss_`, `modelspec.`) and by our own."""
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": edit.editor,
        "modelspec.description": edit.card(),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(edit.rank),
        "ss_network_alpha": str(float(edit.rank)),
        "workbench.edit": edit.digest,
        "workbench.prompts": json.dumps(prompts_of(edit)[:MOST_PROMPTS]),
        "workbench.base": json.dumps({u.site: {"sha256": u.base, "dtype": u.dtype} for u in edit.updates}),
    }
    return about | MODELS.get((family, None if family != "sd" else _text_width(edit)), {})


def _text_width(edit: Edit) -> int | None:
    """Channels of the text states that the edited layers are given or give, where they tell."""
    of = lambda update: update.shape[1] if CROSS.search(update.module) else min(update.shape)
    widths = {of(update) for update in edit.updates if CROSS.search(update.module) or TEXT.match(update.module)}
    return widths.pop() if len(widths) == 1 else None
