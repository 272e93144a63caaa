"""Laws on PixArt: random tiny pipelines of alpha and Sigma, beside plain ones that the workbench never saw."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from cases import equal, hooked
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import workbench as wb
from workbench.engine.gradients import Attribution
from workbench.progress import Bar
from workbench.studies import tiny_transformers as tiny
from workbench.text import text_of

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach"  # as many tokens
LENGTH, SHORT = 12, "a lion"
GUIDED = dict(num_inference_steps=3, guidance_scale=3.0)
MAKE = {make.__name__: make for make in (tiny.pixart_alpha, tiny.pixart_sigma)}
SCHEDULERS = {
    "dpm": DPMSolverMultistepScheduler,
    "sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}
each_family = pytest.mark.parametrize("name", MAKE)


@cache
def made(name: str):
    torch.manual_seed(0)
    pipeline = MAKE[name]()
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for path, module in pipeline.transformer.named_modules():
            if path.endswith(("attn2.to_v", "attn2.to_out.0", "proj_out")):
                module.weight *= 3
    return pipeline


def fresh(name: str, scheduler: str = "dpm", dtype: torch.dtype = torch.float32):
    base = made(name)
    pipeline = copy.deepcopy(base, {id(base.tokenizer): base.tokenizer}).to(dtype)
    pipeline.scheduler = SCHEDULERS[scheduler]()
    return pipeline


def pair(name: str, scheduler: str = "dpm", dtype: torch.dtype = torch.float32):
    """A model, and a plain pipeline like its own."""
    return wb.load(fresh(name, scheduler, dtype), max_sequence_length=LENGTH), fresh(name, scheduler, dtype)


def draw(pipeline, prompts, seeds=None, **more) -> np.ndarray:
    """What diffusers makes of prompts in one batch: (row, y, x, colour)."""
    seeds = [0] * len(prompts) if seeds is None else seeds
    call = dict(generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="np") | GUIDED | more
    return pipeline(list(prompts), max_sequence_length=LENGTH, use_resolution_binning=False, **call).images


def run(model, *worlds, **more):
    return model.run(worlds, progress=False, **GUIDED | more)


def apart(a, b) -> float:
    return float(np.abs(np.asarray(a, "f8") - np.asarray(b, "f8")).max())


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def both():
    """A model and a plain pipeline that no test changes, by name."""
    return cache(pair)


@pytest.mark.parametrize(
    "name, scheduler, dtype, more",
    [
        ("pixart_alpha", "dpm", torch.float32, dict()),
        ("pixart_alpha", "sde", torch.float32, dict(height=24, width=32)),
        ("pixart_alpha", "euler", torch.bfloat16, dict(negative_prompt="a car at night")),
        ("pixart_sigma", "ddim", torch.float32, dict(guidance_scale=1.0)),
    ],
    ids=str,
)
def test_1_without_interventions_it_is_the_plain_pipeline(name, scheduler, dtype, more):
    """Prompts of other lengths, so that their rows' masks differ; in a batch and alone."""
    model, plain = pair(name, scheduler, dtype)
    texts, seeds = [ZEBRA, ZEBRA, SHORT, SHORT], (0, 5, 0, 5)
    negative = more.get("negative_prompt")
    settings = {key: value for key, value in more.items() if key != "negative_prompt"}
    worlds = [wb.World(text, text, negative_prompt=negative) for text in (ZEBRA, SHORT)]
    found = run(model, *worlds, seeds=(0, 5), **settings).images.values
    expected = draw(plain, texts, seeds, **settings | ({"negative_prompt": [negative] * 4} if negative else {}))
    assert equal(found.reshape(expected.shape), expected)
    alone = draw(plain, [SHORT], [5], **more)[0]
    assert apart(run(model, worlds[1], seeds=(5,), **settings).images[0, 0], alone) == 0
    assert apart(expected[0], expected[2]) > 1e-3


