import numpy as np
import pytest
import torch

from ugt_composer.losses.contrastive import ContrastiveLoss, _gather_pool

TEMPERATURE = 0.2
DIM = 4
SEED = 3


class BruteForce:
    """InfoNCE by loops over pairs, with the memory as a list; shares no code with the loss."""

    def __init__(self, num_negatives, similarity="cosine"):
        self.num_negatives = num_negatives
        self.similarity = similarity
        self.memory = []  # (vector, item ids), newest last
        self.step = 0

    def __call__(self, users, items, item_ids, row_ids, valid, remember=True):
        if self.similarity == "cosine":
            users = users / np.linalg.norm(users, axis=1, keepdims=True)
            items = items / np.linalg.norm(items, axis=1, keepdims=True)
        rows = sorted(np.flatnonzero(valid), key=lambda i: row_ids[i])
        order = rows
        if len(users) > self.num_negatives + 1:
            order = sorted(rows, key=lambda i: self.shuffle_key(int(row_ids[i])))
        losses, right_items, right_users = [], [], []
        for i in rows:
            own = users[i] @ items[i]
            others = [j for j in order if j != i][: self.num_negatives]
            negatives = [j for j in others if tuple(item_ids[j]) != tuple(item_ids[i])]
            old = self.memory[::-1][: max(self.num_negatives - (len(rows) - 1), 0)]
            to_items = [users[i] @ items[j] for j in negatives]
            to_items += [users[i] @ vector for vector, ids in old if ids != tuple(item_ids[i])]
            to_users = [items[i] @ users[j] for j in negatives]
            losses.append((self.cross_entropy(own, to_items) + self.cross_entropy(own, to_users)) / 2)
            right_items.append(all(own > other for other in to_items))
            right_users.append(all(own > other for other in to_users))
        if remember:
            self.memory += [(items[i].copy(), tuple(item_ids[i])) for i in rows]
            self.memory = self.memory[-self.num_negatives :]
            self.step += 1
        if not rows:
            return 0.0, 0.0, 0.0
        return np.mean(losses), np.mean(right_items), np.mean(right_users)

    @staticmethod
    def cross_entropy(own, others):
        return np.log(np.exp((np.array([own, *others])) / TEMPERATURE).sum()) - own / TEMPERATURE

    def shuffle_key(self, row_id):
        def mix(x):
            for _ in range(2):
                x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
            return x ^ (x >> 16)

        return mix(row_id % 2**32 ^ row_id >> 32 ^ mix((self.step + SEED * 0x9E3779B9) % 2**32))


def make_loss(num_negatives, similarity="cosine"):
    return ContrastiveLoss(TEMPERATURE, num_negatives, DIM, SEED, similarity)


def make_rows(rows=8, seed=0, items=5, invalid=()):
    """Users, items, item ids (few items: duplicates are common), row ids in no order, validity."""
    rng = np.random.default_rng(seed)
    item_ids = np.stack([rng.integers(5, 5 + items, rows), np.full(rows, 6), np.full(rows, 7)], axis=1)
    valid = np.ones(rows, dtype=bool)
    valid[list(invalid)] = False
    item_ids[~valid] = -100
    vectors = rng.normal(size=(2, rows, DIM)).astype(np.float32)
    return vectors[0], vectors[1], item_ids, rng.permutation(1000)[:rows], valid


def as_tensors(users, items, item_ids, row_ids, valid):
    """Copies the arrays: a graph left by a failed backward pass would hang the exit if it held NumPy's memory."""
    vectors = [torch.tensor(vector, requires_grad=True) for vector in (users, items)]
    return *vectors, torch.tensor(item_ids), torch.tensor(row_ids), torch.tensor(valid)


def values(result):
    loss, metrics = result
    return [loss.item(), metrics["contrastive_u2i_acc"].item(), metrics["contrastive_i2u_acc"].item()]


@pytest.mark.parametrize("num_negatives", [1, 3, 6, 7, 8, 20, 100])
@pytest.mark.parametrize("invalid", [(), (0, 5)])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_equals_brute_force_over_steps(num_negatives, invalid, similarity):
    """Negatives: a sample of the batch (1, 3), the whole batch (7), and a memory that fills up and wraps (20)."""
    loss, reference = make_loss(num_negatives, similarity), BruteForce(num_negatives, similarity)
    for step in range(6):
        rows = make_rows(seed=step, invalid=invalid)
        assert values(loss(*as_tensors(*rows))) == pytest.approx(list(reference(*rows)), rel=2e-5)


