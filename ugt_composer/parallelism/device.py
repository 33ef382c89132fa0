"""The device of this process, set up in the same way for runs and commands."""

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
    """This rank's GPU, or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def prepare_device(config: Config) -> torch.device:
    """Makes `own_device` the current device and applies the config's `allow_tf32` and `deterministic`, for the whole
    process. To be called before anything is computed on a GPU."""
    device = own_device()
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.deterministic = config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch reads it once, at the first product
    if device.type == "cuda":
        torch.cuda.set_device(device)
    allow_tf32(config.allow_tf32)
    return device


class PlacedGPU(DeviceGPU):
    """A GPU that moves metrics but not the model, which the strategy has already placed, perhaps on the CPU."""

    def module_to_device(self, module: T) -> T:
        return super().module_to_device(module) if isinstance(module, Metric) else module


def composer_device(config: Config, composer_places_model: bool) -> Device:
    """The device that Composer's Trainer takes."""
    if not torch.cuda.is_available():
        return DeviceCPU()
    device_class = DeviceGPU if composer_places_model else PlacedGPU
    return device_class(allow_tf32=config.allow_tf32)
