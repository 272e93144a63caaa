"""Attacks on the text states: what cross-attention reads of a prompt is moved, by a closed form or along a vector.

Nothing is trained. The states are free vectors, so that an attack without a bound may leave what any prompt gives: results say how
far each went.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch

from workbench.edit.attacked import Readings
from workbench.experiments.shards import Row
from workbench.interventions import Intervention, steer
from workbench.prompts import Prompt
from workbench.recovery.case import Asks, Attack, Case, Try
from workbench.recovery.specs import UNBOUNDED
from workbench.sites import weight_of
from workbench.text import replace_words


def moved(case: Case, step: torch.Tensor) -> tuple[Intervention, ...]:
    """The edited model, whose denoiser reads the prompt's states and a step (token, channel)."""
    return steer(case.context, step.float()), *case.previewed


def distance(step: torch.Tensor, states: torch.Tensor) -> float:
    """|step| / |states|, of all tokens together."""
    return (step.norm() / states.norm()).item()


def limited(step: torch.Tensor, states: torch.Tensor, most: float) -> torch.Tensor:
    """A step (token, channel), each token's cut where it is longer than `most` times that token's states."""
    if most == UNBOUNDED:
        return step
    length = step.norm(dim=-1, keepdim=True)
    return step * (most * states.norm(dim=-1, keepdim=True) / length.clamp_min(1e-300)).clamp(max=1.0)


def alike(step: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Noise (token, channel), each token's as long as that of a step."""
    return noise * step.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)


def readings(case: Case) -> Readings:
    """What the edited layers that are given the text alone, stacked, make of states."""
    updates = {update.site: update for update in case.edit.updates}
    pairs = []
    for site in case.parts["denoiser"]:
        old = weight_of(case.model.pipeline, site).detach().cpu().double()
        pairs.append((old, old + updates[site.name].b.double() @ updates[site.name].a.double()))
    return Readings.of(pairs)


class ByWeights(Attack):
    """What the attacks share that know the weights before the edit and behind it."""

    @cached_property
    def weights(self) -> Readings:
        return readings(self.case)

    def refusal(self) -> str:
        parts = self.case.parts
        alone = self.case.model.sites(self.case.model.family.edited)
        read = [site for site in parts["denoiser"] if site in alone]
        if parts["text"] or len(read) < len(parts["denoiser"]) or not read:
            return (
                "it solves for the states that edited layers read, which must be given the text alone "
                f"({self.case.model.family.edited}), and the edit changes other weights"
            )
        return super().refusal()

    @abstractmethod
    def steps(self, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A text's states (token, channel), and the steps from them, one for each setting."""

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        places = iter(self.places())
        for asks in self.asks:
            text = self.case.text(prompt, asks)
            states, steps = self.steps(text)
            for step in steps:
                step = alike(step, self.random(prompt, step.shape)) if asks == "random" else step
                yield Try(next(places), moved(self.case, step), text, distance(step, states))


class ClosedForm(ByWeights):
    """States that the edited keys and values make the most of what the unedited ones made of the prompt's, in a closed form.

    C' = (W_n' W_n + lam tr/d I)^-1 W_n' W_o C, all edited K and V stacked, W_o before and W_n behind the edit; the way to it is gone as far
    as the distance allows, each token by itself. Control: the same of the control's prompt; a random step of the same length.
    """

    name = "closed_form"

    def places(self) -> list[Row]:
        spec = self.case.spec
        return [
            dict(asks=asks, lam=lam, distance=most)
            for asks in self.asks
            for lam in spec.lams
            for most in spec.distances
        ]

    def steps(self, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states = self.case.states([text])[0]
        ways = [self.weights.solved(states, lam) - states for lam in self.case.spec.lams]
        return states, [limited(way, states, most) for way in ways for most in self.case.spec.distances]


class NearestStates(ByWeights):
    """The best states within a distance: those whose edited keys and values are nearest to the unedited ones of the prompt's.

    `ClosedForm` goes towards where an unbounded attack ends, which is not the best that can be had on the way.
    """

    name = "nearest_states"

    def places(self) -> list[Row]:
        return [dict(asks=asks, distance=most) for asks in self.asks for most in self.case.spec.distances]

    def steps(self, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states, spec = self.case.states([text])[0], self.case.spec
        return states, [self.weights.nearest(states, most, min(spec.lams)) for most in spec.distances]


class ConceptVector(Attack):
    """The prompt's states and so many times a concept's vector (Ring-A-Bell; Tsai et al. 2024, arXiv 2310.10012, equation 2).

    The vector, (token, channel), is the mean over the prompts of their states less those of the same prompts without the concept. It
    needs no weights. Control: the vector of the control concept, added to the same prompts; a random vector of the same length.
    """

    name = "concept_vector"

    @cached_property
    def vectors(self) -> dict[Asks, torch.Tensor]:
        """Of the concept and the control: (token, channel)."""
        prompts, case = self.case.prompts, self.case
        without = case.states([_without(prompt, case.spec.neutral) for prompt in prompts])
        named: tuple[Asks, ...] = ("concept", "control")
        return {asks: (case.states([case.text(p, asks) for p in prompts]) - without).mean(0) for asks in named}

    def places(self) -> list[Row]:
        return [dict(asks=asks, strength=strength) for asks in self.asks for strength in self.case.spec.strengths]

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        states, places = self.case.states([prompt.prompt])[0], iter(self.places())
        random = alike(self.vectors["concept"], self.random(prompt, states.shape))
        for asks in self.asks:
            for strength in self.case.spec.strengths:
                step = strength * (random if asks == "random" else self.vectors[asks])
                yield Try(next(places), moved(self.case, step), prompt.prompt, distance(step, states))


def _without(prompt: Prompt, neutral: str) -> str:
    """The prompt with neutral words in place of its subject, or without it."""
    return " ".join(replace_words(prompt.prompt, prompt.subject, neutral).text.split())
