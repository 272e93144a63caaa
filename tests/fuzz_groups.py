"""Every public function with arguments that are right, and what else may stand in each: the groups of test_fuzz.py."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from fuzz import (
    AXIS,
    COUNT,
    FLAG,
    INTEGER,
    NONE,
    NOT_NEGATIVE,
    NOTHING,
    NUMBER,
    PATH,
    POSITIONS,
    POSITIVE,
    SEED,
    SEEDS,
    SHARE,
    STEPS,
    TEXT,
    TEXTS,
    WORD,
    Group,
    kind,
)

import workbench as wb
from workbench.studies import tiny_transformers

GUIDANCE = NONE | (NUMBER - kind("1e30", "10**30"))
SIZE = NONE
PLACES = dict(tokens=POSITIONS | kind("'qux'"), steps=STEPS, heads=AXIS, channels=AXIS, rows=NONE)
SETTINGS = dict(num_inference_steps=NONE | COUNT, guidance_scale=GUIDANCE)
RUN = SETTINGS | dict(seeds=SEEDS, batch_size=COUNT)
EXPERIMENT = dict(model=NOTHING, scorer=NONE, folder=NONE | PATH, executor=NONE, batch_size=COUNT)
NAMES = kind("'qux'", "['qux']")
CONTENT = kind("'qux'")


def brightness(images):
    """A metric of a person's own."""
    return images.mean((1, 2, 3))


@dataclass
class Kit:
    """Right values."""

    model: wb.Model
    scorer: wb.Scorer
    folder: Path

    def __post_init__(self):
        model, quick = self.model, dict(seeds=(0,), num_inference_steps=1)
        self.prompts = wb.PromptSet.of([wb.Prompt("a zebra", "zebra", target="a lion")], name="one")
        self.zebra = wb.Prompt("a zebra", "zebra", value="zebra")
        self.direction = wb.direction(model, ["a zebra in winter"], ["a zebra in summer"], "text_encoder.0.mlp")
        self.concept = wb.Concept("winter", "summer")
        self.edit = wb.edit.uce(model, {"a zebra": "a lion"}, sites="unet.mid.cross.k", lam=1.0)
        self.run = model.run({"a": "a zebra", "b": "a lion"}, num_inference_steps=1, progress=False)
        self.image = self.run.pil()[0]
        trace = wb.TraceSpec(sites=("text_encoder.0.mlp",), draws=1, **quick)
        self.trace = wb.causal_trace(model, self.prompts, trace, scorer=brightness)
        self.effects = wb.effects(self.trace, "brightness", resamples=2)
        generate = wb.LocoGenSpec(windows=((0, 1),), **quick)
        self.locogen = wb.locogen(model, self.prompts, generate, scorer=brightness)
        several = wb.LocoGenSpec(windows=((0, 1), (1, 1)), **quick)
        self.races = dict(experiment=wb.locogen, model=model, prompts=self.prompts, spec=several, scorer=brightness)
        self.races |= dict(race=wb.RaceSpec(best=1, metric="ssim"), batch_size=16)
        self.raced = wb.race(**self.races)
        self.maps = wb.attention_maps(model, "a zebra", num_inference_steps=1, sites="unet.mid.cross")
        self.joint = wb.load(tiny_transformers.sd3(), max_sequence_length=4)
        self.inversion = wb.Inversion("a zebra", 1, 1.0, torch.zeros(2, *self.run.latents.shape[2:]))
        self.edit.save(self.folder / "edit.safetensors")
        self.direction.save(self.folder / "direction.safetensors")
        wb.edit.Moments.of(torch.eye(3)).save(self.folder / "moments.safetensors")
        (self.folder / "prompts.csv").write_text("prompt\na zebra\n")
        (self.folder / "pairs.csv").write_text("positive,negative\na,b\n")

    @property
    def sweep(self) -> wb.Sweep:
        axes = {"metric": ["concept_similarity", "similarity", "pixel_distance"], "prompt": [0], "seed": [0]}
        place = axes | {"site": ["text_encoder.0.mlp"], "strength": [1.0]}
        zeros = lambda axes: (tuple(axes), np.zeros([len(each) for each in axes.values()]))
        return wb.Sweep(xr.Dataset({"unsteered": zeros(axes), "steered": zeros(place)}, coords=place))

    @property
    def search(self) -> wb.Search:
        names = [f"{name}{end}" for name in ("concept_similarity", "similarity") for end in ("", "_low", "_high")]
        table = pd.DataFrame(np.zeros((2, len(names))), columns=names)
        table = table.assign(pareto=True, **{"text_encoder.0.mlp": [np.nan, 1.0]})
        return wb.Search(table, wb.SearchSpec(), ("text_encoder.0.mlp",))

    @property
    def faithful(self) -> xr.Dataset:
        coords = {"metric": ["probability"], "prompt": [0], "draw": [0], "seed": [0]}
        coords |= {"order": ["ranking", "random 0"], "count": [0, 1, 2]}
        kept = xr.DataArray(np.linspace(0, 1, 6).reshape(1, 1, 1, 1, 2, 3), dims=tuple(coords), coords=coords)
        corrupted = kept.isel(order=0, count=0, drop=True)
        return xr.Dataset({"kept": kept, "corrupted": corrupted, "clean": corrupted.isel(draw=0, drop=True)})

    @property
    def recovered(self) -> wb.Recovery:
        coords = {"metric": ["concept"], "prompt": [0], "seed": [0], "draw": [0], "asks": ["concept"], "share": [0.5]}
        zeros = lambda *axes: (axes, np.zeros([len(coords[axis]) for axis in axes]))
        per = ("metric", "prompt", "seed")
        worlds = {"unedited": zeros(*per), "before": zeros(*per), "redrawn": zeros(*per, "draw")}
        worlds |= {"completion": zeros(*per, "asks", "share")}
        spec = json.dumps({"concept": "zebra", "control": "lion", "refused": {}})
        return wb.Recovery(xr.Dataset(worlds, coords, {"spec": spec}))

    @property
    def comparison(self) -> wb.Comparison:
        coords = {"localizer": ["one", "other"], "prompt": [0, 1], "seed": [0], "layer": list("abc")}
        scores = xr.DataArray(np.random.default_rng(0).random((2, 2, 1, 3)), dims=tuple(coords), coords=coords)
        return wb.Comparison(scores)


