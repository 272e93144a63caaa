"""Comparisons that may be looked at again and again while numbers come in: which candidates are certainly not among the best.

Each of a finite population of units (a prompt with a seed, say) gives every candidate a bounded score. Units come in random order,
without replacement; what is asked is the mean over all of them, which a whole run would give. For each pair a bet is laid at every unit
that one candidate is better than the other; if it is not, the gambler's wealth is a nonnegative supermartingale, which ever exceeds
1 / delta with probability delta at most (Ville), however often one looks and whenever one stops. Waudby-Smith & Ramdas 2024, "Estimating
means of bounded random variables by betting", JRSS B 86 (arXiv 2010.09686), sections 4 and 5.
"""

import numpy as np

TRUNCATED = 0.75  # of the largest bet that cannot lose everything
PRIOR = 0.25  # of the largest deviation: what the first bets take a difference's to be


def beaten(scores: np.ndarray, population: np.ndarray, best: int, spread: float, level: float) -> np.ndarray:
    """How many candidates each is shown to be worse than, (candidate,), so that those with at least `best` may leave.

    scores: (unit, candidate) in the order of the units, NaN where a candidate was not measured. population: (candidate, candidate), of
    how many units in all both have a score. spread: the largest difference of two scores. With a probability of at least `level` none of
    the candidates with the `best` largest means over the population ever has so many.
    """
    return (log_wealth(scores, population, spread) >= np.log(claims(scores.shape[1], best) / (1 - level))).sum(0)


def claims(candidates: int, best: int) -> float:
    """By what a pair's error is divided, so that all claims that could make one of the best leave keep to the whole one.

    Who is r-th of the best leaves only where best - r + 1 of those below it are said to be better: the expected number of such claims,
    over that number, bounds the chance (Markov).
    """
    return sum((candidates - r) / (best - r + 1) for r in range(1, best + 1))


def log_wealth(scores: np.ndarray, population: np.ndarray, spread: float) -> np.ndarray:
    """Log of what betting has made of 1, (better, worse): of bets that the first has the larger mean over the population."""
    count = scores.shape[1]
    shape = (count, count)
    wealth, total, squares, seen = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row in scores / spread:
        difference = row[:, None] - row[None, :]
        both = ~np.isnan(difference)
        difference = np.where(both, difference, 0.0)
        left = np.maximum(population - seen, 1)
        null = -total / left  # the mean of what is left, were both means equal
        mean = total / (seen + 1)
        variance = (PRIOR**2 + squares) / (seen + 1) - mean**2
        gain = np.maximum(mean - null, 0.0)
        bet = np.minimum(gain / np.maximum(variance + gain**2, 1e-12), TRUNCATED / np.maximum(1 + null, 1e-12))
        with np.errstate(divide="ignore"):
            step = np.log1p(bet * (difference - null))
        wealth = np.where(both, np.where(null <= -1, np.inf, wealth + step), wealth)
        total, squares, seen = total + difference, squares + difference**2, seen + both
    return wealth
