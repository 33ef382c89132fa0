"""The estimated GPU memory of a run, and whether the shipped stages fit an 80 GB card."""

from dataclasses import replace
from pathlib import Path

import pytest

from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import Manifest
from ugt_composer.errors import UserError
from ugt_composer.training import memory_estimate
from ugt_composer.training.memory_estimate import GIB, RESERVE, USUAL_CARD, estimate, longest_rows
from ugt_composer.training.preflight import check_machine

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = [
    *((1, ["parallelism.strategy=ddp"]), (8, ["parallelism.strategy=ddp"])),
    *((8, ["parallelism.strategy=fsdp"]), (64, ["parallelism.strategy=fsdp"])),
    *((8, ["parallelism.strategy=deepspeed", f"parallelism.deepspeed.zero_stage={stage}"]) for stage in (1, 2, 3)),
]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(memory_estimate.torch.cuda, "is_available", lambda: False)


def loaded(stage: int, ranks: int = 1, *overrides: str):
    config = load_config(ROOT / f"yamls/stage{stage}.yaml", overrides=overrides)
    return replace(config, global_train_batch_size=config.global_train_batch_size * ranks)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shipped_stages_fit_an_80_gb_card_at_full_length_under_every_strategy(stage):
    for ranks, overrides in STRATEGIES:
        config = loaded(stage, ranks, *overrides)
        found = estimate(config, ranks, longest_rows(config, []))
        assert found.shape == (config.device_train_microbatch_size, 512, 8, int(stage == 3))
        assert found.precision == "amp_bf16"
        assert found.fits, f"{ranks} {overrides}: {found.peak / GIB:.1f} GiB"


def test_stage_1_needs_checkpointing():
    config = loaded(1, 1, "parallelism.activation_checkpointing=false")
    found = estimate(config, 1, (512, 8, 0))
    assert not found.fits
    assert 256 < found.most_rows < 512


def test_the_estimated_row_limit_is_the_largest_that_fits():
    config = loaded(1, 1, "parallelism.activation_checkpointing=false")
    most = estimate(config, 1, (512, 8, 0)).most_rows
    fits = [
        estimate(replace(config, device_train_microbatch_size=rows), 1, (512, 8, 0)).peak <= USUAL_CARD - RESERVE
        for rows in (most, most + 1)
    ]
    assert fits == [True, False]


def test_the_trie_of_a_catalogue_takes_memory_but_vectors_of_all_its_items_do_not():
    options = ["loss.contrastive_negatives=catalogue", "evaluation.item_score_weight=1", "data.catalogue=items.jsonl"]
    config = loaded(2, 1, *options)
    few, many, more = (estimate(config, 1, (512, 8, 0), items) for items in (0, 10_000_000, 20_000_000))
    assert {item.name for item in many.items} - {item.name for item in few.items} == {"catalogue"}
    assert more.on_device - many.on_device == 96 * 10_000_000
    assert more.activations == many.activations  # one vector per item would be 20 GB
    assert more.evaluation - many.evaluation <= 8 * 10_000_000


def test_an_auto_microbatch_is_halved_until_it_fits():
    found = estimate(loaded(2, 1, "device_train_microbatch_size=auto"), 1, (512, 8, 0))
    assert found.shape.rows == 256 < found.most_rows < 512
    assert found.fits


def test_weights_have_the_bytes_that_they_compute_with():
    def held(*overrides: str) -> dict[str, int]:
        return {item.name: item.bytes for item in estimate(loaded(3, 8, *overrides), 8, (64, 4, 1)).items}

    fsdp = ("parallelism.strategy=fsdp", "parallelism.fsdp.reduce_every_microbatch=true")
    half, single = (held(*fsdp, f"parallelism.fsdp.param_dtype={dtype}") for dtype in ("null", "float32"))
    assert single["gathered"] == 2 * half["gathered"]
    assert single["reference"] == 2 * half["reference"]
    in_half = held(*fsdp, "parallelism.fsdp.reduce_dtype=bfloat16")
    assert half["reduced at once"] / in_half["reduced at once"] == (2 + 4) / (2 + 2)
    zero = ("parallelism.strategy=deepspeed", "parallelism.deepspeed.zero_stage=2")
    in_half = held(*zero, "parallelism.deepspeed.config={data_types: {grad_accum_dtype: bf16}}")
    assert held(*zero)["gradients"] == 2 * in_half["gradients"]
    small = held(*zero, "parallelism.deepspeed.config={zero_optimization: {reduce_bucket_size: 1000}}")
    assert small["buckets"] == 2 * 2 * 1000  # and the copy that is sent


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("{zero_optimization: {reduce_bucket_size: lots}}", ["DeepSpeed refuses", "reduce_bucket_size", "lots"]),
        ("{zero_optimization: {reduce_bucket_size: -5}}", ["DeepSpeed refuses", "reduce_bucket_size", "-5"]),
        (
            "{zero_optimization: {reduce_buket_size: 5}}",
            ["reduce_buket_size is unknown to DeepSpeed; did you mean reduce_bucket_size?"],
        ),
        ("{zero_optimization: 5}", ["parallelism.deepspeed.config.zero_optimization is 5; expected keys"]),
        ("{data_types: 5}", ["parallelism.deepspeed.config.data_types is 5; DeepSpeed expects keys"]),
    ],
)
def test_configs_that_deepspeed_rejects_are_refused(own, words):
    config = loaded(2, 8, "parallelism.strategy=deepspeed", "precision=fp32", f"parallelism.deepspeed.config={own}")
    with pytest.raises(UserError) as error:
        check_machine(config)
    assert all(word in str(error.value) for word in words), error.value


def test_a_model_that_fits_no_gpu_is_reported():
    found = estimate(loaded(1, 1, "model.d_ff=262144"), 1, (512, 8, 0))
    assert found.most_rows == 0
    assert not found.fits


def test_a_microbatch_takes_more_memory_for_larger_sizes():
    def activations(*overrides: str, longest=(64, 64, 1)):
        return estimate(loaded(3, 1, *overrides), 1, longest).activations

    base = activations()
    assert activations(longest=(65, 64, 1)) > base
    assert activations(longest=(64, 65, 1)) > base
    assert activations(longest=(64, 64, 9)) > base
    assert activations("model.dropout=0.1") > base
    assert activations("model.attention_dropout=0.1") == base  # the kernel draws its dropout where it needs it
    assert activations("precision=fp32", "model.attention_dropout=0.1") > activations("precision=fp32")
    assert activations("loss.label_smoothing=0.1") == base  # logits exist in pieces
    assert activations("loss.lambda_anchor=0") < base
    assert activations("loss.lambda_contrastive=0") < base
    assert activations("loss.dpo_reference_free=true", longest=(512, 1, 1)) < activations(longest=(512, 1, 1))
    assert activations("precision=fp32") > 1.4 * base
    assert activations("parallelism.activation_checkpointing=true") < base / 2


def test_lengths_are_those_of_the_data():
    def manifest(*longest: int) -> Manifest:
        return Manifest("", "recommend", 1, (9, 9, 9), 1, longest, 2, "", None)

    config = loaded(3)
    assert longest_rows(config, [manifest(40, 3, 0), manifest(9, 7, 2)]) == (40, 7, 2)
    assert longest_rows(loaded(1), [manifest(0, 0, 0)]) == (1, 1, 0)
    assert longest_rows(loaded(1, 1, "model.max_seq_len=100"), []) == (100, 8, 0)
