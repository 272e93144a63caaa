"""Train the menagerie's autoencoder: `python -m workbench.menagerie.train_vae --minutes 45`.

`AutoencoderKL`, 64 x 64 pixels to latents of 4 x 16 x 16. Loss: L1 + L2 + L1 of the picture's gradients (stripes and
windows are edges) + a small KL term.
"""

from dataclasses import dataclass

import torch
import tyro
from diffusers import AutoencoderKL

from workbench.menagerie.cards import write_training
from workbench.menagerie.training import Options, batch_rng, fit, pictures, to_model_range, training_scenes


@dataclass
class VAEOptions(Options):
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    scenes: int = 20_000
    seed: int = 1


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def main(options: VAEOptions):
    torch.manual_seed(options.seed)
    vae = build().to(memory_format=torch.channels_last)
    images = pictures(training_scenes(options.scenes, options.seed))

    def loss(step):
        index = batch_rng(options, step).integers(len(images), size=options.batch_size)
        x = to_model_range(images[index], options.device).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
        l1, l2 = (y - x).abs().mean(), (y - x).square().mean()
        gradient = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x)))
        return {"loss": l1 + l2 + 0.5 * gradient + 1e-6 * posterior.kl().mean(), "l1": l1}

    vae, record = fit("vae", vae, loss, options, autocast=True)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(to_model_range(batch, options.device)).latent_dist.mean for batch in images[:2000].split(100)]
        )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    folder = options.out / "menagerie-sd" / "vae"
    vae.save_pretrained(folder)
    write_training(folder, **record)


if __name__ == "__main__":
    main(tyro.cli(VAEOptions))
