"""Laws on pipelines whose denoiser is a transformer: random tiny ones of every family, beside plain ones that the workbench never saw."""

import copy
from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch
from cases import equal, hooked, state_of
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

import workbench as wb
from workbench.engine.calls import FLOW_SCHEDULERS
from workbench.engine.gradients import Attribution
from workbench.identity import identity
from workbench.progress import Bar
from workbench.studies import tiny_transformers as tiny
from workbench.text import text_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:negative_prompt= has no effect:UserWarning"
)  # FLUX takes guidance as input

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"
LENGTH = 12  # of T5's part of the text
SCHEDULERS = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler dynamic": lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
}
STEPS = {"euler": (0, 1, 2), "euler dynamic": (0, 1, 2), "heun": (0, 0, 1, 1, 2)}  # of each call
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}
GUIDED = dict(num_inference_steps=3, guidance_scale=3.0)


@cache
def made(name: str, dtype: str = "float32"):
    torch.manual_seed(0)
    pipeline = tiny.sharpen(tiny.TRANSFORMERS[name]()).to(getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh(name: str, dtype: str = "float32", scheduler: str = "euler"):
    """A pipeline of one's own; tokenizers, which are slow to copy, are shared."""
    base = made(name, dtype)
    kept = [part for key, part in base.components.items() if key.startswith("tokenizer")]
    pipeline = copy.deepcopy(base, {id(each): each for each in kept})
    pipeline.scheduler = SCHEDULERS[scheduler]()
    return pipeline


def pair(name: str, dtype: str = "float32", scheduler: str = "euler"):
    """A model, and a plain pipeline like its own."""
    return wb.load(fresh(name, dtype, scheduler), max_sequence_length=LENGTH), fresh(name, dtype, scheduler)


def draw(pipeline, prompts, seeds=None, negative=None, **more) -> np.ndarray:
    """What diffusers makes of prompts in one batch: (row, y, x, colour)."""
    seeds = [0] * len(prompts) if seeds is None else seeds
    call = dict(generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="np") | GUIDED | more
    if negative is not None:
        call["negative_prompt"] = negative
    images = pipeline(list(prompts), max_sequence_length=LENGTH, **call).images
    return images.float().numpy() if isinstance(images, torch.Tensor) else images


def run(model, *worlds, **more):
    return model.run(worlds, progress=False, **GUIDED | more)


def apart(a, b) -> float:
    return float(np.abs(np.asarray(a, "f8") - np.asarray(b, "f8")).max())


each_family = pytest.mark.parametrize("name", tiny.TRANSFORMERS)
# Each family with some schedulers, sizes, dtypes; FLUX gives its scheduler noise levels, which Heun's does not take.
CASES = [
    ("sd3", "euler", "float32", dict()),
    ("sd3", "heun", "float32", dict(guidance_scale=1.0)),
    ("sd35", "euler", "bfloat16", dict()),
    ("sd35", "euler dynamic", "float32", dict(height=24, width=32)),
    ("flux", "euler", "bfloat16", dict()),
    ("flux", "euler dynamic", "float32", dict(height=24, width=32)),
]
two_families = pytest.mark.parametrize(
    "name", ["sd35", "flux"]
)  # where sd3 differs from sd35 by nothing that a law could see
each_case = pytest.mark.parametrize("name, scheduler, dtype, more", CASES, ids=str)
each_scheduler = pytest.mark.parametrize("name, scheduler", dict.fromkeys(case[:2] for case in CASES), ids=str)
OTHER = {"sd3": "heun", "sd35": "heun", "flux": "euler dynamic"}  # schedulers


@pytest.fixture(scope="module")
def both(request):
    """A model and a plain pipeline that no test changes, by family."""
    return cache(lambda name: pair(name))


def test_the_laws_know_every_flow_matching_scheduler():
    assert {type(make()).__name__ for make in SCHEDULERS.values()} == set(FLOW_SCHEDULERS)


@each_case
def test_1_without_interventions_it_is_the_plain_pipeline(name, scheduler, dtype, more):
    model, plain = pair(name, dtype, scheduler)
    found = run(model, ZEBRA, LION, seeds=(0, 5), **more)
    rows = [ZEBRA, ZEBRA, LION, LION]
    assert equal(found.images.values.reshape(4, *found.images.shape[2:]), draw(plain, rows, (0, 5, 0, 5), **more))
    latents = draw(plain, rows, (0, 5, 0, 5), **more | dict(output_type="latent"))
    if name == "flux":  # packed; diffusers unpacks them itself
        latents = plain._unpack_latents(torch.tensor(latents), *found.images.shape[2:4], 2).numpy()
    assert equal(found.latents.values.reshape(latents.shape), latents)
    alone = draw(plain, [ZEBRA], [5], **more)[0]
    assert equal(run(model, ZEBRA, seeds=5, **more).images[0, 0], alone)
    assert equal(model.generate(ZEBRA, seeds=5, **GUIDED | more)[0], np.round(alone * 255))
    negative = [wb.World("a", ZEBRA, negative_prompt="a red car"), wb.World("b", LION, negative_prompt="a lion")]
    if GUIDED["guidance_scale"] and "guidance_scale" not in more:
        expected = draw(plain, [ZEBRA, LION], negative=["a red car", "a lion"], **more)
        assert equal(run(model, *negative, **more).images[:, 0], expected)


@each_family
def test_2_identity_interventions_change_nothing(name, both):
    model, plain = both(name)
    noise, context = model.sites["transformer.noise"], model.sites["transformer.context_embedder"]
    width, given = context.axis("channel"), model.sites["transformer.context"].axis("channel")
    of_blocks = "transformer.*.{image,text}.{q,k,v,z,out,ff,block}"
    exact = [
        wb.scale([of_blocks, noise.name, "transformer.{patches,pooled,context}", "latents", "vae.latents"], 1.0),
        wb.add_noise("text_encoder*.embedding", 0.0, tokens="subject"),
        wb.steer("transformer.1.image.ff", np.ones(width), 0.0),
        wb.map_input(context.name, np.ones((width, 1)), np.zeros((1, given)), rows="both"),
    ]
    rounded = [
        wb.restore([of_blocks, "transformer.*.probs"], "clean"),
        wb.replace_prompt(["transformer.{context,context_embedder}", "*.pooled"], ZEBRA),
        wb.mix_attention("transformer.*.cross.probs", "clean"),
    ]
    worlds = [wb.World(str(i), ZEBRA, [each], subject="zebra") for i, each in enumerate(exact)]
    found = run(model, wb.World("clean", ZEBRA), *worlds)
    assert equal(found.images[:, 0], draw(plain, [ZEBRA] * 5))
    worlds = [wb.World(str(i), ZEBRA, [each]) for i, each in enumerate(rounded)]
    found = run(model, wb.World("clean", ZEBRA), wb.World("twin", ZEBRA), *worlds)
    assert all(apart(each, draw(plain, [ZEBRA])[0]) < TOLERANCE["float32"] for each in found.images[:, 0])


@each_family
def test_3_restoring_or_replacing_everything(name, both):
    """Also of joint attention: every layer given the text keys and values of another prompt's row, and its pooled vector."""
    model, plain = both(name)
    noise = wb.add_noise("text_encoder*.embedding", 1.0, seed=1, tokens="subject")
    restored = {
        "embeddings": "text_encoder*.embedding",
        "states": ["text_encoder*.{hidden,*.hidden,pooled,final}"],
        "inputs": ["transformer.context", "transformer.pooled"],
        "blocks": ["transformer.*.block", "transformer.pooled"],  # the last modulation reads it too
        "noise": "transformer.noise",
        "latents": "latents",
    }
    worlds = [wb.World("clean", ZEBRA), wb.World("corrupted", ZEBRA, noise, "zebra")]
    worlds += [wb.World(key, ZEBRA, [noise, wb.restore(at, "clean")], "zebra") for key, at in restored.items()]
    found, clean = run(model, *worlds), draw(plain, [ZEBRA])[0]
    assert apart(found["corrupted"][0], clean) > 1e-3
    for key in restored:
        assert apart(found[key][0], clean) < TOLERANCE["float32"], key
    pooled = "transformer.pooled" if name == "flux" else "text_encoder*.pooled"
    replaced = {
        "context": wb.replace_prompt(["transformer.context", "transformer.pooled"], LION),
        "embedder": wb.replace_prompt(["transformer.context_embedder", pooled], LION),
        "keys and values": wb.restore(["transformer.*.text.{k,v}", "transformer.pooled"], "lion"),
    }
    found = run(model, wb.World("lion", LION), *(wb.World(key, ZEBRA, each) for key, each in replaced.items()))
    lion = draw(plain, [LION])[0]
    assert apart(lion, clean) > 1e-3
    for key in replaced:
        assert apart(found[key][0], lion) < TOLERANCE["float32"], key
    short = wb.restore("transformer.[!0].text.{k,v}", "lion")  # a layer less, and no pooled vector
    assert apart(run(model, wb.World("lion", LION), wb.World("short", ZEBRA, short))["short"][0], lion) > 1e-4


@each_scheduler
def test_4_every_call_belongs_to_a_step(name, scheduler):
    model, plain = pair(name, scheduler=scheduler)
    steps = STEPS[scheduler]
    second = [call for call, step in enumerate(steps) if step == 1]
    worlds = [wb.World("clean", ZEBRA), wb.World("second", ZEBRA, wb.scale("transformer.noise", 1.5, steps=1))]
    found = run(model, *worlds, record=["transformer.noise", "transformer.1.text.v"])
    with hooked(plain.transformer, second, 1.5, row=1, of=2) as noises:
        with hooked(plain.transformer.transformer_blocks[1].attn.add_v_proj) as values:
            clean, image = draw(plain, [ZEBRA, ZEBRA])
    assert len(noises) == len(steps)
    assert apart(found["clean"][0], clean) < TOLERANCE["float32"] > apart(found["second"][0], image)
    assert apart(image, clean) > 1e-3
    assert found.fired == {("second", 0): len(second)}
    recorded = found.values["transformer.noise"]
    assert tuple(recorded.step.values) == steps
    assert np.allclose(recorded.timestep.values, plain.scheduler.timesteps.numpy())
    assert apart(recorded.sel(world="second")[0], torch.stack([call[-1] for call in noises])) < 1e-4
    assert apart(found.values["transformer.1.text.v"][0, 0], torch.stack([call[-2] for call in values])) < 1e-5


@two_families
def test_5_an_exception_leaves_the_model_as_it_was(name):
    model, plain = pair(name)
    assert equal(run(model, ZEBRA).images[0], draw(plain, [ZEBRA]))
    before = state_of(model.pipeline)
    for site in (
        "text_encoder.1.mlp",
        "transformer.1.cross.probs",
        "transformer.1.text.block",
        "latents",
        "vae.latents",
    ):
        with pytest.raises(ZeroDivisionError):
            run(model, wb.World("broken", ZEBRA, wb.apply(site, lambda value: 1 / 0)))
        assert state_of(model.pipeline) == before, site
    assert equal(run(model, ZEBRA).images[0], draw(plain, [ZEBRA]))


@two_families
def test_6_a_row_is_its_own(name, both):
    model, _ = both(name)
    strong = [
        wb.scale("transformer.*.image.block", 1.5, steps=[0, 2]),
        wb.ablate("transformer.1.text.block", "mean", over="token"),
        wb.add_noise("text_encoder*.embedding", 1.0, tokens="subject"),
        wb.scale("transformer.*.cross.probs", 2.0, tokens="zebra", heads=[0]),
        wb.scale("transformer.pooled", 0.5),
    ]
    worlds = [wb.World("clean", ZEBRA), wb.World("hit", ZEBRA, strong, "zebra"), wb.World("lion", LION)]
    found = run(model, *worlds, seeds=(0, 5), record="transformer.context_embedder")
    alone = run(model, worlds[1], seeds=5)
    assert apart(alone["hit"].sel(seed=5), found["hit"].sel(seed=5)) < TOLERANCE["float32"]
    assert apart(run(model, *worlds, seeds=(0, 5), batch_size=3).images, found.images) < TOLERANCE["float32"]
    without = run(model, worlds[0], wb.World("hit", ZEBRA), worlds[2], seeds=(0, 5))
    for world in ("clean", "lion"):
        assert apart(found[world], without[world]) < TOLERANCE["float32"]
    assert apart(found["hit"], without["hit"]) > 1e-3


@two_families
def test_11_changes_behind_the_models_back_are_followed(name):
    """Another scheduler, swapped layers, fused projections."""
    model, plain = pair(name)
    run(model, ZEBRA)
    for pipeline in (model.pipeline, plain):
        pipeline.scheduler = SCHEDULERS[OTHER[name]]()
        blocks = pipeline.transformer.transformer_blocks
        blocks[0].ff, blocks[1].ff = blocks[1].ff, blocks[0].ff
    assert equal(run(model, ZEBRA).images[0], draw(plain, [ZEBRA]))
    model.pipeline.scheduler = DDIMScheduler()
    with pytest.raises(
        ValueError, match="DDIMScheduler is not for a model that was trained by flow matching; set another"
    ):
        run(model, ZEBRA)
    with pytest.raises(
        ValueError, match="FlowMatchHeunDiscreteScheduler is not for a model that was not trained by flow"
    ):
        wb.engine.calls.calls_of(SCHEDULERS["heun"](), 3)
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(ValueError, match="stochastic_sampling"):
        run(model, ZEBRA)


@two_families
def test_10_what_pictures_depend_on_is_in_the_identity(name):
    one = fresh(name)
    model = wb.load(one, max_sequence_length=LENGTH)
    before = model.record
    assert before == wb.load(fresh(name), max_sequence_length=LENGTH).record != wb.load(fresh(name)).record
    assert before["max_sequence_length"] == LENGTH == copy.deepcopy(model).max_sequence_length
    one.scheduler = SCHEDULERS[OTHER[name]]()
    assert identity(one) != before


@each_family
def test_sites_are_as_they_say(name):
    """By plain hooks, at every site, and by zeros at one of each kind."""
    found = wb.check(wb.load(fresh(name), max_sequence_length=LENGTH), progress=False)
    assert found.passed, found
    assert (found.table.claim == "probabilities").sum() > 10


CONCEPT = {"a zebra": "a lion"}


def edit_of(
    model, sites=("transformer.context_embedder", "transformer.1.text.v", "text_encoder*.0.{fc2,wo}"), size=1.0
):
    """A random edit of rank 2, as large as the weights."""
    generator, updates = torch.Generator().manual_seed(0), []
    for site in model.sites(*sites):
        component, _, path = site.module.partition(".")
        weight = getattr(model.pipeline, component).get_submodule(path).weight
        b, a = (torch.randn(shape, generator=generator) for shape in ((weight.shape[0], 2), (2, weight.shape[1])))
        updates.append(wb.edit.update_of(model, site.name, b * size * weight.norm() / (b @ a).norm(), a))
    return wb.Edit(updates)


@two_families
def test_7_preview_is_commit_and_undo_is_exact(name):
    model, plain = pair(name)
    run(model, ZEBRA)
    edit, before = edit_of(model), state_of(model.pipeline)
    preview = run(model, wb.World("clean", ZEBRA), wb.World("edited", ZEBRA, edit))
    with model.applied(edit):
        committed = run(model, ZEBRA).images[0, 0]
    for update in edit.updates:
        component, _, path = update.module.partition(".")
        getattr(plain, component).get_submodule(path).weight.data += update.b @ update.a
    changed = draw(plain, [ZEBRA])[0]
    assert apart(committed, changed) < 1e-4 > apart(preview["edited"][0], changed)
    assert apart(changed, preview["clean"][0]) > 1e-3
    for i in range(50 if name == "flux" else 5):
        model.commit(0.98**i * edit, base=False)
    while model.edits:
        model.undo()
    assert state_of(model.pipeline) == before


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_8_an_exported_lora_gives_the_commits_images(name, tmp_path):
    model, plain = pair(name)
    edit = edit_of(model, ("transformer.context_embedder", "transformer.1.text.v", "text_encoder*.0.fc2"))  # of CLIP
    plain.load_lora_weights(edit.to_lora(tmp_path / "edit.safetensors", layout="peft"))
    with model.applied(edit):
        committed = run(model, ZEBRA)
    assert (
        apart(committed.images[0], draw(plain, [ZEBRA]))
        < 1e-4
        < apart(committed.images[0], run(model, ZEBRA).images[0])
    )
    with pytest.raises(ValueError, match=r"layout='kohya'\): diffusers loads no such file into .* give layout='peft'"):
        edit.to_lora(tmp_path / "edit.safetensors")
    model, _ = pair("sd35")
    with pytest.raises(ValueError, match=r"text_encoder_3.0.wo cannot travel as LoRA"):
        edit_of(model).to_lora(tmp_path / "edit.safetensors", layout="peft")


@each_family
def test_closed_form_edits_of_what_is_given_the_text_alone(name, both):
    """The old words' states give the new words' embeddings, so that with the same pooled vector the pictures are the same."""
    model, _ = both(name)
    edit = wb.edit.uce(model, CONCEPT, templates=("{}",), tokens="all", lam=1e-9)
    assert (
        edit.sites == ("transformer.context_embedder",) and wb.edit.uce(model, CONCEPT, tokens="all", rank=1).rank == 1
    )
    guide = wb.World("guide", "a lion", wb.replace_prompt("transformer.pooled", "a zebra"))
    old = run(
        model, "a zebra", wb.World("edited", "a zebra", edit), guide, guidance_scale=1.0
    )  # one half: no negative prompt
    assert apart(old["edited"], old["guide"]) < 0.02 * apart(old["a zebra"], old["guide"])
    with model.applied(edit):
        assert apart(run(model, "a zebra", guidance_scale=1.0).images[0], old["edited"]) < 1e-4
    for words in (
        wb.edit.diff_quickfix(model, CONCEPT, sites="text_encoder*.0.out"),
        wb.edit.uce(model, CONCEPT, average=True),
    ):
        assert words.rank >= 1
    with pytest.raises(ValueError, match=r"in joint attention transformer\.context_embedder is given the text alone"):
        wb.edit.uce(model, CONCEPT, sites="transformer.1.text.q")


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_locogen_gives_layers_the_targets_own_keys_and_values(name, both):
    model, plain = both(name)
    prompt = wb.Prompt(ZEBRA, "zebra", target=LION)
    spec = wb.LocoGenSpec(windows=((0, 3), (1, 2)), inputs=("kv", "v"), seeds=(0,), **GUIDED)
    strip = wb.locogen_images(model, prompt, spec)
    target, own = draw(plain, [LION])[0], draw(plain, [ZEBRA])[0]
    assert (
        apart(strip.sel(world="all layers")[0], target)
        < TOLERANCE["float32"]
        > apart(strip.sel(world="unaltered")[0], own)
    )
    assert len({float(each.mean()) for each in strip}) == len(strip)
    blocks = [plain.transformer.transformer_blocks[i].attn.add_v_proj for i in (1, 2)]
    with ExitStack() as stack:  # by plain hooks: rows are the target and the prompt, in both halves
        for block in blocks:
            stack.callback(block.register_forward_hook(lambda module, given, out: out[[0, 1, 2, 2]]).remove)
        expected = draw(plain, [LION, ZEBRA])[1]
    assert apart(strip.sel(world="1-2 v")[0], expected) < TOLERANCE["float32"]
    found = wb.locogen(model, wb.PromptSet("one", (prompt,), {}), spec, scorer=brightness)
    assert (
        found.layers == [f"transformer.{i}.joint" for i in range(3)]
        and len(found.best(2, "brightness", inputs="kv")) == 2
    )


def brightness(images):
    """Linear in the picture."""
    return images.mean((1, 2, 3))


@each_family
def test_traces_attributions_and_directions(name, both):
    model, _ = both(name)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    common = dict(seeds=(0,), draws=1, **GUIDED)
    sites = ("text_encoder*.embedding", "transformer.*.{image,text}.{out,ff}")
    trace = wb.causal_trace(
        model, prompts, wb.TraceSpec(sites=sites, tokens=("subject", "all"), **common), scorer=brightness
    )
    restored, worst = (trace[key].sel(metric="pixel_distance") for key in ("restored", "corrupted"))
    if name == "flux":  # at two blocks of two streams and two of one
        assert {"transformer.3.image.out", "transformer.2.text.ff"} <= set(trace.site.values)
    assert restored.sel(site="text_encoders.embedding", token="subject").max() < 1e-6 < 1e-4 < worst.min()
    assert {"transformer.0.text.ff", "transformer.2.image.ff"} <= set(trace.site.values)
    # of a small corruption, what one backward pass says is what restoring does
    small = wb.World("small", ZEBRA, wb.add_noise("text_encoder*.embedding", 2e-3, tokens="subject"), "zebra")
    back = [wb.restore("transformer.1.text.out", "clean"), wb.restore("transformer.0.image.ff", "clean", steps=[1])]
    back += [wb.restore("text_encoder.0.mlp", "clean"), wb.restore("transformer.pooled", "clean")]
    worlds = [wb.World(str(i), ZEBRA, [*small.interventions, each], "zebra") for i, each in enumerate(back)]
    settings = model._settings(3, 3.0)
    work = Attribution(model, wb.World("clean", ZEBRA, subject="zebra"), [small], back, settings, weighted)
    found = torch.cat(work.of([0], Bar(1, "attribution", shown=False)).effects)
    exact = run(model, wb.World("clean", ZEBRA), small, *worlds).images
    values = [weighted(torch.tensor(each.values).permute(0, 3, 1, 2)) for each in exact]
    patched = torch.cat(values[2:]) - values[1]
    assert ((found - patched).abs() <= 0.05 * patched.abs().max()).all() and (patched.abs() > 1e-6).all(), (
        found,
        patched,
    )
    direction = wb.direction(model, [ZEBRA], [LION], "transformer.1.{image,text}.ff", **GUIDED)
    steered = run(model, ZEBRA, wb.World("steered", ZEBRA, direction))
    assert (
        apart(steered[ZEBRA], steered["steered"]) > 1e-3 and dict(direction["transformer.1.text.ff"].sizes)["step"] == 3
    )


def weighted(images):
    weights = torch.linspace(-1, 1, images[0].numel(), device=images.device).view(images.shape[1:])
    return (images * weights).mean((1, 2, 3))


def test_words_are_found_in_every_encoders_part_of_the_text(both):
    model, _ = both("sd35")
    clip, count = 32, 32 + LENGTH
    read = text_of(model.pipeline, ZEBRA)
    assert len(read.pieces) == count == model.sites["transformer.context"].axis("token")
    assert read.of("zebra") == (2, clip + 1) and read.positions("eos") == (6, clip + 5)
    assert read.positions("padding") == (*range(7, clip), *range(clip + 6, count))
    assert read.positions(-1) == (count - 1,) and read.positions("subject_last", "zebra") == (2, clip + 1)
    silent = wb.World("silent", ZEBRA, wb.ablate("transformer.context", tokens="zebra"))
    values = run(model, ZEBRA, silent, record="transformer.context").values["transformer.context"][:, 0, 0]
    assert np.flatnonzero(np.abs(values[0] - values[1]).max("channel")).tolist() == [2, clip + 1]
    without, _ = both("sd3")
    assert text_of(without.pipeline, ZEBRA).positions("padding") == (*range(7, clip), *range(clip, count))
    wrong = {
        "the text encoder has positions 0 to 43": wb.scale("transformer.1.text.v", 0.0, tokens=44),
        "the site's axes are ('row', 'pixel', 'channel'); leave tokens out": wb.scale(
            "transformer.1.image.v", 0.0, tokens=1
        ),
        "the attention has heads 0 to 1": wb.scale("transformer.1.text.v", 0.0, heads=[2]),
        "heads are apart only at": wb.scale("transformer.1.text.ff", 0.0, heads=[0]),
        "replace_prompt works at": wb.replace_prompt("transformer.1.text.v", LION),
        "no site matches 'unet.mid.cross'": wb.scale("unet.mid.cross", 0.0),
        "no site matches 'transformer.2.text.ff'": wb.scale("transformer.2.text.ff", 0.0),
        "the denoiser never reads it": wb.scale("transformer.2.text.q", 0.0),
        "multiple of 4 pixels": None,
    }
    for message, intervention in wrong.items():
        with hooked(model.pipeline.text_encoder) as calls, pytest.raises((ValueError, KeyError)) as raised:
            run(model, wb.World("a", ZEBRA, intervention or ()), **({} if intervention else {"height": 18}))
        assert message in str(raised.value) and not calls
    with pytest.warns(UserWarning, match="the text encoder reads 12"):
        run(model, "a zebra and a giraffe with a hat", num_inference_steps=1)


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_maps_and_contribution_are_those_of_the_pictures_queries_at_the_text(name, both):
    """Against an independent computation by plain hooks, at one step."""
    model, plain = both(name)
    few = dict(num_inference_steps=1, guidance_scale=1.0)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    found = wb.attention_contribution(model, prompts, wb.AttentionSpec(seeds=(0,), **few))
    maps = wb.attention_maps(model, ZEBRA, **few)
    attention = plain.transformer.transformer_blocks[1].attn
    parts = [getattr(attention, child) for child in ("to_q", "to_k", "add_k_proj", "add_v_proj")]
    with ExitStack() as stack:
        seen = [stack.enter_context(hooked(part)) for part in parts]
        draw(plain, [ZEBRA], **few)
    query, key, text_key, text_value = (
        values[0][0].unflatten(-1, (attention.heads, -1)).transpose(0, 1) for values in seen
    )
    if attention.norm_q is not None:
        query, key, text_key = attention.norm_q(query), attention.norm_k(key), attention.norm_added_k(text_key)
    keys = torch.cat([text_key, key], 1)  # text first: the order is nothing that a sum over keys knows
    probs = (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1)[..., : text_key.shape[1]]
    own = list(text_of(model.pipeline, ZEBRA).of("zebra"))
    mixed = (probs[..., own] @ text_value[:, own]).transpose(0, 1).flatten(1) @ attention.to_out[0].weight.T
    contribution = found.clean.sel(metric="contribution", site="transformer.1.joint").item()
    assert abs(contribution - mixed.norm(dim=-1).mean().item()) < 1e-5 * contribution
    drawn = maps.maps["transformer.1.joint"].values[0, 0, 0].reshape(attention.heads, 16, -1)
    assert apart(drawn, probs.detach()) < 1e-6
    assert dict(maps.word("zebra").sizes) == {"site": 3, "world": 1, "seed": 1, "steps": 1, "head": 2, "y": 4, "x": 4}


@each_family
def test_prompt_to_prompt_takes_the_sources_attention_at_the_text(name, both):
    model, plain = both(name)
    lion = "a lion in the savanna"
    worlds = wb.prompt_to_prompt(
        model, ZEBRA, lion, cross_replace_steps=1.0, self_resolution=0.5, self_replace_steps=1.0
    )
    found = run(model, *worlds)
    assert apart(found["source"][0], draw(plain, [ZEBRA])[0]) < TOLERANCE["float32"]
    assert apart(found["edited"][0], draw(plain, [lion])[0]) > 1e-5
    own = wb.prompt_to_prompt(model, ZEBRA, ZEBRA, self_resolution=0.5)
    assert apart(run(model, *own)["edited"][0], found["source"][0]) < TOLERANCE["float32"]
    with pytest.raises(ValueError, match=r"raise it to at least 0\.5"):
        wb.prompt_to_prompt(model, ZEBRA, lion)


def test_what_a_transformer_cannot_do_is_refused(both, scorer):
    model, _ = both("sd3")
    picture = model.generate(ZEBRA, num_inference_steps=1)[0]
    asked = {
        "textual_inversion: it trains on the loss of noise": lambda: wb.edit.textual_inversion(
            model, "zebra", [picture]
        ),
        "invert: it runs DDIM's steps backwards": lambda: wb.invert(model, picture, ZEBRA),
        "head_relevance: it asks what a layer's keys would be": lambda: wb.head_relevance(
            model, ZEBRA, {"a": ["b"], "c": ["d"]}
        ),
        "guidance_rescale=0.5: StableDiffusion3Pipeline has no such argument": lambda: run(
            model, ZEBRA, guidance_rescale=0.5
        ),
    }
    for message, ask in asked.items():
        with pytest.raises(ValueError) as raised:
            ask()
        assert message in str(raised.value)
    with pytest.raises(TypeError, match=r"run\(max_sequence_length=...\): it is the model's own"):
        run(model, ZEBRA, max_sequence_length=5)
    with pytest.raises(ValueError, match=r"max_sequence_length=4: StableDiffusionPipeline has no such argument"):
        wb.load(wb.load().pipeline, max_sequence_length=4)


def test_the_trained_one_is_loaded_with_its_own_length_of_text():
    """And all its layers given another prompt's keys and values, with its pooled vector, draw that prompt's picture."""
    model = wb.load("menagerie-dit")
    assert (model.max_sequence_length, model.num_inference_steps, model.guidance_scale) == (4, 25, 2.0)
    zebra, lion, few = "a zebra on the beach", "a lion in the snow", dict(num_inference_steps=3)
    given = wb.restore(["transformer.*.text.{k,v}", "transformer.pooled"], "lion")
    found = model.run([wb.World("lion", lion), wb.World("given", zebra, given), zebra], progress=False, **few)
    assert apart(found["given"], found["lion"]) < 1e-5 < 0.1 < apart(found[zebra], found["lion"])
    seed = torch.Generator().manual_seed(0)
    call = dict(max_sequence_length=4, guidance_scale=2.0, output_type="np", generator=seed)
    assert equal(model.run(zebra, progress=False, **few).images[0, 0], model.pipeline(zebra, **few, **call).images[0])


@each_family
def test_streams_are_told_by_name_not_by_position(name, both):
    """Values of a stream's tokens taken away are the probabilities of looking at them taken away: with picture and text mixed up, or cut
    at the wrong place, these would be different things. Also told of diffusers' own order, by plain hooks."""
    model, plain = both(name)
    at = {"text": ("cross.probs", "text.text.probs"), "image": ("self.probs", "text.image.probs")}
    for layer in (0, len(model.sites("transformer.*.joint")) - 1):
        worlds = [wb.World("clean", ZEBRA)]
        for stream, kinds in at.items():
            looked = [f"transformer.{layer}.{kind}" for kind in kinds]
            looked = [each for each in looked if model.sites[each].read]
            for rows in ("cond",):
                worlds.append(
                    wb.World(f"{stream} values", ZEBRA, wb.ablate(f"transformer.{layer}.{stream}.v", rows=rows))
                )
                worlds.append(wb.World(f"{stream} probabilities", ZEBRA, wb.scale(looked, 0.0, rows=rows)))
        found = run(model, *worlds)
        for stream in at:
            values, probs = found[f"{stream} values"], found[f"{stream} probabilities"]
            assert apart(values, probs) < TOLERANCE["float32"] < 1e-4 < apart(values, found["clean"]), (layer, stream)
        assert apart(found["text values"], found["image values"]) > 1e-4
    first, kind = (
        ("transformer.2", "single_transformer_blocks.0.attn.to_k")
        if name == "flux"
        else ("transformer.1", "transformer_blocks.1.attn.")
    )
    recorded = run(model, ZEBRA, record=f"{first}.{{image,text}}.k").values
    image, text = (recorded[f"{first}.{stream}.k"].values[0, 0, 0] for stream in ("image", "text"))
    if name == "flux":  # FLUX: text, then picture
        with hooked(plain.transformer.get_submodule(kind)) as keys:
            draw(plain, [ZEBRA])
        assert apart(keys[0][0, :LENGTH], text) < 1e-5 > apart(keys[0][0, LENGTH:], image)
    else:
        with hooked(plain.transformer.get_submodule(f"{kind}to_k")) as of_image:
            with hooked(plain.transformer.get_submodule(f"{kind}add_k_proj")) as of_text:
                draw(plain, [ZEBRA])
        assert apart(of_text[0][1], text) < 1e-5 > apart(of_image[0][1], image)


def test_flux_takes_guidance_as_an_input(both):
    model, plain = both("flux")
    weak, strong = (run(model, ZEBRA, guidance_scale=scale).images[0] for scale in (1.0, 7.0))
    assert equal(strong, draw(plain, [ZEBRA], guidance_scale=7.0)) and apart(weak, strong) > 1e-5
    off = wb.World("off", ZEBRA, wb.ablate("transformer.guidance"))
    assert apart(run(model, off, guidance_scale=7.0).images[0], run(model, off, guidance_scale=1.0).images[0]) == 0
    with pytest.raises(ValueError, match="the run has no unconditional half"):
        run(model, wb.World("a", ZEBRA, wb.scale("transformer.1.text.v", 0.0, rows="uncond")))
    with pytest.raises(TypeError, match=r"true_cfg_scale=...\): the denoiser would be called twice in turn"):
        run(model, ZEBRA, true_cfg_scale=2.0)
    heun = fresh("flux", scheduler="heun")
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler does not take what the pipeline gives it"):
        run(wb.load(heun), ZEBRA)
    latents = model.latents((0, 5))
    given = run(model, ZEBRA, seeds=(0, 5), latents=latents)
    assert equal(given.images, run(model, ZEBRA, seeds=(0, 5)).images)
    schnell = tiny.flux(guidance_embeds=False)
    assert "transformer.guidance" not in wb.load(schnell).sites and wb.load(schnell).num_inference_steps == 4


def test_locogen_reaches_blocks_of_one_stream(both):
    """All layers of FLUX, and the pooled vector, given the target's own text draw the target's picture."""
    model, plain = both("flux")
    prompt = wb.Prompt(ZEBRA, "zebra", target=LION)
    strip = wb.locogen_images(model, prompt, wb.LocoGenSpec(windows=((0, 2), (2, 2)), seeds=(0,), **GUIDED))
    assert apart(strip.sel(world="all layers")[0], draw(plain, [LION])[0]) < TOLERANCE["float32"]
    assert len({float(each.mean()) for each in strip}) == len(strip) == 5
    maps = wb.attention_maps(model, ZEBRA, **GUIDED)
    assert sorted(maps.maps) == [f"transformer.{i}.joint" for i in range(4)]


@each_family
def test_one_call_on_a_given_picture_is_at_the_step_that_was_asked(name, both):
    """The denoiser sees the picture's latents, mixed with the seed's noise as far as flow matching has it at that step."""
    model, _ = both(name)
    (picture,) = model.generate(LION, **GUIDED)
    calls, seen = model.calls(4), {}

    def look(module, args, kwargs):
        seen.update(kwargs)

    for step in (0, 1, 3):
        handle = model.pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
        try:
            found = model.run_once(
                {"a": ZEBRA}, {"a": picture}, step=step, num_inference_steps=4, record="transformer.1.text.v"
            )
        finally:
            handle.remove()
        assert found.values["transformer.1.text.v"].sizes["step"] == 1
        time = calls.timestep[step]
        assert abs(seen["timestep"][0].item() * model.family.clock - time) < 1e-3 * time
        noise, clean = model.latents(0), model.encode([picture])
        expected = model.family.packed(time / 1000 * noise + (1 - time / 1000) * clean)
        assert apart(seen["hidden_states"].detach(), expected) < 1e-4


def test_a_search_goes_through_blocks_of_one_layer(both):
    model, _ = both("sd3")
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra", target=LION),), {})
    found = wb.locogen_search(
        model, prompts, wb.LocoGenSpec(seeds=(0,), **GUIDED), width=1, metric="brightness", scorer=brightness
    )
    assert found.exhaustive == 3 and found.best(1, "brightness")[0].endswith(".joint")
