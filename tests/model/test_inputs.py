"""A model that reads actions and times: which of them reach what, and that it starts as one without them."""

import pytest
import torch

from ugt_composer.data.recent_history import with_recent_history
from ugt_composer.model.history_tokens import HistoryTokens
from ugt_composer.vocabulary import ITEM, USER

INPUTS = {"num_actions": 3, "time_buckets": 8, "relative_time_bias": True}
LOGITS = ("l1_logits", "l2_logits", "l3_logits")
OUTPUTS = (*LOGITS, "user_repr", "chosen_logps", "rejected_logps", "bos_hidden")


@pytest.fixture
def model(tiny_model):
    model = tiny_model(**INPUTS)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, generator=generator)
    return model


@pytest.fixture
def batch(random_batch):
    batch, generator = random_batch(rows=5, rejected=2), torch.Generator().manual_seed(2)
    mask = batch["encoder_mask"]
    times = torch.randint(0, 10**6, mask.shape, generator=generator).cumsum(1)
    batch["encoder_token_types"] = torch.where(torch.arange(mask.shape[1]) == 0, USER, ITEM).expand_as(mask)
    batch["encoder_actions"] = torch.randint(0, 4, mask.shape, generator=generator) * mask
    batch["encoder_times"] = times.masked_fill(~mask, -1)
    later = torch.randint(0, 10**6, batch["decoder_mask"].shape, generator=generator).cumsum(1)
    batch["decoder_times"] = (times.amax(1, keepdim=True) + later).masked_fill(~batch["decoder_mask"], -1)
    return batch


def outputs_of(model, batch):
    return model(batch, with_logits=True)


def changed(model, batch, **values):
    """The outputs that differ from the batch's own if some of its tensors are others."""
    before, after = outputs_of(model, batch), outputs_of(model, {**batch, **values})
    return {name for name in OUTPUTS if not torch.allclose(before[name], after[name], atol=1e-5)}


@pytest.mark.parametrize("inputs", [{"num_actions": 3}, {"time_buckets": 8}, INPUTS])
def test_a_new_model_computes_bit_for_bit_what_one_without_these_inputs_does(tiny_model, batch, inputs):
    with_inputs, without = tiny_model(**inputs), tiny_model()
    weights = with_inputs.state_dict()
    added = {name for name in weights if name not in without.state_dict()}
    assert added
    assert not any(weights[name].any() for name in added)
    found, expected = outputs_of(with_inputs, batch), outputs_of(without, batch)
    assert all(torch.equal(found[name], expected[name]) for name in OUTPUTS)


