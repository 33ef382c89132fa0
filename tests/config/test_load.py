"""The configuration: defaults, merging, and messages for mistakes."""

from dataclasses import FrozenInstanceError, fields
from inspect import signature
from pathlib import Path

import pytest

from ugt_composer import __version__
from ugt_composer.config.load import check_saved_config, config_yaml, load_config, version_in
from ugt_composer.config.schema import Config, LossConfig, ModelConfig, OptimizerConfig
from ugt_composer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted(path for path in (ROOT / "yamls").glob("*.yaml") if path.stem != "rounds")  # those of train.py


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_and_survives_its_own_dump(path, tmp_path):
    config = load_config(ROOT / "yamls/stage1.yaml", path)
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_written_config_begins_with_the_version_that_wrote_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(Config()))
    assert path.read_text().splitlines()[0] == f"# ugt_composer {__version__}"
    assert version_in(path) == __version__
    path.write_text("seed: 1\n")
    assert version_in(path) is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_yamls_comment_every_key(stage):
    import yaml

    text = (ROOT / f"yamls/stage{stage}.yaml").read_text()
    documented_by_the_line_above = {"l2_weight", "l3_weight", "betas", "eps"}
    documented = set(documented_by_the_line_above)
    for line in text.splitlines():
        key, _, rest = line.strip(" -").partition(":")
        if "#" in rest:
            documented.add(key)
        elif rest.strip() and not line.startswith("#"):
            assert key in documented, f"{key} has no comment"
    assert yaml.safe_load(text)


@pytest.mark.parametrize(
    ("stage", "lr", "epochs", "lambdas"),
    [(1, 1e-4, "5ep", (0, 0, 0.01)), (2, 5e-5, "3ep", (0.1, 0, 0.01)), (3, 1e-5, "2ep", (0.1, 0.1, 0.01))],
)
def test_stage_yamls_hold_the_published_defaults(stage, lr, epochs, lambdas):
    config = load_config(ROOT / f"yamls/stage{stage}.yaml")
    assert config.optimizer.lr == lr
    assert config.max_duration == epochs
    loss = config.loss
    assert (loss.lambda_contrastive, loss.lambda_preference, loss.lambda_moe_balance) == lambdas
    assert config.global_train_batch_size == 4 * config.device_train_microbatch_size


def test_later_sources_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\noptimizer: {lr: 1.0}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = load_config(tmp_path / "a.yaml", tmp_path / "b.yaml", overrides=["optimizer.eps=1e-6"])
    assert (config.seed, config.optimizer.lr, config.optimizer.eps) == (2, 1.0, 1e-6)
    assert load_config(tmp_path / "a.yaml", overrides=["seed=3"]).seed == 3