def test_of_a_large_model_it_knows_how_large_the_picture_is():
    """1024 pixels and its other sides are inputs there; another size is another picture from the same noise, and as plain."""
    torch.manual_seed(0)
    parts = tiny.pixart_parts(
        sample_size=128, use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24
    )
    pipeline = tiny.PixArtAlphaPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    plain = copy.deepcopy(pipeline)
    model, size = wb.load(pipeline, max_sequence_length=LENGTH), dict(height=16, width=24)
    found = run(model, ZEBRA, **size)
    assert apart(found.images[0, 0], draw(plain, [ZEBRA], **size)[0]) == 0
    for kind in ("aspect_ratio", "timestep", "conditions"):
        other = run(model, wb.World("a", ZEBRA, wb.scale(f"transformer.{kind}", 3.0, rows="both")), **size).images[0, 0]
        embedder = "" if kind == "conditions" else f".{kind}_embedder"
        with hooked(plain.transformer.get_submodule(f"adaln_single.emb{embedder}"), range(3), 3.0):
            expected = draw(plain, [ZEBRA], **size)[0]
        assert apart(other, expected) < 1e-5 < apart(expected, found.images[0, 0]), kind


@each_family
def test_2_identity_interventions_change_nothing(name, both):
    model, plain = both(name)
    exact = wb.scale(["transformer.*.{self,cross,ff,block}", "transformer.{patches,noise,modulation}", "latents"], 1.0)
    rounded = [
        wb.restore(["transformer.*.{self,cross}.{q,k,v,z,probs}", "text_encoder.*.hidden"], "clean"),
        wb.replace_prompt(["transformer.context", "transformer.*.cross.{context,k,v}"], ZEBRA),
    ]
    worlds = [wb.World("clean", ZEBRA), wb.World("exact", ZEBRA, exact), wb.World("rounded", ZEBRA, rounded)]
    found, clean = run(model, *worlds), draw(plain, [ZEBRA])[0]
    for world in worlds:
        assert apart(found[world.name][0], clean) < 1e-5, world.name


@each_family
def test_3_restoring_or_replacing_everything(name, both):
    model, plain = both(name)
    noise = wb.add_noise("text_encoder.embedding", 1.0, seed=1, tokens="subject")
    restored = {"states": "text_encoder.final", "blocks": "transformer.*.block", "latents": "latents"}
    worlds = [wb.World("clean", ZEBRA), wb.World("corrupted", ZEBRA, noise, "zebra")]
    worlds += [wb.World(key, ZEBRA, [noise, wb.restore(at, "clean")], "zebra") for key, at in restored.items()]
    replaced = {
        "context": wb.replace_prompt("transformer.context", LION),
        "layers": wb.replace_prompt("transformer.*.cross.context", LION),
        "keys and values": wb.replace_prompt("transformer.*.cross.{k,v}", LION),
        "encoder": wb.restore("text_encoder.final", "lion"),
    }
    worlds += [wb.World("lion", LION), *(wb.World(key, ZEBRA, each) for key, each in replaced.items())]
    found, (clean, lion) = run(model, *worlds), draw(plain, [ZEBRA, LION])
    assert apart(found["corrupted"][0], clean) > 1e-3 and apart(clean, lion) > 1e-3
    for key in restored:
        assert apart(found[key][0], clean) < 1e-5, key
    for key in replaced:
        assert apart(found[key][0], lion) < 1e-5, key


