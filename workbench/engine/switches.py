"""What can be switched on in a pipeline, out of sight of interventions: refused by name before anything is computed.

What diffusers and others change without changing results of modules (FreeU, sliced attention, tiled decoding) is followed.
"""

import torch

from workbench.families import Family, check_pipeline

COMPILED = ("_compiled_call_impl", "forward", "encode", "decode")  # where torch.compile's result is put


def check_switches(pipeline) -> Family:
    """The family of a pipeline; ValueError for one that no family handles, or that has something on which no intervention would see.

    Each error says how to switch it off.
    """
    family = check_pipeline(pipeline)
    denoiser = family.model(pipeline)
    kind = getattr(denoiser.config, "encoder_hid_dim_type", None)
    projected = getattr(denoiser, "encoder_hid_proj", None) is not None or kind is not None
    if projected and kind != family.projection:
        raise ValueError(
            "the UNet has an IP-Adapter, whose image attention has no site; call pipeline.unload_ip_adapter()"
        )
    if getattr(pipeline, "hf_device_map", None):
        raise ValueError(
            "the pipeline is spread over devices by accelerate, which moves modules under a running trace; call "
            "pipeline.reset_device_map(), then pipeline.to(device)"
        )
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            for path, module in component.named_modules():
                _check_module(".".join(filter(None, (f"pipeline.{name}", path))), module)
    return family


def _check_module(place: str, module: torch.nn.Module):
    own = vars(module)
    if compiled := [f"{place}.{name}" for name in COMPILED if hasattr(own.get(name), "_torchdynamo_orig_callable")]:
        raise ValueError(
            f"{compiled[0]} went through torch.compile, whose graph no intervention reaches; take it away: del {compiled[0]} (and load the "
            "pipeline anew, if its model ran here before)"
        )
    if "_hf_hook" in own:
        raise ValueError(
            f"{place} is offloaded by accelerate, which moves modules under a running trace; call pipeline.remove_all_hooks() (of a "
            "module by itself: accelerate.hooks.remove_hook_from_module(module, recurse=True)), then pipeline.to(device)"
        )
    if "_diffusers_hook" in own and own["_diffusers_hook"].hooks:
        hooks = ", ".join(own["_diffusers_hook"].hooks)
        raise ValueError(
            f"{place} has hooks of diffusers ({hooks}), which change what its modules are given; load the model without them (group "
            "offload, layerwise casting, caches)"
        )
    if "forward" in own and not type(own["forward"]).__module__.startswith("nnsight"):
        raise ValueError(
            f"{place} had its forward replaced, so that its modules may run at other times than sites say; undo that (of DeepCache: "
            "helper.disable())"
        )
    if module.training and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
        raise ValueError(
            f"{place} drops values at random, since it is in training mode: worlds of one seed would differ; call .eval() on the "
            "component"
        )
