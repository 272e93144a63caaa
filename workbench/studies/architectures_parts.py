"""What is measured on each of several architectures: every part gives rows, by the name of their table.

An architecture is named by a table of fields alone; what is asked is what the studies of the embedded model ask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

import workbench as wb
from workbench import edit as edits
from workbench.edit.low_rank import Edit
from workbench.experiments.base import Experiment
from workbench.experiments.results import strongest
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.interventions import Intervention, World, replace_prompt
from workbench.localize.compare import Comparison
from workbench.localize.locogen import LocoGen
from workbench.metrics import Measures
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, prompt_set, with_article
from workbench.sites import Site
from workbench.steering.experiment import Variant
from workbench.studies.agreement import (
    WINDOW,
    AgreementOptions,
    attribute_effects,
    compared_on,
    verdict,
)
from workbench.studies.edits import EditCells, Editor, Fit, thinned, told_other
from workbench.studies.erase import sets_of
from workbench.studies.survey import SurveyOptions, traced
from workbench.studies.swap import SETS
from workbench.studies.swap_editors import BEST, EDITORS, OTHER, OVERSHOOT
from workbench.studies.winter import method_table
from workbench.studies.winter_setting import TEXT, UNET, WinterOptions, WinterSetting

ATTRIBUTES = ("object", "style", "colour", "season", "action", "fact")
ENCODER, DENOISER = "text encoder", "denoiser"
GUIDES = {
    "zebra": "giraffe",
    "lion": "penguin",
    "cow": "camel",
    "elephant": "flamingo",
}  # of the study of ranks, of a kind
IN_WEIGHTS = (
    "swap",
    "swap, nothing preserved",
    "swap, last subject token",
    "locoedit, all layers",
    "time",
    "uce",
    "rome",
)
IN_ENCODERS = ("diff_quickfix", "embedding_swap")
TRACED = {f"{name}-{place}": (name, place) for place in (ENCODER, DENOISER) for name in ATTRIBUTES}
FIRST = "first text layer"
STRENGTHS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
METRICS = ("concept", "concept_similarity", "similarity", "probability")
ATTACKS = ("closed_form", "nearest_states")
UNATTACKED = ("unedited", "before")


@dataclass(frozen=True)
class Architecture:
    """One trained model. Fields are globs of its sites.

    text: components of the text encoders. denoiser: what is traced there. entrances: by which the text's states reach the denoiser.
    pooled: the vector that does beside them, empty where there is none. What its family says of it stands there.
    """

    model: str
    title: str
    text: str = "text_encoder*.*.{attention,mlp}"
    denoiser: str = "unet.*.{resnet,self,cross}"
    entrances: str = "unet.*.cross.context"
    pooled: str = ""


ARCHITECTURES = {
    "sd": Architecture("menagerie-sd", "SD 1"),
    "xl": Architecture("menagerie-xl", "SDXL", pooled="text_encoder_2.pooled"),
    "dit": Architecture(
        "menagerie-dit",
        "SD 3",
        denoiser="transformer.*.{image,text}.{out,ff}",
        entrances="transformer.context",
        pooled="transformer.pooled",
    ),
}


@dataclass
class Sizes:
    """How much is asked of each architecture."""

    prompts: int = 12
    """Of each attribute's set, and for recovery."""
    seeds: int = 2
    """Of tracing, LocoGen, localizers, winter's held-out prompts and recovery."""
    num_inference_steps: int = 12
    """Of tracing, LocoGen, localizers and winter."""
    edited_steps: int = 8
    """Of edits and recovery."""
    images: int | None = None
    """At most about so many of each set of the swap; all when left out."""
    erased: int | None = 60
    """The same of the erased subjects' sets."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    told: int = 20
    """Held-out prompts that are told in parts."""
    told_seeds: int = 6
    winter_prompts: int | None = None
    """Only so many of winter's; all when left out."""
    batch_size: int = 128


class Measured:
    """One architecture, with what all parts need."""

    def __init__(self, name: str, sizes: Sizes, runs: Path, device: str):
        self.name, self.sizes, self.runs = name, sizes, runs / "parts" / name
        self.architecture = ARCHITECTURES[name]
        self.model = wb.load(self.architecture.model, device=device)
        self.scorer = wb.Scorer(device=device)

    @cached_property
    def fit(self) -> Fit:
        return Fit(tuple(prompt_set("swap/train")), tuple(prompt_set("swap/preserve"))).thinned(self.sizes.every)

    @cached_property
    def encoders(self) -> list[str]:
        """Components of its text encoders."""
        return list(dict.fromkeys(site.component for site in self.model.sites if site.part == "text"))

    def cells(
        self,
        folder: str,
        sets: Mapping[str, PromptSet],
        editors: Mapping[str, Editor],
        *,
        targets: Mapping[str, str],
        ceiling: str | None = None,
    ) -> pd.DataFrame:
        """Rows of editors on sets, one for each picture."""
        cells = EditCells(
            self.model,
            sets,
            editors,
            targets=targets,
            ceiling=ceiling,
            settings=[BEST, OVERSHOOT, self.sizes.every],
            scorer=self.scorer,
            num_inference_steps=self.sizes.edited_steps,
            batch_size=self.sizes.batch_size,
        )
        return cells.table(self.runs / folder)


