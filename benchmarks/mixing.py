"""How well an order by blocks mixes, and how often it goes back to a shard, beside a full shuffle.

A plan of 400 shards with 64 samples each; what a sample holds is its shard's own level (drawn once)
plus as much of its own: neighbours look alike, as ground does. The order alone is judged, no pixel
read, so the numbers are the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from benchmarks import common
from cubes.sampling import draws

SHARDS, EACH, BATCH = 400, 64, 32


def orders(mixes: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Return name -> (n,) the shard of each sample in turn."""
    block = np.repeat(np.arange(SHARDS), EACH)
    out = {"full": block[draws.shuffled(len(block), seed, 0)]}
    for mix in mixes:
        out[f"blocks, mix={mix}"] = block[draws.mixed(block, mix, seed, 0)[0]]
    return out


def distinct(shards: np.ndarray) -> float:
    """Return the mean number of shards that a batch is of."""
    batches = shards[: len(shards) // BATCH * BATCH].reshape(-1, BATCH)
    return float(np.mean([len(np.unique(b)) for b in batches]))


def noise(shards: np.ndarray, times: int = 100) -> float:
    """Return the standard deviation of batch means over that of independent samples."""
    rng, found = np.random.default_rng(0), []
    for _ in range(times):
        values = rng.standard_normal(SHARDS)[shards] + rng.standard_normal(len(shards))
        means = values[: len(values) // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
        found.append(means.std() / (values.std() / BATCH**0.5))
    return float(np.mean(found))


def drift(shards: np.ndarray, times: int = 100) -> float:
    """Return the correlation of the means of batches that follow each other."""
    rng, found = np.random.default_rng(0), []
    for _ in range(times):
        values = rng.standard_normal(SHARDS)[shards] + rng.standard_normal(len(shards))
        means = values[: len(values) // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
        found.append(np.corrcoef(means[:-1], means[1:])[0, 1])
    return float(np.mean(found))


def fetched(shards: np.ndarray, kept: int) -> float:
    """Return how often a shard is fetched, per epoch, by a cache that keeps `kept` of them."""
    cache: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for shard in shards.tolist():
        if shard not in cache:
            misses += 1
        cache[shard] = None
        cache.move_to_end(shard)
        if len(cache) > kept:
            cache.popitem(last=False)
    return misses / SHARDS


def main(arguments: Sequence[str] = ()) -> str:
    """Return the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixing")
    parser.add_argument("--mix", type=int, nargs="+", default=[1, 4, 16, 64, 128])
    chosen = parser.parse_args(list(arguments))
    rows = [
        (name, distinct(s), noise(s), drift(s), fetched(s, 80))
        for name, s in orders(chosen.mix).items()
    ]
    head = ("order", "shards in a batch", "noise of batch means (1: independent)",
            "correlation with the next batch", "fetches of a shard, cache of 80")  # fmt: skip
    title = f"Mixing: {SHARDS} shards of {EACH} samples, batches of {BATCH}"
    return common.table(title, head, rows, "deepsentinel", "numpy")


if __name__ == "__main__":
    common.show(main(sys.argv[1:]))
