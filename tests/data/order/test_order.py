"""The order that workers produce while they read is, row for row, the one that Streaming computes beforehand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.shuffle.py1e import get_shuffle_py1e

from ugt_composer.data.order import epoch as epoch_module
from ugt_composer.data.order import shuffle as shuffle_module
from ugt_composer.data.order.epoch import EpochOrder
from ugt_composer.data.order.partition import Shape, partition
from ugt_composer.data.order.saved_marks import pack_marks, unpack_marks
from ugt_composer.data.order.shuffle import (
    Reach,
    ShuffledNode,
    Start,
    find_starts,
    make_marks,
    shuffled_spans,
    stable_order,
)
from ugt_composer.data.order.units import Units, sampled_units

PADDING = -1


class Epoch:
    """The attributes of a StreamingDataset that its order depends on."""

    resample_streams = StreamingDataset.resample_streams
    shuffle_algo, batching_method, sampling_granularity = "py1e", "random", 1

    def __init__(self, shards, choose, canonical, batch, seed, shuffle, block, initial, algorithm, sampling):
        self.samples_per_shard = np.array([rows for stream in shards for rows in stream], np.int64)
        self.sample_offset_per_shard = self.samples_per_shard.cumsum() - self.samples_per_shard
        self.num_streams, self.shards_per_stream = len(shards), np.array([len(stream) for stream in shards])
        self.shard_offset_per_stream = self.shards_per_stream.cumsum() - self.shards_per_stream
        self.streams = [SimpleNamespace(choose=rows) for rows in choose]
        self.epoch_size, self.num_canonical_nodes, self.batch_size = sum(choose), canonical, batch
        self.shuffle_seed, self.shuffle, self.shuffle_block_size = seed, shuffle, block
        self.initial_physical_nodes, self.partition_algo, self.sampling_method = initial, algorithm, sampling
        self.epoch_seed_change = shuffle and sampling == "balanced"

    def streamings(self, shape: Shape, epoch: int, done: int) -> np.ndarray:
        world = SimpleNamespace(num_nodes=shape.nodes, ranks_per_node=shape.ranks, workers_per_rank=shape.workers)
        return generate_work("random", self, world, epoch, done)  # type: ignore[arg-type]

    def units(self, epoch: int) -> Units:
        offsets, counts = self.shard_offset_per_stream.tolist(), self.shards_per_stream.tolist()
        streams = [slice(begin, begin + count) for begin, count in zip(offsets, counts, strict=True)]
        seed = self.shuffle_seed + (epoch if self.epoch_seed_change else 0)
        draw_seed = self.shuffle_seed + (epoch if self.sampling_method == "balanced" else 0)
        return sampled_units(self.samples_per_shard, streams, [s.choose for s in self.streams], seed, draw_seed)

    def ours(self, shape: Shape, epoch: int, done: int):
        """(node, rank, worker) → its rows; None if this is left to Streaming."""
        canonical, initial = self.num_canonical_nodes, self.initial_physical_nodes
        found = partition(self.epoch_size, canonical, shape, done, initial, self.partition_algo == "relaxed")
        if found is None:
            return None
        units, block, rows = self.units(epoch), self.shuffle_block_size, {}
        for node in range(shape.nodes):
            order = EpochOrder(found, units)
            if self.shuffle:
                spans = shuffled_spans(units.sizes, canonical, self.shuffle_seed, epoch)
                marks = make_marks(spans, block)
                text = pack_marks([epoch], marks)
                assert unpack_marks(text, [epoch], spans.mark_counts(), spans.state) == marks
                starts = find_starts(spans, marks, block, found.nodes_of(node), found.first_index())
                order = EpochOrder(found, units, spans, starts, block)
            for rank in range(shape.ranks):
                for worker in range(shape.workers):
                    blocks = [np.empty(0, np.int64), *order.rows(node, rank, worker)]
                    rows[node, rank, worker] = np.concatenate(blocks)
        return rows


@st.composite
def epochs(draw):
    """An epoch, the shape of the run, the epoch's number and the rows that were read before."""
    few = st.integers(1, 3)
    shards = draw(st.lists(st.lists(st.one_of(few, st.integers(1, 60), st.integers(1, 400)), min_size=1), min_size=1))
    totals = [sum(stream) for stream in shards]
    times = st.one_of(st.just(1.0), st.just(2.0), st.floats(0.1, 3))
    choose = [max(1, int(total * draw(times))) for total in totals]
    canonical, nodes = draw(st.sampled_from([1, 2, 3, 4, 6, 8])), draw(st.sampled_from([1, 1, 2, 3, 4, 6]))
    batch, initial = draw(st.sampled_from([1, 2, 3, 8])), draw(st.sampled_from([None, 1, 2, 3, 4]))
    made = Epoch(
        shards,
        choose,
        canonical,
        batch,
        draw(st.integers(0, 99)),
        draw(st.sampled_from([True, True, True, False])),
        draw(st.sampled_from([1, 2, 4, 10, 50, 300, 2000])),
        initial,
        draw(st.sampled_from(["relaxed", "relaxed", "orig"])),
        draw(st.sampled_from(["balanced", "balanced", "fixed"])),
    )
    shape = Shape(nodes, draw(st.sampled_from([1, 2, 3, 8])), draw(few), batch)
    size = made.epoch_size
    done = draw(st.one_of(st.just(0), st.integers(0, size - 1), st.integers(max(0, size - 40), size - 1)))
    return made, shape, draw(st.integers(0, 5)), done


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [1, 40, 1 << 16])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(epochs())
def test_the_order_is_streamings(window, drawn):
    made, shape, epoch, done = drawn
    try:
        expected = made.streamings(shape, epoch, done)
    except (ValueError, ZeroDivisionError):  # nodes that do not divide each other, or get no row
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle_module, "ROWS_AT_ONCE", window)
        patch.setattr(epoch_module, "ROWS_AT_ONCE", window)
        ours = made.ours(shape, epoch, done)
    if ours is None:  # most rows are repeated
        assert made.epoch_size <= 3 * max(made.num_canonical_nodes, shape.nodes)
        return
    for at, rows in ours.items():
        ids = expected[at].flatten()
        assert np.array_equal(rows, ids[ids != PADDING])


