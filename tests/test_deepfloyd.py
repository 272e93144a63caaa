"""Laws on DeepFloyd IF's stage I: random tiny pipelines, beside plain ones that the workbench never saw."""

import copy
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from cases import equal, hooked, state_of

import workbench as wb
from workbench.engine.gradients import Attribution
from workbench.families import check_class
from workbench.progress import Bar
from workbench.studies import tiny_transformers as tiny
from workbench.text import text_of

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"
GUIDED = dict(num_inference_steps=3, guidance_scale=3.0)
NEAR = 1e-4
# The first ones part the noise from the variance that the UNet predicts with it; for the others the pipeline does, where it is told so.
LEARNED = dict.fromkeys(("DDPMScheduler", "DPMSolverMultistepScheduler"), "learned_range")
CASES = [
    ("DDPMScheduler", "float32", {}),
    ("DDPMScheduler", "bfloat16", dict(guidance_scale=1.0)),
    ("DPMSolverMultistepScheduler", "bfloat16", {}),
    ("HeunDiscreteScheduler", "float32", dict(height=20, width=24)),
    ("PNDMScheduler", "float32", {}),
]
STEPS = {"HeunDiscreteScheduler": (0, 0, 1, 1, 2), "PNDMScheduler": (0, 0, 1, 2)}  # of each call


@cache
def made(dtype: str = "float32", **unet):
    torch.manual_seed(0)
    pipeline = tiny.deepfloyd(**unet).to(getattr(torch, dtype))
    for name, module in pipeline.unet.named_modules():  # let attention, and the text in it, matter
        if name.endswith(("to_q", "add_k_proj", "add_v_proj", "to_out.0")):
            module.weight.data *= 3
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduler(name: str):
    own = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    if name not in LEARNED:  # of the model's own schedule the first noise would be thousands of times a picture's range
        own |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config = dict(made().scheduler.config) | {"variance_type": LEARNED.get(name, "fixed_small")}
    return getattr(diffusers, name).from_config(config | own)


def fresh(dtype: str = "float32", sampler: str = "DDPMScheduler", **unet):
    base = made(dtype, **unet)
    pipeline = copy.deepcopy(base, {id(base.tokenizer): base.tokenizer})
    pipeline.scheduler = scheduler(sampler)
    return pipeline


def pair(*args, **unet):
    """A model, and a plain pipeline like its own."""
    return wb.load(fresh(*args, **unet)), fresh(*args, **unet)


@pytest.fixture(scope="module")
def both():
    """A model and a plain pipeline that no test changes."""
    return pair()


def draw(pipeline, prompts, seeds=None, **more) -> np.ndarray:
    """What diffusers makes of prompts in one batch: (row, y, x, colour)."""
    seeds = [0] * len(prompts) if seeds is None else seeds
    call = dict(generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="np") | GUIDED | more
    return pipeline(list(prompts), **call).images


def run(model, *worlds, **more):
    return model.run(worlds, progress=False, **GUIDED | more)


def apart(a, b) -> float:
    return float(np.abs(np.asarray(a, "f8") - np.asarray(b, "f8")).max())


