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
# # First look
# Load the embedded model, generate, see what can be read and changed inside it, and change something.
# Everything here runs offline on two CPU cores in about a minute; with a real checkpoint only the first line differs.

# %%
import workbench as wb

model = wb.load()  # or wb.load("stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda")
grader = wb.Scorer()  # an open_clip model that was never used to train the other

# %% [markdown]
# ## Generate
# A seed is its starting noise, in any row of any batch. The grader scores pictures against texts.

# %%
run = model.run(
    [wb.World("zebra", "a zebra in the savanna"), wb.World("giraffe", "a giraffe in the savanna")], seeds=range(4)
)
wb.plot.image_grid(run.images, title="one noise per column")

# %%
zebras = wb.as_pil(run.images.sel(world="zebra"))
grader.similarity(zebras, "a zebra in the savanna").mean(), grader.similarity(zebras, "a giraffe in the savanna").mean()

# %% [markdown]
# ## Sites
# Every value that can be read or changed has a stable name; globs select. `paper` is the number of the cross-attention
# layer as papers count.

# %%
model.sites("unet.mid.*")

# %% [markdown]
# A glob that matches nothing is an error that names the nearest sites.

# %%
try:
    model.sites("unet.middle.cross")
except KeyError as error:
    print(error)

# %% [markdown]
# ## Interventions
# A world is a prompt with interventions; the worlds of one run share their noise. Here the cross-attention of some layers is given another
# prompt: at all layers this *is* the other prompt, at few it says what those layers draw from the text.

# %%
prompt, other = "a zebra in the savanna", "a giraffe in the savanna"
layers = [site.name for site in model.sites("unet.*.cross.context")]
worlds = [wb.World("zebra", prompt)]
worlds += [
    wb.World(f"layers {a}-{b - 1}", prompt, [wb.replace_prompt(layers[a:b], other)])
    for a, b in [(0, 6), (6, 10), (10, 16), (0, 16)]
]
run = model.run(worlds, seeds=range(4))
wb.plot.image_grid(run.images, title='"giraffe" given to some of the 16 cross-attention layers')

# %% [markdown]
# Interventions are plain values: they print, compare, and go to JSON and back.

# %%
worlds[1].interventions[0]

# %%
wb.Intervention.from_json(worlds[1].interventions[0].to_json())

# %% [markdown]
# ## Reading
# `record` keeps values, labelled: here how much of the attention of each head goes to each word, at every step.

# %%
run = model.run([wb.World("zebra", prompt)], seeds=[0], record=["unet.up.2.0.cross.probs"])
probs = run.values["unet.up.2.0.cross.probs"].sel(world="zebra", seed=0)
probs.mean(["head", "pixel"]).isel(token=slice(0, 7)).plot(x="step", hue="token")
