"""Attribution: the indirect effect of every site to first order, from one backward pass for each prompt and seed.

Attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348; AtP*, Kramar et al. 2024, arXiv 2403.00745), here of a text-to-
image model's whole run or of single denoising steps. It proposes; `causal_trace` decides, and `screen` does both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from workbench.arguments import checked, instance_of, warn
from workbench.engine import Work
from workbench.engine.gradients import Attribution
from workbench.engine.text import text_values
from workbench.experiments.base import Part
from workbench.experiments.executors import Executor
from workbench.experiments.shards import Row
from workbench.experiments.store import Store
from workbench.interventions import World, add_noise, scale, steer
from workbench.localize.causal_trace import Tracing, noise_seed
from workbench.localize.specs import AttributionSpec
from workbench.memory import free_bytes
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompts, PromptSet
from workbench.scorer import Scorer
from workbench.steps import WHOLE

NOISE = "noise"  # the metric of single steps


@checked(spec=instance_of("workbench.localize.specs:AttributionSpec"))
def attribute(
    model: Model,
    prompts: Prompts,
    spec: AttributionSpec | None = None,
    *,
    subject: str = "",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 8,
) -> xr.Dataset:
    """Attribute to every site its share of what the corruption of each prompt's subject does: a causal trace to first order.

    `effect(site) ~ sum over calls, tokens, channels of (clean - corrupted value) * d metric / d corrupted value`: what
    `causal_trace` would measure by restoring the site, were the metric linear in it. One run of the corrupted world with its
    backward pass stands for one run for each site, token, head or channel. What it says of softmax attention that saturates, and of
    layers that act against one another, may be wrong (false negatives, AtP* section 3): verify with `causal_trace` or `screen`.

    prompts, subject, folder, executor: as for `causal_trace`. scorer: whose log-odds or similarity are differentiated;
    spec.form="step" needs none. batch_size: images whose graphs are held at once; fewer where memory would not do.

    Returns a Dataset with `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed) and `attributed` (metric, prompt,
    draw, seed, site, token, steps, and head or channel where spec.over says so), in the metric's unit: "log_odds" in nats,
    "similarity" as a cosine, "noise" as a share of what the corruption changes in the predicted noise; `workbench.effects` averages it.

    Raises, before anything is generated, what `causal_trace` raises; ValueError for streams (they hold everything before them), for
    sites without heads where these are kept apart, and for a scorer that has no gradient; MemoryError where not even one image's
    graph fits. Raises ValueError for worlds that are equal, and warns of sites from which no gradient leads to the metric.

    >>> spec = wb.AttributionSpec(sites=("text_encoder.*.mlp",), seeds=(0,), draws=1, num_inference_steps=2)
    >>> found = wb.attribute(model, "a zebra in the savanna", spec, subject="zebra")
    >>> dict(found.attributed.sizes)
    {'metric': 1, 'prompt': 1, 'draw': 1, 'seed': 1, 'site': 12, 'token': 1, 'steps': 1}
    """
    chosen, spec = PromptSet.of(prompts, subject=subject), spec or AttributionSpec()
    chosen.require("subject", by="an attribution")
    measures = Measures(None) if spec.form == "step" and scorer is None else Measures.of(scorer, model)
    return Attributing(model, spec, prompts=chosen, measures=measures, batch_size=batch_size).dataset(folder, executor)


class Attributing(Tracing):
    """One attribution. A part is a prompt under one draw of noise."""

    name = "attribution"
    uncounted = ""
    at_most = (
        True  # until it is tried what memory bears: images are counted one by one, so rows are exact and calls the most
    )
    spec: AttributionSpec

    def parts(self) -> dict[str, tuple[int, int]]:
        if self.spec.form == "image":
            _scorer(self.measures)
            if self.spec.metric == "log_odds":
                self.prompts.require("value", by='an attribution of metric="log_odds"')
        return super().parts()

    def check(self, p: int, draw: int) -> int:
        calls = len(self.attribution(p, draw).plan.calls)
        if self.counting is not None:
            for seeds in self.batches(1 if self.at_most else self.images_at_once):
                for _ in range(1 + self.spec.points):
                    self.counting.add(len(seeds), calls)
        return (1 + self.spec.points) * len(self.spec.seeds)

    def batches(self, size: int) -> list[Sequence[int]]:
        """The seeds of each batch of so many."""
        return [self.spec.seeds[at : at + size] for at in range(0, len(self.spec.seeds), size)]

    def beforehand(self, left: Mapping[str, Part], *, trying: bool) -> Work:
        self.at_most = not trying
        return Work(1, 1, 1, 1)  # by which every process tells what memory bears

    def trial(self, rows: int, steps: int) -> tuple[int, int]:
        asked = replace(self.spec, seeds=tuple(range(rows)), num_inference_steps=steps, steps=(WHOLE,))
        few = Attributing(self.model, asked, prompts=self.prompts[:1], measures=self.measures, batch_size=rows)
        attribution, passes = few.attribution(0, 0), 1 + self.spec.points
        attribution.of(asked.seeds, Bar(1, self.name, shown=False))
        return passes * rows * len(attribution.plan.calls), passes * rows

    def measure(self, p: int, draw: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, draw, seed, site, token, steps, [head or channel,] value)."""
        attribution, targets, rows = self.attribution(p, draw), self.targets(p), []
        metric = NOISE if self.spec.form == "step" else self.spec.metric
        for seeds in self.batches(self.images_at_once):
            attributed = attribution.of(seeds, Bar(1, self.name, shown=False))
            for s, seed in enumerate(seeds):
                place: dict[str, Any] = {"metric": metric, "prompt": p, "draw": draw, "seed": seed}
                rows.append(place | {"world": "clean", "draw": None, "value": float(attributed.clean[s])})
                rows.append(place | {"world": "corrupted", "value": float(attributed.corrupted[s])})
                for target, effect in zip(targets, attributed.effects):
                    for number, value in enumerate(effect[s].reshape(-1).tolist()):
                        apart = {self.spec.over: number} if self.spec.over else {}
                        rows.append({**place, **target.place, **apart, "world": "attributed", "value": value})
            if attributed.unreached:
                warn(f"no gradient leads from {', '.join(attributed.unreached[:5])} to the metric; their effects are 0")
            bar.update((1 + self.spec.points) * len(seeds))
        ends = {world: [row["value"] for row in rows if row["world"] == world] for world in ("clean", "corrupted")}
        if ends["clean"] == ends["corrupted"]:
            raise ValueError(
                f"the corrupted world of {self.prompts[p].prompt!r} is the clean one (metric {metric}, all seeds alike), so that there is "
                "nothing to attribute; raise noise_multiple, or take another corruption"
            )
        return rows

    def attribution(self, p: int, draw: int) -> Attribution:
        """What is differentiated, of one prompt; raises for what does not fit the model."""
        clean, corrupted = self.worlds(p, draw, [])
        restores = [target.restore(self.spec.rows) for target in self.targets(p)]
        return Attribution(
            self.model,
            clean,
            [corrupted, *self.between(p, draw, corrupted)],
            restores,
            self.model._settings(self.steps, self.guidance),
            None if self.spec.form == "step" else self.metric(p),
            over=self.spec.over,
            checkpointing=self.spec.checkpointing,
        )

    def between(self, p: int, draw: int, corrupted: World) -> list[World]:
        """Worlds on the way from the corrupted embedding to the clean one."""
        prompt, worlds = self.prompts[p], []
        towards = self.directions(p, corrupted) if self.spec.corruption == "replace" and self.spec.points > 1 else {}
        for k in range(1, self.spec.points):
            share = k / self.spec.points
            if self.spec.corruption == "noise":
                noise = partial(add_noise, seed=noise_seed(prompt, draw), tokens="subject")
                changes = [noise(name, (1 - share) * sigma) for name, sigma in self.sigmas.items()]
            elif self.spec.corruption == "zero":
                changes = [scale(name, share, tokens="subject") for name in self.sigmas]
            else:
                changes = [steer(name, direction, share) for name, direction in towards.items()]
            worlds.append(World(f"between {k}", corrupted.prompt, changes, corrupted.subject))
        return worlds

    def directions(self, p: int, corrupted: World) -> dict[str, Any]:
        """From the corrupted prompt's embeddings to the clean one's: (token, channel), by site."""
        sites = [self.model.sites[name] for name in self.sigmas]
        values = text_values(self.model, [self.prompts[p].prompt, corrupted.prompt], sites)
        return {site.name: values[site][0] - values[site][1] for site in sites}

    def metric(self, p: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Of images (row, colour, y, x), differentiable."""
        scorer, prompt = _scorer(self.measures), self.prompts[p]
        if self.spec.metric == "similarity":
            return lambda images: scorer.differentiable_similarity(images, prompt.prompt)
        return lambda images: scorer.log_odds(images, self.prompts.labels, prompt.value)

    @cached_property
    def images_at_once(self) -> int:
        """How many images' graphs memory bears, at most the batch size, told by the first prompt; MemoryError where it is none."""
        each, free = self.attribution(0, 0).bytes_per_image(), free_bytes(self.model.pipeline.device)
        if each > 0.9 * free:
            raise MemoryError(
                f"the graph of one image would take {each / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; give "
                f"checkpointing=True{', which is given already' if self.spec.checkpointing else ''}, fewer num_inference_steps, or "
                "fewer sites"
            )
        return max(1, min(self.batch_size, int(0.9 * free / each)))


def _scorer(measures: Measures | None) -> Scorer:
    if measures is None or measures.scorer is None or measures.metrics:
        raise ValueError(
            "attribute: scorer= must be a wb.Scorer, whose log-odds and similarity have gradients; a wb.Metric is a function of finished "
            'pictures. Give a Scorer alone, or form="step", which needs none'
        )
    return measures.scorer
