"""Closed-form edits of the text's key and value projections in joint attention, whose keys depend on the step and the picture."""

import math

import pytest
import torch
from cases import state_of
from test_transformers import GUIDED, LENGTH, ZEBRA, apart, draw, fresh, pair, run

import workbench as wb
from workbench.text import text_of

ZEBRA_TO_LION = {"a zebra": "a lion"}
SITES = {"sd3": "transformer.*.joint", "sd35": "transformer.*.joint", "flux": "transformer.[01].joint"}
RUNS = wb.edit.KeyRuns(seeds=(0, 5), **GUIDED)
each_family = pytest.mark.parametrize("name", SITES)


def made(model, name, **more):
    settings = dict(sites=SITES[name], templates=("{}",), lam=0.0, runs=RUNS) | more
    return wb.edit.from_concepts(model, ZEBRA_TO_LION, **settings)


def given_in_runs(plain, layer, prompt: str) -> torch.Tensor:
    """What a plain pipeline's layer is given for a prompt, by hooks: (seed and step, token, channel)."""
    found: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0].detach()[-2:]) and None)
    draw(plain, [prompt] * 2, RUNS.seeds)
    handle.remove()
    return torch.stack(found, 1).flatten(0, 1)


@each_family
def test_an_edited_layer_gives_its_targets_on_its_keys(name):
    """Keys and targets by plain hooks, on a pipeline that the workbench never saw; nothing is preserved."""
    model, plain = pair(name)
    edit = made(model, name)
    layers = [site.module for site in model.sites(*edit.sites)]
    own = list(text_of(model.pipeline, "a zebra").positions("subject_last", "a zebra"))
    old, new, before = {}, {}, {}
    for path in layers:
        layer = plain.transformer.get_submodule(path.partition(".")[2])
        keys, guides = (given_in_runs(plain, layer, prompt)[:, own] for prompt in ("a zebra", "a lion"))
        old[path], before[path], new[path] = keys, layer(keys), layer(guides)
    with model.applied(edit):
        for path in layers:
            found = model.pipeline.transformer.get_submodule(path.partition(".")[2])(old[path])
            error = (found - new[path]).norm() / (new[path] - before[path]).norm()
            print(f"{name} {path}: {error.item():.1e} of what was to change")
            assert error < 1e-3
    ranks = [update.rank for update in edit.updates]
    assert ranks == [3 * len(own)] * 2 + [6 * len(own)] * (
        len(ranks) - 2
    )  # the first block knows steps, but no picture
    assert edit.provenance["runs"]["seeds"] == [0, 5]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_preview_commit_and_lora_agree(name, tmp_path):
    """Cut to a rank: one matrix for a block's keys and values, another for each block. In diffusers' own pipeline the same pictures."""
    model, plain = pair(name)
    edit, before = made(model, name, tokens="all", lam=0.1, rank=2), state_of(model.pipeline)
    by_site = {update.site: update for update in edit.updates}
    same = [torch.equal(by_site[f"transformer.{i}.text.k"].a, by_site[f"transformer.{i}.text.v"].a) for i in (0, 1)]
    assert same == [True, True] and edit.rank == 2
    assert not torch.allclose(by_site["transformer.0.text.k"].a, by_site["transformer.1.text.k"].a, atol=0.1)
    preview = run(model, wb.World("clean", ZEBRA), wb.World("edited", ZEBRA, edit))
    with model.applied(edit):
        committed = run(model, ZEBRA).images[0]
    assert state_of(model.pipeline) == before
    assert apart(preview["clean"], draw(plain, [ZEBRA])) < 1e-5
    plain.load_lora_weights(edit.to_lora(tmp_path / "edit.safetensors", layout="peft"))
    loaded = draw(plain, [ZEBRA])
    print(name, "preview", apart(preview["edited"], committed), "LoRA", apart(committed, loaded))
    assert apart(preview["edited"], committed) < 1e-4 > apart(committed, loaded)
    assert apart(committed, preview["clean"]) > 1e-3
    model.commit(edit)
    model.undo()
    assert state_of(model.pipeline) == before


