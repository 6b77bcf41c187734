"""Bytes of one shard: encode chunks, put them together, read them back. No files, no xarray.

The one place that knows these bytes: the writer encodes with it, and the short reader of the hot
path (`cubes.sampling.stored`) decodes with it what codec ``lz4`` made. A shard is what the Zarr v3
codec ``sharding_indexed`` describes: encoded inner chunks one after another in time order, then an
index of (offset, length) as little-endian uint64, then the CRC-32C of the index. Our shards have
inner chunks along the stack dimension only, so the Morton order that zarr-python writes is time
order, and the bytes equal zarr-python's own (a test says so).

Blosc must encode on one thread: with several it writes its blocks in the order in which they
finish, and one array has many byte strings. numcodecs uses several only when called from the main
thread, so `encode` moves itself off that thread.
"""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import numpy.typing as npt

from cubes.types import CubeError

Codec = Literal["lz4", "zstd", "none"]
Array = npt.NDArray[Any]

ABSENT = 2**64 - 1
"""Offset and length in the index of an inner chunk that is all nodata and not stored."""
RESIDUE = 0x48674BC7
"""CRC-32C of any bytes followed by their own CRC-32C, little-endian: one call checks both."""
BLOSC_LEVEL = 5
ZSTD_LEVEL = 3

_ZSTD = numcodecs.zstd.Zstd(level=ZSTD_LEVEL, checksum=True)


def codecs(codec: Codec, itemsize: int) -> list[dict[str, Any]]:
    """Return the Zarr v3 metadata of the codecs of one inner chunk.

    Raises
    ------
    CubeError
        Unknown codec.
    """
    out: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}}
        if itemsize > 1
        else {"name": "bytes"}
    ]
    if codec == "lz4":
        blosc = {
            "typesize": itemsize,
            "cname": "lz4",
            "clevel": BLOSC_LEVEL,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        out.append({"name": "blosc", "configuration": blosc})
        out.append({"name": "crc32c"})
    elif codec == "zstd":
        out.append({"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": True}})
    elif codec == "none":
        out.append({"name": "crc32c"})
    else:
        raise CubeError(f"unknown codec {codec!r}; choose lz4, zstd or none")
    return out


def encode(values: Array, codec: Codec) -> bytes:
    """Return one inner chunk as bytes, its checksum included.

    Parameters
    ----------
    values : array
        The chunk in stored numbers, any shape, C order.
    codec : {"lz4", "zstd", "none"}
        See `cubes.types.Layout.codec`.
    """
    if codec == "lz4" and threading.current_thread() is threading.main_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(_encode, values, codec).result()
    return _encode(values, codec)


def _encode(values: Array, codec: Codec) -> bytes:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    raw = np.ascontiguousarray(little)
    if codec == "zstd":
        return bytes(_ZSTD.encode(raw))
    if codec == "lz4":
        blosc = numcodecs.blosc.Blosc(
            cname="lz4",
            clevel=BLOSC_LEVEL,
            shuffle=numcodecs.blosc.BITSHUFFLE,
            blocksize=0,
            typesize=values.dtype.itemsize,
        )
        body = bytes(blosc.encode(raw.view(np.uint8).reshape(-1)))
    else:
        body = raw.tobytes()
    return body + struct.pack("<I", crc32c.crc32c(body))


class Damaged(ValueError):
    """Bytes are not those written; says what is wrong. Whoever knows the place names it."""


def decode(data: memoryview, out: Array, *, checked: bool = True) -> None:
    """Fill `out` with an inner chunk of codec ``lz4``, after checking its checksum.

    The other codecs are read by zarr-python.

    Parameters
    ----------
    data : memoryview
        The chunk's bytes, as the index of its shard bounds them.
    out : array
        C-contiguous and writable, of as many bytes as the chunk decoded. Filled in place.
    checked : bool
        Whether a CRC-32C follows the chunk, as in all that `encode` makes.

    Raises
    ------
    Damaged
        The bytes are not those written; `out` may hold part of them.
    """
    if checked and crc32c.crc32c(data) != RESIDUE:
        raise Damaged("a chunk fails its crc32c")
    # A frame of another length would leave old pixels in a reused buffer; Blosc's own header says
    # how long it is, decoded and encoded, and Blosc believes it.
    sizes = struct.unpack_from("<I4xI", data, 4) if len(data) >= 16 else (0, 0)
    if sizes[0] != out.nbytes or sizes[1] > len(data):
        raise Damaged("a chunk has the wrong length")
    try:
        numcodecs.blosc.decompress(data, out)
    except RuntimeError as error:
        raise Damaged(f"a chunk does not decode ({error})") from error


def index_size(chunks: int) -> int:
    """Return the bytes that the index of a shard of `chunks` inner chunks takes at its end."""
    return 16 * chunks + 4


def build_index(lengths: list[int | None]) -> bytes:
    """Return the index of a shard whose inner chunks have `lengths` bytes (None: not stored)."""
    index = np.full((len(lengths), 2), ABSENT, "<u8")
    start = 0
    for number, length in enumerate(lengths):
        if length is not None:
            index[number] = start, length
            start += length
    body = index.tobytes()
    return body + struct.pack("<I", crc32c.crc32c(body))


def assemble(chunks: list[bytes | None]) -> bytes | None:
    """Return a shard of encoded inner chunks in time order (None: all nodata), or None if empty."""
    if all(c is None for c in chunks):
        return None
    index = build_index([None if c is None else len(c) for c in chunks])
    return b"".join([*(c for c in chunks if c is not None), index])


def parse_index(shard: memoryview, chunks: int) -> Array:
    """Return offset and length of each inner chunk of a shard.

    Parameters
    ----------
    shard : memoryview
        The whole shard (or its end).
    chunks : int
        Inner chunks per shard.

    Returns
    -------
    array
        uint64, shape (chunks, 2); both `ABSENT` where the chunk is all nodata.

    Raises
    ------
    Damaged
        Shorter than its index, or the index does not match its checksum.
    """
    size = index_size(chunks)
    if len(shard) < size:
        raise Damaged(f"the shard has only {len(shard)} bytes")
    tail = shard[len(shard) - size :]
    if crc32c.crc32c(tail) != RESIDUE:
        raise Damaged("the shard index fails its crc32c")
    return np.frombuffer(tail[:-4], "<u8").reshape(chunks, 2)
