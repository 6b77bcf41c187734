"""Fusion: one model of a place from whatever radar, coherence, optics and terrain there is of it.

The whole model lives in this file and needs torch alone (safetensors only to save and load), so it
may be copied into another project. What happens to a sample:

1. *stem*: every pixel of every date becomes S numbers (one linear map over all layers of a group,
   which is the sum of one map per layer, plus a flag per layer that says whether it is there);
2. *dates*: the pixels of a p x p patch become one token per date; attention over the real dates;
   K learned poolings turn the series into one token per patch, and the same K weights pool the
   stem's pixels, so that detail at pixel size survives (as in U-TAE, Garnot and Landrieu 2021);
3. *place*: joint attention over the patches of all groups and one place token per patch;
4. *embedding*: E numbers per pixel, per patch and per sample, whose first 16, 32, 64 are usable by
   themselves (Matryoshka, Kusupati et al. 2022); M of a pixel's are measured: the principal
   components of its order statistics over the dates, as `fit` finds them before the first step;
5. *decoder*: asked for a group and a date, it attends over the dates seen and says what that group
   would have shown then, pixel by pixel: ``predict``.

A pixel, date, pair or sensor that is missing is an *absent* token: its values are replaced before
the first multiplication and its token is no key of any attention, so they cannot change a result.

Shape suffixes: B samples, T dates, C channels, L layers, H W pixels, N patches, P pixels of a
patch, S stem, F statistics, D width, K poolings, G groups, Q queried dates, E embedding (M of it
measured), A heads, R rotary pairs.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = Mapping[str, Mapping[str, Tensor]]
"""Group -> ``x`` (B,T,C,H,W) float32, ``valid`` (B,T,L,H,W) bool and, where they apply, ``clear``
(B,T,1,H,W) bool, ``days`` (B,T) days since 2000-01-01, ``present`` (B,T) bool. The group
``static`` has no T. A group that is missing altogether is an absent key."""

FORMAT_VERSION = 3
STATIC = "static"
YEAR = 365.2425
DIMS = (16, 32, 64, 128)
"""Sizes at which an embedding may be cut."""
SIZES: dict[str, dict[str, int]] = {
    name: dict(
        zip(("width", "depth_t", "depth_f", "heads", "stem", "detail", "neck"), row, strict=True)
    )
    for name, row in {
        "nano": (64, 1, 2, 4, 16, 96, 32),
        "tiny": (192, 2, 6, 6, 48, 96, 48),
        "small": (384, 2, 8, 6, 64, 128, 64),
        "base": (768, 3, 9, 12, 64, 128, 96),
    }.items()
}


class ModelError(ValueError):
    """Says what a model cannot take: the value, what is allowed, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Everything that decides a Fusion's weights' shapes and what its inputs mean."""

    groups: Mapping[str, Mapping[str, Any]]
    """Group -> ``{"layers": [row, ...]}``; a row has ``name``, ``channels`` (list of labels) and
    what else defines its numbers: ``kind``, ``units``, ``calibration``, ``mean``, ``std``. A row
    with ``aux: true`` (incidence) is used but does not make a date present."""
    width: int = 64
    """D, of tokens."""
    depth_t: int = 1
    """Blocks of attention over dates, per group."""
    depth_f: int = 2
    """Blocks of joint attention over patches and groups."""
    heads: int = 4
    """Attention heads; ``width / heads`` is a multiple of 4 (rotary codes of y and x)."""
    patch: int = 8
    """p, edge of a patch in pixels."""
    stem: int = 16
    """S, numbers per pixel and date."""
    pools: int = 4
    """K, temporal poolings per group."""
    detail: int = 96
    """Channels at pixel size, before the embedding."""
    neck: int = 32
    """Channels of the convolutions at pixel size and of the decoder."""
    dims: int = 128
    """E, of the embedding."""
    measured: float = 0.9
    """Share of the first numbers, and at most of all, that are measured: components of order
    statistics, until there are no more. With none a linear probe on the simulated demo lost to
    the statistics themselves (mIoU 0.76 and 0.84)."""
    min_usable: float = 0.25
    """A patch with a smaller usable fraction at a date has no token there."""
    reach: int | None = None
    """Joint attention reaches this many patches in y and x; None: all. A finite reach makes the
    embedding of a place independent of the size of the window it was computed in."""
    normaliser: Mapping[str, Any] = field(default_factory=dict)
    """The statistics that made the inputs, as plain JSON; carried, not read, by the model."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: recipe hash, data, software versions."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot work."""
        if self.width % (4 * self.heads):
            raise ModelError(
                f"width {self.width} is not a multiple of 4 x heads ({4 * self.heads}): rotary "
                "codes of y and x need head sizes in fours"
            )
        if not 0 <= self.measured < 1:
            raise ModelError(f"measured={self.measured}: a share from 0 to below 1")
        if not self.groups:
            raise ModelError("a Fusion needs at least one group of layers, e.g. s1 or s2")

    @property
    def parts(self) -> tuple[int, int]:
        """How many of an embedding's numbers are measured, and how many learned."""
        known = sum(5 * len(self.channels(g)) for g in self.groups if g != STATIC)
        m = min(int(self.measured * self.dims), known)
        return m, self.dims - m

    @staticmethod
    def sized(size: str, groups: Mapping[str, Mapping[str, Any]], **other: Any) -> FusionConfig:
        """Return the configuration of a named size: nano, tiny, small or base.

        Raises
        ------
        ModelError
            The size is unknown.
        """
        if size not in SIZES:
            near = difflib.get_close_matches(size, SIZES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"unknown model size {size!r}: {', '.join(SIZES)}{hint}")
        return FusionConfig(groups=groups, **{**SIZES[size], **other})

    def layers(self, group: str) -> list[Mapping[str, Any]]:
        """Return the rows of a group, in the order of its channels."""
        return list(self.groups[group]["layers"])

    def channels(self, group: str) -> list[str]:
        """Return ``layer:channel`` labels of a group's channels, in order."""
        return [f"{r['name']}:{c}" for r in self.layers(group) for c in r["channels"]]


