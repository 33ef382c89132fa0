"""Reads pieces of the input as blocks of whole lines, in constant memory."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import xxhash
import zstandard

from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import AnyPiece, Piece, TextPiece

BLOCK_BYTES = 1 << 20  # small enough for the CPU caches, large enough to make NumPy's cost per call negligible
ZSTD_FEED_BYTES = 1 << 13  # a decompression bomb of this size unpacks to 256 MB at most
KEPT_BYTES = 1 << 12  # kept of a line that is too long or truncated, for the quarantine


class TruncatedStream(Exception):
    """A truncated compressed file. `rest` is the beginning of the line in which it ends."""

    def __init__(self, message: str, rest: bytes = b""):
        super().__init__(message)
        self.rest = rest


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a piece.

    Attributes:
        data: the bytes as they are in the (decompressed) file. All but a file's last line end in a line feed.
        too_long: 0, or the size of the one line of which `data` is only the beginning.
    """

    data: bytes
    too_long: int = 0


def read_blocks(piece: AnyPiece, max_line_bytes: int, hasher: "xxhash.xxh3_128") -> Iterator[Block]:
    """The lines of a piece; `hasher` is fed all their bytes.

    Raises TruncatedStream after the last complete line, and UserError if a file is corrupted or has changed.
    """
    rest = b""
    long_size = 0  # size so far of a line that is too long to keep; `rest` is its beginning
    try:
        for data in _data(piece):
            hasher.update(data)
            if long_size:
                end = data.find(b"\n") + 1
                long_size += end or len(data)
                if not end:
                    continue
                yield Block(rest, too_long=long_size - 1)
                rest, long_size, data = b"", 0, data[end:]
            cut = data.rfind(b"\n") + 1
            if cut:
                yield Block(rest + data[:cut])
                rest = data[cut:]
            else:
                rest += data
                if len(rest) > max(max_line_bytes, BLOCK_BYTES):
                    rest, long_size = rest[:KEPT_BYTES], len(rest)
    except TruncatedStream as error:
        raise TruncatedStream(str(error), rest[:KEPT_BYTES]) from None
    if rest:
        yield Block(rest, too_long=long_size)


def _data(piece: AnyPiece) -> Iterator[bytes]:
    """The bytes of a piece, in parts of about BLOCK_BYTES."""
    if isinstance(piece, TextPiece):
        return (piece.text[at : at + BLOCK_BYTES] for at in range(0, len(piece.text), BLOCK_BYTES))
    return _packed_blocks(piece) if piece.compressed else _range(piece)


def _range(piece: Piece) -> Iterator[bytes]:
    with piece.open() as file:
        start = _line_start(file, piece.start, piece.file_size)
        end = _line_start(file, piece.end, piece.file_size)
        file.seek(start)
        while start < end:
            data = file.read(min(BLOCK_BYTES, end - start))
            if not data:
                raise UserError(f"{piece.path}: became shorter while it was read; convert it when it is complete")
            start += len(data)
            yield data


def _line_start(file: BinaryIO, offset: int, file_size: int) -> int:
    """Where the first line starting at or after `offset` starts; `file_size` if there is none."""
    if offset in (0, file_size):
        return offset
    file.seek(offset - 1)
    while (part := file.readline(1 << 16)) and not part.endswith(b"\n"):
        pass
    return min(file.tell(), file_size) if part else file_size


def _packed_blocks(piece: Piece) -> Iterator[bytes]:
    """Decompressed data in blocks of at least BLOCK_BYTES. Yields everything readable before a TruncatedStream."""
    parts: list[bytes] = []
    size = 0
    truncated: TruncatedStream | None = None
    try:
        for part in _gzip_parts(piece) if piece.path.endswith(".gz") else _zstd_parts(piece):
            parts.append(part)
            size += len(part)
            if size >= BLOCK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except TruncatedStream as error:
        truncated = error
    if parts:
        yield b"".join(parts)
    if truncated:
        raise truncated


def _gzip_parts(piece: Piece) -> Iterator[bytes]:
    with piece.open() as packed, gzip.open(packed, "rb") as file:
        while True:
            try:
                part = file.read1(BLOCK_BYTES)  # read() would lose the data before the truncation
            except EOFError:
                raise TruncatedStream("a gzip stream that is cut short") from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise _corrupted(piece.path, "gzip", error) from None
            if not part:
                return
            yield part


def _zstd_parts(piece: Piece) -> Iterator[bytes]:
    """Frame by frame, because zstandard's file reader does not report a truncated file."""
    with piece.open() as file:
        frame = None
        packed = file.read(ZSTD_FEED_BYTES)
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                part = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise _corrupted(piece.path, "zstd", error) from None
            packed = b""
            if frame.eof:
                packed, frame = frame.unused_data, None
            packed = packed or file.read(ZSTD_FEED_BYTES)
            if part:
                yield part
        if frame is not None:
            raise TruncatedStream("a zstd stream that is cut short")


def _corrupted(path: str, packing: str, error: Exception) -> UserError:
    """The error for a stream that fails its checksum: none of its rows can be trusted, so none is quarantined."""
    return UserError(f"{path}: found a corrupted {packing} stream ({error}), expected a valid one; create it again")
