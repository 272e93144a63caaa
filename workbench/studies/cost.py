"""What experiments take on full-size models: `python -m workbench.studies.cost` writes the tables of `docs/cost.md`.

Counts are those of `wb.plan`, on narrow copies with as many layers (`full_models`); parameters, FLOPs and the largest sum of tensors that
live at once are counted of the full modules on PyTorch's meta device, where nothing is computed. Nothing is timed.
"""

import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import workbench as wb
from workbench.experiments.forecast import Plan
from workbench.studies.full_models import FULL, FullModel

PROMPTS, SEEDS, DRAWS, BATCH = 12, (0, 1, 2, 3), 3, 16
RATE = 100e12  # FLOPs a second that the hours are given for; a reader puts his own
GPUS = 100
PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
DTYPE = torch.bfloat16
BYTES = 2  # of a weight in it


@dataclass
class CostOptions:
    models: tuple[str, ...] = tuple(FULL)
    out: Path = PAGE
    """The page, whose tables are written anew."""


# Counts, by the planning code


def experiments(model: wb.Model) -> Mapping[str, Callable[[], Plan]]:
    """The plan of each experiment of the page."""
    prompts = wb.prompt_set("object")[:PROMPTS]
    plan = partial(wb.plan, timed=False, batch_size=BATCH, scorer=wb.Scorer())
    trace, locogen = wb.TraceSpec(seeds=SEEDS, draws=DRAWS), wb.LocoGenSpec(seeds=SEEDS)
    screen = wb.ScreenSpec(seeds=SEEDS, draws=DRAWS)
    direction = wb.direction(model, ["a zebra at night"], ["a zebra by day"], "text_encoder.*.mlp", pool="own")
    sweep = (direction, wb.Concept("a photo at night"), wb.SweepSpec(seeds=SEEDS))
    return {
        "causal trace of the text encoders": partial(plan, wb.causal_trace, model, prompts, trace),
        "LocoGen, windows of 2 layers": partial(plan, wb.locogen, model, prompts, locogen),
        "steering, CLIP-L's layers x 5 strengths": partial(plan, wb.steer_sweep, model, prompts, *sweep),
        "screen, 6 + 4 of the text encoders": partial(plan, wb.screen, model, prompts, screen),
    }


# Sizes, on the meta device


