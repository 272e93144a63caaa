"""Localizers: every method as one function, (model, prompts, spec) -> scores (prompt, seed, layer), so that any may be compared.

    scores = wb.localizers()["attribution"](model, prompts, wb.TraceSpec(sites=("unet.*.cross",)))
    wb.compare_localizers(model, prompts, spec, localizers=wb.localizers() | {"mine": mine})

What a localizer is asked is a `TraceSpec`: the layers (its sites), the corruption, seeds, steps and guidance. A localizer that
cannot speak of these layers or prompts raises `Abstains` before anything is generated.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from workbench.arguments import checked
from workbench.experiments.executors import Executor
from workbench.experiments.forecast import answer_plans
from workbench.experiments.results import measured_by
from workbench.experiments.store import Store, as_store
from workbench.localize.attention import AttentionSpec, attention_contribution
from workbench.localize.attribution import NOISE, attribute
from workbench.localize.causal_trace import causal_trace
from workbench.localize.head_relevance import head_relevance, other_concepts
from workbench.localize.locogen import locogen
from workbench.localize.probing import probe, wordings
from workbench.localize.specs import AttributionSpec, LocoGenSpec, TraceSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.sites import Sites
from workbench.steps import WHOLE

Localizer = Callable[[Model, PromptSet, TraceSpec], xr.DataArray]
TIED = 1e-9  # margins of probes that differ by less do so by rounding
FOUR = ("causal tracing", "LocoGen", "low entropy", "contribution")  # that take any measure of images


class Abstains(ValueError):
    """What a localizer raises that cannot speak of the layers or prompts that it is asked about.

    >>> try:
    ...     wb.localizers()["LocoGen"](model, prompts, wb.TraceSpec(sites=("text_encoder.*.mlp",)))
    ... except wb.Abstains as error:
    ...     print(str(error)[:44])
    LocoGen speaks of cross-attention layers alo
    """


@checked
def localizers(
    *,
    metric: str = "probability",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> dict[str, Localizer]:
    """The localizers that come with the workbench, by name; each `(model, prompts, spec)` -> scores (prompt, seed, layer).

    Scores are larger for a layer that matters more, each localizer's in its own unit:

    - "causal tracing": indirect effect, restored - corrupted, of `metric` (`causal_trace`);
    - "LocoGen": direct effect of one cross-attention layer on `metric` (`locogen`);
    - "low entropy": 1 - entropy of the subject's map in a cross-attention layer (`attention_contribution`);
    - "contribution": norm of what the subject's tokens add there (`attention_contribution`);
    - "attribution": indirect effect to first order, of the picture's log-odds in nats (`attribute`);
    - "step attribution": the same of the noise that single steps predict, as a share (`attribute`, form="step");
    - "probing": held-out margin of a linear probe that tells the prompt from its replacement or target (`probe`);
    - "head relevance": heads of a cross-attention layer that answer to the subject, and not to words of other attributes, each
      counted by the share of calls in which it does (`head_relevance`).

    metric: of tracing and LocoGen. scorer, executor: as for `causal_trace`. folder: one subfolder for each experiment; probing and head
    relevance, which draw one or two images for each prompt and seed, keep none and are done here. batch_size: of images.
    A localizer raises `wb.Abstains` for layers or prompts that it cannot speak of.

    >>> spec = wb.TraceSpec(sites=("text_encoder.{0,1}.mlp",), seeds=(0,), draws=1)
    >>> scores = wb.localizers()["attribution"](model, prompts, spec)
    >>> dict(scores.sizes), scores.layer.values.tolist()
    ({'prompt': 2, 'seed': 1, 'layer': 2}, ['text_encoder.0.mlp', 'text_encoder.1.mlp'])
    """
    if scorer is not None:
        scorer = Measures.of(scorer)
    settings = dict(metric=metric, scorer=scorer, folder=folder, executor=executor, batch_size=batch_size)
    return {name: partial(localizer, **settings) for name, localizer in LOCALIZERS.items()}


def by_tracing(
    model: Model, prompts: PromptSet, spec: TraceSpec, *, metric: str, scorer, folder, executor, batch_size: int
):
    """Indirect effect of restoring each layer."""
    _one_place(prompts, spec, "causal tracing")
    measures = Measures.of(scorer, model)
    measures.require(metric, prompts, "metric")
    found = causal_trace(
        model,
        prompts,
        spec,
        scorer=measures,
        folder=as_store(folder).within("trace"),
        executor=executor,
        batch_size=batch_size,
    )
    by = measured_by(found, metric)
    return _scores((by.restored - by.corrupted).mean("draw"))


def by_locogen(
    model: Model, prompts: PromptSet, spec: TraceSpec, *, metric: str, scorer, folder, executor, batch_size: int
):
    """Direct effect of the target prompt at each layer."""
    layers = _cross_layers(model, spec, "LocoGen")
    if lacking := [prompt.prompt for prompt in prompts if not prompt.target]:
        raise Abstains(f"LocoGen needs a target, which {lacking[:3]} lack; give Prompt(..., target=...)")
    measures = Measures.of(scorer, model)
    measures.require(metric, prompts, "metric")
    numbers = [model.sites(model.family.layers).index(site) for site in layers]
    asked = LocoGenSpec(windows=tuple((number, 1) for number in numbers), **_common(spec))
    found = locogen(
        model,
        prompts,
        asked,
        scorer=measures,
        folder=as_store(folder).within("locogen"),
        executor=executor,
        batch_size=batch_size,
    )
    return _scores(found.direct(metric, width=1))


def by_attention(
    model: Model,
    prompts: PromptSet,
    spec: TraceSpec,
    *,
    name: str,
    metric: str,
    scorer,
    folder,
    executor,
    batch_size: int,
):
    """What a clean run's attention maps say of each layer."""
    layers = _cross_layers(model, spec, name)
    if any(not prompt.subject for prompt in prompts):
        raise Abstains(
            f"{name} looks at the subject's words, which a prompt does not name; give Prompt(..., subject=...)"
        )
    found = attention_contribution(
        model,
        prompts,
        AttentionSpec(**_common(spec)),
        folder=as_store(folder).within("attention"),
        executor=executor,
        batch_size=batch_size,
    )
    value = 1 - measured_by(found, "entropy").clean if name == "low entropy" else measured_by(found, name).clean
    return _scores(value).sel(layer=[site.name for site in layers])


