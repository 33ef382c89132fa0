"""Claim: recommending is many times faster than generation with a general library, and takes little more time with a
larger catalogue.

The rival is a T5 model of `transformers` with the same width and number of layers, which generates three tokens with 50
beams and `prefix_allowed_tokens_fn`. Our softmax of each level runs over the ids that the catalogue has below the
prefix. If it runs over the codebook, as the rival's does over its vocabulary, most of the time is spent on the last
level's logits and their exponentials, 50 × 16,384 per user. Weights are random: they change what is recommended, not
how long it takes. One core.

    python benchmarks/recommendation.py [--users 64] [--items 12101] [--many 1000000] [--repetitions 3]
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, peak_bytes, report, seconds
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.codec import Row
from ugt_composer.data.history import encoder_lists
from ugt_composer.inference.recommender import Recommender
from ugt_composer.model.build import build_model

K = BEAMS = 50
HISTORY = 20
D_MODEL, HEADS, LAYERS, D_FF = 128, 4, 2, 256
SIZES = (128, 320, 16384)
RIVAL_USERS = 16  # the rival is slow


def make_items(count: int, seed: int = 0) -> np.ndarray:
    """`count` distinct semantic IDs, (count, 3)."""
    random = np.random.default_rng(seed)
    low, high = np.full(3, 5), np.array(SIZES)
    items = np.unique(random.integers(low, high, (2 * count, 3)), axis=0)
    return random.permutation(items)[:count]


def make_rows(items: np.ndarray, users: int) -> list[Row]:
    random = np.random.default_rng(1)
    rows = []
    for user in range(users):
        lists = encoder_lists([tuple(item) for item in items[random.integers(len(items), size=HISTORY)]])
        history = np.stack([lists[key] for key in lists]).T
        rows.append(Row(str(user), history[:, :5], np.zeros((1, 8), np.int64), np.zeros((0, 3), np.int64)))
    return rows


def make_recommender(items: np.ndarray, level_softmax: str = "catalogue") -> Recommender:
    config = ModelConfig(
        d_model=D_MODEL,
        n_heads=HEADS,
        n_encoder_layers=LAYERS,
        n_decoder_layers=LAYERS,
        d_ff=D_FF,
        codebook_sizes=SIZES,
        num_experts=4,
        top_k_experts=2,
        max_seq_len=64,
        level_softmax=level_softmax,  # type: ignore[arg-type]
    )
    return Recommender(build_model(config, seed=0), ItemTrie.from_triples(items))


def t5_recommender(items: np.ndarray, rows: list[Row]):
    """A function that recommends with T5. It has one vocabulary for all levels, like generative recommenders on T5."""
    offsets = np.cumsum([0, *SIZES[:2]])
    vocabulary = sum(SIZES)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=D_MODEL,
        d_kv=D_MODEL // HEADS,
        d_ff=D_FF,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        decoder_start_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    children = defaultdict(set)
    for l1, l2, l3 in (items + offsets).tolist():
        children[()].add(l1)
        children[(l1,)].add(l2)
        children[(l1, l2)].add(l3)
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    ids = torch.from_numpy(np.stack([(row.encoder[1:, :3] + offsets).flatten() for row in rows]))

    @torch.inference_mode()
    def recommend():
        return model.generate(
            ids,
            num_beams=BEAMS,
            num_return_sequences=K,
            max_new_tokens=3,
            prefix_allowed_tokens_fn=lambda batch, tokens: allowed.get(tuple(tokens[1:].tolist()), [0]),
        )

    return recommend


def seconds_of_logits(users: int, repetitions: int = 5) -> float:
    """The time for the last level's logits over the whole codebook alone."""
    states, codebook = torch.randn(users * BEAMS, D_MODEL), torch.randn(SIZES[-1], D_MODEL)
    logits = torch.empty(len(states), len(codebook))
    return min(seconds(lambda: torch.mm(states, codebook.T, out=logits)) for _ in range(repetitions))


PROGRAM = """
import torch
from benchmarks.recommendation import BEAMS, K, make_items, make_recommender, make_rows
torch.set_num_threads(1)
items = make_items(int(sys.argv[1]))
rows = make_rows(items, 64)
recommender = make_recommender(items[:100])
recommender.recommend(rows[:1], K, BEAMS, True)
begin()
recommender = make_recommender(items)
recommender.recommend(rows, K, BEAMS, True)
end()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    items = make_items(arguments.items)
    rows = make_rows(items, arguments.users)
    few, codebook = make_recommender(items), make_recommender(items, "codebook")
    ours = lambda: few.recommend(rows, K, BEAMS, exclude_seen=True)  # noqa: E731
    rival = t5_recommender(items, rows[:RIVAL_USERS])
    what = f"top {K} of {arguments.items:,} items, {BEAMS} beams"
    claims = []
    for name, recommender in ((what, few), (f"{what}, softmax over the codebook", codebook)):
        ratio, our_seconds, rival_seconds = in_turns(
            lambda: recommender.recommend(rows, K, BEAMS, exclude_seen=True),  # noqa: B023
            rival,
            arguments.repetitions,
        )
        rates = f"{arguments.users / our_seconds:,.0f} and {RIVAL_USERS / rival_seconds:,.1f} users/s"
        speed = arguments.users / RIVAL_USERS / ratio
        limit = ""
        if recommender is codebook:
            bound = rival_seconds / RIVAL_USERS / (seconds_of_logits(arguments.users) / arguments.users)
            limit = (
                f"the matrix product for the last level's {BEAMS} × {SIZES[-1]:,} logits per user alone limits the "
                f"speed to {bound:.1f} ×."
            )
        claims.append(Claim(f"{name}: users/s", "T5 of transformers", speed, 20, True, rates, limit))
    many = make_recommender(make_items(arguments.many))
    growth, larger, _ = in_turns(lambda: many.recommend(rows, K, BEAMS, exclude_seen=True), ours, arguments.repetitions)
    memory = peak_bytes(PROGRAM, arguments.many)
    slots = [one.trie.slots(1, BEAMS) for one in (few, many)]
    return report(
        __file__,
        [
            *claims,
            Claim(
                f"top {K} of {arguments.many:,} items: time",
                f"{arguments.items:,} items",
                growth,
                2,
                at_least=False,
                note=f"{arguments.users / larger:,.0f} users/s",
                limit=f"{BEAMS} first ids have up to {slots[1]:,} second ids below them instead of {slots[0]:,}, and "
                "the probability of each has to be compared.",
            ),
            Claim(f"top {K} of {arguments.many:,} items: GB", "", memory / 1e9, 1, at_least=False),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
