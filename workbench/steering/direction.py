"""Directions: the difference that a concept makes to activations, as a value to add, compare and steer with.

    winter = wb.direction(model, ["a zebra in winter", ...], ["a zebra in summer", ...], "text_encoder.*.mlp")
    model.run([World("plain", text), World("winter", text, winter.steer(1.0, unit=True))])

Turner et al. 2023 (arXiv 2308.10248) and Rimsky et al. 2023 (arXiv 2312.06681) for text; Gaintseva et al. 2025, CASteer
(arXiv 2503.09630) for cross-attention outputs.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from einops import rearrange

from workbench import files, schema
from workbench.arguments import checked, instance_of, one_of, warn
from workbench.engine import Fold, text_values
from workbench.engine.plan import resolve_steps
from workbench.inputs import number, several, shown, strings
from workbench.interventions import Intervention, Rows, Steps, World, as_steps, remove, steer, window
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompt
from workbench.schema import site_names, tokens
from workbench.sites import Site
from workbench.text import Tokens, tokens_of

Pool = Literal["own", "subject_last", "eos", "positions"]
Schedule = Steps | Mapping[Steps, float]
DIRECTION = instance_of("workbench.steering.direction:Direction")


def some_prompts(value: Any, argument: str) -> tuple[Prompt, ...]:
    """Texts or `Prompt`s of one side, at least one."""
    fix = "give prompts, as texts or wb.Prompt(...)s, at least one on each side"
    given = (value,) if isinstance(value, (str, Prompt)) else several(value, argument, fix)
    found = tuple(each if isinstance(each, Prompt) else Prompt(*strings(each, argument)) for each in given)
    if not found:
        raise ValueError(f"{argument}={shown(value)}: {fix}")
    return found


def strength_of_sites(value: Any, argument: str) -> float | dict[str, float]:
    """A number, or one for each glob of sites."""
    if not isinstance(value, Mapping):
        return number(value, argument)
    return {site_names(glob, argument)[0]: number(each, f"{argument}[{glob!r}]") for glob, each in value.items()}


@dataclass(frozen=True, eq=False)
class Component:
    """A direction at one site.

    vectors: (row, channel), float32 on the CPU. axis: what the rows are: one that is "pooled", or each "token" or "step".
    norm: mean norm of an activation there, over the prompts of both sides. error: standard error of the vectors, as a root mean
    square over the rows, from the spread of pairs of prompts, or of both sides where prompts do not come in pairs.
    """

    site: str
    axis: str
    vectors: torch.Tensor
    norm: float
    error: float

    @property
    def length(self) -> float:
        """Root mean square, over the rows, of the vectors' norms."""
        return self.vectors.norm(dim=1).square().mean().sqrt().item()


