import gzip

import numpy as np
import pytest
import zstandard

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.interactions import read_interactions
from ugt_composer.importing.items import read_items
from ugt_composer.importing.text_lines import text_lines

TEXT = "user,item,timestamp\nJosé,né,1\nu2,b,2\n"


def lines_of(path, encoding=None, kind="csv"):
    return list(text_lines(find_parts([path], FileFormat(kind, encoding=encoding))[0]))


@pytest.mark.parametrize(
    ("encoding", "given"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-8-sig", "utf8"),
        ("latin-1", "latin-1"),
        ("cp1252", "windows-1252"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("gbk", "gbk"),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_encoding_compression_and_line_end_is_read(tmp_path, encoding, given, packing, end):
    path = tmp_path / f"r.csv{packing}"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    path.write_bytes(pack(TEXT.replace("\n", end).encode(encoding)))
    assert lines_of(path, given) == TEXT.splitlines()
    log = read_interactions(path, file_format=FileFormat(encoding=given))
    assert sorted(log.users) == ["José", "u2"]
    assert sorted(log.items) == ["b", "né"]


@pytest.mark.parametrize(
    ("data", "encoding", "said"),
    [
        (b"", None, "r.csv: is empty"),
        (b"\n\n", None, "r.csv: has only blank lines"),
        (b"user,item,timestamp\n", None, "r.csv: found no interaction"),
        (TEXT.encode("utf-16"), None, "r.csv: is encoded in UTF-16, expected UTF-8; give --encoding utf-16"),
        (TEXT.encode("utf-16-le"), None, "is encoded in UTF-16, expected UTF-8; give --encoding utf-16"),
        (TEXT.encode("utf-16-be"), "latin-1", "is encoded in UTF-16-BE, expected Latin-1; give --encoding utf-16-be"),
        (TEXT.encode("utf-32"), None, "is encoded in UTF-32"),
        (TEXT.encode(), "utf-16", "is not encoded in utf-16, as --encoding says"),
        (TEXT.encode(), "latin-1", "is encoded in UTF-8, but --encoding says Latin-1; give --encoding utf-8"),
        (TEXT.encode("latin-1"), None, "line 2: found bytes that are not UTF-8"),
        ("用户,商品,时间\nu,b,1\n".encode("gbk"), None, "give it with --encoding, such as latin-1 or gbk"),
        (TEXT.encode(), "latin-9000", "--encoding latin-9000: is unknown"),
        (TEXT.encode(), "hex", "--encoding hex: is unknown"),
        (gzip.compress(TEXT.encode(), mtime=0), None, "is compressed by gzip, expected text; let its name end in .gz"),
        (b"PK\x03\x04rest", None, "is a zip archive or a spreadsheet, expected text; unpack it"),
        (b"\x80\x02\0\0\0ab\0\0", None, "has many NUL bytes, so it is no text, or in another encoding"),
        (b"PAR1rest", None, "is a Parquet file, expected text"),
        (np.lib.format.MAGIC_PREFIX + b"rest", None, "is a NumPy array"),
    ],
)
def test_what_is_no_text_of_this_encoding_is_said(tmp_path, data, encoding, said):
    path = tmp_path / "r.csv"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_interactions(path, file_format=FileFormat(encoding=encoding))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "sequences"])
def test_truncated_and_corrupted_compressed_files_are_refused(tmp_path, packing, kind):
    path = tmp_path / f"r{packing}"
    row, header = {
        "csv": ("u{},i{},{}", "user,item,timestamp\n"),
        "tsv": ("u{}\ti{}\t{}", "user\titem\ttimestamp\n"),
        "jsonl": ('{{"user": {}, "item": {}, "timestamp": {}}}', ""),
        "sequences": ("u{} {} {}", ""),
    }[kind]
    text = (header + "".join(row.format(n, n * 7919 % 1000, n) + "\n" for n in range(5000))).encode()
    packed = gzip.compress(text) if packing == ".gz" else zstandard.ZstdCompressor().compress(text)
    form = FileFormat(kind)
    for data, said in (
        (packed[: len(packed) // 2], "cannot be read to its end"),
        (text, "found a corrupted"),
        (b"", "is empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=said):
            read_interactions(path, file_format=form)


def test_the_options_of_items_are_named_for_items(tmp_path):
    path = tmp_path / "items.csv"
    path.write_bytes("item,title\n1,é\n".encode("utf-16"))
    with pytest.raises(UserError, match="give --items-encoding utf-16"):
        read_items(path)