Tables = Mapping[str, pd.DataFrame]


def trace(measured: Measured, item: str) -> Tables:
    """Effects of every component of the text encoders, or of every layer of the denoiser, on an attribute."""
    attribute, place = TRACED[item]
    sizes, globs = measured.sizes, measured.architecture
    options = SurveyOptions(
        prompts=sizes.prompts,
        seeds=sizes.seeds,
        num_inference_steps=sizes.num_inference_steps,
        batch_size=sizes.batch_size,
    )
    glob, tokens = {ENCODER: (globs.text, "subject_last"), DENOISER: (globs.denoiser, "all")}[place]
    folder = measured.runs / f"trace-{item}".replace(" ", "-")
    effect = traced(measured.model, measured.scorer, attribute, (glob,), options, folder, tokens=(tokens,))
    sites = measured.model.sites(glob)
    known = {site.name: site for site in sites} | {name: both[0] for name, both in sites.joint().items()}
    table = strongest(effect).drop(columns=["token", "steps"])
    facts = [known[name] for name in table.site]
    table = table.assign(
        kind=[site.kind for site in facts],
        layer=[_layer(site, known) for site in facts],
        stage=[stage(site) for site in facts],
        order=[effect.site.values.tolist().index(name) for name in table.site],
    )
    totals = {f"total_effect{end}": float(effect[f"total_effect{end}"]) for end in ("", "_low", "_high")}
    return {"trace": table.assign(attribute=attribute, place=place, **totals)}


def stage(site: Site) -> str:
    """The part of the denoiser in which a site is, without the component: "down.1", "mid", or a transformer's block."""
    first, *more = site.place.split(".")[1:]
    return f"{first}.{more[0]}" if more and not first.isdecimal() and first != "mid" else first


def _layer(site: Site, known: Mapping[str, Site]) -> int:
    """A site's number among those of its kind in its component, from 0."""
    alike = [each.name for each in known.values() if (each.component, each.kind) == (site.component, site.kind)]
    return list(dict.fromkeys(alike)).index(site.name)


def locogen(measured: Measured, attribute: str) -> Tables:
    """LocoGen's windows of an attribute, and how far four localizers of its layers agree."""
    sizes = measured.sizes
    options = AgreementOptions(
        prompts=sizes.prompts,
        seeds=sizes.seeds,
        num_inference_steps=sizes.num_inference_steps,
        batch_size=sizes.batch_size,
        runs=measured.runs / "locogen",
    )
    found, compared = compared_on(measured.model, measured.scorer, attribute, options)
    return placed(locogen_tables(attribute, found, compared), measured.model)


def placed(tables: Tables, model: wb.Model) -> Tables:
    """LocoGen's tables with the part of the denoiser in which each window begins, and its first layer's number from input to output."""
    windows = tables["windows"]
    order = windows.site.map({site.name: number for number, site in enumerate(model.sites)})
    stages = [stage(model.sites[name]) for name in windows.site]
    return {**tables, "windows": windows.assign(stage=stages, order=order)}


def locogen_tables(attribute: str, found: LocoGen, compared: Comparison) -> Tables:
    effect = attribute_effects(found, attribute)
    names = [name for name in ("total_effect", "pooled_effect") if name in effect]
    wholes = {f"{name}{end}": float(effect[f"{name}{end}"]) for name in names for end in ("", "_low", "_high")}
    windows = strongest(effect).drop(columns=["inputs", "heads", "steps"], errors="ignore")
    best = verdict(attribute, found)
    first, *_ = found.best(WINDOW, direction=best["direction"])
    row = windows[(windows.width == WINDOW) & (windows.site == first)]
    row = row.assign(layers=best["layers"], chance=best["p against shuffled windows"], **wholes)
    tables = {"locogen": row, "windows": windows, "agreement": compared.agreement()}
    return {name: table.assign(attribute=attribute) for name, table in tables.items()}


def swap(measured: Measured, _: str) -> Tables:
    """Every editor of the benchmark that names no layers, and those of the text encoders by encoder."""
    sets = {name: prompt_set(f"swap/{name}") for name in SETS}
    editors = {name: Editor(partial(EDITORS[name], measured.model, measured.fit)) for name in IN_WEIGHTS}
    editors |= {name: Editor(make, ENCODER) for name, make in encoder_editors(measured).items()}
    sets = thinned(sets, measured.sizes.images)
    return {"swap": measured.cells("swap", sets, editors, targets=OTHER, ceiling="held_out")}


