"""Files of edits: saved and loaded, malformed ones refused, LoRA in plain diffusers and by other programs' names, cards."""

import json
import os
import re
import subprocess
import sys
import threading

import conftest
import numpy as np
import pytest
import torch
from edit_helpers import PAIR, STEPS, WINDOW, ZEBRA
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench import files
from workbench.edit.low_rank import update_of


@pytest.fixture(scope="module")
def sd1():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


@pytest.fixture(scope="module")
def saved(sd1, tmp_path_factory):
    edit = wb.edit.swap(sd1, "a zebra", "a giraffe") + wb.edit.diff_quickfix(sd1, {"a zebra": "a lion"})
    path = tmp_path_factory.mktemp("edits") / "swap.safetensors"
    edit.save(path)
    return edit, path


# Saved and loaded


def test_a_file_brings_the_edit_back(sd1, saved):
    edit, path = saved
    again = wb.Edit.load(path, sd1)
    assert again.provenance == edit.provenance and again.sites == edit.sites and again.digest == edit.digest
    for a, b in zip(edit.updates, again.updates):
        assert torch.equal(a.b, b.b) and torch.equal(a.a, b.a)
        assert (a.base, a.module, a.dtype, a.family) == (b.base, b.module, b.dtype, b.family)


def test_the_same_edit_gives_the_same_bytes(saved, tmp_path):
    """Also what was loaded; safetensors itself orders metadata by chance, each time anew."""
    edit, path = saved
    lora = edit.to_lora(tmp_path / "lora.safetensors").read_bytes()
    for i, each in enumerate([edit, wb.Edit.load(path)] * 3):
        each.save(tmp_path / f"{i}")
        assert (tmp_path / f"{i}").read_bytes() == path.read_bytes()
        assert each.to_lora(tmp_path / f"{i}.safetensors").read_bytes() == lora


