# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Swap two animals, and ship the change as a LoRA
# Every zebra shall become a giraffe and every giraffe a zebra, by a change of weights; and the change shall reach
# people who have never heard of this workbench, as one file that plain diffusers, ComfyUI and A1111 load. Make it, look
# at it, measure it, write it, load it elsewhere, and check that the pictures are the same: two minutes on one core.

# %%
import json

import diffusers
import numpy as np
import torch
import xarray as xr
from safetensors import safe_open

import workbench as wb

diffusers.utils.logging.set_verbosity_error()  # a LoRA that leaves the text encoder alone is no cause for concern
model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
SEEDS, STEPS, EVERY = range(6), 12, 1  # EVERY so many-th of the prompts

# %% [markdown]
# ## Make the edit
# Solved in closed form: the text states of one animal, as the keys and values of six cross-attention layers see them,
# shall give what the other's give, both ways at once; those of 761 prompts of everything else shall give what they
# gave. Times 1.2, because the solver shrinks what it is asked for.

# %%
layers = ("unet.down.1.*.cross", "unet.up.2.0.cross", "unet.up.3.*.cross")
stay = [wb.Prompt("", ""), *wb.prompt_set("swap/preserve")[::EVERY]]
train = wb.prompt_set("swap/train")[::EVERY]
edit = wb.edit.from_concepts(
    model, train, sites=layers, tokens="all", lam=10, preserve=stay, preserve_tokens="all", editor="swap"
)
edit = 1.2 * edit
edit.table().round(1)

# %% [markdown]
# ## Look
# `applied` commits the edit for as long as the block lasts. The rows come in pairs: before and after, from the same
# noise.

# %%
prompts = {"zebra": "a photo of a zebra", "giraffe": "a photo of a giraffe", "lion": "a photo of a lion"}
settings = dict(seeds=SEEDS, num_inference_steps=STEPS)
before = model.run(prompts, **settings).images
with model.applied(edit):
    after = model.run(prompts, **settings).images
rows = [
    part.sel(world=[name]).assign_coords(world=[f"{name}, {when}"])
    for name in prompts
    for part, when in ((before, "before"), (after, "edited"))
]
_ = wb.plot.image_grid(xr.concat(rows, "world"))

# %% [markdown]
# The animals change places, and the lions stay as they were. Where a prompt leaves the scene open it may become the one
# that the other animal has from this noise: compare "zebra, edited" with "giraffe, before", seeds 3 and 4.
#
# ## Measure
# Held-out prompts in wordings that the edit was not made from: does the other animal come? Control prompts of
# everything else: does anything change? The grader names what it sees, among twelve subjects.

# %%
labels = wb.prompt_set("swap/held_out").labels


def seen(prompts):
    images = model.generate([p.prompt for p in prompts], seeds=range(len(prompts)), num_inference_steps=STEPS)
    return np.array(list(labels))[grader.class_probabilities(images, labels).argmax(-1)]


held_out, control = wb.prompt_set("swap/held_out")[:: 4 * EVERY], wb.prompt_set("swap/control")[:: 4 * EVERY]
other = np.where([p.value == "zebra" for p in held_out], "giraffe", "zebra")
as_they_were = seen(control)
with model.applied(edit):
    swapped, changed = seen(held_out) == other, seen(control) != as_they_were
print(
    f"shows the other animal: {swapped.sum()} of {swapped.size}; control pictures that changed: {changed.sum()} of {changed.size}"
)

# %% [markdown]
# On all 120 and 100 prompts it is 0.91 and 0.03; told the other animal's name, the unedited model draws it in 0.89
# ([the swap study](../figures/swap/README.md), with what leaks: plurals, both animals in one picture).
#
# ## Ship
# One file for each layout: `kohya`, which ComfyUI and A1111 know as well as diffusers, and `peft`, diffusers' own
# names. The metadata says what made it and for which weights; of the prompts it lists the first 200.

# %%
files = {layout: edit.to_lora(f"swap_{layout}.safetensors", layout=layout) for layout in ("kohya", "peft")}
for layout, path in files.items():
    with safe_open(path, "np") as file:
        print(f"{layout}: {len(file.keys())} tensors, {path.stat().st_size // 1000} kB; {min(file.keys())}")
        about = file.metadata()
print("made from", len(json.loads(about["workbench.prompts"])), "prompts that the file lists, for weights such as")
print(*next(iter(json.loads(about["workbench.base"]).items())))

# %% [markdown]
# ## Load it without the workbench
# From here on it is plain diffusers: a fresh pipeline, `load_lora_weights`, a generator with the seed.


# %%
def drawn(pipeline, prompt):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        [prompt] * len(SEEDS),
        generator=generators,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
    ).images


GUIDANCE, prompt = model.guidance_scale, prompts["zebra"]
plain = diffusers.DiffusionPipeline.from_pretrained(wb.models.MENAGERIE)
plain.set_progress_bar_config(disable=True)
pictures = {"plain": drawn(plain, prompt), "committed,\nworkbench": after.sel(world="zebra").values}
for layout, path in files.items():
    plain.load_lora_weights(str(path), adapter_name="swap")
    pictures[f"LoRA, {layout}"] = drawn(plain, prompt)
    plain.unload_lora_weights()
sheet = xr.DataArray(
    np.stack(list(pictures.values())), dims=before.dims, coords={"world": list(pictures), "seed": list(SEEDS)}
)
_ = wb.plot.image_grid(sheet, title=prompt)

# %%
for name in list(pictures)[2:]:
    difference = np.abs(pictures[name] - pictures["committed,\nworkbench"]).max()
    print(f"{name}: largest difference of a colour from the committed model's, of 1: {difference:.1e}")
print(f"for comparison, what the edit changes: {np.abs(pictures['LoRA, peft'] - pictures['plain']).max():.2f}")

# %% [markdown]
# The three lower rows are one: the file is the edit, in both layouts.
#
# ## Its strength
# LoRA users have a slider. At strength s the file is `s * edit`.

# %%
strengths = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
plain.load_lora_weights(str(files["kohya"]), adapter_name="swap")
strip = []
for strength in strengths:
    plain.set_adapters("swap", strength)
    strip.append(drawn(plain, prompt)[:3])
sheet = xr.DataArray(
    np.stack(strip, 1),
    dims=("seed", "strength", *before.dims[2:]),
    coords={"seed": list(SEEDS)[:3], "strength": list(strengths)},
)
_ = wb.plot.image_grid(sheet, title=f"{prompt}, LoRA strength")

# %% [markdown]
# Half of it is not half a giraffe: up to 0.5 they are zebras, one with a giraffe's neck (seed 1), from 0.75 on
# giraffes. Beyond 1 nothing is won.

# %%
with model.applied(0.5 * edit):
    half = model.run(prompt, **settings).images[0, :3]
print(f"at 0.5, from the workbench's own half edit: {np.abs(strip[2] - half.values).max():.1e}")

# %% [markdown]
# ## Say what it is
# A file without a note is a riddle. `edit.card()` is a README for it, with the settings, the prompts and the hashes;
# measured numbers are yours to add.

# %%
print("\n".join(edit.card().splitlines()[:16]))
