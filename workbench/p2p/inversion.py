"""Real images: the noise that a picture comes from, and unconditional embeddings that bring it back under guidance.

(photo,) = invert(model, PIL.Image.open("zebra.png"), "a zebra in the savanna")
run = photo.run(model, prompt_to_prompt(model, photo.prompt, "a giraffe in the savanna"))
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image

from workbench.arguments import checked
from workbench.engine import Fold, Run
from workbench.engine.trace import untouched
from workbench.families import check_unet
from workbench.inputs import count, strings
from workbench.interventions import Intervention, World, set_to, window
from workbench.models import Model, Worlds, as_record, as_worlds, some_pictures
from workbench.progress import each


@dataclass(frozen=True, eq=False)
class Inversion:
    """A real image as a run of the model.

    latents: to begin from, (channel, y, x). trajectory: of the inversion, (step, channel, y, x), the image's own latents first.
    interventions: on the unconditional rows, one for each step's share of the run; none for plain DDIM inversion. loss: squared
    error of the latents behind each step of the optimisation.

    >>> (photo,) = wb.invert(model, run.pil("zebra", seed=0), "a photo of a zebra", null_text=False)
    >>> photo.num_inference_steps, photo.trajectory.shape, photo.interventions
    (2, torch.Size([3, 4, 16, 16]), ())
    """

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    trajectory: torch.Tensor
    interventions: tuple[Intervention, ...] = ()
    loss: tuple[float, ...] = ()

    @property
    def latents(self) -> torch.Tensor:
        return self.trajectory[-1]

    def worlds(self, worlds: Worlds) -> list[World]:
        """The worlds with the image's unconditional embeddings, for a run of as many steps and the same guidance.

        >>> (photo,) = wb.invert(model, run.pil("zebra", seed=0), "a photo of a zebra", inner_steps=1)
        >>> [len(world.interventions) for world in photo.worlds("a photo of a zebra")]  # one a step
        [2]
        """
        return [
            replace(world, interventions=(*world.interventions, *self.interventions)) for world in as_worlds(worlds)
        ]

    @checked(record=lambda record, argument: as_record(record))
    def run(
        self,
        model: Model,
        worlds: Worlds | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        record: str | Fold | Sequence[str | Fold] = (),
        batch_size: int = 16,
        progress: bool = True,
    ) -> Run:
        """Draw worlds from the image's noise; its own prompt, which reconstructs it, when left out.

        num_inference_steps and guidance_scale are the inversion's own. Raises ValueError for another number of steps, since each latent
        and each embedding belongs to one time of the run; for another guidance than the embeddings were optimised for; and for
        worlds whose first prompt is not the image's.

        >>> (photo,) = wb.invert(model, run.pil("zebra", seed=0), "a photo of a zebra", inner_steps=1)
        >>> photo.run(model)
        Run of worlds 'reconstruction'; seeds 0: pictures of 64 x 64
        """
        chosen = [World("reconstruction", self.prompt)] if worlds is None else as_worlds(worlds)
        if chosen[0].prompt != self.prompt:
            raise ValueError(
                f"the first world's prompt is {chosen[0].prompt!r}, but the image was inverted with {self.prompt!r}; begin "
                "with that, or invert it with another prompt"
            )
        self._check_own("num_inference_steps", num_inference_steps)
        if self.interventions:
            self._check_own("guidance_scale", guidance_scale)
        return model.run(
            self.worlds(chosen),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            latents=self.latents[None],
            record=record,
            batch_size=batch_size,
            progress=progress,
        )

    def _check_own(self, name: str, given: float | None):
        own = getattr(self, name)
        if given is not None and given != own:
            raise ValueError(
                f"{name}={given}: the image was inverted at {own}, and its latents and embeddings belong to that; leave {name} out, or "
                f"invert it with {name}={given}"
            )


@checked(images=lambda images, argument: some_pictures(images), prompts=strings, inner_steps=partial(count, least=0))
def invert(
    model: Model,
    images,
    prompts: str | Sequence[str],
    *,
    null_text: bool = True,
    inner_steps: int = 10,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> list[Inversion]:
    """DDIM inversion of images of the model's own size, and null-text optimisation (Mokady et al. 2022, arXiv 2211.09794).

    images: one or several, as PIL pictures of any mode (turned as their EXIF orientation says, transparency laid on white), or as an
    array; see `workbench.pictures`. prompts: one for each.

    Inversion runs at guidance 1 with the images' prompts. Then, step by step, the unconditional embedding is moved (Adam, learning
    rate 1e-2 (1 - i / 100), at most `inner_steps` updates, ended at a squared error of 1e-5 + 2e-5 i) until guided denoising
    follows the inversion backwards. At guidance 1 there is nothing to optimise. All images go through the UNet together.

    Raises ValueError for what is no picture, images of another size, another number of prompts than of images, another scheduler
    than DDIM, or a model that is not float32.

    >>> (photo,) = wb.invert(model, run.pil("zebra", seed=0), "a photo of a zebra", inner_steps=1)
    >>> photo.latents.shape, len(photo.loss)
    (torch.Size([4, 16, 16]), 2)
    >>> worlds = wb.prompt_to_prompt(model, "a photo of a zebra", "a photo of a giraffe")
    >>> photo.run(model, worlds)
    Run of worlds 'source', 'edited'; seeds 0: pictures of 64 x 64
    """
    images, prompts = some_pictures(images), strings(prompts, "prompts")
    steps = model.num_inference_steps if num_inference_steps is None else num_inference_steps
    guidance = model.guidance_scale if guidance_scale is None else guidance_scale
    _check(model, images, prompts)
    clean = model.encode(images)
    with model.lock, untouched(model.pipeline), _frozen(model.pipeline.unet):
        path = _ddim(model, clean, prompts, steps)
        null, losses = None, []
        if null_text and guidance > 1:
            null, losses = _null_text(model, path, prompts, steps, guidance, inner_steps)
    found = []
    for i, prompt in enumerate(prompts):
        made = (
            []
            if null is None
            else [
                set_to("unet.*.cross.context", null[s, i], steps=window(s / steps, (s + 1) / steps), rows="uncond")
                for s in range(steps)
            ]
        )
        own = () if null is None else tuple(float(loss[i]) for loss in losses)
        found.append(Inversion(prompt, steps, guidance, path[:, i].cpu(), tuple(made), own))
    return found


def _check(model: Model, images: Sequence[Image.Image], prompts: Sequence[str]):
    check_unet(model.pipeline, "invert", "it runs DDIM's steps backwards")
    if len(images) != len(prompts):
        raise ValueError(f"invert: {len(images)} images and {len(prompts)} prompts; give each image its prompt")
    if not isinstance(model.pipeline.scheduler, DDIMScheduler):
        name = type(model.pipeline.scheduler).__name__
        raise ValueError(
            f"invert: the pipeline's scheduler is {name}, whose steps cannot be run backwards; set model.pipeline.scheduler = "
            "DDIMScheduler.from_config(model.pipeline.scheduler.config)"
        )
    if model.pipeline.unet.dtype != torch.float32:
        raise ValueError(
            f"invert: the model is in {model.pipeline.unet.dtype}, too coarse to be optimised; load it with dtype=torch.float32"
        )


@contextmanager
def _frozen(unet: torch.nn.Module):
    """Without gradients of the weights, for as long as the block lasts."""
    before = [parameter.requires_grad for parameter in unet.parameters()]
    unet.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needs in zip(unet.parameters(), before):
            parameter.requires_grad_(needs)


def _texts(pipeline, prompts: Sequence[str], guided: bool) -> tuple[list[torch.Tensor], list[dict]]:
    """What the UNet is given of the prompts, and with guidance of the empty prompt: states, and further arguments (SDXL)."""
    found = pipeline.encode_prompt(
        list(prompts), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    halves = (0, 1) if guided else (0,)
    if getattr(pipeline, "text_encoder_2", None) is None:
        return [found[half] for half in halves], [{} for _ in halves]
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(prompts), device=pipeline.device, dtype=found[0].dtype)
    return [found[half] for half in halves], [
        {"added_cond_kwargs": {"text_embeds": found[2 + half], "time_ids": sizes}} for half in halves
    ]


@torch.no_grad()
def _ddim(model: Model, clean: torch.Tensor, prompts: Sequence[str], steps: int) -> torch.Tensor:
    """Latents from the images' own to noise: (step, image, channel, y, x)."""
    pipeline = model.pipeline
    scheduler = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps, device=pipeline.device)
    (states,), (more,) = _texts(pipeline, prompts, guided=False)
    path = [clean]
    for time in each(scheduler.timesteps, "DDIM inversion"):
        noise = pipeline.unet(path[-1], time, encoder_hidden_states=states, **more).sample
        path.append(scheduler.step(noise, time, path[-1]).prev_sample)
    return torch.stack(path)


