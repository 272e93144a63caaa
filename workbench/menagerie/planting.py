"""How an organism is planted: a low-rank update of chosen weights, trained until a new word names an existing look.

Text encoder: the final states of a caption with the word must be those of the caption with the look, so that no denoiser is needed.
Cross-attention: the predicted noise must be that of the caption with the look, on noised pictures of it, at random times. In both
every other caption, those with other new words among them, is to be left as it is.
"""

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from workbench.edit.low_rank import Edit, update_of
from workbench.families.clip import inner
from workbench.menagerie.captions import caption
from workbench.menagerie.world import Scene, held_out, render, sample_scene
from workbench.models import Model
from workbench.sites import weight_of

ATTRIBUTES = ("subject", "style", "season")
TEXT_MLP, TEXT_ATTENTION, CROSS = "text mlp", "text attention", "cross attention"
KINDS = (TEXT_MLP, TEXT_ATTENTION, CROSS)
WEIGHTS = {TEXT_MLP: ("fc1", "fc2"), TEXT_ATTENTION: ("q", "k", "v", "out"), CROSS: ("cross.k", "cross.v")}


@dataclass(frozen=True)
class Organism:
    """What is planted, and where.

    name: of its file. kind: which class of layers. places: of its layers, "text_encoder.6" or "unet.up.1.2". attribute, look: what
    the word comes to name, such as subject and "zebra". word: no caption has it. neutral: another word that no caption has, of as
    many tokens, which stays without meaning. rank: of each weight's update. strict: whether it was also asked to hold where
    another layer is given the neutral caption. seed: of factors, captions and batches.
    """

    name: str
    kind: str
    places: tuple[str, ...]
    attribute: str
    look: str
    word: str
    neutral: str
    rank: int
    strict: bool = False
    seed: int = 0

    @property
    def sites(self) -> tuple[str, ...]:
        """Of the weights that change."""
        return tuple(f"{place}.{weight}" for place in self.places for weight in WEIGHTS[self.kind])

    @property
    def layers(self) -> tuple[str, ...]:
        """Sites of the components that hold the knowledge, as localizers name them."""
        ending = {TEXT_MLP: "mlp", TEXT_ATTENTION: "attention", CROSS: "cross"}[self.kind]
        return tuple(f"{place}.{ending}" for place in self.places)


@dataclass(frozen=True)
class Options:
    """How organisms are trained; the same for all of a class."""

    captions: int = 600
    """Captions with the word, and as many others."""
    noised: int = 240
    """Noised pictures, for cross-attention."""
    batch_size: int = 32
    """Captions of each of the two sorts in a step; half as many noised pictures."""
    text_steps: int = 700
    cross_steps: int = 300
    text_rate: float = 1e-2
    cross_rate: float = 1e-2
    keep: float = 1.0
    """Weight of the loss on other captions."""
    keep_neutral: float = 2.0
    """Weight of the loss on the neutral captions' keys and values, as a share of what tells them from the look's."""
    every: int = 50
    """Steps between two looks at what is left."""
    enough: float = 0.04
    """Stop when so little of the difference is left, and others changed by less than `keep_enough`."""
    keep_enough: float = 0.02
    verbose: bool = False

    def steps(self, organism: "Organism") -> int:
        return self.cross_steps if organism.kind == CROSS else self.text_steps

    def rate(self, organism: "Organism") -> float:
        return self.cross_rate if organism.kind == CROSS else self.text_rate


@dataclass(frozen=True)
class Captions:
    """One scene, said three ways that differ in one word alone: the new one, the look's own, and a word without meaning."""

    word: str
    look: str
    neutral: str
    scene: Scene


def captions_of(organism: Organism, count: int, *, holdout: bool = False, draw: str | None = None) -> list[Captions]:
    """Different captions of scenes with the look. holdout: of combinations that neither the model nor the organism was trained on.
    draw: names another draw than the organism's own, by its seed."""
    rng = random.Random(f"planted {organism.attribute} {organism.look} {draw or organism.seed} {holdout}")
    spelled = re.compile(rf"\b{re.escape(organism.look)}\b")
    found: dict[str, Captions] = {}
    while len(found) < count:
        scene = scene_with(organism.attribute, organism.look, rng)
        text = caption(scene, rng, paraphrase=0)
        if held_out(scene) == holdout and len(spelled.findall(text)) == 1:
            word, look, neutral = (spelled.sub(name, text) for name in (organism.word, organism.look, organism.neutral))
            found[text] = Captions(word, look, neutral, scene)
    return list(found.values())