def _rotary(position: Tensor, periods: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of 2 pi position / period, (..., R) float32."""
    angle = position[..., None].float() * (2 * math.pi / periods)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, code: tuple[Tensor, Tensor]) -> Tensor:
    """Return x (..., 2R) with its R pairs rotated (Su et al. 2021)."""
    cos, sin = code
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def _periods(count: int, shortest: float, longest: float) -> Tensor:
    return torch.logspace(math.log10(shortest), math.log10(longest), count)


def season(days: Tensor) -> Tensor:
    """Return the time of year as three harmonics, (..., 6) float32.

    The year itself is left out on purpose: a model trained on one year would meet a number it has
    never seen in the next. Differences between dates reach the attention as rotary codes.
    """
    phase = (2 * math.pi / YEAR) * days.float()[..., None]
    k = torch.arange(1, 4, device=days.device)
    return torch.cat([(phase * k).sin(), (phase * k).cos()], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and rotary codes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, code: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Return the mixed tokens; x (M, tokens, D), mask True where a key may be seen."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _rotate(self.norm_q(q.float()), code), _rotate(self.norm_k(k.float()), code)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm transformer block with an MLP of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_a, self.norm_m = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, code: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Return the tokens (M, tokens, D) after attention and MLP."""
        x = x + self.attention(self.norm_a(x), code, mask)
        out: Tensor = x + self.mlp(self.norm_m(x))
        return out


class Series(NamedTuple):
    """What one group says of each patch: its dates, their pooling, and the pixels behind."""

    pixels_BNTPS: Tensor
    observed_BNTP: Tensor
    tokens_BNTD: Tensor
    seen_BNT: Tensor
    days_BT: Tensor
    pooled_BND: Tensor
    detail_BNPX: Tensor
    statistics_BNPF: Tensor
    ever_BNPL: Tensor


class GroupEncoder(nn.Module):
    """Stem, attention over dates and poolings of one group of layers."""

    def __init__(self, config: FusionConfig, group: str) -> None:
        super().__init__()
        c, rows = config, config.layers(group)
        self.patch, self.min_usable, self.timed = c.patch, c.min_usable, group != STATIC
        self.pools = c.pools if self.timed else 1
        layer_of = [i for i, r in enumerate(rows) for _ in r["channels"]]
        self.n_channels, self.n_layers = len(layer_of), len(rows)
        self.register_buffer("layer_of", torch.tensor(layer_of), persistent=False)
        makes_date = torch.tensor([not r.get("aux", False) for r in rows])
        self.register_buffer("makes_date", makes_date, persistent=False)
        # Values, one flag per layer, the time of year, and a flag that drives an unobserved pixel
        # through the GELU to exactly 0: one matrix product in place of four passes over memory.
        self.stem = nn.Linear(self.n_channels + self.n_layers + 7, c.stem)
        self.embed = nn.Linear(c.stem * c.patch**2, c.width)
        self.embed_time = nn.Linear(6, c.width, bias=False)
        depth = c.depth_t if self.timed else 0
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(depth))
        self.norm = nn.LayerNorm(c.width)
        self.score = nn.Linear(c.width, self.pools)
        self.merge = nn.Linear(self.pools * c.width, c.width)
        self.detail = nn.Linear(self.pools * (c.stem + 1), c.detail, bias=False)
        self.statistics = nn.Linear(5 * self.n_channels + self.n_layers, c.detail, bias=False)
        # From below one S1 repeat cycle to a decade.
        periods = _periods(c.width // c.heads // 2, 8.0, 4000.0)
        self.register_buffer("periods", periods, persistent=False)

    def forward(self, data: Mapping[str, Tensor]) -> Series:
        """Return the series of every patch; see `Inputs` for `data`."""
        x_BTCHW, usable_BTLHW = data["x"], usable(data)
        if not self.timed:
            x_BTCHW, usable_BTLHW = x_BTCHW[:, None], usable_BTLHW[:, None]
        days_BT = _days(data, x_BTCHW)
        b, t = x_BTCHW.shape[:2]
        layer_of, makes_date = self.get_buffer("layer_of"), self.get_buffer("makes_date")
        # where(), not a product: a NaN or garbage under the mask must not survive.
        x = torch.where(usable_BTLHW[:, :, layer_of], x_BTCHW, 0.0)
        ever = usable_BTLHW.any(1).to(x.dtype)
        known = torch.cat([order_statistics(x, usable_BTLHW[:, :, layer_of]), ever], 1)
        known_BNPF = patchify(known[:, None], self.patch)[:, :, 0]
        observed = usable_BTLHW[:, :, makes_date].any(2, keepdim=True)
        time = season(days_BT) * float(self.timed)
        time_BTCHW = time[..., None, None].expand(-1, -1, -1, *x.shape[-2:])
        x = torch.cat([x, usable_BTLHW.to(x.dtype), time_BTCHW, observed.to(x.dtype)], 2)
        x_BNTPC = patchify(x, self.patch)
        observed_BNTP = x_BNTPC[..., -1]
        seen_BNT = observed_BNTP.mean(-1) >= self.min_usable
        observed_BNTP = observed_BNTP * seen_BNT[..., None]
        x_BNTPC[..., -1] = 1 - observed_BNTP
        gate = F.pad(self.stem.weight[:, :-1], (0, 1), value=-1e3)
        pixels_BNTPS = F.gelu(F.linear(x_BNTPC, gate, self.stem.bias))
        tokens = self.embed(pixels_BNTPS.flatten(-2)) + self.embed_time(time)[:, None]
        n = tokens.shape[1]
        tokens = tokens.flatten(0, 1)
        code = _rotary(days_BT[:, None].expand(b, n, t).flatten(0, 1), self.get_buffer("periods"))
        code = (code[0][:, None], code[1][:, None])
        # A patch without any date attends to itself: no empty softmax; its result is never read.
        keys = (seen_BNT | ~seen_BNT.any(-1, keepdim=True)).flatten(0, 1)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, code, keys)
        tokens_BNTD = self.norm(tokens).unflatten(0, (b, n)) * seen_BNT[..., None]
        score = self.score(tokens_BNTD).float().masked_fill(~seen_BNT[..., None], -1e9)
        weights = (score.softmax(2) * seen_BNT[..., None]).to(tokens.dtype)
        w_BNKT = weights.transpose(2, 3)
        pooled_BND = self.merge((w_BNKT @ tokens_BNTD).flatten(2))
        mass = w_BNKT @ observed_BNTP.to(w_BNKT.dtype)
        summed = (w_BNKT @ pixels_BNTPS.flatten(-2)).reshape(*mass.shape, -1)
        mean = summed / (mass + 1e-3)[..., None]
        detail = torch.cat([mean, mass[..., None]], -1).transpose(2, 3).flatten(3)
        return Series(
            pixels_BNTPS, observed_BNTP, tokens_BNTD, seen_BNT, days_BT, pooled_BND,
            self.detail(detail) + self.statistics(known_BNPF),
            known_BNPF[..., : 5 * self.n_channels], known_BNPF[..., 5 * self.n_channels :],
        )  # fmt: skip


