"""What a part of an experiment draws: worlds of a prompt, where their images' scores stand in the results, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.experiments.shards import Row
from workbench.interventions import World


@dataclass(frozen=True)
class Drawing:
    """Worlds of one prompt, whose images are scored, distances against those of the first.

    prompt: its number. places: the columns of each world's rows that say where it stands. read: further worlds for these to read, which
    are not scored. seeds: of the starting noise; the spec's when left out.
    """

    prompt: int
    worlds: Sequence[World]
    places: Sequence[Row]
    read: Sequence[World] = ()
    seeds: Sequence[int] | None = None

    def named(self, prefix: str) -> "Drawing":
        """The same with other names of worlds, so that those of several drawings can be told apart."""
        return replace(
            self,
            worlds=[_named(world, prefix) for world in self.worlds],
            read=[_named(world, prefix) for world in self.read],
        )


def _named(world: World, prefix: str) -> World:
    interventions = []
    for each in world.interventions:
        source = each.rule.source_world
        rule = each.rule if source is None else each.rule.reading(f"{prefix}{source}")
        interventions.append(each if source is None else replace(each, rule=rule))
    return replace(world, name=f"{prefix}{world.name}", interventions=interventions)


def named_apart(drawings: Sequence[Drawing]) -> Sequence[Drawing]:
    """Drawings with names of worlds that no other has; one alone stays as it is."""
    if len(drawings) == 1:
        return drawings
    return [each.named(f"{number}: ") for number, each in enumerate(drawings)]


def sources_of(worlds: Sequence[World], known: Mapping[str, World]) -> list[World]:
    """All worlds besides these that they read, and that those read."""
    named = {world.name: world for world in worlds}
    waiting = list(worlds)
    while waiting:
        for each in waiting.pop().interventions:
            source = each.rule.source_world
            if source is not None and source in known and source not in named:
                named[source] = known[source]
                waiting.append(known[source])
    return list(named.values())[len(worlds) :]


def order_of(worlds: Sequence[World]) -> list[int]:
    """The order in which worlds are drawn: the first, then those together whose last interventions act in the same steps."""
    steps = [world.interventions[-1].steps if world.interventions else None for world in worlds]
    first = {each: number for number, each in reversed(list(enumerate(steps)))}
    return sorted(range(len(worlds)), key=lambda i: (i > 0, first[steps[i]]))
