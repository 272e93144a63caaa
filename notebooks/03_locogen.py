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
# # LocoGen, attention maps, and whether localizers agree
# Causal tracing asks what a state can bring back. LocoGen asks the opposite: give a few cross-attention layers another
# prompt, leave the rest alone, and see which layers change the picture (Basu et al. 2024, arXiv 2405.01008). Two
# minutes on one core.
#
# Every prompt of a set has a *target*: the prompt without its attribute, or with another value of it.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr

import workbench as wb

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
PROMPTS, SEEDS, STEPS, SHOWN = 3, (0, 1), 12, ("season", "colour", "object")

# %%
prompts = wb.prompt_set("season")[:PROMPTS]
prompts.table()[["prompt", "target"]]

# %% [markdown]
# ## Which layers decide the season?
# Windows of two neighbouring layers are given the target; the references are the unaltered run and the target at all
# layers.

# %%
spec = wb.LocoGenSpec(widths=(2,), seeds=SEEDS[:1], num_inference_steps=STEPS)
season = wb.locogen(model, prompts, spec, scorer=grader, batch_size=32)
effects = season.effects()
print("target at all layers:", wb.with_interval(effects, "total_effect"))
_ = wb.plot.profile(effects, title="season: two layers read the prompt without it")

# %%
print("best window:", *season.best(2), "| as good by chance:", round(season.chance(2), 4))

# %% [markdown]
# All of the season is decided in the two windows that hold layer 3, `down.1.1`; no other window does anything. The
# prompts are few: windows shuffled within each prompt reach as much in 1 of 100 cases.
#
# ## One picture for each window
# The same for three attributes, one prompt each; a column for each window. Where does the row change?

# %%
rows = [wb.locogen_images(model, wb.prompt_set(name)[0], spec, batch_size=32).sel(seed=0, drop=True) for name in SHOWN]
sheet = xr.concat(rows, pd.Index(SHOWN, name="attribute"))
sheet = sheet.assign_coords(world=["none", "all", *sheet.world.values[2:]])
figure, ax = plt.subplots(figsize=(12, 3.4), layout="constrained")
_ = wb.plot.image_grid(sheet, ax=ax, title="the target prompt at two layers").set_xlabel("layers given the target")

# %% [markdown]
# The winter goes with layer 3 (windows 2-3 and 3-4). The car is red until layer 12 is given the target (11-12 and
# 12-13), and is then half of each colour; the zebra turns into something with a giraffe's colours at layer 10 (9-10 and
# 10-11). Two layers are enough for the season and for neither of the others: compare "all".
#
# The large run, twelve prompts and two seeds for each of six attributes
# ([localizers](../figures/localizers/README.md)):
#
# | attribute | target at all layers | best window | its effect | by chance |
# |---|---|---|---|---|
# | object | 0.94 (0.72 to 0.99) | 9, 10 | 0.71 (0.50 to 0.85) | 0.0001 |
# | style | 0.95 (0.75 to 0.99) | 10, 11 | 0.26 (0.07 to 0.57) | 0.09 |
# | colour | 0.92 (0.66 to 0.99) | 11, 12 | 0.79 (0.50 to 0.94) | 0.0001 |
# | season | 1.00 (0.79 to 1.00) | 2, 3 | 0.98 (0.77 to 1.00) | 0.0001 |
# | action | 0.55 (0.26 to 0.78) | 8, 9 | 0.43 (0.15 to 0.70) | 0.0001 |
# | fact | 0.96 (0.75 to 0.99) | 9, 10 | 0.45 (0.19 to 0.71) | 0.0002 |
#
# All but style have a window that does much of what all layers do. No two layers take more than a quarter of the style
# away: it is spread.
#
# ## Keys or values? Early or late?
# Keys say where the image looks, values what it gets there. The best window again, given the target's keys, its values
# or both, in the first half of the steps, in the second, and in all.

