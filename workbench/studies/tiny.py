"""Random tiny pipelines of every family, and schedulers: what engines are tried on, since nobody needs to download them.

    pipeline = PIPELINES["sdxl"]()
    pipeline.scheduler = scheduler("heun")
    add_lora(pipeline), add_word(pipeline)

Their pictures mean nothing, but every part of a real pipeline is there. `sharpen` makes their pictures depend on the text.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from workbench.models import MENAGERIE

SCHEDULE: dict[str, Any] = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD1: dict[str, Any] = dict(set_alpha_to_one=False, steps_offset=1)  # as its checkpoints are configured

# Schedulers by name, and how they are configured.
SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, SD1 | dict(clip_sample=False)),
    "ddim v zero snr": (
        DDIMScheduler,
        dict(
            clip_sample=False,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        ),
    ),
    "ddpm": (DDPMScheduler, dict(clip_sample=False)),
    "deis": (DEISMultistepScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "dpm++ sde": (DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)),
    "dpm++ singlestep": (DPMSolverSinglestepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "kdpm2": (KDPM2DiscreteScheduler, {}),
    "kdpm2 ancestral": (KDPM2AncestralDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, SD1 | dict(skip_prk_steps=True)),  # as Stable Diffusion 1.5 ships it
    "pndm prk": (PNDMScheduler, SD1 | dict(skip_prk_steps=False)),
    "tcd": (TCDScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def scheduler(name: str):
    """A scheduler of the table, new."""
    kind, config = SCHEDULERS[name]
    return kind(**SCHEDULE | config)


def steps_for(name: str) -> int:
    """The fewest steps that show everything a scheduler does: its first, a middle and its last."""
    return 4 if name == "pndm prk" else 3


def text_encoder(tokenizer, width: int, kind=CLIPTextModel, *, layers: int = 3):
    """A CLIP text encoder of two heads."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=width,
        )
    )


def tokenizer(**more) -> CLIPTokenizer:
    """The embedded model's."""
    return CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer", **more)


def parts(unet: dict, vae: dict) -> dict:
    """What all families have."""
    made = AutoencoderKL(
        **dict(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            layers_per_block=1,
        )
        | vae
    )
    unet = UNet2DConditionModel(**dict(sample_size=8, layers_per_block=2, norm_num_groups=4) | unet)
    return dict(tokenizer=tokenizer(), vae=made, unet=unet, scheduler=scheduler("ddim"))


SD_UNET = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
SDXL_UNET = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=40,
    attention_head_dim=(1, 2),
    use_linear_projection=True,
    transformer_layers_per_block=(1, 2),
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 24,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)


def sd(unet: dict, **vae) -> StableDiffusionPipeline:
    """A Stable Diffusion with this UNet."""
    made = parts(unet, vae)
    made |= dict(text_encoder=text_encoder(made["tokenizer"], 16), safety_checker=None, feature_extractor=None)
    return StableDiffusionPipeline(**made, requires_safety_checker=False)


def sd1() -> StableDiffusionPipeline:
    """As Stable Diffusion 1."""
    return sd(SD_UNET)


def sd2() -> StableDiffusionPipeline:
    """As Stable Diffusion 2: linear projections, heads by block."""
    return sd(SD_UNET | dict(attention_head_dim=(1, 4), use_linear_projection=True))


def lcm() -> StableDiffusionPipeline:
    """As a latent consistency model: guidance is an input of the UNet, whose batch is never doubled."""
    return sd(SD_UNET | dict(time_cond_proj_dim=8))


def no_mid() -> StableDiffusionPipeline:
    """As BK-SDM: no middle block."""
    return sd(SD_UNET | dict(mid_block_type=None))


def bare_vae() -> StableDiffusionPipeline:
    """With a VAE that has no quantization layers, as newer ones."""
    return sd(SD_UNET, use_quant_conv=False, use_post_quant_conv=False)


def sdxl(unet: dict = SDXL_UNET) -> StableDiffusionXLPipeline:
    """As Stable Diffusion XL: two encoders with tokenizers that pad differently, several transformers a layer, a pooled vector."""
    made = parts(unet, {})
    made |= dict(text_encoder=text_encoder(made["tokenizer"], 16), tokenizer_2=tokenizer(pad_token="!"))
    return StableDiffusionXLPipeline(
        **made, text_encoder_2=text_encoder(made["tokenizer"], 24, CLIPTextModelWithProjection)
    )


PIPELINES = {make.__name__: make for make in (sd1, sd2, sdxl, lcm, no_mid, bare_vae)}


@torch.no_grad()
def sharpen(pipeline):
    """Let the text matter: random layers pass on so little of it that wrong and right pictures are hard to tell apart."""
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn2"):
            module.to_v.weight *= 3
            module.to_out[0].weight *= 3
        if name.endswith("add_embedding"):
            module.linear_1.weight *= 3
            module.linear_2.weight *= 3
    return pipeline


def encoders_of(pipeline) -> dict[str, str]:
    """Names of its text encoders, and of the tokenizer of each."""
    names = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    return {encoder: reads for encoder, reads in names.items() if hasattr(pipeline, encoder)}


def lora(pipeline, *, rank: int = 2, seed: int = 0, size: float = 0.5) -> dict[str, torch.Tensor]:
    """A LoRA as diffusers loads it: random changes of cross-attention's q and v, and of the text encoders' fc1 and attention outputs.

    size: of a change, as a share of the weight that it changes (Frobenius norms).
    """
    wanted = {"unet": ("attn2.to_q", "attn2.to_v")} | {
        name: ("mlp.fc1", "self_attn.out_proj") for name in encoders_of(pipeline)
    }
    generator, state = torch.Generator().manual_seed(seed), {}
    for component, ends in wanted.items():
        for name, module in getattr(pipeline, component).named_modules():
            if not name.endswith(ends):
                continue
            rows, columns = module.weight.shape
            b = torch.randn(rows, rank, generator=generator)
            a = torch.randn(rank, columns, generator=generator)
            b *= size * module.weight.detach().float().norm().cpu() / (b @ a).norm()
            nested = component != "unet" and not name.startswith("text_model.")  # as files name them, in every version
            path = f"{component}.{'text_model.' if nested else ''}{name}"
            state |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    return state


WORD = "<gnu>"


def add_word(pipeline, *, vectors: int = 3, seed: int = 0):
    """Load a textual inversion of several vectors: WORD is then one word, and several tokens, of every prompt."""
    generator = torch.Generator().manual_seed(seed)
    for component, reads in encoders_of(pipeline).items():
        encoder = getattr(pipeline, component)
        table = encoder.get_input_embeddings().weight
        values = torch.randn(vectors, table.shape[1], generator=generator) * table.detach().float().std().cpu()
        pipeline.load_textual_inversion(values, token=WORD, text_encoder=encoder, tokenizer=getattr(pipeline, reads))
