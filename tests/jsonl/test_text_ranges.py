"""Rows that are in memory are converted to the same bytes as a file of them."""

import json
import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversion.conversion_cases import SIZES, contents, preference_row, recommend_row, siblings
from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.conversion.convert import convert, convert_chunks, convert_text
from ugt_composer.conversion.known_items import KnownItems
from ugt_composer.conversion.settings import Settings
from ugt_composer.errors import UserError
from ugt_composer.jsonl.lines import read_blocks
from ugt_composer.jsonl.schema import ENCODER_ACTIONS, ENCODER_TIMES, PREFERENCE, RECOMMEND
from ugt_composer.jsonl.sources import Source, TextPiece, partitions
from ugt_composer.jsonl.text_ranges import cut_ranges, text_pieces

LIMITS = {"codebook_sizes": SIZES, "max_history": 6, "max_target": 4, "max_positions": 40}
ACTIONS = ("view", "buy")
CATALOGUE = Catalogue([Item(str(l1), l1, 5, 5) for l1 in range(5, SIZES[0])], "items/catalogue.jsonl")


@st.composite
def texts(draw) -> tuple[str, list[bytes]]:
    """The kind of some rows, and their lines: with names of all lengths, histories and targets that are cut, blank
    lines; the last one may lack its line feed."""
    kind = draw(st.sampled_from((RECOMMEND, PREFERENCE)))
    rng = random.Random(draw(st.integers(0, 9)))
    users = draw(st.lists(st.text(min_size=1, max_size=80), max_size=40))
    has_inputs = draw(st.booleans())
    lines = []
    for user in users:
        history = rng.randint(0, 9)
        row = preference_row(rng, user, history) if kind == PREFERENCE else recommend_row(rng, user, history)
        if has_inputs:
            encoder = row["user_sequence"] if kind == PREFERENCE else row
            encoder[ENCODER_ACTIONS] = [0, *(rng.randint(1, 2) for _ in range(history))]
            encoder[ENCODER_TIMES] = [7, *range(7, 7 + history)]
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())).encode() + b"\n")
        lines += [b"\n"] * draw(st.integers(0, 1))
    if lines and draw(st.booleans()):
        lines[-1] = lines[-1].rstrip() or lines[-1]
    return kind, lines


def grouped(lines: list[bytes], rng: random.Random) -> list[list[bytes]]:
    """Some or no lines at a time."""
    cuts = [0, *sorted(rng.choices(range(len(lines) + 1), k=rng.randint(0, len(lines)))), len(lines)]
    return [lines[start:stop] for start, stop in pairwise(cuts)]


def in_chunks(lines: list[bytes], rng: random.Random) -> list[bytes]:
    return [b"".join(group) for group in grouped(lines, rng)]


@settings(max_examples=60, deadline=None)
@given(texts(), st.integers(100, 6000), st.sampled_from((1 << 12, 1 << 26)), st.randoms(use_true_random=False))
def test_text_gives_the_bytes_of_the_file(tmp_path_factory, rows, range_bytes, size_limit, rng):
    kind, lines = rows
    folder = tmp_path_factory.mktemp("rows")
    source = folder / "rows.jsonl"
    source.write_bytes(b"".join(lines))
    (folder / "actions.json").write_text(json.dumps(ACTIONS))
    (folder / "catalogue.jsonl").write_text(
        "".join(json.dumps({"item_id": item.item_id, **of(item.triple)}) + "\n" for item in CATALOGUE.items)
    )
    conversion = Settings(
        kind=kind, **LIMITS, range_bytes=range_bytes, size_limit=size_limit, max_fraction_outside_catalogue=1
    )
    known = KnownItems(Catalogue.load(folder / "catalogue.jsonl"), found=True)  # lacks most items: a warning
    of_text = folder / "of_text"
    if not b"".join(lines).strip():
        with pytest.raises(UserError, match="no rows in the input"):
            convert_text(
                partial(convert_chunks, in_chunks(lines, rng), str(source)),
                str(source),
                of_text,
                conversion,
                known,
                ACTIONS,
            )
        assert siblings(of_text) == []
        return
    expected = convert([str(source)], folder / "of_file", conversion)
    source.unlink()
    made = convert_text(
        partial(convert_chunks, in_chunks(lines, rng), str(source)), str(source), of_text, conversion, known, ACTIONS
    )
    assert contents(of_text) == contents(folder / "of_file")
    assert (made.counts, made.shards, made.shard_bytes) == (expected.counts, expected.shards, expected.shard_bytes)
    assert made.warnings == expected.warnings


def of(triple: tuple[int, int, int]) -> dict[str, int]:
    return {f"l{level}_id": number for level, number in enumerate(triple, start=1)}


lines_of_text = st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(lines_of_text, st.integers(1, 50), st.randoms(use_true_random=False))
def test_ranges_are_those_of_a_file_whoever_cuts_them(tmp_path_factory, lines, range_bytes, rng):
    """In one stream, and by several programs which each know where their part starts."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_bytes(text := b"".join(lines))
    pieces = [piece for part in partitions([Source(str(path), len(text))], range_bytes) for piece in part]
    expected = [b"".join(block.data for block in read_blocks(piece, 100, xxhash.xxh3_128())) for piece in pieces]
    made = list(text_pieces(in_chunks(lines, rng), "text.jsonl", range_bytes))
    assert made == [TextPiece(0, "text.jsonl", at * range_bytes, text) for at, text in enumerate(expected)]

    joined = [b""] * len(expected)
    offset = 0
    for part in grouped(lines, rng):
        for number, piece in cut_ranges(in_chunks(part, rng), range_bytes, offset):
            joined[number] += piece
        offset += sum(map(len, part))
    assert joined == expected


def test_only_a_few_ranges_are_in_memory():
    """The text of a range is not asked for before the ranges ahead of it are taken."""
    asked = 0

    def chunks():
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield b"0123456\n" * 10

    for number, piece in enumerate(text_pieces(chunks(), "text.jsonl", 160)):
        assert len(piece.text) == 160
        assert asked * 80 <= (number + 1) * 160 + 80


def test_a_bad_row_is_named_by_its_line_and_leaves_nothing(tmp_path: Path):
    rng = random.Random(0)
    lines = [json.dumps(recommend_row(rng, f"u{at}")).encode() + b"\n" for at in range(40)]
    lines[30] = b"{\n"
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"data/train\.jsonl:31: line: "):
        convert_text(
            partial(convert_chunks, lines, "data/train.jsonl"),
            "data/train.jsonl",
            out,
            Settings(kind=RECOMMEND, **LIMITS, range_bytes=999),
            None,
            None,
        )
    assert not out.exists()
    assert siblings(out) == []