@pytest.mark.parametrize("sampler, dtype, more", CASES, ids=str)
def test_1_without_interventions_it_is_the_plain_pipeline(sampler, dtype, more):
    """The pipeline takes no latents: noise, and that of stochastic steps, is the seed's own in every row all the same."""
    model, plain = pair(dtype, sampler)
    found = run(model, ZEBRA, wb.World("twin", ZEBRA), LION, seeds=(0, 5), **more)
    rows = [ZEBRA, ZEBRA, ZEBRA, ZEBRA, LION, LION]
    assert equal(found.images.values.reshape(6, *found.images.shape[2:]), draw(plain, rows, [0, 5] * 3, **more))
    pixels = draw(plain, rows, [0, 5] * 3, **more | dict(output_type="pt")).float()
    assert equal(found.latents.values.reshape(pixels.shape), pixels)
    assert equal(found[ZEBRA], found["twin"])
    alone = draw(plain, [ZEBRA], [5], **more)[0]
    assert equal(run(model, ZEBRA, seeds=5, **more).images[0, 0], alone)
    assert equal(model.generate(ZEBRA, seeds=5, **GUIDED | more)[0], np.round(alone * 255))
    assert equal(draw(plain, [ZEBRA], **more | dict(generator=torch.Generator().manual_seed(5)))[0], alone)
    if "guidance_scale" not in more:
        negative = [wb.World("a", ZEBRA, negative_prompt="a red car"), wb.World("b", LION, negative_prompt="a lion")]
        expected = draw(plain, [ZEBRA, LION], negative_prompt=["a red car", "a lion"], **more)
        assert equal(run(model, *negative, **more).images[:, 0], expected)


@pytest.mark.parametrize("sampler", STEPS)
def test_4_every_call_belongs_to_a_step(sampler):
    """Also what passes between the steps, for which the pipeline has no callback that takes anything back."""
    model, plain = pair("float32", sampler)
    steps = STEPS[sampler]
    second = [call for call, step in enumerate(steps) if step == 1]
    predicted = ["unet.noise", "unet.variance"]
    worlds = [wb.World("clean", ZEBRA), wb.World("second", ZEBRA, wb.scale("unet.noise", 1.5, steps=1))]
    worlds.append(wb.World("between", ZEBRA, wb.scale("latents", 0.5, steps=2)))
    found = run(model, *worlds, record=["unet.noise", "latents"])
    with hooked(plain.unet.conv_out, second, 1.5, row=1, of=3) as noises:
        pixels = draw(plain, [ZEBRA] * 3, output_type="pt").numpy()
    size = np.abs(pixels).max()
    assert len(noises) == len(steps) and not model.sites[predicted[1]].read
    drawn = found.latents[:, 0].values / size
    assert apart(drawn[:2], pixels[:2] / size) < NEAR < 1e-3 < apart(drawn[0], drawn[1])
    assert found.fired == {("second", 0): len(second), ("between", 0): 1}
    assert tuple(found.values["unet.noise"].step.values) == steps
    assert tuple(found.values["latents"].step.values) == (0, 1, 2)
    assert apart(drawn[2], 0.5 * drawn[0]) < NEAR


def test_2_and_3_identities_and_restoring_or_replacing_everything(both):
    model, plain = both
    clean, lion = draw(plain, [ZEBRA])[0], draw(plain, [LION])[0]
    noise = wb.add_noise("text_encoder.embedding", 1.0, seed=1, tokens="subject")
    width = model.sites["unet.mid.cross"].axis("channel")
    exact = {
        "parts": wb.scale(
            ["unet.*.{self,cross}.{q,k,v,z}", "unet.*.{cross,block,resnet}", "unet.{pooled,context}"], 1.0
        ),
        "ends": wb.scale(["unet.{noise,variance}", "latents"], 1.0),
        "no noise": wb.add_noise("text_encoder.embedding", 0.0, tokens="subject"),
        "no steering": wb.steer("unet.mid.cross", np.ones(width), 0.0),
    }
    rounded = {
        "twin": wb.restore(["unet.*.probs", "unet.*.{q,k,v}"], "clean"),
        "own prompt": wb.replace_prompt(
            ["unet.*.cross.{context,k,v}", "unet.{context,context_embedder,pooled}"], ZEBRA
        ),
        "mixed": wb.mix_attention("unet.*.cross.probs", "clean"),
        "embeddings": [noise, wb.restore("text_encoder.embedding", "clean")],
        "states": [noise, wb.restore("text_encoder.final", "clean")],
        "inputs": [noise, wb.restore(["unet.context", "unet.pooled"], "clean")],
        "predicted": [noise, wb.restore("unet.{noise,variance}", "clean")],
        "latents": [noise, wb.restore("latents", "clean")],
    }
    found = run(model, *(wb.World(name, ZEBRA, rules, "zebra") for name, rules in exact.items()))
    assert equal(found.images[:, 0], draw(plain, [ZEBRA] * len(exact)))
    worlds = [wb.World("clean", ZEBRA), wb.World("corrupted", ZEBRA, noise, "zebra")]
    found = run(model, *worlds, *(wb.World(name, ZEBRA, rules, "zebra") for name, rules in rounded.items()))
    assert apart(found["corrupted"][0], clean) > 1e-3
    for name in rounded:
        assert apart(found[name][0], clean) < NEAR, name
    given = {at: wb.replace_prompt([at, "unet.pooled"], LION) for at in ("unet.context", "unet.context_embedder")}
    given |= {at: wb.replace_prompt([at, "unet.pooled"], LION) for at in ("unet.*.cross.context", "unet.*.cross.{k,v}")}
    given["without pooled"] = wb.replace_prompt("unet.*.cross.context", LION)
    found = run(model, *(wb.World(name, ZEBRA, rule) for name, rule in given.items()))
    short = found["without pooled"][0]
    assert apart(short, lion) > 1e-3 < apart(short, clean)
    for name in list(given)[:-1]:
        assert apart(found[name][0], lion) < NEAR, name


