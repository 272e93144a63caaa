"""`wb.check`: every claim holds on the models we have, and breaking a pipeline or the engine breaks the right line."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import sd, sdxl
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange

import workbench as wb
from workbench import cli
from workbench.checks import laws
from workbench.engine import batch, calls, trace
from workbench.families import attention
from workbench.sites import Sites


def small():
    """A random pipeline of few sites."""
    return sd(
        dict(
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )


@pytest.fixture
def pipeline(request):
    """A new pipeline, whose table no run has seen."""
    torch.manual_seed(0)
    made = getattr(request, "param", small)()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def with_table(monkeypatch) -> Callable:
    """Change the table of sites: each site that a function returns, instead of what it is given; None leaves it out."""

    def change(function: Callable):
        found = trace.find_sites

        def changed(*arguments) -> Sites:
            return Sites([new for site in found(*arguments) if (new := function(site)) is not None])

        monkeypatch.setattr(trace, "find_sites", changed)

    return change


def check(pipeline, **settings):
    return wb.check(wb.load(pipeline), progress=False, **settings)


def failed(found) -> set[tuple[str, str]]:
    return set(zip(found.failures.site, found.failures.claim))


def seen_at(found, claim: str, site: str = "") -> str:
    return found.table.set_index(["site", "claim"]).seen[site, claim]


def test_every_claim_holds_on_every_family(model):
    found = wb.check(model, progress=False)
    assert found.passed and found.failures.empty and found.unasked.empty, found
    sites, table = model.sites, found.table
    assert list(table.columns) == ["site", "claim", "expected", "seen", "passed"]
    by_claim = {claim: list(rows.site) for claim, rows in table.groupby("claim")}
    assert by_claim["shape"] == [site.name for site in sites]
    assert by_claim["read"] == [site.name for site in sites if site.read]
    assert by_claim["probabilities"] == [site.name for site in sites if site.kind.endswith("probs")]
    assert by_claim["attention"] == [site.name for site in sites if site.kind in ("attention", "self", "cross")]
    kinds = {(site.component, site.kind) for site in sites if site.read}
    assert {(sites[name].component, sites[name].kind) for name in by_claim["overwrite"]} == kinds
    assert by_claim.get("not read", []) == [site.name for site in sites if not site.read]
    xl = hasattr(model.pipeline, "text_encoder_2")
    assert found.calls == (20 if xl else 16) and bool(by_claim.get("not read")) == xl
    for claim in (
        "calls",
        "halves",
        "order",
        "picture",
        "explicit attention",
        "twins",
        "replaced",
        "latents",
        "identity",
    ):
        assert by_claim[claim] == [""]
    assert f"{len(table)} claims hold, 0 do not, 0 could not be asked; {found.calls} calls" in repr(found)
    assert len(repr(found)) < 300 and "<table" in found._repr_html_()


def test_every_site_can_be_overwritten(pipeline):
    found = check(pipeline, every_site=True)
    assert found.passed, found
    names = set(found.table[found.table.claim == "overwrite"].site)
    assert names == {site.name for site in wb.load(pipeline).sites}


def test_what_a_pipeline_cannot_be_asked_is_named(pipeline, monkeypatch):
    class Strange(AttnProcessor):
        pass

    pipeline.unet.set_attn_processor(Strange())
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    found = check(pipeline, prompt="a lion", target="a lion")
    assert found.passed
    unasked = found.unasked.set_index(["site", "claim"]).seen
    assert "the layer computes attention by Strange, " in unasked["unet.mid.cross.probs", "shape"]
    assert unasked["", "latents"] == "PNDMScheduler remembers earlier steps"
    assert unasked["", "replaced"].endswith("0 apart; give prompts whose pictures differ")
    assert "not asked: unet.mid.cross.probs shape: " in repr(found)
    monkeypatch.setattr("workbench.checks.plain.free_bytes", lambda device: 0)
    pipeline.unet.set_attn_processor(AttnProcessor2_0())
    assert "give smaller height= and width=" in seen_at(check(pipeline), "shape", "unet.mid.cross.probs")


@pytest.mark.parametrize(
    "name, facts, claim, seen",
    [
        ("unet.mid.ff", dict(sizes=(16, 17)), "shape", "2 x 16 x 16"),
        ("unet.mid.0.resnet", dict(axes=("row", "token", "channel")), "shape", "4 axes"),
        ("unet.mid.0.resnet", dict(grid=(2, 2)), "shape", "a grid of 2 x 2"),
        ("text_encoder.0.fc1", dict(module="text_encoder.mlp.fc1"), "shape", "no module text_encoder.mlp.fc1: "),
        ("text_encoder.0.fc1", dict(port="input"), "shape", "1 x 32 x 16"),
        ("unet.mid.cross", dict(heads=2), "attention", "cannot be computed: "),
        ("unet.mid.cross", dict(module="unet.nowhere.attn2"), "shape", "no module unet.nowhere.attn2: "),
        ("unet.mid.self.probs", dict(module="unet.mid_block.attentions.0.norm"), "shape", "2 x 16 x 4 x 4"),
        ("text_encoder.0.mlp", dict(read=False), "not read", " apart"),
    ],
)
def test_a_row_of_the_table_that_is_not_true_fails_alone(pipeline, with_table, name, facts, claim, seen):
    with_table(lambda site: replace(site, **facts) if site.name == name else site)
    found = check(pipeline)
    assert (name, claim) in failed(found) and seen in seen_at(found, claim, name)
    assert {site for site, _ in failed(found)} <= {name, name.removesuffix(".probs"), ""}
    assert not found.passed and f"does not hold: {name} {claim}: " in repr(found)


@pytest.mark.parametrize(
    "first, second, lines",
    [
        ("unet.mid.cross.k", "unet.mid.cross.v", {("", "order"), ("unet.mid.cross", "attention")}),
        ("unet.mid.0.resnet", "unet.mid.1.resnet", {("", "order")}),
        ("text_encoder.0.mlp", "text_encoder.2.mlp", {("", "order")}),
    ],
)
def test_swapped_modules_run_in_another_order(pipeline, with_table, first, second, lines):
    sites = {site.name: site.module for site in trace.find_sites(pipeline)}
    swapped = {first: sites[second], second: sites[first]}
    with_table(lambda site: replace(site, module=swapped.get(site.name, site.module)))
    found = check(pipeline)
    assert lines <= failed(found) and " before " in seen_at(found, "order")


@pytest.mark.parametrize("pipeline", [sdxl], indirect=True)
def test_what_is_read_and_what_is_not_is_told_apart(pipeline, with_table):
    """The states that SDXL reads are collected by hooks of transformers, which ours must come before."""
    turned = {"text_encoder.1.hidden": False, "text_encoder.final": True}
    with_table(lambda site: replace(site, read=turned.get(site.name, site.read)))
    found = check(pipeline)
    assert failed(found) == {("text_encoder.1.hidden", "not read"), ("text_encoder.final", "overwrite")}


def test_a_layer_that_the_table_lacks_is_missed(pipeline, with_table):
    with_table(lambda site: None if site.name == "unet.mid.cross.context" else site)
    assert failed(check(pipeline)) == {("", "replaced")}


def test_attention_that_passes_probabilities_by(pipeline, monkeypatch):
    def without(self, attn, hidden_states, encoder_hidden_states=None, *more, **ignored):
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states)

    monkeypatch.setattr(attention.ExplicitAttention, "__call__", without)
    found = check(pipeline)
    assert failed(found) == {(site.name, "shape") for site in wb.load(pipeline).sites("unet.*.probs")}
    assert seen_at(found, "shape", "unet.mid.cross.probs") == "never ran"

    def unheard(self, attn, hidden_states, encoder_hidden_states=None, *more, **ignored):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (rearrange(x, "row i (head c) -> row head i c", head=attn.heads) for x in parts)
        probs = (query @ key.mT * attn.scale).softmax(-1)
        attn.probs(probs)  # and go on with those that were
        return attn.to_out[0](rearrange(probs @ value, "row head i c -> row i (head c)"))

    monkeypatch.setattr(attention.ExplicitAttention, "__call__", unheard)
    found = check(pipeline)
    assert {claim for _, claim in failed(found)} == {"overwrite"} and len(found.failures) == 2


def test_attention_that_is_not_what_it_is_taken_for(pipeline, monkeypatch):
    """A processor of another arithmetic is refused at probabilities; were it known as a plain one, the pictures tell."""

    class Sharper(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *more, **ignored):
            return super().__call__(attn, 50 * hidden_states, encoder_hidden_states)

    pipeline.unet.set_attn_processor(Sharper())
    with pytest.raises(
        ValueError, match="the layer computes attention by Sharper, which may use its projections otherwise"
    ):
        wb.load(pipeline).run("a zebra", num_inference_steps=1, record="unet.*.probs", progress=False)
    for known in ("PLAIN", "APART"):
        monkeypatch.setattr(attention, known, (*getattr(attention, known), Sharper))
    assert ("", "explicit attention") in failed(check(pipeline))


def test_a_map_of_calls_that_is_off(pipeline, monkeypatch):
    monkeypatch.setitem(calls.SCHEDULERS, "DDIMScheduler", calls.two_calls)
    found = check(pipeline)
    assert {("", "calls"), ("", "picture")} <= failed(found)
    assert seen_at(found, "calls").startswith("ValueError: num_inference_steps=2: DDIMScheduler sets 2 timesteps")


def test_calls_taken_for_those_of_another_step(pipeline, monkeypatch):
    """Heun corrects a step by its second call; taken for the next step's first, latents are given back in mid-step."""
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert check(pipeline).passed
    monkeypatch.setitem(calls.SCHEDULERS, "HeunDiscreteScheduler", lambda config, steps: [1] + [2] * (steps - 1))
    assert failed(check(pipeline)) == {("", "latents")}


