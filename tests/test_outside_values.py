"""What runs are given and give: means over a named axis, a person's own functions, negative prompts, sizes, half precision, memory."""

import importlib

import conftest
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from outside import GUIDANCE, LION, SETTINGS, ZEBRA, apart, fresh, load_lora, lora_file, pictures, run

import workbench as wb
from workbench.engine.text import encode
from workbench.families.attention import ExplicitAttention
from workbench.identity import fingerprint, identity
from workbench.text import tokens_of

running = importlib.import_module("workbench.engine.run")  # the name of its function hides the module


@pytest.mark.parametrize(
    ("site", "over", "axis"),
    [
        ("unet.mid.cross.probs", "head", "head"),
        ("unet.mid.cross.probs", "token", "token"),
        ("unet.mid.cross.v", None, "token"),
        ("unet.down.0.0.cross", None, "pixel"),
        ("unet.down.0.0.resnet", None, ["y", "x"]),
        ("unet.down.0.0.resnet", "channel", "channel"),
        ("text_encoder.1.mlp", None, "token"),
    ],
)
def test_a_mean_is_over_the_named_axis(site, over, axis):
    clean, mean = wb.World("clean", ZEBRA), wb.World("mean", ZEBRA, [wb.ablate(site, "mean", over=over)])
    values = run(fresh(), clean, mean, record=site).values[site]
    if "step" in values.dims:
        values = values.isel(step=0)
    expected = values.sel(world="clean").mean(axis).broadcast_like(values.sel(world="clean"))
    assert np.allclose(values.sel(world="mean").transpose(*expected.dims), expected, atol=1e-5)
    assert apart(values.sel(world="mean"), values.sel(world="clean")) > 1e-4


def test_a_mean_over_no_axis_is_refused():
    mean = wb.World("mean", ZEBRA, [wb.ablate("text_encoder_2.pooled", "mean")])
    with pytest.raises(ValueError, match=r'to="mean" over which axis\? The site has \(.channel.,\); give over='):
        run(fresh(conftest.sdxl), mean)


def test_a_function_of_ones_own_runs_as_every_rule():
    worlds = [
        wb.World("clean", ZEBRA),
        wb.World("rule", ZEBRA, [wb.scale("unet.down.0.0.resnet", 3.0, steps=1, channels=[0, 2])]),
        wb.World("own", ZEBRA, [wb.apply("unet.down.0.0.resnet", lambda value: 3 * value, steps=1, channels=[0, 2])]),
        wb.World("mixed", LION, [wb.apply("unet.noise", lambda value, source: source, "clean")]),
    ]
    found = run(fresh(), *worlds)
    assert np.array_equal(found["rule"], found["own"]) and apart(found["own"], found["clean"]) > 1e-4
    assert np.array_equal(found["mixed"], found["clean"])
    assert found.fired == {("rule", 0): 1, ("own", 0): 1, ("mixed", 0): 2}


def test_a_function_is_given_the_sites_own_axes():
    shapes = {}

    def look(value):
        shapes[len(shapes)] = tuple(value.shape)
        return value

    sites = ["unet.mid.0.resnet", "unet.mid.cross", "unet.mid.cross.probs", "text_encoder.0.mlp"]
    model = wb.load(fresh())
    for name in sites:
        shapes.clear()
        model.run(wb.World("a", ZEBRA, [wb.apply(name, look, rows="cond")]), seeds=(0, 1, 2), **SETTINGS)
        assert set(shapes.values()) == {(3, *model.sites[name].sizes)}