def test_5_6_an_exception_leaves_the_model_as_it_was_and_a_row_is_its_own():
    model, plain = pair()
    assert equal(run(model, ZEBRA).images[0], draw(plain, [ZEBRA]))
    before = state_of(model.pipeline)
    for site in ("text_encoder.1.mlp", "unet.mid.cross.probs", "unet.mid.self.v", "unet.noise", "latents"):
        with pytest.raises(ZeroDivisionError):
            run(model, wb.World("broken", ZEBRA, wb.apply(site, lambda value: 1 / 0)))
        assert state_of(model.pipeline) == before, site
    strong = [
        wb.scale("unet.*.block", 1.5, steps=[0, 2]),
        wb.ablate("unet.mid.cross.v", "mean", over="token"),
        wb.add_noise("text_encoder.embedding", 1.0, tokens="subject"),
        wb.scale("unet.*.cross.probs", 2.0, tokens="zebra", heads=[0]),
        wb.scale("unet.pooled", 0.5),
        wb.scale("unet.variance", 0.5, rows="cond"),
    ]
    worlds = [wb.World("clean", ZEBRA), wb.World("hit", ZEBRA, strong, "zebra"), wb.World("lion", LION)]
    found = run(model, *worlds, seeds=(0, 5))
    assert apart(run(model, worlds[1], seeds=5)["hit"], found["hit"].sel(seed=[5])) < NEAR
    assert apart(run(model, *worlds, seeds=(0, 5), batch_size=3).images, found.images) < NEAR
    rows = draw(plain, [ZEBRA, ZEBRA, LION, LION], [0, 5, 0, 5])
    assert apart(found["clean"], rows[:2]) < NEAR > apart(found["lion"], rows[2:])
    assert apart(found["hit"], rows[:2]) > 1e-3
    assert state_of(model.pipeline) == before


