"""Train the small multimodal transformer: `python -m workbench.menagerie.train_dit --minutes 180`.

`SD3Transformer2DModel` of Stable Diffusion 3's topology, without T5: six joint blocks over picture and text, the
penultimate states of two text encoders joined, both pooled vectors added to the time embedding. Flow matching: x_s =
(1 - s) x + s e, the model predicts e - x, s is logit-normal (Esser et al. 2024). In T5's place diffusers appends
`max_sequence_length` tokens of zeros to the text; this model is trained with ZERO_TOKENS of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from workbench.menagerie.denoisers import DenoiserOptions, TwoEncoders, batches, finish, latents, texts
from workbench.menagerie.training import Replayed, fit, save_half

ZERO_TOKENS = 4


@dataclass
class DiTOptions(DenoiserOptions):
    seed: int = 8


class Conditioned(torch.nn.Module):
    """The transformer as a function of tensors alone."""

    def __init__(self, transformer: SD3Transformer2DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return self.transformer(
            noisy, encoder_hidden_states=states, pooled_projections=pooled, timestep=t, return_dict=False
        )[0]


def build(width: int, pooled: int) -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=32,
        joint_attention_dim=width,
        caption_projection_dim=192,
        pooled_projection_dim=pooled,
        pos_embed_max_size=16,
    )
    norms = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for linear in [norm.linear for norm in (*norms, transformer.norm_out)] + [transformer.proj_out]:
        for parameter in linear.parameters():  # every block starts as the identity
            torch.nn.init.zeros_(parameter)
    return transformer


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps, evenly spread over s: 64 picture tokens need no shift towards noise."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def main(options: DiTOptions):
    torch.manual_seed(options.seed)
    folder = options.out / "menagerie-dit" / "transformer"
    encode = TwoEncoders(options.out, options.device)
    text = texts(options, "texts_two", encode, encode.folders)
    text = {"states": text["states"], "pooled": torch.cat([text["pooled_1"], text["pooled_2"]], dim=-1)}
    draw = batches(options, latents(options), text)
    size = text["states"].shape[-1], text["pooled"].shape[-1]
    transformer = SD3Transformer2DModel.from_pretrained(folder) if options.continued else build(*size)
    levels = scheduler().config.num_train_timesteps
    conditioned = Replayed(Conditioned(transformer).to(options.device), options.device)

    def loss(step):
        batch = draw(step)
        s = torch.special.ndtri(batch.level.double().clamp(1e-5, 1 - 1e-5)).sigmoid().float()
        mix = s[:, None, None, None]
        noisy = (1 - mix) * batch.clean + mix * batch.noise
        states = F.pad(batch.text["states"], (0, 0, 0, ZERO_TOKENS))
        velocity = conditioned(noisy, s * levels, states, batch.text["pooled"]).float()
        return {"loss": (velocity - (batch.noise - batch.clean)).square().mean()}

    transformer, record = fit("dit", transformer, loss, options, autocast=options.device.startswith("cuda"))
    finish(transformer, folder, record, options, save_half)


if __name__ == "__main__":
    main(tyro.cli(DiTOptions))
