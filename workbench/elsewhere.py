"""What people type who know TransformerLens, diffusers or NNsight, and what it is called here: for errors, nothing more."""

from typing import Any

from workbench.arguments import meant

DRAW = "model.run(prompt, seeds=0) draws with everything labelled, model.generate(prompt, seeds=0) gives PIL pictures"
VALUES = "model.run(prompt, record='unet.*.cross').values holds the values of the sites that a glob names"
CHANGE = "changes are values of a world: model.run(wb.World('edited', prompt, [wb.scale('unet.mid.cross', 0.0)]))"
PICTURES = "run.pil() gives PIL pictures, run.pil()[0].save('x.png') writes one, wb.plot.image_grid(run) draws all"
PIPELINE = "the pipeline itself is model.pipeline"
PLACE = "the pipeline is moved by diffusers' own call, model.pipeline.to('cuda'), or loaded there: wb.load(..., device='cuda')"

OF_MODELS = {
    "__call__": DRAW,
    "forward": DRAW,
    "sample": DRAW,
    "trace": f"model.nn is NNsight's own wrapper; without it, {VALUES}",
    **dict.fromkeys(("run_with_cache", "cache", "get_activations", "activations", "record_values"), VALUES),
    **dict.fromkeys(("run_with_hooks", "add_hook", "hooks", "hook_dict", "hook_points", "register_forward_hook"), CHANGE),
    **dict.fromkeys(("reset_hooks", "remove_hooks"), "no hook stays behind a run; model.undo() takes a commit back"),
    **dict.fromkeys(("pipe", "model", "diffusion_pipeline"), PIPELINE),
    **dict.fromkeys(("cfg", "config"), "print(model) shows it; each part has its own, such as model.pipeline.unet.config"),
    **dict.fromkeys(("to", "cuda", "cpu", "half", "device", "dtype"), PLACE),
    **dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler"), PIPELINE + ", with its parts"),
    **dict.fromkeys(("to_tokens", "to_str_tokens", "tokenize"), "workbench.text.tokens_of(model.pipeline, prompt) shows a prompt's tokens"),
    **dict.fromkeys(("layers", "modules", "named_modules", "hook_names"), "model.sites lists what can be read and changed"),
    **dict.fromkeys(("save", "push_to_hub"), "model.save_pretrained(folder) writes it"),
    **dict.fromkeys(("from_pretrained", "load"), "wb.load(folder, hub id or pipeline) makes a model"),
    **dict.fromkeys(("load_lora_weights", "set_adapters", "enable_model_cpu_offload", "set_progress_bar_config"), PIPELINE),
    **dict.fromkeys(("parameters", "state_dict", "eval", "train"), PIPELINE + ", with its parts, such as model.pipeline.unet"),
}  # fmt: skip
OF_RUNS = {
    **dict.fromkeys(("show", "save", "image", "pictures"), PICTURES),
    **dict.fromkeys(("cache", "cache_dict", "activations", "recorded"), "run.values holds what record= named"),
}


def named_elsewhere(value: Any, name: str) -> str:
    """What an attribute that a value lacks is called here, where anybody might look for it."""
    kind = type(value)
    own = f"{kind.__name__!r} object has no attribute {name!r}"
    if name.startswith("_") and name != "__call__":
        return own
    known = {"Model": OF_MODELS, "Run": OF_RUNS}.get(kind.__name__, {})
    if name == "__call__":
        own = f"{kind.__name__!r} object is not callable"
    if name in known:
        return f"{own}: {known[name]}"
    near = meant(name, [each for each in dir(kind) if not each.startswith("_")])
    return f"{own}{f'; did you mean .{near}?' if near else ''}"
