"""Commands that find where a model keeps something: `workbench trace`, `locate`, `sites`.

What they need is imported when they run, so that their help and mistyped options are answered at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import workbench as wb
from workbench.cli.common import Common, Experimenting, beside
from workbench.experiments.spec import Spec
from workbench.inputs import count
from workbench.localize.specs import LocoGenSpec, TraceSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass
class Question(Experimenting):
    """What every localizer is asked on."""

    prompts: str = "object"
    """A prompt set (object, style, colour, season, action, position, fact) or a CSV file."""
    first: int | None = None
    """Only so many of its prompts."""
    metric: Literal["probability", "similarity", "pixel_distance", "ssim"] = "probability"
    scorer: str | None = None
    """An open_clip model; the embedded grader when left out."""
    pretrained: str | None = None
    """Its weights."""
    batch_size: int = 16
    race: int | None = None
    """Only name so many best sites: prompts and seeds are added only to those that may yet be among them."""
    out: Path = Path("runs/question")
    """OUT.png and OUT.csv."""

    def common(self) -> dict:
        return dict(
            folder=self.folder,
            executor=self.who(),
            batch_size=self.batch_size,
            scorer=self.grader,
        )

    @cached_property
    def grader(self) -> "wb.Scorer":
        return wb.Scorer(self.scorer, pretrained=self.pretrained, device=self.device)

    def check_metric(self, model: "wb.Model", metric: str):
        """Raise KeyError, before anything is drawn, where what is shown at the end would not be measured."""
        from workbench.metrics import Measures

        Measures.of(self.grader, model).require(metric, self.some_prompts(), "--metric")

    def some_prompts(self) -> "wb.PromptSet":
        every = wb.prompt_set(self.prompts)
        return every if self.first is None else every[: count(self.first, "--first")]

    def raced(self, experiment: Callable[..., object], spec: Spec, direction: Literal["min", "max"] | None = None):
        """Race, print who is best and write OUT.csv."""
        if self.plan:
            raise ValueError(
                "--plan with --race: how many pictures it takes hangs on what it sees; plan without --race says how many at most"
            )
        how = wb.RaceSpec(best=count(self.race, "--race"), metric=self.metric, direction=direction)
        found = wb.race(experiment, self.load(), self.some_prompts(), spec, race=how, **self.common())
        found.table.to_csv(beside(self.out, ".csv"), index=False)
        print(found.table.round(3).to_string(index=False))
        print(f"{found.pictures} of {found.pictures_of_all} pictures drawn; wrote {self.out}.csv")

    def save(self, table: "pd.DataFrame", figure: "Figure"):
        """Print the head of a table, and write it and its figure beside each other."""
        table.to_csv(beside(self.out, ".csv"), index=False)
        print(table.head(10).round(3).to_string(index=False))
        figure.savefig(beside(self.out, ".png"), dpi=120)
        print(f"wrote {self.out}.png and {self.out}.csv")


@dataclass
class Trace(Question):
    """Trace where a model keeps a concept; write OUT.png, OUT.csv and print the strongest sites."""

    spec: Annotated[TraceSpec, tyro.conf.arg(name="")] = field(default_factory=TraceSpec)
    out: Path = Path("runs/trace")

    def run(self):
        from workbench.cli.pictures import overview

        if self.race is not None:
            return self.raced(wb.causal_trace, self.spec)
        model = self.load()
        self.check_metric(model, self.metric)
        data = self.asked(wb.causal_trace, model, self.some_prompts(), self.spec, **self.common())
        if data is None:
            return
        found = wb.effects(data, self.metric)
        clean = float(data.clean.sel(metric=self.metric).mean())
        print(
            f"\n{found.attrs['unit']}: clean {clean:.3f}, total effect {wb.with_interval(found, 'total_effect')}; "
            f"{data.sizes['prompt']} prompts x {data.sizes['draw']} draws x {data.sizes['seed']} seeds"
        )
        self.save(
            wb.strongest(found),
            overview(found, f"{self.prompts}, {self.spec.corruption}: what restoring one state brings back"),
        )


@dataclass
class Locate(Question):
    """Find the cross-attention layers whose text decides an attribute (LocoGen); write OUT.png, OUT.csv and print the best window."""

    spec: Annotated[LocoGenSpec, tyro.conf.arg(name="")] = field(default_factory=LocoGenSpec)
    direction: Literal["min", "max"] = "min"
    """How far the prompt's attribute falls, or how far the target's rises."""
    compare: bool = False
    """Rank the layers by causal tracing, entropy and attention contribution too, and say how far they agree."""
    noise_multiple: float = 3.0
    """Of compare's causal tracing."""
    out: Path = Path("runs/locate")

    def run(self):
        import matplotlib.pyplot as plt

        from workbench.drawing import WIDTH

        if self.race is not None and not self.compare:
            return self.raced(wb.locogen, self.spec, self.direction)
        model, prompts, spec = self.load(), self.some_prompts(), self.spec
        if self.compare:
            if self.race is not None:
                raise ValueError("--race with --compare: it does several experiments; ask of each by itself")
            trace = TraceSpec(
                sites=("unet.*.cross",),
                noise_multiple=self.noise_multiple,
                seeds=spec.seeds,
                num_inference_steps=spec.num_inference_steps,
                guidance_scale=spec.guidance_scale,
            )
            compared = self.asked(wb.compare_localizers, model, prompts, trace, metric=self.metric, **self.common())
            if compared is None:
                return
            print(compared.agreement().round(3).to_string(index=False))
            figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.8), layout="constrained")
            wb.plot.ranks(compared, ax=axes[0], title="rank of each layer")
            wb.plot.agreement(compared, ax=axes[1], title="agreement; diagonal: of halves")
            self.save(compared.table().sort_values("rank", kind="stable"), figure)
            return
        self.check_metric(model, f"target_{self.metric}" if self.direction == "max" else self.metric)
        found = self.asked(wb.locogen, model, prompts, spec, **self.common())
        if found is None:
            return
        several = {name: getattr(found.data, name).values.tolist() for name in ("inputs", "heads", "steps")}
        where = {name: values[0] for name, values in several.items()}
        panels = [found.effects(self.metric, self.direction, width=width) for width in spec.widths]
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(WIDTH, 3.6 * len(panels)), layout="constrained", squeeze=False
        )
        said = ", ".join(f"{name} {where[name]}" for name, values in several.items() if len(values) > 1)
        for ax, width, panel in zip(axes.flat, spec.widths, panels):
            wb.plot.profile(
                panel.sel(**where),
                ax=ax,
                title=f"{self.prompts}: target prompt at {width} layer(s){', ' + said if said else ''}",
            )
            best = found.best(width, self.metric, self.direction, **where)
            effect = panel.sel(site=best[0], **where)
            print(
                f"width {width}: full replacement {wb.with_interval(panel, 'total_effect')}, best {' + '.join(best)}: "
                f"{wb.with_interval(effect, 'direct_effect')} ({panel.attrs['unit']}), "
                f"p = {found.chance(width, self.metric, self.direction, **where):.4f} against shuffled windows"
            )
        self.save(wb.strongest(found.effects(self.metric, self.direction)), figure)


@dataclass
class ListSites(Common):
    """Print a model's sites in execution order."""

    globs: tyro.conf.Positional[tuple[str, ...]] = ("*",)

    def run(self):
        print(self.load().sites(*self.globs))