def test_a_home_folder_and_new_folders_are_found(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved[0].save("~/new/folder/edit.safetensors")
    assert (tmp_path / "new/folder/edit.safetensors").exists()
    assert wb.Edit.load("~/new/folder/edit.safetensors").digest == saved[0].digest
    assert saved[0].to_lora("~/lora.safetensors") == tmp_path / "lora.safetensors"


def test_a_file_is_there_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    path = tmp_path / "edit.safetensors"
    saved[0].save(path)
    whole = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        (saved[0] * 2).save(path)
    assert path.read_bytes() == whole and [each.name for each in tmp_path.iterdir()] == ["edit.safetensors"]


def test_many_writers_of_one_file_leave_one_whole_file(saved, tmp_path):
    path, edits = tmp_path / "edit.safetensors", [saved[0] * factor for factor in (1, 2, 3, 4)]
    threads = [threading.Thread(target=lambda edit=edit: [edit.save(path) for _ in range(10)]) for edit in edits]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert wb.Edit.load(path).digest in {edit.digest for edit in edits}
    assert [each.name for each in tmp_path.iterdir()] == ["edit.safetensors"]


# Malformed files

LIES = [
    lambda header, name: header[name].update(shape=[2**31, 2**31]),
    lambda header, name: header[name].update(dtype="F64"),
    lambda header, name: header[name].update(data_offsets=[0, 2**40]),
    lambda header, name: header.pop(name),
    lambda header, name: header["__metadata__"].update(provenance="{}"),
    lambda header, name: header["__metadata__"].update(updates="[]"),
    lambda header, name: header.update({name: 7}),
    lambda header, name: header.pop("__metadata__"),
]


@pytest.mark.parametrize("kind", ["flip", "cut", "grow", "noise", "header"])
def test_malformed_files_are_refused(saved, tmp_path, kind):
    """Forty of each kind, two hundred in all: every one is told from an edit, with a sentence that names the file."""
    data, rng = saved[1].read_bytes(), np.random.default_rng(list(b"kind" + kind.encode()))
    size = int.from_bytes(data[:8], "little")
    for i in range(40):
        broken = bytearray(data)
        if kind == "flip":
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        elif kind == "cut":
            broken = broken[: rng.integers(len(broken))]
        elif kind == "grow":
            at = rng.integers(len(broken))
            broken[at:at] = rng.bytes(rng.integers(1, 64))
        elif kind == "noise":
            broken = bytearray((b"", b"\x80\x04", b"PK\x03\x04", data[:8])[i % 4] + rng.bytes(rng.integers(0, 4096)))
        else:  # well-formed headers that say something else
            header = json.loads(data[8 : 8 + size])
            name = sorted(key for key in header if key != "__metadata__")[i % 5]
            LIES[i % len(LIES)](header, name)
            text = json.dumps(header).encode()
            broken = bytearray(len(text).to_bytes(8, "little") + text + data[8 + size :])
        assert broken != data
        (tmp_path / f"{i}").write_bytes(broken)
        with pytest.raises(ValueError, match=rf"(?s)/{i}: .*; give path= of a file that Edit.save wrote"):
            wb.Edit.load(tmp_path / f"{i}")


def forged(path, kind, matrices, **about):
    """A file whose digest is right, whatever it says."""
    return files.write(path, kind, matrices, about)


ONE = {"site": "s", "module": "m", "base": "0" * 64, "dtype": "float32", "family": "sd"}
FACTORS = {"s.b": torch.ones(2, 1), "s.a": torch.ones(1, 3)}


@pytest.mark.parametrize(
    ("matrices", "about", "text"),
    [
        (FACTORS, {"updates": [ONE]}, "an edit lacks 'provenance'"),
        (FACTORS, {"updates": [ONE], "provenance": {}, "more": 1}, "an edit has an unknown 'more'"),
        (FACTORS, {"updates": ONE, "provenance": {}}, "updates=.*: expected a list"),
        (FACTORS, {"updates": [ONE], "provenance": [1]}, r"Edit\(provenance=\)=\[1\]: give a mapping"),
        (FACTORS, {"updates": [ONE | {"site": "*"}], "provenance": {}}, "its updates and its tensors differ at"),
        (
            {"*.b": FACTORS["s.b"], "*.a": FACTORS["s.a"]},
            {"updates": [ONE | {"site": "*"}], "provenance": {}},
            "give a site's name",
        ),
        (FACTORS, {"updates": [ONE | {"base": 3}], "provenance": {}}, "s: base=3: give a SHA-256"),
        (FACTORS, {"updates": [ONE | {"module": ""}], "provenance": {}}, "s: module='': give a site's name"),
        (FACTORS, {"updates": [{"site": "s"}], "provenance": {}}, "an update lacks 'module' and lacks 'base'"),
        (FACTORS, {"updates": [ONE, ONE], "provenance": {}}, "give at least one, and each site once"),
        (FACTORS, {"updates": [], "provenance": {}}, r"its updates and its tensors differ at \['s.a', 's.b'\]"),
        (FACTORS | {"t.b": torch.ones(2, 1)}, {"updates": [ONE], "provenance": {}}, r"differ at \['t.b'\]"),
        (FACTORS | {"s.a": torch.ones(2, 3)}, {"updates": [ONE], "provenance": {}}, "their ranks must agree"),
        (
            FACTORS | {"s.a": torch.full((1, 3), torch.nan)},
            {"updates": [ONE], "provenance": {}},
            "'s.a'= of shape .* not finite",
        ),
    ],
)
def test_a_file_that_only_looks_right_is_refused(tmp_path, matrices, about, text):
    path = forged(tmp_path / "edit", "edit", matrices, **about)
    with pytest.raises(ValueError, match=rf"(?s)/edit: .*{text}"):
        wb.Edit.load(path)


def test_files_of_another_kind_are_told_apart(saved, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"of format 'diffusion-workbench edit 2', not 'diffusion-workbench moments 1'; give path= of a file that Moments",
    ):
        wb.edit.Moments.load(saved[1])
    save_file({"b": torch.ones(2, 2)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="it is a safetensors file of format None, not 'diffusion-workbench edit 2'"):
        wb.Edit.load(tmp_path / "plain")
    forged(tmp_path / "flat", "edit", {"s.b": torch.ones(2)}, updates=[], provenance={})
    with pytest.raises(ValueError, match=r"'s.b' is F32 \[2\]; all here are float32 or float64 matrices"):
        wb.Edit.load(tmp_path / "flat")
    path = forged(tmp_path / "moments", "moments", {"total": torch.eye(2, dtype=torch.float64)}, count=1.5)
    with pytest.raises(
        ValueError, match=r"moments: Moments: count=1.5: give a whole number, at least 1; save the moments again"
    ):
        wb.edit.Moments.load(path)
    with pytest.raises(FileNotFoundError, match=r"no such file; give path= of a file that Edit\.save wrote"):
        wb.Edit.load(tmp_path)  # a folder


def test_a_pickle_is_named_as_one(tmp_path):
    torch.save({"b": torch.ones(2)}, tmp_path / "edit.pt")
    with pytest.raises(ValueError, match="is a pickle, which could run anything; edits are safetensors files"):
        wb.Edit.load(tmp_path / "edit.pt")


def test_files_beyond_the_limits_are_not_read(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match=r"it has \d+ bytes, such a file at most 100"):
        wb.Edit.load(saved[1])
    monkeypatch.setattr(files, "LARGEST_HEADER", 100)
    monkeypatch.setattr(files, "LARGEST_FILE", 2**20)
    with pytest.raises(ValueError, match=r"it asks for a header of \d+ bytes; at most 100 are read"):
        wb.Edit.load(saved[1])


def test_another_model_is_refused(saved, sd1):
    edit, path = saved
    torch.manual_seed(1)
    other = wb.load(conftest.sd1())
    with pytest.raises(
        ValueError,
        match=r"made for a float32 weight of SHA-256 [0-9a-f]{64}, the model's is [0-9a-f]{64}; load the model",
    ):
        wb.Edit.load(path, other)
    with pytest.raises(
        ValueError, match=r"is for a weight of .*, the model's is .*; load the model that it was made for"
    ):
        wb.Edit.load(path, wb.load())
    with pytest.raises(
        ValueError,
        match=r"the edit changes 'unet.mid.cross.k', which this model lacks; load the model that it was made for",
    ):
        wb.edit.locoedit(sd1, PAIR, sites=WINDOW).check(wb.load(conftest.sdxl()))
    with pytest.raises(ValueError, match="SHA-256"):
        other.commit(edit)
    other.commit(edit, base=False)
    assert len(other.edits) == 1


# Law 8: plain diffusers

PLAIN = """
import sys, numpy as np, torch, diffusers
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder + "/base")
    latents = torch.from_numpy(np.load(folder + "/latents.npy"))
    for layout in ("kohya", "peft"):
        pipeline.load_lora_weights(folder + "/" + layout + ".safetensors")
        call = dict(latents=latents, num_inference_steps=3, guidance_scale=3.0, output_type="np")
        np.save(folder + "/" + layout + ".npy", pipeline("a zebra in the savanna", **call).images)
        pipeline.unload_lora_weights()
assert "workbench" not in sys.modules
"""


def all_over(model) -> wb.Edit:
    """An edit of every layer that a LoRA can hold, of different ranks, in UNet and text encoders."""
    text = wb.edit.diff_quickfix(
        model, {"a zebra": "a lion"}, sites=["text_encoder*.[0-9].attention", "text_encoder*.[0-9].{fc1,fc2}"]
    )
    own = wb.edit.swap(model, "a zebra", "a giraffe") + wb.edit.locoedit(model, PAIR, sites=WINDOW, templates=["{}"])
    kinds = ("self.q", "self.k", "self.v", "cross.q")
    draw = torch.Generator().manual_seed(0)
    rest = []
    for site in (site for site in model.sites if site.kind in kinds):
        out, into = weight_shape(model, site)
        b, a = (0.1 * torch.randn(shape, generator=draw) for shape in ((out, 1), (1, into)))
        rest.append(update_of(model, site.name, b, a))
    return own + text + wb.Edit(rest)


def weight_shape(model, site):
    return tuple(model.pipeline.unet.get_submodule(site.module.removeprefix("unet.")).weight.shape)


def test_an_exported_lora_is_the_commit_in_plain_diffusers(tmp_path):
    """Largest difference of a pixel below 1e-4 of the range in both layouts, for all layers that can be edited, at different ranks."""
    ours, folders = {}, [tmp_path / make.__name__ for make in (conftest.sd1, conftest.sdxl)]
    for folder in folders:
        torch.manual_seed(0)
        model = wb.load(getattr(conftest, folder.name)())
        edit = all_over(model)
        assert len({update.rank for update in edit.updates}) > 1
        model.pipeline.save_pretrained(folder / "base")
        for layout in ("kohya", "peft"):
            assert edit.to_lora(folder / f"{layout}.safetensors", layout=layout) == folder / f"{layout}.safetensors"
        np.save(folder / "latents.npy", model.latents([3]).numpy())
        call = dict(latents=model.latents([3]), num_inference_steps=STEPS, guidance_scale=3.0, output_type="np")
        plain = model.pipeline(ZEBRA, **call).images
        with model.applied(edit):
            ours[folder] = model.pipeline(ZEBRA, **call).images
        assert np.abs(plain - ours[folder]).max() > 1e-2
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, folders)], check=True, capture_output=True)
    for folder in folders:
        for layout in ("kohya", "peft"):
            assert np.abs(np.load(folder / f"{layout}.npy") - ours[folder]).max() < 1e-4, (folder, layout)