def groups(kit: Kit) -> Iterator[Group]:
    yield from of_models(kit)
    yield from of_interventions(kit)
    yield from of_specs()
    yield from of_values(kit)
    yield from of_experiments(kit)
    yield from of_edits(kit)
    yield from of_results(kit)
    yield from of_plots(kit)


def of_models(kit: Kit) -> Iterator[Group]:
    model = kit.model
    sizes = dict(height=SIZE, width=SIZE)
    yield Group(
        "load",
        wb.load,
        {},
        dict(
            source=NONE,
            device=NOTHING,
            dtype=NOTHING,
            revision=NONE | TEXT | PATH,
            variant=NONE,
            safety_checker=NONE | FLAG,
            config=NONE,
            verify=FLAG,
        ),
        {"source": "wb.load"},
    )
    yield Group("Model", wb.Model, {"pipeline": model.pipeline}, {"pipeline": NOTHING} | SETTINGS)
    yield Group(
        "Model.run",
        model.run,
        dict(worlds="a zebra", num_inference_steps=1, progress=False),
        RUN
        | sizes
        | dict(worlds=TEXTS, guidance_rescale=SHARE, record=kind("[]"), latents=NONE)
        | dict(progress=FLAG, reuse=FLAG, record_to=NONE),
        {"record": "site"},
    )
    kept = dict(worlds="a zebra", num_inference_steps=1, record="unet.mid.cross", progress=False)
    yield Group("Model.run to disk", model.run, kept, dict(record_to=NONE | WORD))
    planned = wb.plan(wb.locogen, model, "a zebra", "a lion", timed=False, scorer=brightness)
    asked = dict(experiment=wb.locogen, model=model, prompts="a zebra", target="a lion", batch_size=1, timed=False)
    yield Group("plan", wb.plan, asked, dict(timed=FLAG))
    yield Group("race", wb.race, kit.races, dict(batch_size=COUNT))
    yield Group("Race.best", kit.raced.best, dict(number=1), dict(number=NOTHING))
    yield Group("Share", wb.Share, dict(number=1, of=10**6), dict(number=COUNT, of=COUNT))
    yield Group("Ray", wb.Ray, {}, dict(address=NONE | TEXT, workers=NONE | COUNT, threads=COUNT))
    yield Group("Plan.seconds_on", planned.seconds_on, dict(workers=1), {"workers": COUNT})
    yield Group(
        "Model.generate",
        model.generate,
        dict(prompt="a zebra", num_inference_steps=1),
        RUN | sizes | dict(prompt=TEXTS, negative_prompt=NONE | TEXTS, guidance_rescale=SHARE),
    )
    yield Group(
        "Model.run_once",
        model.run_once,
        dict(worlds="a zebra", images={"a zebra": kit.image}, step=0, num_inference_steps=2),
        RUN | dict(worlds=NOTHING, images=NOTHING, step=kind("0"), record=kind("[]"), guidance_scale=GUIDANCE - NONE),
        {"images": "image", "record": "site"},
    )
    yield Group("Model.encode", model.encode, {"images": [kit.image]}, {"images": NOTHING})
    yield Group("Model.latents", model.latents, {"seeds": 0}, sizes | {"seeds": SEEDS})
    yield Group("Model.calls", model.calls, {}, {"num_inference_steps": NONE | COUNT})
    yield Group("Model.sites_at", model.sites_at, {}, sizes)
    yield Group("Model.hashes", model.hashes, {"site": "unet.mid.cross.k"}, {"site": NOTHING}, {"site": "site"})
    yield Group("Model.commit", model.commit, {"edit": kit.edit}, {"edit": NOTHING, "base": FLAG})
    yield Group("Model.undo", model.undo, {}, {"check": FLAG})
    yield Group("Model.applied", applied(model), {"edit": kit.edit}, {"edit": NOTHING, "base": FLAG})
    yield Group("Model.save_pretrained", model.save_pretrained, {}, {"folder": WORD}, {"folder": "folder"})
    yield Group("Sites()", lambda patterns: model.sites(patterns), {}, {"patterns": NOTHING}, {"patterns": "site"})
    yield Group("Sites[]", lambda site: model.sites[site], {}, {"site": INTEGER}, {"site": "site"})
    yield Group(
        "Sites.window", model.sites.window, dict(start=0, width=1), dict(start=INTEGER - kind("-1"), width=COUNT)
    )
    yield Group("Run[]", lambda world: kit.run[world], {}, {"world": NOTHING})
    yield Group("Run.pil", kit.run.pil, {}, {"world": NONE, "seed": NONE | kind("0")})
    yield Group(
        "check",
        wb.check,
        dict(model=model, num_inference_steps=2, progress=False),
        sizes
        | dict(
            model=NOTHING,
            every_site=FLAG,
            num_inference_steps=NONE | COUNT,
            guidance_scale=GUIDANCE - NONE,
            prompt=TEXT,
            target=NONE | TEXT,
            seed=SEED,
            batch_size=NOTHING,
            progress=FLAG,
        ),
    )


def applied(model: wb.Model):
    """`Model.applied` as a call."""

    def call(**settings):
        with model.applied(**settings):
            pass

    return call