def _null_text(
    model: Model, path: torch.Tensor, prompts: Sequence[str], steps: int, guidance: float, inner_steps: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Unconditional states (step, image, token, channel), and behind each step the squared error of each image's latents."""
    pipeline, found, losses = model.pipeline, [], []
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # a copy: the pipeline's own keeps its state
    scheduler.set_timesteps(steps, device=pipeline.device)
    with torch.no_grad():
        (cond, null), (more, more_null) = _texts(pipeline, prompts, guided=True)
    latents, null = path[-1], null.clone()
    for i, time in enumerate(each(scheduler.timesteps, "null-text optimisation")):
        goal = path[-2 - i]
        with torch.no_grad():
            conditional = pipeline.unet(latents, time, encoder_hidden_states=cond, **more).sample

        def behind(null, latents=latents, time=time, conditional=conditional):
            empty = pipeline.unet(latents, time, encoder_hidden_states=null, **more_null).sample
            return scheduler.step(empty + guidance * (conditional - empty), time, latents).prev_sample

        null = _descend(
            null,
            lambda null, behind=behind, goal=goal: (behind(null) - goal).square().mean((1, 2, 3)),
            lr=1e-2 * max(0.0, 1 - i / 100),
            enough=1e-5 + 2e-5 * i,
            updates=inner_steps,
        )
        with torch.no_grad():
            latents = behind(null)
        losses.append((latents - goal).square().mean((1, 2, 3)))
        found.append(null)
    return torch.stack(found), losses


def _descend(start: torch.Tensor, loss_of, lr: float, enough: float, updates: int) -> torch.Tensor:
    """Adam on each row (row, ...) by itself; a row whose loss (row,) is small enough stays where it is."""
    best = start.detach().clone()
    moving = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([moving], lr=lr)
    active = torch.ones(len(start), dtype=torch.bool, device=start.device)
    for _ in range(updates):
        loss = loss_of(moving)
        active &= loss.detach() >= enough
        if not active.any():
            break
        moving.grad = torch.autograd.grad(loss.sum(), moving)[0]
        optimizer.step()
        keep = active.view(-1, *[1] * (start.dim() - 1))
        best = torch.where(keep, moving.detach(), best)
    return best