def by_attribution(
    model: Model,
    prompts: PromptSet,
    spec: TraceSpec,
    *,
    form: str,
    metric: str,
    scorer,
    folder,
    executor,
    batch_size: int,
):
    """Indirect effect of each layer to first order."""
    name = "attribution" if form == "image" else "step attribution"
    _one_place(prompts, spec, name)
    if streams := [site.name for site in model.sites(*spec.sites) if site.stream]:
        raise Abstains(f"{name} cannot tell what a stream holds of its own: {', '.join(streams[:3])}; name components")
    asked = AttributionSpec(**{each.name: getattr(spec, each.name) for each in fields(TraceSpec)}, form=form)
    found = attribute(
        model,
        prompts,
        asked,
        scorer=None if form == "step" else scorer,
        folder=as_store(folder).within(name.replace(" ", "-")),
        executor=executor,
        batch_size=batch_size,
    )
    return _scores(measured_by(found, NOISE if form == "step" else asked.metric).attributed.mean("draw"))


def by_probing(
    model: Model, prompts: PromptSet, spec: TraceSpec, *, metric: str, scorer, folder, executor, batch_size: int
):
    """Held-out margin of a linear probe at each layer."""
    _one_place(prompts, spec, "probing")
    _single_layers(spec, "probing")
    (tokens,) = spec.tokens
    try:
        wordings(model, prompts, model.sites(*spec.sites), tokens)
    except ValueError as error:
        raise Abstains(f"probing: {error}") from None
    scores = probe(
        model, prompts, spec.sites, tokens=tokens, joint=spec.joint, batch_size=batch_size, **_common(spec)
    ).margin
    if scores.sizes["layer"] > 1 and (scores.max("layer") - scores.min("layer")).max() < TIED:
        raise Abstains(
            f"probing: tokens={tokens!r} are alike in all prompts, so that every layer tells the wordings equally well (margin "
            f"{float(scores.mean()):.2f}) and rounding would rank them; name later tokens, such as 'all', or vary what stands before"
        )
    return scores