def of_interventions(kit: Kit) -> Iterator[Group]:
    site = "unet.mid.cross"
    at = dict(sites=NAMES) | PLACES
    vector = kind("[2, 3]", "[0.5]", "[[2]]", "(0.0, 0.5)", "array", "tensor")
    made = {
        "restore": (wb.restore, dict(from_world="a"), dict(from_world=WORD)),
        "add_noise": (wb.add_noise, dict(sigma=1.0), dict(sigma=NOT_NEGATIVE, seed=SEED)),
        "replace_prompt": (wb.replace_prompt, dict(prompt="a"), dict(prompt=TEXT)),
        "steer": (wb.steer, dict(direction=[1.0]), dict(direction=vector, alpha=NUMBER, keep_norm=FLAG)),
        "remove": (wb.remove, dict(direction=[1.0]), dict(direction=vector, beta=NUMBER, keep_norm=FLAG)),
        "ablate": (wb.ablate, {}, dict(to=NOTHING, world=NONE, over=NONE)),
        "scale": (wb.scale, dict(factor=1.0), dict(factor=NUMBER)),
        "mix_attention": (
            wb.mix_attention,
            dict(from_world="a"),
            dict(
                from_world=WORD,
                alpha=NUMBER | kind("[2, 3]", "[0.5]", "(0.0, 0.5)"),
                mapper=NONE | kind("tensor", "[[2]]"),
            ),
        ),
        "set_to": (wb.set_to, dict(values=[1.0]), dict(values=vector | NUMBER)),
        "map_input": (
            wb.map_input,
            dict(b=[[1.0]], a=[[1.0]]),
            dict(b=kind("tensor", "[[2]]"), a=kind("tensor", "[[2]]")),
        ),
        "apply": (
            wb.apply,
            dict(function=len),
            dict(function=kind("function", "type", "object") - kind("object"), from_world=NONE | WORD),
        ),
    }
    for name, (call, right, kinds) in made.items():
        yield Group(name, call, {"sites": site} | right, at | kinds, {"to": "to=", "world": "world", "over": "over"})
    yield Group(
        "restored",
        wb.restored,
        dict(world=wb.World("a", "a zebra"), sites=site, from_world="b", through="unet.up.0.0.resnet"),
        at | dict(world=NOTHING, from_world=WORD, through=NAMES, name=NONE | WORD),
        {"through": "sites"},
    )
    whole = POSITIONS - NONE
    yield Group(
        "blend_latents",
        wb.blend_latents,
        dict(from_world="a", maps=["unet.mid.cross.probs"], own=[1], source=[1]),
        dict(
            from_world=WORD,
            maps=NAMES,
            own=whole,
            source=whole,
            own_less=whole | kind("[]"),
            source_less=whole | kind("[]"),
            threshold=NUMBER,
            threshold_less=NUMBER,
            steps=STEPS,
        ),
    )
    rule = wb.scale(site, 2.0).rule
    yield Group("Intervention", wb.Intervention, dict(sites=site, rule=rule), at | {"rule": NOTHING})
    yield Group(
        "window",
        wb.window,
        dict(start=0.0, stop=1.0),
        dict(start=SHARE, stop=SHARE - kind("0")),
        dict(start="window", stop="window"),
    )
    yield Group(
        "World",
        wb.World,
        dict(name="a", prompt="a zebra"),
        dict(name=TEXT, prompt=TEXT, interventions=kind("[]"), subject=NONE | TEXT, negative_prompt=NONE | TEXT),
    )
    yield Group("World.from_json", wb.World.from_json, {}, {"text": NOTHING}, {"text": "World"})
    yield Group("Intervention.from_json", wb.Intervention.from_json, {}, {"text": NOTHING}, {"text": "Intervention"})
    yield Group(
        "Fold",
        wb.Fold,
        dict(name="a", sites=(site,), axes=("x",), update=len),
        dict(name=TEXT, sites=NAMES, axes=NAMES | kind("[]"), update=kind("function", "type")),
    )


def of_specs() -> Iterator[Group]:
    spec = dict(seeds=SEEDS, num_inference_steps=NONE | COUNT, guidance_scale=GUIDANCE)
    steer = spec | dict(unit=FLAG, keep_norm=FLAG, tokens=POSITIONS | kind("'qux'"), steps=STEPS)
    counts = COUNT | kind("[2, 3]")
    names = NAMES
    corrupt = spec | dict(corruption=NOTHING, noise_multiple=NOT_NEGATIVE, draws=COUNT)
    attribute = spec | dict(
        sites=names, tokens=names, form=NOTHING, metric=NOTHING, points=COUNT, over=NONE, checkpointing=FLAG
    )
    shares = SHARE | kind("[0.5]", "(0.0, 0.5)")
    recovery = dict(
        attacks=kind("[]"),
        control=TEXT,
        redraws=COUNT,
        lams=POSITIVE | kind("[2, 3]", "[0.5]"),
        distances=NOT_NEGATIVE | kind("inf", "[2, 3]", "[0.5]", "(0.0, 0.5)"),
        strengths=NUMBER | kind("[2, 3]", "[0.5]", "(0.0, 0.5)"),
        neutral=TEXT,
        template=NOTHING,
        pictures=COUNT,
        prefix=COUNT,
        searches=COUNT,
        inversions=COUNT,
        inversion_lr=SHARE | kind("np.int64(2)") - kind("0"),
        shares=shares,
        relearned=kind("0", "np.int64(2)", "[2, 3]"),
        relearned_sites=names | kind("[]"),
        relearning_lr=SHARE | kind("np.int64(2)") - kind("0"),
    )
    kinds = {
        wb.CorruptionSpec: corrupt,
        wb.FaithfulnessSpec: corrupt
        | dict(
            noise_multiple=POSITIVE,
            shares=shares,
            random_orders=COUNT,
        ),
        wb.TraceSpec: corrupt
        | dict(
            sites=names,
            tokens=names,
            steps=NONE,
            rows=NONE,
            window=COUNT,
            joint=FLAG,
            over=NONE,
        ),
        wb.LocoGenSpec: spec
        | dict(
            widths=counts, windows=NONE, inputs=NOTHING, heads=NONE | kind("0", "np.int64(2)", "[2, 3]"), steps=NONE
        ),
        wb.AttributionSpec: attribute,
        wb.ScreenSpec: attribute | dict(best=COUNT, verified=NOTHING, controls=kind("0", "np.int64(2)"), race=FLAG),
        wb.AttentionSpec: spec,
        wb.RecoverySpec: spec | recovery,
        wb.SteerSpec: steer,
        wb.SweepSpec: steer | dict(strengths=POSITIVE | kind("-1", "[2, 3]", "[0.5]"), together=FLAG),
        wb.SearchSpec: steer
        | dict(
            trials=COUNT,
            weakest=POSITIVE - kind("1e30", "10**30"),
            strongest=POSITIVE,
            concept=WORD,
            fidelity=WORD,
            sampler_seed=kind("0", "np.int64(2)"),
        ),
        wb.RaceSpec: dict(
            best=COUNT,
            metric=WORD,
            direction=NONE,
            level=kind("0.5", "np.float64(0.5)"),
            units=COUNT,
            order=kind("0", "np.int64(2)"),
        ),
        wb.AdaptiveSpec: steer
        | dict(strongest=POSITIVE, rounds=COUNT, budget=NOT_NEGATIVE, fidelity=WORD, margin=NUMBER),
    }
    for make, of in kinds.items():
        yield Group(make.__name__, make, {}, of)


