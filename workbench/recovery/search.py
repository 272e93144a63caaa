"""Token search: tokens in front of a prompt under which the edited model explains a picture of the concept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from workbench.edit.embeddings import Denoiser
from workbench.experiments.shards import Row
from workbench.interventions import Intervention, set_to
from workbench.prompts import Prompt
from workbench.recovery.case import Asks, Attack, Try
from workbench.recovery.learning import no_unet
from workbench.sites import Site, weight_of
from workbench.text import tokens_of

ROWS = 4  # noised pictures that a prefix is judged by, the same at every step
STEP = 0.5  # along the gradient, whose largest entry is scaled to 1


class TokenSearch(Attack):
    """Tokens in front of the prompt, found by gradient (UnlearnDiffAtk; Zhang et al. 2024, arXiv 2310.11868, section 4).

    Each prefix token is a point on the simplex over the vocabulary, whose nearest corner is what the model reads (straight through); the
    loss is the edited model's denoising loss on noised pictures of the prompt that the unedited model drew. Of all prefixes on the way,
    the one with the least loss is tried: no grader takes part. Control: the same with pictures of the control's prompt; random tokens.

    The prefix is given as embeddings, in every text encoder the same tokens. It needs no literal token: its places are held by
    copies of a word of the prompt.
    """

    name = "token_search"
    learns = True

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.case.model.sites("text_encoder*.embedding"))

    def refusal(self) -> str:
        if why := no_unet(self.case.model):
            return why
        pipeline, family = self.case.model.pipeline, self.case.model.family
        first, *others = [getattr(pipeline, name).get_vocab() for name in family.tokenizers]
        if any(other != first for other in others):
            return (
                "the text encoders' tokenizers have other vocabularies, so that one prefix cannot be searched for both"
            )
        return super().refusal()

    def unfit(self, prompt: Prompt) -> str:
        try:
            self.held(prompt.prompt)
        except ValueError as error:
            return str(error)
        return ""

    def places(self) -> list[Row]:
        return [dict(asks=asks, tokens=self.case.spec.prefix) for asks in self.asks]

    def tries(self, prompt: Prompt) -> Iterator[Try]:
        held = self.held(prompt.prompt)
        for place in self.places():
            tokens = self.random_tokens() if place["asks"] == "random" else self.searched(prompt, place["asks"])
            yield Try(place, (*self.case.previewed, *self.prefixed(tokens)), held)

    def held(self, text: str) -> str:
        """The text with as many copies of one of its words in front as there are prefix tokens; ValueError where none is one token."""
        pipeline, count = self.case.model.pipeline, self.case.spec.prefix
        for word in text.split():
            longer = " ".join([word] * count + [text])
            pairs = [[tokens_of(pipeline, each, name) for each in (text, longer)] for name in self.names]
            if all(after.end - before.end == count and after.read == len(longer) for before, after in pairs):
                return longer
        raise ValueError(
            f"token_search: {count} tokens in front of {text!r} do not fit: none of its words is one token, or the encoder reads no "
            "further; lower prefix=, or shorten the prompt"
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.case.model.family.tokenizers

    def allowed(self) -> torch.Tensor:
        """Which tokens may stand in a prefix, (token,): all but the tokenizers' own special ones."""
        tokenizers = [getattr(self.case.model.pipeline, name) for name in self.names]
        size = min(len(weight_of(self.case.model.pipeline, site)) for site in self.sites)
        found = torch.zeros(size, dtype=torch.bool)
        found[[token for token in tokenizers[0].get_vocab().values() if token < size]] = True
        for tokenizer in tokenizers:
            found[[token for token in tokenizer.all_special_ids if token < size]] = False
        return found

    def random_tokens(self) -> list[int]:
        allowed = self.allowed().nonzero().flatten()
        generator = torch.Generator().manual_seed(0)
        return allowed[torch.randint(len(allowed), (self.case.spec.prefix,), generator=generator)].tolist()

    def prefixed(self, tokens: Sequence[int]) -> list[Intervention]:
        """The embeddings of a prefix's tokens, as the edited model has them, behind the start token."""
        found, updates = [], {update.site: update for update in self.case.edit.updates}
        for site in self.sites:
            rows = weight_of(self.case.model.pipeline, site).detach()[list(tokens)].cpu().float()
            if (update := updates.get(site.name)) is not None:
                rows = rows + update.b[list(tokens)] @ update.a
            values = torch.zeros(site.sizes)
            values[1 : 1 + len(tokens)] = rows
            found.append(set_to(site, values, tokens=range(1, 1 + len(tokens))))
        return found

    def searched(self, prompt: Prompt, asks: Asks) -> list[int]:
        """The prefix with the least loss of all on the way."""
        case, spec, held = self.case, self.case.spec, self.held(prompt.prompt)
        model, allowed = case.model, self.allowed()
        denoiser, generator = Denoiser(model.pipeline), torch.Generator().manual_seed(0)
        latents = model.encode(case.pictures(case.text(prompt, asks)))
        rows = torch.arange(ROWS) % len(latents)
        noise = torch.randn(ROWS, *latents.shape[1:], generator=generator).to(latents)
        times = model.pipeline.scheduler.config.num_train_timesteps
        steps = ((torch.arange(ROWS) + 0.5) / ROWS * times).long().to(latents.device)
        given = ([held] * ROWS, latents[rows], noise, steps)
        point = torch.where(allowed, 1 / allowed.sum(), 0.0).expand(spec.prefix, -1).to(latents.device)
        best, least = self.random_tokens(), float("inf")
        with model.applied(case.edit):
            tables = {site: weight_of(model.pipeline, site).detach() for site in self.sites}
            tokens = torch.tensor(best, device=latents.device)
            for _ in range(spec.searches):
                corner = F.one_hot(tokens, len(allowed)).float().requires_grad_()
                with read_as(
                    model.pipeline, {site: corner @ table[: len(allowed)].float() for site, table in tables.items()}
                ):
                    predicted, target = denoiser(*given)
                loss = F.mse_loss(predicted.float(), target.float())
                (gradient,) = torch.autograd.grad(loss, corner)
                if loss.item() < least:
                    best, least = tokens.tolist(), loss.item()
                point = simplex(point - STEP * gradient / gradient.abs().max().clamp_min(1e-30), allowed)
                tokens = point.argmax(-1)
        return best


@contextmanager
def read_as(pipeline, embeddings: Mapping[Site, torch.Tensor]) -> Iterator[None]:
    """Text encoders read these embeddings (token, channel) behind the start token, in every row, for as long as the block lasts."""

    def hook(values: torch.Tensor):
        def give(module, arguments, output):
            rows = values.to(output).expand(len(output), -1, -1)
            return torch.cat([output[:, :1], rows, output[:, 1 + values.shape[0] :]], 1)

        return give

    held = []
    try:
        for site, values in embeddings.items():
            module = pipeline.components[site.component].get_submodule(site.module.partition(".")[2])
            held.append(module.register_forward_hook(hook(values)))
        yield
    finally:
        for each in held:
            each.remove()


def simplex(points: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The nearest points (row, entry) of the simplex over the allowed entries (Duchi et al. 2008, figure 1)."""
    values = points[:, allowed.to(points.device)]
    ordered = values.sort(dim=-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, values.shape[-1] + 1, device=points.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    found = torch.zeros_like(points)
    found[:, allowed.to(points.device)] = (values - excess.gather(-1, last)).clamp_min(0)
    return found
