"""Adapters and other changes of layers: as in a pipeline that had them before it was wrapped, or refused."""

import copy

import conftest
import pytest
import torch
from outside import GUIDANCE, LION, STEPS, ZEBRA, apart, fresh, load_lora, lora_file, pictures, run

import workbench as wb
from workbench.interventions import World, map_input, replace_prompt, scale

KV = "unet.*.cross.{k,v}"
EVERYWHERE = (
    World("clean", ZEBRA),
    World("own", ZEBRA, [replace_prompt(KV, ZEBRA)]),
    World("keys and values", ZEBRA, [replace_prompt(KV, LION)]),
    World("context", ZEBRA, [replace_prompt("unet.*.cross.context", LION)]),
    World("text", ZEBRA, [scale("text_encoder.0.mlp", 0.5), scale("unet.mid*.cross.v", 0.3)]),
)
READ = ["text_encoder.1.mlp", "unet.mid*.cross.k", "unet.mid*.self.probs"]

# what people do with adapters, in one order in which they may do it
CHANGES = {
    "loaded": lambda pipeline, files: load_lora(pipeline, files["first"]),
    "second loaded": lambda pipeline, files: load_lora(pipeline, files["second"]),
    "switched": lambda pipeline, files: pipeline.set_adapters(["first"]),
    "scaled": lambda pipeline, files: pipeline.set_adapters(["first", "second"], [0.3, 0.8]),
    "off": lambda pipeline, files: pipeline.disable_lora(),
    "on again": lambda pipeline, files: pipeline.enable_lora(),
    "fused": lambda pipeline, files: pipeline.fuse_lora(),
    "unfused": lambda pipeline, files: pipeline.unfuse_lora(),
    "deleted": lambda pipeline, files: pipeline.delete_adapters("first"),
    "fused for good": lambda pipeline, files: pipeline.fuse_lora(),
    "unloaded": lambda pipeline, files: pipeline.unload_lora_weights(),
}