def of_values(kit: Kit) -> Iterator[Group]:
    text = dict(prompt=TEXT, subject=TEXT, value=TEXT, target=TEXT)
    yield Group("Prompt", wb.Prompt, dict(prompt="a"), text)
    yield Group(
        "PromptSet",
        wb.PromptSet,
        dict(name="x", prompts=(wb.Prompt("a"),)),
        dict(name=TEXT, prompts=kind("[]"), labels=NOTHING),
        {"prompts": "prompt set"},
    )
    yield Group(
        "PromptSet.of",
        wb.PromptSet.of,
        dict(prompts="a zebra"),
        dict(prompts=TEXTS, subject=kind("''"), target=TEXT, labels=NONE, name=TEXT),
    )
    yield Group(
        "prompt_set",
        wb.prompt_set,
        {"source": kit.folder / "prompts.csv"},
        dict(source=NOTHING, labels=NONE),
        dict(source="prompt_set"),
    )
    yield Group("prompt_pairs", wb.prompt_pairs, {}, dict(source=NOTHING), dict(source="prompt_pairs"))
    yield Group("Concept", wb.Concept, dict(text="a"), dict(text=WORD, opposite=TEXT, labels=NOTHING, value=TEXT))
    yield Group(
        "Metric",
        wb.Metric,
        dict(name="a", function=len),
        dict(name=WORD, function=kind("function", "type"), unit=TEXT, version=TEXT),
        {"name": "Metric"},
    )
    yield Group("Metric()", wb.Metric("b", brightness), {}, dict(images=NOTHING))
    yield Group(
        "Scorer",
        wb.Scorer,
        {},
        dict(model=NONE, pretrained=NONE, device=NOTHING),
        {"model": "Scorer", "pretrained": "Scorer"},
    )
    scorer, embedded = kit.scorer, kit.scorer.image_embeddings(kit.image)
    yield Group("Scorer.image_embeddings", scorer.image_embeddings, {}, dict(images=NOTHING))
    yield Group("Scorer.text_embeddings", scorer.text_embeddings, {}, dict(texts=TEXTS))
    yield Group(
        "Scorer.similarity", scorer.similarity, dict(images=kit.image, texts="a"), dict(images=NOTHING, texts=TEXTS)
    )
    yield Group(
        "Scorer.similarity of embeddings",
        scorer.similarity,
        dict(embeddings=embedded, texts="a"),
        dict(embeddings=NOTHING),
    )
    yield Group(
        "Scorer.class_probabilities",
        scorer.class_probabilities,
        dict(images=kit.image, labels={"a": "a", "b": "b"}),
        dict(images=NOTHING, labels=NOTHING),
    )
    yield Group(
        "Scorer.likeliest",
        scorer.likeliest,
        dict(images=kit.image, labels={"a": "a", "b": "b"}),
        dict(images=NOTHING, labels=NOTHING),
    )
    pixels = torch.full((2, 3, 64, 64), 0.5)
    yield Group(
        "Scorer.log_odds",
        scorer.log_odds,
        dict(images=pixels, labels={"a": "a", "b": "b"}, value="a"),
        dict(images=NOTHING, labels=NOTHING, value=NOTHING),
    )
    yield Group(
        "Scorer.differentiable_similarity",
        scorer.differentiable_similarity,
        dict(images=pixels, text="a"),
        dict(images=NOTHING, text=TEXT),
    )
    yield Group("as_pil", wb.as_pil, {}, dict(images=kind("[]")))
    tokenizer = kit.model.pipeline.tokenizer
    yield Group(
        "align",
        wb.align,
        dict(tokenizer=tokenizer, source="a", target="b"),
        dict(tokenizer=NOTHING, source=WORD, target=WORD, kind=NOTHING),
    )
    yield Group(
        "LocalBlend",
        wb.LocalBlend,
        dict(words="zebra"),
        dict(
            words=NAMES,
            subtract=NAMES | kind("[]"),
            start=SHARE,
            threshold=NUMBER,
            subtract_threshold=NUMBER,
            resolution=SHARE - kind("0"),
        ),
    )
    yield Group(
        "prompt_to_prompt",
        wb.prompt_to_prompt,
        dict(model=kit.model, source="a zebra", target="a lion", self_resolution=1.0),
        dict(
            model=NOTHING,
            source=WORD,
            target=NAMES,
            kind=NOTHING,
            cross_replace_steps=SHARE,
            self_replace_steps=SHARE,
            self_resolution=SHARE - kind("0"),
            reweight=NONE | kind("{'a': 1}"),
            blend=NONE,
        ),
    )
    yield Group(
        "invert",
        wb.invert,
        dict(model=kit.model, images=kit.image, prompts="a zebra", num_inference_steps=1, null_text=False),
        SETTINGS | dict(model=NOTHING, images=NOTHING, prompts=TEXTS, null_text=FLAG, inner_steps=COUNT | kind("0")),
    )
    yield Group(
        "Inversion.run",
        kit.inversion.run,
        dict(model=kit.model, progress=False),
        dict(
            model=NOTHING,
            worlds=NONE,
            num_inference_steps=NONE,
            guidance_scale=GUIDANCE,
            record=kind("[]"),
            batch_size=COUNT,
            progress=FLAG,
        ),
        {"worlds": "world", "record": "site"},
    )
    yield Group(
        "direction",
        wb.direction,
        dict(model=kit.model, positive="a", negative="b", sites="text_encoder.0.mlp"),
        RUN
        | dict(
            model=NOTHING, positive=WORD | kind("['qux']"), negative=WORD | kind("['qux']"), sites=NOTHING, pool=NOTHING
        ),
        {"sites": "site", "positive": "prompt", "negative": "prompt"},
    )
    found = kit.direction
    places = dict(tokens=POSITIONS | WORD, steps=STEPS, rows=NONE)
    yield Group(
        "Direction",
        wb.Direction,
        dict(components=found.components),
        dict(components=NOTHING, provenance=kind("{'a': 1}")),
    )
    yield Group("Direction[]", lambda site: found[site], {}, dict(site=NOTHING))
    yield Group("Direction.at", lambda sites: found.at(sites), {}, dict(sites=NOTHING), {"sites": "direction"})
    yield Group(
        "Direction.steer",
        found.steer,
        {},
        places | dict(strength=NUMBER, unit=FLAG, keep_norm=FLAG),
        {"strength": "direction"},
    )
    yield Group("Direction.remove", found.remove, {}, places | dict(beta=NUMBER, keep_norm=FLAG))
    yield Group("Direction * factor", lambda factor: found * factor, {}, dict(factor=NUMBER))
    yield Group("Direction / divisor", lambda divisor: found / divisor, {}, dict(divisor=NUMBER - kind("0")))
    yield Group("Direction + other", lambda other: found + other, {}, dict(other=NOTHING))
    yield Group("Direction - other", lambda other: found - other, {}, dict(other=NOTHING))
    yield Group("Direction.cosine", found.cosine, {}, dict(other=NOTHING))
    yield Group("Direction.save", found.save, {}, dict(path=WORD))
    yield Group("Direction.load", wb.Direction.load, {}, dict(path=NOTHING))


