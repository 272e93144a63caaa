"""Completion: the unedited model begins the picture, the edited one ends it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from workbench.experiments.shards import Row
from workbench.interventions import Intervention, replace_prompt, restore
from workbench.prompts import Prompt
from workbench.recovery.case import Asks, Attack, Try

UNEDITED = "unedited"  # the world that the first steps are taken from


class Completion(Attack):
    """The unedited model does the first steps of the denoising, the edited one the others.

    None of the steps is the edited model's picture, all of them the unedited one's. Control: the first steps are those of the control's
    prompt.
    """

    name = "completion"
    asks = ("concept", "control")

    def refusal(self) -> str:
        family, pipeline = self.case.model.family, self.case.model.pipeline
        read = {name for reading in family.read(family, pipeline) for name in reading.tokenizers}
        pooled = {each.component for each in family.present(pipeline) if each.pooled or each.tokenizer not in read}
        if edited := [site.name for site in self.case.parts["text"] if site.component in pooled]:
            return f"the edit of {edited[0]} reaches the denoiser through the pooled vector too, which is computed once, before the steps"
        return super().refusal()

    def places(self) -> list[Row]:
        return [dict(asks=asks, share=share) for asks in self.asks for share in self.case.spec.shares]

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        for place in self.places():
            yield Try(place, self.completed(prompt, round(place["share"] * self.case.steps), place["asks"]))

    def completed(self, prompt: Prompt, first: int, asks: Asks = "concept") -> Sequence[Intervention]:
        """Interventions of the edited model whose first steps are the unedited one's."""
        begun, ended = range(first), range(first, self.case.steps)
        found: list[Intervention] = []
        for intervention in self.case.previewed:
            (name,) = intervention.sites
            if self.case.model.sites[name].part == "text":  # it runs once, before the steps
                found.append(intervention)
            elif ended:
                found.append(replace(intervention, steps=tuple(ended)))
        if begun and self.case.parts["text"]:
            found.append(restore(self.case.context, UNEDITED, steps=begun, rows="both"))
        if begun and asks == "control":
            found.append(replace_prompt(self.case.context, self.case.text(prompt, asks), steps=begun))
        return found