@pytest.fixture(scope="module", params=[conftest.sd1, conftest.sdxl], ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.fixture(scope="module")
def files(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return {name: lora_file(make, folder, name, seed) for seed, name in enumerate(("first", "second"), start=1)}


@pytest.mark.parametrize("make", [conftest.sdxl], indirect=True, ids=["sdxl"])
def test_adapters_act_as_if_loaded_before_wrapping(make, files):
    """Each state of a pipeline whose adapters change between runs is that of one that is wrapped when they are there.

    Of the family with two text encoders; the laws ask every family about adapters, before and after wrapping.
    """
    late, never_wrapped, found = fresh(make), fresh(make), {}
    worlds = [world for world in EVERYWHERE if world.name in ("clean", "keys and values", "text")]
    found["plain"] = run(late, *worlds, seeds=(0,))
    for name, change in CHANGES.items():
        for pipeline in (late, never_wrapped):
            change(pipeline, files)
        found[name] = run(late, *worlds, seeds=(0,), record=READ)
        if name in ("loaded", "switched", "unfused", "deleted"):
            expected = run(copy.deepcopy(never_wrapped), *worlds, seeds=(0,), record=READ)
            assert apart(found[name].images, expected.images) == 0, name
            assert all(apart(found[name].values[site], expected.values[site]) == 0 for site in expected.values), name
        assert apart(found[name]["clean"], pictures(never_wrapped, seeds=(0,))) < 1e-5, name
        changed = apart(found[name]["clean"], found["plain"]["clean"])
        assert changed < 1e-6 if name == "off" else changed > 1e-3, name
    for name in ("on again", "fused", "unfused"):
        assert apart(found[name].images, found["scaled"].images) < 1e-4, name
    assert apart(found["switched"].images, found["scaled"].images) > 1e-3


def test_the_own_prompt_at_keys_and_values_changes_nothing_under_a_lora(make, files):
    pipeline = fresh(make)
    load_lora(pipeline, files["first"])
    found = run(pipeline, *EVERYWHERE)
    assert apart(found["own"], found["clean"]) < 1e-5
    assert apart(found["keys and values"], found["context"]) < 1e-5 < 1e-3 < apart(found["context"], found["clean"])


@pytest.mark.parametrize("inputs", ["k", "v"])
def test_locogen_of_one_input_under_a_lora(make, files, inputs):
    """What it gives layers is what their own projections make of the target, adapters included."""
    pipeline = fresh(make)
    load_lora(pipeline, files["first"])
    model = wb.load(pipeline)
    layers = model.sites("unet.*.cross")
    spec = wb.LocoGenSpec(
        windows=((0, len(layers)),), inputs=(inputs,), seeds=(0,), num_inference_steps=STEPS, guidance_scale=GUIDANCE
    )
    strips = wb.locogen_images(model, wb.Prompt(ZEBRA, "", target=LION), spec).isel(seed=0).values
    unaltered, replaced = strips[0], strips[-1]
    settings = dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    target = pipeline.encode_prompt(LION, **settings)[0]

    def given_the_target(module, args):
        return (torch.cat([args[0][:1], target]),)  # in the half that has the prompt

    paths = [f"{site.module.removeprefix('unet.')}.to_{inputs}" for site in layers]
    handles = [pipeline.unet.get_submodule(path).register_forward_pre_hook(given_the_target) for path in paths]
    expected = pictures(pipeline, seeds=(0,))[0]
    for handle in handles:
        handle.remove()
    assert apart(replaced, expected) < 1e-5 < 10 * apart(replaced, expected) + 5e-5 < apart(replaced, unaltered)


def test_a_direction_is_read_with_the_lora(make, files):
    pipeline = fresh(make)
    wb.direction(wb.load(pipeline), [ZEBRA], [LION])
    load_lora(pipeline, files["first"])
    late = wb.direction(wb.load(pipeline), [ZEBRA], [LION])
    early = fresh(make)
    load_lora(early, files["first"])
    expected = wb.direction(wb.load(early), [ZEBRA], [LION])
    for ours, theirs in zip(late.components, expected.components):
        assert torch.equal(ours.vectors, theirs.vectors)


def test_edits_and_folders_ask_for_the_lora_to_be_fused(make, files, tmp_path):
    pipeline = fresh(make)
    model = wb.load(pipeline)
    edit = wb.edit.locoedit(model, {"a zebra": "a lion"}, sites="unet.mid*.cross.v")
    load_lora(pipeline, files["first"])
    for attempt in (
        lambda: model.commit(edit),
        lambda: wb.edit.locoedit(model, {"a zebra": "a lion"}, sites="unet.mid*.cross.v"),
        lambda: run(pipeline, World("preview", ZEBRA, edit.preview())),
    ):
        with pytest.raises(ValueError, match=r"unet\.mid.*cross\.v.* not fused.*pipeline\.fuse_lora\(\)"):
            attempt()
    with pytest.raises(ValueError, match=r"save_pretrained: .* carries .*fuse_lora\(\)"):
        model.save_pretrained(tmp_path / "unfused")
    pipeline.fuse_lora()
    with pytest.raises(ValueError, match=r"save_pretrained: .* carries .*unload_lora_weights\(\)"):
        model.save_pretrained(tmp_path / "fused")
    pipeline.unload_lora_weights()
    model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "unfused").exists() and not (tmp_path / "fused").exists()
    reloaded = wb.load(tmp_path / "whole")
    assert apart(run(reloaded.pipeline).images, run(pipeline).images) < 1e-6
    model.commit(wb.edit.locoedit(model, {"a zebra": "a lion"}, sites="unet.mid*.cross.v"))


def test_adapters_and_their_scales_are_another_model(make, files):
    pipeline = fresh(make)
    model = wb.load(pipeline)
    records = {"plain": model.record}
    for name, change in CHANGES.items():
        change(pipeline, files)
        assert (model.record in records.values()) == (name == "on again"), name
        records[name] = model.record


def test_the_same_scales_at_other_places_are_another_model(tmp_path):
    pipeline = fresh()
    load_lora(pipeline, lora_file(conftest.sd1, tmp_path, "first", 1))
    model = wb.load(pipeline)
    pipeline.set_adapters("first", {"unet": {"down": 0.5, "up": 1.0, "mid": 1.0}})
    down = model.record
    pipeline.set_adapters("first", {"unet": {"down": 1.0, "up": 0.5, "mid": 1.0}})
    assert model.record != down


def test_fused_projections_are_refused_where_they_are_apart(make):
    pipeline = fresh(make)
    model = wb.load(pipeline)
    edit = wb.edit.locoedit(model, {"a zebra": "a lion"}, sites="unet.mid*.cross.{k,v}")
    plain = run(pipeline, World("clean", ZEBRA), World("scaled", ZEBRA, [scale("unet.mid*.cross", 0.5)]))
    out, width = next(iter(edit.updates)).shape
    pipeline.fuse_qkv_projections(vae=False)
    fix = r"the (attention's )?projections are fused.*pipeline\.unfuse_qkv_projections\(\)"
    for attempt in (
        lambda: model.commit(edit),
        lambda: run(pipeline, World("preview", ZEBRA, edit.preview())),
        lambda: run(pipeline, World("map", ZEBRA, [map_input("unet.mid*.cross.v", [[0.0]] * out, [[0.0] * width])])),
        *(
            lambda site=site: run(pipeline, World("a", ZEBRA, [scale(site, 0.5)]))
            for site in ("unet.mid*.cross.k", "unet.mid*.self.v", "unet.mid*.self.q", "unet.mid*.cross.probs")
        ),
        lambda: run(pipeline, record=["unet.mid*.cross.v"]),
        lambda: run(pipeline, record=["unet.mid*.cross.probs"]),
    ):
        with pytest.raises(ValueError, match=fix):
            attempt()
    # what is apart stays: the layer's output, and the text that it is given
    fused = run(
        pipeline,
        World("clean", ZEBRA),
        World("scaled", ZEBRA, [scale("unet.mid*.cross", 0.5)]),
        World("lion", LION),
        World("context", ZEBRA, [replace_prompt("unet.*.cross.context", LION), *pooled(model, LION)]),
    )
    assert all(apart(fused[name], plain[name]) < 1e-5 for name in ("clean", "scaled"))
    assert apart(fused["context"], fused["lion"]) < 1e-5
    pipeline.unfuse_qkv_projections(vae=False)
    again = run(
        pipeline, World("clean", ZEBRA), World("preview", ZEBRA, edit.preview()), record=["unet.mid*.cross.probs"]
    )
    with model.applied(edit):
        committed = run(pipeline)
    assert apart(again["clean"], plain["clean"]) < 1e-5
    assert apart(again["preview"], committed["plain"]) < 1e-5 < apart(committed["plain"], plain["clean"])


def pooled(model, prompt: str) -> list:
    """SDXL's other way in for a prompt."""
    sites = [site.name for site in model.sites if site.kind == "pooled" and site.read]
    return [replace_prompt(sites, prompt)] if sites else []
