"""Sites: every value inside a model that can be read or changed, under a stable name.

    model.sites                                # the table, in execution order
    model.sites("unet.*.cross.{k,v}")          # a selection by glob; braces hold alternatives
    model.sites["unet.mid.cross"]              # one site by name
    model.sites("unet.*.cross").window(6, 2)   # two neighbouring cross-attention layers

A name says where a value is and which it is: `text_encoder.3.mlp`, `unet.up.1.1.cross.v`, `unet.mid.cross.probs`,
`unet.up.2.0.resnet`. Where one attention holds several transformer blocks (SDXL), the block's number stands before the
kind: `unet.mid.7.cross.v`. What a name says stands in the site's fields too: nothing reads it off the name.
"""

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

import pandas as pd
import torch
from diffusers import DiffusionPipeline

from workbench.arguments import checked
from workbench.families import family_of
from workbench.families.attention import check_attention
from workbench.families.base import IMAGE, LATENTS, PIXELS, POOLED, TEXT, Site
from workbench.inputs import count, plain, shown
from workbench.schema import without_braces
from workbench.weights import editable_weight

__all__ = ["IMAGE", "LATENTS", "PIXELS", "POOLED", "TEXT", "Site", "Sites", "find_sites", "weight_of"]


class Sites(Sequence[Site]):
    """Sites in execution order; call with globs to select, index with a name or a number."""

    def __init__(self, sites: Sequence[Site]):
        self._sites = tuple(sites)
        self._by_name = {site.name: site for site in self._sites}

    def __call__(self, *patterns: str) -> "Sites":
        """The sites that any of the globs matches, in execution order.

        A glob passes over sites that the denoiser never reads (`Site.read`); their own names select them.
        Raises KeyError with the nearest names for a glob that matches none.
        """
        if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
            raise TypeError(f"sites({wrong[0]!r}): give names or globs, such as 'unet.*.cross'")
        chosen: set[str] = set()
        alive = [site.name for site in self if site.read]
        for pattern in patterns:
            if pattern in self._by_name:
                chosen.add(pattern)
                continue
            names = {name for glob in without_braces(pattern) for name in fnmatch.filter(alive, glob)}
            if not names:
                raise KeyError(self._unknown(pattern))
            chosen |= names
        return Sites([site for site in self if site.name in chosen])

    def _unknown(self, pattern: str) -> str:
        near = difflib.get_close_matches(pattern, self._by_name, n=5, cutoff=0) or ["none"]
        return f"no site matches {pattern!r}; of {len(self)} sites the nearest are {', '.join(near)}"

    def where(self, **facts) -> "Sites":
        """The sites with these values of their fields: `sites.where(kind="cross", component="unet")`."""
        if unknown := sorted(set(facts) - set(Site.__dataclass_fields__)):
            raise TypeError(
                f"where({', '.join(unknown)}): a site has the fields {', '.join(Site.__dataclass_fields__)}"
            )
        return Sites([site for site in self if all(getattr(site, key) == value for key, value in facts.items())])

    def beside(self, site: Site, kind: str) -> Site:
        """The site of another kind at the same place; KeyError where there is none."""
        if not (found := self.where(place=site.place, kind=kind)):
            raise KeyError(f"at {site.place} there is no {kind}")
        return found[0]

    def joint(self) -> dict[str, "Sites"]:
        """Sites of several text encoders that lie at the same relative depth, by a name for them all; none with one encoder.

        SDXL's encoders say the same prompt twice, so that a state restored in one alone shows almost nothing. A layer of the
        first is joined by the nearest of each other: "text_encoders.3.mlp". Sites that the denoiser never reads are left out.
        """
        alive = [site for site in self if site.part == "text" and site.read]
        encoders = list(dict.fromkeys(site.component for site in alive))
        if len(encoders) < 2:
            return {}
        first, *others = encoders
        joints: dict[str, Sites] = {}
        for site in (site for site in alive if site.component == first):
            together = [site]
            for other in others:
                alike = [each for each in alive if each.component == other and each.kind == site.kind]
                alike = [each for each in alike if (each.depth is None) == (site.depth is None)]
                together += sorted(alike, key=lambda each: abs((each.depth or 0) - (site.depth or 0)))[:1]
            if len(together) > len(others):
                joints[site.name.replace(first, "text_encoders", 1)] = Sites(together)
        return joints

    @checked(start=partial(count, least=0), width=count)
    def window(self, start: int, width: int) -> "Sites":
        """`width` neighbours of this selection, from its number `start` on."""
        if start > len(self) - width:
            raise ValueError(
                f"window(start={start}, width={width}) does not fit {len(self)} sites: start may be 0 to {len(self) - width}"
            )
        return Sites(self._sites[start : start + width])

    def table(self) -> pd.DataFrame:
        """One row per site."""
        sized = ("axes", "sizes", "grid", "together")
        rows = [asdict(site) | {name: _by(getattr(site, name)) for name in sized} for site in self]
        return pd.DataFrame(rows, columns=list(Site.__dataclass_fields__)).astype({"heads": "Int64", "paper": "Int64"})

    def __getitem__(self, index: int | slice | str):
        if isinstance(index, str):
            if index not in self._by_name:
                raise KeyError(self._unknown(index))
            return self._by_name[index]
        number = plain(index)
        if not isinstance(index, slice) and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"sites[{shown(index)}]: give a site's name, such as 'unet.mid.cross', or its number")
        try:
            return self._sites[index]
        except IndexError:
            raise IndexError(f"sites[{number}]: there are {len(self)}, numbered from 0") from None

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __contains__(self, site: object) -> bool:
        return site in self._by_name if isinstance(site, str) else site in self._sites

    def __len__(self):
        return len(self._sites)

    def __eq__(self, other):
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self):
        return hash(self._sites)

    def __repr__(self):
        return self._shown().to_string()

    def _repr_html_(self):
        return self._shown().to_html()

    def _shown(self) -> pd.DataFrame:
        table = (
            self.table().drop(columns=["part", "component", "place", "item", "together", "from_text"]).astype(object)
        )
        return table.where(table.notna(), "")


def _by(sizes: tuple | None) -> str | None:
    if sizes is None:
        return None
    if sizes and isinstance(sizes[0], str):
        return " ".join(sizes)
    return " x ".join(map(str, sizes))


def weight_of(pipeline: DiffusionPipeline, site: Site) -> torch.nn.Parameter:
    """The weight of the linear layer (out, in) or embedding (token, channel) whose output a site is.

    Raises ValueError for a site that another kind of module gives, and for a weight that is not what the layer computes with; see
    `workbench.weights.editable_weight`.
    """
    try:
        check_attention(pipeline, site)
    except ValueError as error:
        raise ValueError(f"{site.name}: {error}") from None
    return editable_weight(pipeline, site.module if site.port == "output" else "", site.name)


def find_sites(pipeline: DiffusionPipeline, height: int | None = None, width: int | None = None) -> Sites:
    """All sites of a pipeline, in execution order; sizes at that resolution in pixels, the pipeline's own when left out."""
    family = family_of(pipeline)
    own = family.size(pipeline)
    return Sites(family.sites(pipeline, height or own[0], width or own[1]))