def test_11_changes_behind_the_models_back_are_followed_or_refused():
    model, plain = pair()
    run(model, ZEBRA)
    assert model.sites["unet.variance"].read
    for pipeline in (model.pipeline, plain):
        pipeline.scheduler = scheduler("DPMSolverMultistepScheduler")
        pipeline.unet.mid_block.resnets = pipeline.unet.mid_block.resnets[::-1]
        pipeline.enable_attention_slicing()
    found = run(model, ZEBRA, record="unet.*.cross.{k,v}")
    assert equal(found.images[0], draw(plain, [ZEBRA]))
    assert not model.sites["unet.variance"].read  # this scheduler drops it
    with pytest.raises(ValueError, match=r"SlicedAttnAddedKVProcessor, which never has its probabilities whole"):
        run(model, ZEBRA, record="unet.mid.cross.probs")
    for name, says in {
        "DDIMScheduler": "has no variance_type",
        "UniPCMultistepScheduler": "has no variance_type",
    }.items():
        model.pipeline.scheduler = getattr(diffusers, name)()
        with pytest.raises(
            ValueError, match=f"{name} {says}, which the pipeline asks for; set pipeline.scheduler = DDPM"
        ):
            run(model, ZEBRA)
    model.pipeline.scheduler = diffusers.DDIMScheduler.from_config(made().scheduler.config)
    with pytest.raises(ValueError, match="does not part the noise from the variance"):
        run(model, ZEBRA)
    model.pipeline.scheduler = scheduler("DDPMScheduler")
    model.pipeline.safety_checker = SimpleNamespace()
    model.pipeline.run_safety_checker = lambda pixels, device, dtype: (pixels, [False], [True])
    with pytest.raises(RuntimeError, match="the safety checker blacked out 1 of 1 pictures"):
        run(model, ZEBRA)


def edit_of(model, sites=("unet.mid.cross.{k,v}", "unet.up.0.1.cross.v", "text_encoder.0.wo"), size=1.0):
    """A random edit of rank 2, as large as the weights."""
    generator, updates = torch.Generator().manual_seed(0), []
    for site in model.sites(*sites):
        weight = getattr(model.pipeline, site.component).get_submodule(site.module.partition(".")[2]).weight
        b, a = (torch.randn(shape, generator=generator) for shape in ((weight.shape[0], 2), (2, weight.shape[1])))
        updates.append(wb.edit.update_of(model, site.name, b * size * weight.norm() / (b @ a).norm(), a))
    return wb.Edit(updates)


def test_7_8_preview_commit_undo_and_lora(tmp_path):
    model, plain = pair()
    run(model, ZEBRA)
    before, edit = state_of(model.pipeline), edit_of(model)
    preview = run(model, wb.World("edited", ZEBRA, edit)).images[0, 0]
    with model.applied(edit):
        committed = run(model, ZEBRA).images[0, 0]
    for update in edit.updates:
        component, _, path = update.module.partition(".")
        getattr(plain, component).get_submodule(path).weight.data += update.b @ update.a
    changed = draw(plain, [ZEBRA])[0]
    assert apart(committed, changed) < 1e-4 > apart(preview, changed)
    assert apart(changed, run(model, ZEBRA).images[0, 0]) > 1e-3
    for i in range(5):
        model.commit(0.98**i * edit, base=False)
    while model.edits:
        model.undo()
    assert state_of(model.pipeline) == before
    with pytest.raises(ValueError, match=r"text_encoder.0.wo cannot travel as LoRA"):
        edit.to_lora(tmp_path / "edit.safetensors", layout="peft")
    of_keys, plain = edit_of(model, ("unet.*.cross.{k,v}",)), fresh()
    with pytest.raises(ValueError, match=r"layout='kohya'\): diffusers loads no such file into .* give layout='peft'"):
        of_keys.to_lora(tmp_path / "edit.safetensors")
    plain.load_lora_weights(of_keys.to_lora(tmp_path / "edit.safetensors", layout="peft"))
    with model.applied(of_keys):
        committed = run(model, ZEBRA).images[0]
    assert apart(committed, draw(plain, [ZEBRA])) < 1e-4 < 1e-3 < apart(committed, run(model, ZEBRA).images[0])


