"""What people give `wb.load`: it works, or one sentence says what was found and what is supported."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import conftest
import pytest
import safetensors.torch
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from original_layout import original
from outside import SETTINGS, ZEBRA, apart, fresh, pictures, run

import workbench as wb
from workbench.interventions import World, replace_prompt, scale
from workbench.models import MENAGERIE

OTHERS = (
    "LuminaPipeline",
    "KolorsPipeline",
    "SanaPipeline",
    "KandinskyV22Pipeline",
    "AuraFlowPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionPAGPipeline",
    "LatentConsistencyModelPipeline",
)
SUPPORTED = "supported are .*StableDiffusionPipeline, StableDiffusionXLPipeline"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "sd1"
    fresh().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def unread(monkeypatch):
    """Fails a test that reads weights."""
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_pipeline_is_refused_before_its_weights_are_read(tmp_path, unread, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.42.1"}))
    with pytest.raises(ValueError, match=f"of the class {name}; {SUPPORTED}"):
        wb.load(tmp_path)


def live(kind: str):
    if kind == "refiner":
        parts = fresh(conftest.sdxl).components
        return StableDiffusionXLImg2ImgPipeline(**parts | {"text_encoder": None, "tokenizer": None})
    parts = fresh().components
    more = {"requires_safety_checker": False}
    if kind == "PAG":
        return StableDiffusionPAGPipeline(**parts, **more)
    if kind == "inpainting":
        return StableDiffusionInpaintPipeline(**parts, **more)
    if kind == "ControlNet":
        control = ControlNetModel.from_unet(parts["unet"], conditioning_channels=3)
        return StableDiffusionControlNetPipeline(**parts, controlnet=control, **more)
    return AutoPipelineForImage2Image.from_pipe(StableDiffusionPipeline(**parts, **more))


@pytest.mark.parametrize("kind", ["PAG", "refiner", "inpainting", "ControlNet", "image to image"])
def test_a_live_pipeline_of_another_kind_is_refused(kind):
    pipeline = live(kind)
    with pytest.raises(ValueError, match=f"of the class {type(pipeline).__name__}; {SUPPORTED}"):
        wb.load(pipeline)


def test_a_unet_that_takes_more_than_latents_is_refused():
    parts = fresh().components
    inpainting = UNet2DConditionModel.from_config(parts["unet"].config, in_channels=9)
    with pytest.raises(ValueError, match="takes 9 channels, the VAE's latents have 4: an inpainting"):
        wb.load(StableDiffusionPipeline(**parts | {"unet": inpainting}, requires_safety_checker=False))


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae", "unet", "scheduler"])
def test_a_pipeline_without_a_part_is_refused(part):
    pipeline = fresh()
    setattr(pipeline, part, None)
    with pytest.raises(ValueError, match=f"the StableDiffusionPipeline has no {part}; it needs all of its components"):
        wb.load(pipeline)


def test_a_unet_without_a_mid_block():
    """As BK-SDM's small ones: everything but the middle is there, and all layers given a prompt draw it."""
    pipeline = conftest.sd(
        dict(
            block_out_channels=(8, 16),
            cross_attention_dim=16,
            attention_head_dim=2,
            mid_block_type=None,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    pipeline.set_progress_bar_config(disable=True)
    lion = "a lion"
    worlds = [World("a", ZEBRA), World("lion", lion), World("b", ZEBRA, [replace_prompt("unet.*.cross.{k,v}", lion)])]
    found = run(
        pipeline, *worlds, World("c", ZEBRA, [scale("unet.down.1.0.resnet", 3.0)]), record=["unet.up.1.0.cross.probs"]
    )
    assert apart(found["a"], pictures(pipeline)) < 1e-5 and apart(found["b"], found["lion"]) < 1e-5
    assert apart(found["a"], found["lion"]) > 1e-4 and apart(found["a"], found["c"]) > 1e-4
    assert not [site for site in wb.load(pipeline).sites if site.place.startswith("unet.mid")]


def test_dtypes_have_names(saved):
    for name, dtype in {"float16": torch.float16, "bf16": torch.bfloat16, torch.float16: torch.float16}.items():
        pipeline = wb.load(saved, dtype=name).pipeline
        assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {dtype}
    with pytest.raises(ValueError, match="dtype='float64': may be float32, float16 or bfloat16, as a name or torch's"):
        wb.load(saved, dtype="float64")
    with pytest.raises(ValueError, match="device='gpu': give a device as torch names it, such as 'cpu' or 'cuda'"):
        wb.load(saved, device="gpu")


def test_variants_are_asked_for_by_name(saved, tmp_path, unread):
    fresh().save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(
        FileNotFoundError, match=r"text_encoder/, unet/, vae/ .* variants \['fp16'\] only; give variant='fp16'"
    ):
        wb.load(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match=r"variant='bf16'\): .* variants \['fp16'\]; name one of these"):
        wb.load(tmp_path / "half", variant="bf16")
    with pytest.raises(FileNotFoundError, match=r"variant='fp16'\): .* variants none; leave variant out"):
        wb.load(saved, variant="fp16")


def test_a_variant_is_loaded(tmp_path):
    pipeline = fresh()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    found = wb.load(tmp_path, variant="fp16", dtype="float16")
    assert found.pipeline.unet.dtype == torch.float16
    assert apart(run(found.pipeline).images, run(pipeline).images) < 0.02


@pytest.mark.parametrize(
    ("spoiled", "text"),
    [
        (
            lambda folder: shutil.rmtree(folder / "unet"),
            r"lacks unet/, which its model_index.json names: is its download complete\?",
        ),
        # without this, another tokenizer is made up
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks tokenizer/, which its model_index.json names"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "lacks scheduler/, which its model_index.json names"),
        (lambda folder: weights(folder, "vae").unlink(), r"no weights in vae/, .* is its download complete\?"),
        (lambda folder: weights(folder, "text_encoder").unlink(), "no weights in text_encoder/"),
        (lambda folder: shards(folder), "no weights in unet/, or not all that its index names"),
    ],
)
def test_a_download_that_broke_off_is_told_before_weights_are_read(folder, unread, spoiled, text):
    spoiled(folder)
    with pytest.raises(FileNotFoundError, match=text):
        wb.load(folder)


def weights(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def shards(folder: Path):
    """As if the first of two files had come."""
    weights(folder, "unet").rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"conv_in.weight": names[0], "conv_out.weight": names[1]}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def without_first(file: Path, count: int):
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file(dict(list(tensors.items())[count:]), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoiled", "text"),
    [
        (lambda folder: cut(weights(folder, "unet")), "its weights cannot be loaded: "),
        (lambda folder: cut(weights(folder, "text_encoder")), "its weights cannot be loaded: "),
        (
            lambda folder: without_first(weights(folder, "unet"), 4),
            "unet/ lacks 4 of its model's tensors, such as conv_in",
        ),
        (
            lambda folder: without_first(weights(folder, "text_encoder"), 3),
            "text_encoder/ lacks 3 of the 52 tensors .* random numbers",
        ),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "its weights cannot be loaded: .*config.json"),
        (
            lambda folder: (folder / "defaults.json").write_text('{"steps": 3}'),
            "its defaults.json does not hold num_inference_steps and",
        ),
        (lambda folder: (folder / "model_index.json").write_text("{"), "its model_index.json cannot be read"),
        (
            lambda folder: (folder / "model_index.json").write_text("{}"),
            "its model_index.json names None as its pipeline's class",
        ),
    ],
)
def test_a_spoiled_folder_is_told_in_a_sentence(folder, spoiled, text):
    spoiled(folder)
    with pytest.raises(ValueError, match=rf"wb.load\('.*model'\): {text}"):
        wb.load(folder)


def cut(file: Path):
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        (
            "owner/name",
            FileNotFoundError,
            r"no such folder here, no embedded model of that name \(.*menagerie-sd.*\), nothing in the local cache",
        ),
        ("menagerie", FileNotFoundError, "no such folder here, no embedded model of that name"),
        ("/nowhere/model", FileNotFoundError, "there is no such folder or file; embedded models are .*menagerie-sd"),
        ("~/no such model", FileNotFoundError, "there is no such folder or file"),
        ("model.safetensors", FileNotFoundError, "there is no such folder or file"),
        ("", ValueError, "give nothing for the embedded model, a name of"),
        (7, ValueError, r"wb.load\(7\): give nothing for the embedded model"),
    ],
)
def test_what_is_not_there_is_told(source, error, text):
    with pytest.raises(error, match=text):
        wb.load(source)