# Other programs' names of layers. Attention blocks of the UNets as diffusers and as the original checkpoints name them, with the
# number of transformer blocks in each, and the text encoders: (prefix in Kohya's keys, layers, prefix and names in AUTOMATIC1111).
CLIP = {"self_attn_out_proj": "self_attn_out_proj", "mlp_fc1": "mlp_fc1", "mlp_fc2": "mlp_fc2"}
OPEN_CLIP = {"self_attn_out_proj": "attn_out_proj", "mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj"}
SD = {
    "down_blocks_0_attentions_0": ("input_blocks_1_1", 1),
    "down_blocks_0_attentions_1": ("input_blocks_2_1", 1),
    "down_blocks_1_attentions_0": ("input_blocks_4_1", 1),
    "down_blocks_1_attentions_1": ("input_blocks_5_1", 1),
    "down_blocks_2_attentions_0": ("input_blocks_7_1", 1),
    "down_blocks_2_attentions_1": ("input_blocks_8_1", 1),
    "mid_block_attentions_0": ("middle_block_1", 1),
    "up_blocks_1_attentions_0": ("output_blocks_3_1", 1),
    "up_blocks_1_attentions_1": ("output_blocks_4_1", 1),
    "up_blocks_1_attentions_2": ("output_blocks_5_1", 1),
    "up_blocks_2_attentions_0": ("output_blocks_6_1", 1),
    "up_blocks_2_attentions_1": ("output_blocks_7_1", 1),
    "up_blocks_2_attentions_2": ("output_blocks_8_1", 1),
    "up_blocks_3_attentions_0": ("output_blocks_9_1", 1),
    "up_blocks_3_attentions_1": ("output_blocks_10_1", 1),
    "up_blocks_3_attentions_2": ("output_blocks_11_1", 1),
}
XL = {
    "down_blocks_1_attentions_0": ("input_blocks_4_1", 2),
    "down_blocks_1_attentions_1": ("input_blocks_5_1", 2),
    "down_blocks_2_attentions_0": ("input_blocks_7_1", 10),
    "down_blocks_2_attentions_1": ("input_blocks_8_1", 10),
    "mid_block_attentions_0": ("middle_block_1", 10),
    "up_blocks_0_attentions_0": ("output_blocks_0_1", 10),
    "up_blocks_0_attentions_1": ("output_blocks_1_1", 10),
    "up_blocks_0_attentions_2": ("output_blocks_2_1", 10),
    "up_blocks_1_attentions_0": ("output_blocks_3_1", 2),
    "up_blocks_1_attentions_1": ("output_blocks_4_1", 2),
    "up_blocks_1_attentions_2": ("output_blocks_5_1", 2),
}
PROGRAMS = {
    "sd1": (SD, [("lora_te", 12, "transformer_text_model_encoder_layers", CLIP)]),
    "sd2": (SD, [("lora_te", 23, "model_transformer_resblocks", OPEN_CLIP)]),
    "sdxl": (
        XL,
        [
            ("lora_te1", 12, "0_transformer_text_model_encoder_layers", CLIP),
            ("lora_te2", 32, "1_model_transformer_resblocks", OPEN_CLIP),
        ],
    ),
}
PROJECTIONS = [f"attn{i}_to_{kind}" for i in (1, 2) for kind in ("q", "k", "v", "out_0")]