def test_what_a_function_must_not_do_is_told_and_leaves_the_model():
    pipeline = fresh()
    before = run(pipeline, wb.World("a", ZEBRA)).images.values
    for function, error, text in (
        (
            lambda value: value[:, :1],
            ValueError,
            "apply at unet.noise: the function returned .* the value is .* with the axes",
        ),
        (lambda value: None, ValueError, "the function returned NoneType"),
        (lambda value: 1 / 0, ZeroDivisionError, "division"),
    ):
        with pytest.raises(error, match=text):
            run(pipeline, wb.World("a", ZEBRA, [wb.apply("unet.noise", function)]))
    assert np.array_equal(run(pipeline, wb.World("a", ZEBRA)).images, before)
    with pytest.raises(ValueError, match="Apply holds a function, which has no JSON; write it as a rule that has"):
        wb.apply("unet.noise", abs).to_json()
    with pytest.raises(ValueError, match=r"apply\(function=3\): give a function of the value"):
        wb.apply("unet.noise", 3)


def test_tokens_of_the_unconditional_half_are_the_negative_prompts():
    negative = "a blurry zebra"
    worlds = [
        wb.World("clean", ZEBRA, negative_prompt=negative),
        wb.World(
            "both", ZEBRA, [wb.ablate("text_encoder.0.mlp", tokens="zebra", rows="both")], negative_prompt=negative
        ),
        wb.World("cond", ZEBRA, [wb.ablate("text_encoder.0.mlp", tokens="zebra")], negative_prompt=negative),
    ]
    pipeline = fresh()
    seen = []
    encoder = wb.load(pipeline).nn._module.get_submodule("text_encoder").encoder.layers[1]
    handle = encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    found = run(pipeline, *worlds, seeds=(0,))
    handle.remove()
    prompt, unconditional = seen
    own, others = (tokens_of(pipeline, text).of("zebra")[0] for text in (ZEBRA, negative))
    assert own != others
    for states, changed in ((prompt, {"both": own, "cond": own}), (unconditional, {"both": others})):
        for row, world in enumerate(worlds[1:], 1):
            moved = (states[row] - states[0]).abs().amax(-1).nonzero().flatten().tolist()
            assert moved[:1] == ([changed[world.name]] if world.name in changed else [])
    assert found.fired == {("both", 0): 2, ("cond", 0): 1}
    with pytest.raises(
        ValueError, match="in the negative prompt, whose half rows= names too: 'zebra' is not in the prompt ''"
    ):
        run(pipeline, wb.World("a", ZEBRA, [wb.ablate("text_encoder.0.mlp", tokens="zebra", rows="both")]))


def test_negative_prompts_of_worlds():
    pipeline = fresh()
    worlds = [
        wb.World("a", ZEBRA, negative_prompt="a car"),
        wb.World("b", ZEBRA, negative_prompt="a house"),
        wb.World("c", ZEBRA),
    ]
    found = run(pipeline, *worlds)
    for name, negative in (("a", "a car"), ("b", "a house"), ("c", "")):
        assert apart(found[name], pictures(fresh(), negative_prompt=[negative] * 2)) < 1e-5
    assert apart(found["a"], found["b"]) > 1e-5
    with pytest.raises(
        ValueError, match="negative_prompt: some worlds have one and others none, for which this pipeline takes zeros"
    ):
        run(fresh(conftest.sdxl), *worlds)
    with pytest.warns(UserWarning, match="negative_prompt= has no effect without guidance"):
        run(pipeline, worlds[0], guidance_scale=1.0)


@pytest.mark.parametrize("make", [conftest.sd1, conftest.sdxl], ids=lambda make: make.__name__)
def test_sizes_of_sites_follow_the_runs(make):
    pipeline = fresh(make)
    model = wb.load(pipeline)
    size = dict(height=16, width=32)
    record = ["unet.noise", "unet.*.resnet", "unet.*.cross", "unet.*.cross.probs", "latents", "vae.latents"]
    found = model.run(ZEBRA, seeds=(0, 1), record=record, **size, **SETTINGS)
    assert found.images.shape == (1, 2, 16, 32, 3)
    for site in model.sites_at(16, 32)(*record):
        assert found.values[site.name].shape[-len(site.sizes) :] == site.sizes
        assert site.grid is None or site.axes[-1] != "x" or site.sizes[1:] == site.grid
    plain = pictures(fresh(make), **size)
    assert apart(model.run(ZEBRA, seeds=(0, 1), **size, **SETTINGS)[ZEBRA], plain) == 0
    latents = model.latents((0, 1), **size)
    assert np.array_equal(model.run(ZEBRA, seeds=(0, 1), latents=latents, **size, **SETTINGS)[ZEBRA], plain)
    for wrong, text in (
        (dict(height=15), "height=15, width=16: height must be a multiple of 8 pixels"),
        (dict(width="16"), "width='16': '16' is a str; give a whole number, at least 1"),
        (dict(latents=latents), r"latents of shape \(2, 4, 8, 16\): the run needs a tensor"),
    ):
        with pytest.raises(ValueError, match=text):
            model.run(ZEBRA, seeds=(0, 1), **wrong, **SETTINGS)


