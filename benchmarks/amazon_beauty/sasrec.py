"""SASRec (Kang & McAuley, 2018) with a full softmax, as a baseline: the architecture of the paper, the loss that makes
it strong (cross-entropy over all items at every position, instead of one sampled negative), and early stopping.

    python benchmarks/amazon_beauty/sasrec.py sequences.txt --seed 1 --out sasrec.pt

Shapes: B users, S positions, n items, D width. Item 0 is padding; sequences are aligned to the right.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.amazon_beauty.rivals import read_sequences
from ugt_composer.torch_patches import cpu_multiplies_bf16

LENGTH = 20
POSITIONS = 256  # number of positions whose logits are computed at once


class SASRec(nn.Module):
    def __init__(self, items: int, d_model: int = 128, layers: int = 2, heads: int = 4, dropout: float = 0.5):
        super().__init__()
        self.item = nn.Embedding(items + 1, d_model, padding_idx=0)
        self.position = nn.Embedding(LENGTH, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, heads, 4 * d_model, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """items int64 (B, S) -> the user's state after each item, (B, S, D)."""
        length = items.shape[1]
        x = self.dropout(self.norm(self.item(items) + self.position.weight[-length:]))
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        # Padding comes first; each position attends to itself, so that no row of the attention is empty.
        hidden = (items == 0)[:, None, :] & ~torch.eye(length, dtype=torch.bool)
        mask = (later | hidden).repeat_interleave(self.layers.layers[0].self_attn.num_heads, dim=0)
        return self.layers(x, mask=mask)

    def scores(self, states: Tensor) -> Tensor:
        """Scores of items 1 to n: (..., D) -> (..., n)."""
        return states @ self.item.weight[1:].T


def padded(sequences: list[list[int]]) -> Tensor:
    """The last LENGTH items of each sequence, int64 (B, S); S is the longest of these."""
    recent = [sequence[-LENGTH:] for sequence in sequences]
    rows = np.zeros((len(recent), max(map(len, recent))), np.int64)
    for row, sequence in zip(rows, recent, strict=True):
        row[len(row) - len(sequence) :] = sequence
    return torch.from_numpy(rows)


@torch.no_grad()
def ranks(model: SASRec, histories: list[list[int]], targets: np.ndarray, exclude_seen: bool) -> np.ndarray:
    """How many items rank above each target."""
    model.eval()
    rank_parts = []
    for start in range(0, len(histories), 512):
        part = histories[start : start + 512]
        scores = model.scores(model(padded(part))[:, -1])
        if exclude_seen:
            for row, history in zip(scores, part, strict=True):
                row[torch.tensor(history) - 1] = float("-inf")
        target = torch.from_numpy(targets[start : start + 512])[:, None] - 1
        rank_parts.append((scores > scores.gather(1, target)).sum(1))
    return torch.cat(rank_parts).numpy()


def backward(model: SASRec, sequences: list[list[int]]) -> None:
    """Computes the gradient of the mean cross-entropy of each next item.

    Sequences of similar lengths go through the network together, and logits are computed for few positions at a time,
    so that they fit into the processor's cache.
    """
    ordered = sorted(sequences, key=len)
    halves = [padded(half) for half in (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]) if half]
    count = sum(int((half[:, :-1] > 0).sum()) for half in halves)
    half_precision = torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16())  # like UGT's training
    for half in halves:
        inputs, labels = half[:, :-1], half[:, 1:]
        valid = inputs > 0
        with half_precision:
            states = model(inputs)[valid]
        leaf_states = states.detach().requires_grad_()
        for state, label in zip(leaf_states.split(POSITIONS), labels[valid].split(POSITIONS), strict=True):
            with half_precision:
                logits = model.scores(state)
            (F.cross_entropy(logits.float(), label - 1, reduction="sum") / count).backward()
        states.backward(leaf_states.grad)


def train(
    sequences: list[list[int]], items: int, seed: int, batch_size: int = 256, max_epochs: int = 120, patience: int = 3
) -> SASRec:
    """Trains on all but the last two items of each sequence. Evaluates ndcg@10 on the last but one item after every
    fifth epoch, and returns the best of these models."""
    torch.manual_seed(seed)
    model, generator = SASRec(items), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    training = [sequence[:-2] for sequence in sequences]
    validation = np.array([sequence[-2] for sequence in sequences])
    best, weights, evaluations_since_best, started = 0.0, model.state_dict(), 0, time.monotonic()
    for epoch in (bar := tqdm(range(1, max_epochs + 1), desc=f"SASRec, seed {seed}", unit="epoch")):
        model.train()
        for rows in torch.randperm(len(training), generator=generator).split(batch_size):
            optimizer.zero_grad()
            backward(model, [training[row] for row in rows])
            optimizer.step()
        if epoch % 5:
            continue
        rank = ranks(model, training, validation, exclude_seen=False)
        ndcg = float(((rank < 10) / np.log2(rank + 2)).mean())
        bar.set_postfix(ndcg=f"{ndcg:.4f}", minutes=f"{(time.monotonic() - started) / 60:.0f}")
        if ndcg > best:
            best, evaluations_since_best = ndcg, 0
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        elif (evaluations_since_best := evaluations_since_best + 1) >= patience:
            break
    model.load_state_dict(weights)
    return model


def load(path: Path) -> SASRec:
    weights = torch.load(path, weights_only=True)
    model = SASRec(len(weights["item.weight"]) - 1)
    model.load_state_dict(weights)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sequences = read_sequences(arguments.sequences)
    model = train(sequences, max(map(max, sequences)), arguments.seed)
    torch.save(model.state_dict(), arguments.out)


if __name__ == "__main__":
    main()