def usable(data: Mapping[str, Tensor]) -> Tensor:
    """Return what of a group is valid, clear and present, bool (B,T,L,H,W); static (B,L,H,W)."""
    mask = data["valid"]
    if "clear" in data:
        mask = mask & data["clear"]
    return mask & data["present"][:, :, None, None, None] if "present" in data else mask


def _days(data: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if "days" not in data:
        return x.new_zeros(x.shape[:2])
    days = data["days"].float()
    return torch.where(data["present"], days, 0.0) if "present" in data else days


def rotation(rows: int, columns: int) -> Tensor:
    """Return a fixed random (rows, columns) matrix, orthogonal as far as its shape lets it be.

    With no more rows than columns nothing is lost; with more, distances are nearly kept (Johnson
    and Lindenstrauss 1984). Inputs of variance 1 give outputs of about 1.
    """
    shape = (max(rows, columns), min(rows, columns))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    q = torch.linalg.qr(noise)[0]
    scale: float = max(1.0, columns / max(rows, 1)) ** 0.5
    return torch.mul(q if rows >= columns else q.T.contiguous(), scale)


def order_statistics(x_BTCHW: Tensor, usable_BTCHW: Tensor) -> Tensor:
    """Return mean, deviation and 10, 50 and 90 % quantiles over usable dates, (B,5C,H,W).

    Zero where a pixel was never seen. A median passes over the clouds that a mask has missed, and
    no average of learned features does that at once: without, the demo's probe had 0.63 mIoU.
    """
    n = usable_BTCHW.sum(1)
    safe = n.clamp(min=1)
    mean = torch.where(usable_BTCHW, x_BTCHW, 0.0).sum(1) / safe
    off = torch.where(usable_BTCHW, x_BTCHW - mean[:, None], 0.0)
    parts = [mean, (off.square().sum(1) / safe + 1e-12).sqrt()]
    dates = torch.where(usable_BTCHW, x_BTCHW, 1e9).unbind(1)
    ordered = torch.stack(_sorted(dates), 1)
    for q in (0.1, 0.5, 0.9):
        place = (q * (safe - 1)).round().long()
        parts.append(ordered.gather(1, place[:, None])[:, 0])
    return torch.cat([torch.where(n > 0, v, 0.0) for v in parts], 1).clamp(-8, 8)


def _sorted(values: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors sorted elementwise: Batcher's network (Knuth 3, 5.2.2 M), any number.

    Over 12 dates on a CPU this took 10 ms where torch.sort took 40-56.
    """
    x, n, p = list(values), len(values), 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        a, b = x[i], x[i + k]
                        x[i], x[i + k] = torch.minimum(a, b), torch.maximum(a, b)
            k //= 2
        p *= 2
    return x


def patchify(x: Tensor, p: int) -> Tensor:
    """Return (B,T,C,H,W) as patches (B,N,T,p*p,C); H and W are multiples of p."""
    b, t, c, h, w = x.shape
    y = x.reshape(b, t, c, h // p, p, w // p, p).permute(0, 3, 5, 1, 4, 6, 2)
    return y.reshape(b, (h // p) * (w // p), t, p * p, c)


def unpatchify(x: Tensor, p: int, width: int) -> Tensor:
    """Return patches (B,N,T,p*p,C) of an image `width` pixels wide as (B,T,C,H,W)."""
    b, n, t, _, c = x.shape
    w = width // p
    y = x.reshape(b, n // w, w, t, p, p, c).permute(0, 3, 6, 1, 4, 2, 5)
    return y.reshape(b, t, c, (n // w) * p, width)


class Encoded(NamedTuple):
    """A sample after the encoder: what the decoder may look at."""

    series: dict[str, Series]
    place_BND: Tensor
    embedding_BNPE: Tensor
    known_BN: Tensor
    """True where a patch was observed by any group with dates."""
    size: tuple[int, int]
    padded: tuple[int, int]


class Detail(nn.Module):
    """Residual 3 x 3 convolution at pixel size: neighbours average out speckle."""

    def __init__(self, channels: int, neck: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.down = nn.Linear(channels, neck)
        self.conv = nn.Conv2d(neck, neck, 3, padding=dilation, dilation=dilation)
        self.out = nn.Linear(neck, channels)

    def forward(self, x_BHWX: Tensor) -> Tensor:
        """Return pixels (B,H,W,X) with what their neighbourhood says added."""
        y = self.conv(self.down(self.norm(x_BHWX)).permute(0, 3, 1, 2))
        out: Tensor = x_BHWX + self.out(F.gelu(y.permute(0, 2, 3, 1)))
        return out


class Decoder(nn.Module):
    """Says what a group would have shown at a date, from the embedding and the dates seen."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        c, timed = config, [g for g in config.groups if g != STATIC]
        self.patch, self.heads = c.patch, c.heads
        head = c.width // c.heads
        self.ask = nn.ParameterDict({g: nn.Parameter(torch.randn(c.width) * 0.02) for g in timed})
        self.tell = nn.ParameterDict({g: nn.Parameter(torch.randn(c.width) * 0.02) for g in timed})
        self.time = nn.Linear(6, c.width)
        self.place = nn.Linear(c.width, c.width)
        self.norm_ask = nn.LayerNorm(c.width)
        self.q, self.kv = nn.Linear(c.width, c.width), nn.Linear(c.width, 2 * c.width)
        self.norm_q, self.norm_k = nn.RMSNorm(head), nn.RMSNorm(head)
        self.out = nn.Linear(c.width, c.width)
        self.norm_mlp = nn.LayerNorm(c.width)
        self.mlp = nn.Sequential(
            nn.Linear(c.width, 4 * c.width), nn.GELU(), nn.Linear(4 * c.width, c.width)
        )
        # Which heads' dates the pixels of each group are averaged by.
        self.mix = nn.ParameterDict({g: nn.Parameter(torch.zeros(c.heads)) for g in timed})
        self.pixel = nn.ModuleDict({g: nn.Linear(c.stem, c.neck, bias=False) for g in timed})
        self.embedding = nn.Linear(c.dims, c.neck)
        self.film = nn.Linear(c.width, 2 * c.neck)
        self.context = nn.Linear(c.width, c.neck)
        self.head = nn.ModuleDict({g: nn.Linear(c.neck, len(c.channels(g))) for g in timed})
        self.summary = nn.ModuleDict({g: nn.Linear(c.dims, 5 * len(c.channels(g))) for g in timed})
        self.register_buffer("periods", _periods(head // 2, 8.0, 4000.0), persistent=False)

    def forward(
        self, encoded: Encoded, group: str, days_BQ: Tensor, *, dims: int | None = None
    ) -> Tensor:
        """Return the group's channels at the dates asked for, (B,N,Q,P,C).

        With `dims`, the first `dims` numbers of the embedding and the date are all there is to go
        by, which is what makes an embedding hold the series.
        """
        time_BQD = self.time(season(days_BQ)) + self.ask[group]
        scale, shift = self.film(time_BQD)[:, None, :, None].chunk(2, -1)
        weight = self.embedding.weight[:, :dims]
        base_BNPX = F.linear(encoded.embedding_BNPE[..., :dims], weight, self.embedding.bias)
        answer = torch.addcmul(shift, base_BNPX[:, :, None], 1 + scale)
        if dims is None:
            answer = answer + self._looked_up(encoded, time_BQD, days_BQ)
        out: Tensor = self.head[group](F.gelu(answer))
        return out

    def summarise(self, embedding: Tensor, group: str, *, dims: int | None = None) -> Tensor:
        """Return `order_statistics` of the group's whole series as told by an embedding (...,E).

        (..., 5C), linear in the first `dims` numbers, so that a linear probe may find them there.
        """
        weight, bias = (self.summary.get_parameter(f"{group}.{k}") for k in ("weight", "bias"))
        return F.linear(embedding[..., :dims], weight[:, :dims], bias)

    def _looked_up(self, encoded: Encoded, time_BQD: Tensor, days_BQ: Tensor) -> Tensor:
        """Return what the dates seen add to the embedding's answer, (B,N,Q,P,X)."""
        ask_BNQD = time_BQD[:, None] + self.place(encoded.place_BND)[:, :, None]
        answer, weights = self._attend(encoded, ask_BNQD, days_BQ)
        answer = answer + self.mlp(self.norm_mlp(answer))
        out: Tensor = self.context(answer)[:, :, :, None]
        start = 0
        for name, mix in self.mix.items():
            if name not in encoded.series:
                continue
            s = encoded.series[name]
            first, start = start, start + s.seen_BNT.shape[2]
            w_BNQT = torch.einsum("bnaqt,a->bnqt", weights[..., first:start], mix.softmax(0))
            mass = w_BNQT @ s.observed_BNTP.to(w_BNQT.dtype)
            # A pixel missing at an attended date is filled by the dates at which it was seen.
            fill = w_BNQT.sum(-1, keepdim=True) / (mass + 1e-3)
            mean = (w_BNQT @ s.pixels_BNTPS.flatten(-2)).reshape(*mass.shape, -1)
            out = out + self.pixel[name](mean * fill[..., None])
        return out

    def _attend(self, encoded: Encoded, ask: Tensor, days_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries after attention over the dates seen, and the weights (B,N,A,Q,T)."""
        names = [g for g in self.tell if g in encoded.series]
        tokens = torch.cat([encoded.series[g].tokens_BNTD + self.tell[g] for g in names], 2)
        seen = torch.cat([encoded.series[g].seen_BNT for g in names], 2)
        days = torch.cat([encoded.series[g].days_BT for g in names], 1)
        periods = self.get_buffer("periods")
        q = self.norm_q(self.q(self.norm_ask(ask)).unflatten(-1, (self.heads, -1)).float())
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        q_code, k_code = _rotary(days_BQ, periods), _rotary(days, periods)
        q = _rotate(q, (q_code[0][:, None, :, None], q_code[1][:, None, :, None]))
        k = _rotate(
            self.norm_k(k.float()), (k_code[0][:, None, :, None], k_code[1][:, None, :, None])
        )
        score = q.transpose(2, 3) @ k.permute(0, 1, 3, 4, 2) / math.sqrt(q.shape[-1])
        mask = seen[:, :, None, None]
        weights = score.float().masked_fill(~mask, -1e9).softmax(-1) * mask
        weights = weights.to(v.dtype)
        mixed = (weights @ v.transpose(2, 3)).transpose(2, 3).flatten(3)
        return ask + self.out(mixed), weights


class Fusion(nn.Module):
    """The model; see the top of this file. Built from a `FusionConfig`, on any device."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = c = config
        self.groups = nn.ModuleDict({g: GroupEncoder(c, g) for g in c.groups})
        self.kind = nn.ParameterDict(
            {g: nn.Parameter(torch.randn(c.width) * 0.02) for g in [*c.groups, "place"]}
        )
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.depth_f))
        self.norm = nn.LayerNorm(c.width)
        self.smooth = nn.ModuleList(Detail(c.detail, c.neck, d) for d in (1, 2))
        self.to_patch = nn.Linear(c.width, c.dims)
        self.to_dense = nn.Linear(c.detail, c.parts[1])
        # Until `fit` has seen data: a random rotation, the same for every model of these layers.
        self.counts = {g: 5 * len(c.channels(g)) for g in c.groups if g != STATIC}
        self.register_buffer("measure", rotation(sum(self.counts.values()), c.parts[0]))
        self.register_buffer("centre", torch.zeros(sum(self.counts.values())))
        # Measured and learned numbers alternate by their share, so that a short embedding has both.
        share = [max(c.measured, 1e-6), 1 - c.measured]
        rank = torch.cat([(torch.arange(m) + 0.5) / s for m, s in zip(c.parts, share, strict=True)])
        self.register_buffer("order", rank.argsort(stable=True), persistent=False)
        self.decoder = Decoder(c)
        periods = _periods(c.width // c.heads // 4, 4.0, 512.0)
        self.register_buffer("periods", periods, persistent=False)
        self.apply(_init)

    @property
    def normaliser(self) -> Any:
        """What makes this model's inputs of stored integers: `deepsentinel.Normaliser`."""
        if not self.config.normaliser:
            raise ModelError("this model was made without statistics; give inputs normalised")
        # looked up only here: this file by itself imports with torch alone
        return import_module("deepsentinel.loading.contract").normaliser(self)

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the embeddings of a batch.

        Returns
        -------
        dict
            ``dense`` (B,E,H,W), ``patch`` (B,E,h,w) and ``pooled`` (B,E), float; each vector has
            mean 0 and variance 1 over E. Patches nobody observed are filled from neighbours.

        Raises
        ------
        ModelError
            The inputs have no known group, or other channels than the model's.
        """
        e = self.encode(inputs)
        (h, w), p = e.padded, self.config.patch
        dense = unpatchify(e.embedding_BNPE[:, :, None], p, w)[:, 0]
        patch_BNE = self.to_patch(e.place_BND)
        known = e.known_BN[..., None].to(patch_BNE.dtype)
        pooled = (patch_BNE * known).sum(1) / known.sum(1).clamp(min=1)
        grid = _unit(patch_BNE).transpose(1, 2).reshape(len(patch_BNE), -1, h // p, w // p)
        dense = dense[..., : e.size[0], : e.size[1]]
        return {"dense": dense, "patch": grid, "pooled": _unit(pooled)}

    def predict(self, inputs: Inputs, query: Mapping[str, Any]) -> Tensor:
        """Return what a group would have shown at the dates asked for, in normalised units.

        `inputs` may lack the group asked for; `query` is ``{"group": "s2", "days": (B,Q)}``, days
        since 2000-01-01. The result is (B,Q,C,H,W), C as in ``config.channels(group)``.

        Raises
        ------
        ModelError
            The group cannot be queried.
        """
        group = query["group"]
        if group not in self.decoder.head:
            known = ", ".join(self.decoder.head)
            raise ModelError(f"cannot predict group {group!r}; this model predicts {known}")
        e = self.encode(inputs)
        return self.image(e, self.decoder(e, group, query["days"].float()))

    def image(self, encoded: Encoded, x_BNQPC: Tensor) -> Tensor:
        """Return the decoder's patches as images (B,Q,C,H,W)."""
        height, width = encoded.size
        image = unpatchify(x_BNQPC, self.config.patch, encoded.padded[1])
        return image[..., :height, :width]

    def encode(self, inputs: Inputs) -> Encoded:
        """Return the encoder's state: series per group, place tokens, dense embedding."""
        p = self.config.patch
        names = self._check(inputs)
        size = inputs[names[0]]["x"].shape[-2:]
        pad = (-size[0] % p, -size[1] % p)
        padded = (size[0] + pad[0], size[1] + pad[1])
        series: dict[str, Series] = {g: self.groups[g](_padded(inputs[g], pad)) for g in names}
        timed = [series[g] for g in names if g != STATIC]
        here = torch.stack([series[g].seen_BNT.any(-1) for g in names], 1)
        tokens = torch.stack([series[g].pooled_BND + self.kind[g] for g in names], 1)
        n_here = here.sum(1)[..., None].clamp(min=1)
        place = (tokens * here[..., None]).sum(1) / n_here + self.kind["place"]
        place_BND = self.norm(self._join(place, tokens, here, padded[1] // p))
        detail = torch.stack([series[g].detail_BNPX for g in names]).sum(0)
        image = unpatchify(detail[:, :, None], p, padded[1])[:, 0].permute(0, 2, 3, 1)
        for layer in self.smooth:
            image = layer(image)
        fine = patchify(image.permute(0, 3, 1, 2)[:, None], p)[:, :, 0]
        seen = torch.stack([s.observed_BNTP.amax(2) for s in timed]).amax(0)
        both = torch.cat([self._measured(series), _unit(self.to_dense(fine))], -1)
        # Only ground that nobody saw is told by its patch: told so everywhere, what the patch knew
        # of the training world's map cost the probe 0.007 mIoU on the other one.
        hole = self.to_patch(place_BND)[:, :, None] * (1 - seen[..., None])
        dense_BNPE = _unit(both[..., self.get_buffer("order")] + hole)
        known = torch.stack([s.seen_BNT.any(-1) for s in timed]).any(0)
        return Encoded(series, place_BND, dense_BNPE, known, (size[0], size[1]), padded)

    def _measured(self, series: Mapping[str, Series]) -> Tensor:
        """Return the components of the statistics of what was seen of each pixel, (B,N,P,M)."""
        sizes = list(self.counts.values())
        parts = (torch.split(self.get_buffer(n), sizes) for n in ("measure", "centre"))
        known = []
        for g, basis, centre in zip(self.counts, *parts, strict=True):
            if g in series:
                # What was never seen adds nothing, as a group that is not there.
                of = self.groups[g].get_buffer("layer_of").repeat(5)
                told = series[g].statistics_BNPF.float() - centre
                known.append((told * series[g].ever_BNPL[..., of]) @ basis)
        return torch.stack(known).sum(0)

    def statistics(self, inputs: Inputs) -> Tensor:
        """Return `order_statistics` of the pixels that every group with dates saw, (pixels,F)."""
        parts, seen = [], []
        for g in self.counts:
            if g not in inputs:
                return torch.zeros(0, sum(self.counts.values()))
            ok = usable(inputs[g])[:, :, self.groups[g].get_buffer("layer_of")]
            x = torch.where(ok, inputs[g]["x"], 0.0)
            parts.append(order_statistics(x, ok).permute(0, 2, 3, 1))
            seen.append(ok.any(1).all(1))
        return torch.cat(parts, -1)[torch.stack(seen).all(0)]

    @torch.no_grad()
    def fit(self, statistics: Tensor) -> None:
        """Take the basis of the measured numbers from `statistics` (pixels,F) of training data.

        Principal components (Hotelling 1933), strongest first, each divided by the fourth root of
        its variance: as they are, int8 loses the weak ones; made equal, noise counts as much as
        signal. On the demo, 64 numbers of int8 had a probe's mIoU of 0.862 so, 0.857 and 0.856
        otherwise, and 0.844 of the random rotation.
        """
        x = statistics.double()
        centre = x.mean(0)
        variance, basis = torch.linalg.eigh(torch.cov((x - centre).T))
        variance = variance.flip(0).clamp(min=1e-4)
        basis = basis.flip(1)
        # a component and its negative are the same: the largest part is positive
        basis = basis * torch.gather(basis, 0, basis.abs().argmax(0, keepdim=True)).sign()
        m = self.config.parts[0]
        scaled = (basis / variance**0.25)[:, :m] / variance[:m].sqrt().mean().sqrt()
        self.get_buffer("measure").copy_(scaled)
        self.get_buffer("centre").copy_(centre)

    def _join(self, place: Tensor, tokens_BGND: Tensor, here_BGN: Tensor, width: int) -> Tensor:
        """Return place tokens (B,N,D) after joint attention with the groups' tokens."""
        b, g, n, _ = tokens_BGND.shape
        x = torch.cat([place[:, None], tokens_BGND], 1).flatten(1, 2)
        there = torch.cat([here_BGN.new_ones(b, 1, n), here_BGN], 1).flatten(1)
        index = torch.arange(n, device=x.device).repeat(g + 1)
        yx = torch.stack([index // width, index % width])
        cos, sin = _rotary(yx, self.get_buffer("periods"))
        code = (torch.cat([*cos], -1), torch.cat([*sin], -1))
        mask = there[:, None, None]
        if self.config.reach is not None:
            far = (yx[:, :, None] - yx[:, None, :]).abs().amax(0)
            mask = mask & (far <= self.config.reach)
        for block in self.blocks:
            x = block(x, code, mask)
        return x[:, :n]

    def _check(self, inputs: Inputs) -> list[str]:
        names = [g for g in self.config.groups if g in inputs]
        if not set(names) - {STATIC}:
            raise ModelError(
                f"inputs have {', '.join(inputs) or 'nothing'}; this model needs at least one of "
                f"{', '.join(self.counts)}"
            )
        for g in names:
            have, want = inputs[g]["x"].shape[-3], len(self.config.channels(g))
            if have != want:
                labels = ", ".join(self.config.channels(g))
                raise ModelError(
                    f"group {g!r} has {have} channels; this model has {want}: {labels}"
                )
        return names

    def save_pretrained(self, path: str | Path) -> Path:
        """Return the folder written: ``config.json`` and ``model.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        body = {"format": FORMAT_VERSION, "model": "Fusion", **asdict(self.config)}
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
        return folder

    @staticmethod
    def from_pretrained(
        path: str | Path, *, groups: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Fusion:
        """Return the model saved in a folder, in evaluation mode, on the CPU.

        `groups` are the layers that it is to be used on; it refuses where they differ.

        Raises
        ------
        ModelError
            No such folder, a broken one, another format, or other layers, units or calibration.
        """
        from safetensors import SafetensorError as Broken
        from safetensors.torch import load_file

        folder = Path(path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                inner = folder / "model"
                hint = f"; did you mean {inner}?" if (inner / name).is_file() else ""
                raise ModelError(f"{folder} has no {name}: not a folder of save_pretrained{hint}")
        try:
            body = dict(json.loads((folder / "config.json").read_text()))
            version = int(body.pop("format"))
            if version == FORMAT_VERSION:
                model = Fusion(FusionConfig(**{k: v for k, v in body.items() if k != "model"}))
                model.load_state_dict(load_file(folder / "model.safetensors"))
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, Broken) as why:
            raise ModelError(
                f"{folder} holds no whole Fusion of save_pretrained ({type(why).__name__}: "
                f"{' '.join(str(why).split())[:200]}): copy it again, or train again"
            ) from None
        if version != FORMAT_VERSION:
            do = "upgrade deepsentinel" if version > FORMAT_VERSION else "train it again"
            raise ModelError(f"{folder} has format {version}, this reads {FORMAT_VERSION}: {do}")
        if groups is not None:
            check_groups(model.config.groups, groups)
        return model.eval()


def check_groups(
    known: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise ModelError, naming the first difference, unless `given` layers are those `known`.

    Fewer groups or layers are fine; those there need the same channels, units, calibration, kind.
    """
    for group, content in given.items():
        rows = {r["name"]: r for r in known.get(group, {"layers": []})["layers"]}
        for row in content["layers"]:
            if row["name"] not in rows:
                near = difflib.get_close_matches(row["name"], rows, n=1)
                hint = f"; the nearest it has is {near[0]!r}" if near else ""
                raise ModelError(f"this model was not trained on layer {row['name']!r}{hint}")
            for key in ("channels", "units", "calibration", "kind"):
                want, have = rows[row["name"]].get(key), row.get(key)
                if want != have:
                    raise ModelError(
                        f"layer {row['name']!r} has {key} {have!r}, and this model was trained on "
                        f"{want!r}: convert the data, or train on it"
                    )


def _unit(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:])


def _padded(data: Mapping[str, Tensor], pad: Sequence[int]) -> Mapping[str, Tensor]:
    edge = (0, pad[1], 0, pad[0])
    return {k: F.pad(v, edge) if any(pad) and v.ndim >= 4 else v for k, v in data.items()}


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
