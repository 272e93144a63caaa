"""Random tiny pipelines whose denoiser is a transformer, or whose text encoder is T5 alone, as `tiny` has them of UNets.

pipeline = TRANSFORMERS["sd35"]()
"""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from workbench.studies.tiny import text_encoder, tokenizer

WORDS = tuple(
    "a an photo painting picture image of zebra lion giraffe in the savanna on beach at night red car".split()
)
SENTENCE_PIECE = "▁"


def t5_tokenizer() -> T5TokenizerFast:
    """Some words, each one token, and letters for all others."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), (SENTENCE_PIECE, -3.0)]
    pieces += [(SENTENCE_PIECE + word, -2.0) for word in WORDS]
    pieces += [(letter, -5.0) for letter in string.ascii_lowercase + ",.'"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)


def t5(words: T5TokenizerFast, width: int, *, layers: int = 2) -> T5EncoderModel:
    """A T5 encoder of two heads, gated, as T5 1.1."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=width,
            d_kv=8,
            d_ff=24,
            num_layers=layers,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def vae(channels: int = 4, **more) -> AutoencoderKL:
    """Without quantization layers and with shifted latents, as those of newer models."""
    return AutoencoderKL(
        **dict(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=16,
            layers_per_block=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5,
            shift_factor=0.06,
        )
        | more
    )


def stable_diffusion_3(*, with_t5: bool, **transformer) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 of this transformer."""
    first, second = tokenizer(), tokenizer(pad_token="!")
    third = t5_tokenizer() if with_t5 else None
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            **dict(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=48,
                caption_projection_dim=16,
                pooled_projection_dim=40,
                pos_embed_max_size=16,
            )
            | transformer
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=text_encoder(first, 16, CLIPTextModelWithProjection),
        tokenizer=first,
        text_encoder_2=text_encoder(first, 24, CLIPTextModelWithProjection),
        tokenizer_2=second,
        text_encoder_3=t5(third, 48) if third is not None else None,
        tokenizer_3=third,
    )


def sd3() -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3, without T5: zeros stand in the place of its tokens."""
    return stable_diffusion_3(with_t5=False)


def sd35() -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3.5: T5, normed queries and keys, a second attention in some blocks."""
    return stable_diffusion_3(with_t5=True, qk_norm="rms_norm", dual_attention_layers=(0, 1))


def flux(**transformer) -> FluxPipeline:
    """As FLUX.1 dev: guidance is an input, blocks of two streams and of one."""
    first, second = tokenizer(), t5_tokenizer()
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            **dict(
                in_channels=16,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=48,
                pooled_projection_dim=16,
                axes_dims_rope=(2, 2, 4),
                guidance_embeds=True,
            )
            | transformer
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=text_encoder(first, 16),
        tokenizer=first,
        text_encoder_2=t5(second, 48),
        tokenizer_2=second,
    )
    pipeline.default_sample_size = 8  # diffusers has it fixed, at 128
    return pipeline


def deepfloyd(**unet) -> IFPipeline:
    """As DeepFloyd IF's stage I: pixels, T5, keys and values of the text added to self-attention's, learned variance."""
    words = t5_tokenizer()
    return IFPipeline(
        tokenizer=words,
        text_encoder=t5(words, 24),
        unet=UNet2DConditionModel(
            **dict(
                sample_size=16,
                in_channels=3,
                out_channels=6,
                layers_per_block=1,
                block_out_channels=(8, 16),
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                cross_attention_dim=32,
                encoder_hid_dim=24,
                encoder_hid_dim_type="text_proj",
                addition_embed_type="text",
                addition_embed_type_num_heads=2,
                attention_head_dim=8,
                cross_attention_norm="group_norm",
                resnet_time_scale_shift="scale_shift",
                time_embedding_act_fn="gelu",
                act_fn="gelu",
                norm_num_groups=4,
            )
            | unet
        ),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
            variance_type="learned_range",
            prediction_type="epsilon",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def pixart_parts(**transformer) -> dict:
    """T5, and blocks of self- and cross-attention that mask a prompt's padding."""
    words = t5_tokenizer()
    return dict(
        tokenizer=words,
        text_encoder=t5(words, 24),
        vae=vae(use_quant_conv=True, use_post_quant_conv=True, shift_factor=None),
        transformer=PixArtTransformer2DModel(
            **dict(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                cross_attention_dim=16,
                caption_channels=24,
                use_additional_conditions=False,
            )
            | transformer
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_alpha() -> PixArtAlphaPipeline:
    """As PixArt-alpha: a variance is predicted with the noise."""
    return PixArtAlphaPipeline(**pixart_parts())


def pixart_sigma() -> PixArtSigmaPipeline:
    """As PixArt-Sigma, of another shape and without a variance."""
    return PixArtSigmaPipeline(**pixart_parts(num_layers=3, out_channels=4))


TRANSFORMERS = {make.__name__: make for make in (sd3, sd35, flux)}


@torch.no_grad()
def sharpen(pipeline):
    """Let the text matter: random layers pass on so little of it that wrong and right pictures are hard to tell apart."""
    for name, module in pipeline.transformer.named_modules():
        if name.endswith(("context_embedder", "to_add_out", "add_v_proj", "to_out.0", "proj_out")):
            module.weight *= 3
        if name.endswith(("text_embedder.linear_1", "text_embedder.linear_2")):
            module.weight *= 3
    return pipeline
