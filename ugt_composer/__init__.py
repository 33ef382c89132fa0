"""UGT Composer: a harness that trains generative recommenders.

Names are imported when they are first used, so that `import ugt_composer` is fast. Type checkers, editors and the
documentation read the imports below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ugt_composer.config.load import load_config as load_config
    from ugt_composer.losses.contrastive import ContrastiveLoss as ContrastiveLoss
    from ugt_composer.losses.dpo import DPOLoss as DPOLoss
    from ugt_composer.losses.group import GroupLoss as GroupLoss
    from ugt_composer.losses.moe_balance import MoEBalanceLoss as MoEBalanceLoss
    from ugt_composer.losses.ntp import NextTokenPredictionLoss as NextTokenPredictionLoss
    from ugt_composer.losses.unified import UnifiedLoss as UnifiedLoss
    from ugt_composer.metrics.calculator import MetricsCalculator as MetricsCalculator
    from ugt_composer.metrics.ranking import coverage as coverage
    from ugt_composer.metrics.ranking import diversity as diversity
    from ugt_composer.metrics.ranking import gini as gini
    from ugt_composer.metrics.ranking import hit_rate as hit_rate
    from ugt_composer.metrics.ranking import mrr as mrr
    from ugt_composer.metrics.ranking import ndcg_at_k as ndcg_at_k
    from ugt_composer.metrics.ranking import recall_at_k as recall_at_k
    from ugt_composer.model.ugt import UGT as UGT
    from ugt_composer.training.build import build_trainer as build_trainer
    from ugt_composer.training.composer_model import ComposerUGT as ComposerUGT
    from ugt_composer.training.optim import create_optimizer as create_optimizer
    from ugt_composer.training.optim import create_scheduler as create_scheduler

__version__ = "0.1.0"  # the only place where it is set: pyproject.toml reads it from here

_MODULES = {
    "UGT": "ugt_composer.model.ugt",
    "ComposerUGT": "ugt_composer.training.composer_model",
    "UnifiedLoss": "ugt_composer.losses.unified",
    "NextTokenPredictionLoss": "ugt_composer.losses.ntp",
    "ContrastiveLoss": "ugt_composer.losses.contrastive",
    "DPOLoss": "ugt_composer.losses.dpo",
    "GroupLoss": "ugt_composer.losses.group",
    "MoEBalanceLoss": "ugt_composer.losses.moe_balance",
    "build_trainer": "ugt_composer.training.build",
    "load_config": "ugt_composer.config.load",
    "recall_at_k": "ugt_composer.metrics.ranking",
    "ndcg_at_k": "ugt_composer.metrics.ranking",
    "mrr": "ugt_composer.metrics.ranking",
    "hit_rate": "ugt_composer.metrics.ranking",
    "coverage": "ugt_composer.metrics.ranking",
    "diversity": "ugt_composer.metrics.ranking",
    "gini": "ugt_composer.metrics.ranking",
    "MetricsCalculator": "ugt_composer.metrics.calculator",
    "create_optimizer": "ugt_composer.training.optim",
    "create_scheduler": "ugt_composer.training.optim",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
