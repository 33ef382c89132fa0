"""The device of this process, set up the same for runs and commands."""

import os
from typing import TypeVar

import torch
from composer.devices import Device, DeviceCPU, DeviceGPU
from torch import nn
from torchmetrics import Metric

from ugt_composer.config.schema import Config
from ugt_composer.float32_product import allow_tf32

T = TypeVar("T", bound=nn.Module)


def own_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def prepare_device(config: Config) -> torch.device:
    """`own_device`, made current, with `allow_tf32` and `deterministic` as the config says. For the whole process, and
    before anything is computed on a GPU."""
    device = own_device()
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch looks once, at the first product
    if device.type == "cuda":
        torch.cuda.set_device(device)
    allow_tf32(config.allow_tf32)
    return device


class PlacedGPU(DeviceGPU):
    """A GPU that moves metrics and no model: a strategy that offloads has put that where it belongs."""

    def module_to_device(self, module: T) -> T:
        return super().module_to_device(module) if isinstance(module, Metric) else module


def composer_device(config: Config, composer_places_model: bool) -> Device:
    """The device that Composer's Trainer takes."""
    if not torch.cuda.is_available():
        return DeviceCPU()
    kind = DeviceGPU if composer_places_model else PlacedGPU
    return kind(allow_tf32=config.allow_tf32)