def of_experiments(kit: Kit) -> Iterator[Group]:
    quick = dict(seeds=(0,), num_inference_steps=1)
    trace, generate = (
        wb.TraceSpec(sites=("text_encoder.0.mlp",), draws=1, **quick),
        wb.LocoGenSpec(windows=((0, 1),), **quick),
    )
    common, prompts, prompt = dict(model=kit.model, scorer=brightness), dict(prompts=NOTHING), {"prompts": "prompt"}
    yield Group(
        "causal_trace",
        wb.causal_trace,
        common | dict(prompts="a zebra", spec=trace, subject="zebra"),
        EXPERIMENT | prompts | dict(spec=NONE, subject=NOTHING),
        prompt,
    )
    yield Group(
        "attribute",
        wb.attribute,
        dict(model=kit.model, prompts=kit.zebra, spec=wb.AttributionSpec(draws=1, **quick), scorer=kit.scorer),
        EXPERIMENT | prompts | dict(spec=NONE, subject=kind("''")),
        prompt,
    )
    yield Group(
        "screen",
        wb.screen,
        dict(
            model=kit.model,
            prompts=kit.zebra,
            spec=wb.ScreenSpec(best=1, verified=1, draws=1, **quick),
            scorer=kit.scorer,
            metric="similarity",
        ),
        EXPERIMENT | prompts | dict(spec=NONE, subject=kind("''"), metric=NOTHING),
        prompt,
    )
    yield Group(
        "faithfulness",
        wb.faithfulness,
        common
        | dict(
            prompts=kit.prompts,
            ranking=["unet.mid.cross", "unet.mid.self"],
            spec=wb.FaithfulnessSpec(draws=1, **quick),
        ),
        EXPERIMENT | prompts | dict(ranking=NOTHING, spec=NONE, subject=kind("''")),
        prompt | {"ranking": "site"},
    )
    yield Group(
        "recover",
        wb.recover,
        dict(
            model=kit.model,
            edit=kit.edit,
            prompts=kit.zebra,
            spec=wb.RecoverySpec(attacks=("completion",), **quick),
            scorer=kit.scorer,
        ),
        EXPERIMENT | prompts | dict(edit=NOTHING, spec=NONE, subject=kind("''")),
        prompt,
    )
    yield Group(
        "localizers",
        wb.localizers,
        {},
        dict(metric=WORD, scorer=NONE, folder=NONE | PATH, executor=NONE, batch_size=COUNT),
    )
    yield Group(
        "locogen",
        wb.locogen,
        common | dict(prompts="a zebra", target="a lion", spec=generate),
        EXPERIMENT | dict(prompts=TEXTS, target=WORD | kind("' '"), spec=NONE, subject=kind("''")),
    )
    yield Group(
        "locogen_search",
        wb.locogen_search,
        common | dict(prompts=kit.prompts, spec=generate, metric="brightness"),
        EXPERIMENT | prompts | dict(spec=NONE, width=COUNT, keep=COUNT, metric=NOTHING, direction=NOTHING),
        prompt,
    )
    yield Group(
        "locogen_images",
        wb.locogen_images,
        dict(model=kit.model, prompt=kit.prompts[0], spec=generate),
        dict(model=NOTHING, prompt=NOTHING, spec=NONE, batch_size=COUNT),
    )
    yield Group(
        "compare_localizers",
        wb.compare_localizers,
        common
        | dict(
            prompts=kit.prompts, spec=wb.TraceSpec(sites=("unet.mid.cross",), draws=1, **quick), metric="brightness"
        ),
        EXPERIMENT | prompts | dict(spec=NONE, localizers=NONE, metric=NOTHING),
        prompt,
    )
    yield Group(
        "attention_contribution",
        wb.attention_contribution,
        dict(model=kit.model, prompts=kit.prompts, spec=wb.AttentionSpec(**quick)),
        prompts | dict(model=NOTHING, spec=NONE, folder=NONE | PATH, executor=NONE, batch_size=COUNT),
        prompt,
    )
    yield Group(
        "attention_maps",
        wb.attention_maps,
        dict(model=kit.model, worlds="a zebra", num_inference_steps=1, sites="unet.mid.cross"),
        RUN | dict(model=NOTHING, worlds=TEXTS, sites=NONE, bins=COUNT, images=NONE, step=NONE),
        {"sites": "site"},
    )
    yield Group(
        "concept_attention",
        wb.concept_attention,
        dict(model=kit.joint, worlds="a zebra", concepts=["zebra", "beach"], num_inference_steps=1),
        RUN | dict(model=NOTHING, worlds=TEXTS, concepts=TEXTS, sites=NONE, bins=COUNT, images=NONE, step=NONE),
        {"sites": "site"},
    )
    yield Group(
        "head_relevance",
        wb.head_relevance,
        dict(
            model=kit.model,
            prompts="a zebra",
            concepts={"a": "zebra", "b": "winter"},
            sites="unet.mid.cross",
            num_inference_steps=1,
        ),
        RUN | dict(model=NOTHING, prompts=TEXTS, concepts=NOTHING, sites=NOTHING),
        {"sites": "site"},
    )
    wordings = [wb.Prompt("a zebra", "zebra", replacement="lion"), wb.Prompt("two zebra", "zebra", replacement="lion")]
    yield Group(
        "probe",
        wb.probe,
        dict(
            model=kit.model,
            prompts=wb.PromptSet("wordings", wordings),
            sites="unet.mid.cross",
            num_inference_steps=1,
        ),
        RUN | prompts | dict(model=NOTHING, sites=NOTHING, tokens=TEXT, joint=FLAG, ridge=POSITIVE),
        prompt | {"sites": "site"},
    )
    yield Group(
        "diffusion_lens",
        wb.diffusion_lens,
        dict(model=kit.model, prompt="a zebra", num_inference_steps=1),
        RUN | dict(model=NOTHING, prompt=TEXT, encoder=NOTHING),
    )
    steer = dict(model=kit.model, prompts=kit.prompts, direction=kit.direction, concept=kit.concept, scorer=kit.scorer)
    kinds = EXPERIMENT | dict(prompts=TEXTS, direction=NOTHING, concept=NOTHING, spec=NONE)
    yield Group("steer_sweep", wb.steer_sweep, steer | dict(spec=wb.SweepSpec(strengths=(1.0,), **quick)), kinds)
    yield Group("steer_search", wb.steer_search, steer | dict(spec=wb.SearchSpec(trials=1, **quick)), kinds)
    yield Group(
        "adaptive_strength",
        wb.adaptive_strength,
        steer | dict(spec=wb.AdaptiveSpec(rounds=1, **quick)),
        kinds | dict(strengths=NONE),
        {"strengths": "direction"},
    )
    shown = dict(results=kit.trace, model=kit.model)
    own = dict(results=NOTHING, model=NONE, direction=NONE)
    yield Group("explore", wb.explore, shown, own)
    yield Group(
        "gallery",
        wb.gallery,
        shown | dict(path=kit.folder / "page.html"),
        own | dict(path=kind("'qux'"), pictures=INTEGER),
    )
    yield Group("open_results", wb.open_results, {}, dict(folder=NOTHING))


