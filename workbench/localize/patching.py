"""What LocoGen runs: a prompt's target given to windows of cross-attention layers, as worlds of one experiment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.experiments.base import Experiment
from workbench.experiments.shards import Row
from workbench.interventions import Intervention, World, replace_prompt, restore
from workbench.localize.specs import PORTS, LocoGenSpec
from workbench.metrics import Measures
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet
from workbench.sites import Sites
from workbench.steps import Window, unless_whole

ALL = "all"
TARGET = "the target's own run"  # a world's name


@dataclass(frozen=True)
class Patch:
    """One window of layers that is given the target prompt."""

    start: int
    width: int
    inputs: str
    head: int | None
    steps: Window


def cross_layers(model: Model) -> Sites:
    """The attention layers that text enters, in execution order."""
    return model.sites(model.family.layers)


def blocks(model: Model) -> tuple[tuple[int, int], ...]:
    """The windows (first layer, width) that the denoiser's blocks make: neighbours in one block (in SDXL, in one attention)."""
    block = [site.block for site in cross_layers(model)]
    return tuple((block.index(name), block.count(name)) for name in dict.fromkeys(block))


class Generating(Experiment):
    """One LocoGen experiment. A part is a prompt."""

    name = "LocoGen"
    uncounted = ""
    spec: LocoGenSpec

    def __init__(self, model: Model, prompts: PromptSet, spec: LocoGenSpec, measures: Measures | None, batch_size: int):
        super().__init__(model, spec, prompts=prompts, measures=measures, batch_size=batch_size)
        self.layers = [site.name for site in cross_layers(model)]
        # the text's other way in (SDXL, transformers), which no layer's keys and values hold
        self.pooled = [site.name for site in model.sites if site.kind == "pooled" and site.read]
        count = len(self.layers)
        wanted = spec.windows or [(start, width) for width in spec.widths for start in range(max(1, count - width + 1))]
        if wrong := [(start, width) for start, width in wanted if width < 1 or not 0 <= start <= count - width]:
            raise ValueError(
                f"windows {wrong} (first layer, width) do not fit the model's cross-attention layers, 0 to {count - 1}; "
                "name others in LocoGenSpec(widths=...) or (windows=...)"
            )
        self.windows = list(wanted)
        if lacking := [prompt.prompt for prompt in prompts if not prompt.target]:
            raise ValueError(
                f"LocoGen compares a prompt with its target, which {lacking} lack; give Prompt(..., target=...), or a column "
                "target in the prompt set's file"
            )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"layers": self.layers}

    def sites(self) -> Sites:
        return cross_layers(self.model)

    def patches(self) -> Iterator[Patch]:
        heads = (None,) if self.spec.heads is None else self.spec.heads
        for start, width in self.windows:
            for inputs in self.spec.inputs:
                for head in heads:
                    for steps in self.spec.steps:
                        yield Patch(start, width, inputs, head, steps)

    def label(self, patch: Patch) -> str:
        """How a window is called in pictures: by its layers, and by what else there are several of."""
        others = {"inputs": patch.inputs, "heads": f"head {patch.head}", "steps": str(patch.steps)}
        several = [text for name, text in others.items() if len(getattr(self.spec, name) or ()) > 1]
        return " ".join([window_numbers(patch.start, patch.width), *several])

    def worlds(self, p: int) -> list[World]:
        """Unaltered, the target prompt at all layers, as pooled vector alone where there is one, and at each window."""
        prompt = self.prompts[p]
        pooled = [replace_prompt(self.pooled, prompt.target)] if self.pooled else []
        worlds = [
            World("clean", prompt.prompt),
            World("full", prompt.prompt, [self.patch(prompt, self.layers, "kv"), *pooled]),
        ]
        if pooled:
            worlds.append(World("pooled", prompt.prompt, pooled))
        for i, patch in enumerate(self.patches()):
            layers = self.layers[patch.start : patch.start + patch.width]
            heads = None if patch.head is None else [patch.head]
            given = self.patch(prompt, layers, patch.inputs, steps=unless_whole(patch.steps), heads=heads)
            worlds.append(World(f"patched {i}", prompt.prompt, [given]))
        return worlds

    def read(self, p: int) -> list[World]:
        """What windows of joint attention read: the target's own run, whose text's states change from layer to layer."""
        return [World(TARGET, self.prompts[p].target)] if self.model.family.joint else []

    def patch(
        self,
        prompt: Prompt,
        layers: Sequence[str],
        inputs: str,
        *,
        steps: Window | None = None,
        heads: Sequence[int] | None = None,
    ) -> Intervention:
        """The target prompt at some layers. Heads are apart behind the projections only.

        In joint attention, the keys and values that the text has there in the target's own run.
        """
        if (family := self.model.family).joint:
            kinds = [{"k": family.keys, "v": family.values}[each] for each in inputs]
            own = [self.model.sites.beside(self.model.sites[layer], kind).name for layer in layers for kind in kinds]
            return restore(own, TARGET, steps=steps, heads=heads)
        ports = ("k", "v") if inputs == "kv" and heads is not None else PORTS[inputs]
        sites = [f"{layer}.{port}" for layer in layers for port in ports]
        return replace_prompt(sites, prompt.target, steps=steps, heads=heads)

    def check(self, p: int) -> int:
        worlds = self.worlds(p)
        self.plan(worlds, read=self.read(p))
        return len(worlds) * len(self.spec.seeds)

    def measure(self, p: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, seed, site, width, inputs, heads, steps, value)."""
        places: list[Row] = [dict(world="clean"), dict(world="full")]
        if self.pooled:
            places.append(dict(world="pooled"))
        for patch in self.patches():
            places.append(
                dict(
                    world="patched",
                    site=self.layers[patch.start],
                    width=patch.width,
                    inputs=patch.inputs,
                    heads=ALL if patch.head is None else str(patch.head),
                    steps=str(patch.steps),
                )
            )
        return self.score(p, self.worlds(p), places, bar, read=self.read(p))


def window_numbers(start: int, width: int) -> str:
    """A window by the numbers of its first and last layer."""
    return str(start) if width == 1 else f"{start}-{start + width - 1}"
