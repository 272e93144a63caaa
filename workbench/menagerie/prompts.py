"""Write the prompt sets of the experiments: `python -m workbench.menagerie.prompts`.

`data/prompts/ATTRIBUTE.csv`: twelve prompts with the words that name the attribute, a replacement of as many tokens
(empty where the world has none), and for LocoGen the target: the prompt without the attribute (style, season) or with another
value of it. `data/prompts/ATTRIBUTE_labels.csv`: the zero-shot prompts of all its values.
"""

import random
from pathlib import Path

import pandas as pd
from transformers import CLIPTokenizer

from workbench.menagerie.captions import PLACE, article, attribute_prompts
from workbench.menagerie.world import ANIMALS, COLOURS, INDIVIDUALS, QUADRUPEDS, SCENES, SUBJECTS, THINGS
from workbench.models import DATA, MENAGERIE

NONE = "none"
WORDS = {  # attribute: what names each value
    "object": {subject: subject for subject in SUBJECTS},
    "style": {
        "watercolor": "watercolor",
        "pencil sketch": "pencil sketch",
        "pixel art": "pixel art",
        "stained glass": "stained glass",
    },
    "colour": {colour: colour for colour in COLOURS},
    "season": {"winter": "in winter", "summer": "in summer", "night": "at night"},
    "action": {"running": "running", "eating grass": "eating grass"},
    "position": {"left": "left", "right": "right"},
    "fact": {subject: name for name, (subject, _) in INDIVIDUALS.items()},
}
OTHER = {"watercolor": "sketch", "running": "standing"}  # replacements that are no value's own words
LABELS_OF = {"object": "subject", "fact": "subject"}  # what the grader's prompts call it


def prompt_set(attribute: str, tokenizer, count: int = 12) -> pd.DataFrame:
    rng = random.Random(f"prompts {attribute}")
    length = lambda words: len(tokenizer(words, add_special_tokens=False)["input_ids"])
    values = WORDS[attribute]
    rows = []
    for i in range(count):
        value = list(values)[i % len(values)]
        words = values[value]
        turn = i % len(values) + 2 * (i // len(values)) if attribute == "fact" else i + i // len(SCENES)
        place = PLACE[SCENES[turn % len(SCENES)]]
        shown = {
            "object": value,
            "fact": value,
            "colour": THINGS[i % len(THINGS)],
            "action": QUADRUPEDS[i // 2 % len(QUADRUPEDS)],
        }
        subject = shown.get(attribute) or rng.choice(SUBJECTS)
        colour = {"colour": value}.get(attribute) or (rng.choice(COLOURS) if subject in THINGS else None)
        same = [other for other in values.values() if other != words and length(other) == length(words)]
        same = [other for other in same if (other in THINGS) == (words in THINGS)] or same
        replacement = "" if attribute == "fact" else OTHER.get(value) or (same[i % len(same)] if same else "")
        target, target_value = _target(attribute, value, subject, colour, place, replacement)
        text = sentence(attribute, words, subject, colour, place)
        rows.append(
            dict(
                prompt=text,
                subject=words,
                value=value,
                replacement=replacement,
                target=target,
                target_value=target_value,
            )
        )
    return pd.DataFrame(rows)


def sentence(attribute: str, words: str, subject: str, colour: str | None, place: str) -> str:
    """A prompt in which these words name the attribute; none when they are empty."""
    text = article(f"{colour} {subject}" if colour else subject)
    match attribute:
        case "object":
            return f"a photo of {text} {place}"
        case "style" if words:
            return f"{'' if words in ('stained glass', 'pixel art') else 'a '}{words} of {text} {place}"
        case "action":
            return f"{text} {words} {place}"
        case "position":
            return f"{text} {place} on the {words}"
        case "fact":
            return f"{words} {place}"
    return " ".join([text, place, words] if attribute == "season" and words else [text, place])


def _target(
    attribute: str, value: str, subject: str, colour: str | None, place: str, replacement: str
) -> tuple[str, str]:
    """The prompt of the altered attribute, and its value there."""
    if attribute in ("style", "season"):
        return sentence(attribute, "", subject, colour, place), NONE
    if attribute in ("object", "fact"):
        kind = THINGS if value in THINGS else ANIMALS
        other = replacement if replacement in kind else kind[(kind.index(value) + 1) % len(kind)]
        return sentence("object", "", other, colour, place).removeprefix(
            "a photo of " if attribute == "fact" else ""
        ), other
    if attribute == "colour":
        return sentence(attribute, "", subject, replacement, place), replacement
    other = replacement or "standing"
    return sentence(attribute, other, subject, colour, place), other


def labels(attribute: str, samples: int = 60) -> pd.DataFrame:
    found = attribute_prompts(LABELS_OF.get(attribute, attribute), samples=samples)
    return pd.DataFrame([dict(label=value or NONE, text=text) for value, texts in found.items() for text in texts])


def main(folder: Path = DATA / "prompts"):
    tokenizer = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for attribute in WORDS:
        prompt_set(attribute, tokenizer).to_csv(folder / f"{attribute}.csv", index=False)
        labels(attribute).to_csv(folder / f"{attribute}_labels.csv", index=False)


if __name__ == "__main__":
    main()