def test_scores_that_float16_does_not_hold_are_taken_in_float32():
    """Queries and keys whose product is beyond 65,504: plain diffusers draws, and so does the path that shows probabilities."""
    attention = fresh().unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.probs = torch.nn.Identity()
    with torch.no_grad():
        for projection in (attention.to_q, attention.to_k):
            projection.weight *= 3000
    attention.half()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 4, attention.to_q.in_features, generator=generator).half()
    context = torch.randn(2, 7, attention.to_k.in_features, generator=generator).half()
    with torch.no_grad():
        query, key = attention.to_q(states).float(), attention.to_k(context).float()
        assert (query @ key.mT).abs().max() > torch.finfo(torch.float16).max
        plain = attention(states, encoder_hidden_states=context)
        attention.processor = ExplicitAttention()
        explicit = attention(states, encoder_hidden_states=context)
    assert torch.isfinite(explicit).all() and (explicit - plain).abs().max() < 2e-3


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_a_vae_that_is_raised_to_float32_is_lowered_again(monkeypatch):
    pipeline = fresh(conftest.sdxl).to(torch.float16)
    pipeline.vae.register_to_config(force_upcast=True)
    model = wb.load(pipeline)
    weights = fingerprint(pipeline.vae)
    assert model.encode([model.generate(ZEBRA, num_inference_steps=1)[0]]).dtype == torch.float16
    monkeypatch.setattr(type(pipeline.vae), "decode", lambda *given, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.run(ZEBRA, **SETTINGS)
    assert pipeline.vae.dtype == torch.float16 and fingerprint(pipeline.vae) == weights


def test_a_scheduler_otherwise_configured_is_another_model():
    pipeline = fresh()
    records = [identity(pipeline)]
    for more in (dict(timestep_spacing="trailing"), dict(prediction_type="v_prediction")):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **more)
        records.append(identity(pipeline))
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    records.append(wb.load(pipeline).record)
    assert all(a != b for i, a in enumerate(records) for b in records[:i])
    assert records[1]["scheduler"]["timestep_spacing"] == "trailing" and records[1]["weights"] == records[0]["weights"]


def test_weights_are_hashed_once_and_again_when_they_change(monkeypatch):
    from workbench import identity as module

    pipeline, hashed = fresh(), []
    whole = module._sha256
    monkeypatch.setattr(module, "_sha256", lambda part: hashed.append(part) or whole(part))
    before = identity(pipeline)["weights"]
    assert identity(pipeline)["weights"] == before and len(hashed) == 3
    table = pipeline.text_encoder.get_input_embeddings().weight
    with torch.no_grad():  # in place, behind autograd's back, and so that sums stay
        table.data[[5, 6]] = table.data[[6, 5]].clone()
    after = identity(pipeline)["weights"]
    assert [part for part in hashed[3:]] == [pipeline.text_encoder]
    assert after["text_encoder"] != before["text_encoder"] and after["unet"] == before["unet"]


def test_a_target_prompt_is_encoded_once_a_run(monkeypatch):
    encoded = []
    monkeypatch.setattr(running, "encode", lambda pipeline, prompt: encoded.append(prompt) or encode(pipeline, prompt))
    worlds = [wb.World(str(i), ZEBRA, [wb.replace_prompt("unet.*.cross.{k,v}", LION)]) for i in range(6)]
    run(fresh(), *worlds, batch_size=4)
    assert encoded == [LION]


