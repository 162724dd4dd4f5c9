"""The set Ψ of permutations (section 3.1): few, and as different from one another as can be found.

"We iteratively include the permutation with the maximum Hamming distance to the already chosen ones": each new
permutation has the largest *smallest* distance to those chosen, ties go to the largest *mean* distance, and what
still ties is drawn by the seed. The paper leaves open how the distance to several is meant. The jigsaw solver that it
follows (Noroozi and Favaro, 2016) takes the largest mean distance alone. The mean over all pairs is then the same, but
of 1000 permutations of nine pieces the nearest two differ in 2 places; here they differ in 5.

Of frames, a permutation and its *reverse*, the same shuffling of the clip played backwards, may look alike. Ψ can be
chosen so that it holds at most one of each such pair, and is different from the reverses as well.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

_ENUMERATE_UP_TO = 9  # pieces; 9! = 362,880. For more pieces, candidates are drawn
_NUM_CANDIDATES = 400_000


@dataclass(frozen=True)
class HammingStatistics:
    """How far apart the permutations of a set are.

    Attributes:
        minimum: Smallest Hamming distance of any two, in pieces.
        mean: Mean Hamming distance over all pairs, in pieces.
    """

    minimum: int
    mean: float


@functools.lru_cache(maxsize=32)
def _greedy(num_pieces: int, num_permutations: int, seed: int, merge_reversed: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    candidates = _candidates(num_pieces, rng)  # [n, candidates]: a position is one long row
    if merge_reversed:  # one of each pair
        candidates = candidates.compress(_comes_first(candidates), axis=1)
    count = candidates.shape[1]
    if count < num_permutations:
        raise ValueError(
            f"num_permutations={num_permutations}: only {count} candidates are drawn for {num_pieces} pieces; "
            f"ask for at most that many"
        )
    order = np.arange(count)
    rng.shuffle(order)  # argmax takes the first of equals: in shuffled order, that is a seeded draw
    candidates = candidates.take(order, axis=1)  # unlike indexing, take leaves each row contiguous
    smallest = np.full(count, num_pieces, dtype=np.uint8)  # distance to the nearest chosen one
    total = np.zeros(count, np.min_scalar_type(num_pieces * num_permutations))  # sum of distances to the chosen ones
    chosen = np.empty(num_permutations, dtype=np.int64)
    for i in range(num_permutations):
        # the largest sum among those with the largest smallest distance; their sums are not 0, except at the start
        chosen[i] = np.argmax(total * (smallest == smallest.max()))
        distance = _distances(candidates, candidates[:, chosen[i]])
        if merge_reversed:
            np.minimum(distance, _distances(candidates, reverse_of(candidates[:, chosen[i]])), out=distance)
        np.minimum(smallest, distance, out=smallest)  # a chosen one has distance 0 from now on
        total += distance
    permutations = candidates[:, chosen].T.astype(np.int64)
    permutations.flags.writeable = False  # shared by all callers through the cache
    return permutations


def _distances(candidates: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Hamming distances (candidates,) uint8 of candidates (n, candidates) to one permutation (n,)."""
    distance = np.zeros(candidates.shape[1], dtype=np.uint8)
    for row, piece in zip(candidates, permutation, strict=True):
        distance += (row != piece).view(np.uint8)  # faster than adding booleans, which numpy would convert
    return distance


def _comes_first(candidates: np.ndarray) -> np.ndarray:
    """(candidates,) bool: which of candidates (n, candidates) are lexicographically before their reverses."""
    last = len(candidates) - 1
    # only the middle piece of an odd number is its own mirror image: the second position decides there
    first, second = (2 * candidates[k].astype(np.int64) - last for k in (0, 1))
    return np.where(first == 0, second, first) < 0


