"""Parts of a pipeline that are unlike the usual ones: followed, or refused where they would mislead."""

import conftest
import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from outside import LION, STEPS, ZEBRA, apart, fresh, pictures, run
from transformers import CLIPConfig, CLIPImageProcessor

import workbench as wb
from workbench.interventions import World, replace_prompt, scale, steer


class Own(AttnProcessor2_0):
    """A processor of a person's own, which might do anything."""


def lcm() -> StableDiffusionPipeline:
    """A UNet that takes guidance as an input, with its scheduler."""
    pipeline = conftest.sd(
        dict(
            block_out_channels=(8, 16),
            cross_attention_dim=16,
            attention_head_dim=2,
            time_cond_proj_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def test_a_unet_that_takes_guidance_as_an_input_has_one_half():
    pipeline = fresh(lcm)
    model = wb.load(pipeline)
    assert (model.num_inference_steps, model.guidance_scale) == (4, 8.5)
    width = model.sites["text_encoder.1.mlp"].axis("channel")
    worlds = [
        World("zebra", ZEBRA),
        World("twin", ZEBRA),
        World("lion", LION),
        World("replaced", ZEBRA, [replace_prompt("unet.*.cross.{k,v}", LION)]),
        World("steered", ZEBRA, [steer("text_encoder.1.mlp", np.arange(width), 2.0)]),
        World("both", ZEBRA, [scale("unet.noise", 0.5, rows="both")]),
    ]
    found = run(pipeline, *worlds, guidance_scale=6.0, record=["unet.mid.cross.probs"])
    assert apart(found["zebra"], pictures(pipeline, guidance_scale=6.0)) < 1e-5
    assert apart(found["zebra"], found["twin"]) == 0 and apart(found["replaced"], found["lion"]) < 1e-5
    assert all(apart(found["zebra"], found[name]) > 1e-4 for name in ("lion", "steered", "both"))
    assert found.values["unet.mid.cross.probs"].sizes["step"] == STEPS
    assert apart(found["zebra"], run(pipeline, World("zebra", ZEBRA), guidance_scale=2.0)["zebra"]) > 1e-4
    with pytest.raises(ValueError, match=r'rows="uncond", but the run has no unconditional half; .*LCM'):
        run(pipeline, World("a", ZEBRA, [scale("unet.noise", 0.5, rows="uncond")]))
    with pytest.warns(
        UserWarning,
        match="negative_prompt= has no effect without guidance; this model takes guidance_scale as an input",
    ):
        run(pipeline, World("a", ZEBRA, negative_prompt="grass"))
    with pytest.raises(
        ValueError,
        match=r"guidance_rescale=0.5: it has no effect without guidance; this model takes guidance_scale as an",
    ):
        run(pipeline, guidance_rescale=0.5)


def test_sliced_attention_is_followed_and_refused_at_probabilities():
    pipeline = fresh()
    worlds = [World("a", ZEBRA), World("b", ZEBRA, [scale("unet.mid.cross.{k,v}", 0.5)])]
    plain = run(pipeline, *worlds)
    pipeline.enable_attention_slicing("max")
    sliced = run(pipeline, *worlds)
    assert apart(sliced.images, plain.images) < 1e-5 and apart(sliced["a"], pictures(pipeline)) < 1e-6
    never = r"attention by SlicedAttnProcessor, which never has its probabilities whole; call .*set_default_attn_processor\(\)"
    refused(pipeline, "unet.mid.cross.probs", never)
    pipeline.unet.set_default_attn_processor()
    assert apart(run(pipeline, *worlds, record=["unet.mid.cross.probs"]).images, plain.images) < 1e-5


@pytest.mark.parametrize("site", ["unet.mid.cross.probs", "unet.mid.cross.k", "unet.mid.self.v"])
def test_a_processor_of_a_persons_own_is_refused_where_it_might_differ(site):
    pipeline = fresh()
    pipeline.unet.set_attn_processor(Own())
    refused(
        pipeline, site, r"attention by Own, which may use its projections otherwise .*set_default_attn_processor\(\)"
    )
    found = run(pipeline, World("a", ZEBRA), World("b", ZEBRA, [scale("unet.mid.cross", 0.5)]))
    assert apart(found["a"], pictures(pipeline)) < 1e-6 < apart(found["a"], found["b"])


def refused(pipeline, site: str, text: str):
    """A site changed, recorded or folded."""
    fold = wb.Fold("sum", (site,), ("pixel", "token"), lambda held, call, of, value: value.sum(1))
    for world, record in (
        (World("a", ZEBRA, [scale(site, 0.5)]), ()),
        (World("a", ZEBRA), [site]),
        (World("a", ZEBRA), [fold]),
    ):
        with pytest.raises(ValueError, match=text):
            run(pipeline, world, record=record)


def test_attention_with_more_than_projections_is_refused_at_probabilities():
    pipeline = fresh()
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.norm_q = torch.nn.LayerNorm(attention.to_q.out_features // attention.heads)
    refused(
        pipeline,
        "unet.mid.cross.probs",
        "the layer's attention has norm_q, which the path that shows probabilities lacks",
    )


def test_merged_tokens_are_not_taken_for_whole_ones():
    """A layer that is given fewer pixels than its site has, as by token merging."""
    pipeline = fresh()
    feed_forward = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].ff
    feed_forward.net[0].register_forward_pre_hook(lambda module, args: (args[0][:, :1],))
    with pytest.raises(
        RuntimeError,
        match=r"unet.mid.ff has the value .*'pixel': 1, .* expected .*'pixel': 4.* merges or splits tokens",
    ):
        run(pipeline, World("a", ZEBRA, [scale("unet.mid.ff", 0.5)]), height=32, width=32)


def test_tiled_and_sliced_decoding_is_followed_and_refused_at_the_decoder():
    pipeline = fresh()
    model = wb.load(pipeline)
    record = model.record
    vae = pipeline.vae
    worlds = [World("a", ZEBRA), World("b", ZEBRA, [scale("unet.mid.cross", 0.5)])]
    plain = run(pipeline, *worlds)
    vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
    for on, off in ((vae.enable_tiling, vae.disable_tiling), (vae.enable_slicing, vae.disable_slicing)):
        on()
        found = run(pipeline, *worlds)
        assert apart(found["a"], pictures(pipeline)) < 1e-5 and apart(found.latents, plain.latents) == 0
        for more in (dict(record=["vae.latents"]), {}):
            with pytest.raises(
                ValueError, match=r"vae.latents.*call vae.disable_slicing\(\) and vae.disable_tiling\(\)"
            ):
                run(pipeline, *([World("c", ZEBRA, [scale("vae.latents", 1.0)])] if not more else []), **more)
        assert (model.record == record) == (on == vae.enable_slicing)
        off()
    assert apart(run(pipeline, *worlds).images, plain.images) == 0


def with_checker(pipeline) -> StableDiffusionPipeline:
    """The pipeline with a real safety checker that flags everything."""
    side = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(vision_config=side | {"image_size": 8, "patch_size": 4}, text_config=side, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-1.0)  # thresholds, below any similarity
    size = {"height": 8, "width": 8}
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size)
    parts = pipeline.components | {"safety_checker": checker, "feature_extractor": processor}
    made = StableDiffusionPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def test_black_pictures_of_a_safety_checker_are_an_error_that_names_them(scorer):
    pipeline = with_checker(fresh())
    model = wb.load(pipeline)
    fix = r"wb.load\(..., safety_checker=False\)"
    with pytest.raises(RuntimeError, match=rf"blacked out 4 of 4 pictures, of \['clean', 'noised'\].*{fix}"):
        run(pipeline, World("clean", ZEBRA), World("noised", ZEBRA, [scale("unet.mid.cross", 0.5)]))
    with pytest.raises(RuntimeError, match=rf"blacked out 1 of 1 pictures, of \['{ZEBRA}'\].*{fix}"):
        model.generate(ZEBRA, num_inference_steps=1)
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra", "zebra"),), {"zebra": ("a zebra",), "lion": ("a lion",)})
    with pytest.raises(RuntimeError, match="blacked out"):
        wb.causal_trace(model, prompts, wb.TraceSpec(seeds=(0,), draws=1, num_inference_steps=1), scorer=scorer)


def test_a_safety_checker_is_left_out_when_asked(tmp_path):
    pipeline = fresh()
    with_checker(pipeline).save_pretrained(tmp_path)
    assert wb.load(tmp_path).pipeline.safety_checker is not None
    without = wb.load(tmp_path, safety_checker=False)
    assert without.pipeline.safety_checker is None
    assert apart(run(without.pipeline).images, run(pipeline).images) < 1e-6
    assert without.record == wb.load(tmp_path).record  # it draws nothing