def test_text_of_other_lengths_is_refused(both):
    """What is behind a row's own prompt is masked, so that a longer one's text would be read in part, without a word."""
    model, _ = both("pixart_alpha")
    ask = {
        "ReplacePrompt at transformer.1.cross.k in world 'a': 'a lion' is 3 tokens, 'a zebra in the savanna' 6, and a PixArtAlphaPipeline "
        "masks what is behind a prompt's own": [
            wb.World("a", ZEBRA, wb.replace_prompt("transformer.1.cross.k", SHORT))
        ],
        "Restore at transformer.0.cross.v in world 'a': 'a lion' is 3 tokens": [
            wb.World("b", SHORT),
            wb.World("a", ZEBRA, wb.restore("transformer.0.cross.v", "b")),
        ],
        "Restore at transformer.1.cross.probs in world 'a': 'a zebra in the savanna' is 6 tokens, 'a lion' 3": [
            wb.World("b", ZEBRA),
            wb.World("a", SHORT, wb.restore("transformer.1.cross.probs", "b")),
        ],
        "MixAttention at transformer.1.cross.probs in world 'a': 'a zebra in the savanna' is 6 tokens, 'a lion' 3": [
            wb.World("b", ZEBRA),
            wb.World("a", SHORT, wb.mix_attention("transformer.1.cross.probs", "b")),
        ],
        "Restore at text_encoder.final in world 'a': 'a car' is 3 tokens, '' 1": [
            wb.World("b", ZEBRA, negative_prompt="a car"),
            wb.World("a", ZEBRA, wb.restore("text_encoder.final", "b", rows="both"), negative_prompt=""),
        ],
    }
    for message, worlds in ask.items():
        with pytest.raises(ValueError) as raised:
            run(model, *worlds)
        assert message in str(raised.value), str(raised.value)
    outputs = wb.World("a", ZEBRA, wb.restore("transformer.*.{self,cross,ff}", "b"))  # behind the text, any prompt's
    assert apart(run(model, wb.World("b", SHORT), outputs)["a"][0], draw(both("pixart_alpha")[1], [SHORT])[0]) < 1e-5


@pytest.mark.parametrize("scheduler", ["dpm", "euler"])
def test_4_every_call_belongs_to_a_step(scheduler):
    """A layer is scaled at one step, by the engine and by a plain hook."""
    model, plain = pair("pixart_alpha", scheduler)
    assert model.calls(3).step == (0, 1, 2)
    site, module = "transformer.1.ff", plain.transformer.transformer_blocks[1].ff
    found = run(model, wb.World("a", ZEBRA, wb.scale(site, 3.0, steps=[1], rows="both")))
    with hooked(module, calls=[1], factor=3.0):
        assert apart(found.images[0, 0], draw(plain, [ZEBRA])[0]) < 1e-5
    with pytest.raises(ValueError, match=r"num_inference_steps=1: in a single step a PixArtAlphaPipeline takes"):
        run(model, ZEBRA, num_inference_steps=1)


def test_sigma_reads_as_many_tokens_as_its_pipeline_and_takes_one_step():
    """Its default length is not alpha's: a prompt of 200 words is read whole. A single step of it ends in latents, as any other."""
    plain, long = fresh("pixart_sigma"), " ".join(["zebra"] * 200)
    model = wb.load(fresh("pixart_sigma"))
    assert (model.max_sequence_length, wb.load(fresh("pixart_alpha")).max_sequence_length) == (300, 120)
    assert model.sites["transformer.context"].axis("token") == 300
    for prompt, steps in ((long, 2), (ZEBRA, 1)):
        call = dict(num_inference_steps=steps, guidance_scale=3.0)
        seed = dict(generator=torch.Generator().manual_seed(0), output_type="np", use_resolution_binning=False)
        drawn = plain(prompt, **call, **seed).images[0]
        assert apart(model.run(prompt, seeds=0, progress=False, **call).images[0, 0], drawn) == 0


def test_a_prompt_is_cleaned_as_the_pipeline_cleans_it(both):
    """Capitals and white space go before the tokenizer, and a word is found where it then stands: beside a plain hook."""
    model, plain = both("pixart_alpha")
    written = "  A Zebra in  the SAVANNA "
    world = wb.World("written", written, wb.scale("text_encoder.embedding", 1.5, tokens="subject"), "Zebra")
    found = run(model, world, guidance_scale=1.0).images[0, 0]
    own = text_of(model.pipeline, written).of("Zebra")
    assert list(own) == list(text_of(model.pipeline, ZEBRA).of("zebra"))

    def louder(module, args, output):
        return torch.cat([output[:, : own[0]], 1.5 * output[:, list(own)], output[:, own[-1] + 1 :]], 1)

    handle = plain.text_encoder.encoder.embed_tokens.register_forward_hook(louder)
    try:
        drawn = draw(plain, [written], guidance_scale=1.0)[0]
    finally:
        handle.remove()
    assert apart(found, drawn) < 1e-5 < apart(found, draw(plain, [ZEBRA], guidance_scale=1.0)[0])


