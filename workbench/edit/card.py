"""Model cards of edits: what a reader of the file should know, in Markdown."""

from collections.abc import Iterator

from workbench.edit.low_rank import Edit

FAMILIES = {
    "sd": "Stable Diffusion 1.x or 2.x",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3 or 3.5",
    "flux": "FLUX.1",
}
MOST_PROMPTS = 20  # that a card lists
SETTINGS = (
    "lam",
    "lam_v",
    "tokens",
    "weight",
    "preservation",
    "preserve_weight",
    "retain",
    "rank",
    "floor",
    "guide",
    "similarity",
    "strength",
    "count",
    "updates",
    "lr",
    "seed",
)

CARD = """---
tags: [text-to-image, model-editing, lora]
---
# {title}

A low-rank change of {count} weights (rank at most {rank}) of {family}, made by `{editor}` of the diffusion workbench.

It was made for {dtypes} weights whose SHA-256 begin as below; on other weights it is another change. What it does to pictures is
not said here: compare them with and without it, also of prompts that it is not about. That a word acts as another is no proof that
what it meant is gone.

## Use
```python
import workbench as wb

model = wb.load(...)  # the model that it was made for
edit = wb.Edit.load("edit.safetensors", model)
model.commit(edit)  # model.undo() takes it back; edit * 0.5 is half of it
edit.to_lora("lora.safetensors")  # for diffusers (pipeline.load_lora_weights), ComfyUI, AUTOMATIC1111
```

## Made from
{made}

## Weights
| site | out x in | rank | norm | relative norm | made for |
|---|---|---|---|---|---|
{weights}
"""


def card(edit: Edit) -> str:
    """What made an edit, from which prompts and settings, for which weights, and how it is used; see `Edit.card`."""
    families = dict.fromkeys(FAMILIES.get(update.family, update.family) for update in edit.updates)
    known = edit.provenance.get("diagnostics", {})
    share = lambda site: known.get(site, {}).get("relative_norm")
    weights = [
        f"| {u.site} | {u.shape[0]} x {u.shape[1]} | {u.rank} | {u.norm():.3g} | "
        f"{'' if share(u.site) is None else format(share(u.site), '.3g')} | {u.base[:12]} |"
        for u in edit.updates
    ]
    return CARD.format(
        title=_title(edit),
        count=len(edit.updates),
        rank=edit.rank,
        family=" and ".join(families),
        editor=edit.editor,
        dtypes=" and ".join(dict.fromkeys(update.dtype for update in edit.updates)),
        made="\n".join(_made(edit)),
        weights="\n".join(weights),
    )


def prompts_of(edit: Edit) -> list[list[str]]:
    """All that an edit was made from: prompt, the words in it, and the words that they shall act as."""
    return [list(prompt) for part in parts_of(edit.provenance) for prompt in part.get("prompts", ())]


def parts_of(provenance: dict) -> Iterator[dict]:
    """The provenances of what was added and scaled to make an edit, or its own."""
    inner = provenance.get("sum") or ([provenance["of"]] if "of" in provenance else [])
    if not inner:
        yield provenance
    for part in inner:
        yield from parts_of(part)


def _title(edit: Edit) -> str:
    pairs = dict.fromkeys((old, new) for _, old, new in prompts_of(edit))
    shown = ", ".join(f"{old} -> {new}" for old, new in list(pairs)[:4]) + (", ..." if len(pairs) > 4 else "")
    return f"{edit.editor}: {shown}" if shown else edit.editor


def _made(edit: Edit) -> Iterator[str]:
    for part in parts_of(edit.provenance):
        settings = ", ".join(f"{key} {part[key]}" for key in SETTINGS if part.get(key) is not None)
        yield f"- `{part.get('editor', 'edit')}`{f': {settings}' if settings else ''}"
        for key in ("first", "second", "word"):
            if key in part:
                yield f"  - {key}: {part[key]}"
    if prompts := prompts_of(edit):
        yield "\n| prompt | words | act as |\n|---|---|---|"
        yield from (f"| {prompt} | {old} | {new} |" for prompt, old, new in prompts[:MOST_PROMPTS])
        if len(prompts) > MOST_PROMPTS:
            yield f"\n... and {len(prompts) - MOST_PROMPTS} prompts more."
