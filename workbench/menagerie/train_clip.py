"""Train a CLIP of the pipelines: `python -m workbench.menagerie.train_clip --minutes 45`, then again with `--encoder 2`.

A text encoder and a small image tower, contrastively. Encoder 1, of 12 layers, is every pipeline's; encoder 2, wider,
of 8 layers and with its projection kept, is the second one of those that have two. The whole models are kept in `runs`,
where the default guidances are chosen with them (never with the grader).
"""

import random
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from workbench.menagerie.captions import caption
from workbench.menagerie.cards import write_training
from workbench.menagerie.training import Options, batch_rng, fit, pictures, save_half, to_model_range, training_scenes

WIDTH, LAYERS, SEED, NAME = {1: 96, 2: 128}, {1: 12, 2: 8}, {1: 2, 2: 6}, {1: "clip", 2: "clip_2"}


@dataclass
class CLIPOptions(Options):
    batch_size: int = 160
    seed: int | None = None
    """Left out, the encoder's own: 2 and 6."""
    encoder: Literal[1, 2] = 1

    def __post_init__(self):
        super().__post_init__()
        self.seed = SEED[self.encoder] if self.seed is None else self.seed


def build(tokenizer: CLIPTokenizer, encoder: int = 1) -> CLIPModel:
    width = WIDTH[encoder]
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS[encoder],
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=8
    )
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width, logit_scale_init_value=2.9)
    # the fused attention is slow backwards in bf16 on CPUs
    return CLIPModel._from_config(config, attn_implementation="eager")


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, captions: list[str]
) -> dict[str, torch.Tensor]:
    """Symmetric InfoNCE of normalised embeddings (row, channel); equal captions in a batch are all positives."""
    index = {text: i for i, text in enumerate(captions)}
    ids = torch.tensor([index[text] for text in captions], device=images.device)
    same = (rearrange(ids, "i -> i 1") == ids).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * images.float() @ texts.float().T
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    hit = same.gather(1, logits.argmax(1, keepdim=True)).mean()
    return {"loss": loss, "top1": hit, "scale": scale}


def batch(options: Options, step: int, images: torch.Tensor, scenes) -> tuple[torch.Tensor, list[str]]:
    """Pictures and fresh captions of one step."""
    rng = batch_rng(options, step)
    index = rng.integers(len(scenes), size=options.batch_size)
    words = random.Random(int(rng.integers(2**63)))
    return to_model_range(images[index], options.device), [caption(scenes[i], words) for i in index]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], device="cpu") -> torch.Tensor:
    """Token ids (row, token), padded to the tokenizer's length; a caption that is too long raises ValueError."""
    rows = tokenizer(captions)["input_ids"]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if len(rows[longest]) > tokenizer.model_max_length:
        raise ValueError(
            f"training caption of {len(rows[longest])} tokens, the tokenizer's limit is "
            f"{tokenizer.model_max_length}: {captions[longest]!r}; shorten the grammar or raise LENGTH"
        )
    ids = torch.full((len(rows), tokenizer.model_max_length), tokenizer.pad_token_id)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids.to(device)


def main(options: CLIPOptions):
    torch.manual_seed(options.seed)
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "menagerie-sd" / "tokenizer")
    model = build(tokenizer, options.encoder)
    scenes = training_scenes(options.scenes, options.seed)
    images = pictures(scenes)

    def loss(step):
        x, captions = batch(options, step, images, scenes)
        ids = tokenize(tokenizer, captions, options.device)
        longest = 1 + int((ids == tokenizer.eos_token_id).int().argmax(1).max())
        ids = ids[:, :longest]  # causal: what follows the end changes nothing
        out = model(input_ids=ids, pixel_values=x)
        scale = model.logit_scale.exp().clamp(max=100)
        return contrastive_loss(out.image_embeds, out.text_embeds, scale, captions)

    name = NAME[options.encoder]
    model, record = fit(name, model, loss, options, autocast=True, weight_decay=0.05)
    model.save_pretrained(options.runs / name)
    if options.encoder == 1:
        folder = options.out / "menagerie-sd" / "text_encoder"
        text_tower(model, CLIPTextModel).save_pretrained(folder)
    else:
        folder = options.out / "menagerie-xl" / "text_encoder_2"
        text = text_tower(model, CLIPTextModelWithProjection)
        text.text_projection.load_state_dict(model.text_projection.state_dict())
        save_half(text, folder)
    write_training(folder, **record)


def text_tower(model: CLIPModel, kind: type) -> torch.nn.Module:
    """A CLIP's text encoder as a model of its own, of class `kind`."""
    text = kind(model.config.text_config)
    inner = getattr(text, "text_model", text)  # transformers 4 nests CLIPTextModel's
    inner.load_state_dict(model.text_model.state_dict())
    return text.eval()


if __name__ == "__main__":
    main(tyro.cli(CLIPOptions))