class Live(TorchDispatchMode):
    """Bytes of tensors that operations made and that live still, and the most that there were at once."""

    def __init__(self):
        super().__init__()
        self.held: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        made = operation(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self.held | given:  # no view of a weight, or of what is held
                    self.held.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return made

    def free(self, key: int, size: int):
        self.held.discard(key)
        self.now -= size


def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention as GPUs have it, without its probabilities."""
    made = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    return made[0]


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules and tensors without values, in half precision, and fused attention."""
    own, before = F.scaled_dot_product_attention, torch.get_default_dtype()
    F.scaled_dot_product_attention = fused
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device("meta"):
            yield
    finally:
        F.scaled_dot_product_attention = own
        torch.set_default_dtype(before)


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


def peak(call: Callable[[], Any]) -> int:
    """Bytes of tensors at once."""
    with Live() as live:
        call()
    return live.peak


def graph(module: torch.nn.Module, given: dict[str, Any]) -> tuple[int, int]:
    """Of a call of the denoiser in which the text needs gradients: bytes that its graph keeps, FLOPs of call and backward pass."""
    weights = {each.untyped_storage()._cdata for each in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    given = given | {"encoder_hidden_states": given["encoder_hidden_states"].requires_grad_()}

    def both():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made = module(**given, return_dict=False)[0]
        torch.autograd.backward(made.float().sum(), inputs=[given["encoder_hidden_states"]])

    return (lambda count: (sum(kept.values()), count))(flops(both))


def sizes(name: str, full: FullModel) -> dict[str, Any]:
    """What a full-size model takes: parameters in 10^9, memory in 10^9 bytes, FLOPs in 10^12.

    row, backward: of a call of the denoiser for one image, without and with the gradient of the text. picture: of encoding the text and
    decoding. activations, decoding: of a batch of BATCH, besides the weights. graph: kept of one row, to go back through it.
    """
    with on_meta():
        parts = full.parts()
        for part in parts.values():
            part.eval().requires_grad_(False)
        denoiser = parts.get("unet") or parts["transformer"]
        encoders = {each: part for each, part in parts.items() if each.startswith("text_encoder")}
        read = lambda: [
            part(torch.zeros(full.halves, full.tokens[each], dtype=torch.long)) for each, part in encoders.items()
        ]
        decoded = lambda images: parts["vae"].decode(torch.empty(images, *full.latents))
        with torch.no_grad():
            found = dict(
                row=flops(lambda: denoiser(**full.rows(1))) / 1e12,
                picture=(flops(read) + flops(lambda: decoded(1))) / 1e12,
                activations=peak(lambda: denoiser(**full.rows(BATCH))) / 1e9,
                decoding=peak(lambda: decoded(BATCH)) / 1e9,
            )
        kept, both = graph(denoiser, full.rows(1))
    count = lambda some: sum(weight.numel() for part in some for weight in part.parameters()) / 1e9
    of = dict(denoiser=count([denoiser]), encoders=count(encoders.values()), vae=count([parts["vae"]]))
    weights = sum(of.values()) * BYTES
    return dict(model=name, **of, weights=weights, **found, graph=kept / 1e9, backward=both / 1e12)


# The page


def rows_of(name: str, plan: Plan, size: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """A row of the table of experiments; FLOPs in 10^15, hours at RATE on one GPU and on many."""
    plans = plan.of or (plan,)
    learned = (
        next((each.rows or 0 for each in plans if each.experiment == "attribution"), 0) / 2
    )  # half of its passes go back
    work = [((each.rows or 0) * size["row"] + each.images * size["picture"]) * 1e12 for each in plans]
    work[0] += learned * (size["backward"] - size["row"]) * 1e12
    seconds = [each / RATE for each in work]
    shared = [second * ceil(each.groups / GPUS) / each.groups for second, each in zip(seconds, plans)]
    return dict(
        model=name,
        experiment=experiment,
        at_most=plan.at_most,
        groups=plan.groups,
        images=plan.images,
        calls=plan.calls,
        rows=plan.rows,
        disk=plan.disk / 1e6,
        flops=sum(work) / 1e15,
        hours=sum(seconds) / 3600,
        minutes_on_many=sum(shared) / 60,
    )


def tables(names: tuple[str, ...] = tuple(FULL)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of models, and of experiments on them."""
    models = pd.DataFrame([sizes(name, FULL[name]) for name in names]).set_index("model", drop=False)
    rows = []
    for name in names:
        torch.manual_seed(0)
        model = wb.load(FULL[name].narrow())
        models.loc[name, "graphs"] = models.graph[name] * len(model.calls())
        for experiment, plan in experiments(model).items():
            rows.append(rows_of(name, plan(), models.loc[name], experiment))
            print(rows[-1], flush=True)
    return models, pd.DataFrame(rows)


def said(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def model_lines(models: pd.DataFrame) -> str:
    head = ["", "denoiser, 10^9", "text encoders", "VAE", "weights, GB", "denoising 16, GB", "decoding 16, GB"]
    head += ["row, TFLOP", "picture, TFLOP", "row with backward, TFLOP", "graph of an image, GB"]
    names = (
        "denoiser",
        "encoders",
        "vae",
        "weights",
        "activations",
        "decoding",
        "row",
        "picture",
        "backward",
        "graphs",
    )
    return lines(head, [[each.model, *(said(getattr(each, name)) for name in names)] for each in models.itertuples()])


def experiment_lines(rows: pd.DataFrame) -> str:
    head = [
        "",
        "experiment",
        "groups",
        "images",
        "denoiser calls",
        "rows",
        "disk, MB",
        "PFLOP",
        "h on 1 GPU",
        f"min on {GPUS}",
    ]
    cells = []
    for each in rows.itertuples():
        most = "at most " if each.at_most else ""
        counts = [f"{each.groups:,}", f"{most}{each.images:,}", f"{most}{each.calls:,}", f"{most}{each.rows:,}"]
        rest = [said(each.disk), said(each.flops), said(each.hours), said(each.minutes_on_many)]
        cells.append([each.model, each.experiment, *counts, *rest])
    return lines(head, cells)


def lines(head: list[str], cells: list[list[str]]) -> str:
    """A table of a page."""
    bars = [f"|{'---|' * 2}{'---:|' * (len(head) - 2)}"]
    return "\n".join([f"| {' | '.join(head)} |", *bars, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"


def written(page: str, name: str, table: str) -> str:
    """A page with a table in its place."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not place.search(page):
        raise ValueError(
            f"the page has no place for the table {name}: lines '<!-- {name} -->' and '<!-- end of {name} -->'"
        )
    return place.sub(lambda found: found[1] + table + found[2], page)


def main(options: CostOptions):
    models, rows = tables(options.models)
    page = written(options.out.read_text(), "models", model_lines(models))
    options.out.write_text(written(page, "experiments", experiment_lines(rows)))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main(tyro.cli(CostOptions))
