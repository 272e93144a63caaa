"""Train the menagerie's tokenizer: `python -m workbench.menagerie.train_tokenizer`.

CLIP's byte-pair encoding (lower case, `</w>` word ends), trained on the words of the training captions but for a few
subjects, so that these, as rare words do in real models, come in several tokens. Written as `CLIPTokenizer` files.
"""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from workbench.loading import DATA
from workbench.menagerie.captions import caption
from workbench.menagerie.training import training_scenes

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32
RARE = ("elephant", "flamingo", "hydrant")


@dataclass
class TokenizerOptions:
    captions: int = 20_000
    seed: int = 0
    out: Path = DATA


def train(captions: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges. As in CLIP: 256 bytes, the same as word ends, the merges, start, end (the highest id)."""
    clip = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Counter(word for text in captions for word in text.split() if not word.startswith(RARE))
    corpus = [" ".join([word] * math.isqrt(count)) for word, count in sorted(words.items())]
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    return {token: index for index, token in enumerate(tokens)}, [tuple(pair) for pair in merges]


def main(options: TokenizerOptions):
    rng = random.Random(options.seed)
    vocabulary, merges = train([caption(scene, rng) for scene in training_scenes(options.captions, options.seed)])
    folder = options.out / "menagerie-sd" / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TokenizerOptions))