def test_the_config_is_immutable():
    with pytest.raises(FrozenInstanceError):
        load_config().seed = 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.dpo_betta=0.2", ["loss.dpo_betta is unknown", "did you mean loss.dpo_beta?"]),
        ("optimiser.lr=1", ["optimiser is unknown", "did you mean optimizer?"]),
        ("optimizer.lr=fast", ["optimizer.lr is 'fast'", "expected a number"]),
        ("optimizer.lr=-1", ["optimizer.lr is -1.0", "above 0"]),
        ("scheduler.name=cosin", ["scheduler.name", "cosin", "cosine"]),
        ("scheduler.t_warmup=10", ["scheduler.t_warmup", "'10'", "500ba"]),
        ("max_duration=5%", ["max_duration", "5%", "2ep"]),
        ("loss.l1_weight=0.6", ["loss.l1_weight", "0.6 + 0.3 + 0.2", "sum to 1"]),
        ("loss.lambda_preference=0.1", ["loss.reference_from is missing"]),
        ("model.d_model=100", ["model.d_model is 100", "model.n_heads (16)"]),
        ("model.top_k_experts=17", ["model.top_k_experts is 17", "model.num_experts (16)"]),
        ("model.codebook_sizes=[4,9,9]", ["model.codebook_sizes", "[4, 9, 9]"]),
        ("model.time_buckets=1", ["model.time_buckets is 1", "2 to 1,024, or 0"]),
        ("model.num_actions=-1", ["model.num_actions is -1"]),
        ("model.relative_time_bias=true", ["model.relative_time_bias is true", "model.time_buckets 0"]),
        ("model=3", ["model is 3", "model.d_model"]),
        ("data.train.streams=[{locl: x}]", ["data.train.streams[0].locl", "data.train.streams[0].local"]),
        ("data.train.streams=[x]", ["data.train.streams[0] is 'x'"]),
        ("evaluation.beam_width=20", ["evaluation.beam_width is 20", "(50)"]),
        ("device_train_microbatch_size=some", ["device_train_microbatch_size", "'some'", "auto"]),
        ("log_interval=1ep", ["log_interval", "100ba"]),
        ("log_interval=0ba", ["log_interval", "0ba"]),
        ("max_duration=0ep", ["max_duration", "0ep"]),
        ("scheduler.t_warmup=150%", ["scheduler.t_warmup", "150%"]),
        ("seed=-1", ["seed is -1"]),
        ("optimizer.lr=nan", ["optimizer.lr is nan"]),
        ("loss.lambda_contrastive=inf", ["loss.lambda_contrastive is inf"]),
        ("evaluation.neighbour_weight=1", ["evaluation.neighbour_weight is 1.0", "below 1"]),
        ("evaluation.neighbour_weight=0.2", ["item_neighbours null", "expected a file for item_neighbours"]),
        (
            "loss.lambda_distillation=1",
            [
                "loss.lambda_distillation is 1.0",
                "contrastive_negatives in_batch",
                "expected lambda_contrastive above 0",
            ],
        ),
        ("model.dropout=1.0", ["model.dropout is 1.0", "below 1"]),
        ("model.pair_buckets=-1", ["model.pair_buckets is -1", "0 for none"]),
        ("model.repeat_bias=true", ["model.level_softmax codebook", "expected level_softmax catalogue"]),
        ("model.pair_buckets=64", ["model.level_softmax codebook", "expected level_softmax catalogue"]),
        ("data.eval.num_workers=-1", ["data.eval.num_workers is -1"]),
        ("data.train.cache_limit=abc", ["data.train.cache_limit", "100gb"]),
        ("data.train.streams={local: a}", ["data.train.streams", "a list"]),
        ("callbacks=[]", ["callbacks is []", "keys and values, or {}"]),
        ("evaluation.metrics=[mrr]", ["evaluation.metrics is ['mrr']", "keys and values, or {}"]),
        ("evaluation.k_values=10", ["evaluation.k_values is 10", "a list, in brackets"]),
        ("data.train.streams=[{local: a},{local: a}]", ["a twice"]),
        ("save_folder=s3://bucket/run", ["save_folder is s3://bucket/run", "checkpoint.remote"]),
        ("checkpoint.remote=gs://bucket/run", ["checkpoint.remote is 'gs://bucket/run'", "s3://bucket/prefix"]),
        ("checkpoint.remote=runs/one", ["checkpoint.remote is 'runs/one'", "s3://bucket/prefix"]),
        ("init_from=https://host/best", ["init_from is 'https://host/best'", "s3://bucket/prefix"]),
        ("loss.reference_from=gs://b/best", ["loss.reference_from is 'gs://b/best'", "s3://bucket/prefix"]),
        ("seed=[1", ["seed=[1"]),
        ("seed", ["key=value"]),
        ("seed=${nowhere}", ["nowhere"]),
    ],
)
def test_a_mistake_is_named_with_its_fix(override, words):
    with pytest.raises(UserError) as error:
        load_config(overrides=[override])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_compiling_layers_whose_weights_deepspeed_gathers_is_refused():
    zero = ["parallelism.strategy=deepspeed", "compile=true"]
    with pytest.raises(
        UserError, match=r"compile is true with .*zero_stage 3.*expected compile false, or strategy fsdp"
    ):
        load_config(overrides=[*zero, "parallelism.deepspeed.zero_stage=3"])
    assert load_config(overrides=[*zero, "parallelism.deepspeed.zero_stage=2"]).compile


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["x.yaml:", "not valid YAML"]),
        ("- 1", ["found a list; expected keys and values"]),
        ("optimizer", ["found text; expected keys and values"]),
        ("optimizer:\n\tlr: 1", ["x.yaml:2: not valid YAML: found a tab; indent with blanks"]),
        ("seed: 1\nseed: 2", ["x.yaml:2: seed is given twice"]),
        ("loss:", ["x.yaml:1: loss is empty"]),
        ("\0", ["x.yaml"]),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "x.yaml")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("override", ["optimizer.lr=-1", "optimizer.lr=x", "data.train.streams={local: a}"])
def test_an_override_is_blamed_for_its_value_and_the_file_for_its_own(tmp_path, override):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("seed: 7")
    bad.write_text("optimizer: {lr: -1}")
    with pytest.raises(UserError) as error:
        load_config(good, overrides=["seed=3", override])
    assert str(error.value).startswith(f"override {override}: ")
    with pytest.raises(UserError) as error:
        load_config(good, bad, overrides=["seed=3", "run_name=lr"])
    assert str(error.value).startswith(f"{good} + {bad}: optimizer.lr is -1")