def _candidates(num_pieces: int, rng: np.random.Generator) -> np.ndarray:
    """All n! permutations in lexicographic order, or for large n a seeded sample of them; [n, candidates] uint8."""
    if num_pieces <= _ENUMERATE_UP_TO:
        return _all_permutations(num_pieces)
    table = rng.permuted(np.tile(np.arange(num_pieces, dtype=np.uint8), (_NUM_CANDIDATES, 1)), axis=1)
    rows = np.unique(table.view(np.dtype((np.void, num_pieces))))  # bytes compare as rows do, and faster
    return np.ascontiguousarray(rows.view(np.uint8).reshape(-1, num_pieces).T)


def _all_permutations(num_pieces: int) -> np.ndarray:
    """All n! permutations in lexicographic order, [n, n!] uint8, built up from those of fewer pieces."""
    table = np.zeros((1, 1), dtype=np.uint8)
    for n in range(2, num_pieces + 1):
        first = np.repeat(np.arange(n, dtype=np.uint8), table.shape[1])
        rest = np.tile(table, n)
        rest += rest >= first  # the n - 1 pieces other than the first, in order
        table = np.concatenate([first[None], rest])
    return table


def reverse_of(permutations: np.ndarray) -> np.ndarray:
    """Shuffle the mirrored sample, a clip played backwards, in the same way.

    Args:
        permutations: (..., n) int.

    Returns:
        (..., n) int: piece i becomes piece n - 1 - i. Hamming distance to the permutation: n, or n - 1 for odd n.
    """
    return permutations.shape[-1] - 1 - permutations


def maximally_different(
    num_pieces: int, num_permutations: int, seed: int = 0, *, merge_reversed: bool = False
) -> np.ndarray:
    """Choose Ψ greedily by maximum Hamming distance.

    All n! candidates compete for up to 9 pieces; for more, a seeded sample of 400,000 of them.

    Args:
        num_pieces: n, the number of pieces, 2 to 255.
        num_permutations: |Ψ|, 1 to n!, or to n! / 2 with `merge_reversed`.
        seed: Decides the first permutation and every tie.
        merge_reversed: Whether a permutation and its reverse count as one: Ψ then holds at most one of the two, and
            the distance of two is the smaller of those to the one and to the reverse of the other.

    Returns:
        (|Ψ|, n) int64, read-only, rows all different; row l is ψ_l, and position k of a shuffled sample holds
        piece ψ_l[k] (Eq. 1).

    Raises:
        ValueError: If there are not that many permutations, or fewer than two pieces.
    """
    if not 2 <= num_pieces <= 255:
        raise ValueError(f"num_pieces={num_pieces}: a sample must have 2 to 255 pieces to be shuffled")
    if num_permutations < 1:
        raise ValueError(f"num_permutations={num_permutations}: ask for at least 1")
    there_are = math.factorial(num_pieces) // (2 if merge_reversed else 1)
    if num_permutations > there_are:
        raise ValueError(
            f"num_permutations={num_permutations}: {num_pieces} pieces have only {there_are} permutations"
            f"{' that are not reverses of others' if merge_reversed else ''}; ask for at most that many, or cut "
            f"samples into more pieces"
        )
    return _greedy(num_pieces, num_permutations, seed, merge_reversed)


def hamming_statistics(permutations: np.ndarray) -> HammingStatistics:
    """Measure how far apart the permutations are.

    Args:
        permutations: (|Ψ|, n) int, at least two rows.

    Returns:
        Smallest and mean Hamming distance over all pairs of rows.

    Raises:
        ValueError: If there are fewer than two rows: one permutation has no distance.
    """
    count = len(permutations)
    if count < 2:
        raise ValueError(f"{count} permutation(s) given: a distance needs at least two")
    distance = np.zeros((count, count), dtype=np.int32)
    for position in permutations.T:
        distance += position[:, None] != position[None, :]
    pairs = distance[np.triu_indices(count, k=1)]
    return HammingStatistics(minimum=int(pairs.min()), mean=float(pairs.mean()))
