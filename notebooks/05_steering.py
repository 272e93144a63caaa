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
# # Steering: winter is coming
# Run the text encoder on prompts that say "winter" and on the same prompts that say "summer". The mean difference of its activations is a
# *direction*. Add it while the model reads a prompt that says neither, and see whether it snows.

# %%
import matplotlib.pyplot as plt
import pandas as pd

import workbench as wb

model, grader = wb.load(), wb.Scorer()
positive, negative = wb.prompt_pairs("winter")
list(zip(positive, negative))[:2]

# %% [markdown]
# ## A direction
# At the output of every MLP of the text encoder, kept for each position of the prompt. The denoiser does not run.

# %%
winter = wb.direction(model, positive, negative, "text_encoder.*.mlp", pool="positions")
winter.table().round(3)

# %% [markdown]
# `relative_length` is how far the concept moves a layer's activations, in multiples of their mean norm, and `relative_error` its standard
# error over the pairs. Directions are values: they add, scale, compare and go into files.

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
run = model.run(worlds, seeds=[0, 1], progress=False)
_ = wb.plot.image_grid(run.images.rename(world="strength").transpose("seed", "strength", ...), title=prompt)

# %% [markdown]
# A prompt that insists on summer resists longer. At strength 0 the images are bitwise those of the plain prompt.

# %%
hot = "a lion on a sunny day"
worlds = [wb.World(f"{s:g}", hot, winter.steer(s)) for s in strengths]
run = model.run(worlds, seeds=[0, 1], progress=False)
_ = wb.plot.image_grid(run.images.rename(world="strength").transpose("seed", "strength", ...), title=hot)

# %% [markdown]
# ## Which layers?
# A sweep steers by one layer at a time, and by all, at several strengths, now multiples of each layer's own mean activation norm, so that
# layers compare (`unit=True`). Two things are measured: similarity to "winter", and what is left of the prompt.

# %%
concept = wb.Concept("winter", "summer", wb.prompt_set("season").labels, "winter")
tune = wb.PromptSet("tune", tuple(wb.prompt_set("steer/tune"))[:4], wb.prompt_set("object").labels)
spec = wb.SweepSpec(strengths=(0.5, 1.0, 2.0), num_inference_steps=8)
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
# The full sweep, eighteen prompts and all layers of both, is `workbench benchmark winter`:

# %%
figures = wb.models.DATA.parent / "figures"


def show(name, size):
    plt.figure(figsize=size, layout="constrained")
    plt.imshow(plt.imread(figures / "winter" / name))
    plt.axis("off")


show("steering_layers.png", (13, 10))

# %% [markdown]
# ## The strength that each prompt needs
# Bisection finds, for each prompt, the least strength at which its images are more like winter than like summer, within a budget of lost
# similarity to the prompt. `resistance` is how much more like summer than winter they were.

# %%
spec = wb.AdaptiveSpec(strongest=1.0, rounds=4, unit=False, budget=0.35, num_inference_steps=8)
wb.adaptive_strength(model, tune, winter, concept, spec, scorer=grader, batch_size=32).round(2)

# %% [markdown]
# ## The UNet
# Directions of cross-attention outputs are taken from generated images, one vector for each step. `remove` takes away what points along a
# direction instead of adding (CASteer).

# %%
unet = wb.direction(model, positive[:6], negative[:6], "unet.*.cross", num_inference_steps=12)
worlds = [
    wb.World("plain", hot),
    wb.World("winter added", hot, unet.steer(0.5, unit=True, keep_norm=True)),
    wb.World("summer removed", hot, (-unet).remove(2.0)),
]
_ = wb.plot.image_grid(model.run(worlds, seeds=range(4), num_inference_steps=12, progress=False).images, title=hot)

# %% [markdown]
# ## Two concepts at once
# Interventions add up: a world takes those of both directions.

# %%
both = winter.steer(0.75) + others["watercolor"].steer(0.75)
worlds = [
    wb.World("plain", prompt),
    wb.World("winter", prompt, winter.steer(0.75)),
    wb.World("winter, watercolor", prompt, both),
]
_ = wb.plot.image_grid(model.run(worlds, seeds=range(4), progress=False).images, title=prompt)

# %% [markdown]
# ## Thirty held-out prompts
# Layers and strengths were chosen on other prompts, by one rule (`workbench benchmark winter`). Share of images classified as winter, the
# probability of the right subject, which the grader knows, and similarity to the original prompt:

# %%
report = pd.read_csv(figures / "winter" / "steering.csv")
shown = report[report.metric.isin(["concept", "similarity", "probability"])]
shown = shown.assign(text=[f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in shown.itertuples()])
shown.pivot(index="variant", columns="metric", values="text").reindex(report.variant.unique())
