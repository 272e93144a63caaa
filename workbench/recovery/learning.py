"""Attacks that learn, by gradients on the edited model's denoising loss over pictures that the unedited model drew.

Weights are never written to: what is learned is the embedding of a word, or a change of weights, as an `Edit` of its own beside the one
that is attacked. While it is learned the edit is committed, for as long as that lasts.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

from workbench.edit.editors import editable
from workbench.edit.embeddings import Denoiser, textual_inversion
from workbench.edit.low_rank import Edit, Update, update_of
from workbench.experiments.shards import Row
from workbench.interventions import Intervention
from workbench.models import Model
from workbench.progress import each
from workbench.prompts import Prompt
from workbench.recovery.case import Asks, Attack, Try
from workbench.sites import weight_of

ROWS = 4  # pictures in a gradient step


def no_unet(model: Model) -> str:
    """Why a word is not learned in a model whose denoiser is no UNet; "" where it is one."""
    if model.family.denoiser == "unet":
        return ""
    return (
        "it learns what CLIP's embeddings are given for a word, which is written for UNets alone: transformers are given other encoders' "
        "tokens too (T5's, or zeros in their place)"
    )


class Inversion(Attack):
    """The subject's embedding is learned anew, in the edited model, from pictures of the concept (CCE; Pham et al. 2023, arXiv 2308.01508).

    All tokens of the subject, in every text encoder, wherever it stands. Control: learned from pictures of the control concept; a random
    shift of the same length.
    """

    name = "inversion"
    learns = True

    def refusal(self) -> str:
        return no_unet(self.case.model) or super().refusal()

    def places(self) -> list[Row]:
        return [dict(asks=asks, updates=self.case.spec.inversions) for asks in self.asks]

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        for place in self.places():
            yield Try(place, (*self.case.previewed, *self.learned[place["asks"]]))

    @cached_property
    def learned(self) -> dict[Asks, tuple[Intervention, ...]]:
        """The shifts of the subject's embedding."""
        concept, control = self.invert("concept"), self.invert("control")
        random = Edit(tuple(_alike(update) for update in concept.updates))
        return {"concept": concept.preview(), "control": control.preview(), "random": random.preview()}

    def invert(self, asks: Asks) -> Edit:
        case, spec = self.case, self.case.spec
        pictures = case.pictures(spec.template.format(case.words(asks)))
        with case.model.applied(case.edit):
            return textual_inversion(
                case.model,
                case.prompts[0].subject,
                pictures,
                templates=spec.template,
                updates=spec.inversions,
                lr=spec.inversion_lr,
            )


class Relearning(Attack):
    """Gradient steps on the edited weights, over pictures of the concept with their prompt.

    Control: as many steps on pictures of the control concept.
    """

    name = "relearning"
    learns = True
    asks = ("concept", "control")

    def places(self) -> list[Row]:
        return [dict(asks=asks, updates=updates) for asks in self.asks for updates in self.case.spec.relearned]

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        for place in self.places():
            yield Try(place, (*self.case.previewed, *self.learned[place["asks"]][place["updates"]]))

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Of the weights that are trained."""
        asked = self.case.spec.relearned_sites
        return tuple(site.name for site in editable(self.case.model, asked)) if asked else self.case.edit.sites

    def refusal(self) -> str:
        _ = self.sites  # raises KeyError and ValueError for globs that name no weights
        family = self.case.model.family
        if family.denoiser != "unet" and family.velocity is None:
            return f"the loss of its training is not known of the family {family.name}"
        return super().refusal()

    @cached_property
    def learned(self) -> dict[Asks, dict[int, tuple[Intervention, ...]]]:
        """The changes of weights behind each number of steps."""
        every = {asks: self.relearn(asks) for asks in self.asks}
        return {
            asks: {step: () if edit is None else edit.preview() for step, edit in edits.items()}
            for asks, edits in every.items()
        }

    def relearn(self, asks: Asks) -> dict[int, Edit | None]:
        case, spec = self.case, self.case.spec
        text = spec.template.format(case.words(asks))
        pictures = case.pictures(text)
        with case.model.applied(case.edit):
            return relearned(case.model, self.sites, text, pictures, spec.relearned, lr=spec.relearning_lr)


def relearned(
    model: Model, sites: Sequence[str], text: str, pictures: Sequence, at: Sequence[int], *, lr: float, seed: int = 0
) -> dict[int, Edit | None]:
    """Changes of weights, None behind no step, behind some numbers of Adam's steps on the denoising loss of pictures with their prompt.

    The model's own weights stay: they and the changes go into the denoiser as arguments. Raises FloatingPointError when the loss is
    not finite.
    """
    denoiser, generator = Denoiser(model.pipeline), torch.Generator().manual_seed(seed)
    weights = {name: weight_of(model.pipeline, model.sites[name]).detach() for name in sites}
    changes = {name: torch.zeros_like(weight, dtype=torch.float32).requires_grad_() for name, weight in weights.items()}
    latents = model.encode(pictures)
    found: dict[int, Edit | None] = {step: None for step in at if not step}
    optimizer = torch.optim.Adam(changes.values(), lr=lr)
    with model.lock:
        for step in each(range(1, max(at) + 1), f"relearning from {text!r}", "update"):
            changed = {
                f"{model.sites[name].module}.weight": weights[name] + change.to(weights[name].dtype)
                for name, change in changes.items()
            }
            loss = noised_loss(denoiser, changed, [text] * ROWS, latents, generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"relearning: the loss is not finite; lower relearning_lr={lr}")
            for change, gradient in zip(changes.values(), torch.autograd.grad(loss, list(changes.values()))):
                change.grad = gradient
            optimizer.step()
            if step in at:
                found[step] = Edit(tuple(_whole(model, name, change.detach()) for name, change in changes.items()))
    return found


def noised_loss(
    denoiser: Denoiser,
    changed: Mapping[str, torch.Tensor],
    texts: Sequence[str],
    latents: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """The denoising loss of texts (row,) on random ones of some pictures' latents, at random times, with some weights changed."""
    rows = torch.randint(len(latents), (len(texts),), generator=generator)
    noise = torch.randn(len(texts), *latents.shape[1:], generator=generator).to(latents)
    times = denoiser.pipeline.scheduler.config.num_train_timesteps
    steps = torch.randint(times, (len(texts),), generator=generator).to(latents.device)
    given = (list(texts), latents[rows], noise, steps)
    predicted, target = torch.func.functional_call(denoiser, dict(changed), given)
    return F.mse_loss(predicted.float(), target.float())


def _whole(model: Model, name: str, change: torch.Tensor) -> Update:
    """A change of a weight of whatever rank, (out, in)."""
    change = change.cpu()
    out, into = change.shape
    return update_of(model, name, *((torch.eye(out), change) if out <= into else (change, torch.eye(into))))


def _alike(update: Update) -> Update:
    """The same rows of an embedding, shifted at random, each as far."""
    noise = torch.randn(*update.a.shape, generator=torch.Generator().manual_seed(0))
    rows = noise * update.a.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return Update(**{name: getattr(update, name) for name in Update.__dataclass_fields__} | {"a": rows})