def test_latents_that_a_world_changes_are_gone_on_with(both):
    """The pipeline's own callback takes none back."""
    model, plain = both("pixart_sigma")
    given = run(model, wb.World("a", ZEBRA), wb.World("b", LION, wb.restore("latents", "a", steps=[2])))
    assert apart(given["b"][0], draw(plain, [ZEBRA])[0]) < 1e-5


@each_family
def test_7_preview_is_commit_and_undo_is_exact(name):
    model, plain = pair(name)
    for rank in (None, 1):
        settings = dict(tokens="all", lam=0.1, rank=rank)
        edit = wb.edit.from_concepts(model, {ZEBRA: LION}, templates="{}", sites="transformer.*.cross", **settings)
        shown = run(model, wb.World("preview", ZEBRA, edit.preview())).images[0, 0]
        with model.applied(edit):
            assert apart(run(model, ZEBRA).images[0, 0], shown) < 1e-5
        assert apart(shown, draw(plain, [ZEBRA])[0]) > 1e-4
        assert apart(run(model, ZEBRA).images[0, 0], draw(plain, [ZEBRA])[0]) == 0
    with pytest.raises(ValueError, match="LoRA files are written for one of"):
        edit.to_lora("a.safetensors")
    inside = wb.edit.from_concepts(model, {ZEBRA: LION}, templates="{}", sites="text_encoder.0.out", lam=0.1)
    assert inside.rank >= 1


def test_an_edit_makes_the_prompt_act_as_its_guide(both):
    """As many keys as there are tokens, hardly shrunk: the edited model draws the guide's picture."""
    model, plain = both("pixart_alpha")
    edit = wb.edit.from_concepts(
        model, {ZEBRA: LION}, templates="{}", sites="transformer.*.cross", tokens="all", lam=1e-9
    )
    alone = dict(guidance_scale=1.0)  # the empty prompt is edited too
    found = run(model, wb.World("edited", ZEBRA, edit.preview()), **alone).images[0, 0]
    clean, lion = draw(plain, [ZEBRA, LION], **alone)
    assert apart(found, lion) < 0.05 * apart(clean, lion)