@pytest.mark.parametrize(
    ("text", "overrides", "source"),
    [
        ("resume_despite: [nowhere]", ["init_from=best"], "{}"),
        ("model: {d_model: 96, n_heads: 5}", ["model={d_ff: 100}", "model.d_model=96"], "{}"),
        ("parallelism: {shard_reference: true}", ["model={d_ff: 100}"], "{}"),
        ("save_interval: seed", ["seed=3"], "{}"),
        ("model: {d_model: 96}", ["model.n_heads=5", "seed=3"], "override model.n_heads=5"),
        ("seed: 1", ["optimizer.lr=1", "optimizer.lr=-1"], "override optimizer.lr=-1"),
        ("optimizer: {lr: -1}", ["seed=3", "model.n_heads=4"], "{}"),
        ("model: {d_model: 96, n_heads: 5}", ["model.n_heads=7"], "{} + model.n_heads=7"),
        (
            "seed: 1",
            ["optimizer.lr=-1", "seed=3", "model.num_experts=2", "model.top_k_experts=1"],
            "override optimizer.lr=-1",
        ),
        ("seed: 1", ["seed=3", "model.d_model=96", "model.n_heads=5"], "{} + model.d_model=96 + model.n_heads=5"),
    ],
)
def test_an_override_is_blamed_only_for_a_problem_that_it_causes(tmp_path, text, overrides, source):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path, overrides=overrides)
    assert str(error.value).startswith(source.format(path) + ": "), str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_keys_are_constructor_arguments_of_the_same_name():
    from ugt_composer.losses.unified import UnifiedLoss
    from ugt_composer.model.ugt import UGT
    from ugt_composer.training.optim import create_optimizer

    for section, built in ((ModelConfig, UGT), (OptimizerConfig, create_optimizer)):
        arguments = set(signature(built).parameters) - {"model"}
        assert {f.name for f in fields(section)} == arguments
    UnifiedLoss(**LossConfig().arguments)
    with pytest.raises(TypeError, match="dpo_betta"):
        UnifiedLoss(dpo_betta=0.1)


def test_defaults_are_those_of_stage_1():
    # The default is no activation checkpointing; stage 1's microbatches are too large for that.
    keeps = ["parallelism.activation_checkpointing=false"]
    config, stage = Config(), load_config(ROOT / "yamls/stage1.yaml", overrides=keeps)
    for section in ("model", "loss", "optimizer", "scheduler", "evaluation", "parallelism", "loggers", "callbacks"):
        assert getattr(config, section) == getattr(stage, section), section


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.train.local=mds/a",
            "data.train.local=mds/a and data.train.streams (mds/b, mds/c) are both given; for the single folder add "
            "data.train.streams=[], for the streams data.train.local=null",
        ),
        ("data.train.remote=s3://b/a", "for the streams data.train.remote=null"),
        ("data={train: {local: x, remote: y}}", "for the streams data.train.local=null data.train.remote=null"),
    ],
)
def test_a_folder_over_streams_says_which_key_to_unset(tmp_path, override, message):
    (tmp_path / "x.yaml").write_text("data: {train: {streams: [{local: mds/b}, {local: mds/c}]}}")
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "x.yaml", overrides=[override])
    assert message in str(error.value)


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """The saved config of a run that was started in tmp_path, with a relative save_folder."""
    folder = tmp_path / "started" / "runs" / "one"
    (folder / "best").mkdir(parents=True)
    (folder / ".lock").touch()
    for path in (folder / "config.yaml", folder / "best" / "config.yaml"):
        path.write_text(config_yaml(load_config(overrides=["save_folder=runs/one"])))
    monkeypatch.chdir(tmp_path)
    return folder / "config.yaml"


def test_a_saved_config_resumes_its_run_or_says_where_to_start_it(saved, monkeypatch):
    for path in (saved, saved.parent / "best" / "config.yaml"):
        with pytest.raises(UserError) as error:
            check_saved_config(path, load_config(path))
        assert str(error.value).startswith(
            f"{path}: its save_folder is runs/one, which is {Path.cwd() / 'runs/one'} from"
        )
        assert f"run the command in {saved.parents[2]}, where the run was started" in str(error.value)
        assert f"add save_folder={saved.parent} to resume this run" in str(error.value)
    for override in (f"save_folder={saved.parent}", "save_folder=another"):
        check_saved_config(saved, load_config(saved, overrides=[override]))
    monkeypatch.chdir(saved.parents[2])
    check_saved_config(saved, load_config(saved))
    check_saved_config("runs/one/config.yaml", load_config("runs/one/config.yaml"))


def test_a_run_folder_that_was_moved_does_not_begin_another_run(saved, tmp_path):
    moved = saved.parent.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"add save_folder=.*/moved to resume this run"):
        check_saved_config(moved / "config.yaml", load_config(moved / "config.yaml"))


def test_a_copy_of_a_saved_config_starts_what_it_says(saved, tmp_path):
    (tmp_path / "copy.yaml").write_text(saved.read_text())
    check_saved_config("copy.yaml", load_config("copy.yaml"))


def test_a_missing_file_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_config("nowhere.yaml")
    assert f"nowhere.yaml: no such file (working directory: {tmp_path})" in str(error.value)


@pytest.mark.parametrize(("encoding", "byte"), [("utf-16", "0xff at position 0"), ("latin-1", "0xe9 at position 10")])
def test_a_file_that_is_not_utf_8_is_named(tmp_path, encoding, byte):
    path = tmp_path / "stage.yaml"
    path.write_text("run_name: élan", encoding=encoding)
    with pytest.raises(UserError, match=rf"stage\.yaml: is not text in UTF-8 \(byte {byte}\); save it as UTF-8"):
        load_config(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [("data.yaml", "`ugt import` writes it"), ("preferences.yaml", "if the table has ratings or actions")],
)
def test_a_missing_file_that_an_import_writes_is_named(tmp_path, name, how):
    with pytest.raises(UserError, match=f"{name}: no such file.*{how}"):
        load_config(ROOT / "yamls/stage1.yaml", tmp_path / name)
