"""Write the prompt sets of the experiments: `python -m workbench.menagerie.prompts`.

`data/prompts/ATTRIBUTE.csv`: twelve prompts with the words that name the attribute, and a replacement of as many tokens
(empty where the world has none). `data/prompts/ATTRIBUTE_labels.csv`: the zero-shot prompts of all its values.
"""

import random
from pathlib import Path

import pandas as pd
from transformers import CLIPTokenizer

from workbench.menagerie.captions import PLACE, article, attribute_prompts
from workbench.menagerie.world import COLOURS, QUADRUPEDS, SCENES, SUBJECTS, THINGS
from workbench.models import DATA, MENAGERIE

NONE = "none"
WORDS = {  # attribute: what names each value
    "object": {subject: subject for subject in SUBJECTS},
    "style": {"watercolor": "watercolor", "pencil sketch": "pencil sketch", "pixel art": "pixel art", "stained glass": "stained glass"},
    "colour": {colour: colour for colour in COLOURS},
    "season": {"winter": "in winter", "summer": "in summer", "night": "at night"},
    "action": {"running": "running", "eating grass": "eating grass"},
    "position": {"left": "left", "right": "right"},
}
OTHER = {"watercolor": "sketch", "running": "standing"}  # replacements that are no value's own words
LABELS_OF = {"object": "subject"}  # what the grader's prompts call it


def prompt_set(attribute: str, tokenizer, count: int = 12) -> pd.DataFrame:
    rng = random.Random(f"prompts {attribute}")
    length = lambda words: len(tokenizer(words, add_special_tokens=False)["input_ids"])
    values = WORDS[attribute]
    rows = []
    for i in range(count):
        value = list(values)[i % len(values)]
        words = values[value]
        place = PLACE[SCENES[(i + i // len(SCENES)) % len(SCENES)]]
        subject = {"object": value, "colour": THINGS[i % len(THINGS)], "action": QUADRUPEDS[i // 2 % len(QUADRUPEDS)]}.get(attribute)
        subject = subject or rng.choice(SUBJECTS)
        colour = {"colour": value}.get(attribute) or (rng.choice(COLOURS) if subject in THINGS else None)
        text = article(f"{colour} {subject}" if colour else subject)
        text = {
            "object": f"a photo of {text} {place}",
            "style": f"{'' if value == 'stained glass' or value == 'pixel art' else 'a '}{words} of {text} {place}",
            "colour": f"{text} {place}",
            "season": f"{text} {place} {words}",
            "action": f"{text} {words} {place}",
            "position": f"{text} {place} on the {words}",
        }[attribute]
        same = [other for other in values.values() if other != words and length(other) == length(words)]
        same = [other for other in same if (other in THINGS) == (words in THINGS)] or same
        replacement = OTHER.get(value) or (same[i % len(same)] if same else "")
        rows.append(dict(prompt=text, subject=words, value=value, replacement=replacement))
    return pd.DataFrame(rows)


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
