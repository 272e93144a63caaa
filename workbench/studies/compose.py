"""Can a model be made to show two things where one is named? `python -m workbench.studies.compose`.

Wherever "a cow" is named, a cow and a hydrant shall be seen; in all other pictures no hydrant. Tried as edits, which are made
from training prompts, and as interventions, which give some of the UNet's layers the keys and values of the prompt that says both, or add
what a hydrant beside a cow adds to the text encoder. The grader chooses among every subject alone and every subject beside a hydrant.

Writes `compose.csv` and `compose_images.png`. Finished parts are kept in `runs/`: a stopped study goes on with the same command.
`--redraw` draws from the tables in `--out`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure

from workbench import edit as edits
from workbench import plot
from workbench.drawing import WIDTH, house, save
from workbench.experiments.base import Experiment
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.experiments.statistics import share
from workbench.interventions import Intervention, World, replace_prompt
from workbench.metrics import Measures
from workbench.models import Model, load
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.scorer import Scorer
from workbench.steering.direction import Direction, direction
from workbench.studies.edits import CEILING, UNEDITED, EditCells, Editor, Fit, thinned, told_other
from workbench.studies.swap_editors import ALL, BEST, OVERSHOOT, SIX, WINDOW

BOTH, SECOND = "cow and hydrant", "hydrant"
GIVEN = {"given, all layers": (ALL,), "given, six layers": SIX, "given, two layers": WINDOW}
STEERED = {"steered, layer 0": ("text_encoder.0.mlp", 1.0), "steered, all layers": ("text_encoder.*.mlp", 0.5)}
SHOWN = (UNEDITED, CEILING, "ridge x 1.2", "ridge x 1.2, rank 1", "given, six layers", "steered, layer 0")


@dataclass
class ComposeOptions:
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    """At most about so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    device: str = "cpu"
    runs: Path = Path("runs/compose")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw the pictures beside the table in `out`."""


def main(options: ComposeOptions):
    model = load(device=options.device)
    fit = Fit(tuple(prompt_set("swap/compose_train")), preserved()).thinned(options.every)
    if not options.redraw:
        table = measured(model, fit, options)
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "compose.csv", index=False)
    table = pd.read_csv(options.out / "compose.csv")
    print(
        table.pivot_table(index="method", columns=["set", "measure"], values="value", sort=False).round(2).to_string()
    )
    save(figure(pictures(model, fit, options)), options.out / "compose_images.png")


def preserved() -> tuple[Prompt, ...]:
    """Prompts of all other subjects."""
    others = [*prompt_set("swap/preserve"), *prompt_set("swap/train")]
    return tuple(prompt for prompt in others if prompt.value not in ("cow", SECOND))


def editors(model: Model, fit: Fit) -> dict[str, Editor]:
    ridge = partial(edits.from_concepts, model, fit.train, preserve=fit.kept, **BEST)
    return {
        "ridge x 1.2": Editor(lambda: ridge() * OVERSHOOT),
        "ridge x 1.2, rank 1": Editor(lambda: ridge(rank=1) * OVERSHOOT),
        "locoedit": Editor(partial(edits.locoedit, model, fit.train, sites=ALL)),
        "time": Editor(partial(edits.time_edit, model, {"a cow": "a cow next to a red hydrant"})),
        "diff_quickfix": Editor(partial(edits.diff_quickfix, model, fit.train), rules="text encoder"),
    }


def interventions(model: Model, fit: Fit) -> dict[str, Callable[[Prompt], list[Intervention]]]:
    """By name, what is done in the run of a prompt: keys and values are given where it has a replacement, a direction is added in any."""

    def given(layers: tuple[str, ...], prompt: Prompt) -> list[Intervention]:
        sites = tuple(f"{layer}.{part}" for layer in layers for part in "kv")
        return [replace_prompt(sites, told_other(prompt))] if prompt.replacement else []

    def steered(toward: Direction, strength: float, prompt: Prompt) -> list[Intervention]:
        return toward.steer(strength)

    def toward(sites: str) -> Direction:
        return direction(model, [told_other(each) for each in fit.train], [each.prompt for each in fit.train], sites)

    made: dict[str, Callable[[Prompt], list[Intervention]]] = {
        name: partial(given, layers) for name, layers in GIVEN.items()
    }
    return made | {name: partial(steered, toward(sites), strength) for name, (sites, strength) in STEERED.items()}


def sets(options: ComposeOptions) -> dict[str, PromptSet]:
    return thinned({name: prompt_set(f"swap/compose_{name}") for name in ("held_out", "control")}, options.images)


def measured(model: Model, fit: Fit, options: ComposeOptions) -> pd.DataFrame:
    """The table of all edits and interventions."""
    scorer, common = Scorer(device=options.device), dict(batch_size=options.batch_size)
    cells = EditCells(
        model,
        sets(options),
        editors(model, fit),
        targets={"cow": BOTH},
        ceiling="held_out",
        settings=[BEST, options.every],
        scorer=scorer,
        num_inference_steps=options.num_inference_steps,
        **common,
    )
    rows = cells.table(options.runs / "edits").rename(columns={"editor": "method"})
    acted = Intervened(model, sets(options), interventions(model, fit), scorer, options.num_inference_steps, **common)
    unedited = rows[rows.method == UNEDITED].set_index(["set", "prompt"]).edited
    more = acted.table(options.runs / "interventions")
    more["unedited"] = [unedited[key] for key in zip(more.set, more.prompt)]
    return compose_table(pd.concat([rows[list(more)], more]))


class Intervened(Experiment):
    """Every intervention on every set, picture i from seed i. A part is one set."""

    name = "composed"
    columns: ClassVar[tuple[str, ...]] = ("method", "set", "prompt", "value", "edited")

    def __init__(
        self,
        model: Model,
        sets: Mapping[str, PromptSet],
        methods: Mapping[str, Callable[[Prompt], list[Intervention]]],
        scorer: Scorer,
        num_inference_steps: int,
        batch_size: int,
    ):
        spec = Spec(seeds=(0,), num_inference_steps=num_inference_steps)
        super().__init__(model, spec, measures=Measures.of(scorer), batch_size=batch_size)
        self.sets, self.methods, self.scorer = sets, methods, scorer

    def identity(self) -> dict[str, Any]:
        prompts = {name: [[each.prompt, each.replacement] for each in some] for name, some in self.sets.items()}
        return super().identity() | {"sets": prompts, "methods": [*self.methods, GIVEN, STEERED]}

    def parts(self) -> dict[str, tuple[str]]:
        return {name: (name,) for name in self.sets}

    def worlds(self, prompt: Prompt) -> list[World]:
        return [World(name, prompt.prompt, act(prompt)) for name, act in self.methods.items()]

    def check(self, name: str) -> int:
        return len(self.sets[name]) * self.plan(self.worlds(self.sets[name][0]))

    def measure(self, name: str, bar: Bar) -> list[Row]:
        prompts, rows = self.sets[name], []
        for i, prompt in enumerate(prompts):
            images = self.model.run(
                self.worlds(prompt),
                seeds=i,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                batch_size=self.batch_size,
                progress=False,
            ).images.isel(seed=0)
            shown, about = self.scorer.likeliest(images, prompts.labels), dict(set=name, prompt=i, value=prompt.value)
            rows += [dict(method=method, **about, edited=label) for method, label in zip(self.methods, shown)]
            bar.update(len(self.methods))
        return rows


def compose_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of pictures with 95 % intervals: rows (method, set, measure, value, low, high, n)."""
    table = []
    for (method, name), cell in rows.groupby(["method", "set"], sort=False):
        if name == "held_out":
            measures = {
                "both": cell.edited == BOTH,
                "cow alone": cell.edited == "cow",
                "hydrant alone": cell.edited == SECOND,
            }
        else:
            measures = {
                "a hydrant": cell.edited.str.contains(SECOND),
                "changed": cell.edited != cell.unedited,
            }
        for measure, hits in measures.items():
            table.append(dict(method=method, set=name, measure=measure, **share(hits)._asdict(), n=len(cell)))
    return pd.DataFrame(table).round(4)