def comfyui(name: str) -> set[str]:
    """Keys that ComfyUI's map knows of a model (comfy/lora.py with comfy/utils.py): diffusers' and the original names alike."""
    blocks, encoders = PROGRAMS[name]
    unet = {
        f"lora_unet_{block}_transformer_blocks_{i}_{projection}"
        for place, (original, depth) in blocks.items()
        for block in (place, original)
        for i in range(depth)
        for projection in PROJECTIONS
    }
    first = encoders[0]
    text = {
        f"{prefix}_text_model_encoder_layers_{i}_{layer}"
        for prefix, layers, _, names in [*encoders, ("lora_te", *first[1:]), ("lora_te1", *first[1:])]
        for i in range(layers)
        for layer in names
    }
    return unet | text


def automatic(name: str) -> set[str]:
    """Modules that AUTOMATIC1111 has of a model, by the names that its map gives (extensions-builtin/Lora/networks.py)."""
    blocks, encoders = PROGRAMS[name]
    unet = {
        f"diffusion_model_{original}_transformer_blocks_{i}_{projection}"
        for original, depth in blocks.values()
        for i in range(depth)
        for projection in PROJECTIONS
    }
    return unet | {
        f"{own}_{i}_{to}" for _, layers, own, names in encoders for i in range(layers) for to in names.values()
    }


