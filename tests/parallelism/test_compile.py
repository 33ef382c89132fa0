"""`compile: true` compared with eager."""

import pytest

from tests.shop import metrics_of, stage_arguments
from ugt_composer.config.load import load_config
from ugt_composer.training.build import build_trainer


@pytest.mark.slow  # compiles for a minute
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capacity", ["null", "1.25"])
def test_compiled_losses_are_eager_ones(shop, stages, tmp_path, capacity):
    for name in ("true", "false"):
        path, *rest = stage_arguments(shop, tmp_path / name, 3, stages / "stage2" / "best")
        few = [f"compile={name}", f"model.expert_capacity_factor={capacity}", "model.dropout=0", "max_duration=6ba"]
        trainer = build_trainer(load_config(path, overrides=[*rest, *few, "optimizer.lr=1e-3", "data.eval.streams=[]"]))
        trainer.train()
        trainer.close()
    for line, other in zip(metrics_of(tmp_path / "true"), metrics_of(tmp_path / "false"), strict=True):
        for key, value in line.items():
            if key.startswith("loss/"):
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (line["batch"], key)