def test_keys_are_gathered_where_they_are_asked():
    """At some steps; preserved keys and moments over the same runs; every editor."""
    model, plain = pair("sd3")
    late = wb.edit.KeyRuns(seeds=(0,), steps=wb.window(0.3, 1.0), **GUIDED)
    edit = made(model, "sd3", runs=late, sites="transformer.1.joint", preserve=["a car"], lam=0.1)
    assert edit.rank == 2 and edit.provenance["runs"]["calls"] == [1, 2]
    assert edit.provenance["diagnostics"]["transformer.1.text.k"]["drift"] < 1
    layer = plain.transformer.transformer_blocks[1].attn.add_k_proj
    site, prompts = model.sites["transformer.1.text.k"], ["a car", "a lion"]
    seen = torch.cat([given_in_runs(plain, layer, prompt) for prompt in prompts])[:, 1:].flatten(0, 1).double()
    moments = wb.edit.moments_of(model, prompts, site, runs=RUNS)
    assert moments.count == len(seen) and torch.allclose(moments.total, seen.T @ seen, rtol=1e-4, atol=1e-3)
    more = dict(sites="transformer.[12].joint", runs=late)
    edits = [
        wb.edit.rome(model, ZEBRA_TO_LION, corpus=["a red car", "a painting"], lam=0.1, **more),
        wb.edit.swap(model, "a zebra", "a lion", **more),
        wb.edit.oblique(model, "a zebra", "a lion", templates="{}", corpus=["a car"], **more),
        wb.edit.neurons(model, ZEBRA_TO_LION, count=3, **more),
        wb.edit.erase(model, "a zebra", "a lion", resist=math.inf, rank=1, sites="transformer.1.joint", runs=late),
    ]
    with pytest.warns(UserWarning, match=r"at transformer\.[12]\.text\.normed a reflected word misses"):
        edits.append(wb.edit.reflect(model, "a zebra", "a lion", templates="{}", corpus=["a car"], **more))
    for each in edits:
        assert {name.rpartition(".")[0] for name in each.sites} <= {"transformer.1.text", "transformer.2.text"}


def test_what_has_no_keys_of_its_own_is_refused():
    sd3, flux = (wb.load(fresh(name), max_sequence_length=LENGTH) for name in ("sd3", "flux"))
    asked = {
        r"transformer.2.text.k is given by one weight for picture and text": (flux, dict(sites="transformer.2.joint")),
        "runs= has no effect: none of sites= is a layer of joint attention": (sd3, dict(sites=None)),
        "transformer.1.text.q is not given text states": (sd3, dict(sites="transformer.1.text.q")),
        "steps=[7]: the run has steps 0 to 2": (sd3, dict(runs=wb.edit.KeyRuns(steps=7, **GUIDED))),
        "runs='qux' is a str: give wb.edit.KeyRuns": (sd3, dict(runs="qux")),
    }
    with pytest.raises(ValueError, match=r"transformer\.1\.text\.k is given others at each step"):
        wb.edit.speed(sd3, ZEBRA_TO_LION, preserve=["a car"], sites="transformer.1.joint")
    assert wb.edit.speed(sd3, ZEBRA_TO_LION, preserve=["a car"]).sites == ("transformer.context_embedder",)
    for message, (model, more) in asked.items():
        with pytest.raises(ValueError) as raised:
            wb.edit.uce(model, ZEBRA_TO_LION, **dict(sites="transformer.1.joint", runs=RUNS) | more)
        assert message in str(raised.value), str(raised.value)


@each_family
def test_the_order_in_which_interventions_are_named_is_nothing(name):
    """An edit reads what its layer is given, behind what changes that input, though both are at one module."""
    model, _ = pair(name)
    first = "text_encoder_2.0" if name == "flux" else "text_encoder.0"
    for read, edited in (("transformer.context", "transformer.context_embedder"), (f"{first}.z", f"{first}.out")):
        edit = wb.edit.uce(model, ZEBRA_TO_LION, sites=edited, tokens="all", lam=0.01)
        change = wb.scale(read, 1.5)
        orders = [(change, *edit.preview()), (*edit.preview(), change)]
        other = wb.World("other", ZEBRA, edit)  # names the edit's layer first
        found = run(model, other, *(wb.World(str(i), ZEBRA, order) for i, order in enumerate(orders)))
        with model.applied(edit):
            expected = run(model, wb.World("a", ZEBRA, change))["a"]
        assert max(apart(found[str(i)], expected) for i in (0, 1)) < 1e-5 < 1e-4 < apart(found["other"], expected), (
            edited
        )
