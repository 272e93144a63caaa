"""What a pipeline from outside brings or has switched on: followed, or refused with what switches it off."""

import conftest
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from outside import GUIDANCE, LION, STEPS, ZEBRA, apart, fresh, pictures, run
from transformers import CLIPTextModel

import workbench as wb
from workbench.interventions import World, replace_prompt, scale


def replaced_forward(pipeline):
    """As caches do that let blocks run at some steps only."""
    original = pipeline.unet.mid_block.forward
    pipeline.unet.mid_block.forward = lambda *args, **keywords: original(*args, **keywords)
    pipeline.before = original


def training(pipeline):
    pipeline.unet.mid_block.resnets[0].dropout.p = 0.5
    pipeline.unet.train()


# what switches it on, the sentence, what the sentence says switches it off
SWITCHES = {
    "compiled UNet": (
        lambda pipeline: setattr(pipeline, "unet", torch.compile(pipeline.unet)),
        r"unet went through torch.compile, .*: pipeline.unet = pipeline.unet._orig_mod",
        lambda pipeline: setattr(pipeline, "unet", pipeline.unet._orig_mod),
    ),
    "compiled block": (
        lambda pipeline: pipeline.unet.mid_block.compile(),
        r"pipeline.unet.mid_block._compiled_call_impl went through torch.compile, .*: del pipeline.unet.mid_block._compiled_call_impl",
        lambda pipeline: delattr(pipeline.unet.mid_block, "_compiled_call_impl"),
    ),
    "compiled decoder": (
        lambda pipeline: setattr(pipeline.vae, "decode", torch.compile(pipeline.vae.decode)),
        r"pipeline.vae.decode went through torch.compile, .*: del pipeline.vae.decode",
        lambda pipeline: delattr(pipeline.vae, "decode"),
    ),
    "compiled forward": (
        lambda pipeline: setattr(pipeline.unet, "forward", torch.compile(pipeline.unet.forward)),
        r"pipeline.unet.forward went through torch.compile, .*: del pipeline.unet.forward",
        lambda pipeline: delattr(pipeline.unet, "forward"),
    ),
    "offload": (
        lambda pipeline: cpu_offload(pipeline.unet, execution_device="cpu"),
        r"pipeline.unet is offloaded by accelerate, .*remove_hook_from_module\(module, recurse=True\)",
        lambda pipeline: remove_hook_from_module(pipeline.unet, recurse=True).to("cpu"),
    ),
    "layerwise casting": (
        lambda pipeline: pipeline.unet.enable_layerwise_casting(torch.float16, torch.float32),
        r"pipeline.unet.conv_in has hooks of diffusers \(layerwise_casting\), .*load the model without them",
        None,
    ),
    "group offload": (
        lambda pipeline: pipeline.unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
        r"pipeline.unet.conv_in has hooks of diffusers \(group_offloading\)",
        None,
    ),
    "replaced forward": (
        replaced_forward,
        r"pipeline.unet.mid_block had its forward replaced, .*undo that",
        lambda pipeline: setattr(pipeline.unet.mid_block, "forward", pipeline.before),
    ),
    "training": (
        training,
        r"pipeline.unet.mid_block.resnets.0.dropout drops values at random, .*call .eval\(\)",
        lambda pipeline: pipeline.unet.eval(),
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_what_interventions_would_not_see_is_refused(name, monkeypatch):
    """At load and, switched on behind a loaded model's back, before anything runs; switched off as told, all is as before."""
    on, text, off = SWITCHES[name]
    pipeline = fresh()
    worlds = [World("a", ZEBRA), World("b", ZEBRA, [scale("unet.mid.cross", 0.3), scale("unet.noise", 0.9)])]
    before = run(pipeline, *worlds)
    on(pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(type(pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
        model = None
        with pytest.raises(ValueError, match=text):
            model = wb.load(pipeline)
        assert model is None
    if off is not None:
        off(pipeline)
        assert apart(run(pipeline, *worlds).images, before.images) == 0


def test_runs_and_pictures_of_a_loaded_model_are_refused_too():
    pipeline = fresh()
    model = wb.load(pipeline)
    training(pipeline)
    for call in (model.run, model.generate):
        with pytest.raises(ValueError, match="drops values at random"):
            call(ZEBRA, num_inference_steps=1)


def ip_adapter(unet) -> dict[str, dict]:
    """The tensors of an IP-Adapter for a UNet: an image's projection, and keys and values in every cross-attention."""
    width = unet.config.cross_attention_dim
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys = {}
    for i, name in enumerate(layers):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            keys[f"{2 * i + 1}.{part}.weight"] = torch.zeros(attention.to_k.out_features, width)
    image = {
        "proj.weight": torch.zeros(4 * width, 8),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": image, "ip_adapter": keys}


def test_an_ip_adapter_is_refused_until_it_is_unloaded():
    pipeline = fresh()
    model, plain = wb.load(pipeline), run(pipeline)
    pipeline.unet._load_ip_adapter_weights([ip_adapter(pipeline.unet)])
    for call in (model.run, model.generate, lambda *a, **k: wb.load(pipeline)):
        with pytest.raises(
            ValueError, match=r"an IP-Adapter, whose image attention has no site; call .*unload_ip_adapter\(\)"
        ):
            call(ZEBRA, num_inference_steps=1)
    pipeline.unload_ip_adapter()
    assert apart(run(pipeline).images, plain.images) < 1e-6


REFUSED = {
    "clip_skip": 1,
    "prompt_embeds": torch.zeros(1),
    "negative_prompt_embeds": torch.zeros(1),
    "eta": 1.0,
    "ip_adapter_image": None,
    "cross_attention_kwargs": {"scale": 0.5},
    "generator": None,
    "num_images_per_prompt": 2,
    "timesteps": [1],
    "output_type": "np",
    "callback_on_step_end": None,
    "prompt_2": ZEBRA,
    "original_size": (8, 8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_of_diffusers_that_are_not_followed_are_refused_by_name(name):
    model = wb.load(fresh())
    for call in (model.run, model.generate):
        with pytest.raises(TypeError, match=rf"{call.__name__}\({name}=...\): \w.{{20,}}"):
            call(ZEBRA, **{name: REFUSED[name]})
    with pytest.raises(TypeError, match=r"Model.run\(stepz=...\): there is no such argument"):
        model.run(ZEBRA, stepz=3)


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        ("run", "negative_prompt", r"wb.World\(name, prompt, negative_prompt=...\)"),
        ("run", "prompt", "give it first"),
        ("run", "seed", "seeds="),
        ("generate", "seed", "seeds="),
        ("generate", "latents", r"run\(..., latents=\) begins"),
    ],
)
def test_options_that_stand_elsewhere_are_told(call, name, text):
    model = wb.load(fresh())
    with pytest.raises(TypeError, match=rf"{call}\({name}=...\): .*{text}"):
        getattr(model, call)(ZEBRA, **{name: None})


def test_what_is_told_instead_of_clip_skip_is_the_same(tmp_path):
    """A text encoder without its last layer draws what the pipeline draws with clip_skip=1."""
    pipeline = fresh()
    skipped = clip_skip(pipeline)
    pipeline.text_encoder.save_pretrained(tmp_path)
    layers = pipeline.text_encoder.config.num_hidden_layers
    pipeline.text_encoder = CLIPTextModel.from_pretrained(tmp_path, num_hidden_layers=layers - 1)
    found = run(pipeline)
    assert apart(found["plain"], skipped) < 1e-5
    assert f"text_encoder.{layers - 1}.mlp" not in wb.load(pipeline).sites


def clip_skip(pipeline) -> np.ndarray:
    """The penultimate layer's states behind the last norm, as diffusers defines it for every version of transformers."""
    ids = pipeline.tokenizer(
        [ZEBRA, ""], padding="max_length", max_length=pipeline.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    encoder = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    with torch.no_grad():
        states = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        prompt, negative = encoder.final_layer_norm(states).split(1)
    return pictures_of(pipeline, prompt, negative)


def pictures_of(pipeline, prompt: torch.Tensor, negative: torch.Tensor) -> np.ndarray:
    return pipeline(
        prompt_embeds=prompt.repeat(2, 1, 1),
        negative_prompt_embeds=negative.repeat(2, 1, 1),
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images


@pytest.mark.parametrize("make", [conftest.sd1, conftest.sdxl], ids=lambda make: make.__name__)
def test_guidance_rescale_is_followed(make):
    pipeline = fresh(make)
    expected = pictures(pipeline, guidance_rescale=0.7)
    worlds = [World("a", ZEBRA), World("b", ZEBRA, [scale("unet.noise", 1.0)])]
    found = run(pipeline, *worlds, guidance_rescale=0.7)
    assert apart(found["a"], expected) < 1e-5 and apart(found["b"], found["a"]) < 1e-6
    assert apart(found["a"], pictures(pipeline)) > 1e-3
    model = wb.load(pipeline)
    drawn = model.generate(
        ZEBRA, seeds=(0, 1), num_inference_steps=STEPS, guidance_scale=GUIDANCE, guidance_rescale=0.7
    )
    assert max(apart(np.asarray(ours) / 255, theirs) for ours, theirs in zip(drawn, expected)) < 0.01
    with pytest.raises(ValueError, match=r"guidance_rescale=1.5: give a finite number, at least 0 and at most 1"):
        run(pipeline, guidance_rescale=1.5)
    with pytest.raises(
        ValueError, match=r"guidance_rescale=0.7: it has no effect without guidance; raise guidance_scale"
    ):
        run(pipeline, guidance_rescale=0.7, guidance_scale=1.0)


def test_free_u_is_followed_and_is_another_model():
    pipeline = fresh()
    model, plain = wb.load(pipeline), run(pipeline)
    record = model.record
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with_free_u = run(
        pipeline, World("a", ZEBRA), World("b", LION), World("c", ZEBRA, [replace_prompt("unet.*.context", LION)])
    )
    assert apart(with_free_u["a"], pictures(pipeline)) < 1e-5 < apart(with_free_u["a"], plain["plain"])
    assert apart(with_free_u["c"], with_free_u["b"]) < 1e-5
    assert model.record != record
    pipeline.disable_freeu()
    assert model.record == record and apart(run(pipeline).images, plain.images) == 0
