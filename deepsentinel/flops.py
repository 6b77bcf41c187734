"""How many operations a Fusion takes, in closed form."""

from __future__ import annotations

from collections.abc import Mapping

from deepsentinel.model import STATIC, FusionConfig


def flops(
    config: FusionConfig,
    *,
    size: int,
    dates: Mapping[str, int],
    queries: Mapping[str, int] | None = None,
) -> int:
    """Return operations of matrix products and convolutions, one sample, forward; training is 3x.

    A block of width D over n tokens that see m keys is ``2 n (12 D^2 + 2 m D)``. `dates` and
    `queries` (of the decoder; None: embeddings only) are per group; ``static`` counts 1.
    """
    c, side = config, -(-size // config.patch)
    n, p, d = side**2, config.patch**2, config.width
    x, y = config.detail, config.neck

    def blocks(tokens: int, keys: int, depth: int) -> int:
        return depth * tokens * (12 * d * d + 2 * keys * d)

    total = 0
    for group, t in dates.items():
        timed = group != STATIC
        k = c.pools if timed else 1
        stem = len(c.channels(group)) + len(c.layers(group)) + 7
        total += n * t * p * c.stem * (stem + d) + 6 * t * d
        total += n * blocks(t, t, c.depth_t if timed else 0)
        total += n * p * (5 * len(c.channels(group)) + len(c.layers(group))) * x
        total += n * p * 5 * len(c.channels(group)) * c.parts[0] * timed
        total += n * k * (t * d + t * d + d * d + t * p * (c.stem + 1) + p * (c.stem + 1) * x)
    joint = (1 + len(dates)) * n
    total += blocks(joint, joint, c.depth_f)
    total += 2 * n * p * (2 * x * y + 9 * y * y) + n * d * c.dims
    total += n * p * x * c.parts[1]
    if queries is None:
        return 2 * (total + n * d * c.dims)
    seen = {g: t for g, t in dates.items() if g != STATIC}
    for group, q in queries.items():
        total += q * d * (6 + 2 * y) + n * p * c.dims * y + n * d * d
        total += n * q * d * (10 * d + y) + n * sum(seen.values()) * d * (2 * d + 2 * q)
        for t in seen.values():
            total += n * q * (t * c.heads + t * p * (c.stem + 1) + p * c.stem * y)
        total += n * q * p * y * len(c.channels(group))
    return 2 * total