def encoder_editors(measured: Measured) -> dict[str, Callable[[], Edit]]:
    """Editors of the text encoders' weights: of all encoders, and of each alone where there are several."""
    made: dict[str, Callable[[], Edit]] = {
        name: partial(EDITORS[name], measured.model, measured.fit) for name in IN_ENCODERS
    }
    if len(measured.encoders) < 2:
        return made
    alone = {
        f"{name}, {encoder} alone": partial(only, make, encoder, measured.model)
        for name, make in made.items()
        for encoder in measured.encoders
    }
    return made | alone


def only(make: Callable[[], Edit], encoder: str, model: wb.Model) -> Edit:
    """What an edit changes in one text encoder."""
    edit = make()
    return Edit([each for each in edit.updates if model.sites[each.site].component == encoder], edit.provenance)


class Told(Experiment):
    """Held-out prompts whose text reaches the denoiser as the other animal's by some ways alone. A part is a way.

    ways: by name, globs of the entrances that are told, and the edit that is committed meanwhile.
    """

    name = "told"
    columns = ("way", "prompt", "seed", "value")

    def __init__(self, measured: Measured, prompts: PromptSet, ways: Mapping[str, tuple[Sequence[str], Edit | None]]):
        sizes = measured.sizes
        spec = Spec(seeds=tuple(range(sizes.told_seeds)), num_inference_steps=sizes.edited_steps)
        super().__init__(
            measured.model,
            spec,
            prompts=prompts,
            measures=Measures.of(measured.scorer),
            batch_size=sizes.batch_size,
        )
        self.scorer, self.ways = measured.scorer, ways

    def identity(self):
        ways = {name: [list(sites), None if edit is None else edit.digest] for name, (sites, edit) in self.ways.items()}
        return super().identity() | {"ways": ways}

    def parts(self) -> dict[str, tuple[str]]:
        return {name: (name,) for name in self.ways}

    def worlds(self, name: str) -> list[World]:
        return [World(str(p), prompt.prompt, self.given(prompt, name)) for p, prompt in enumerate(self.prompts)]

    def given(self, prompt: Prompt, name: str) -> list[Intervention]:
        sites, _ = self.ways[name]
        return [replace_prompt(list(sites), told_other(prompt))] if sites else []

    def check(self, name: str) -> int:
        return self.plan(self.worlds(name))

    def measure(self, name: str, bar: Bar) -> list[Row]:
        """Rows (way, prompt, seed, value): whether the picture shows the other animal."""
        _, edit = self.ways[name]
        if edit is None:
            images = self.run(self.worlds(name)).images
        else:
            with self.model.applied(edit):
                images = self.run(self.worlds(name)).images
        rows = []
        for p, prompt in enumerate(self.prompts):
            shown = self.scorer.likeliest(images.sel(world=str(p)).values, self.prompts.labels)
            for seed, label in zip(self.spec.seeds, shown):
                rows.append(dict(way=name, prompt=p, seed=seed, value=float(label == OTHER[prompt.value])))
        bar.update(len(rows))
        return rows


def told(measured: Measured, _: str) -> Tables:
    """By which way the word reaches the picture: the states alone, the pooled vector alone; and an edit with and without the latter."""
    globs, sizes = measured.architecture, measured.sizes
    states, pooled = (globs.entrances,), (globs.pooled,) if globs.pooled else ()
    ways: dict[str, tuple[Sequence[str], Edit | None]] = {
        "nothing told": ((), None),
        "all told": (states + pooled, None),
    }
    if pooled:
        ways |= {"states told": (states, None), "pooled vector told": (pooled, None)}
    edit = EDITORS["swap"](measured.model, measured.fit)
    ways["swap"] = (), edit
    if pooled:
        ways["swap, pooled vector told"] = pooled, edit
    prompts = thinned({"held_out": prompt_set("swap/held_out")}, sizes.told)["held_out"][: sizes.told]
    rows = Told(measured, prompts, ways).table(measured.runs / "told")
    return {"told": rows.groupby(["way", "prompt"], sort=False, as_index=False)["value"].mean()}