def test_recordings_that_would_not_fit_are_told_before_anything_runs(monkeypatch):
    model = wb.load(fresh())
    monkeypatch.setattr(running, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(type(model.pipeline), "__call__", lambda *given, **more: pytest.fail("the pipeline ran"))
    with pytest.raises(
        MemoryError, match=r"recording \d+ sites for 40 images would take \d+\.\d GiB, 0\.0 GiB are free; record fewer"
    ):
        model.run(ZEBRA, seeds=range(40), record="unet.*", num_inference_steps=50)


def test_a_prompt_that_is_cut_warns_from_run_as_from_generate():
    model, long = wb.load(fresh()), " ".join(["zebra"] * 40)
    for draw in (lambda: model.generate(long, num_inference_steps=1), lambda: model.run(long, **SETTINGS)):
        with pytest.warns(
            UserWarning, match=r"prompt of 42 tokens, the text encoder reads 32: 'zebra zebra .* is cut off"
        ):
            draw()


def test_weights_that_are_not_numbers_draw_no_black_pictures():
    pipeline = fresh()
    with torch.no_grad():
        pipeline.unet.conv_out.weight.fill_(float("nan"))
    model = wb.load(pipeline)
    with pytest.raises(FloatingPointError, match="are not finite: the weights hold NaN, or float16 overflows"):
        model.generate(ZEBRA, num_inference_steps=1)
    with pytest.raises(FloatingPointError, match=r"images of worlds .* are not finite"):
        model.run(ZEBRA, **SETTINGS)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_attention_maps_are_means_over_all_calls(scheduler):
    """Of schedulers that take several calls in a step, and of pictures that are no squares."""
    pipeline = fresh()
    settings = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    more = dict(skip_prk_steps=True) if scheduler is PNDMScheduler else {}
    pipeline.scheduler = scheduler(**settings, **more)
    model, size = wb.load(pipeline), dict(height=16, width=32)
    site = "unet.down.0.0.cross"
    run = model.run({"clean": ZEBRA}, record=f"{site}.probs", **size, **SETTINGS | dict(num_inference_steps=3))
    maps = wb.attention_maps(model, ZEBRA, bins=3, num_inference_steps=3, guidance_scale=GUIDANCE, **size)
    recorded = run.values[f"{site}.probs"]
    assert maps.maps[site].sizes["y"] == 8 and maps.maps[site].sizes["x"] == 16
    for step in range(3):
        own = recorded.isel(step=recorded.step.values == step).mean("step").values
        assert np.allclose(maps.maps[site].isel(steps=step).values.reshape(own.shape), own, atol=1e-6)
    whole = wb.attention_maps(model, ZEBRA, num_inference_steps=3, guidance_scale=GUIDANCE, **size)
    assert np.allclose(
        whole.maps[site].values.reshape(recorded[:, :, 0].shape), recorded.mean("step").values, atol=1e-6
    )
    assert whole.word("zebra").sizes["x"] == 16


def test_contribution_under_a_lora_is_that_of_the_fused_one(tmp_path):
    """The output projection acts with its adapter."""
    file, prompts = lora_file(conftest.sd1, tmp_path, "lora", 1), wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra"),))
    spec = wb.AttentionSpec(seeds=(0,), num_inference_steps=2, guidance_scale=GUIDANCE)
    apart_, fused_, without = fresh(), fresh(), fresh()
    for pipeline in (apart_, fused_):
        load_lora(pipeline, file)
    fused_.fuse_lora()
    fused_.unload_lora_weights()
    models = (apart_, fused_, without)
    found = [wb.attention_contribution(wb.load(each), prompts, spec).clean.values for each in models]
    own, fused, plain = (
        np.nan_to_num(values) for values in found
    )  # where a layer has one pixel, its map has no entropy
    assert apart(own, fused) < 1e-5 < 1e-3 < apart(own, plain)
