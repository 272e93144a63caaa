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
# Make every zebra a giraffe and every giraffe a zebra, by changing weights and nothing else: preview the change, commit it, measure what
# it did and what it broke, take it back, and hand it over as a file that plain diffusers loads.
#
# The change is solved for in closed form (`wb.edit.solve`): keys, the text states of one animal, shall give what the other's give; states
# of other prompts shall give what they gave. It is low-rank by construction.

# %%
import tempfile

import diffusers
import numpy as np

import workbench as wb

model, grader = wb.load(), wb.Scorer()
STEPS, SEEDS = 12, range(4)

# %% [markdown]
# ## Make an edit
# Both directions are solved together, at the keys and values of all 16 cross-attention layers (`sites=`: or what a localizer chose).
# `tokens="all"`: not the animal's word alone but everything behind it carries the animal, the padding above all. `preserve`: other prompts.

# %%
others = [wb.Prompt("", ""), *(wb.Prompt(prompt.prompt, "") for prompt in wb.prompt_set("swap/preserve")[::4])]
pairs = wb.prompt_set("swap/train")[::3]
edit = wb.edit.from_concepts(
    model, pairs, sites="unet.*.cross", lam=10.0, tokens="all", preserve=others, preserve_tokens="all", editor="swap"
)
edit.table().round(3)

# %% [markdown]
# ## Preview it
# As interventions, in a world beside the clean one: same prompt, same starting noise, no weight touched.

# %%
prompt = "a photo of a zebra in the savanna"
worlds = [wb.World("clean", prompt), wb.World("preview", prompt, edit.preview())]
run = model.run(worlds, seeds=SEEDS, num_inference_steps=STEPS)
wb.plot.image_grid(run.images, title=prompt)

# %% [markdown]
# ## Commit it
# The committed model draws the previewed pictures, up to rounding. `applied` takes the edit back at the block's end, whatever happens.

# %%
with model.applied(edit):
    worlds = [wb.World("a", prompt), wb.World("b", prompt)]
    committed = model.run(worlds, seeds=SEEDS, num_inference_steps=STEPS).images.sel(world="a")
    print("committed:", model.edits)
print("largest difference of a pixel:", float(np.abs(committed - run.images.sel(world="preview")).max()))
print("afterwards:", model.edits)

# %% [markdown]
# ## Measure it
# Held-out prompts, and control prompts that name neither animal; each compared with the unedited model's picture from the same noise.

# %%
held_out, control = wb.prompt_set("swap/held_out")[::8], wb.prompt_set("swap/control")[::7]


def top_classes(prompts):
    images = model.generate([p.prompt for p in prompts], seeds=range(len(prompts)), num_inference_steps=STEPS)
    labels = np.array(list(prompts.labels))
    return labels[grader.class_probabilities(images, prompts.labels).argmax(-1)]


before = top_classes(control)
with model.applied(edit):
    found, after = top_classes(held_out), top_classes(control)
wanted = np.where([p.value == "zebra" for p in held_out], "giraffe", "zebra")
print(
    f"swapped: {(found == wanted).mean():.2f} of {len(found)}; control prompts that changed: {(before != after).mean():.2f} of {len(after)}"
)

# %% [markdown]
# ## Keep it, undo it, hand it over
# A committed edit stays until `undo`, which is bit-exact. The saved file refuses any other model. A LoRA needs no workbench.

# %%
folder = tempfile.mkdtemp()
weights = model.record["weights"]["unet"]
model.commit(edit)
model.undo()
print("undone:", model.record["weights"]["unet"] == weights)
edit.save(f"{folder}/swap.safetensors")
wb.Edit.load(f"{folder}/swap.safetensors", model)

# %%
lora = edit.to_lora(f"{folder}/swap_lora.safetensors")
plain = diffusers.DiffusionPipeline.from_pretrained(wb.models.MENAGERIE)
plain.load_lora_weights(lora)
images = plain(
    [prompt] * 4,
    latents=model.latents(SEEDS),
    num_inference_steps=STEPS,
    guidance_scale=model.guidance_scale,
    output_type="np",
).images
print("LoRA in plain diffusers, largest difference from the committed model:", np.abs(images - committed.values).max())
