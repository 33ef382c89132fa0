"""Cuts JSON Lines that are in memory into the ranges that `sources.partitions` would cut a file of them into.

So the text of rows can be converted as it is made, without a file, and gives the same shards as the file. Programs that
each have a part of the text cut it alone, because a line's range depends only on where it starts in the whole text: the
text of a range is what they have of it, joined in order.
"""

from collections.abc import Iterable, Iterator

from ugt_composer.jsonl.sources import TextPiece


def cut_ranges(chunks: Iterable[bytes], range_bytes: int, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields the number and the lines of each range in which a line starts, in order.

    Args:
        chunks: consecutive text, each of whole lines; only the last line of the whole text may lack its line feed.
        offset: where the first chunk starts in the whole text, in bytes.
    """
    number, parts = 0, list[bytes]()
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            current = (offset + start) // range_bytes
            if current != number and parts:
                yield number, b"".join(parts)
                parts = []
            number = current
            end = _line_start(chunk, (number + 1) * range_bytes - offset)
            parts.append(chunk[start:end])
            start = end
        offset += len(chunk)
    if parts:
        yield number, b"".join(parts)


def _line_start(chunk: bytes, place: int) -> int:
    """Where the first line that starts at or after `place` (at least 1) starts; the chunk's length if there is none."""
    return chunk.find(b"\n", place - 1) + 1 or len(chunk)


def count_ranges(size: int, range_bytes: int) -> int:
    """The number of ranges of a text of `size` bytes."""
    return -(-size // range_bytes)


def text_pieces(chunks: Iterable[bytes], path: str, range_bytes: int) -> Iterator[TextPiece]:
    """The pieces of a file `path` that has this text, one per range, also for a range in which no line starts.

    Args:
        chunks: the whole text, as for `cut_ranges`.
    """
    size = done = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            yield chunk

    def piece(number: int, text: bytes = b"") -> TextPiece:
        return TextPiece(0, path, number * range_bytes, text)

    for number, text in cut_ranges(counted(), range_bytes):
        yield from map(piece, range(done, number))
        yield piece(number, text)
        done = number + 1
    yield from map(piece, range(done, count_ranges(size, range_bytes)))
