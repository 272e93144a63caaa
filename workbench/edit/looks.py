"""What layers of joint attention are given for a prompt: it depends on the step and on the picture, so it is gathered over runs.

The text's keys and values of a block come from its text states behind a modulation by the timestep, and behind the first block these
states have looked at the picture. So there is no one state of a word: a key of a closed-form edit there is a token at a step of a seed's
run, its guide the guide prompt's token at the same step of the same seed's run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum

from workbench.arguments import Check
from workbench.edit.moments import Moments
from workbench.engine import Fold
from workbench.engine.plan import resolve_steps
from workbench.experiments.spec import Spec
from workbench.inputs import count
from workbench.memory import free_bytes
from workbench.models import Model
from workbench.sites import Site
from workbench.steps import Steps, as_steps

ROUNDING = 1e-5  # relative difference of float32 states that are equal
GIVEN = "text.normed"  # the kind of site that holds what a block's text projections are given


@dataclass(frozen=True, kw_only=True)
class KeyRuns(Spec):
    """Over which runs an editor looks at what layers of joint attention are given.

    >>> wb.edit.KeyRuns(seeds=(0, 1), steps=wb.window(0.0, 0.5), num_inference_steps=8).seeds
    (0, 1)
    """

    seeds: tuple[int, ...] = (0, 1)
    """Of the starting noise; a prompt and its guide start from the same."""
    steps: Steps = None
    """At which the keys are gathered; all when left out."""
    batch_size: int = 16

    def _checks(self) -> dict[str, Check]:
        return dict(steps=as_steps, batch_size=count)


class Looks:
    """What several layers are given at some positions of prompts, gathered for all of them in one run."""

    def __init__(self, model: Model, sources: Iterable[str | Site], runs: KeyRuns | None):
        self.model, self.sources = model, [each for each in sources if is_look(each)]
        if runs is not None and not self.sources:
            raise ValueError(
                "runs= has no effect: none of sites= is a layer of joint attention, and all others are given the text alone; leave it out"
            )
        self.runs = runs or KeyRuns()
        self.held: dict[tuple, dict[str, torch.Tensor]] = {}

    @property
    def calls(self) -> tuple[int, ...]:
        """Numbers of the denoiser's calls at which is looked."""
        calls = self.model.calls(self.runs.num_inference_steps)
        return calls.of(resolve_steps(self.runs.steps, calls.steps))

    def at(self, source: Site, places: Sequence[tuple[str, int]]) -> torch.Tensor:
        """What a layer is given at positions of prompts, (place, look, channel), float64 on the CPU.

        A look is a call of a seed's run; where the picture has no part in it, as in the first block, of one seed's run alone: the others
        repeat it.
        """
        if (key := tuple(places)) not in self.held:
            self.held[key] = self._gathered(key)
        found = self.held[key][source.name].double()  # (place, seed, call, channel)
        first = found[:, :1]
        if ((found - first).norm(dim=-1) <= ROUNDING * first.norm(dim=-1)).all():
            found = first
        return found.flatten(1, 2)

    def moments(self, source: Site, prompts: Sequence[str], first: int = 0) -> Moments:
        """Second moments of what a layer is given for prompts, at all positions from `first` on and at all looks."""
        key = (*prompts, first)
        if key not in self.held:
            self.held[key] = self._summed(list(dict.fromkeys(prompts)), first)
        looks = len(set(prompts)) * len(self.runs.seeds) * len(self.calls)
        return Moments(self.held[key][source.name].double(), looks * (source.axis("token") - first))

    def record(self) -> dict:
        """The runs, as JSON holds them."""
        runs = self.runs
        steps = runs.steps if runs.steps is None else list(self.calls)
        return {
            "seeds": list(runs.seeds),
            "calls": steps,
            "num_inference_steps": runs.num_inference_steps or self.model.num_inference_steps,
            "guidance_scale": self.model.guidance_scale if runs.guidance_scale is None else runs.guidance_scale,
        }

    def _gathered(self, places: Sequence[tuple[str, int]]) -> dict[str, torch.Tensor]:
        by_prompt: dict[str, list[int]] = {}
        for prompt, position in places:
            own = by_prompt.setdefault(prompt, [])
            if position not in own:
                own.append(position)
        most, wanted = max(map(len, by_prompt.values())), set(self.calls)
        padded = {prompt: torch.tensor(own + own[:1] * (most - len(own))) for prompt, own in by_prompt.items()}
        self._check_memory(len(by_prompt) * most * len(wanted))

        def update(total, call, worlds, given):
            if call not in wanted:
                return total
            rows = torch.arange(len(given))[:, None]
            chosen = torch.stack([padded[world.prompt] for world in worlds]).to(given.device)
            picked = given[rows.to(given.device), chosen].float()[:, None]
            return picked if total is None else torch.cat([total, picked], 1)

        values = self._run(list(by_prompt), ("look", "place", "channel"), update)
        order = {prompt: number for number, prompt in enumerate(by_prompt)}
        found = {}
        for name, array in values.items():
            each = [array[order[prompt], :, :, by_prompt[prompt].index(position)] for prompt, position in places]
            found[name] = torch.stack(each)
        return found

    def _summed(self, prompts: Sequence[str], first: int) -> dict[str, torch.Tensor]:
        wanted = set(self.calls)

        def update(total, call, worlds, given):
            if call not in wanted:
                return total
            keys = given[:, first:].float()
            squares = einsum(keys, keys, "row token i, row token j -> row i j")
            return squares if total is None else total + squares

        return {name: array.sum((0, 1)) for name, array in self._run(prompts, ("in", "out"), update).items()}

    def _run(self, prompts: Sequence[str], axes: tuple[str, ...], update) -> dict[str, torch.Tensor]:
        """What accumulates over runs of prompts, (prompt, seed, ...) of each layer."""
        runs = self.runs
        found = self.model.run(
            list(prompts),
            seeds=runs.seeds,
            num_inference_steps=runs.num_inference_steps,
            guidance_scale=runs.guidance_scale,
            record=[Fold(source.name, (source.name,), axes, update) for source in self.sources],
            batch_size=runs.batch_size,
        )
        return {source.name: torch.from_numpy(found.values[source.name].values) for source in self.sources}

    def _check_memory(self, keys: int):
        """Raise MemoryError, before anything runs, for keys that would not fit."""
        size = 8 * keys * len(self.runs.seeds) * sum(source.axis("channel") for source in self.sources)
        if size > (free := free_bytes(torch.device("cpu"))):
            raise MemoryError(
                f"runs=: the keys of {len(self.sources)} layers would take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; look "
                "at fewer steps or seeds, or name fewer sites=, templates= or tokens="
            )


def is_look(source: str | Site) -> bool:
    """Whether what layers are given must be looked up in runs."""
    return isinstance(source, Site) and source.kind == GIVEN
