"""Pipelines on which the laws must hold: random tiny ones of every family, built from configs, and the menagerie."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import workbench as wb
from workbench.models import MENAGERIE

SCHEDULE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def text_encoder(tokenizer, width: int, kind=CLIPTextModel):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=width,
        )
    )


def parts(unet: dict) -> dict:
    tokenizer = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        layers_per_block=1,
    )
    unet = UNet2DConditionModel(**dict(sample_size=8, layers_per_block=2, norm_num_groups=4) | unet)
    return dict(tokenizer=tokenizer, vae=vae, unet=unet, scheduler=DDIMScheduler(**SCHEDULE))


def sd(unet: dict) -> StableDiffusionPipeline:
    made = parts(unet)
    made |= dict(text_encoder=text_encoder(made["tokenizer"], 16), safety_checker=None, feature_extractor=None)
    return StableDiffusionPipeline(**made, requires_safety_checker=False)


def sd1() -> StableDiffusionPipeline:
    return sd(
        dict(
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )


def sd2() -> StableDiffusionPipeline:
    """As Stable Diffusion 2: linear projections, heads by block."""
    return sd(
        dict(
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=(1, 2, 2, 4),
            use_linear_projection=True,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )


def sdxl() -> StableDiffusionXLPipeline:
    made = parts(
        dict(
            block_out_channels=(8, 16, 16),
            cross_attention_dim=40,
            attention_head_dim=(1, 2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 3),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        )
    )
    made |= dict(text_encoder=text_encoder(made["tokenizer"], 16), tokenizer_2=made["tokenizer"])
    return StableDiffusionXLPipeline(
        **made, text_encoder_2=text_encoder(made["tokenizer"], 24, CLIPTextModelWithProjection)
    )


def menagerie() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MENAGERIE)


@pytest.fixture(scope="session", params=[sd1, sd2, sdxl, menagerie], ids=lambda make: make.__name__)
def tiny(request):
    """A random tiny pipeline of each family in turn, and the trained one: laws hold on all."""
    torch.manual_seed(0)
    pipeline = request.param()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def model(tiny):
    """Each of these pipelines, loaded."""
    return wb.load(tiny)


@pytest.fixture(name="menagerie", scope="module")
def the_menagerie():
    """The embedded model, where its answers matter."""
    return wb.load()


@pytest.fixture(scope="session")
def scorer():
    """The embedded grader."""
    return wb.Scorer()
