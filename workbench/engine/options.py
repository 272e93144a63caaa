"""Keywords of diffusers' call that the engine does not take: refused by name, each with what to do instead."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
Self = TypeVar("Self")

_EMBEDS = (
    "what the text encoders make of a prompt is what interventions speak of: give a text, and change what the denoiser is given in a "
    "world, wb.World(name, prompt, [wb.set_to('unet.*.cross.context', values)])"
)
_IMAGE_PROMPT = "IP-Adapters have no sites here; leave it out"
_CALLBACK = "every step can be read and changed in a run: record=, wb.Fold, wb.apply('latents', function)"
_SECOND = "every text encoder is given the one prompt; leave it out"
_SIZES = "SDXL's size conditions follow height= and width=; leave it out"
_SCHEDULE = "steps are counted from the scheduler's own timesteps; set them there, pipeline.scheduler, and give num_inference_steps="

REFUSED = {
    "prompt_embeds": _EMBEDS,
    "negative_prompt_embeds": _EMBEDS,
    "pooled_prompt_embeds": _EMBEDS,
    "negative_pooled_prompt_embeds": _EMBEDS,
    "clip_skip": (
        "the denoiser would read another layer than the sites say; load a text encoder without its last layers instead, "
        "CLIPTextModel.from_pretrained(folder, num_hidden_layers=...), as pipeline.text_encoder"
    ),
    "eta": (
        "noise within the steps is the scheduler's matter; for eta 1 set pipeline.scheduler = "
        "DDPMScheduler.from_config(pipeline.scheduler.config), whose noise is each seed's own"
    ),
    "ip_adapter_image": _IMAGE_PROMPT,
    "ip_adapter_image_embeds": _IMAGE_PROMPT,
    "cross_attention_kwargs": "for the strength of a LoRA call pipeline.set_adapters(name, strength)",
    "generator": "noise is drawn from seeds=, each the same picture as with torch.Generator().manual_seed(seed)",
    "seed": "it is called seeds=, one or several",
    "num_images_per_prompt": "give as many seeds, such as seeds=range(4)",
    "output_type": "run(...) returns images as arrays, .pil() and .latents of it pictures and latents; generate(...) returns pictures",
    "return_dict": "run(...) returns a Run, generate(...) a list of pictures",
    "timesteps": _SCHEDULE,
    "sigmas": _SCHEDULE,
    "denoising_end": "a run ends with its last step; leave it out",
    "callback": _CALLBACK,
    "callback_steps": _CALLBACK,
    "callback_on_step_end": _CALLBACK,
    "callback_on_step_end_tensor_inputs": _CALLBACK,
    **dict.fromkeys(("prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3"), _SECOND),
    "max_sequence_length": "it is the model's own, which its sites follow: wb.load(..., max_sequence_length=256)",
    "joint_attention_kwargs": "for the strength of a LoRA call pipeline.set_adapters(name, strength)",
    **dict.fromkeys(
        ("skip_guidance_layers", "skip_layer_guidance_scale", "skip_layer_guidance_stop", "skip_layer_guidance_start"),
        "the denoiser would be called a third time in some steps, which no site would show; leave it out",
    ),
    "mu": _SCHEDULE,
    "true_cfg_scale": "the denoiser would be called twice in turn, which no site would show; guidance_scale is the model's own",
    **dict.fromkeys(
        (
            "original_size",
            "target_size",
            "crops_coords_top_left",
            "negative_original_size",
            "negative_target_size",
            "negative_crops_coords_top_left",
        ),
        _SIZES,
    ),
}
OF_WORLDS = {  # keywords of one picture that a run has for each of its worlds
    "prompt": "give it first, run('a zebra'), or a wb.World for each of several",
    "negative_prompt": "it is a world's own: wb.World(name, prompt, negative_prompt=...)",
    "subject": "it is a world's own: wb.World(name, prompt, subject=...)",
    "interventions": "they are a world's own: wb.World(name, prompt, interventions)",
}
OF_RUNS = {  # what needs worlds
    "latents": "run(..., latents=) begins from latents of your own",
    "record": "run(..., record=) keeps values",
}


def named_options(
    method: Callable[Concatenate[Self, Given], Returned],
) -> Callable[Concatenate[Self, Given], Returned]:
    """A method that tells keywords of diffusers' call which it does not take from mere mistakes, and says what to do instead.

    Raises TypeError, as Python does for a keyword that is not known, in a sentence.
    """
    own = OF_WORLDS if method.__name__ == "run" else OF_RUNS
    advice = REFUSED | own

    @wraps(method)
    def checked(self: Self, *args: Given.args, **keywords: Given.kwargs) -> Returned:
        for name in keywords:
            if name in advice:
                raise TypeError(f"{method.__name__}({name}=...): {advice[name]}")
        return method(self, *args, **keywords)

    return checked
