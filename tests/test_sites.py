"""Sites name what is there, in the order in which it runs."""

import inspect

import pytest
import torch
from diffusers import UNet2DConditionModel

import workbench as wb
from workbench.families.unet import unet_sites
from workbench.sites import Sites, find_sites


@pytest.fixture(scope="module")
def model():
    return wb.load()


def run_with_hooks(pipeline, sites):
    """Values seen at each site in one step without guidance, in the order in which they were seen."""
    seen, handles = {}, []
    for site in sites:
        if site.name.endswith(".probs") or site.port == "step":  # fused attention has none, and a step no module
            continue
        module = pipeline
        for part in site.module.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)

        def hook(module, args, kwargs, output, site=site):
            value = {"input": args[:1], "context": (kwargs.get("encoder_hidden_states"),), "output": output}[site.port]
            seen.setdefault(site.name, value[0] if isinstance(value, tuple) else value)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        pipeline("a zebra", num_inference_steps=1, guidance_scale=1, height=side, width=side, output_type="pt")
    finally:
        for handle in handles:
            handle.remove()
    return seen


def test_every_site_is_where_its_row_says_and_has_its_shape(tiny):
    sites = find_sites(tiny)
    seen = run_with_hooks(tiny, sites)
    for site in sites:
        if not site.name.endswith(".probs") and site.port != "step":
            assert tuple(seen[site.name].shape) == (1, *site.sizes), site
            assert len(site.axes) == 1 + len(site.sizes)


def test_sites_stand_in_execution_order(tiny):
    sites = find_sites(tiny)
    seen = list(run_with_hooks(tiny, sites))
    order = {site.name: i for i, site in enumerate(sites)}
    for unordered in (".context", ".q", ".k", ".v"):  # read at the attention's call, whose hook fires behind its parts'
        seen = [name for name in seen if not name.endswith(unordered)]
    assert [order[name] for name in seen] == sorted(order[name] for name in seen)


def public_unet(**config):
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, layers_per_block=2, **config)


def test_the_sixteen_layers_of_sd_15_have_the_papers_numbers():
    unet = public_unet(
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    layers = Sites(unet_sites(unet, 77, (64, 64), "tokenizer"))("unet.*.cross")
    places = ["down.0.0", "down.0.1", "down.1.0", "down.1.1", "down.2.0", "down.2.1", "mid"]
    places += [f"up.{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert [site.name for site in layers] == [f"unet.{place}.cross" for place in places]
    assert [site.paper for site in layers] == list(range(16))
    assert layers[0].sizes == (4096, 320) and layers[6].sizes == (64, 1280) and layers[15].sizes == (4096, 320)


def test_the_seventy_layers_of_sdxl_have_the_papers_numbers():
    unet = public_unet(
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    )
    sites = Sites(unet_sites(unet, 77, (64, 64), "tokenizer"))
    for block, first, last in (
        ("down.1", 0, 3),
        ("down.2", 4, 23),
        ("mid", 24, 33),
        ("up.0", 34, 63),
        ("up.1", 64, 69),
    ):
        assert [site.paper for site in sites(f"unet.{block}.*cross")] == list(range(first, last + 1))


def test_globs_select_in_execution_order(model):
    kv = model.sites("unet.*.cross.{k,v}")
    assert len(kv) == 32 and [site.name.rsplit(".", 1)[1] for site in kv] == ["k", "v"] * 16
    assert [site.paper for site in kv] == [i for i in range(16) for _ in "kv"]
    assert model.sites("text_encoder.*.mlp", "text_encoder.embedding")[0].name == "text_encoder.embedding"
    assert len(model.sites("text_encoder.*.{attention,mlp,hidden}")) == 36
    window = model.sites("unet.*.cross").window(6, 2)
    assert [site.name for site in window] == ["unet.mid.cross", "unet.up.1.0.cross"]


def test_what_matches_nothing_raises_with_the_nearest_names(model):
    with pytest.raises(
        KeyError, match=r"no site matches 'unet.up.1.1.crss.v'; of \d+ sites the nearest are unet.up.1.1.cross.v, "
    ):
        model.sites("unet.up.1.1.crss.v")
    with pytest.raises(KeyError, match=r"no site matches 'text_encoder.12.mlp'"):
        model.sites("text_encoder.*.mlp", "text_encoder.12.mlp")
    with pytest.raises(ValueError, match=r"window\(start=15, width=2\) does not fit 16 sites: start may be 0 to 14"):
        model.sites("unet.*.cross").window(15, 2)


def test_the_table_is_shown(model):
    shown = repr(model.sites("unet.mid.cross"))
    for word in (
        "unet.mid.cross",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2",
        "row pixel channel",
        "4 x 96",
        "paper",
        " 6",
    ):
        assert word in shown
    assert "<table" in model.sites._repr_html_() and inspect.getdoc(Sites)