@pytest.mark.parametrize("norm", ["group_norm", None])
def test_closed_form_edits_of_the_texts_keys_and_values(norm):
    """The old words' keys give the new words', so that with the same pooled vector the pictures are the same."""
    model, plain = pair(cross_attention_norm=norm)
    edit = wb.edit.uce(model, {"a zebra": "a lion"}, templates=("{}",), tokens="all", lam=1e-9)
    assert len(edit.sites) == 8 and all(site.endswith((".cross.k", ".cross.v")) for site in edit.sites)
    guide = wb.World("guide", "a zebra", wb.replace_prompt("unet.*.cross.context", "a lion"))
    once = dict(guidance_scale=1.0)  # one half: no negative prompt
    old = run(model, "a zebra", wb.World("edited", "a zebra", edit), guide, **once)
    assert apart(old["edited"], old["guide"]) < 0.02 * apart(old["a zebra"], old["guide"])
    with model.applied(edit):
        assert apart(run(model, "a zebra", **once).images[0], old["edited"]) < 1e-4
    if norm is None:
        return
    cut = wb.edit.uce(model, {"a zebra": "a lion"}, tokens="all", rank=1)
    assert cut.rank == 1 and len(cut.provenance["diagnostics"]) == 8
    # k and v of a layer share their M, by what a plain hook sees go in; those of two layers with norms of their own do not
    attention, inputs = plain.unet.mid_block.attentions[0], []
    handle = attention.add_k_proj.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    draw(plain, ["a zebra"], num_inference_steps=1, **once)
    handle.remove()
    states = wb.edit.editors.states(model, model.sites["unet.mid.cross.k"], ["a zebra"])
    assert apart(states[0], inputs[0][0]) < 1e-5
    right = {update.site: update.a for update in cut.updates}
    assert apart(right["unet.mid.cross.k"], right["unet.mid.cross.v"]) < 1e-6
    moments = wb.edit.moments_of(model, [ZEBRA, LION], model.sites["unet.mid.cross.k"]).floored(1e-2)
    layer = wb.edit.rome(model, {"a zebra": "a lion"}, sites="unet.mid.cross", corpus=moments)
    assert len(layer.sites) == 2 and wb.edit.uce(model, {"a zebra": "a lion"}, sites="unet.context_embedder").rank >= 1
    assert wb.edit.diff_quickfix(model, {"a zebra": "a lion"}, sites="text_encoder.0.out").rank >= 1
    assert (
        wb.edit.oblique(model, "a zebra", "a lion", templates=("{}", "a photo of {}"), rank=1, corpus=[LION]).rank == 1
    )
    with pytest.raises(ValueError, match=r"are given the text's states each in its own way; name one"):
        wb.edit.moments_of(model, [ZEBRA])
    with pytest.raises(
        ValueError, match=r"corpus= are moments of one input, the 4 layers of a IFPipeline are given as many"
    ):
        wb.edit.uce(model, {"a zebra": "a lion"}, corpus=moments, preservation="covariance")


def test_locogen_gives_layers_the_targets_keys_and_values(both):
    model, plain = both
    prompt = wb.Prompt(ZEBRA, "zebra", target=LION)
    spec = wb.LocoGenSpec(windows=((0, 4), (1, 2)), inputs=("kv", "v"), seeds=(0,), **GUIDED)
    strip = wb.locogen_images(model, prompt, spec)
    assert apart(strip.sel(world="all layers")[0], draw(plain, [LION])[0]) < NEAR
    assert apart(strip.sel(world="unaltered")[0], draw(plain, [ZEBRA])[0]) < NEAR
    assert "pooled vector" in strip.world and len({float(each.mean()) for each in strip}) == len(strip)
    blocks = [plain.unet.mid_block.attentions[0], plain.unet.up_blocks[0].attentions[0]]
    with ExitStack() as stack:  # by plain hooks: rows are the target and the prompt, in both halves
        for block in blocks:
            hook = block.add_v_proj.register_forward_hook(lambda module, given, out: out[[0, 1, 2, 2]])
            stack.callback(hook.remove)
        expected = draw(plain, [LION, ZEBRA])[1]
    assert apart(strip.sel(world="1-2 v")[0], expected) < NEAR
    found = wb.locogen(model, wb.PromptSet("one", (prompt,), {}), spec, scorer=brightness)
    assert found.layers == ["unet.down.1.0.cross", "unet.mid.cross", "unet.up.0.0.cross", "unet.up.0.1.cross"]


