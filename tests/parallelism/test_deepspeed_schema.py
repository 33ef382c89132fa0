"""The user's keys of DeepSpeed's configuration, checked by what DeepSpeed itself reads."""

import pytest

from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.parallelism.deepspeed_config import PREFIX
from ugt_composer.training.preflight import check_machine


def check(own: str) -> None:
    """As a dry run and a run do it."""
    check_machine(load_config(overrides=["parallelism.strategy=deepspeed", "precision=fp32", f"{PREFIX}.{own}"]))


@pytest.mark.parametrize(
    ("own", "key", "hint"),
    [
        ("zero_optimisation.reduce_bucket_size=5", "zero_optimisation", "zero_optimization"),
        ("wall_clock_breakdwn=true", "wall_clock_breakdwn", "wall_clock_breakdown"),
        ("zero_optimization.reduce_buket_size=5", "zero_optimization.reduce_buket_size", "reduce_bucket_size"),
        (
            "zero_optimization.offload_optimizer.pin_memmory=true",
            "zero_optimization.offload_optimizer.pin_memmory",
            "pin_memory",
        ),
        ("zero_optimization.zenflow.topk_rati=0.1", "zero_optimization.zenflow.topk_rati", "topk_ratio"),
        ("fp16.initial_scale_powr=12", "fp16.initial_scale_powr", "initial_scale_power"),
        ("flops_profiler.profile_stp=3", "flops_profiler.profile_stp", "profile_step"),
        ("activation_checkpointing.profil=true", "activation_checkpointing.profil", "profile"),
        ("tensorboard.outputpath=x", "tensorboard.outputpath", "output_path"),
        ("timers.throughput.synchronised=true", "timers.throughput.synchronised", "synchronized"),
        ("timers.thrughput.enabled=false", "timers.thrughput", "throughput"),
        ("checkpoint.parallel_write.pipeline_stag=true", "checkpoint.parallel_write.pipeline_stag", "pipeline_stage"),
        ("data_types.grad_acum_dtype=bf16", "data_types.grad_acum_dtype", "grad_accum_dtype"),
        ("pipeline.stagez=2", "pipeline.stagez", "stages"),
        ("aio.blocksize=1", "aio.blocksize", "block_size"),
        ("zero_optimisation=auto", "zero_optimisation", "zero_optimization"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(own, key, hint):
    with pytest.raises(UserError) as error:
        check(own)
    assert str(error.value) == f"{PREFIX}.{key} is unknown to DeepSpeed; did you mean {hint}?"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            "zero_optimization.reduce_bucket_size=abc",
            "zero_optimization.reduce_bucket_size is 'abc'; DeepSpeed refuses",
        ),
        (
            "zero_optimization.overlap_comm=maybe",
            "zero_optimization.overlap_comm is 'maybe'; DeepSpeed refuses it: input",
        ),
        ("timers.throughput.enabled=abc", "timers.throughput.enabled is 'abc'; DeepSpeed refuses it"),
        ("wall_clock_breakdown=abc", "wall_clock_breakdown is 'abc'; DeepSpeed expects true or false"),
        ("flops_profiler.profile_step=abc", "flops_profiler.profile_step is 'abc'; DeepSpeed expects a whole number"),
        ("gradient_predivide_factor=abc", "gradient_predivide_factor is 'abc'; DeepSpeed expects a number"),
        ("steps_per_print=abc", "steps_per_print is 'abc'; DeepSpeed expects a whole number"),
        ("data_types.grad_accum_dtype=half32", "data_types.grad_accum_dtype is 'half32'; DeepSpeed expects fp32, bf16"),
        ("checkpoint=abc", "checkpoint is 'abc'; DeepSpeed expects keys and values"),
        ("aio=3", "aio is 3; DeepSpeed expects keys and values"),
        ("communication_data_type=zz", "communication_data_type: DeepSpeed refuses the configuration: Invalid"),
        (
            "elasticity.enabled=true",
            "elasticity: DeepSpeed refuses the configuration: Elastic training has been removed",
        ),
    ],
)
def test_a_value_that_deepspeed_cannot_use_is_refused(own, message):
    with pytest.raises(UserError) as error:
        check(own)
    assert str(error.value).startswith(f"{PREFIX}.{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "own",
    [
        "zero_optimization={reduce_bucket_size: 1e5, overlap_comm: true, sub_group_size: 1e9}",
        "zero_optimization={stage3_prefetch_bucket_size: auto, offload_optimizer: {device: none, pin_memory: true}}",
        "zero_optimization.zenflow.topk_ratio=0.1",
        "wall_clock_breakdown=true",
        "prescale_gradients=1",
        "gradient_predivide_factor=2",
        "steps_per_print=10",
        "communication_data_type=fp16",
        "fp16={enabled: false, initial_scale_power: 12}",
        "flops_profiler={enabled: true, profile_step: 3, output_file: null}",
        "comms_logger={enabled: true, prof_all: true}",
        "csv_monitor={enabled: false, output_path: x}",
        "activation_checkpointing={partition_activations: true, number_checkpoints: 4}",
        "data_types={grad_accum_dtype: bf16}",
        "checkpoint={tag_validation: Warn, parallel_write: {pipeline_stage: true}}",
        "timers.throughput.synchronized=false",
        "pipeline.stages=auto",
        "expert_parallel={enabled: false, top_k: 2}",
        "data_efficiency.data_routing={enabled: true, random_ltd: {enabled: false, total_layer_num: 3}}",
        "sequence_parallel_size=1",
        "vocabulary_size=100",
        "tensorboard={}",
    ],
)
def test_a_valid_key_passes(own):
    check(own)