def by_head_relevance(
    model: Model, prompts: PromptSet, spec: TraceSpec, *, metric: str, scorer, folder, executor, batch_size: int
):
    """How much of each layer's heads answers to the subject's words.

    The paper's vector says it of a concept (ten words of a kind, in pictures of anything); this of one prompt's words, in its own
    picture, among the attributes that the workbench knows.
    """
    layers = _cross_layers(model, spec, "head relevance")
    if model.family.joint:
        raise Abstains(
            "head relevance asks for keys of single words, which in joint attention do not follow from the text alone"
        )
    if model.family.given is not None:
        raise Abstains(
            "head relevance asks for keys of single words behind a start token, which T5 puts before no text"
        )
    _single_layers(spec, "head relevance")
    if any(not prompt.subject for prompt in prompts):
        raise Abstains(
            "head relevance looks at the subject's words, which a prompt does not name; give Prompt(..., subject=...)"
        )
    asked, names = [], [site.name for site in layers]
    for prompt in prompts:
        concepts = {"subject": [prompt.subject]} | other_concepts(prompts, prompt.subject)
        common = dict(sites=names, batch_size=batch_size) | _common(spec)
        asked.append(partial(head_relevance, model, prompt.prompt, concepts, **common))
    answer_plans("head relevance", asked)
    found = [ask().sel(concept="subject", drop=True).sum("head") for ask in asked]
    scores = xr.concat(found, dim="prompt").assign_coords(prompt=range(len(prompts)))
    return scores.rename(site="layer").transpose("prompt", "seed", "layer")


LOCALIZERS: Mapping[str, Callable[..., xr.DataArray]] = {
    "causal tracing": by_tracing,
    "LocoGen": by_locogen,
    "low entropy": partial(by_attention, name="low entropy"),
    "contribution": partial(by_attention, name="contribution"),
    "attribution": partial(by_attribution, form="image"),
    "step attribution": partial(by_attribution, form="step"),
    "probing": by_probing,
    "head relevance": by_head_relevance,
}


def is_own(localizer: Localizer) -> bool:
    """Whether a localizer is one of the workbench's, as `localizers` gives them."""
    known = {getattr(each, "func", each) for each in LOCALIZERS.values()}
    return getattr(localizer, "func", localizer) in known


def layers_of(model: Model, spec: TraceSpec) -> list[str]:
    """Names of what is scored: the spec's sites, and those of several text encoders together."""
    sites = model.sites(*spec.sites)
    return [site.name for site in sites] + (list(sites.joint()) if spec.joint and spec.window == 1 else [])


def _one_place(prompts: PromptSet, spec: TraceSpec, name: str):
    """Raise `Abstains` where a layer would have several scores, or a prompt none."""
    if len(spec.tokens) > 1 or spec.tokens == ("each",) or spec.steps != (WHOLE,) or spec.over:
        raise Abstains(
            f"{name} gives one score for each layer: tokens={spec.tokens}, steps={tuple(map(str, spec.steps))}, over={spec.over!r} "
            "ask for several; name one part of the prompt, leave steps and over out"
        )
    if any(not prompt.subject for prompt in prompts):
        raise Abstains(
            f"{name} corrupts the subject's words, which a prompt does not name; give Prompt(..., subject=...)"
        )


def _single_layers(spec: TraceSpec, name: str):
    """Raise `Abstains` where neighbours are asked about together."""
    if spec.window != 1:
        raise Abstains(
            f"{name} speaks of layers each by itself: window={spec.window} asks for neighbours; leave it at 1"
        )


def _cross_layers(model: Model, spec: TraceSpec, name: str) -> Sites:
    """The layers asked, for what speaks of cross-attention alone."""
    chosen = model.sites(*spec.sites)
    if other := [site.name for site in chosen if site not in model.sites(model.family.layers)]:
        raise Abstains(
            f"{name} speaks of cross-attention layers alone, not of {', '.join(other[:3])}; ask for {model.family.layers}"
        )
    return chosen


def _common(spec: TraceSpec) -> dict[str, Any]:
    return dict(seeds=spec.seeds, num_inference_steps=spec.num_inference_steps, guidance_scale=spec.guidance_scale)


def _scores(values: xr.DataArray) -> xr.DataArray:
    """(prompt, seed, layer), without what stands beside the axes."""
    # a layer has one place: its token in the text encoder, all of it in the denoiser
    plain = values.max([axis for axis in ("token", "steps") if axis in values.dims])
    plain = plain.drop_vars([name for name in plain.coords if name not in plain.dims])
    return plain.rename(site="layer").transpose("prompt", "seed", "layer")