def of_edits(kit: Kit) -> Iterator[Group]:
    model, edit, sites = kit.model, kit.edit, "unet.mid.cross.k"
    concepts = dict(model=model, concepts={"a zebra": "a lion"}, sites=sites)
    solver = dict(
        lam_v=NONE | NOT_NEGATIVE,
        templates=NOTHING,
        tokens=POSITIONS - NONE,
        average=FLAG,
        weight=POSITIVE,
        preserve=NAMES | kind("[]"),
        preserve_tokens=POSITIONS | NAMES,
        preserve_weight=NOT_NEGATIVE,
        preservation=NOTHING,
        corpus=NONE,
        retain=NOT_NEGATIVE,
        rank=NONE | COUNT,
        runs=NONE,
        editor=TEXT,
    )
    kinds = dict(model=NOTHING, concepts=NOTHING, sites=NONE, lam=NOT_NEGATIVE)
    named = {"sites": "site"}
    yield Group("edit.from_concepts", wb.edit.from_concepts, concepts | dict(lam=1.0), kinds | solver, named)
    for name in ("locoedit", "diff_quickfix", "time_edit", "uce"):
        yield Group(f"edit.{name}", getattr(wb.edit, name), concepts, kinds, named)
    yield Group(
        "edit.rome",
        wb.edit.rome,
        concepts | dict(corpus=wb.edit.moments_of(model, ["a zebra", "a lion"]).floored(1e-3)),
        kinds | dict(lam=NOT_NEGATIVE, corpus=NOTHING),
        named,
    )
    yield Group(
        "edit.swap",
        wb.edit.swap,
        dict(model=model, first="a zebra", second="a lion", sites=sites),
        dict(model=NOTHING, first=WORD, second=WORD, sites=NONE, lam=NOT_NEGATIVE),
        named,
    )
    yield Group(
        "edit.speed",
        wb.edit.speed,
        concepts | dict(preserve=["a car", "a cow"]),
        kinds
        | {name: solver[name] for name in ("templates", "tokens", "retain", "preserve_tokens")}
        | dict(preserve=NAMES, rank=NONE | COUNT, augment=COUNT | kind("0"), seed=COUNT | kind("0")),
        named,
    )
    projected = dict(
        sites=NONE,
        rank=NONE | COUNT,
        templates=NONE,
        tokens=POSITIONS - NONE,
        corpus=NONE | TEXTS,
        floor=NOT_NEGATIVE | kind("inf"),
        runs=NONE,
    )
    right = dict(model=model, sites=sites, templates="{}", corpus=["a car"])
    for name, words in (("oblique", ("concept", "guide")), ("reflect", ("first", "second"))):
        yield Group(
            f"edit.{name}",
            getattr(wb.edit, name),
            right | dict(zip(words, ("a zebra", "a lion"))),
            dict(model=NOTHING)
            | dict.fromkeys(words, WORD)
            | projected
            | (dict(resist=NOT_NEGATIVE | kind("inf")) if name == "oblique" else {}),
            named,
        )
    yield Group(
        "edit.erase",
        wb.edit.erase,
        dict(model=model, concept="a zebra", guide="a lion", sites=sites),
        dict(
            model=NOTHING,
            concept=WORD,
            guide=WORD | kind("['qux']"),
            sites=NONE,
            rank=COUNT,
            resist=NOT_NEGATIVE | kind("inf"),
            keep=NAMES | kind("[]"),
            similarity=SHARE - kind("0"),
            scorer=NONE,
            num_inference_steps=NONE | COUNT,
            batch_size=COUNT,
            runs=NONE,
        ),
        named,
    )
    runs = SETTINGS | dict(seeds=SEEDS, steps=STEPS, batch_size=COUNT)
    yield Group("edit.KeyRuns", wb.edit.KeyRuns, {}, runs)
    pairs = {"a car at night": "a red car at night"}
    case = wb.edit.EditCase("a car", "a red car", pairs, {"a house": "a red house"})
    yield Group(
        "edit.EditCase",
        wb.edit.EditCase,
        dict(old="a car", new="a red car", positives=pairs, negatives=pairs),
        dict(old=WORD, new=WORD, positives=NOTHING, negatives=NOTHING),
    )
    yield Group("edit.read_cases", wb.edit.read_cases, {}, dict(path=NONE | kind("'qux'", "folder")))
    yield Group(
        "edit.score_cases",
        wb.edit.score_cases,
        dict(
            model=model,
            editor=lambda model, old, new: kit.edit,
            cases=case,
            scorer=kit.scorer,
            seeds=(0,),
            num_inference_steps=1,
        ),
        EXPERIMENT | SETTINGS | dict(editor=NOTHING, cases=NONE, seeds=SEEDS),
    )
    table = pd.DataFrame(
        [dict(case=0, measure=each, unedited=0, edited=1) for each in ("efficacy", "generality", "specificity")]
    )
    yield Group("edit.case_table", wb.edit.case_table, dict(rows=table), dict(rows=NOTHING))
    yield Group(
        "edit.neurons",
        wb.edit.neurons,
        concepts | dict(count=1),
        kinds | dict(count=COUNT, templates=NOTHING, tokens=POSITIONS - NONE, runs=NONE),
        named,
    )
    yield Group(
        "edit.embedding_swap",
        wb.edit.embedding_swap,
        dict(model=model, first="zebra", second="lion"),
        dict(model=NOTHING, first=NOTHING, second=NOTHING),
        dict.fromkeys(("first", "second"), "embedding_swap"),
    )
    yield Group(
        "edit.textual_inversion",
        wb.edit.textual_inversion,
        dict(model=model, word="zebra", images=[kit.image], updates=1, batch_size=1),
        dict(
            model=NOTHING,
            word=WORD,
            images=NOTHING,
            templates=NOTHING,
            updates=COUNT,
            batch_size=COUNT,
            lr=POSITIVE - kind("1e30", "10**30"),
            seed=SEED,
        ),
    )
    yield Group(
        "edit.moments_of",
        wb.edit.moments_of,
        dict(model=model, prompts="a zebra"),
        dict(model=NOTHING, prompts=TEXTS, source=NOTHING, runs=NONE),
    )
    yield Group(
        "edit.solve",
        wb.edit.solve,
        dict(keys=torch.eye(3)[:2], lam=1.0),
        dict(
            keys=kind("tensor", "[[2]]"),
            lam=NOT_NEGATIVE,
            weight=POSITIVE,
            preserved=NONE,
            preserve_weight=NOT_NEGATIVE,
            preservation=NOTHING,
            moments=NONE,
            retain=NOT_NEGATIVE,
            fixed=NONE,
        ),
    )
    yield Group(
        "edit.update_of",
        wb.edit.update_of,
        dict(model=model, name=sites, b=[[1.0]], a=[[1.0]]),
        dict(model=NOTHING, name=NOTHING, b=kind("[[2]]"), a=kind("[[2]]")),
        {"name": "site"},
    )
    yield Group("edit.Edit", wb.Edit, dict(updates=edit.updates), dict(updates=NOTHING, provenance=kind("{'a': 1}")))
    update = vars(edit.updates[0])
    yield Group(
        "edit.Update",
        wb.edit.Update,
        dict(update),
        dict(
            site=WORD,
            module=WORD,
            b=kind("tensor") - kind("tensor"),
            a=NOTHING,
            base=NOTHING,
            dtype=NOTHING,
            family=WORD,
        ),
    )
    yield Group(
        "edit.Moments",
        wb.edit.Moments,
        dict(total=torch.eye(3), count=3),
        dict(total=kind("[[2]]"), count=COUNT | kind("10**30")),
    )
    yield Group("edit.Moments.of", wb.edit.Moments.of, {}, dict(keys=kind("tensor", "[[2]]")))
    yield Group("edit.Moments.floored", wb.edit.Moments.of(torch.eye(3)).floored, {}, dict(share=NOT_NEGATIVE))
    for name, load in (("Edit", wb.Edit.load), ("Moments", wb.edit.Moments.load)):
        yield Group(f"edit.{name}.load", load, {}, dict(path=NOTHING))
    yield Group("edit.Edit.load", wb.Edit.load, dict(path=kit.folder / "edit.safetensors"), dict(model=NONE))
    yield Group("edit.Edit.at", lambda sites: edit.at(sites), {}, dict(sites=NOTHING), {"sites": "edit"})
    yield Group("edit.Edit * factor", lambda factor: edit * factor, {}, dict(factor=NUMBER))
    yield Group("edit.Edit + other", lambda other: edit + other, {}, dict(other=NOTHING))
    yield Group("edit.Edit.check", edit.check, dict(model=model), dict(model=NOTHING, base=FLAG))
    yield Group("edit.Edit.save", edit.save, {}, dict(path=WORD))
    yield Group(
        "edit.Edit.to_lora", edit.to_lora, dict(path=kit.folder / "l.safetensors"), dict(path=NOTHING, layout=NOTHING)
    )


