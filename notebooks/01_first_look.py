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
# Load the embedded model, generate, see what can be read and changed inside it, and change something. Everything here
# runs offline on one CPU core in half a minute; with a real checkpoint only the first line differs.

# %%
import matplotlib.pyplot as plt

import workbench as wb

model = wb.load()  # or wb.load("stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda")
grader = wb.Scorer()  # an open_clip model that was never used to train the other

# %% tags=["parameters"]
SEEDS, STEPS = range(4), 25

# %% [markdown]
# ## Generate
# A seed is its starting noise, in any row of any batch. Look down a column: from the same noise, another animal in much
# the same place.

# %%
prompts = {"zebra": "a zebra in the savanna", "giraffe": "a giraffe in the savanna"}
run = model.run(prompts, seeds=SEEDS, num_inference_steps=STEPS)
giraffes = run["giraffe"]
_ = wb.plot.image_grid(run, title="one noise for each column")

# %% [markdown]
# The grader scores pictures against texts: the cosine similarity of their embeddings, here the mean over the four
# zebras.

# %%
{text: round(float(grader.similarity(run.pil("zebra"), text).mean()), 2) for text in prompts.values()}

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
# A world is a prompt with interventions; the worlds of one run share their noise. Here the cross-attention of some
# layers is given another prompt. At all 16 layers this *is* the other prompt; at few it says what those layers draw
# from the text.

# %%
prompt, other = prompts.values()
layers = [site.name for site in model.sites("unet.*.cross.context")]
worlds = [wb.World("zebra", prompt)]
worlds += [
    wb.World(f"layers {a} to {b - 1}", prompt, [wb.replace_prompt(layers[a:b], other)])
    for a, b in [(0, 6), (6, 10), (10, 16), (0, 16)]
]
run = model.run(worlds, seeds=SEEDS, num_inference_steps=STEPS)
_ = wb.plot.image_grid(run, title='"giraffe" given to some of the 16 cross-attention layers')

# %% [markdown]
# Layers 10 to 15 make a giraffe of the zebra. Layers 0 to 5 change the place of one (seed 0), 6 to 9 nothing that is
# seen. And all of them together give the giraffes from above, up to rounding:

# %%
print("largest difference of a colour, of 1:", float(abs(run["layers 0 to 15"] - giraffes).max()))

# %% [markdown]
# Interventions are plain values: they print, compare, and go to JSON and back.

# %%
worlds[1].interventions[0]

# %%
wb.Intervention.from_json(worlds[1].interventions[0].to_json())

# %% [markdown]
# ## Reading
# `record` keeps values, labelled: here how much of the attention of each head goes to each token, at every step. Drawn
# is the mean over heads and pixels, for the tokens of the prompt; the rest, about a quarter, goes to the padding behind
# them.

# %%
layer = "unet.up.2.0.cross.probs"
read = model.run({"zebra": prompt}, seeds=[0], num_inference_steps=STEPS, record=[layer])
probs = read.values[layer].sel(world="zebra", seed=0)
words = ["start", *(word.removesuffix("</w>") for word in model.pipeline.tokenizer.tokenize(prompt)), "end"]
shares = probs.mean(["head", "pixel"])[:, : len(words)]
figure, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.plot(shares.step, shares, label=[f"{number} {word}" for number, word in enumerate(words)])
ax.set(xlabel="denoising step", ylabel="share of the attention", title=layer)
_ = ax.legend(title="token", loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# The word "zebra" gets 3 or 4 in 100, the article in front, which cannot know of it, ten times as much: attention is
# not what matters to the picture. What does is asked by interventions, as above and in the next two notebooks.