def epoch_of(shards, canonical=4, block=300, choose=None) -> Epoch:
    return Epoch(shards, choose or [sum(s) for s in shards], canonical, 8, 7, True, block, None, "relaxed", "balanced")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", [40, 4000])
@pytest.mark.parametrize("canonical", [1, 4])
def test_an_epoch_of_many_blocks_is_resumed_anywhere(canonical, block):
    made = epoch_of([[1000] * 30, [57] * 100 + [20_000]], canonical, block)
    size = made.epoch_size
    for done in (0, 8, size // 3, size - 5000, size - 16):
        ours, expected = made.ours(Shape(1, 2, 1, 8), 1, done), made.streamings(Shape(1, 2, 1, 8), 1, done)
        for at, rows in ours.items():
            ids = expected[at].flatten()
            assert np.array_equal(rows, ids[ids != PADDING])


def test_rows_go_on_where_another_shape_stopped():
    made = epoch_of([[500] * 12])
    before = made.ours(Shape(1, 2, 2, 8), 0, 0)
    whole = made.ours(Shape(1, 1, 1, 8), 0, 0)[0, 0, 0]
    assert sorted(np.concatenate(list(before.values()))) == sorted(whole) == list(range(6000))
    for shape in (Shape(2, 2, 3, 8), Shape(4, 1, 1, 8)):
        after = np.concatenate(list(made.ours(shape, 0, 1600).values()))
        assert sorted(after) == sorted(whole[1600:])


def test_a_window_holds_few_rows_more_than_a_block(monkeypatch):
    monkeypatch.setattr(shuffle_module, "ROWS_AT_ONCE", 100)
    made, block, most = epoch_of([[100] * 1000], 1), 1000, 0
    units = made.units(0)
    spans = shuffled_spans(units.sizes, 1, 7, 0)
    start = find_starts(spans, make_marks(spans, block), block, [0], 0)[0]
    node = ShuffledNode(spans.begins[0], spans.sizes[0], block, start, units.rows, 10)
    rows = []
    for first in range(0, 100_000, 50):
        rows.append(node.take(first, first + 50))
        most = max(most, len(node._ready) + len(node._moved))
    assert most < 1.5 * block
    assert np.array_equal(np.concatenate(rows), get_shuffle_py1e(units.sizes, 1, 7, 0, block))


def test_reading_starts_at_most_a_few_blocks_early():
    sizes, block = np.full(1000, 100), 1000
    reach = Reach(sizes, block)
    starts = [reach.span_before(index) for index in range(0, 100_000, 777)]
    early = np.arange(0, 100_000, 777) - reach.offsets[starts]
    assert early.min() >= 0
    assert early.max() < 3 * block


def test_a_resumed_run_skips_only_the_shuffles_since_a_mark(monkeypatch):
    made, block = epoch_of([[100] * 1000]), 1000
    spans = shuffled_spans(made.units(0).sizes, 4, 7, 0)
    marks, skipped, real = make_marks(spans, block), [], shuffle_module.skip_shuffle
    monkeypatch.setattr(
        shuffle_module, "skip_shuffle", lambda generator, size: (skipped.append(size), real(generator, size))
    )
    find_starts(spans, marks, block, [0, 1, 2, 3], 20_000)
    assert sum(skipped) <= 100_000 / shuffle_module.MARKS * 4 + 400


def test_marks_of_another_order_are_not_used():
    spans = shuffled_spans(epoch_of([[100] * 20]).units(0).sizes, 4, 7, 0)
    marks, counts = make_marks(spans, 300), spans.mark_counts()
    text = pack_marks([1, 2], marks)
    assert unpack_marks(text, [1, 2], counts, spans.state) == marks
    assert unpack_marks(text, [1, 3], counts, spans.state) is None
    assert unpack_marks(text, [1, 2], counts[:-1], spans.state) is None
    for damaged in ("", "{", "[]", '{"key": [1, 2]}', text.replace(text[-12:-6], "zzzzzz")):
        assert unpack_marks(damaged, [1, 2], counts, spans.state) is None
    others = shuffled_spans(epoch_of([[100] * 19 + [99, 1]]).units(0).sizes, 4, 7, 0)
    assert spans.fingerprint() != others.fingerprint()


def test_of_rows_moved_to_the_same_distance_the_first_stays_first():
    positions = np.random.default_rng(0).integers(0, 1000, 5000).astype(float)
    assert np.array_equal(stable_order(positions), np.argsort(positions, kind="stable"))


def test_a_start_of_other_spans_is_found_for_each_node():
    spans = shuffled_spans(epoch_of([[100] * 40]).units(0).sizes, 4, 7, 0)
    starts = find_starts(spans, make_marks(spans, 300), 300, [1, 3], 500)
    assert set(starts) == {1, 3}
    assert all(isinstance(start, Start) and 0 <= start.span < 10 for start in starts.values())
