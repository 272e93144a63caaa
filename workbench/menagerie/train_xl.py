"""Train the small SDXL's denoiser: `python -m workbench.menagerie.train_xl --minutes 150`.

`UNet2DConditionModel` of Stable Diffusion XL's topology: no attention at the highest resolution, one to three transformer
blocks in an attention, the penultimate states of two text encoders joined, encoder 2's pooled vector and the picture's
size added to the time embedding. Noise and loss as in `train_unet`. Half of the dropped captions become zeros, which the
pipeline gives where no negative prompt is said, the other half the empty prompt.
"""

from dataclasses import dataclass

import torch
import tyro
from diffusers import UNet2DConditionModel

from workbench.menagerie.denoisers import (
    DenoiserOptions,
    TwoEncoders,
    batches,
    epsilon_loss,
    finish,
    latents,
    scheduler,
    texts,
)
from workbench.menagerie.train_unet import start_at_zero
from workbench.menagerie.training import Replayed, fit, save_half

SIZES = (64, 64, 0, 0, 64, 64)  # original size, crop, target size: what the pipeline says of every picture
SIZE_WIDTH = 32


@dataclass
class XLOptions(DenoiserOptions):
    seed: int = 7
    snr_cap: float = 5.0


class Conditioned(torch.nn.Module):
    """The UNet as a function of tensors alone."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet
        self.register_buffer("sizes", torch.tensor([SIZES], dtype=torch.float32), persistent=False)

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        added = {"text_embeds": pooled, "time_ids": self.sizes.expand(len(noisy), -1)}
        return self.unet(noisy, t, states, added_cond_kwargs=added).sample


def build(width: int, pooled: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(3, 4, 6),  # the numbers of heads, as in SDXL
        cross_attention_dim=width,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=len(SIZES) * SIZE_WIDTH + pooled,
    )
    return start_at_zero(unet)


def main(options: XLOptions):
    torch.manual_seed(options.seed)
    folder = options.out / "menagerie-xl" / "unet"
    encode = TwoEncoders(options.out, options.device)
    text = texts(options, "texts_two", encode, encode.folders)
    zeros_first = lambda x: torch.cat([torch.zeros_like(x[:1]), x])
    text = {key: zeros_first(text[key]) for key in ("states", "pooled_2")}
    draw = batches(options, latents(options), text)
    width, pooled = text["states"].shape[-1], text["pooled_2"].shape[-1]
    unet = UNet2DConditionModel.from_pretrained(folder) if options.continued else build(width, pooled)
    unet, noising = unet.to(memory_format=torch.channels_last), scheduler()
    conditioned = Replayed(Conditioned(unet).to(options.device), options.device)

    def predict(noisy, t, text):
        return conditioned(noisy, t, text["states"], text["pooled_2"])

    def loss(step):
        return epsilon_loss(predict, draw(step), noising, options.snr_cap)

    unet, record = fit("xl", unet, loss, options, autocast=options.device.startswith("cuda"))
    finish(unet, folder, record, options, save_half)


if __name__ == "__main__":
    main(tyro.cli(XLOptions))
