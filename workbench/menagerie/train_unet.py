"""Train the menagerie's denoiser: `python -m workbench.menagerie.train_unet --minutes 150`.

`UNet2DConditionModel` with Stable Diffusion 1.x block types (16 cross-attention layers), on latents and text states that
are computed once. Epsilon prediction, scaled-linear betas, captions dropped to the empty prompt for classifier-free
guidance (Ho & Salimans 2022), min-SNR-5 weights (Hang et al. 2023, eq. 7).
"""

from dataclasses import dataclass

import torch
import tyro
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from workbench.menagerie.denoisers import DenoiserOptions, batches, epsilon_loss, finish, latents, scheduler, texts
from workbench.menagerie.train_clip import tokenize
from workbench.menagerie.training import fit


@dataclass
class UNetOptions(DenoiserOptions):
    seed: int = 4
    snr_cap: float = 5.0


def build(width: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=2,
        cross_attention_dim=width,
        attention_head_dim=4,  # the number of heads, as in SD 1.x
        norm_num_groups=8,
    )
    return start_at_zero(unet)


def start_at_zero(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Set to zero what adds to the residual stream, as Stable Diffusion starts; diffusers leaves it to the trainer."""
    residual = {UNet2DConditionModel: "conv_out", ResnetBlock2D: "conv2", Transformer2DModel: "proj_out"}
    for module in unet.modules():
        if type(module) in residual:
            for parameter in getattr(module, residual[type(module)]).parameters():
                torch.nn.init.zeros_(parameter)
    return unet


def main(options: UNetOptions):
    torch.manual_seed(options.seed)
    folder = options.out / "menagerie-sd"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").to(options.device)
    encode = lambda captions: {"states": text_encoder(tokenize(tokenizer, captions, options.device)).last_hidden_state}
    draw = batches(options, latents(options), texts(options, "texts", encode, [folder / "text_encoder"]))
    unet = (
        UNet2DConditionModel.from_pretrained(folder / "unet")
        if options.continued
        else build(text_encoder.config.hidden_size)
    )
    unet, noising = unet.to(memory_format=torch.channels_last), scheduler()

    def predict(noisy, t, text):
        return unet(noisy, t, text["states"]).sample

    unet, record = fit("unet", unet, lambda step: epsilon_loss(predict, draw(step), noising, options.snr_cap), options)
    finish(unet, folder / "unet", record, options, UNet2DConditionModel.save_pretrained)


if __name__ == "__main__":
    main(tyro.cli(UNetOptions))