def as_automatic(key: str, name: str) -> str:
    """What AUTOMATIC1111 looks a key up by: blocks are counted by threes, text encoders told by their prefix."""
    if found := re.match(r"lora_unet_(down|up)_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        block = 3 * int(found[2]) + int(found[3])
        return f"diffusion_model_{'input' if found[1] == 'down' else 'output'}_blocks_{block + (found[1] == 'down')}_1_{found[4]}"
    if found := re.match(r"lora_unet_mid_block_attentions_\d+_(.+)", key):
        return f"diffusion_model_middle_block_1_{found[1]}"
    prefix, _, rest = key.partition("_text_model_encoder_layers_")
    number, _, layer = rest.partition("_")
    own, names = next((own, names) for known, _, own, names in PROGRAMS[name][1] if known == prefix)
    return f"{own}_{number}_{names[layer]}"


@pytest.mark.parametrize("make", [conftest.sd1, conftest.sd2, conftest.sdxl], ids=lambda make: make.__name__)
def test_every_key_is_known_to_comfyui_and_automatic1111(tmp_path, make):
    """The random pipelines have the blocks of Stable Diffusion 1, 2 and XL, if fewer in each."""
    torch.manual_seed(0)
    model = wb.load(make())
    edit = all_over(model)
    held = load_file(edit.to_lora(tmp_path / "lora.safetensors"))
    layers = {key.split(".")[0] for key in held}
    assert held.keys() == {
        f"{layer}.{part}" for layer in layers for part in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert len(layers) == len(edit.updates) > 60
    assert layers <= comfyui(make.__name__)
    assert {as_automatic(layer, make.__name__) for layer in layers} <= automatic(make.__name__)
    for layer in layers:  # both scale by alpha / rank
        assert (
            held[f"{layer}.alpha"] == len(held[f"{layer}.lora_down.weight"]) == held[f"{layer}.lora_up.weight"].shape[1]
        )


def test_lora_files_say_what_they_are(saved, tmp_path, menagerie):
    edit, _ = saved
    for layout in ("kohya", "peft"):
        path = edit.to_lora(tmp_path / f"{layout}.safetensors", layout=layout)
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        assert about["modelspec.title"].startswith("swap") and "a zebra" in about["modelspec.description"]
        assert ["a zebra", "a zebra", "a giraffe"] in json.loads(about["workbench.prompts"])
        base = json.loads(about["workbench.base"])
        assert base[edit.sites[12]] == {"sha256": edit.updates[12].base, "dtype": "float32"}
        assert about["workbench.edit"] == edit.digest and float(about["ss_network_alpha"]) == edit.rank
        assert "ss_base_model_version" not in about  # its text states are of no known model's width
    torch.manual_seed(0)
    xl = wb.load(conftest.sdxl())
    with safe_open(
        wb.edit.locoedit(xl, PAIR, sites=WINDOW).to_lora(tmp_path / "xl.safetensors"), framework="pt"
    ) as file:
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    for width, version in ((768, "sd_v1"), (1024, "sd_v2")):
        update = next(update for update in edit.updates if update.module.endswith("attn2.to_k"))
        wide = wb.edit.Update(
            update.site, update.module, torch.ones(4, 1), torch.ones(1, width), "0" * 64, "float16", "sd"
        )
        with safe_open(wb.Edit([wide]).to_lora(tmp_path / "sd.safetensors"), framework="pt") as file:
            assert file.metadata()["ss_base_model_version"] == version


@pytest.mark.parametrize(
    ("text", "use"),
    [
        (
            r"to_lora\(path='lora'\): give the path of one file that ends in .safetensors",
            lambda e, m: e.to_lora("lora"),
        ),
        (
            r"to_lora\(layout=\)='a1111': may be 'kohya', 'peft'",
            lambda e, m: e.to_lora("x.safetensors", layout="a1111"),
        ),
        (
            "text_encoder.embedding cannot travel as LoRA, which holds linear layers",
            lambda e, m: (e + wb.edit.embedding_swap(m, "zebra", "lion")).to_lora("x.safetensors"),
        ),
        (
            "the edit was made for pixart; LoRA files are written for one of sd, sdxl, sd3, flux",
            lambda e, m: wb.Edit(
                [wb.edit.Update("s", "unet.s", torch.ones(2, 1), torch.ones(1, 2), "0" * 64, "float32", "pixart")]
            ).to_lora("x.safetensors"),
        ),
    ],
)
def test_what_a_lora_cannot_hold_is_refused_by_name(saved, sd1, tmp_path, monkeypatch, text, use):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        use(saved[0], sd1)
    assert not list(tmp_path.iterdir())


def test_a_lora_of_an_edit_in_bfloat16_warns_and_is_as_near_as_the_dtype_allows(tmp_path):
    """LoRA and commit differ by about as much as the unedited model's pictures in bfloat16 and in float32."""
    draw = lambda model: (
        model.pipeline(
            [ZEBRA] * 4, latents=model.latents(range(4)), num_inference_steps=4, guidance_scale=3.0, output_type="np"
        ).images
    )
    exact = wb.load()
    latents = exact.latents(range(4))
    model = wb.load(dtype="bfloat16")
    model.latents = lambda seeds: latents.bfloat16()
    edit = wb.edit.locoedit(model, PAIR, sites="unet.*.cross")
    with pytest.warns(
        UserWarning, match="to_lora: the edit was made for bfloat16 weights, where a LoRA's images differ"
    ):
        path = edit.to_lora(tmp_path / "lora.safetensors")
    floor = np.abs(draw(model) - draw(exact)).mean()
    with model.applied(edit):
        committed = draw(model)
    model.pipeline.load_lora_weights(path)
    loaded = draw(model)
    assert 0 < np.abs(loaded - committed).mean() < 3 * floor < 0.1 * np.abs(loaded - draw(exact)).mean()


# Cards


def test_a_card_says_what_a_reader_should_know(saved, sd1):
    text, update = saved[0].card(), saved[0].updates[12]
    assert text.startswith(
        "---\ntags: [text-to-image, model-editing, lora]\n---\n# swap + diff_quickfix: a zebra -> a giraffe"
    )
    for part in (
        "A low-rank change of 33 weights (rank at most 8) of Stable Diffusion 1.x or 2.x",
        "| a photo of a zebra | a zebra | a giraffe |",
        "- `swap`: lam 0.01, tokens subject_last",
        f"| {update.site} | {update.shape[0]} x 16 | {update.rank} | {update.norm():.3g} |",
        update.base[:12],
        "is no proof that",
    ):
        assert part in text, part
    rows = wb.edit.embedding_swap(sd1, "zebra", "lion").card()
    assert "first: zebra" in rows and "second: lion" in rows
    plain = wb.Edit([saved[0].updates[0]]).card()
    assert "# edit\n" in plain and "| prompt |" not in plain
    many = wb.edit.uce(sd1, PAIR, sites=WINDOW, templates=[f"a photo of {{}}, number {i}" for i in range(30)]).card()
    assert "... and 10 prompts more." in many
