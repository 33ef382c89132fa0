"""The devices of models and metrics."""

import torch
from composer.devices import DeviceGPU
from torch import nn

from ugt_composer.metrics.torch_metrics import evaluation_metrics
from ugt_composer.parallelism.device import PlacedGPU


def test_an_offloading_strategy_s_device_moves_metrics_and_no_model(monkeypatch):
    monkeypatch.setattr(DeviceGPU, "__init__", lambda self: setattr(self, "_device", torch.device("meta")))
    device = PlacedGPU()
    model = nn.Linear(2, 2)
    assert device.module_to_device(model) is model
    assert model.weight.device.type == "cpu"
    metrics = evaluation_metrics((), {}, (1,), 3)
    metric = metrics["recall@1"]
    assert device.module_to_device(metric) is metric
    assert {metric.device.type for metric in metrics.values()} == {"meta"}
