"""Stable Diffusion XL whole: two encoders that say one prompt, a pooled vector beside the layers, layers that nothing reads."""

import numpy as np
import pytest
from conftest import sdxl
from outside import fresh

import workbench as wb
from workbench.prompts import PromptSet
from workbench.text import tokenize

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"
LABELS = {"zebra": ("a zebra",), "lion": ("a lion",)}
FEW = dict(seeds=(0,), num_inference_steps=2, guidance_scale=3.0)
PROMPTS = PromptSet(
    "one", (wb.Prompt(ZEBRA, "zebra", "zebra", target="a lion in the savanna", target_value="lion"),), LABELS
)


@pytest.fixture(scope="module")
def model():
    return wb.load(fresh(sdxl))


def run(model, *worlds, **more):
    return model.run(worlds, **FEW | more, progress=False)


def test_layers_that_nothing_reads_are_marked_and_left_out_of_globs(model):
    dead = {site.name for site in model.sites if not site.read}
    kinds = ("q", "k", "v", "probs", "z", "out", "attention", "fc1", "fc2", "mlp", "hidden")
    assert dead == {f"text_encoder.2.{kind}" for kind in kinds} | {"text_encoder.final"}
    chosen = {site.name for site in model.sites("text_encoder*")}
    assert not chosen & dead and {"text_encoder_2.2.mlp", "text_encoder_2.final"} <= chosen
    assert model.sites("text_encoder.final")[0].name == "text_encoder.final"  # by its own name it can be recorded
    found = run(model, ZEBRA, record="text_encoder.final")
    assert found.values["text_encoder.final"].shape == (1, 1, 32, 16)
    with pytest.raises(
        ValueError, match=r"the denoiser never reads it in a StableDiffusionXLPipeline: nothing would change"
    ):
        run(model, wb.World("a", ZEBRA, [wb.scale("text_encoder.2.mlp", 2.0)]))


def test_dead_layers_change_nothing_and_the_second_encoders_last_acts_through_the_pooled_vector(model):
    """What `read` says, by plain hooks."""
    plain = run(model, ZEBRA).images.values
    modules = {site.name: model.nn._module.get_submodule(site.module) for site in model.sites}
    for name, changes in (("text_encoder.2.mlp", False), ("text_encoder.final", False), ("text_encoder_2.2.mlp", True)):
        handle = modules[name].register_forward_hook(lambda module, given, out: out * 2)
        try:
            assert (np.abs(run(model, ZEBRA).images.values - plain).max() > 1e-5) == changes, name
        finally:
            handle.remove()
    held = wb.World(
        "held", ZEBRA, [wb.scale("text_encoder_2.2.mlp", 2.0), wb.restore("text_encoder_2.pooled", "plain")]
    )
    assert np.allclose(run(model, wb.World("plain", ZEBRA), held)["held"], plain[0], atol=1e-6)


def test_a_trace_corrupts_both_encoders_and_restores_them_together(model, scorer):
    spec = wb.TraceSpec(
        sites=("text_encoder*.embedding", "text_encoder*.*.hidden"), draws=1, tokens=("subject", "all"), **FEW
    )
    trace = wb.causal_trace(model, PROMPTS, spec, scorer=scorer)
    joint = [name for name in trace.site.values if name.startswith("text_encoders.")]
    assert joint == ["text_encoders.embedding", "text_encoders.0.hidden", "text_encoders.1.hidden"]
    at = dict(metric="pixel_distance", prompt=0, draw=0, seed=0, steps="0-1")
    whole = trace.restored.sel(site="text_encoders.embedding", token="subject", **at)
    assert whole < 1e-6 < trace.corrupted.sel(metric="pixel_distance", prompt=0, draw=0, seed=0)
    alone = trace.restored.sel(site=["text_encoder.embedding", "text_encoder_2.embedding"], token="subject", **at)
    assert (alone > 1e-5).all()
    assert trace.layer.sel(site="text_encoders.1.hidden") == "text_encoders.1"
    assert trace.kind.sel(site="text_encoders.1.hidden") == "hidden"
    without = wb.causal_trace(
        model, PROMPTS, wb.TraceSpec(sites=("text_encoder*.0.mlp",), draws=1, joint=False, **FEW), scorer=scorer
    )
    assert list(without.site.values) == ["text_encoder.0.mlp", "text_encoder_2.0.mlp"]