def test_every_weight_of_the_inputs_gets_a_gradient_from_the_first_step(tiny_model, batch):
    model = tiny_model(**INPUTS).train()
    sum(value.float().pow(2).sum() for value in model(batch).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    new = [p.grad for name, p in model.named_parameters() if "time_bias" in name or name.startswith(("gap", "since"))]
    assert len(new) == 4
    assert all(gradient.any() for gradient in new)


def test_actions_and_times_of_padding_do_not_matter(model, batch):
    padding, past = ~batch["encoder_mask"], ~batch["decoder_mask"]
    assert padding.any()
    others = {
        "encoder_actions": batch["encoder_actions"].masked_fill(padding, 2),
        "encoder_times": batch["encoder_times"].masked_fill(padding, 10**9),
    }
    before, after = outputs_of(model, batch), outputs_of(model, {**batch, **others})
    for name in OUTPUTS:
        assert torch.equal(before[name], after[name])
    after = outputs_of(model, {**batch, "decoder_times": batch["decoder_times"].masked_fill(past, 10**9)})
    kept = batch["decoder_mask"]
    for name in LOGITS:
        torch.testing.assert_close(before[name][kept], after[name][kept])


def test_a_row_alone_is_scored_as_in_the_batch(model, batch):
    together = outputs_of(model, batch)
    for index, (history, target) in enumerate(
        zip(batch["encoder_mask"].sum(1), batch["decoder_mask"].sum(1), strict=True)
    ):
        alone = {name: value[index : index + 1] for name, value in batch.items()}
        alone |= {name: value[:, :history] for name, value in alone.items() if name.startswith("encoder")}
        alone |= {name: value[:, :target] for name, value in alone.items() if name.startswith(("decoder", "labels"))}
        outputs = outputs_of(model, alone)
        for name in OUTPUTS:
            expected = together[name][index : index + 1]
            expected = expected[:, :target] if name in LOGITS else expected
            torch.testing.assert_close(outputs[name], expected, rtol=1e-4, atol=1e-4)


def test_one_step_from_bos_reads_times_as_the_teacher_forced_pass_does(model, batch):
    torch.testing.assert_close(model.start(batch), model(batch)["bos_hidden"], rtol=0, atol=1e-5)
    later = {**batch, "decoder_times": batch["decoder_times"] + 10**9}
    assert not torch.allclose(model.start(later), model.start(batch))


def test_actions_and_times_of_the_history_reach_every_output(model, batch):
    item = batch["encoder_mask"] & (batch["encoder_token_types"] == ITEM)
    assert changed(model, batch, encoder_actions=(batch["encoder_actions"] % 3 + 1) * item) == set(OUTPUTS)
    assert changed(model, batch, encoder_times=batch["encoder_times"].clamp(max=3)) == set(OUTPUTS)
    assert changed(model, batch, decoder_times=batch["decoder_times"] + 10**9) == set(OUTPUTS)


def test_only_differences_of_times_matter(model, batch):
    shifted = {name: batch[name] + 10**8 * (batch[name] >= 0) for name in ("encoder_times", "decoder_times")}
    assert changed(model, batch, **shifted) == set()


def test_later_prediction_times_do_not_reach_earlier_logits(model, batch):
    times = batch["decoder_times"].clone()
    times[:, 1:] += 10**9
    before, after = outputs_of(model, batch), outputs_of(model, {**batch, "decoder_times": times})
    for name in LOGITS:
        torch.testing.assert_close(before[name][:, 0], after[name][:, 0])
    assert not torch.allclose(before["l1_logits"][:, 1], after["l1_logits"][:, 1])


def test_the_time_of_a_users_token_does_not_matter(model, batch):
    times = batch["encoder_times"].clone()
    times[:, 0] = 0
    assert changed(model, batch, encoder_times=times) == set()


def test_a_cut_history_is_read_as_if_it_had_always_been_so_short(model, batch):
    row = {name: value[:1] for name, value in batch.items()}  # of full length
    row = {**row, "rejected_mask": row["rejected_mask"] & False}
    cut = with_recent_history(row, 4)
    alone = {name: torch.cat((row[name][:, :1], row[name][:, -3:]), 1) for name in row if name.startswith("encoder")}
    alone["encoder_positions"] = torch.arange(4)[None]
    assert changed(model, cut, **alone) == set()
    assert changed(model, row, **alone) != set()


def bias_gradients(model, batch, encoder):
    model.train().zero_grad()
    times = batch["encoder_times"]
    x = torch.randn(*times.shape, 32, generator=torch.Generator().manual_seed(0))
    encoder(x, batch["encoder_token_types"], HistoryTokens(batch["encoder_mask"]), times).square().sum().backward()
    return [layer.attention.time_bias.grad.clone() for layer in model.encoder.layers]


def test_activation_checkpointing_changes_no_gradient(model, batch):
    plain = bias_gradients(model, batch, model.encoder)
    model.encoder.activation_checkpointing = True
    torch.testing.assert_close(bias_gradients(model, batch, model.encoder), plain)


@pytest.mark.slow
def test_compilation_changes_no_gradient(model, batch):
    compiled = torch.compile(model.encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(bias_gradients(model, batch, compiled), bias_gradients(model, batch, model.encoder))
