"""The adapters through which Composer uses a DeepSpeed engine."""

from types import SimpleNamespace

import pytest
import torch

from ugt_composer.parallelism.deepspeed import EngineLossScaler, EngineModule, EngineOptimizer


class RecordingEngine:
    """A fake engine in half precision that records its inputs."""

    def __init__(self):
        self.losses, self.steps, self.training = [], 0, True
        self.optimizer = SimpleNamespace(
            loss_scaler=SimpleNamespace(
                cur_scale=1024.0, scale_factor=2.0, scale_window=500, cur_iter=130, last_overflow_iter=99
            )
        )
        self.torch_autocast_z0_gradscaler = None

    def __call__(self, batch):
        return batch + 1

    def backward(self, loss):
        self.losses.append(loss)

    def step(self):
        self.steps += 1

    def train(self, mode):
        self.training = mode

    def fp16_enabled(self):
        return True


def test_the_backward_pass_is_the_engines_with_composers_factor():
    engine = RecordingEngine()
    loss = EngineLossScaler(engine).scale(torch.tensor(3.0))
    loss.mul_(0.5)
    loss.backward(create_graph=False)
    assert engine.losses == [torch.tensor(1.5)]


def test_the_loss_scale_goes_into_a_checkpoint_and_back():
    engine, other = RecordingEngine(), RecordingEngine()
    state = EngineLossScaler(engine).state_dict()
    # 30 good steps since the last overflow.
    assert state == {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 500,
        "_growth_tracker": 30,
    }
    other.optimizer.loss_scaler.cur_scale, other.optimizer.loss_scaler.cur_iter = 1.0, 0
    EngineLossScaler(other).load_state_dict(state)
    assert other.optimizer.loss_scaler.cur_scale == 1024.0
    assert EngineLossScaler(other).state_dict() == state


def test_its_state_is_that_of_pytorchs_scaler():
    keys = set(torch.amp.GradScaler(device="cpu", enabled=True).state_dict())
    assert set(EngineLossScaler(RecordingEngine()).state_dict()) == keys


def test_the_optimizers_step_is_the_engines_and_its_groups_are_shared():
    base = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    optimizer = EngineOptimizer(base, engine := RecordingEngine())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.zero_grad()
    optimizer.step()
    schedule.step()
    assert engine.steps == 1
    assert base.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_wrapped_engine_shows_no_parameters_and_follows_the_mode():
    module = EngineModule(engine := RecordingEngine())
    assert list(module.parameters()) == []
    module.eval()
    assert engine.training is False
    assert module(torch.tensor(1)) == 2