def test_an_engine_that_does_otherwise(pipeline, monkeypatch):
    """Noise that differs between the rows of a seed, another seed, the other half, a processor left behind, an exception."""
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    generators = "workbench.engine.call.generators"
    with monkeypatch.context() as patch:
        patch.setattr(generators, lambda seeds: [torch.Generator().manual_seed(i) for i, _ in enumerate(seeds)])
        assert ("", "twins") in failed(check(pipeline))
    with monkeypatch.context() as patch:
        patch.setattr(generators, lambda seeds: [torch.Generator().manual_seed(7) for _ in seeds])
        assert ("", "picture") in failed(check(pipeline))
    with monkeypatch.context() as patch:
        patch.setattr(batch.Batch, "rows", lambda self, site, half, world=None: slice(0, 1))
        assert ("unet.mid.ff", "read") in failed(check(pipeline))
    with monkeypatch.context() as patch:

        def broken(*arguments):
            raise ZeroDivisionError("by nothing")

        patch.setattr(batch.Batch, "visit", broken)
        found = check(pipeline)
        assert failed(found) == {("", "read"), ("", "overwrite"), ("", "twins, replaced, latents")}
        assert "ZeroDivisionError" in seen_at(found, "read")
    with monkeypatch.context() as patch:
        hook = lambda module, arguments: None
        patch.setattr(laws, "reading", lambda trial: trial.denoiser.conv_in.register_forward_pre_hook(hook))
        found = check(pipeline)
        assert failed(found) == {("", "left behind")} and seen_at(found, "left behind") == "others: hooks"


