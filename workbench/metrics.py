"""What is measured on images: CLIP similarity and zero-shot classes by any open_clip model, and distances between images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from einops import reduce
from PIL import Image
from skimage.metrics import structural_similarity

from workbench.models import GRADER, MANIFEST, fingerprint, verify_files
from workbench.prompts import Prompt

METRICS = ("probability", "similarity", "pixel_distance", "ssim")


class Scorer:
    """An open_clip model that scores images.

    model: an open_clip name ("ViT-B-32", "hf-hub:...", "local-dir:folder"); the embedded grader when not given.
    pretrained: the weights' tag or file, for names that have several. `record` says which model, weights and
    preprocessing scored, for results to carry.

    Raises ValueError for a model without weights: random ones would score too.
    """

    def __init__(self, model: str | None = None, *, pretrained: str | None = None, device: str | torch.device = "cpu"):
        if model is None:
            if (GRADER / MANIFEST).exists():
                verify_files(GRADER)
            model, name = f"local-dir:{GRADER}", "the menagerie's grader"
        else:
            name = model
            if model in open_clip.list_models() and pretrained is None:
                tags = open_clip.list_pretrained_tags_by_model(model)
                raise ValueError(f"Scorer({model!r}) names no weights; pass pretrained=, a file or one of {tags}")
            folder = Path(model.removeprefix("local-dir:"))
            if model.startswith("local-dir:") and not any(
                list(folder.glob(f"*{kind}")) for kind in (".safetensors", ".bin", ".pt", ".pth")
            ):
                raise ValueError(
                    f"Scorer({model!r}) found no weights in {folder}; put open_clip_model.safetensors there"
                )
        self.device = device
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, device=device
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(model)
        self.record = {
            "model": name,
            "pretrained": pretrained,
            "weights": fingerprint(self.model),
            "preprocessing": str(self.preprocess),
        }
        self._texts: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.no_grad()
    def image_embeddings(self, images: Sequence[Image.Image] | torch.Tensor) -> torch.Tensor:
        """Normalised embeddings: (image, channel). Every measure takes these in place of images, to embed only once."""
        if isinstance(images, torch.Tensor):
            return images
        batches = [
            torch.stack([self.preprocess(image) for image in images[at : at + 64]]) for at in range(0, len(images), 64)
        ]
        return torch.cat(
            [F.normalize(self.model.encode_image(batch.to(self.device)), dim=-1).cpu() for batch in batches]
        )

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Normalised embeddings: (text, channel)."""
        texts = tuple(texts)
        if texts not in self._texts:
            self._texts[texts] = F.normalize(
                self.model.encode_text(self.tokenizer(list(texts)).to(self.device)), dim=-1
            ).cpu()
        return self._texts[texts]

    def similarity(self, images: Sequence[Image.Image] | torch.Tensor, texts: str | Sequence[str]) -> torch.Tensor:
        """Raw cosine in [-1, 1] of each image and its text, or of all images and one text: (image,)."""
        return (self.image_embeddings(images) * self.text_embeddings([texts] if isinstance(texts, str) else texts)).sum(
            -1
        )

    def class_probabilities(
        self, images: Sequence[Image.Image] | torch.Tensor, prompts: Mapping[object, Sequence[str]]
    ) -> torch.Tensor:
        """Zero-shot probabilities: (image, label).

        With one prompt a class, CLIP's own (Radford et al. 2021, section 3.1). With several, the softmax over all prompts
        summed within each class: the prompts of a class are alternatives, and an image need fit only one of them.
        """
        sizes = [len(texts) for texts in prompts.values()]
        if len(set(sizes)) != 1:
            raise ValueError(
                f"class_probabilities: prompts per label {dict(zip(prompts, sizes))}; give every label equally many"
            )
        texts = self.text_embeddings([text for texts in prompts.values() for text in texts])
        all_prompts = (self.model.logit_scale.exp().item() * self.image_embeddings(images) @ texts.T).softmax(-1)
        return reduce(all_prompts, "image (label prompt) -> image label", "sum", prompt=sizes[0])


def as_pil(images) -> list[Image.Image]:
    """Images of an array (..., y, x, colour) in [0, 1], the leading axes in order."""
    array = np.asarray(images)
    return [Image.fromarray(image) for image in (array.reshape(-1, *array.shape[-3:]) * 255).round().astype(np.uint8)]


def measured(
    scorer: Scorer, images, reference, prompt: Prompt, labels: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The metrics of images (image, y, x, colour) of a prompt, each (image,).

    `probability` of the prompt's value among the labels and `similarity` to the prompt; the same of its target, where it has
    one, as `target_probability` and `target_similarity`; `pixel_distance` and `ssim` to the reference images.
    """
    pictures, names = scorer.image_embeddings(as_pil(images)), list(labels)
    probabilities = scorer.class_probabilities(pictures, labels).numpy()
    found = {
        "probability": probabilities[:, names.index(prompt.value)],
        "similarity": scorer.similarity(pictures, prompt.prompt).numpy(),
    }
    if prompt.target:
        found["target_probability"] = probabilities[:, names.index(prompt.target_value)]
        found["target_similarity"] = scorer.similarity(pictures, prompt.target).numpy()
    return found | {"pixel_distance": pixel_distance(images, reference), "ssim": ssim(images, reference)}


def pixel_distance(a, b) -> np.ndarray:
    """Mean absolute difference of images (..., y, x, colour) in [0, 1]: 0 for equal ones, at most 1."""
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean((-3, -2, -1))


def ssim(a, b) -> np.ndarray:
    """Structural similarity of images (..., y, x, colour) in [0, 1]: 1 for equal ones (Wang et al. 2004; scikit-image)."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    pairs = zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
    return np.array([structural_similarity(x, y, channel_axis=-1, data_range=1.0) for x, y in pairs]).reshape(
        a.shape[:-3]
    )