@each_family
def test_maps_and_contribution_are_those_of_plain_hooks(name, both):
    model, plain = both(name)
    few = dict(num_inference_steps=2, guidance_scale=1.0)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),), {})
    found = wb.attention_contribution(model, prompts, wb.AttentionSpec(seeds=(0,), **few))
    maps = wb.attention_maps(model, ZEBRA, **few).maps["transformer.1.cross"]
    attention = plain.transformer.transformer_blocks[1].attn2
    with hooked(attention.to_q) as q, hooked(attention.to_k) as k, hooked(attention.to_v) as v:
        draw(plain, [ZEBRA], **few)
    own, read = list(text_of(model.pipeline, ZEBRA).of("zebra")), len(ZEBRA.split()) + 1
    norms, drawn = [], []
    for query, key, value in zip(q, k, v):
        query, key, value = (
            each[0].unflatten(-1, (attention.heads, -1)).transpose(0, 1) for each in (query, key, value)
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        probs = torch.cat([scores[..., :read].softmax(-1), torch.zeros_like(scores[..., read:])], -1)
        mixed = (probs[..., own] @ value[:, own]).transpose(0, 1).flatten(1) @ attention.to_out[0].weight.T
        norms.append(mixed.norm(dim=-1).mean().item())
        drawn.append(probs)
    contribution = found.clean.sel(metric="contribution", site="transformer.1.cross").item()
    assert abs(contribution - np.mean(norms)) < 1e-5 * contribution
    assert apart(maps.values[0, 0, 0].reshape(attention.heads, 16, -1), torch.stack(drawn).mean(0).detach()) < 1e-6


@each_family
def test_traces_locogen_attribution_and_directions(name, both):
    model, _ = both(name)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra", target=LION),), {})
    common = dict(seeds=(0,), **GUIDED)
    sites = ("text_encoder.embedding", "transformer.*.{cross,self,ff}")
    trace = wb.causal_trace(model, prompts, wb.TraceSpec(sites=sites, draws=1, **common), scorer=brightness)
    restored, worst = (trace[key].sel(metric="pixel_distance") for key in ("restored", "corrupted"))
    assert restored.sel(site="text_encoder.embedding").max() < 1e-6 < 1e-4 < worst.min()
    layers = [site.name for site in model.sites("transformer.*.cross")]
    windows = wb.locogen(model, prompts, wb.LocoGenSpec(widths=(1, len(layers)), **common), scorer=brightness)
    assert {site.name for site in model.sites(*windows.best(len(layers), metric="brightness"))} == set(layers)
    small = wb.World("small", ZEBRA, wb.add_noise("text_encoder.embedding", 2e-3, tokens="subject"), "zebra")
    back = [wb.restore("transformer.1.cross", "clean"), wb.restore("text_encoder.0.mlp", "clean")]
    worlds = [wb.World(str(i), ZEBRA, [*small.interventions, each], "zebra") for i, each in enumerate(back)]
    work = Attribution(
        model, wb.World("clean", ZEBRA, subject="zebra"), [small], back, model._settings(3, 3.0), brightness
    )
    found = torch.cat(work.of([0], Bar(1, "attribution", shown=False)).effects)
    values = [
        brightness(torch.tensor(each.values).permute(0, 3, 1, 2))
        for each in run(model, wb.World("clean", ZEBRA), small, *worlds).images
    ]
    patched = torch.cat(values[2:]) - values[1]
    assert ((found - patched).abs() <= 0.1 * patched.abs().max()).all(), (found, patched)
    direction = wb.direction(model, [ZEBRA], [LION], ["transformer.1.ff", "text_encoder.0.mlp"], **GUIDED)
    steered = run(model, ZEBRA, wb.World("steered", ZEBRA, direction))
    assert apart(steered[ZEBRA], steered["steered"]) > 1e-3


@each_family
def test_prompt_to_prompt_takes_the_sources_attention(name, both):
    model, plain = both(name)
    worlds = wb.prompt_to_prompt(model, ZEBRA, "a lion in the savanna", cross_replace_steps=1.0, self_resolution=0.5)
    found = run(model, *worlds)
    assert apart(found["source"][0], draw(plain, [ZEBRA])[0]) < 1e-5
    assert apart(found["edited"][0], draw(plain, ["a lion in the savanna"])[0]) > 1e-5
    longer = wb.prompt_to_prompt(
        model, "a zebra", "a red zebra", kind="refine", cross_replace_steps=1.0, self_resolution=0.5
    )
    assert (
        apart(run(model, *longer)["edited"][0], draw(plain, ["a red zebra"])[0]) > 1e-5
    )  # a mapper tells their tokens
    own = wb.prompt_to_prompt(model, ZEBRA, ZEBRA, self_resolution=0.5)
    assert apart(run(model, *own)["edited"][0], found["source"][0]) < 1e-5


@each_family
def test_every_claim_holds(name, both):
    model, _ = both(name)
    report = wb.check(model, progress=False)
    assert report.passed, str(report)


def test_what_else_it_cannot_do_is_refused(both):
    model, _ = both("pixart_alpha")
    picture = model.generate(ZEBRA, num_inference_steps=2)[0]
    asked = {
        "textual_inversion: it trains on the loss of noise": lambda: wb.edit.textual_inversion(
            model, "zebra", [picture]
        ),
        "invert: it runs DDIM's steps backwards": lambda: wb.invert(model, picture, ZEBRA),
        "concept_attention: words would go through the text's own weights": lambda: wb.concept_attention(
            model, ZEBRA, ["zebra", "sky"]
        ),
        "run_once: a PixArtAlphaPipeline cannot be told to end behind one step": lambda: wb.attention_maps(
            model, wb.World("clean", ZEBRA), images={"clean": picture}, step=1
        ),
    }
    for message, ask in asked.items():
        with pytest.raises(ValueError) as raised:
            ask()
        assert message in str(raised.value), str(raised.value)
