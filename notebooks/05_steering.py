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
# # Steering
# Run the text encoder on prompts that say "winter" and on the same prompts that say "summer". The mean difference of
# its activations is a *direction*. Add it while the model reads a prompt that says neither, and see whether it snows.
# Two minutes on one core. The challenge that this comes from is notebook [08](08_winter_is_coming.ipynb).

# %%
import pandas as pd

import workbench as wb

model, grader = wb.load(), wb.Scorer()

# %% tags=["parameters"]
SEEDS, STEPS, FEW, PROMPTS, PAIRS = (0, 1), 25, 8, 4, 6  # FEW: steps where many pictures are measured

# %%
positive, negative = wb.prompt_pairs("winter")
list(zip(positive, negative))[:2]

# %% [markdown]
# ## A direction
# At the output of every MLP of the text encoder, kept for each position of the prompt. The denoiser does not run.

# %%
winter = wb.direction(model, positive, negative, "text_encoder.*.mlp", pool="positions")
winter.table().round(3)

# %% [markdown]
# `relative_length` is how far the concept moves a layer's activations, in multiples of their mean norm, and
# `relative_error` its standard error over the pairs. Directions are values: they add, scale, compare and go into files.

# %%
others = {name: wb.direction(model, *wb.prompt_pairs(name), pool="positions") for name in ("night", "watercolor")}
_ = wb.plot.activation_difference({"winter": winter, **others}, title="How far each concept moves each layer")
pd.DataFrame({name: winter.cosine(other) for name, other in others.items()}).mean().round(2)

# %% [markdown]
# Winter and night are both "not summer", so they share something; watercolor is another matter.
#
# ## Steering a prompt
# `steer` turns a direction into interventions. The same prompt and the same noise, from no strength to too much:

# %%
prompt = "a photo of a zebra in the savanna"
strengths = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)
worlds = [wb.World(f"{s:g}", prompt, winter.steer(s)) for s in strengths]
run = model.run(worlds, seeds=SEEDS, num_inference_steps=STEPS)
_ = wb.plot.image_grid(run.images.rename(world="strength").transpose("seed", "strength", ...), title=prompt)

# %% [markdown]
# At 0.75 it snows, at 2 the zebra is gone. A prompt that insists on summer resists no longer, as it turns out: At
# strength 0 the images are bitwise those of the plain prompt.

# %%
hot = "a lion on a sunny day"
worlds = [wb.World(f"{s:g}", hot, winter.steer(s)) for s in strengths]
run = model.run(worlds, seeds=SEEDS, num_inference_steps=STEPS)
_ = wb.plot.image_grid(run.images.rename(world="strength").transpose("seed", "strength", ...), title=hot)

# %% [markdown]
# ## Which layers?
# A sweep steers by one layer at a time, and by all, at several strengths, now multiples of each layer's own mean
# activation norm, so that layers compare (`unit=True`). Two things are measured: similarity to "winter", and what is
# left of the prompt.

# %%
concept = wb.Concept("winter", "summer", wb.prompt_set("season").labels, "winter")
tune = wb.PromptSet("tune", tuple(wb.prompt_set("steer/tune"))[:PROMPTS], wb.prompt_set("object").labels)
spec = wb.SweepSpec(strengths=(0.5, 1.0, 2.0), num_inference_steps=FEW)
some = winter.at("text_encoder.[0369].mlp")
sweep = wb.steer_sweep(model, tune, some, concept, spec, scorer=grader, batch_size=32)
_ = wb.plot.heatmap(
    sweep.effects("concept_similarity"), "strength", "layer", "change", title="similarity to winter, 4 prompts"
)

# %%
table = sweep.table()
_ = wb.plot.frontier(table, "concept_similarity", "similarity", title="every layer and strength, 4 prompts")
table[table.pareto][["site", "strength", "concept_similarity", "similarity"]].round(2)

