"""Scores candidates for users with encoder.pt2 and scorer.pt2. Needs only torch, numpy and this folder."""

from pathlib import Path

import numpy as np
import torch

MAX_HISTORY = None  # items of a history that the model reads, the most recent ones; None: all
READS_ACTIONS = False
READS_TIMES = False
KNOWS_REPEATS = False
FOLDER = Path(__file__).resolve().parent
encoder, scorer = (torch.export.load(FOLDER / f"{name}.pt2").module() for name in ("encoder", "scorer"))


def score(histories, candidates, actions=None, times=None, now=None):
    """Histories of (l1, l2, l3), oldest first, and N candidates per history → log-probabilities (users, N).

    Only candidates can be recommended, so leave out items that are retired, out of stock or not for the user.

    For a model that reads them: actions and times have a number for each item of each history, an action (0: unknown)
    and seconds (-1: unknown); now has the seconds of each user's recommendation. Without them all are unknown.
    """
    if (actions is not None and not READS_ACTIONS) or ((times is not None or now is not None) and not READS_TIMES):
        raise ValueError("this model reads no actions, or no times; leave them out")
    if MAX_HISTORY is not None:
        histories = [history[-MAX_HISTORY:] for history in histories]
    length = 1 + max(map(len, histories))
    ids = np.zeros((len(histories), length, 3), np.int64)
    ids[:, 0] = 1  # every history begins with the user's token
    mask = np.arange(length) < np.array([[1 + len(history)] for history in histories])
    for row, history in zip(ids, histories):  # noqa: B905 - any Python 3
        row[1 : 1 + len(history)] = np.reshape(history, (-1, 3))
    positions = np.arange(length) * mask
    token_types = np.minimum(np.arange(length), 1) + 0 * positions  # 0 user, 1 item
    inputs = [ids, positions, token_types, mask]
    if READS_ACTIONS:
        inputs.append(_of_items(actions, histories, length, 0))
    if READS_TIMES:
        moment = np.full(len(histories), -1) if now is None else np.asarray(now)
        inputs += [_of_items(times, histories, length, -1), moment.astype(np.int64)[:, None]]
    state, _user_vector = encoder(*map(torch.from_numpy, inputs))
    history = [torch.from_numpy(ids)] if KNOWS_REPEATS else []
    return scorer(state, torch.as_tensor(candidates), *history).numpy()


def _of_items(lists, histories, length, unknown):
    """A number for each token (users, length): those of the items that are read, unknown for the others."""
    numbers = np.full((len(histories), length), unknown, np.int64)
    for row, history, values in zip(numbers, histories, lists or ()):  # noqa: B905
        if history:
            row[1 : 1 + len(history)] = values[-len(history) :]
    return numbers


if __name__ == "__main__":
    histories, candidates = [[(5, 6, 7), (5, 6, 8)], [(6, 7, 9)]], [(5, 6, 9), (6, 7, 8)]
    for history, log_probs in zip(histories, score(histories, [candidates] * 2)):  # noqa: B905
        print("log-probabilities after", *history, sep="  ")
        for item, log_prob in zip(candidates, log_probs):  # noqa: B905
            print(f"  {item}  {log_prob:.3f}")