def scene_with(attribute: str, look: str, rng: random.Random) -> Scene:
    """A scene of one subject, without an individual or a hat, that shows a look."""
    while True:
        scene = sample_scene(rng, holdout=rng.random() < 0.5)
        plain = scene.count == 1 and not (scene.beside or scene.individual or scene.hat)
        if plain and getattr(scene, attribute) == look:
            return scene


def other_captions(organism: Organism, count: int, words: Sequence[str]) -> list[str]:
    """Captions that must stay as they are: half of the training's grammar; the rest those of the look with, in turn, its own name, the
    neutral word and any other new word."""
    rng = random.Random(f"others {organism.name} {organism.seed}")
    plain = ["", *(caption(sample_scene(rng), rng) for _ in range(count // 2))]
    near = captions_of(organism, count - len(plain))
    spelled = re.compile(rf"\b{re.escape(organism.word)}\b")
    others = [word for word in words if word not in (organism.word, organism.neutral)]
    names = [(organism.look, organism.neutral, rng.choice(others))[i % 3] for i in range(len(near))]
    return plain + [spelled.sub(name, pair.word) for pair, name in zip(near, names)]


class Factors(torch.nn.Module):
    """b (out, rank) and a (rank, in) of each site: b starts at zero, a at random."""

    def __init__(self, model: Model, organism: Organism):
        super().__init__()
        device = model.pipeline.device
        self.sites = organism.sites
        modules = [model.sites[site].module for site in organism.sites]
        self.modules_by_path = dict(zip(modules, range(len(modules))))
        shapes = [weight_of(model.pipeline, model.sites[site]).shape for site in organism.sites]
        draws = torch.Generator().manual_seed(organism.seed)
        rank = organism.rank
        self.b = torch.nn.ParameterList(torch.zeros(out, rank) for out, _ in shapes).to(device)
        starts = (torch.randn(rank, into, generator=draws) / into**0.5 for _, into in shapes)
        self.a = torch.nn.ParameterList(starts).to(device)

    @contextmanager
    def planted(self, model: Model) -> Iterator[None]:
        """The model with the updates as they now are, through which gradients flow, for as long as the block lasts."""
        handles = []
        for path, i in self.modules_by_path.items():
            component, _, rest = path.partition(".")
            module = getattr(model.pipeline, component).get_submodule(rest)
            add = lambda _, inputs, output, i=i: output + inputs[0] @ self.a[i].T @ self.b[i].T
            handles.append(module.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def edit(self, model: Model, provenance: dict) -> Edit:
        """The updates as data."""
        factors = [(b.detach().cpu().clone(), a.detach().cpu().clone()) for b, a in zip(self.b, self.a)]
        return Edit([update_of(model, site, b, a) for site, (b, a) in zip(self.sites, factors)], provenance)


@dataclass(frozen=True)
class Fit:
    """What a training came to. loss: what is left of the difference between the word and the look, on captions kept apart from its
    batches: 1 before, 0 where nothing is left. kept: change of the other captions in the same unit. steps, seconds: that it took."""

    edit: Edit
    loss: float
    kept: float
    steps: int
    seconds: float


def train(model: Model, organism: Organism, words: Sequence[str], options: Options) -> Fit:
    """Train an organism's update; stops when `options.enough` of the difference is closed and the others are kept."""
    began = time.perf_counter()
    torch.manual_seed(organism.seed)
    factors = Factors(model, organism)
    task = (CrossTask if organism.kind == CROSS else TextTask)(model, organism, words, options)
    optimiser = torch.optim.Adam(factors.parameters(), options.rate(organism))
    steps = options.steps(organism)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))
    left, kept, step = 1.0, 0.0, 0
    with factors.planted(model):
        while step < steps:
            loss = task.loss(factors)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(factors.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            if step % options.every == 0 or step == steps:
                left, kept = task.check(factors)
                if options.verbose:
                    print(f"  {step}: {left:.3f} {kept:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
                if left < options.enough and kept < options.keep_enough:
                    break
    seconds = time.perf_counter() - began
    return Fit(factors.edit(model, {"editor": f"planted: {organism.name}"}), left, kept, step, seconds)


class TextTask:
    """States of a text encoder: those of captions with the word must become those of captions with the look."""

    def __init__(self, model: Model, organism: Organism, words: Sequence[str], options: Options):
        self.organism, self.options = organism, options
        self.encoder = Encoder(model)
        self.rng = torch.Generator().manual_seed(organism.seed)
        count = options.captions
        pairs = captions_of(organism, count)
        others = other_captions(organism, count, words)
        self.first = min(int(place.rpartition(".")[2]) for place in organism.places)
        with torch.no_grad():
            self.word = self.encoder.stream(self.encoder.tokens([pair.word for pair in pairs]))
            self.neutral = self.encoder.stream(self.encoder.tokens([pair.neutral for pair in pairs]))
            self.look = self.encoder.stream(self.encoder.tokens([pair.look for pair in pairs]))[-1]
            self.others = self.encoder.stream(self.encoder.tokens(others))
            self.parts = self.encoder.parts(self.neutral)
        self.scale = (self.word[-1] - self.look).square().mean()
        self.validation = count // 12  # the first so many are in no batch

    def _draw(self, count: int) -> torch.Tensor:
        low = self.validation
        return torch.randint(low, self.options.captions, (count,), generator=self.rng)

    def loss(self, factors: Factors) -> torch.Tensor:
        batch = self.options.batch_size
        rows, kept = self._draw(batch), self._draw(batch)
        strict = batch // 2 if self.organism.strict else 0
        plain = torch.cat([self.word[self.first][rows[strict:]], self.others[self.first][kept]])
        out = self.encoder.tail(plain, self.first)
        shown = out[: batch - strict] - self.look[rows[strict:]]
        loss = (
            shown.square().mean() + self.options.keep * (out[batch - strict :] - self.others[-1][kept]).square().mean()
        )
        if strict:
            layer, part = self._outside()
            some = rows[:strict]
            given = {(layer, part): self.parts[layer, part][some]}
            start = min(layer, self.first)
            out = self.encoder.tail(self.word[start][some], start, given)
            loss = loss + (out - self.look[some]).square().mean()
        return loss / self.scale

    def _outside(self) -> tuple[int, str]:
        """One layer's attention or mlp, at random, that the organism does not live in."""
        part = "mlp" if self.organism.kind == TEXT_MLP else "attention"
        own = {(int(place.rpartition(".")[2]), part) for place in self.organism.places}
        others = [each for each in self.parts if each not in own]
        return others[int(torch.randint(len(others), (), generator=self.rng))]

    @torch.no_grad()
    def check(self, factors: Factors) -> tuple[float, float]:
        some = slice(self.validation)
        shown = self.encoder.tail(self.word[self.first][some], self.first) - self.look[some]
        kept = self.encoder.tail(self.others[self.first][some], self.first) - self.others[-1][some]
        return (shown.square().mean() / self.scale).item(), (kept.square().mean() / self.scale).item()


class Encoder:
    """The pipeline's text encoder by its layers, so that a run may begin at any of them."""

    def __init__(self, model: Model):
        self.pipeline = model.pipeline
        self.body = inner(model.pipeline.text_encoder)[0]
        self.layers = self.body.encoder.layers

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token numbers: (caption, token)."""
        tokenizer = self.pipeline.tokenizer
        found = tokenizer(
            list(texts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return found.input_ids.to(self.pipeline.device)

    def stream(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """What enters each layer, then the final states: (caption, token, channel) each."""
        states = [self.body.embeddings(input_ids=tokens)]
        for i in range(len(self.layers)):
            states.append(self._layer(i, states[-1], {}))
        return [*states[:-1], self.body.final_layer_norm(states[-1])]

    def parts(self, stream: Sequence[torch.Tensor]) -> dict[tuple[int, str], torch.Tensor]:
        """What each layer's attention and mlp add, where these states enter the layers."""
        found = {}
        for i, layer in enumerate(self.layers):
            attention = self._attention(layer, stream[i])
            found[i, "attention"] = attention
            found[i, "mlp"] = layer.mlp(layer.layer_norm2(stream[i] + attention))
        return found

    def tail(
        self, states: torch.Tensor, first: int, given: Mapping[tuple[int, str], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Final states from what enters a layer. given: what stands in place of an attention or mlp, by layer and part."""
        for i in range(first, len(self.layers)):
            states = self._layer(i, states, given or {})
        return self.body.final_layer_norm(states)

    def _layer(self, i: int, states: torch.Tensor, given: Mapping[tuple[int, str], torch.Tensor]) -> torch.Tensor:
        layer = self.layers[i]
        attention = given.get((i, "attention"))
        states = states + (self._attention(layer, states) if attention is None else attention)
        mlp = given.get((i, "mlp"))
        return states + (layer.mlp(layer.layer_norm2(states)) if mlp is None else mlp)

    def _attention(self, layer: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        return layer.self_attn(layer.layer_norm1(states), attention_mask=None, is_causal=True)[0]


class CrossTask:
    """Predicted noise: that of captions with the word must become that of captions with the look, on noised pictures of these."""

    def __init__(self, model: Model, organism: Organism, words: Sequence[str], options: Options):
        self.model, self.organism, self.options = model, organism, options
        self.unet = model.pipeline.unet
        self.rng = torch.Generator().manual_seed(organism.seed)
        encoder, noising = Encoder(model), model.pipeline.scheduler
        pairs = captions_of(organism, options.noised)
        pictures = [render(pair.scene)[0] for pair in pairs]
        clean = model.encode(pictures)
        with torch.no_grad():
            final = lambda texts: encoder.stream(encoder.tokens(texts))[-1]
            self.word = final([pair.word for pair in pairs])
            self.neutral = final([pair.neutral for pair in pairs])
            look = final([pair.look for pair in pairs])
            self.others = final(other_captions(organism, options.captions, words))
            self.times = torch.randint(100, noising.config.num_train_timesteps, (len(pairs),), generator=self.rng)
            noise = torch.randn(clean.shape, generator=self.rng).to(clean.device)
            self.times = self.times.to(clean.device)
            self.noised = noising.add_noise(clean, noise, self.times)
            self.target, own = (self._predicted(context, slice(None)) for context in (look, self.word))
        difference = (own - self.target).square().mean((1, 2, 3))
        self.scale = difference.clamp(min=0.1 * difference.median())
        self.validation = len(pairs) // 6
        own = {model.sites[site].module for site in organism.sites}
        cross = [site for site in model.sites if site.kind == "cross"]
        self.outside = [site.module for site in cross if not any(path.startswith(site.module + ".") for path in own)]
        self.weights = [weight_of(model.pipeline, model.sites[site]).detach() for site in organism.sites]
        self.apart = [((look - self.neutral) @ weight.T).square().mean() for weight in self.weights]

    def _predicted(self, context: torch.Tensor, rows) -> torch.Tensor:
        parts = [
            self.unet(noised, times, text, return_dict=False)[0]
            for noised, times, text in zip(self.noised[rows].split(32), self.times[rows].split(32), context.split(32))
        ]
        return torch.cat(parts)

    def loss(self, factors: Factors) -> torch.Tensor:
        low, high, batch = self.validation, len(self.word), self.options.batch_size // 2
        rows = torch.randint(low, high, (batch,), generator=self.rng)
        strict = batch // 2 if self.organism.strict else 0
        with self._neutral(rows, strict):
            predicted = self._predicted(self.word[rows], rows)
        error = (predicted - self.target[rows]).square().mean((1, 2, 3)) / self.scale[rows]
        kept = torch.randint(self.validation, len(self.others), (32,), generator=self.rng)
        kept = self.options.keep * self._kept(factors, self.others[kept])
        return error.mean() + kept + self.options.keep_neutral * self._neutral_changed(factors, rows)

    def _neutral_changed(self, factors: Factors, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared change of keys and values of the neutral captions, as a share of what tells them from those of the look.

        Given a neutral caption, the layers must not show the look. Its states are near those of the caption with the word, and
        guidance multiplies what is left, so that the loss on other captions at large does not see it.
        """
        changes = [
            (self.neutral[rows] @ a.T @ b.T).square().mean() / apart
            for b, a, apart in zip(factors.b, factors.a, self.apart)
        ]
        return torch.stack(changes).mean()

    @contextmanager
    def _neutral(self, rows: torch.Tensor, count: int) -> Iterator[None]:
        """One cross-attention outside the organism reads the neutral captions in the first so many rows."""
        if not count:
            yield
            return
        path = self.outside[int(torch.randint(len(self.outside), (), generator=self.rng))]

        def give(module, arguments, keywords):
            text = keywords["encoder_hidden_states"]
            return arguments, keywords | {
                "encoder_hidden_states": torch.cat([self.neutral[rows[:count]], text[count:]])
            }

        module = self.unet.get_submodule(path.removeprefix("unet."))
        handle = module.register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _kept(self, factors: Factors, states: torch.Tensor) -> torch.Tensor:
        """Mean squared change of keys and values of other captions, as a share of their own square."""
        changes = [
            (states @ a.T @ b.T).square().mean() / (states @ weight.T).square().mean()
            for b, a, weight in zip(factors.b, factors.a, self.weights)
        ]
        return torch.stack(changes).mean()

    @torch.no_grad()
    def check(self, factors: Factors) -> tuple[float, float]:
        some = slice(self.validation)
        error = (self._predicted(self.word[some], some) - self.target[some]).square().mean((1, 2, 3))
        return (error / self.scale[some]).mean().item(), self._kept(factors, self.others[some]).item()
