"""What is attacked: a model, an edit of it, and the concept that the edit is to have taken away; and what every attack is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal
from zlib import crc32

import torch

from workbench.edit.card import prompts_of
from workbench.edit.low_rank import Edit
from workbench.engine import encode
from workbench.experiments.shards import Row
from workbench.interventions import Intervention
from workbench.models import Model
from workbench.prompts import Prompt, PromptSet
from workbench.recovery.specs import RecoverySpec
from workbench.sites import Site
from workbench.text import places_of, replace_words

PICTURES = 1_000_003  # first seed of the pictures that attacks learn from; nothing is graded from them

Asks = Literal["concept", "control", "random"]


@dataclass(frozen=True)
class Try:
    """One try of an attack on one prompt.

    place: its columns in the results. interventions: all that its world has, the edit's own among them. prompt: where it is another
    than the one that is attacked. moved: how far its text states are from the prompt's, |C' - C| / |C|.
    """

    place: Row
    interventions: Sequence[Intervention]
    prompt: str = ""
    moved: float | None = None


@dataclass(frozen=True)
class Case:
    """What is attacked.

    prompts: with a subject and all of one value, the concept. control: words for another concept, which the control attacks ask for.
    steps, guidance: of all runs.
    """

    model: Model
    edit: Edit
    prompts: PromptSet
    spec: RecoverySpec
    control: str
    steps: int
    guidance: float
    _pictures: dict[str, list] = field(default_factory=dict, compare=False)

    @property
    def concept(self) -> str:
        return self.prompts[0].value

    @property
    def context(self) -> str:
        """Where the text's states come to the denoiser: at every cross-attention layer, or once."""
        return self.model.family.context

    @cached_property
    def previewed(self) -> tuple[Intervention, ...]:
        return self.edit.preview()

    @cached_property
    def parts(self) -> dict[str, tuple[Site, ...]]:
        """Sites of the edit by the part of the pipeline that they are in, "text" and "denoiser"."""
        sites = [self.model.sites[name] for name in self.edit.sites]
        return {part: tuple(site for site in sites if site.part == part) for part in ("text", "denoiser")}

    def text(self, prompt: Prompt, asks: Asks) -> str:
        """The prompt, or with the control's words in place of its subject."""
        return replace_words(prompt.prompt, prompt.subject, self.control).text if asks == "control" else prompt.prompt

    def words(self, asks: Asks) -> str:
        return self.control if asks == "control" else self.prompts[0].subject

    def states(self, texts: Sequence[str]) -> torch.Tensor:
        """What the unedited encoders make of texts: (text, token, channel), float64 on the CPU."""
        some = [encode(self.model.pipeline, list(texts[at : at + 64]))[0].cpu() for at in range(0, len(texts), 64)]
        return torch.cat(some).double()

    def pictures(self, text: str) -> list:
        """Pictures of a prompt by the unedited model, from seeds of their own."""
        if text not in self._pictures:
            self._pictures[text] = self.model.generate(
                text,
                seeds=range(PICTURES, PICTURES + self.spec.pictures),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
            )
        return self._pictures[text]


class Attack(ABC):
    """One way to bring the concept back. Made once for a case; what it learns is learned when it is first needed."""

    name: ClassVar[str]
    learns: ClassVar[bool] = False
    """Whether by gradients."""
    asks: ClassVar[tuple[Asks, ...]] = ("concept", "control", "random")
    """What is asked for: the concept; another one; nothing, by something random of the same size."""

    def __init__(self, case: Case):
        self.case = case

    def refusal(self) -> str:
        """Why the edit, or the model, cannot be attacked like this; "" where it can."""
        dtype = next(self.case.model.family.model(self.case.model.pipeline).parameters()).dtype
        if self.learns and dtype == torch.float16:
            return "gradients do not hold in float16; load the model in float32 or bfloat16"
        return ""

    def unfit(self, prompt: Prompt) -> str:
        """Why it cannot attack a prompt; "" where it can."""
        return ""

    @abstractmethod
    def places(self) -> list[Row]:
        """Where its tries on a prompt stand in the results; nothing is computed."""

    @abstractmethod
    def tries(self, prompt: Prompt) -> Iterator[Try]:
        """One for each place, in their order."""

    def random(self, prompt: Prompt, shape: Sequence[int]) -> torch.Tensor:
        """Normal numbers that are a prompt's own."""
        generator = torch.Generator().manual_seed(crc32(prompt.prompt.encode()))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)


def check_edit(model: Model, edit: Edit):
    """Raise ValueError for an edit of another model, and for one that is committed already, or based on a commit that was undone."""
    edit.check(model)
    if committed := [update.site for update in edit.updates if model.hashes(update.site)[0] != update.base]:
        raise ValueError(
            f"edit: the model's weights at {', '.join(committed[:3])} are not those that it was made for, but it is among what they were: "
            "it, or an edit behind it, is committed; give the unedited model (model.undo()), which the attacks are compared with"
        )


def check_prompts(prompts: PromptSet) -> str:
    """The concept that all prompts name; raises ValueError where they name none, or several, or lack their subject."""
    prompts.require("subject", "value", by="a test of recovery")
    if len(values := list(dict.fromkeys(prompt.value for prompt in prompts))) > 1:
        raise ValueError(
            f"prompts: their values are {', '.join(map(repr, values[:4]))}; give prompts of the one concept that the edit takes away"
        )
    if without := [prompt for prompt in prompts if not places_of(prompt.subject, prompt.prompt)]:
        raise ValueError(
            f"prompts: {without[0].prompt!r} does not name the concept: it lacks its subject {without[0].subject!r}; give prompts that do"
        )
    return values[0]


def control_words(spec: RecoverySpec, edit: Edit, prompts: PromptSet) -> str:
    """The control's words: those of the spec, or the first label that neither the prompts nor the edit speak of."""
    concept = prompts[0]
    if spec.control:
        if spec.control.casefold() in (concept.value.casefold(), concept.subject.casefold()):
            raise ValueError(f"control={spec.control!r} is the concept itself; name another one")
        return spec.control
    used = " ".join([concept.value, concept.subject, *(text for own in prompts_of(edit) for text in own[1:])])
    free = [label for label in prompts.labels if not any(places_of(word, used) for word in [label, *label.split()])]
    if not free:
        raise ValueError(
            f"control='': every label of prompt set {prompts.name!r} stands in the prompts or in what the edit was made from; name "
            "another concept, such as RecoverySpec(control='lion')"
        )
    return free[0]