def winter(measured: Measured, _: str) -> Tables:
    """Steering towards winter from weak to strong, on tuning and on held-out prompts, and telling the model."""
    globs, sizes = measured.architecture, measured.sizes
    options = WinterOptions(
        runs=measured.runs / "winter",
        num_inference_steps=sizes.num_inference_steps,
        prompts=sizes.winter_prompts,
        batch_size=sizes.batch_size,
        seeds=tuple(range(17, 17 + sizes.seeds)),
    )
    options.runs.mkdir(parents=True, exist_ok=True)
    study = WinterSetting(
        options,
        measured.model,
        measured.scorer,
        sites={TEXT: "text_encoder*.*.mlp", UNET: measured.model.family.layers},
        entrances=[each for each in (globs.entrances, globs.pooled) if each],
    )
    text, denoiser = (study.directions["winter", where] for where in (TEXT, UNET))
    first = [site for site in text.sites if measured.model.sites[site].depth == 0]
    tables = []
    for asked, prompts, spec in (
        ("tuning", study.tune, study.tuning),
        ("held out", study.held_out, study.reporting),
    ):
        variants = {}
        for strength in STRENGTHS:
            steered = {
                ENCODER: text.steer({"*": strength}, unit=True),
                FIRST: text.steer(dict.fromkeys(first, strength), unit=True),
                DENOISER: denoiser.steer({"*": strength}, unit=True, keep_norm=True),
            }
            for name, interventions in steered.items():
                place = {"variant": name, "factor": strength}
                variants[f"{name}-{strength:g}".replace(" ", "-")] = Variant(place, [interventions] * len(prompts))
        concept = study.concepts["winter"]
        curves = study.measure(f"{asked} curves".replace(" ", "-"), prompts, concept, variants, spec)
        said = {"told": Variant({"variant": "told winter"}, study.told(["winter"], prompts))}
        told_so = study.measure(f"{asked} told".replace(" ", "-"), prompts, concept, said, spec)
        both = [method_table(each, METRICS) for each in (curves, told_so)]
        tables.append(pd.concat(both).drop_duplicates(["variant", "factor", "metric"]).assign(asked=asked))
    return {"winter": pd.concat(tables, ignore_index=True)}


def erase(measured: Measured, subject: str) -> Tables:
    """A subject erased, what it costs, and whether it comes back by states that the edited layers read as before."""
    sizes, model, word, guide = measured.sizes, measured.model, with_article(subject), with_article(GUIDES[subject])
    kept = sorted({f"a {prompt.subject}" for prompt in measured.fit.preserve if prompt.value == prompt.subject})
    editors = {
        "erase": Editor(partial(edits.erase, model, word, guide)),
        "oblique, rank 1": Editor(partial(edits.oblique, model, word, guide)),
        "uce": Editor(
            partial(edits.uce, model, {word: guide}, preserve=[text for text in kept if text not in (word, guide)])
        ),
    }
    sets = thinned(sets_of(subject), sizes.erased)
    rows = measured.cells(f"erase-{subject}", sets, editors, targets={})
    prompts = sets_of(subject)["held_out"]
    prompts = prompts[:: max(1, len(prompts) // sizes.prompts)][: sizes.prompts]
    spec = wb.RecoverySpec(
        attacks=ATTACKS,
        redraws=4,
        seeds=tuple(range(sizes.seeds)),
        num_inference_steps=sizes.edited_steps,
    )
    edit = editors["erase"].make()
    tables = {"erase": rows.assign(subject=subject), "recovery": pd.DataFrame()}
    if set(model.sites(*edit.sites)) <= set(model.sites(model.family.edited)):
        folder = measured.runs / f"recovery-{subject}"
        found = wb.recover(
            model, edit, prompts, spec, scorer=measured.scorer, folder=folder, batch_size=sizes.batch_size
        )
        tables["recovery"] = recovery_rows(found).assign(subject=subject)
    return tables


def recovery_rows(found: wb.Recovery) -> pd.DataFrame:
    """Rows (attack, asks, lam, distance, prompt, value): the share of a prompt's seeds that shows the concept."""
    concept = found.data.sel(metric="concept", drop=True)
    tables = [
        concept[name].mean("seed").reset_coords(drop=True).to_dataframe("value").reset_index().assign(attack=name)
        for name in (*UNATTACKED, *found.attacks)
    ]
    rows = pd.concat(tables, ignore_index=True).dropna(subset=["value"])
    return rows.reindex(columns=["attack", "asks", "lam", "distance", "prompt", "value"])


@dataclass(frozen=True)
class Part:
    """measure: of one item, all tables by their names."""

    measure: Callable[[Measured, str], Tables]
    tables: tuple[str, ...]
    items: tuple[str, ...] = ("all",)


PARTS = {  # those of few items first: they take the longest
    "swap": Part(swap, ("swap",)),
    "winter": Part(winter, ("winter",)),
    "erase": Part(erase, ("erase", "recovery"), tuple(GUIDES)),
    "locogen": Part(locogen, ("locogen", "windows", "agreement"), ATTRIBUTES),
    "trace": Part(trace, ("trace",), tuple(TRACED)),
    "told": Part(told, ("told",)),
}