def brightness(images):
    """Linear in the picture."""
    return images.mean((1, 2, 3))


def test_maps_and_contribution_are_those_of_the_pictures_queries_at_the_text(both):
    """Against an independent computation by plain hooks, at one step."""
    model, plain = both
    few = dict(num_inference_steps=1, guidance_scale=1.0)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    found = wb.attention_contribution(model, prompts, wb.AttentionSpec(seeds=(0,), **few))
    maps = wb.attention_maps(model, ZEBRA, **few)
    attention = plain.unet.mid_block.attentions[0]
    with ExitStack() as stack:
        children = ("to_q", "to_k", "add_k_proj", "add_v_proj")
        seen = [stack.enter_context(hooked(getattr(attention, child))) for child in children]
        draw(plain, [ZEBRA], **few)
    query, key, text_key, text_value = (
        values[0][0].unflatten(-1, (attention.heads, -1)).transpose(0, 1) for values in seen
    )
    probs = (query @ torch.cat([key, text_key], 1).mT / query.shape[-1] ** 0.5).softmax(-1)[..., key.shape[1] :]
    drawn = maps.maps["unet.mid.cross"].values[0, 0, 0].reshape(probs.shape)
    assert apart(drawn, probs) < 1e-5 and float(probs.sum(-1).min()) < 0.99  # the rest is at the picture
    own = list(text_of(model.pipeline, ZEBRA).of("zebra"))
    mixed = (probs[..., own] @ text_value[:, own]).transpose(0, 1).flatten(1) @ attention.to_out[0].weight.T
    contribution = found.clean.sel(metric="contribution", site="unet.mid.cross").item()
    assert abs(contribution - mixed.norm(dim=-1).mean().item()) < 1e-5 * contribution
    words = maps.word("zebra").mean(["site", "steps", "head"])
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    assert 0 <= wb.mask_iou(words, mask).item() <= 1 and dict(words.sizes) == {"world": 1, "seed": 1, "y": 8, "x": 8}


def test_text_and_picture_are_told_by_name(both):
    """Values of a stream's keys taken away are the probabilities of looking at them taken away."""
    model, _ = both
    worlds = [wb.World("clean", ZEBRA)]
    for stream in ("cross", "self"):
        worlds.append(wb.World(f"{stream}.v", ZEBRA, wb.ablate(f"unet.mid.{stream}.v", rows="both")))
        worlds.append(wb.World(f"{stream}.probs", ZEBRA, wb.scale(f"unet.mid.{stream}.probs", 0.0, rows="both")))
    found = run(model, *worlds)
    for stream in ("cross", "self"):
        values, probs = found[f"{stream}.v"], found[f"{stream}.probs"]
        assert apart(values, probs) < NEAR < 1e-3 < apart(values, found["clean"])
    assert apart(found["cross.v"], found["self.v"]) > 1e-3
    alone, plain = pair(only_cross_attention=True, mid_block_only_cross_attention=True)
    assert not alone.sites.where(kind="self.k") and alone.sites["unet.mid.cross.probs"].together == ()
    off = run(alone, ZEBRA, wb.World("same", ZEBRA, wb.scale("unet.*.cross.probs", 1.0)), record="unet.mid.cross.probs")
    assert apart(off.values["unet.mid.cross.probs"].sum("token"), 1) < NEAR
    assert apart(off.images[:, 0], draw(plain, [ZEBRA, ZEBRA])) < NEAR


