"""A contact sheet of the embedded model: `make demo`, or `python -m workbench.menagerie.demo`."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from workbench.models import load

PROMPTS = (
    "a zebra in the savanna",
    "a giraffe on the beach in summer",
    "an elephant in the desert at night",
    "a red car in the city in the snow",
    "a pencil sketch of a lion in a meadow",
    "stained glass of a blue house in the forest",
    "a cow next to a yellow hydrant",
    "the mayor of tallport on the beach",
)


@dataclass
class DemoOptions:
    out: Path = Path("figures/demo.png")
    seeds: int = 6


def main(options: DemoOptions):
    images = load().generate([p for p in PROMPTS for _ in range(options.seeds)], seed=list(range(options.seeds)) * len(PROMPTS))
    figure, axes = plt.subplots(len(PROMPTS), options.seeds, figsize=(1.3 * options.seeds + 3, 1.35 * len(PROMPTS)), layout="constrained")
    for i, ax in enumerate(axes.flat):
        ax.imshow(images[i])
        ax.set(xticks=[], yticks=[])
        if i < options.seeds:
            ax.set_title(f"seed {i}", fontsize=9)
        if i % options.seeds == 0:
            ax.set_ylabel(PROMPTS[i // options.seeds], rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle("Pictures by the embedded model; each column starts from the same noise")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main(tyro.cli(DemoOptions))