def test_tokens_are_found_by_each_encoders_own_tokenizer(model):
    """A second tokenizer that splits "zebra" otherwise: noise hits its own positions there."""
    pipeline = sdxl()
    other = type(pipeline.tokenizer_2).from_pretrained(wb.models.MENAGERIE / "tokenizer")
    other.add_tokens(["savanna zeb"])
    pipeline.tokenizer_2 = other
    pipeline.text_encoder_2.resize_token_embeddings(len(other))
    odd = wb.load(pipeline)
    prompt = "a savanna zebra"
    noise = wb.add_noise("text_encoder*.embedding", 5.0, tokens="zebra")
    sites = ["text_encoder.embedding", "text_encoder_2.embedding"]
    values = run(odd, wb.World("plain", prompt), wb.World("hit", prompt, [noise]), record=sites).values
    for site, tokenizer in zip(sites, (pipeline.tokenizer, other)):
        moved = np.abs(values[site].sel(world="hit") - values[site].sel(world="plain")).max(["seed", "channel"]) > 0
        assert tuple(np.flatnonzero(moved)) == tokenize(tokenizer, prompt).of("zebra")
    first, second = (tokenize(tokenizer, prompt).of("zebra") for tokenizer in (pipeline.tokenizer, other))
    assert first != second
    with pytest.raises(
        ValueError,
        match=r"tokens='zebra' stand at different positions for the tokenizers: \{'tokenizer': .*name positions",
    ):
        run(odd, wb.World("a", prompt, [wb.scale("unet.mid.*.cross.k", 2.0, tokens="zebra")]))


def test_locogen_gives_the_pooled_vector_a_row_of_its_own(model, scorer):
    found = wb.locogen(model, PROMPTS, wb.LocoGenSpec(windows=((0, 12),), **FEW), scorer=scorer)
    data, at = found.data, dict(metric="pixel_distance", prompt=0, seed=0)
    assert data.full.sel(**at) > data.pooled.sel(**at) > 1e-6
    effects = found.effects("similarity")
    clean, pooled = (data[name].sel(metric="similarity").mean() for name in ("clean", "pooled"))
    assert np.isclose(effects.pooled_effect, clean - pooled) and "pooled_effect_low" in effects
    target = model.run(PROMPTS[0].target, **FEW).images
    everything = [
        wb.replace_prompt("unet.*.cross.context", PROMPTS[0].target),
        wb.replace_prompt("text_encoder_2.pooled", PROMPTS[0].target),
    ]
    full = run(model, wb.World("full", ZEBRA, everything)).images
    assert np.allclose(full.values, target.values, atol=1e-5)
    strip = wb.locogen_images(model, PROMPTS[0], wb.LocoGenSpec(windows=((0, 2),), **FEW))
    assert list(strip.world.values) == ["unaltered", "all layers", "pooled vector", "0-1"]


def test_directions_and_edits_reach_both_encoders_and_the_pooled_vector(model):
    winter = wb.direction(model, [ZEBRA], [LION])
    assert {name.split(".")[0] for name in winter.sites} == {"text_encoder", "text_encoder_2"}
    pooled = wb.direction(model, [ZEBRA], [LION], "text_encoder_2.pooled")
    found = run(model, wb.World("plain", ZEBRA), wb.World("steered", ZEBRA, pooled))
    assert np.abs(found["plain"] - found["steered"]).max() > 1e-6
    swap = wb.edit.swap(model, "zebra", "lion", sites="unet.*.cross", tokens="all", templates=("a {}",))
    assert len(swap.sites) == 2 * len(model.sites("unet.*.cross"))
    text = wb.edit.diff_quickfix(model, {"a zebra": "a lion"}, templates=("{}",))
    assert {name.split(".")[0] for name in text.sites} == {"text_encoder", "text_encoder_2"}
    preview = run(model, wb.World("a", ZEBRA, text.preview())).images.values
    with model.applied(text):
        assert np.allclose(run(model, ZEBRA).images.values, preview, atol=1e-5)


def test_prompt_to_prompt_over_both_encoders(model):
    edit = wb.prompt_to_prompt(model, ZEBRA, "a lion in the savanna", self_resolution=1.0)
    images = run(model, *edit).images
    plain = run(model, wb.World("source", ZEBRA), wb.World("edited", "a lion in the savanna")).images
    assert np.allclose(images.sel(world="source"), plain.sel(world="source"), atol=1e-5)
    assert np.abs(images.sel(world="edited") - plain.sel(world="edited")).max() > 1e-6
    none = wb.prompt_to_prompt(model, ZEBRA, "a lion in the savanna", cross_replace_steps=0.0, self_replace_steps=0.0)
    assert np.allclose(run(model, *none)["edited"], plain.sel(world="edited"), atol=1e-6)


def test_the_negative_prompts_pooled_vector_is_replaced_too(model):
    """rows="both" gives the negative prompt's call the other prompt's vector, where the encoders are called for it."""
    given = dict(negative_prompt="a car")
    worlds = [
        wb.World("cond", ZEBRA, [wb.replace_prompt("text_encoder_2.pooled", LION)], **given),
        wb.World("both", ZEBRA, [wb.replace_prompt("text_encoder_2.pooled", LION, rows="both")], **given),
    ]
    found = run(model, *worlds)
    assert found.fired == {("cond", 0): 1, ("both", 0): 2}
    assert np.abs(found["cond"] - found["both"]).max() > 1e-6
