"""`Edit`: a low-rank change of weights as data, to be previewed, committed, undone, added, scaled, saved and exported."""

import fnmatch
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from workbench import files
from workbench.interventions import Intervention, map_input
from workbench.sites import weight_of


@dataclass(frozen=True, eq=False)
class Update:
    """The change b @ a of one weight.

    site: whose linear layer or embedding it is. module: its path in the pipeline. b: (out, rank), a: (rank, in), float32 on
    the CPU. base: SHA-256 of the weight that it was made for.
    """

    site: str
    module: str
    b: torch.Tensor
    a: torch.Tensor
    base: str

    def __post_init__(self):
        for name in ("b", "a"):
            value = getattr(self, name).detach().to("cpu", torch.float32).contiguous()
            object.__setattr__(self, name, value)
            if value.ndim != 2 or not value.numel():
                raise ValueError(
                    f"{self.site}: {name}= has shape {tuple(value.shape)}; give b (out, rank) and a (rank, in) of rank 1 or more"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"{self.site}: {name}= is not finite; raise lam= of the editor, or scale less")
        if self.b.shape[1] != self.a.shape[0]:
            raise ValueError(
                f"{self.site}: b= is {tuple(self.b.shape)} and a= {tuple(self.a.shape)}; their ranks must agree"
            )

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight: (out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def norm(self) -> float:
        """Frobenius norm of b @ a, without forming it."""
        b, a = self.b.double(), self.a.double()
        return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5


@dataclass(frozen=True, eq=False)
class Edit:
    """A low-rank change of some weights.

    updates: one for each site, in the order of the model. provenance: what made it, as JSON holds it; its "diagnostics" are
    by site `rank`, `relative_norm` |b a| / |W|, `condition` of the solved system, mean `shrinkage` and `drift`
    |b a p| / |W p| on what was preserved. `edit + edit` adds, `edit.scaled(0.5)` halves.

    Raises ValueError for a site that stands twice or an edit of nothing.
    """

    updates: tuple[Update, ...]
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "updates", tuple(self.updates))
        names = self.sites
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"Edit(updates=) of the sites {list(names)}: give at least one, and each site once (add edits with +)"
            )
        object.__setattr__(self, "provenance", json.loads(json.dumps(self.provenance)))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose weights change."""
        return tuple(update.site for update in self.updates)

    @property
    def editor(self) -> str:
        """What made it, in words."""
        return self.provenance.get("editor", "edit")

    def preview(self) -> tuple[Intervention, ...]:
        """The same edit as interventions, for a `World`: its images are the committed model's, up to rounding.

        They touch both halves of a guided batch and the negative prompt, as changed weights do.
        """
        return tuple(map_input(update.site, update.b, update.a, rows="both") for update in self.updates)

    def at(self, *sites: str) -> "Edit":
        """The part of the edit at some layers: globs of sites, or of the layers whose k and v they are.

        What is solved for one input is the same for every layer that is given it. Raises KeyError for a glob that matches none.
        """
        layers = {site: (site, site.rsplit(".", 1)[0]) for site in self.sites}
        if lost := [glob for glob in sites if not any(fnmatch.filter(names, glob) for names in layers.values())]:
            raise KeyError(f"the edit changes nothing at {lost}; its sites are {', '.join(self.sites)}")
        kept = [update for update in self.updates if any(fnmatch.filter(layers[update.site], glob) for glob in sites)]
        return Edit(kept, self.provenance | {"at": list(sites)})

    def scaled(self, factor: float) -> "Edit":
        """The edit times a factor; 0 changes nothing, -1 is the opposite."""
        about = {"editor": f"{factor:g} x {self.editor}", "scaled": factor, "of": self.provenance}
        return Edit([replace(update, b=update.b * factor) for update in self.updates], about)

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits as one, of the ranks' sum; raises ValueError where they were made for different weights."""
        mine, theirs = ({update.site: update for update in edit.updates} for edit in (self, other))
        for site in mine.keys() & theirs.keys():
            a, b = mine[site], theirs[site]
            if a.shape != b.shape or a.base != b.base:
                raise ValueError(
                    f"edits of {site} do not add: one is for a weight {a.shape} of SHA-256 {a.base[:12]}, the other "
                    f"{b.shape} of {b.base[:12]}; make both from the same model, or commit them in turn"
                )
            both = [torch.cat([a.b, b.b], 1), torch.cat([a.a, b.a], 0)]
            mine[site] = replace(a, b=both[0], a=both[1])
        return Edit(
            (theirs | mine).values(),
            {"editor": f"{self.editor} + {other.editor}", "sum": [self.provenance, other.provenance]},
        )

    def table(self) -> pd.DataFrame:
        """One row for each site: shape, rank and diagnostics."""
        known = self.provenance.get("diagnostics", {})
        rows = [
            {
                "site": u.site,
                "out": u.shape[0],
                "in": u.shape[1],
                "rank": u.rank,
                "norm": u.norm(),
                **known.get(u.site, {}),
            }
            for u in self.updates
        ]
        return pd.DataFrame(rows)

    def __repr__(self):
        values = sum(update.b.numel() + update.a.numel() for update in self.updates)
        rank = max(update.rank for update in self.updates)
        with pd.option_context(
            "display.max_rows", 12, "display.max_columns", None, "display.width", 200, "display.precision", 3
        ):
            return f"{self.editor}: {len(self.updates)} weights, rank at most {rank}, {values} numbers\n{self.table()}"

    def check(self, model, *, base: bool = True):
        """Raise ValueError unless every site exists in a model, with a weight of that shape and (`base`) of that content."""
        for update in self.updates:
            try:
                (site,) = model.sites(update.site)
            except (KeyError, ValueError):
                raise ValueError(
                    f"the edit changes {update.site!r}, which this model lacks; load the model that it was made for"
                ) from None
            weight = weight_of(model.pipeline, site)
            if tuple(weight.shape) != update.shape:
                raise ValueError(
                    f"the edit of {update.site} is for a weight of {update.shape}, the model's is {tuple(weight.shape)}; "
                    "load the model that it was made for"
                )
            if base and update.base not in (known := model.hashes(update.site)):
                raise ValueError(
                    f"the edit of {update.site} was made for a weight of SHA-256 {update.base}, the model's is {known[0]} "
                    f"({weight.dtype}); load the model that it was made for in the same dtype, or pass base=False to "
                    "apply it to another"
                )

    def save(self, path: str | Path):
        """Write a safetensors file: factors, and in its metadata sites, base hashes and provenance."""
        factors = {f"{u.site}.{name}": getattr(u, name) for u in self.updates for name in ("b", "a")}
        about = [{"site": u.site, "module": u.module, "base": u.base} for u in self.updates]
        files.write(Path(path), "edit", factors, {"updates": about, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path, model=None) -> "Edit":
        """Read what `save` wrote; with a model, also check that it fits there.

        Raises FileNotFoundError, and ValueError for a file that is no edit, was altered, or is another model's.
        """
        factors, about = files.read(Path(path), "edit")
        try:
            parts = [
                (entry, {name: factors.pop(f"{entry['site']}.{name}") for name in ("b", "a")})
                for entry in about["updates"]
            ]
            found = cls([Update(**entry, **matrices) for entry, matrices in parts], dict(about["provenance"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: its list of updates does not fit its tensors ({error!r}); save the edit again"
            ) from None
        if factors:
            raise ValueError(f"{path} holds tensors that no update names, {sorted(factors)[:5]}; save the edit again")
        if model is not None:
            found.check(model)
        return found

    def to_lora(self, folder: str | Path) -> Path:
        """Write the edit as a LoRA that `pipeline.load_lora_weights(folder)` reads; see `workbench.edit.export`."""
        from workbench.edit.export import to_lora

        return to_lora(self, folder)


def update_of(model, name: str, b: torch.Tensor, a: torch.Tensor) -> Update:
    """An update of a model's weight at a site."""
    (site,) = model.sites(name)
    return Update(name, site.module, b, a, model.hashes(name)[0])