# %% [markdown]
# In the text encoder it is layer 0 that does it; 3, 6 and 9 do nothing at these strengths, though winter moves them
# nearly as far (above). All layers together do a little more. What it costs is similarity to the prompt: the more of
# winter, the less of what was asked for.
#
# The full sweep, eighteen prompts and all layers of text encoder and UNet, is in [the winter
# study](../figures/winter/README.md): the earlier the layer of the text encoder the less it takes, and in the UNet one
# layer of sixteen does most of it, `down.1.1`.
#
# ## The strength that each prompt needs
# Bisection finds, for each prompt, the least strength at which its images are more like winter than like summer, within
# a budget of lost similarity to the prompt. `resistance` is how much more like summer than winter they were.

# %%
spec = wb.AdaptiveSpec(strongest=1.0, rounds=4, unit=False, budget=0.35, num_inference_steps=FEW)
wb.adaptive_strength(model, tune, winter, concept, spec, scorer=grader, batch_size=32).round(2)

# %% [markdown]
# A prompt that says nothing of the season needs next to nothing, for it is no more like summer than like winter; those
# of summer need ten times as much, and one of them runs out of budget first.
#
# ## The UNet
# Directions of cross-attention outputs are taken from generated images, one vector for each step. `remove` takes away
# what points along a direction instead of adding (CASteer).

# %%
unet = wb.direction(model, positive[:PAIRS], negative[:PAIRS], "unet.*.cross", num_inference_steps=STEPS // 2)
worlds = [
    wb.World("plain", hot),
    wb.World("winter added", hot, unet.steer(0.5, unit=True, keep_norm=True)),
    wb.World("summer removed", hot, (-unet).remove(2.0)),
]
_ = wb.plot.image_grid(
    model.run(worlds, seeds=(0, 1, 2, 3)[: 2 * len(SEEDS)], num_inference_steps=STEPS // 2).images, title=hot
)

# %% [markdown]
# Added at this strength, winter does nothing; taking summer away brings the snow, and one lion of four to another
# place. At twice the strength adding works as well ([study](../figures/winter/README.md)).
#
# ## Two concepts at once
# Interventions add up: a world takes those of both directions.

# %%
both = winter.steer(0.75) + others["watercolor"].steer(0.75)
worlds = [
    wb.World("plain", prompt),
    wb.World("winter", prompt, winter.steer(0.75)),
    wb.World("winter, watercolor", prompt, both),
]
_ = wb.plot.image_grid(
    model.run(worlds, seeds=(0, 1, 2, 3)[: 2 * len(SEEDS)], num_inference_steps=STEPS).images, title=prompt
)

# %% [markdown]
# It snows, and the picture is washed out as watercolors are.
#
# ## Thirty held-out prompts
# Layers and strengths were chosen on other prompts, by one rule (`workbench benchmark winter`). Share of images
# classified as winter, the probability of the right subject, which the grader knows, and similarity to the original
# prompt, of 60 images each; all methods are in [the winter study](../figures/winter/README.md).
#
# | | winter | right subject | similarity to the prompt |
# |---|---|---|---|
# | unsteered | 0.00 (0.00 to 0.08) | 0.98 (0.90 to 0.99) | 0.85 (0.81 to 0.88) |
# | text encoder, layer 0 at 1 | 0.92 (0.78 to 0.98) | 0.94 (0.83 to 0.98) | 0.59 (0.52 to 0.65) |
# | text encoder, all layers at 0.5 | 0.93 (0.81 to 0.99) | 0.97 (0.88 to 0.99) | 0.59 (0.55 to 0.63) |
# | UNet, `down.1.1` at 4 | 0.63 (0.46 to 0.78) | 0.98 (0.90 to 0.99) | 0.68 (0.63 to 0.73) |
# | a strength for each prompt | 0.77 (0.61 to 0.89) | 0.95 (0.84 to 0.98) | 0.64 (0.59 to 0.68) |
# | told winter | 1.00 (0.92 to 1.00) | 0.97 (0.89 to 0.99) | 0.60 (0.55 to 0.64) |
