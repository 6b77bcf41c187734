"""Bytes of one shard: encode chunks, put them together, read them back. No files, no xarray.

Shared by the writer and by the short reader of the hot path (`cubes.sampling.stream`). A shard is
what the Zarr v3 codec ``sharding_indexed`` describes: encoded inner chunks one after
another in time order, then an index of (offset, length) as little-endian uint64, then the CRC-32C
of the index. Our shards have inner chunks along the stack dimension only, so the Morton order that
zarr-python writes is time order, and the bytes equal zarr-python's own (a test says so).

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


def decode(data: memoryview | bytes, codec: Codec, out: Array, where: str = "") -> None:
    """Fill `out` with the values of one inner chunk, after checking its checksum.

    Parameters
    ----------
    data : buffer
        The chunk's bytes, as the index of its shard bounds them.
    codec : {"lz4", "zstd", "none"}
        As written.
    out : array
        C-contiguous and writable, of the chunk's shape and stored dtype. Filled in place.
    where : str
        Named in the error.

    Raises
    ------
    CubeError
        The bytes are not those written.
    """
    view = memoryview(data)
    flat = out.reshape(-1).view(np.uint8)
    if codec == "zstd":
        try:
            _ZSTD.decode(view, flat)
        except RuntimeError as error:
            raise CubeError(_damaged(where)) from error
        return
    body = view[:-4]
    if len(view) < 4 or crc32c.crc32c(body) != struct.unpack("<I", view[-4:])[0]:
        raise CubeError(_damaged(where))
    if codec == "lz4":
        numcodecs.blosc.decompress(body, flat)
    else:
        flat[:] = np.frombuffer(body, np.uint8)


def _damaged(where: str) -> str:
    place = f" ({where})" if where else ""
    return (
        f"a chunk's bytes do not match their checksum{place}; "
        "run cubes.verify(store) to list the damage and cubes.repair(store) to mend it"
    )


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


def parse_index(shard: memoryview | bytes, chunks: int, where: str = "") -> Array:
    """Return offset and length of each inner chunk of a shard.

    Parameters
    ----------
    shard : buffer
        The whole shard (or its end).
    chunks : int
        Inner chunks per shard: steps per shard.
    where : str
        Named in the error.

    Returns
    -------
    array
        uint64, shape (chunks, 2); both `ABSENT` where the chunk is all nodata.

    Raises
    ------
    CubeError
        Shorter than its index, or the index does not match its checksum.
    """
    size = index_size(chunks)
    view = memoryview(shard)
    if len(view) < size:
        raise CubeError(
            f"a shard of {len(view)} bytes is shorter than its index of {size}"
            f"{f' ({where})' if where else ''}: truncated; run cubes.repair(store)"
        )
    tail = view[len(view) - size :]
    if crc32c.crc32c(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
        raise CubeError(_damaged(where))
    return np.frombuffer(tail[:-4], "<u8").reshape(chunks, 2)