@dataclass(frozen=True, eq=False)
class Direction:
    """A difference of means at some sites, labelled; make it with `workbench.direction`.

    `direction[site]` is a labelled array ([token or step,] channel). `a + b`, `a - b`, `2 * a` and `-a` are directions too;
    those of one model and the same pooling add. provenance: prompts and settings, as JSON holds them.

    >>> len(winter.sites), dict(winter["text_encoder.0.mlp"].sizes)
    (12, {'channel': 96})
    >>> colder = 2 * winter - winter / 2
    >>> round(colder.components[0].length / winter.components[0].length, 3)
    1.5
    """

    components: tuple[Component, ...]
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        fix = "make a direction with wb.direction(model, positive, negative)"
        object.__setattr__(self, "components", several(self.components, "components", fix))
        if not self.components or not all(isinstance(each, Component) for each in self.components):
            raise ValueError(f"components={shown(self.components)}: {fix}")
        object.__setattr__(self, "provenance", schema.mapping(self.provenance, "provenance"))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of its sites, in the order of the model."""
        return tuple(component.site for component in self.components)

    @property
    def digest(self) -> str:
        """SHA-256 of its vectors and where they are."""
        parts = [
            f"{c.site} {c.axis} {tuple(c.vectors.shape)} {c.norm}".encode() + c.vectors.numpy().tobytes()
            for c in self.components
        ]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def __getitem__(self, site: str) -> xr.DataArray:
        (found,) = self.at(site).components
        vectors = found.vectors.numpy()
        return (
            xr.DataArray(vectors[0], dims="channel")
            if found.axis == "pooled"
            else xr.DataArray(vectors, dims=(found.axis, "channel"))
        )

    def at(self, *sites: str) -> "Direction":
        """The part at some sites, by globs; raises KeyError for a glob that matches none.

        >>> winter.at("text_encoder.[01].mlp").sites
        ('text_encoder.0.mlp', 'text_encoder.1.mlp')
        """
        site_names(sites)
        if lost := [glob for glob in sites if not any(fnmatch(name, glob) for name in self.sites)]:
            raise KeyError(f"the direction has nothing at {lost}; its sites are {', '.join(self.sites)}")
        return replace(self, components=[c for c in self.components if any(fnmatch(c.site, glob) for glob in sites)])

    def averaged(self) -> "Direction":
        """One vector for each site, the mean over its tokens or steps.

        >>> texts = ["a zebra in winter"], ["a zebra in summer"]
        >>> placed = wb.direction(model, *texts, "text_encoder.0.mlp", pool="positions")
        >>> placed["text_encoder.0.mlp"].dims, placed.averaged()["text_encoder.0.mlp"].dims
        (('token', 'channel'), ('channel',))
        """
        pooled = [replace(c, axis="pooled", vectors=c.vectors.mean(0, keepdim=True)) for c in self.components]
        return Direction(pooled, {"averaged": self.provenance})

    def __mul__(self, factor: float) -> "Direction":
        factor = number(factor, "factor")
        scaled = [replace(c, vectors=factor * c.vectors, error=abs(factor) * c.error) for c in self.components]
        return Direction(scaled, {"scaled": factor, "of": self.provenance})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Direction":
        if not (divisor := number(divisor, "divisor")):
            raise ValueError("divisor=0: a direction is not divided by 0")
        return self * (1 / divisor)

    def as_interventions(self) -> tuple[Intervention, ...]:
        """What it stands for where interventions are meant: itself, added once.

        >>> winter.as_interventions() == winter.steer()
        True
        """
        return self.steer()

    def __neg__(self) -> "Direction":
        return -1 * self

    @checked(other=DIRECTION)
    def __sub__(self, other: "Direction") -> "Direction":
        return self + -other

    @checked(other=DIRECTION)
    def __add__(self, other: "Direction") -> "Direction":
        """Both at once; raises ValueError for vectors of another shape at a site that both have."""
        mine = {component.site: component for component in self.components}
        for theirs in other.components:
            if (ours := mine.get(theirs.site)) is None:
                mine[theirs.site] = theirs
                continue
            if (ours.axis, ours.vectors.shape) != (theirs.axis, theirs.vectors.shape):
                raise ValueError(
                    f"directions at {theirs.site} do not add: one is {_shape(ours)}, the other {_shape(theirs)}; make both "
                    "from the same model with the same pool= and num_inference_steps="
                )
            mine[theirs.site] = replace(
                ours,
                vectors=ours.vectors + theirs.vectors,
                norm=(ours.norm + theirs.norm) / 2,
                error=(ours.error**2 + theirs.error**2) ** 0.5,
            )
        return Direction(mine.values(), {"sum": [self.provenance, other.provenance]})

    @checked(other=DIRECTION)
    def cosine(self, other: "Direction") -> pd.Series:
        """Cosine similarity to another direction at each site that both have; NaN where one is zero.

        >>> winter.cosine(-winter).round(3).head(2).to_dict()
        {'text_encoder.0.mlp': -1.0, 'text_encoder.1.mlp': -1.0}
        """
        theirs, found = {component.site: component for component in other.components}, {}
        for ours in self.components:
            if (other_one := theirs.get(ours.site)) is not None:
                if ours.vectors.shape != other_one.vectors.shape:
                    raise ValueError(
                        f"directions at {ours.site} do not compare: one is {_shape(ours)}, the other {_shape(other_one)}; "
                        "make both with the same pool= and num_inference_steps="
                    )
                a, b = ours.vectors.double().flatten(), other_one.vectors.double().flatten()
                found[ours.site] = (a @ b / (a.norm() * b.norm())).item() if a.norm() and b.norm() else float("nan")
        if not found:
            raise ValueError(f"the directions share no site: {', '.join(self.sites)} and {', '.join(other.sites)}")
        return pd.Series(found, name="cosine")

    def table(self) -> pd.DataFrame:
        """One row for each site: shape, length of the vectors and their standard error in multiples of the activations' mean norm.

        >>> list(winter.table())
        ['site', 'rows', 'channels', 'mean_norm', 'relative_length', 'relative_error']
        """
        return pd.DataFrame(
            [
                dict(
                    site=c.site,
                    rows=f"{c.axis}: {len(c.vectors)}",
                    channels=c.vectors.shape[1],
                    mean_norm=c.norm,
                    relative_length=c.length / c.norm,
                    relative_error=c.error / c.norm,
                )
                for c in self.components
            ]
        )

    def __repr__(self):
        zero = " (zero)" if not any(c.vectors.any() for c in self.components) else ""
        counts = " and ".join(
            f"{len(self.provenance[side])} {side}" for side in ("positive", "negative") if side in self.provenance
        )
        with pd.option_context(
            "display.max_rows", 12, "display.max_columns", None, "display.width", 160, "display.precision", 3
        ):
            return f"direction{zero} at {len(self.sites)} sites{f', from {counts} prompts' if counts else ''}\n{self.table()}"

    def _repr_html_(self):
        return f"<p>{escape(repr(self).splitlines()[0])}</p>{self.table().to_html(float_format='%.3g')}"

    @checked(strength=strength_of_sites, tokens=tokens)
    def steer(
        self,
        strength: float | Mapping[str, float] = 1.0,
        *,
        unit: bool = False,
        keep_norm: bool = False,
        tokens=None,
        steps: Schedule = None,
        rows: Rows | None = None,
    ) -> tuple[Intervention, ...]:
        """Interventions that add the direction: strength * vectors, at all its sites.

        strength: one number, or one for each glob of sites, only those then. unit: the vectors are first brought to the site's mean
        activation norm (a token's relative to the others kept, a step's by itself), so that strengths of sites compare.
        keep_norm: every activation keeps its norm. tokens: only at these; of a direction by tokens, only theirs. steps: as
        everywhere, or a schedule {steps: factor}, {wb.window(0.0, 0.5): 2.0} for instance; sites of the denoiser only. rows: the default
        is every intervention's, `wb.steer`'s too: the conditional half for what comes from the text, both halves for the denoiser's
        own states, as CASteer's published code has it.

        Raises KeyError for a glob that matches no site, ValueError for a unit of a zero vector.

        >>> text = "a zebra in the savanna"
        >>> first = winter.steer({"text_encoder.0.mlp": 1.0}, unit=True, tokens="subject")
        >>> run = model.run([wb.World("plain", text), wb.World("winter", text, first, subject="zebra")])
        >>> run.fired
        {('winter', 0): 1}
        """
        by_site = strength if isinstance(strength, Mapping) else dict.fromkeys(self.sites, strength)
        found: dict[str, list[Intervention]] = {}
        for glob, factor_of_site in by_site.items():
            for c in self.at(glob).components:
                found[c.site] = []
                for vector, row, factor, when in _laid_out(c, steps):
                    alpha = factor_of_site * factor * (_unit(c, row) if unit else 1.0)
                    found[c.site].append(
                        steer(c.site, vector, alpha, keep_norm=keep_norm, tokens=tokens, steps=when, rows=rows)
                    )
        return tuple(made for site in self.sites for made in found.get(site, ()))

    @checked(beta=number, tokens=tokens)
    def remove(
        self,
        beta: float = 1.0,
        *,
        keep_norm: bool = True,
        tokens=None,
        steps: Schedule = None,
        rows: Rows | None = None,
    ) -> tuple[Intervention, ...]:
        """Interventions that take -beta relu(<x, v>) v, v at unit norm, from every activation x, which keeps its norm (CASteer).

        >>> warmer = winter.at("text_encoder.0.mlp").remove(2.0)
        >>> model.run(wb.World("warmer", "a zebra in winter", warmer)).fired
        {('warmer', 0): 1}
        """
        return tuple(
            remove(c.site, vector, beta * factor, keep_norm=keep_norm, tokens=tokens, steps=when, rows=rows)
            for c in self.components
            for vector, _, factor, when in _laid_out(c, steps)
        )

    @checked
    def save(self, path: str | Path):
        """Write a safetensors file: vectors, and in its metadata sites, norms and provenance.

        >>> winter.save("winter.safetensors")
        >>> wb.Direction.load("winter.safetensors").digest == winter.digest
        True
        """
        about = [dict(site=c.site, axis=c.axis, norm=c.norm, error=c.error) for c in self.components]
        files.write(
            Path(path),
            "direction",
            {c.site: c.vectors for c in self.components},
            {"components": about, "provenance": self.provenance},
        )

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Direction":
        """Read what `save` wrote; raises FileNotFoundError, and ValueError for a file that is no direction or was altered.

        >>> winter.save("winter.safetensors")
        >>> wb.Direction.load("winter.safetensors").sites[:2]
        ('text_encoder.0.mlp', 'text_encoder.1.mlp')
        """
        vectors, about = files.read(Path(path), "direction")
        return cls(
            [Component(**entry, vectors=vectors[entry["site"]]) for entry in about["components"]], about["provenance"]
        )


@checked(positive=some_prompts, negative=some_prompts, pool=one_of("own", "subject_last", "eos", "positions"))
def direction(
    model: Model,
    positive: str | Prompt | Sequence[str | Prompt],
    negative: str | Prompt | Sequence[str | Prompt],
    sites: str | Iterable[str | Site] = "text_encoder*.*.mlp",
    *,
    pool: Pool = "own",
    seeds: Sequence[int] = (0,),
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> Direction:
    """Mean activation under the positive prompts minus that under the negative ones, at sites of the text encoder or the UNet.

    pool, for the text encoder: "own" averages over a prompt's own tokens, between start and end; "subject_last" takes the
    last token of a `Prompt`'s subject; "eos" the end token; "positions" keeps every position. For the UNet, activations of
    the conditional half are averaged over pixels (or tokens) and kept for each step; every prompt runs from every seed.
    Directions of the text encoder never run the denoiser. Equally many prompts on both sides count as pairs, in order, which
    only matters for the standard errors.

    Raises KeyError for a glob that matches no site, ValueError for prompts that the pooling does not fit, and warns when both
    sides are the same prompts: their direction is zero.

    >>> positive, negative = wb.prompt_pairs("winter")
    >>> winter = wb.direction(model, positive, negative, "text_encoder.{0,1}.mlp", pool="positions")
    >>> winter.sites, dict(winter["text_encoder.0.mlp"].sizes)
    (('text_encoder.0.mlp', 'text_encoder.1.mlp'), {'token': 32, 'channel': 96})
    >>> unet = wb.direction(model, positive[:2], negative[:2], "unet.mid.cross")
    >>> dict(unet["unet.mid.cross"].sizes)
    {'step': 2, 'channel': 96}
    """
    given = {"positive": list(some_prompts(positive, "positive")), "negative": list(some_prompts(negative, "negative"))}
    chosen = model.sites(*site_names(sites))
    steerable = lambda site: site.part in ("text", "denoiser") and site.port != "context" and "channel" in site.axes
    if wrong := [site.name for site in chosen if not steerable(site)]:
        raise ValueError(
            f"direction(sites=): {', '.join(wrong[:3])} cannot be steered; name sites of the text encoder or the UNet that "
            'have channels, such as "text_encoder.*.mlp" or "unet.*.cross"'
        )
    text, unet = ([s for s in chosen if (s.part == "text") == wanted] for wanted in (True, False))
    same = Counter(given["positive"]) == Counter(given["negative"])
    if same:
        warn("direction: positive= and negative= are the same prompts, so the direction is zero")
    at = {
        (tokenizer, prompt): _positions(tokens_of(model.pipeline, prompt.prompt, tokenizer), prompt, pool)
        for tokenizer in dict.fromkeys(site.tokenizer for site in text if site.tokenizer)
        for side in given.values()
        for prompt in side
    }
    settings = dict(seeds=seeds, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    sums: dict[Site, Sums] = {site: Sums(*map(len, given.values())) for site in chosen}
    count = max(map(len, given.values()))
    with Bar(count, "direction", "pair") as bar:
        for some in (slice(start, start + batch_size) for start in range(0, count, batch_size)):
            unique = list(dict.fromkeys(given["positive"][some] + given["negative"][some]))
            rows = {side: [unique.index(prompt) for prompt in prompts[some]] for side, prompts in given.items()}
            if text:
                for site, values in text_values(model, [p.prompt for p in unique], text).items():
                    sums[site].add(rows, *_pooled(values, [at.get((site.tokenizer, p), ()) for p in unique], pool))
            if unet:
                for site, values, norms in _through_the_unet(model, unique, unet, batch_size, settings):
                    sums[site].add(rows, values, norms)
            bar.update(max(map(len, rows.values())))
    by_token = lambda site: pool == "positions" and "token" in site.axes
    axis = lambda site: "step" if site in unet else "token" if by_token(site) else "pooled"
    components = [sums[site].component(site.name, axis(site)) for site in chosen]
    about = {side: [p.prompt for p in prompts] for side, prompts in given.items()} | {"model": model.record}
    about |= ({"pool": pool} if text else {}) | (
        {name: value for name, value in settings.items() if value is not None} if unet else {}
    )
    return 0 * Direction(components, about) if same else Direction(components, about)


class Sums:
    """Running moments of one site's activations on both sides, and of their differences where prompts come in pairs."""

    def __init__(self, positive: int, negative: int):
        self.counts, self.paired = {"positive": positive, "negative": negative}, positive == negative
        self.first: dict[str, Any] = dict.fromkeys(self.counts, 0.0)  # tensors, once a value was added
        self.second: dict[str, Any] = {}
        self.norm = 0.0

    def add(self, rows: Mapping[str, Sequence[int]], values: torch.Tensor, norms: torch.Tensor):
        """rows: which values are a side's. values: (prompt, row, channel). norms: mean norm of each prompt's activations."""
        sides = {side: values.double()[at] for side, at in rows.items()}
        for side, value in sides.items():
            self.first[side] = self.first[side] + value.sum(0) / self.counts[side]
            self.norm += norms[rows[side]].sum().item() / self.counts[side] / 2
        for side, value in {"pair": sides["positive"] - sides["negative"]}.items() if self.paired else sides.items():
            self.second[side] = self.second.get(side, 0.0) + value.square().sum((0, 2))

    def component(self, site: str, axis: str) -> Component:
        vectors = self.first["positive"] - self.first["negative"]
        means, counts = self.first | {"pair": vectors}, self.counts | {"pair": self.counts["positive"]}
        squares: Any = 0.0
        for side, second in self.second.items():  # variance of a mean, summed over channels
            squares = squares + (second / counts[side] - means[side].square().sum(-1)).clamp(min=0) / max(
                counts[side] - 1, 1
            )
        return Component(site, axis, vectors.float(), self.norm, squares.mean().sqrt().item())