def pictures(model: Model, fit: Fit, options: ComposeOptions) -> xr.DataArray:
    """Of some methods, pictures of three held-out and two control prompts: (method, prompt, y, x, colour)."""
    chosen = [*sets(options)["held_out"][:3], *sets(options)["control"][:60:30]]
    texts, seeds = [prompt.prompt for prompt in chosen], range(len(chosen))
    settings = dict(seeds=seeds, num_inference_steps=options.num_inference_steps)
    known, acts = editors(model, fit), interventions(model, fit)
    shown = []
    for name in SHOWN:
        if name in known:
            with model.applied(known[name].make()):
                images = model.generate(texts, **settings)
        elif name in acts:
            images = [
                model.run(
                    World(name, prompt.prompt, acts[name](prompt)),
                    seeds=seed,
                    num_inference_steps=options.num_inference_steps,
                    progress=False,
                ).pil()[0]
                for seed, prompt in zip(seeds, chosen)
            ]
        else:
            said = [
                told_other(prompt) if name == CEILING and prompt.replacement else prompt.prompt for prompt in chosen
            ]
            images = model.generate(said, **settings)
        shown.append([np.asarray(image) / 255 for image in images])
    coords = {"method": list(SHOWN), "prompt": texts}
    return xr.DataArray(np.stack(shown), coords, ("method", "prompt", "y", "x", "colour"))


@house
def figure(shown: xr.DataArray) -> Figure:
    """A row of pictures for each method."""
    title = '"a cow" shall show a cow and a hydrant (three prompts), all others none (two)'
    ax = plt.subplots(figsize=(WIDTH, 10), layout="constrained")[1]
    return plot.image_grid(shown, ax=ax, title=title).figure


if __name__ == "__main__":
    main(tyro.cli(ComposeOptions, description=__doc__))