def test_equals_brute_force_on_batches_of_changing_size():
    """A batch larger than the memory leaves its last items in it, which a smaller batch then uses."""
    loss, reference = make_loss(7), BruteForce(7)
    for step, size in enumerate((3, 18, 2, 1, 9, 4, 30, 3)):
        rows = make_rows(rows=size, seed=step, items=50)
        assert values(loss(*as_tensors(*rows))) == pytest.approx(list(reference(*rows)), rel=2e-5)


@pytest.mark.parametrize("num_negatives", [3, 20])
def test_gradient_equals_finite_differences_of_brute_force(num_negatives):
    loss, reference = make_loss(num_negatives), BruteForce(num_negatives)
    loss(*as_tensors(*make_rows(seed=1)))
    reference(*make_rows(seed=1))
    users, items, *rest = make_rows(seed=2, invalid=(4,))
    tensors = as_tensors(users, items, *rest)
    loss(*tensors)[0].backward()
    for which in (0, 1):
        expected = np.zeros_like(users, dtype=np.float64)
        for index in np.ndindex(users.shape):
            sides = []
            for shift in (1e-5, -1e-5):
                moved = [users.astype(np.float64), items.astype(np.float64)]
                moved[which][index] += shift
                sides.append(reference(*moved, *rest, remember=False)[0])
            expected[index] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(tensors[which].grad.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_without_ids_in_common_it_is_the_cross_entropy_of_the_similarity_matrix():
    users, items, item_ids, row_ids, valid = as_tensors(*make_rows())
    item_ids[:, 1] = torch.arange(8)
    loss, _ = make_loss(7)(users, items, item_ids, row_ids, valid)
    unit = torch.nn.functional.normalize
    logits = unit(users, dim=1) @ unit(items, dim=1).T / TEMPERATURE
    target = torch.arange(8)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(loss, expected)


def test_duplicate_positives_are_not_negatives():
    users, items, item_ids, row_ids, valid = as_tensors(*make_rows())
    item_ids[:] = torch.tensor([9, 9, 9])
    loss = make_loss(20)
    for _ in range(2):  # the second time they are in the memory as well
        assert loss(users, items, item_ids, row_ids, valid)[0].item() == pytest.approx(0, abs=1e-6)


def test_items_that_share_two_of_three_ids_are_negatives():
    users, items, item_ids, row_ids, valid = as_tensors(*make_rows())
    item_ids[:] = torch.tensor([9, 9, 9])
    item_ids[:, 2] = torch.arange(8)
    assert make_loss(7)(users, items, item_ids, row_ids, valid)[0].item() > 0.1


@pytest.mark.parametrize("num_negatives", [3, 20])
def test_rows_without_an_item_are_neither_queries_nor_candidates(num_negatives):
    """Leaving rows out equals marking them invalid, also in later steps. A sample's size would differ, so 3 of 4."""
    invalid = (1, 2, 6, 7) if num_negatives == 3 else (2, 7)
    marked, shorter = make_loss(num_negatives), make_loss(num_negatives)
    for step in range(3):
        rows = make_rows(seed=step, invalid=invalid)
        tensors = as_tensors(*rows)
        loss = marked(*tensors)
        left = shorter(*as_tensors(*[np.delete(value, invalid, axis=0) for value in rows]))
        assert values(loss) == pytest.approx(values(left), rel=1e-5)
        loss[0].backward()
        for tensor in tensors[:2]:
            assert torch.equal(tensor.grad[list(invalid)], torch.zeros(len(invalid), DIM))


@pytest.mark.parametrize("num_negatives", [3, 20])
def test_no_row_with_an_item_gives_exactly_zero_with_a_gradient(num_negatives):
    loss = make_loss(num_negatives)
    tensors = as_tensors(*make_rows(invalid=range(8)))
    result = loss(*tensors)
    result[0].backward()
    assert values(result) == [0, 0, 0]
    assert torch.equal(tensors[0].grad, torch.zeros(8, DIM))
    assert not loss.memory_valid.any()


def test_a_single_row_and_zero_vectors_give_no_nan():
    users, items, item_ids, row_ids, valid = as_tensors(*[value[:1] for value in make_rows()])
    loss = make_loss(5)
    assert loss(users, items, item_ids, row_ids, valid)[0].item() == 0
    zeros = torch.zeros(1, DIM, requires_grad=True)
    value, metrics = loss(zeros, items, item_ids + 1, row_ids, valid)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(zeros.grad).all()
    assert metrics["contrastive_u2i_acc"] == 0  # a tie with the remembered item is not a hit


@pytest.mark.parametrize("num_negatives", [3, 20])
def test_the_order_of_rows_does_not_matter(num_negatives):
    ordered, shuffled = make_loss(num_negatives), make_loss(num_negatives)
    for step in range(4):
        rows = make_rows(seed=step, invalid=(3,))
        order = np.random.default_rng(step).permutation(8)
        one = values(ordered(*as_tensors(*rows)))
        assert values(shuffled(*as_tensors(*[value[order] for value in rows]))) == pytest.approx(one, rel=1e-5)
    for name, value in ordered.state_dict().items():
        torch.testing.assert_close(shuffled.state_dict()[name], value)


def test_the_sample_is_new_each_step_and_depends_on_the_seed():
    users, items, item_ids, row_ids, valid = as_tensors(*make_rows(rows=40))
    item_ids[:, 1] = torch.arange(40)

    def losses(seed):
        loss = ContrastiveLoss(TEMPERATURE, 5, DIM, seed)
        return [loss(users, items, item_ids, row_ids, valid)[0].item() for _ in range(4)]

    assert len(set(losses(0))) == 4
    assert losses(0) == losses(0)
    assert not set(losses(0)) & set(losses(1))


def test_the_sample_covers_all_rows_evenly():
    loss = make_loss(9)
    _, _, item_ids, row_ids, valid = as_tensors(*make_rows(rows=40))
    counts = torch.zeros(40)
    for _ in range(400):
        pool = _gather_pool(item_ids, row_ids, valid)
        counts[pool.gathered_rows[loss._candidates(pool)]] += 1
        loss.step += 1
    assert counts.sum() == 400 * 10
    assert counts.min() > 60  # expected 100, standard deviation 8.7
    assert counts.max() < 140


def test_the_memory_is_written_in_training_only_and_survives_the_state_dict():
    loss = make_loss(20)
    loss.eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(*as_tensors(*make_rows()))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    loss.train()
    loss(*as_tensors(*make_rows()))
    assert loss.memory_valid.sum() == 8
    resumed = make_loss(20)
    resumed.load_state_dict(loss.state_dict())
    rows = make_rows(seed=1)
    assert values(resumed(*as_tensors(*rows))) == values(loss(*as_tensors(*rows)))


def test_several_forward_passes_before_the_backward_passes():
    loss = make_loss(20)
    batches = [as_tensors(*make_rows(seed=step)) for step in range(3)]
    results = [loss(*batch)[0] for batch in batches]
    sum(results).backward()
    together = [batch[0].grad.clone() for batch in batches]
    loss = make_loss(20)
    for batch, gradient in zip(batches, together, strict=True):
        batch[0].grad = None
        loss(*batch)[0].backward()
        torch.testing.assert_close(batch[0].grad, gradient)


def test_half_precision_and_autocast_compute_in_float32():
    tensors = as_tensors(*make_rows())
    half = [tensor.detach().bfloat16() for tensor in tensors[:2]]
    exact, _ = make_loss(7)(half[0].float(), half[1].float(), *tensors[2:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = make_loss(7)(*half, *tensors[2:])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("offset", [0, 100, 10_000])
@pytest.mark.parametrize("side", ["items", "users"])
def test_a_common_offset_of_one_side_changes_nothing(side, offset):
    """An offset of the items changes only the softmax over users, and one of the users only that over items. Each is
    therefore compared alone, with float64 without the offset."""
    width, temperature = 512, 0.07
    rng = np.random.default_rng(0)
    direction = torch.tensor(rng.normal(size=width))
    direction /= direction.norm()
    fixed, moving = torch.tensor(rng.normal(size=(2, 8, width)))
    fixed += direction - (fixed @ direction)[:, None] * direction  # the product of each with the direction is 1
    moving *= 4 / width**0.5
    expected = (fixed @ moving.T / temperature).log_softmax(-1)
    moving += offset * direction
    users, items = (fixed, moving) if side == "items" else (moving, fixed)
    numbers = torch.arange(8)
    loss = ContrastiveLoss(temperature, 7, width, SEED, "dot")
    pool, vectors = _gather_pool(numbers[:, None].expand(-1, 3), numbers, numbers >= 0), (users.float(), items.float())
    u2i, i2u = loss._logits(*vectors, pool.item_ids, pool, numbers, torch.cat(vectors, dim=1))
    found = (u2i if side == "items" else i2u).double().log_softmax(-1)
    # A row's own pair comes first, and is -inf among the others.
    whole = torch.where(torch.eye(8, dtype=torch.bool), found[:, :1], found[:, 1:9])
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-4 + offset * 1e-6)


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"num_negatives": 0}])
def test_settings_that_mean_nothing_are_errors(arguments):
    with pytest.raises(ValueError, match=r"must be .*found 0"):
        ContrastiveLoss(dim=DIM, **arguments)