def test_prompt_to_prompt_takes_the_sources_attention_at_the_text(both):
    model, plain = both
    lion = "a lion in the savanna"
    worlds = wb.prompt_to_prompt(
        model, ZEBRA, lion, cross_replace_steps=1.0, self_resolution=0.5, self_replace_steps=1.0
    )
    found = run(model, *worlds)
    assert (
        apart(found["source"][0], draw(plain, [ZEBRA])[0])
        < NEAR
        < 1e-3
        < apart(found["edited"][0], draw(plain, [lion])[0])
    )
    own = wb.prompt_to_prompt(model, ZEBRA, ZEBRA, self_resolution=0.5)
    assert apart(run(model, *own)["edited"][0], found["source"][0]) < NEAR
    none = wb.prompt_to_prompt(model, ZEBRA, lion, cross_replace_steps=0.0, self_replace_steps=0.0, self_resolution=1.0)
    assert apart(run(model, *none)["edited"][0], draw(plain, [lion])[0]) < NEAR


def test_traces_attributions_and_directions():
    model = wb.load(fresh().to(torch.float64))
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    sites = ("text_encoder.embedding", "text_encoder.*.mlp", "unet.*.cross", "unet.pooled")
    spec = wb.TraceSpec(sites=sites, tokens=("subject", "all"), seeds=(0,), draws=1, **GUIDED)
    trace = wb.causal_trace(model, prompts, spec, scorer=brightness)
    restored, worst = (trace[key].sel(metric="pixel_distance") for key in ("restored", "corrupted"))
    assert restored.sel(site="text_encoder.embedding", token="subject").max() < 1e-6 < 1e-4 < worst.min()
    assert {"unet.mid.cross", "unet.pooled", "text_encoder.1.mlp"} <= set(trace.site.values)
    # of a small corruption, what one backward pass says is what restoring does
    small = wb.World("small", ZEBRA, wb.add_noise("text_encoder.embedding", 1e-5, tokens="subject"), "zebra")
    back = [wb.restore(at, "clean", steps=[1]) for at in ("unet.mid.cross", "unet.up.0.0.cross.z")]
    back += [wb.restore("text_encoder.0.mlp", "clean"), wb.restore("unet.pooled", "clean")]
    worlds = [wb.World(str(i), ZEBRA, [*small.interventions, each], "zebra") for i, each in enumerate(back)]
    work = Attribution(model, wb.World("clean", ZEBRA, subject="zebra"), [small], back, model._settings(3, 3.0), tilted)
    found = torch.cat(work.of([0], Bar(1, "attribution", shown=False)).effects)
    exact = run(model, wb.World("clean", ZEBRA), small, *worlds).images
    values = torch.cat([tilted(torch.tensor(each.values).permute(0, 3, 1, 2)) for each in exact])
    patched = values[2:] - values[1]
    assert ((found - patched).abs() <= 0.05 * patched.abs().max()).all(), (found, patched)
    assert (patched.abs() > 1e-8).all()
    assert work.bytes_per_image() > 1e4
    asked = wb.AttributionSpec(sites=("unet.*.cross",), seeds=(0,), draws=1, form="step", **GUIDED)
    effects = wb.attribute(model, prompts, asked)
    assert np.isfinite(effects.attributed).all() and effects.sizes["site"] == 4
    direction = wb.direction(model, [ZEBRA], [LION], ("unet.mid.cross", "text_encoder.1.mlp"), **GUIDED)
    steered = run(model, ZEBRA, wb.World("steered", ZEBRA, direction))
    assert apart(steered[ZEBRA], steered["steered"]) > 1e-3


def tilted(images):
    weights = torch.linspace(-1, 1, images[0].numel()).view(images.shape[1:])
    return (images * weights).mean((1, 2, 3))