def of_results(kit: Kit) -> Iterator[Group]:
    average = dict(over=NOTHING, level=kind("0.5", "np.float64(0.5)"), resamples=COUNT)
    yield Group(
        "effects", wb.effects, dict(trace=kit.trace, metric="brightness"), average | dict(trace=NOTHING, metric=NOTHING)
    )
    yield Group("strongest", wb.strongest, {}, dict(found=NOTHING))
    yield Group(
        "with_interval",
        wb.with_interval,
        dict(values=kit.effects, name="total_effect"),
        dict(values=NOTHING, name=NOTHING),
    )
    by = dict(metric=NOTHING, direction=NOTHING)
    yield Group("LocoGen", wb.LocoGen, {}, dict(data=NOTHING))
    found = dict(metric="brightness", width=1)
    ways = by | dict(width=NOTHING, inputs=NONE, heads=NONE, steps=NONE)
    yield Group("LocoGen.effects", kit.locogen.effects, found, average | by | dict(width=NONE))
    yield Group("LocoGen.best", kit.locogen.best, found, ways)
    yield Group("LocoGen.direct", kit.locogen.direct, found, ways)
    yield Group("LocoGen.chance", kit.locogen.chance, found, ways | dict(permutations=COUNT))
    yield Group("Sweep", wb.Sweep, {}, dict(data=NOTHING))
    yield Group("Sweep.effects", kit.sweep.effects, {}, average | dict(metric=NOTHING))
    yield Group("Sweep.table", kit.sweep.table, {}, dict(concept=NOTHING, fidelity=NOTHING))
    yield Group("Search.best", kit.search.best, {}, dict(fidelity=kind("-1", "0")))
    faithful = wb.Faithfulness(kit.faithful)
    yield Group("Faithfulness", wb.Faithfulness, {}, dict(data=NOTHING))
    for name in ("curve", "areas"):
        own = dict(metric=NOTHING, level=average["level"], resamples=COUNT)
        yield Group(f"Faithfulness.{name}", getattr(faithful, name), {}, own)
    ends = dict(level=average["level"], resamples=COUNT)
    yield Group("Recovery", wb.Recovery, {}, dict(data=NOTHING))
    yield Group("Recovery.table", kit.recovered.table, {}, ends)
    asked = dict(attack=NOTHING, metric=NOTHING) | ends
    yield Group("Recovery.curve", kit.recovered.curve, dict(attack="completion"), asked)
    yield Group("Recovery.half_back", kit.recovered.half_back, {}, dict(attack=NOTHING))
    yield Group("Comparison.best", kit.comparison.best, dict(localizer="one"), dict(localizer=NOTHING, width=COUNT))
    yield Group("Comparison.table", kit.comparison.table, {}, ends)
    yield Group("Comparison.agreement", kit.comparison.agreement, {}, ends)
    phrase = {"phrase": "prompt"}
    yield Group("AttentionMaps.word", kit.maps.word, dict(phrase="zebra"), dict(phrase=NOTHING, sites=NOTHING), phrase)
    yield Group(
        "AttentionMaps.focus",
        kit.maps.focus,
        dict(phrase="zebra"),
        dict(phrase=NOTHING, sites=NOTHING, per_head=FLAG),
        phrase,
    )
    yield Group("AttentionMaps.sharpest", kit.maps.sharpest, {}, dict(phrase=NOTHING), phrase)
    concepts = wb.ConceptMaps(
        kit.maps.word("zebra").isel(head=[0]).rename(head="concept").assign_coords(concept=["a"]), None
    )
    yield Group("ConceptMaps.word", concepts.word, dict(concept="a"), dict(concept=NOTHING, sites=NOTHING))
    word = kit.maps.word("zebra")[0, 0, 0, 0, 0]
    yield Group(
        "mask_iou", wb.mask_iou, dict(maps=word, mask=np.ones(word.shape, bool)), dict(maps=NOTHING, mask=NOTHING)
    )


