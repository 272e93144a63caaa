"""Comparisons that may be looked at again and again while numbers come in: which candidates are certainly not among the best.

Each of a finite population of units (a prompt with a seed, say) gives every candidate a bounded score. Units come in random order,
without replacement; what is asked is the mean over all of them, which a whole run would give. A bet is laid at every unit on what is not
known; if the thing that is bet against is so, the gambler's wealth is a nonnegative supermartingale, which ever exceeds 1 / delta with a
probability of delta at most (Ville), however often one looks and whenever one stops. Waudby-Smith & Ramdas 2024, "Estimating means of
bounded random variables by betting", JRSS B 86 (arXiv 2010.09686), sections 4 and 5.
"""

import numpy as np

TRUNCATED = 0.75  # of the largest bet that cannot lose everything
DEVIATION = 0.25  # of the scores' range: what the first bets take the standard deviation to be
GRID = 1001  # means between the least and the largest score that an interval tries


def beaten(scores: np.ndarray, population: int, best: int, spread: float, level: float) -> np.ndarray:
    """By how many others each candidate is shown to be beaten, (candidate,): those with `best` or more may leave.

    scores: (unit, candidate) in the order of the units, more being better, NaN from where a candidate has left. population: how many units
    there are in all. spread: the largest difference of two scores. With a probability of at least
    `level` none of the candidates with the `best` largest means over the population ever has as many.
    """
    allowed = (1 - level) / false_claims(scores.shape[1], best)
    return (log_wealth(scores, population, spread) >= -np.log(allowed)).sum(0)


def false_claims(candidates: int, best: int) -> float:
    """By how much the error of one claim "this one is better than that one" is multiplied, at most, that one of the best leaves.

    Who is r-th of the best leaves only where `best - r + 1` of the `candidates - r` below it are said to be better; that so many claims
    are false has at most the probability of their expected number over that (Markov).
    """
    return sum((candidates - r) / (best - r + 1) for r in range(1, min(best, candidates) + 1))


def log_wealth(scores: np.ndarray, population: int, spread: float) -> np.ndarray:
    """Log of what 1 has become, (better, worse), betting that the first has the larger mean over the population; see `beaten`.

    Of an equal pair the mean of what is left of the differences is known at each unit, from those that were seen; the bet is on more.
    """
    shape = (scores.shape[1],) * 2
    wealth, total, squares, seen = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row in scores / spread:
        difference = row[:, None] - row[None, :]
        both = ~np.isnan(difference)
        difference = np.where(both, difference, 0.0)
        null = -total / np.maximum(population - seen, 1)
        bet = _bet(total, squares, seen, null, room=1 + null)
        with np.errstate(divide="ignore"):
            grown = wealth + np.log1p(bet * (difference - null))
        wealth = np.where(both, np.where(null <= -1, np.inf, grown), wealth)  # a mean below all differences cannot be
        total, squares, seen = total + difference, squares + difference**2, seen + both
    return wealth


def mean_intervals(
    scores: np.ndarray, population: int, least: float, most: float, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of intervals for the candidates' means over the population, each (candidate,); they hold whenever one stops.

    scores: (unit, candidate) between `least` and `most`, NaN where not measured. population: how many units there are in all. Of each
    candidate the interval holds the mean, with a probability of at least `level`, at all times together.
    """
    means = np.linspace(0, 1, GRID)[None]
    shape = (scores.shape[1], GRID)
    up, down, total, squares, seen = (np.zeros(shape) for _ in range(5))
    for row in (scores - least) / (most - least):
        there = np.broadcast_to(~np.isnan(row)[:, None], shape)
        value = np.where(there, np.nan_to_num(row)[:, None], 0.0)
        null = (population * means - total) / np.maximum(population - seen, 1)
        possible = (null >= 0) & (null <= 1)
        bounded = np.clip(null, 1e-9, 1 - 1e-9)
        more = _bet(total, squares, seen, bounded, room=bounded)
        less = _bet(seen - total, seen - 2 * total + squares, seen, 1 - bounded, room=1 - bounded)
        up = np.where(there, np.where(possible, up + np.log1p(more * (value - bounded)), np.inf), up)
        down = np.where(there, np.where(possible, down + np.log1p(less * (bounded - value)), np.inf), down)
        total, squares, seen = total + value, squares + value**2, seen + there
    kept = np.maximum(up, down) < -np.log((1 - level) / 2)
    share, left = total[:, 0] / population, 1 - seen[:, 0] / population
    first, last = kept.argmax(1), GRID - 1 - kept[:, ::-1].argmax(1)
    low = np.where(
        kept.any(1), (first - 1) / (GRID - 1), 0.0
    )  # a mean between two of the grid may be kept where both are not
    high = np.where(kept.any(1), (last + 1) / (GRID - 1), 1.0)
    low, high = np.maximum(low, share), np.minimum(high, share + left)
    return least + (most - least) * low, least + (most - least) * high


def _bet(total: np.ndarray, squares: np.ndarray, seen: np.ndarray, null: np.ndarray, room: np.ndarray) -> np.ndarray:
    """What share is bet on more than `null`, from what was seen before alone (their section 4.3, aGRAPA). room: what can be lost of 1."""
    mean = total / np.maximum(seen, 1)
    variance = (DEVIATION**2 + squares - seen * mean**2) / (seen + 1)
    gain = np.where(seen > 0, np.maximum(mean - null, 0.0), 0.0)
    return np.minimum(gain / np.maximum(variance + gain**2, 1e-12), TRUNCATED / np.maximum(room, 1e-12))
