"""The keys of a YAML of rounds, the only place of their defaults; yamls/rounds.yaml has a comment on each."""

import math
from dataclasses import dataclass, field

from ugt_composer.config.checks import check_positive
from ugt_composer.config.values import NULLS
from ugt_composer.seeds import LARGEST_SEED
from ugt_composer.storage.s3_url import is_url


@dataclass(frozen=True)
class PreferencesSettings:
    """Options of `ugt preferences`."""

    rejected: int = 20
    limit: int | None = None
    reward: str | None = None
    candidates: int | None = None
    reward_scale: float | None = None
    batch_size: int = 256

    def __post_init__(self):
        check_positive(self, "preferences.", "rejected", "limit", "candidates", "reward_scale", "batch_size")
        for name in ("candidates", "reward_scale"):
            if self.reward is None and (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"preferences.{name} is {value} with preferences.reward null, which it belongs to; expected null, "
                    "or a reward"
                )
        if self.candidates is not None and self.candidates < self.rejected:
            raise ValueError(
                f"preferences.candidates is {self.candidates}; expected at least preferences.rejected ({self.rejected})"
            )


@dataclass(frozen=True)
class RoundsSettings:
    save_folder: str = "checkpoints/rounds"
    init_from: str = "checkpoints/stage2/best"
    rounds: int = 3
    data: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    preferences: PreferencesSettings = field(default_factory=PreferencesSettings)
    proportion: float = 0.5
    stage: list[str] = field(default_factory=lambda: ["yamls/stage3.yaml"])
    overrides: list[str] = field(default_factory=list)
    composer: list[str] = field(default_factory=list)
    metric: str = "ndcg@10"
    seed: int = 42

    def __post_init__(self):
        check_positive(self, "", "rounds")
        for name, wanted in (("data", "recommend rows"), ("validation", "recommend rows for validation")):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected folders of shards with {wanted}, such as [mds/train]")
        if not self.stage:
            raise ValueError("stage is empty; expected YAML files of a preference stage, such as [yamls/stage3.yaml]")
        if not 0 < self.proportion <= 1 or math.isnan(self.proportion):
            raise ValueError(f"proportion is {self.proportion}; expected above 0 and at most 1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}; expected from 0 to {LARGEST_SEED}")
        for name in ("save_folder", "init_from"):
            if getattr(self, name) in NULLS:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a folder on this machine")
        if is_url(self.save_folder):
            raise ValueError(f"save_folder is {self.save_folder}; expected a folder on this machine")
        if is_url(self.init_from):
            raise ValueError(f"init_from is {self.init_from}; expected a folder on this machine: download it first")