def test_a_folder_of_one_component_is_told(saved):
    with pytest.raises(
        FileNotFoundError, match=r"the folder has no model_index.json; it holds \['config.json', 'diffusion_"
    ):
        wb.load(saved / "unet")


def test_home_and_names(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert wb.load("~/sd1").record == wb.load(saved).record
    assert wb.load("menagerie-sd").record == wb.load().record == wb.load(MENAGERIE).record


def test_a_pipeline_loaded_twice_is_one():
    """Runs of both take turns."""
    pipeline = fresh()
    first, second = wb.load(pipeline), wb.load(pipeline)
    expected = pictures(pipeline)
    for model in (first, second, first):
        assert apart(model.run(ZEBRA, seeds=(0, 1), **SETTINGS)[ZEBRA], expected) < 1e-5
    assert first.record == second.record


def test_a_pipeline_that_nobody_holds_is_freed():
    pipeline = fresh()
    run(pipeline, World("a", ZEBRA, [scale("unet.mid.cross", 0.5)]), record=["unet.mid.cross.probs"])
    wb.load(pipeline).record  # noqa: B018  its weights are hashed, and the hashes kept
    held = [weakref.ref(each) for each in (pipeline, pipeline.unet)]
    del pipeline
    gc.collect()
    assert [each() for each in held] == [None, None]


def test_a_single_file_in_the_original_layout(saved, tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(original(fresh()), file)
    for config in (saved, str(saved)):
        model = wb.load(file, config=config)
        assert apart(run(model.pipeline).images, run(fresh()).images) < 1e-5
    assert model.record == wb.load(saved).record
    assert wb.load(file, config=saved, dtype="float16").pipeline.unet.dtype == torch.float16
    with pytest.raises(
        ValueError, match="configurations are had from the hub: give config=, a local folder that holds them"
    ):
        wb.load(file)
    with pytest.raises(
        ValueError, match=r"cannot be put together .*does config= hold the configurations of this architecture"
    ):
        wb.load(file, config=tmp_path)


def test_other_single_files_are_told(saved, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken.safetensors'\): the file is no checkpoint that diffusers reads"):
        wb.load(tmp_path / "broken.safetensors")
    with pytest.raises(
        ValueError, match=r"a checkpoint without a UNet, of \['conv_in.bias', .* in the original layout"
    ):
        wb.load(weights(saved, "unet"))
    flux = {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(4), "img_in.weight": torch.zeros(4, 64)}
    safetensors.torch.save_file(flux, tmp_path / "flux.safetensors")
    with pytest.raises(
        ValueError,
        match=r"a checkpoint of the kind 'flux-schnell'; supported are whole Stable Diffusion 1.x, 2.x and XL",
    ):
        wb.load(tmp_path / "flux.safetensors")
    (tmp_path / "notes.txt").write_text("a note")
    with pytest.raises(ValueError, match=r"a .txt file; checkpoints end in .safetensors, .ckpt"):
        wb.load(tmp_path / "notes.txt")
