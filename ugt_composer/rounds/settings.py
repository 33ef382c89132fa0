"""The keys of a YAML of rounds, the only place of their defaults; yamls/rounds.yaml has a comment on each."""

from dataclasses import dataclass, field

from ugt_composer.config.checks import check_bounds
from ugt_composer.config.keys import POSITIVE, Bounds, key
from ugt_composer.config.values import NULLS
from ugt_composer.seeds import LARGEST_SEED
from ugt_composer.storage.s3_url import is_url


@dataclass(frozen=True)
class PreferencesSettings:
    """Options of `ugt preferences`."""

    rejected: int = key(20, bounds=POSITIVE, unit="items")
    limit: int | None = key(None, bounds=POSITIVE, unit="rows")
    reward: str | None = None
    candidates: int | None = key(None, bounds=POSITIVE, unit="items")
    reward_scale: float | None = key(None, bounds=POSITIVE)
    batch_size: int = key(256, bounds=POSITIVE, unit="rows")

    def __post_init__(self):
        check_bounds(self, "preferences.")
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
    rounds: int = key(3, bounds=POSITIVE)
    data: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    preferences: PreferencesSettings = field(default_factory=PreferencesSettings)
    proportion: float = key(0.5, bounds=Bounds(above=0, most=1, wanted="above 0 and at most 1"))
    stage: list[str] = field(default_factory=lambda: ["yamls/stage3.yaml"])
    overrides: list[str] = field(default_factory=list)
    composer: list[str] = field(default_factory=list)
    metric: str = "ndcg@10"
    seed: int = key(42, bounds=Bounds(least=0, most=LARGEST_SEED, wanted=f"from 0 to {LARGEST_SEED}"))

    def __post_init__(self):
        check_bounds(self, "")
        for name, wanted in (("data", "recommend rows"), ("validation", "recommend rows for validation")):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected folders of shards with {wanted}, such as [mds/train]")
        if not self.stage:
            raise ValueError("stage is empty; expected YAML files of a preference stage, such as [yamls/stage3.yaml]")
        for name in ("save_folder", "init_from"):
            if getattr(self, name) in NULLS:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a folder on this machine")
        if is_url(self.save_folder):
            raise ValueError(f"save_folder is {self.save_folder}; expected a folder on this machine")
        if is_url(self.init_from):
            raise ValueError(f"init_from is {self.init_from}; expected a folder on this machine: download it first")