def test_bad_input_is_refused(pipeline):
    model = wb.load(pipeline)
    for settings, text in (
        (dict(height=13), "height=13, width=16: height must be a multiple of 8 pixels"),
        (dict(num_inference_steps=0), "num_inference_steps=0: give a whole number, at least 1"),
        (dict(batch_size=2), "batch_size=2: give a whole number, at least 3"),
        (dict(seed=0.5), "seed=0.5"),
        (dict(guidance_scale="high"), "guidance_scale='high'"),
        (dict(prompt=None), "prompt=None"),
    ):
        with pytest.raises(ValueError, match=text):
            wb.check(model, **settings)
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline: give a model, as wb.load\(\) returns it"):
        wb.check(pipeline)


def test_the_command_prints_the_table_and_exits_with_what_was_found(pipeline, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    out = tmp_path / "new" / "table.csv"
    monkeypatch.setattr("sys.argv", f"workbench check --model {tmp_path / 'model'} --out {out}".split())
    cli.main()
    table = pd.read_csv(out)
    assert table.passed.all() and set(table[table.claim == "shape"].site) == {s.name for s in wb.load(pipeline).sites}
    assert "claims hold, 0 do not" in capsys.readouterr().out
    monkeypatch.setitem(calls.SCHEDULERS, "DDIMScheduler", calls.two_calls)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1 and "does not hold: calls: ValueError: " in capsys.readouterr().out
