"""The on-policy preference loss: a group of the policy's own items per user, rewarded and compared with each other.

Shapes: B rows, G items of a group, L = 3 levels, C_l the most ids that the catalogue has below a prefix.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.losses.normalization import TARGETS, batch_mean, has_target
from ugt_composer.losses.term import Mean
from ugt_composer.vocabulary import LEVELS

EPSILON = 1e-4  # added to the standard deviation of rewards, as in the TRL library


class GroupLoss(nn.Module):
    """Group relative policy optimisation (GRPO; Shao et al. 2024, arXiv 2402.03300), averaged over rows with a target.

    A group x_1 … x_G is drawn from the policy pi, with replacement, and joined by the target t with its exact
    probability as its weight (0 if it cannot be drawn: the catalogue lacks it, or it is not recommended any more):

        E[r] = pi(t) r(t) + E over x ~ pi of r(x) [x ≠ t] ≈ R = pi(t) r(t) + 1/G sum of r(x_i) [x_i ≠ t]
        gradient = pi(t) A(t) grad log pi(t) + 1/G sum of A(x_i) [x_i ≠ t] grad log pi(x_i) - beta grad KL(pi || ref)

    The advantage A(x) = r(x) - R, for a drawn item without its own part of R (leave one out; Kool et al. 2019), is
    divided by the standard deviation of the group's rewards if `scale_rewards`. Without this division the gradient is
    unbiased (Liu et al. 2025, Dr. GRPO, arXiv 2503.20783).

    The group is drawn anew in each step from the weights that the step changes, so the ratio of new to old policy is
    1, and GRPO's clipping of it would have no effect: there is none.

    KL(pi || ref) is summed exactly over the next level's softmax and averaged over the prefixes that were drawn (Amini
    et al. 2025, arXiv 2504.10637), and its gradient includes that of drawing these prefixes, so both are unbiased. It
    is exactly 0 for a policy that equals the reference.

    Args:
        rewards: of an item that shares the first level's id with the target, the first two, all three; times the
            row's preference score.
        kl: beta; 0: no reference is needed.
        scale_rewards: see above.
    """

    name = "group_loss"

    def __init__(
        self,
        rewards: Sequence[float] = LossConfig.group_rewards,
        kl: float = LossConfig.group_kl,
        scale_rewards: bool = LossConfig.group_scale_rewards,
    ) -> None:
        super().__init__()
        if len(rewards) != LEVELS or min(rewards) < 0 or list(rewards) != sorted(rewards):
            raise ValueError(f"rewards must be {LEVELS} numbers from 0, none below the one before, found {rewards}")
        if kl < 0:
            raise ValueError(f"kl must be 0 or more, found {kl}")
        self.rewards = tuple(rewards)
        self.kl = kl
        self.scale_rewards = scale_rewards
        self.means = (
            Mean("group_loss", TARGETS, weight=1.0),
            Mean("group_reward", TARGETS, higher_is_better=True),
            Mean("group_recall", TARGETS, higher_is_better=True),
            Mean("group_entropy", TARGETS),
            *([Mean("group_kl", TARGETS)] if kl else []),
        )

    def forward(
        self,
        ids: Tensor,
        log_probs: Tensor,
        distributions: Sequence[Tensor],
        target: Tensor,
        target_log_probs: Tensor,
        score: Tensor,
        in_catalogue: Tensor,
        valid: Tensor,
        reference: Sequence[Tensor] | None = None,
        values: Tensor | None = None,
        target_values: Tensor | None = None,
        batch_totals: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        ids, log_probs, distributions: of the group, see `ItemSamples`
        target: (B, L) int64; target_log_probs (B,); score (B,), by which `rewards` are multiplied
        in_catalogue: (B,) bool, whether the target can be drawn at all
        valid: (B,) bool, whether the row has a target
        reference: the reference's distributions; not read if `kl` is 0
        values, target_values: (B, G), (B,) additional rewards of the items; None: 0
        batch_totals: counts of the global batch, see `normalization`
        returns: loss (), -R + beta KL, with the gradient above; and the means of `group_reward` (R), `group_recall`
            (how often the target is among the drawn items), `group_entropy` (of the policy) and, unless `kl` is 0,
            `group_kl`, both in nats
        """
        rewards, target_rewards = score[:, None] * self._rewards(ids, target), score * self.rewards[-1]
        if values is not None and target_values is not None:
            rewards, target_rewards = rewards + values, target_rewards + target_values
        is_other = (ids != target[:, None]).any(dim=-1)
        weight = torch.where(in_catalogue, target_log_probs.detach().exp(), 0.0)
        advantages, target_advantage, reward = self._advantages(rewards, target_rewards, is_other, weight)
        gain = weight * target_advantage * target_log_probs.float()
        gain = gain + (advantages * is_other * log_probs.sum(dim=-1)).mean(dim=-1)
        kl = torch.zeros_like(reward)
        loss = -gain
        if self.kl:
            if reference is None:
                raise ValueError("the reference's distributions are needed unless loss.group_kl is 0")
            divergences = _over_levels(distributions, reference)
            kl = divergences.sum(dim=-1).mean(dim=-1)
            loss = loss + self.kl * (kl + _gradient_of_drawing(divergences.detach(), log_probs))
        value = -reward + self.kl * kl.detach()
        loss = loss + (value - loss).detach()

        def mean(row_values: Tensor) -> Tensor:
            total = torch.where(valid, row_values, 0.0).sum()
            return batch_mean(total, valid.sum(), len(valid), batch_totals, TARGETS)

        metrics = {
            "group_reward": mean(reward),
            "group_recall": mean((~is_other).any(dim=-1).float()),
            "group_entropy": mean(-_over_levels([one.detach() for one in distributions]).sum(dim=-1).mean(dim=-1)),
        }
        return mean(loss), metrics | ({"group_kl": mean(kl.detach())} if self.kl else {})

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        levels = range(1, LEVELS + 1)
        needs_reference = self.kl and "reference_group_l1_log_probs" in outputs
        return self(
            outputs["group_ids"],
            outputs["group_log_probs"],
            [outputs[f"group_l{level}_log_probs"] for level in levels],
            labels[:, 0].clamp(min=0),
            outputs["group_target_log_probs"],
            batch["preference_score"].float(),
            outputs["group_target_items"] >= 0,
            has_target(labels),
            [outputs[f"reference_group_l{level}_log_probs"] for level in levels] if needs_reference else None,
            outputs.get("group_values"),
            outputs.get("group_target_values"),
            batch.get("batch_totals"),
        )

    def _rewards(self, ids: Tensor, target: Tensor) -> Tensor:
        """(B, G) float32: the reward of the longest prefix that an item shares with the target."""
        same = ids == target[:, None]
        rewards = torch.zeros_like(same[..., 0], dtype=torch.float32)
        for level, reward in enumerate(self.rewards):
            rewards = rewards.masked_fill(same[..., : level + 1].all(dim=-1), reward)
        return rewards

    def _advantages(
        self, rewards: Tensor, target_rewards: Tensor, is_other: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages of the drawn items (B, G) and of the target (B,), and the mean reward R (B,); no gradients."""
        of_target, count = weight * target_rewards, rewards.shape[1]
        others = rewards * is_other
        reward = of_target + others.mean(dim=-1)
        without_own = of_target[:, None] + (others.sum(dim=-1, keepdim=True) - others) / (count - 1)
        advantages, target_advantage = rewards - without_own, target_rewards - reward
        if not self.scale_rewards:
            return advantages, target_advantage, reward
        variance = weight * (target_rewards - reward).square()
        variance = variance + (is_other * (rewards - reward[:, None]).square()).mean(dim=-1)
        scale = 1 / (variance.sqrt() + EPSILON)
        return advantages * scale[:, None], target_advantage * scale, reward


def _over_levels(log_p: Sequence[Tensor], log_q: Sequence[Tensor] | None = None) -> Tensor:
    """sum of p log(p / q) over each level's ids, given the drawn prefix: (B, G, L). Without q: of p log p.

    log_p, log_q: three tensors (B, 1 or G, C_l), -inf in the same slots.
    """
    draws, sums = log_p[-1].shape[1], []
    for level, one in enumerate(log_p):
        is_slot = one > float("-inf")
        terms = one.masked_fill(~is_slot, 0.0)
        ratio = terms if log_q is None else terms - log_q[level].float().detach().masked_fill(~is_slot, 0.0)
        sums.append((terms.exp() * is_slot * ratio).sum(dim=-1).expand(-1, draws))
    return torch.stack(sums, dim=-1)


def _gradient_of_drawing(divergences: Tensor, log_probs: Tensor) -> Tensor:
    """A term (B,) whose gradient is that of the mean divergence (B, G, L) with respect to which prefixes are drawn.

    Each level's choice is credited with the divergences of the levels below it, minus their mean over the group's other
    items (REINFORCE).
    """
    below = torch.stack([divergences[..., level + 1 :].sum(dim=-1) for level in range(LEVELS)], dim=-1)
    others = (below.sum(dim=1, keepdim=True) - below) / (divergences.shape[1] - 1)
    return ((below - others) * log_probs).sum(dim=-1).mean(dim=-1)