def test_captions_are_cleaned_as_the_pipeline_cleans_them(both):
    model, plain = both
    loud = "  A Zebra,in   the SAVANNA "
    read = text_of(model.pipeline, loud)
    assert read.of("Zebra") == (1,) and read.of("the SAVANNA") == (4, 5) and read.positions("eos") == (6,)
    assert len(read.pieces) == 77 == model.sites["unet.context"].axis("token") and len(read.positions("padding")) == 70
    silent = wb.World("silent", loud, wb.ablate("unet.context", tokens="SAVANNA"))
    found = run(model, loud, silent, record="unet.context")
    assert equal(found[loud][0], draw(plain, [loud, loud])[0])
    values = found.values["unet.context"][:, 0, 0]
    assert np.flatnonzero(np.abs(values[0] - values[1]).max("channel")).tolist() == [5]
    odd = "a zebra (brown) ** in the savanna"
    assert equal(run(model, odd).images[0, 0], draw(plain, [odd])[0])
    with pytest.raises(ValueError, match=r"cleans captions and reads .* so that its tokens' places cannot be told"):
        run(model, wb.World("odd", odd, wb.ablate("unet.context", tokens="zebra")))
    wrong = {
        "the text encoder has positions 0 to 76": wb.scale("unet.mid.cross.v", 0.0, tokens=77),
        "the site's axes are ('row', 'pixel', 'channel'); leave tokens out": wb.scale("unet.mid.self.v", 0.0, tokens=1),
        "the attention has heads 0 to 1": wb.scale("unet.mid.cross.v", 0.0, heads=[2]),
        "replace_prompt works at": wb.replace_prompt("unet.mid.self.k", LION),
        "no site matches 'vae.latents'": wb.scale("vae.latents", 0.0),
    }
    for message, intervention in wrong.items():
        with hooked(model.pipeline.text_encoder) as calls, pytest.raises((ValueError, KeyError)) as raised:
            run(model, wb.World("a", ZEBRA, intervention))
        assert message in str(raised.value) and not calls
    with pytest.warns(UserWarning, match="the text encoder reads 77"):
        run(model, "zebra " * 80, num_inference_steps=1)


def test_what_it_cannot_do_is_refused(both, tmp_path, scorer):
    model, _ = both
    (picture,) = model.generate(ZEBRA, num_inference_steps=1)
    edit, prompts = wb.edit.uce(model, {"a zebra": "a lion"}), wb.prompt_set("object")[:1]
    asked = {
        "textual_inversion: it trains": lambda: wb.edit.textual_inversion(model, "zebra", [picture]),
        "invert: it runs DDIM's steps backwards": lambda: wb.invert(model, picture, ZEBRA),
        "recover: its attacks give all layers": lambda: wb.recover(model, edit, prompts, scorer=scorer),
        "head_relevance: it asks": lambda: wb.head_relevance(model, ZEBRA, {"a": ["lion"], "c": ["car"]}),
        "latents=: IFPipeline has no such argument": lambda: run(model, ZEBRA, latents=model.latents(0)),
        "run_once: a IFPipeline cannot be told": lambda: model.run_once({"a": ZEBRA}, {"a": picture}, step=0),
        "guidance_rescale=0.5: IFPipeline has no such": lambda: run(model, ZEBRA, guidance_rescale=0.5),
        "must be a multiple of 2 pixels": lambda: run(model, ZEBRA, height=17),
        "another stage": lambda: check_class("IFSuperResolutionPipeline"),
        "load the checkpoint into an IFPipeline": lambda: check_class("IFImg2ImgPipeline"),
        "a super-resolution or inpainting model": lambda: wb.load(made(in_channels=6)),
    }
    for message, ask in asked.items():
        with pytest.raises(ValueError) as raised:
            ask()
        assert message in str(raised.value), raised.value
    model.save_pretrained(tmp_path / "saved")
    again = wb.load(tmp_path / "saved")
    assert (again.num_inference_steps, again.guidance_scale) == (100, 7.0)
    again.pipeline.scheduler = scheduler("DDPMScheduler")
    assert equal(run(again, ZEBRA).images, run(model, ZEBRA).images)
    assert again.record["weights"] == model.record["weights"]


def test_sites_are_as_they_say(both):
    """By plain hooks, at every site, and by zeros at one of each kind."""
    found = wb.check(both[0], progress=False)
    assert found.passed, found
    assert (found.table.claim == "probabilities").sum() == 8 and (found.table.claim == "attention").sum() == 4