def _positions(tokens: Tokens, prompt: Prompt, pool: Pool) -> tuple[int, ...]:
    """Positions whose activations count."""
    if pool in ("own", "positions"):
        if tokens.end < 2:
            raise ValueError(
                f'direction(pool={pool!r}): the prompt {prompt.prompt!r} has no tokens of its own; leave it out, or give pool="eos"'
            )
        return tuple(range(1, tokens.end))
    if pool == "eos":
        return tokens.positions("eos")
    if pool == "subject_last":
        if not prompt.subject:
            raise ValueError(
                f'direction(pool="subject_last"): {prompt.prompt!r} names no subject; give wb.Prompt(text, subject)'
            )
        return tokens.positions("subject_last", prompt.subject)
    raise ValueError(f'pool={pool!r}: may be "own", "subject_last", "eos" or "positions"')


def _pooled(values: torch.Tensor, at: Sequence[tuple[int, ...]], pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (prompt, row, channel) of the chosen positions, with the mean norm of each prompt's."""
    if values.ndim == 2:  # a pooled vector, without tokens
        return values[:, None], values.norm(dim=-1)
    norms = torch.stack([value[list(where)].norm(dim=-1).mean() for value, where in zip(values, at)])
    if pool == "positions":
        return values, norms
    return torch.stack([value[list(where)].mean(0, keepdim=True) for value, where in zip(values, at)]), norms


def _through_the_unet(
    model: Model, prompts: Sequence[Prompt], sites: Sequence[Site], batch_size: int, settings: dict
) -> Iterator[tuple[Site, torch.Tensor, torch.Tensor]]:
    """Each site's means over pixels (prompt, step, channel), with the mean norm of each prompt's activations."""

    def means(held, step, worlds, value):
        value = rearrange(value, "row channel y x -> row (y x) channel") if value.ndim == 4 else value
        new = torch.cat([value.mean(1), value.norm(dim=-1).mean(1, keepdim=True)], -1)[
            :, None
        ]  # the norm as one channel more
        return new if held is None else torch.cat([held, new], 1)

    folds = [Fold(f"mean {site.name}", (site.name,), ("step", "channel"), means) for site in sites]
    run = model.run(
        [World(str(i), p.prompt) for i, p in enumerate(prompts)],
        record=folds,
        batch_size=batch_size,
        progress=False,
        **settings,
    )
    step_of = torch.tensor(model.calls(settings["num_inference_steps"]).step)
    for site, fold in zip(sites, folds):
        by_call = torch.from_numpy(run.values[fold.name].values).mean(1)  # over seeds
        values = torch.stack([by_call[:, step_of == step].mean(1) for step in step_of.unique()], 1)
        yield site, values[..., :-1], values[..., -1].mean(1)


def _unit(component: Component, row: int | None) -> float:
    """What brings a component's vectors, or one row of them, to the norm of the site's activations."""
    length = component.length if row is None else component.vectors[row].norm().item()
    if not length:
        raise ValueError(
            f"the direction at {component.site} is zero and has no unit; leave unit=False, or make it from prompts that differ"
        )
    return component.norm / length


def _laid_out(component: Component, steps: Schedule) -> Iterator[tuple[np.ndarray, int | None, float, tuple | None]]:
    """What is added when: vectors, the row they are, a factor, and the steps, of which those of a run of another length follow."""
    schedule = steps.items() if isinstance(steps, Mapping) else [(steps, 1.0)]
    for when, factor in schedule:
        chosen = as_steps(when)
        if component.axis != "step":
            yield (
                (component.vectors[0] if component.axis == "pooled" else component.vectors).numpy(),
                None,
                factor,
                chosen,
            )
            continue
        count = len(component.vectors)
        for step in resolve_steps(chosen, count):
            yield component.vectors[step].numpy(), step, factor, window(step / count, (step + 1) / count)


def _shape(component: Component) -> str:
    return f"{len(component.vectors)} {component.axis} x {component.vectors.shape[1]} channels"
