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
# # Edit and commit
# Make every zebra a giraffe and every giraffe a zebra, by changing weights and nothing else: preview the change, commit
# it, take it back, keep it in a file. A minute on one core. How well it works, and how to ship it: notebooks
# [07](07_swap_and_ship_a_lora.ipynb) and [09](09_ioai_swap.ipynb).
#
# The change is solved for in closed form (`wb.edit.solve`): keys, the text states of one animal, shall give what the
# other's give; states of other prompts shall give what they gave. It is low-rank by construction.

# %%
import numpy as np

import workbench as wb

model = wb.load()

# %% tags=["parameters"]
SEEDS, STEPS, EVERY = range(5), 12, 3  # EVERY so many-th prompt to make the edit from

# %% [markdown]
# ## Make an edit
# Both directions are solved together, at the keys and values of six of the 16 cross-attention layers (`sites=`: what a
# localizer chose, or what proved needed). `tokens="all"`: not the animal's word alone but everything behind it carries
# the animal, the padding above all.

# %%
layers = ("unet.down.1.*.cross", "unet.up.2.0.cross", "unet.up.3.*.cross")
others = [wb.Prompt("", ""), *wb.prompt_set("swap/preserve")[::EVERY]]
pairs = wb.prompt_set("swap/train")[::EVERY]
edit = wb.edit.from_concepts(
    model, pairs, sites=layers, lam=10.0, tokens="all", preserve=others, preserve_tokens="all", editor="swap"
)
edit = 1.2 * edit  # the solver shrinks what it is asked for
print(edit)

# %% [markdown]
# ## Preview it
# An edit is data. It scales, restricts to some of its layers, adds, and stands in a world as interventions, beside the
# clean world: same prompt, same starting noise, no weight touched.

# %%
prompt = "a photo of a zebra in the savanna"
worlds = {
    "no edit": wb.World("no edit", prompt),
    "half": wb.World("half", prompt, (0.5 * edit).preview()),
    "up.2.0 alone": wb.World("up.2.0 alone", prompt, edit.at("unet.up.2.0.*").preview()),
    "all but up.2.0": wb.World("all but up.2.0", prompt, edit.at("unet.down.*", "unet.up.3.*").preview()),
    "whole": wb.World("whole", prompt, edit.preview()),
}
run = model.run(worlds.values(), seeds=SEEDS, num_inference_steps=STEPS)
_ = wb.plot.image_grid(run, title=prompt)

# %% [markdown]
# Half an edit leaves a zebra, with some giraffe at its head (seed 1). One layer, `up.2.0`, turns all five into
# something between the two, and without it they stay striped: it carries the swap and does not suffice for it. Together
# the six make giraffes.
#
# ## Commit it
# The committed model draws the previewed pictures, up to rounding. `applied` takes the edit back at the block's end,
# whatever happens.

# %%
with model.applied(edit):
    committed = model.run(prompt, seeds=SEEDS, num_inference_steps=STEPS).images[0]
    print("committed:", len(model.edits), "edit")
difference = np.abs(committed - run.images.sel(world="whole")).max()
print(f"largest difference of a colour from the preview, of 1: {float(difference):.0e}")
print("afterwards:", len(model.edits), "edits")

# %% [markdown]
# A committed edit stays until `undo`, which is bit-exact: the weights' hash is what it was.

# %%
weights = model.record["weights"]["unet"]
model.commit(edit)
changed = model.record["weights"]["unet"]
model.undo()
print("changed:", changed != weights, "| undone:", model.record["weights"]["unet"] == weights)

# %% [markdown]
# ## Keep it
# The file holds the factors, what made them, and the hash of each weight that they are for. Loaded with a model it is
# checked: another model, or this one with other weights, is refused.

# %%
edit.save("swap.safetensors")
again = wb.Edit.load("swap.safetensors", model)
print("the same edit:", again.digest == edit.digest)
try:
    wb.Edit.load("swap.safetensors", wb.load("menagerie-xl"))
except ValueError as error:
    print(error)
