"""The judge of images: an open_clip model, for any that it knows; the embedded grader for the embedded model."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from einops import reduce
from safetensors.torch import load_file

from workbench.arguments import checked
from workbench.inputs import shown, strings, text, user_path
from workbench.loading import as_device
from workbench.models import GRADER, MANIFEST, MENAGERIE, Model, fingerprint, some_pictures, verify_files
from workbench.prompts import label_texts

CONFIG = "open_clip_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth")  # what open_clip loads from a folder
# steps of open_clip's preprocessing, in its versions, that make a tensor of a PIL picture
CONVERSIONS = ("_convert_to_rgb", "ToTensor", "MaybeConvertMode", "MaybeToTensor")


def pixels(value: Any, argument: str) -> torch.Tensor:
    """Pictures that may lie in autograd's graph."""
    shaped = isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[1] == 3 and value.is_floating_point()
    if not shaped or not value.numel() or not -1e-3 <= value.min() <= value.max() <= 1 + 1e-3:
        raise ValueError(f"{argument}={shown(value)}: give a tensor (image, 3 colours, y, x) of numbers in [0, 1]")
    return value


class Scorer:
    """An open_clip model that scores images.

    model: an open_clip name ("ViT-B-32", "hf-hub:..."), or a folder with open_clip's config and weights; the embedded grader when
    not given, which knows the embedded model's world alone. pretrained: the weights' tag or file, for names that have several.
    `record` says which model, weights and preprocessing scored, for results to carry.

    Raises ValueError for an unknown model, a folder that lacks a file, and a model without weights: random ones would score too.

    >>> scorer = wb.Scorer()
    >>> labels = {"zebra": "a photo of a zebra", "lion": "a photo of a lion"}
    >>> scorer.class_probabilities(run.pil(), labels).argmax(-1).tolist()
    [0, 0, 1, 1]
    """

    def __init__(
        self, model: str | Path | None = None, *, pretrained: str | None = None, device: str | torch.device = "cpu"
    ):
        for argument, value in (("model", model), ("pretrained", pretrained)):
            if value is not None:
                user_path(value, f"Scorer({argument}=)")
        device = as_device(device)
        if model is None and pretrained is not None:
            raise ValueError(
                f"Scorer(pretrained={pretrained!r}): weights of which model? Name it too, as Scorer('ViT-B-32', ...)"
            )
        if model is None:
            if (GRADER / MANIFEST).exists():
                verify_files(GRADER)
            source, name = f"local-dir:{GRADER}", "the menagerie's grader"
        else:
            source = name = _source(str(model), pretrained)
        pretrained = None if pretrained is None else str(Path(pretrained).expanduser())
        self.device = device
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            source, pretrained=pretrained, device=device, require_pretrained=True
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(source)
        self.record = {
            "model": name,
            "pretrained": pretrained,
            "weights": fingerprint(self.model),
            "preprocessing": str(self.preprocess),
        }
        self._texts: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.no_grad()
    def image_embeddings(self, images) -> torch.Tensor:
        """Normalised embeddings: (image, channel).

        images: PIL pictures, an array, a tensor or a run's images; see `as_pil`. Raises ValueError for no images, and for black
        ones: a safety checker's, which must not be scored.

        >>> wb.Scorer().image_embeddings(run.images).shape
        torch.Size([4, 64])
        """
        pictures = some_pictures(images)
        if dark := [i for i, picture in enumerate(pictures) if picture.getbbox() is None]:
            raise ValueError(
                f"images {dark[:5]} of {len(pictures)} are black through and through, as a safety checker's are; leave them out, or "
                "load the model with safety_checker=False"
            )
        batches = [
            torch.stack([self.preprocess(picture) for picture in pictures[at : at + 64]])
            for at in range(0, len(pictures), 64)
        ]
        return torch.cat(
            [F.normalize(self.model.encode_image(batch.to(self.device)), dim=-1).cpu() for batch in batches]
        )

    @torch.no_grad()
    def text_embeddings(self, texts: str | Iterable[str]) -> torch.Tensor:
        """Normalised embeddings: (text, channel).

        >>> wb.Scorer().text_embeddings(["a zebra", "a lion"]).norm(dim=-1).round(decimals=4)
        tensor([1., 1.])
        """
        texts = strings(texts, "texts")
        if texts not in self._texts:
            self._texts[texts] = F.normalize(
                self.model.encode_text(self.tokenizer(list(texts)).to(self.device)), dim=-1
            ).cpu()
        return self._texts[texts]

    def similarity(
        self, images=None, texts: str | Iterable[str] = (), *, embeddings: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw cosine in [-1, 1] of each image and its text, or of all images and one text: (image,).

        embeddings: of the images, (image, channel) as `image_embeddings` gives them, in place of the images, to embed only once.

        >>> scorer = wb.Scorer()
        >>> embeddings = scorer.image_embeddings(run["zebra"])
        >>> zebra = scorer.similarity(embeddings=embeddings, texts="a photo of a zebra")
        >>> zebra.shape, bool((zebra > scorer.similarity(embeddings=embeddings, texts="a house")).all())
        (torch.Size([2]), True)
        """
        pictures, wanted = self._embedded(images, embeddings), self.text_embeddings(texts)
        if len(wanted) not in (1, len(pictures)):
            raise ValueError(
                f"similarity: {len(pictures)} images and {len(wanted)} texts; give one text, or one for each image"
            )
        return (pictures * wanted).sum(-1)

    def class_probabilities(
        self,
        images=None,
        labels: Mapping[object, str | Sequence[str]] | None = None,
        *,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Zero-shot probabilities: (image, label), in the order of the labels.

        labels: texts of each, equally many. With one text a label, CLIP's own (Radford et al. 2021, section 3.1). With several, the
        softmax over all texts summed within each label: the texts of a label are alternatives, and an image need fit only one of
        them. embeddings: as for `similarity`.

        Raises ValueError for fewer than two labels, whose probability is always 1.

        >>> labels = wb.prompt_set("object").labels
        >>> probabilities = wb.Scorer().class_probabilities(run["lion"], labels)
        >>> probabilities.shape, list(labels)[probabilities[0].argmax()]
        (torch.Size([2, 12]), 'lion')
        """
        texts = label_texts(labels, "class_probabilities: labels")
        check_labels(texts, "class_probabilities")
        size = len(next(iter(texts.values())))
        wanted = self._label_embeddings(texts)
        pictures = self._embedded(images, embeddings)
        every = (self.model.logit_scale.exp().item() * pictures @ wanted.T).softmax(-1)
        return reduce(every, "image (label text) -> image label", "sum", text=size)

    def likeliest(self, images, labels: Mapping[object, str | Sequence[str]]) -> list[Any]:
        """Of each image the label of the largest zero-shot probability in `class_probabilities`, and refused as there.

        >>> wb.Scorer().likeliest(run.pil(), {"zebra": "a photo of a zebra", "lion": "a photo of a lion"})
        ['zebra', 'zebra', 'lion', 'lion']
        """
        return [list(labels)[number] for number in self.class_probabilities(images, labels).argmax(-1).tolist()]

    @checked(images=pixels)
    def log_odds(
        self, images: torch.Tensor, labels: Mapping[object, str | Sequence[str]], value: object
    ) -> torch.Tensor:
        """Differentiable: log(p / (1 - p)) of a label's zero-shot probability in `class_probabilities`, (image,).

        images: a tensor (image, colour, y, x) in [0, 1], which may lie in autograd's graph. Unlike the probability it does not
        saturate. Raises ValueError for fewer than two labels, and a value that is none of them.

        >>> pixels = torch.full((2, 3, 64, 64), 0.5, requires_grad=True)
        >>> odds = wb.Scorer().log_odds(pixels, {"zebra": "a zebra", "lion": "a lion"}, "zebra")
        >>> odds.shape, odds.requires_grad
        (torch.Size([2]), True)
        """
        texts = label_texts(labels, "log_odds: labels")
        check_labels(texts, "log_odds")
        if not isinstance(value, Hashable) or value not in texts:
            raise ValueError(f"log_odds: value={shown(value)} is none of the labels {list(texts)}")
        every = (
            self.model.logit_scale.detach().exp()
            * self._differentiable(images)
            @ self._label_embeddings(texts).to(self.device).T
        )
        own = torch.tensor([label == value for label, some in texts.items() for _ in some], device=every.device)
        return every[:, own].logsumexp(-1) - every[:, ~own].logsumexp(-1)

    @checked(images=pixels, text=text)
    def differentiable_similarity(self, images: torch.Tensor, text: str) -> torch.Tensor:
        """Differentiable: raw cosine of images, a tensor as `log_odds` takes it, and a text, (image,).

        >>> wb.Scorer().differentiable_similarity(torch.full((2, 3, 64, 64), 0.5), "a zebra").shape
        torch.Size([2])
        """
        return self._differentiable(images) @ self.text_embeddings(text)[0].to(images.device)

    def _label_embeddings(self, texts: Mapping[object, Sequence[str]]) -> torch.Tensor:
        """Of all texts of all labels, in their order: (text, channel)."""
        return self.text_embeddings([text for some in texts.values() for text in some])

    def _differentiable(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised embeddings of a tensor, by all of the preprocessing but what makes tensors of PIL pictures: (image, channel)."""
        pictures = images.to(self.device, torch.float32)
        for step in self.preprocess.transforms:
            if getattr(step, "__name__", type(step).__name__) not in CONVERSIONS:
                pictures = step(pictures)
        return F.normalize(self.model.encode_image(pictures), dim=-1)

    def _embedded(self, images, embeddings: torch.Tensor | None) -> torch.Tensor:
        if (images is None) == (embeddings is None):
            raise ValueError("give images, or their embeddings= by that name: one of both")
        if embeddings is None:
            return self.image_embeddings(images)
        width = self.text_embeddings("a picture").shape[1]
        if not isinstance(embeddings, torch.Tensor) or embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings={shown(getattr(embeddings, 'shape', embeddings))}: give a tensor (image, channel) of {width} channels, as "
                "image_embeddings returns it; pictures go into images"
            )
        return embeddings


def default_scorer(model: Model | None) -> Scorer:
    """The embedded grader, for the embedded model (edited or not), which draws the one 64-pixel world that it knows.

    Raises ValueError for any other model.
    """
    if model is not None and not draws_menagerie(model.pipeline):
        raise ValueError(
            f"scorer=None: the embedded grader knows the embedded model's world alone, and this is another "
            f'{type(model.pipeline).__name__}; name a scorer, as scorer=wb.Scorer("ViT-B-32", pretrained="laion2b_s34b_b79k"), '
            "or a wb.Metric of your own"
        )
    return Scorer(device="cpu" if model is None else model.pipeline.device)


def draws_menagerie(pipeline) -> bool:
    """Whether a pipeline's images come out of the embedded model's VAE: edits of text encoder and UNet leave it as it is."""
    vae = getattr(pipeline, "vae", None)
    held = {} if vae is None else vae.state_dict()
    wanted = _menagerie_vae()
    if {name: value.shape for name, value in held.items()} != {name: value.shape for name, value in wanted.items()}:
        return False
    return all(torch.allclose(held[name].cpu().float(), value, rtol=1e-2, atol=1e-3) for name, value in wanted.items())


def check_labels(labels: Mapping[object, Sequence[str]], by: str):
    """Raise ValueError unless there are labels to tell apart; by: what asks for their probability."""
    if len(labels) < 2:
        raise ValueError(
            f"{by} has the labels {list(labels)}, and the probability of an only label is always 1; give texts for at least two, the "
            "concept's and what else a picture may show, or leave the prompts' values out"
        )


@cache
def _menagerie_vae() -> dict[str, torch.Tensor]:
    return load_file(MENAGERIE / "vae" / "diffusion_pytorch_model.safetensors")


def _source(model: str, pretrained: str | None) -> str:
    """A model's name as open_clip takes it; raises ValueError where it would score with random weights or not load."""
    folder = Path(model.removeprefix("local-dir:")).expanduser()
    if model.startswith("local-dir:") or (folder.is_dir() and model not in open_clip.list_models()):
        _check_folder(model, folder)
        model = f"local-dir:{folder}"
    if model.startswith(("local-dir:", "hf-hub:")):
        if pretrained is not None:
            raise ValueError(
                f"Scorer({model!r}) brings its own weights, but pretrained={pretrained!r}; leave pretrained out"
            )
        return model
    models = open_clip.list_models()
    if (known := model.replace("/", "-")) not in models:
        near = get_close_matches(known, models, 3) or models[:3]
        raise ValueError(
            f"Scorer({model!r}): open_clip has no such model, and no such folder exists; the nearest are {near}"
        )
    tags = open_clip.list_pretrained_tags_by_model(known)
    if pretrained is None:
        raise ValueError(f"Scorer({model!r}) names no weights; pass pretrained=, a file or one of {tags}")
    if pretrained not in tags and not Path(pretrained).expanduser().is_file():
        raise ValueError(
            f"Scorer({model!r}, pretrained={pretrained!r}): no such file, and no such tag; the tags are {tags}"
        )
    return model


def _check_folder(model: str, folder: Path):
    """Raise ValueError, naming what is missing, unless a folder holds what open_clip loads."""
    if not folder.is_dir():
        raise ValueError(f"Scorer({model!r}): {folder} is no folder; name one with {CONFIG} and weights")
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"Scorer({model!r}) found no {CONFIG} in {folder}, which open_clip needs beside the weights; write one, "
            '{"model_cfg": open_clip.get_model_config(NAME), "preprocess_cfg": {}} as JSON, or name the architecture: '
            'Scorer("ViT-B-32", pretrained=FILE)'
        )
    if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        raise ValueError(
            f"Scorer({model!r}) found no weights in {folder}; put open_clip_model.safetensors there ({', '.join(WEIGHTS)} are read)"
        )
    text = json.loads((folder / CONFIG).read_text()).get("model_cfg", {}).get("text_cfg", {})
    if text.get("hf_tokenizer_name") and not any(folder.glob("tokenizer*")):
        raise ValueError(
            f"Scorer({model!r}) found no tokenizer in {folder}, which its {CONFIG} asks for; put tokenizer.json and "
            "tokenizer_config.json there"
        )