def of_plots(kit: Kit) -> Iterator[Group]:
    plot, effects = wb.plot, kit.effects
    drawn = dict(ax=NONE, title=NONE | TEXT)
    axes = dict(x="kind", y="layer")
    yield Group(
        "plot.heatmap",
        plot.heatmap,
        axes | dict(effects=effects),
        drawn | dict(effects=NOTHING, x=NOTHING, y=NOTHING, value=NONE, limit=NONE | POSITIVE),
    )
    yield Group("plot.profile", plot.profile, dict(effects=effects), drawn | dict(effects=NOTHING, value=NONE))
    yield Group("plot.image_grid", plot.image_grid, dict(images=kit.run), drawn | dict(images=NOTHING))
    concepts = wb.ConceptMaps(
        kit.maps.word("zebra").isel(head=[0]).rename(head="concept").assign_coords(concept=["a"]), None
    )
    yield Group("ConceptMaps.word", concepts.word, dict(concept="a"), dict(concept=NOTHING, sites=NOTHING))
    word = kit.maps.word("zebra")[0, 0, 0, 0, 0]
    yield Group(
        "plot.overlay",
        plot.overlay,
        dict(image=kit.image, word_map=word),
        drawn | dict(image=NOTHING, word_map=NOTHING),
    )
    yield Group("plot.ranks", plot.ranks, dict(comparison=kit.comparison), drawn | dict(comparison=NOTHING))
    yield Group("plot.agreement", plot.agreement, dict(comparison=kit.comparison), drawn | dict(comparison=NOTHING))
    yield Group("plot.recovery", plot.recovery, dict(recovery=kit.recovered), drawn | dict(recovery=NOTHING))
    yield Group(
        "plot.recovery_curve",
        plot.recovery_curve,
        dict(recovery=kit.recovered, attack="completion"),
        drawn | dict(recovery=NOTHING, attack=NOTHING),
    )
    table = kit.sweep.table()
    yield Group(
        "plot.frontier",
        plot.frontier,
        dict(table=table, concept="concept_similarity", fidelity="similarity"),
        drawn | dict(table=NOTHING, concept=NOTHING, fidelity=NOTHING, by=NONE),
    )
    yield Group(
        "plot.activation_difference",
        plot.activation_difference,
        dict(directions={"a": kit.direction}),
        drawn | dict(directions=NOTHING),
    )
