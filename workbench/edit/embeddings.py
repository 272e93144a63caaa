"""Edits of the token embedding: the baselines that change what is said, not what the model knows.

Both change rows of the embedding table: b holds a one in each row's place, a what is added there. They reach a word wherever
it stands, in both encoders of XL, cannot be a LoRA, and lie outside the rules of a UNet-only task.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image

from workbench.arguments import checked
from workbench.edit.editors import as_templates, provenance
from workbench.edit.low_rank import Edit, update_of
from workbench.edit.words import warn_of_untrained
from workbench.families import check_unet, family_of
from workbench.inputs import count, number, text
from workbench.models import some_pictures
from workbench.progress import each
from workbench.sites import Site, weight_of
from workbench.text import tokens_of


@checked(first=text, second=text)
def embedding_swap(model, first: str, second: str) -> Edit:
    """Swap the embedding rows of two words, all their tokens, in every text encoder (the IOAI 2024 baseline).

    Raises ValueError for words of different numbers of tokens, or that are the same.

    >>> found = wb.edit.embedding_swap(model, "zebra", "giraffe")
    >>> found.sites, found.rank
    (('text_encoder.embedding',), 2)
    """
    warn_of_untrained(model, (first, second), "embedding_swap")
    updates = []
    for site in model.sites("text_encoder*.embedding"):
        a, b = (_ids(model, site, word) for word in (first, second))
        if len(a) != len(b) or a == b:
            raise ValueError(
                f"embedding_swap({first!r}, {second!r}): their tokens are {a} and {b}; give two different words of equally many"
            )
        table = weight_of(model.pipeline, site).detach()
        updates.append(_rows(model, site, [*a, *b], table[[*b, *a]].float() - table[[*a, *b]].float()))
    return Edit(updates, provenance("embedding_swap", model, {}, first=first, second=second))


@checked(
    word=text,
    images=lambda images, argument: some_pictures(images),
    templates=as_templates,
    updates=count,
    lr=partial(number, above=0, most=1e3),
)
def textual_inversion(
    model,
    word: str,
    images: Sequence[Image.Image],
    *,
    templates: Sequence[str] = ("{}",),
    updates: int = 100,
    batch_size: int = 4,
    lr: float = 5e-3,
    seed: int = 0,
) -> Edit:
    """Learn a shift of a word's embedding under which the denoiser explains some pictures (Gal et al. 2022, arXiv 2208.01618).

    Adam on the noise-prediction loss of the frozen model, over random pictures, templates, timesteps and noise, all from
    `seed`. It sees its pictures alone, and is the baseline that over-fits. images: of the model's own size. The edit's
    provenance holds the mean loss of the first and last tenth.

    Raises ValueError without pictures or for templates without a place for the word, FloatingPointError when the loss is
    not finite.

    >>> pictures = run.pil("lion")
    >>> found = wb.edit.textual_inversion(model, "zebra", pictures, updates=2, batch_size=2)
    >>> found.sites, len(found.provenance["loss"])
    (('text_encoder.embedding',), 2)
    """
    check_unet(model.pipeline, "textual_inversion", "it trains on the loss of noise prediction")
    denoiser, generator = Denoiser(model.pipeline), torch.Generator().manual_seed(seed)
    sites = list(model.sites("text_encoder*.embedding"))
    ids = {site: _ids(model, site, word) for site in sites}
    tables = {site: weight_of(model.pipeline, site).detach() for site in sites}
    shifts = {site: torch.zeros_like(tables[site][ids[site]]).requires_grad_() for site in sites}
    latents = model.encode(images)
    optimizer, losses = torch.optim.Adam(shifts.values(), lr=lr), []
    with model.lock:
        for _ in each(range(updates), "textual inversion", "update"):
            rows = torch.randint(len(latents), (batch_size,), generator=generator)
            texts = [
                templates[int(i)].format(word)
                for i in torch.randint(len(templates), (batch_size,), generator=generator)
            ]
            noise = torch.randn(batch_size, *latents.shape[1:], generator=generator).to(latents)
            steps = torch.randint(
                model.pipeline.scheduler.config.num_train_timesteps, (batch_size,), generator=generator
            )
            changed = {
                f"{site.module}.weight": tables[site].index_add(
                    0, torch.tensor(ids[site], device=latents.device), shift
                )
                for site, shift in shifts.items()
            }
            predicted, target = torch.func.functional_call(
                denoiser, changed, (texts, latents[rows], noise, steps.to(latents.device))
            )
            loss = F.mse_loss(predicted.float(), target.float())
            for shift, gradient in zip(
                shifts.values(), torch.autograd.grad(loss, list(shifts.values()))
            ):  # of nothing else: weights stay
                shift.grad = gradient
            optimizer.step()
            losses.append(loss.item())
    if not all(map(torch.isfinite, torch.tensor(losses))):
        raise FloatingPointError(
            f"textual_inversion: the loss is not finite; lower lr={lr}, or load the model in float32"
        )
    tenth = max(1, updates // 10)
    settings = {
        "word": word,
        "images": len(images),
        "templates": list(templates),
        "updates": updates,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "loss": [sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth],
    }
    rows = [_rows(model, site, ids[site], shifts[site].detach()) for site in sites]
    return Edit(rows, provenance("textual_inversion", model, {}, **settings))


class Denoiser(torch.nn.Module):
    """What a pipeline predicts for noised latents, noise or, of flow matching, velocity, as a function of its own weights."""

    def __init__(self, pipeline):
        super().__init__()
        object.__setattr__(self, "pipeline", pipeline)
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                self.add_module(name, part)

    def forward(
        self, prompts: list[str], latents: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and target, each (row, channel, y, x). steps: of the training's, (row,)."""
        pipeline, more = self.pipeline, {}
        if (family := family_of(pipeline)).velocity is not None:
            share = ((steps + 0.5) / pipeline.scheduler.config.num_train_timesteps).to(latents.dtype)
            mixed = torch.lerp(latents, noise, share[:, None, None, None])
            return family.velocity(pipeline, mixed, share, *family.encode(pipeline, prompts)), noise - latents
        text, *rest = pipeline.encode_prompt(
            prompts, device=latents.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if getattr(pipeline, "text_encoder_2", None) is not None:
            side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
            sizes = torch.tensor(
                [[side, side, 0, 0, side, side]] * len(prompts), device=latents.device, dtype=text.dtype
            )
            more["added_cond_kwargs"] = {"text_embeds": rest[1], "time_ids": sizes}
        scheduler = pipeline.scheduler
        predicted = pipeline.unet(
            scheduler.add_noise(latents, noise, steps), steps, encoder_hidden_states=text, **more
        ).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        return predicted, scheduler.get_velocity(latents, noise, steps) if velocity else noise


def _ids(model, site: Site, word: str) -> list[int]:
    """A word's tokens, in the tokenizer of the text encoder whose embedding a site is."""
    found = tokens_of(model.pipeline, word, site.tokenizer)
    return [found.ids[i] for i in found.of(word)]


def _rows(model, site: Site, ids: Sequence[int], added: torch.Tensor):
    """The update that adds (row, channel) to rows of an embedding table."""
    b = F.one_hot(torch.tensor(ids), len(weight_of(model.pipeline, site))).T.float()
    return update_of(model, site.name, b, added.float())
