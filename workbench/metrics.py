"""What is measured on images: CLIP similarity and zero-shot classes, by any open_clip model."""

from collections.abc import Mapping, Sequence

import open_clip
import torch
import torch.nn.functional as F
from einops import reduce
from PIL import Image

from workbench.models import GRADER, MANIFEST, verify_files


class Scorer:
    """An open_clip model that scores images.

    model: an open_clip name ("ViT-B-32", "hf-hub:...", "local-dir:folder"); the embedded grader when not given.
    pretrained: the weights' tag or file, for names that have several.
    """

    def __init__(self, model: str | None = None, *, pretrained: str | None = None, device: str | torch.device = "cpu"):
        if model is None:
            if (GRADER / MANIFEST).exists():
                verify_files(GRADER)
            model = f"local-dir:{GRADER}"
        self.device = device
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, pretrained=pretrained, device=device)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(model)

    @torch.no_grad()
    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Normalised embeddings: (image, channel)."""
        batches = [torch.stack([self.preprocess(image) for image in images[at : at + 64]]) for at in range(0, len(images), 64)]
        return torch.cat([F.normalize(self.model.encode_image(batch.to(self.device)), dim=-1).cpu() for batch in batches])

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Normalised embeddings: (text, channel)."""
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)), dim=-1).cpu()

    def similarity(self, images: Sequence[Image.Image], texts: str | Sequence[str]) -> torch.Tensor:
        """Raw cosine in [-1, 1] of each image and its text, or of all images and one text: (image,)."""
        return (self.image_embeddings(images) * self.text_embeddings([texts] if isinstance(texts, str) else texts)).sum(-1)

    def class_probabilities(self, images: Sequence[Image.Image], prompts: Mapping[object, Sequence[str]]) -> torch.Tensor:
        """Zero-shot probabilities: (image, label).

        With one prompt a class, CLIP's own (Radford et al. 2021, section 3.1). With several, the softmax over all prompts
        summed within each class: the prompts of a class are alternatives, and an image need fit only one of them.
        """
        sizes = [len(texts) for texts in prompts.values()]
        if len(set(sizes)) != 1:
            raise ValueError(f"class_probabilities: prompts per label {dict(zip(prompts, sizes))}; give every label equally many")
        texts = self.text_embeddings([text for texts in prompts.values() for text in texts])
        all_prompts = (self.model.logit_scale.exp().item() * self.image_embeddings(images) @ texts.T).softmax(-1)
        return reduce(all_prompts, "image (label prompt) -> image label", "sum", prompt=sizes[0])