# %%
window = (season.layers.index(season.best(2)[0]), 2)
parts = (wb.window(0.0, 0.5), wb.window(0.5, 1.0), wb.window(0.0, 1.0))
spec = wb.LocoGenSpec(windows=(window,), inputs=("k", "v", "kv"), steps=parts, seeds=SEEDS, num_inference_steps=STEPS)
needed = wb.locogen(model, prompts, spec, scorer=grader, batch_size=32).effects().squeeze(["site", "heads"])
_ = wb.plot.heatmap(needed, "steps", "inputs", title="season: what its best window needs")

# %% [markdown]
# Values do it: given at all steps they take the whole season away, with the keys or without, and keys alone half of it.
# The second half of the steps is too late for any of them.
#
# In the first half keys and values together seem to do *less* than values alone. Is that so? On all twelve prompts and
# two seeds it is 0.23 against 0.27, a difference of -0.04 (-0.13 to 0.02): nothing told apart. It comes from two
# prompts in which half of the run is just enough for values and just not enough for both; at all steps the two are
# equal (0.98). No interaction, then, but a threshold near by.
#
# ## Where does the image look?
# Attention maps are summed while the steps pass. A word's map is the mean over its tokens; entropy says how sharp it
# is, mass how much attention it gets.

# %%
maps = wb.attention_maps(model, "a photo of a zebra in the savanna", seeds=(3,), num_inference_steps=STEPS)
maps.sharpest("zebra").head(4).round(3)

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 2.8), layout="constrained")
axes[0].imshow(maps.images.squeeze().values)
axes[0].set(title="the picture", xticks=[], yticks=[])
for ax, site in zip(axes[1:], ("unet.down.1.1.cross", "unet.up.2.2.cross", "unet.up.3.1.cross")):
    word = maps.word("zebra", sites=site).mean("head").squeeze(drop=True)
    wb.plot.overlay(maps.images.squeeze().values, word, ax=ax, title=site)

# %% [markdown]
# `down.1.1` looks at the zebra and the ground below it, `up.2.2` at the zebra, `up.3.1` at its outline. The sharpest by
# entropy, `down.2.0`, has 4 x 4 pixels and is not among them.
#
#
# Sharp is not right. Measured on rendered pictures, whose masks are known, the map of the subject's word covers it best
# in `up.3.1` (an IoU of 0.58, with 0.87 the most that its resolution allows), and no better than chance at 4 x 4 and 2
# x 2 pixels ([attention](../figures/attention/README.md)).
#
# ## Do localizers agree?
# The layer that each of four puts first, by its number as papers count ([localizers](../figures/localizers/README.md)):
#
# | | object | style | colour | season | action | fact |
# |---|---|---|---|---|---|---|
# | causal tracing | 10 | 14 | 12 | 3 | 9 | 8 |
# | LocoGen | 10 | 10 | 12 | 3 | 9 | 10 |
# | low entropy of the word's map | 7 | 8 | 8 | 7 | 8 | 8 |
# | attention contribution | 4 | 8 | 4 | 4 | 4 | 4 |
#
# The two that intervene put the same layer first for object, colour, season and action. Over all sixteen layers they
# agree little except for style, because most layers do nothing and the order of nothing is noise. The two that only
# watch are very repeatable, agree with one another, and name other layers. Where a map is sharp is not where an
# attribute is decided.
#
# ## What does the prompt mean after each layer?
# Diffusion Lens: each layer's hidden state used as the prompt's embedding.

# %%
lens = wb.diffusion_lens(model, "a watercolor of a zebra on the beach", seeds=SEEDS, num_inference_steps=STEPS)
lens = lens.assign_coords(layer=[name.split(".")[1] for name in lens.layer.values])
figure, ax = plt.subplots(figsize=(12, 2.6), layout="constrained")
_ = wb.plot.image_grid(
    lens.transpose("seed", "layer", ...), ax=ax, title="the picture after each layer of the text encoder"
)

# %% [markdown]
# From layer 0 on there is a zebra on a beach. The watercolor comes later, between layers 2 and 5, and the sun of the
# first layers goes: what the later layers add is the style. From 5 on little changes.
