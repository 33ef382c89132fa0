"""Lines of text files in any encoding, plain or compressed, with errors that say what a file is instead of text."""

import codecs
from collections.abc import Iterator

import xxhash

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import UTF_8, is_wide
from ugt_composer.importing.inputs import Part
from ugt_composer.jsonl.lines import TruncatedStream, read_blocks
from ugt_composer.jsonl.sources import Piece

MAX_LINE_BYTES = 1 << 28
SAMPLE_BYTES = 1 << 12
BYTE_ORDER_MARKS = (
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
OTHER_FILES = (
    *((b"PK\x03\x04", "a zip archive or a spreadsheet"), (b"PK\x05\x06", "a zip archive"), (b"Rar!", "a rar archive")),
    *((b"BZh", "compressed by bzip2"), (b"\xfd7zXZ", "compressed by xz"), (b"7z\xbc\xaf", "a 7-zip archive")),
    *((b"\x1f\x8b", "compressed by gzip"), (b"\x28\xb5\x2f\xfd", "compressed by zstd")),
    *((b"PAR1", "a Parquet file"), (b"\x89HDF", "an HDF5 file"), (b"ARROW1", "an Arrow file")),
    *((b"\x93NUMPY", "a NumPy array"), (b"%PDF", "a PDF"), (b"SQLite format 3", "an SQLite database")),
)
HINTS = {
    "compressed by gzip": "let its name end in .gz",
    "compressed by zstd": "let its name end in .zst",
    "a Parquet file": "let its name end in .parquet, and give no other format",
    "a zip archive": "unpack it, and give the files in it",
    "a zip archive or a spreadsheet": "unpack it and give the files in it, or save the table as CSV",
}
MANY_NULS = 0.1  # of all bytes; single ones occur in text
NUL_FRACTION = 0.3  # of the bytes at even or odd places, from which text is taken for UTF-16


def byte_blocks(part: Part) -> Iterator[bytes]:
    """Blocks of whole lines, decompressed; the last line may have no line feed.

    Raises:
        UserError: the file is empty, truncated, not text, or text in another encoding than that of the part.
    """
    path = part.path
    start, stop = (0, None) if part.span is None else (part.span.start, part.span.stop)
    count = 0
    try:
        for block in read_blocks(Piece.of(path, start, stop), MAX_LINE_BYTES, xxhash.xxh3_128()):
            if block.too_long:
                raise UserError(f"{path}: has a line of {block.too_long:,} bytes; expected lines of text")
            if not count and not start:
                _check_start(part, block.data)
            count += 1
            yield block.data
    except TruncatedStream as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); copy or download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not count and part.span is None:
        raise UserError(f"{path}: is empty")


def text_lines(part: Part) -> Iterator[str]:
    """The lines without their ends. Bytes that the encoding does not have become lone surrogates (see `undecoded`)."""
    decoder = None
    rest, start, end = "", "" if part.span is not None and part.span.start else "\ufeff", "\n"
    for data in byte_blocks(part):
        decoder = decoder or _decoder(part.encoding, data)
        text = rest + _decoded(part, decoder, data)
        if start and "\n" not in text and "\r" in text:
            end = "\r"  # as old programs of the Macintosh write
        *lines, rest = text.removeprefix(start).split(end)
        start = ""
        for line in lines:
            yield line.removesuffix("\r")
    if decoder is not None:
        rest += _decoded(part, decoder, b"", final=True)
    if rest:
        yield rest.removesuffix("\r")


def undecoded(line: str) -> bool:
    """Whether the line has bytes that are not of the file's encoding."""
    return not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line)


def encoding_problem(part: Part) -> str:
    """What is wrong with a line that is `undecoded`."""
    name = shown_encoding(part.encoding)
    return (
        f"found bytes that are not {name}, expected text in {name}; if the whole file is in another encoding, give it "
        f"with {part.written.option}encoding, such as latin-1 or gbk"
    )


def shown_encoding(encoding: str) -> str:
    return {"utf-8": "UTF-8", "iso8859-1": "Latin-1", "ascii": "ASCII"}.get(encoding, encoding)


def _decoder(encoding: str, start: bytes) -> codecs.IncrementalDecoder:
    """A decoder for a file that starts with these bytes. Of UTF-16 and UTF-32 it finds the byte order."""
    if not is_wide(encoding):
        return codecs.getincrementaldecoder(encoding)("surrogateescape")
    if encoding in ("utf-16", "utf-32") and not any(start.startswith(mark) for mark, _ in BYTE_ORDER_MARKS):
        encoding += "-be" if start.startswith(b"\0") else "-le"
    return codecs.getincrementaldecoder(encoding)("strict")


def _decoded(part: Part, decoder: codecs.IncrementalDecoder, data: bytes, final: bool = False) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeError:
        option = f"{part.written.option}encoding"
        raise UserError(
            f"{part.path}: is not encoded in {part.encoding}, as {option} says; give its real encoding, or leave the "
            "option out for UTF-8"
        ) from None


def _check_start(part: Part, data: bytes) -> None:
    path, option = part.path, f"{part.written.option}encoding"
    for magic, what in OTHER_FILES:
        if data.startswith(magic):
            hint = HINTS.get(what, "write its table as CSV first")
            raise UserError(f"{path}: is {what}, expected text; {hint}")
    sample = data[:SAMPLE_BYTES]
    found = _wide_encoding(sample)
    if found is not None and not is_wide(part.encoding):
        raise UserError(
            f"{path}: is encoded in {found.upper()}, expected {shown_encoding(part.encoding)}; give {option} {found}"
        )
    if found is None and not is_wide(part.encoding) and sample.count(0) > MANY_NULS * len(sample):
        raise UserError(
            f"{path}: has many NUL bytes, so it is no text, or in another encoding: give {option} utf-16 if it is that"
        )
    if found is None and part.encoding.startswith(("utf-16", "utf-32")) and b"\0" not in sample:
        raise UserError(f"{path}: is not encoded in {part.encoding}, as {option} says; leave it out for UTF-8")
    if part.encoding not in (UTF_8, "utf-8-sig") and not is_wide(part.encoding) and _is_utf_8(data):
        raise UserError(
            f"{path}: is encoded in UTF-8, but {option} says {shown_encoding(part.encoding)}; give {option} utf-8"
        )


def _wide_encoding(sample: bytes) -> str | None:
    """The name of UTF-16 or UTF-32 if the first bytes of a file are of such a text."""
    for mark, name in BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return name
    for first, name in ((0, "utf-16-be"), (1, "utf-16")):
        if sample[first::2].count(0) > NUL_FRACTION * len(sample) / 2 > 1 and not sample[1 - first :: 2].count(0):
            return name
    return None


def _is_utf_8(data: bytes) -> bool:
    """Whether text beyond ASCII is UTF-8; in another encoding it hardly ever happens to be valid."""
    if data.isascii():
        return False
    try:
        data.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True
