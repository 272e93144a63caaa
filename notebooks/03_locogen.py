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
# Causal tracing asks what a state can bring back. LocoGen asks the opposite: give a few cross-attention layers another prompt, leave the
# rest alone, and see which layers change the picture (Basu et al. 2024, arXiv 2405.01008).
#
# Every prompt of a set has a *target*: the prompt without its attribute, or with another value of it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import workbench as wb

model, grader = wb.load(), wb.Scorer()
prompts = wb.prompt_set("season")[:3]
[(prompt.prompt, prompt.target) for prompt in prompts]

# %% [markdown]
# ## A small run: the season
# Windows of two neighbouring layers, and the two references: the unaltered run and the target at all layers.

# %%
spec = wb.LocoGenSpec(widths=(2,), seeds=(0,), num_inference_steps=12)
season = wb.locogen(model, prompts, spec, scorer=grader, batch_size=32)
found = season.effects()
print("full replacement:", wb.with_interval(found, "total_effect"))
wb.strongest(found)[["site", "direct_effect", "direct_effect_low", "direct_effect_high", "share"]].head(4).round(2)

# %%
_ = wb.plot.profile(found, title="season: two layers read the prompt without it")
# %% [markdown]
# The layers to edit, by name, and how often windows shuffled within each prompt would reach a best one as good. Three prompts say
# little; the large run below has twelve.

# %%
season.best(2), season.chance(2)

# %% [markdown]
# ## Six attributes
# `python -m workbench.studies.agreement` measured twelve prompts x two seeds for each attribute. For facts ("the mayor of tallport" is a
# penguin) the effect is the rise of the target's probability, for all others the fall of the prompt's own.

# %%
figures = wb.models.DATA.parent / "figures"
best = pd.read_csv(figures / "localizers" / "locogen_best.csv")
best.drop(columns="layers")

# %% [markdown]
# Object, colour, season, action and fact have a window that does much of what all layers do, far above shuffled windows. Style does not: no
# two layers take more than a quarter of it away, and shuffled windows reach as much in 9 of 100 cases. It is spread.
#
# The images, one column for each window, made here. The best windows of the table should be the columns in which the row changes.


# %%
def strip(attribute):
    prompt = wb.prompt_set(attribute)[0]
    return wb.locogen_images(model, prompt, spec, batch_size=32).sel(seed=0, drop=True)


rows = [strip(attribute) for attribute in best.attribute]
images = np.stack([row.values for row in rows])
sheet = rows[0].copy().expand_dims(attribute=best.attribute.tolist()).copy(data=images)
figure, ax = plt.subplots(figsize=(16, 6.5), layout="constrained")
_ = wb.plot.image_grid(sheet, ax=ax, title="the target prompt at two layers, seed 0").set_xlabel(
    "layers given the target"
)
# %% [markdown]
# ## Keys or values? Early or late?
# Keys say where the image looks, values what it gets. The same window, given keys only or values only, in the first or second half of
# the steps.

# %%
window = (season.layers.index(season.best(2)[0]), 2)
halves = ((0.0, 0.5), (0.5, 1.0))
asked = wb.LocoGenSpec(windows=(window,), inputs=("k", "v", "kv"), steps=halves, seeds=(0,), num_inference_steps=12)
parts = wb.locogen(model, prompts, asked, scorer=grader).effects()
_ = wb.plot.heatmap(parts.squeeze(["site", "heads"]), "steps", "inputs", title="season: what its best window needs")
# %% [markdown]
# ## Where does the image look?
# Attention maps are summed while the steps pass. A word's map is the mean over its tokens; entropy says how sharp it is.

# %%
maps = wb.attention_maps(model, "a photo of a zebra in the savanna", seeds=(3,))
maps.sharpest("zebra").head(4).round(3)

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
for ax, site in zip(axes, ("unet.down.1.1.cross", "unet.up.2.2.cross", "unet.up.3.1.cross")):
    word = maps.word("zebra", sites=site).mean("head").squeeze(drop=True)
    wb.plot.overlay(maps.images.squeeze().values, word, ax=ax, title=site)

# %% [markdown]
# Sharp is not right. On rendered pictures the true mask is known; `python -m workbench.studies.looking` noises 96 of them and shows
# each to the UNet once. The map covers its subject best in the late layers of high resolution.

# %%
iou = pd.read_csv(figures / "attention" / "attention_iou.csv")
iou[iou.step == 12].sort_values("iou", ascending=False)[["site", "iou", "low", "high", "ceiling"]].head(6).round(2)

# %% [markdown]
# ## Do the localizers agree?
# The same layers ranked by causal tracing, LocoGen, entropy and attention contribution (what the subject's tokens add to a layer's output).
# Spearman correlations over the sixteen layers, from the large run; a localizer with itself: between halves of the prompts.

# %%
agreement = pd.read_csv(figures / "localizers" / "agreement.csv")
agreement["pair"] = agreement.a + " / " + agreement.b
agreement.pivot(index="pair", columns="attribute", values="spearman").round(2)

# %% [markdown]
# Which layer each of them puts first (numbers as papers count):

# %%
ranked = pd.read_csv(figures / "localizers" / "localizers.csv")
ranked[ranked["rank"] == 1].pivot(index="localizer", columns="attribute", values="paper")

# %% [markdown]
# The two that intervene put the same layer first for object, colour, season and action. Over all sixteen layers they agree little except
# for style, because most layers do nothing and the order of nothing is noise: halves of the prompts hardly agree better with one another.
#
# The two that only watch are very repeatable, agree with one another, and name other layers; for style their order is nearly the reverse of
# the causal one. Where a map is sharp is not where an attribute is decided.
#
# ## What does the prompt mean after each layer?
# Diffusion Lens: each layer's hidden state used as the prompt's embedding.

# %%
lens = wb.diffusion_lens(model, "a watercolor of a zebra on the beach", seeds=(1,), num_inference_steps=12)
lens = lens.assign_coords(layer=[name.split(".")[1] for name in lens.layer.values])
_ = wb.plot.image_grid(lens.transpose("seed", "layer", ...), title="the picture after each layer of the text encoder")
