"""`ema_decay`: the average equals a weighted mean, leaves training as it is, and survives a resume."""

import pytest
import torch
from composer import Callback

from tests.shop import comparable, stage_arguments
from tests.training.callbacks.test_preemption import preempt
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.parallelism.ddp import DdpStrategy
from ugt_composer.training.build import build_trainer
from ugt_composer.training.callbacks.weight_average import WeightAverage

DECAY = 0.9
EMA = (f"ema_decay={DECAY}", "model.dropout=0.2", "model.expert_capacity_factor=null", "device_eval_batch_size=16")
EVAL = "metrics/eval/"
NDCG = f"{EVAL}ndcg@10"


class Weights(Callback):
    """Keeps the weights after each batch."""

    def __init__(self):
        self.after = []

    def batch_end(self, state, logger):
        model = state.model.model
        self.after.append({name: value.detach().clone() for name, value in model.named_parameters()})


def trained(config) -> list[dict[str, torch.Tensor]]:
    trainer = build_trainer(config)
    weights = Weights()
    trainer.state.callbacks.append(weights)
    trainer.train()
    trainer.close()
    return weights.after


def of_training(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.startswith(EVAL)} for line in lines]


@pytest.fixture(scope="module")
def whole(shop, tmp_path_factory):
    """The folder of an uninterrupted run with an average, and its weights after each batch."""
    out = tmp_path_factory.mktemp("averaged")
    path, *rest = stage_arguments(shop, out, 1)
    return out, trained(load_config(path, overrides=[*rest, *EMA]))


def test_latest_is_the_weighted_mean_of_the_weights_after_each_batch(whole):
    out, after = whole
    factors = [DECAY ** (len(after) - step) for step in range(1, len(after) + 1)]
    model = load_portable(out / "latest")[0]
    for name, value in model.named_parameters():
        steps = torch.stack([weights[name].double() for weights in after])
        wanted = torch.tensordot(torch.tensor(factors, dtype=torch.float64), steps, 1) / sum(factors)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, after[-1][name]) for name, value in model.named_parameters())


def test_training_is_the_same_without_an_average(whole, stage_config, tmp_path):
    out, after = whole
    plain = trained(stage_config(tmp_path, 1, None, *EMA, "ema_decay=null"))
    for ours, theirs in zip(after, plain, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert of_training(comparable(out)) == of_training(comparable(tmp_path))
    assert comparable(out) != comparable(tmp_path)  # the evaluations differ


def test_evaluations_and_best_are_those_of_the_average(whole, stage_config, tmp_path):
    out, _ = whole
    values = [line[NDCG] for line in comparable(out) if NDCG in line]
    for name, wanted in (("latest", values[-1]), ("best", max(values))):
        # The evaluation of a run that starts from the model, without an average, has the values that selected it.
        start = build_trainer(stage_config(tmp_path / name, 2, out / name, *EMA, "ema_decay=null"))
        found = start.evaluate()
        start.close()
        assert found[NDCG] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("stopped_after", [4, 7])  # within an epoch, at an epoch's end
def test_a_resumed_run_has_the_same_average(whole, stage_config, tmp_path, stopped_after):
    out, _ = whole
    first = build_trainer(stage_config(tmp_path, 1, None, *EMA))
    first.fit(duration=f"{stopped_after}ba")
    first.close()
    trained(stage_config(tmp_path, 1, None, *EMA))
    wanted, found = load_portable(out / "latest")[0].state_dict(), load_portable(tmp_path / "latest")[0].state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in found.items())
    assert [line for line in comparable(tmp_path) if line["batch"] > 7] == [
        line for line in comparable(out) if line["batch"] > 7
    ]


def test_a_run_that_is_preempted_while_it_evaluates_saves_the_weights_it_trains(whole, stage_config, tmp_path):
    out, after = whole
    preempt(stage_config(tmp_path, 1, None, *EMA), "eval_batch_start", 5)
    content = newest_checkpoint(tmp_path)[1]
    assert all(torch.equal(content["model"][f"model.{name}"], value) for name, value in after[4].items())
    assert any(not torch.equal(content["average"][f"model.{name}"], value) for name, value in after[4].items())
    trained(stage_config(tmp_path, 1, None, *EMA))
    assert comparable(tmp_path) == comparable(out)


def test_weights_that_are_loaded_after_an_interrupted_evaluation_are_trained():
    model = torch.nn.Linear(2, 1)
    strategy = DdpStrategy(model, lambda network: torch.optim.SGD(network.parameters()), torch.device("cpu"))
    average = WeightAverage(strategy, DECAY)
    average.eval_start(None, None)  # no end: the evaluation has failed
    with torch.no_grad():
        model.weight.fill_(1.0)  # the checkpoint's average
        average.take_weights()
        model.weight.fill_(2.0)  # its weights
    average.fit_start(None, None)
    assert (model.weight == 2).all()
    with average.in_model():
        assert (model.weight == 1).all()


def test_an_average_cannot_begin_or_end_when_a_run_resumes(whole, stage_config):
    out, _ = whole
    with pytest.raises(UserError, match=r"ema_decay = 0\.9, now it is None: the run cannot resume"):
        build_trainer(stage_config(out, 1, None, *EMA, "ema_decay=null"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("ema_decay=1",), "ema_decay is 1.0; expected a number between 0 and 1"),
        (("ema_decay=0.9", "parallelism.strategy=deepspeed"), "expected ddp or fsdp, or ema_decay null"),
        (("ema_decay=0.9", "parallelism.strategy=fsdp", "checkpoint.sharded=true"), "shards hold no average"),
    ],
)
def test_what_has_no_average_is_refused(stage_config, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        stage_config(tmp_path, 1, None, *overrides)


def test_frozen_weights_have_no_average(stages, stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path, 2, stages / "stage1/best", *EMA, "loss.lambda_contrastive=0"))
    trained_names = {name for name, value in trainer.strategy.named_parameters() if value.requires_grad}
    assert set(trainer.checkpoints.average.names) == trained_names
    assert len(trained_names) < len(list(trainer.strategy.named_parameters()))
    trainer.close()
