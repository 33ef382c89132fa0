"""Values as they were typed: text for keys of text, and numbers that everybody reads alike."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.config.load import config_yaml, load_config
from ugt_composer.errors import UserError


def value_of(config, key: str):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


TEXTS = ["007", "1e5", "yes", "on", "null", "~", "0x10", "1_000", "2026-11-27", "12:30:45", "1.50", "True", "0o7", "1."]


@pytest.mark.parametrize("text", [*TEXTS, "[v2] a: b # c", "@x", "%x", "*a", "- a", "{a}", "it's"])
def test_text_on_the_command_line_is_what_was_typed(text, tmp_path):
    config = load_config(overrides=[f"run_name={text}", f"save_folder={text}"])
    assert (config.run_name, config.save_folder) == (text, text)
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_a_file_is_what_was_typed(tmp_path, text):
    (tmp_path / "x.yaml").write_text(f"run_name: {text}\nloggers: {{wandb: {{project: a{text}, tags: [{text}]}}}}\n")
    config = load_config(tmp_path / "x.yaml")
    assert (config.run_name, config.loggers.wandb.project, config.loggers.wandb.tags) == (text, f"a{text}", [text])


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="'\"$"), min_size=1))
def test_any_text_reaches_its_key(text):
    if text != "???":
        assert load_config(overrides=[f"run_name={text}"]).run_name == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1_000", 1000),
        ("seed=0o10", 8),
        ("seed=0x10", 16),
        ("seed=+5", 5),
        ("seed='5'", 5),
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=.5", 0.5),
        ("optimizer.lr=1", 1.0),
        ("data.train.shuffle=off", False),
        ("compile=Yes", True),
        ("init_from=null", None),
        ("init_from='null'", "null"),
        ("data.train.predownload=", None),
        ("device_train_microbatch_size=auto", "auto"),
        ("device_train_microbatch_size=64", 64),
        ("evaluation.k_values=[5,10]", (5, 10)),
        ("run_name='007 a'", "007 a"),
        ("loggers.wandb.tags=[007,yes]", ["007", "yes"]),
        ("callbacks.one.a=1e5", 1e5),
        ("callbacks.one.a=12:30:45", "12:30:45"),
        ("callbacks.one.a=2026-11-27", "2026-11-27"),
        ("callbacks.one.a='010'", "010"),
        ("callbacks.one.a=[on, 1, 0x10, 1.5, null]", [True, 1, 16, 1.5, None]),
    ],
)
def test_a_value_has_the_type_of_its_key(override, expected):
    value = value_of(load_config(overrides=[override]), override.partition("=")[0])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "text", "advice"),
    [
        ("seed", "010", "write 10, or 8 if it is octal"),
        ("seed", "08", "write 8"),
        ("seed", "00", "write 0"),
        ("seed", "-010", "write -10, or -8 if it is octal"),
        ("optimizer.lr", "010", "write 10, or 8 if it is octal"),
        ("device_train_microbatch_size", "064", "write 64, or 52 if it is octal"),
        ("data.eval.num_workers", "0_7", "write 7"),
        ("callbacks.one.a", "010", "write 10, or 8 if it is octal, or put it in quotes if it is text"),
    ],
)
def test_a_number_with_a_leading_zero_is_refused_in_overrides_and_files(tmp_path, key, text, advice):
    message = f"{key} is {text}, which is written with a leading zero; {advice}"
    with pytest.raises(UserError) as error:
        load_config(overrides=[f"{key}={text}"])
    assert str(error.value) == f"override {key}={text}: {message}"
    *sections, last = key.split(".")
    lines = [
        *(f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)),
        f"{'  ' * len(sections)}{last}: ",
    ]
    (tmp_path / "x.yaml").write_text("\n".join(lines) + text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "x.yaml")
    assert str(error.value) == f"{tmp_path / 'x.yaml'}:{len(lines)}: {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.betas=[a,b]", "optimizer.betas[0] is 'a'; expected a number"),
        ("optimizer.betas=[.9]", "optimizer.betas is [.9]; expected a list of 2 numbers"),
        ("model.codebook_sizes=[1,2,3,4]", "model.codebook_sizes is [1, 2, 3, 4]; expected a list of 3 numbers"),
        ("optimizer.betas[0]=5", "optimizer.betas is a list, of which a part cannot be set; write all of it"),
        ("seed='abc", "'abc is not valid YAML: a bracket or quote is not closed"),
        ("seed=[1", "[1 is not valid YAML: a bracket or quote is not closed"),
        ('run_name="a', '"a is not valid YAML: a bracket or quote is not closed'),
        (".lr=3", "'.lr' is not the name of a key; expected key=value such as optimizer.lr=1e-4"),
        ("optimizer.=3", "'optimizer.' is not the name of a key"),
        ("optimizer.lr=", "optimizer.lr is empty; expected a number"),
        ("run_name=", "run_name is empty; expected text"),
        ("run_name=???", "run_name is '???'; expected a value"),
        ("lr=1", "lr is unknown; did you mean optimizer.lr?"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate is unknown; did you mean optimizer.lr?"),
        ("model.lr=1", "model.lr is unknown; did you mean optimizer.lr?"),
        ("local=x", "local is unknown; did you mean data.train.local or data.eval.local?"),
        ("optimizer.speed=1", "valid here: optimizer.betas, optimizer.eps, optimizer.lr, optimizer.name"),
        ("optimizer.weight-decay=1", "did you mean optimizer.weight_decay?"),
        ("seed=1e3", "seed is 1e3; expected a whole number, such as 1000"),
        ("seed=1:30", "seed is '1:30'; expected a whole number"),
        ("seed=-1", "seed is -1; expected 0 to 4294967294"),
        ("seed=4294967296", "seed is 4294967296; expected 0 to 4294967294"),
        ("seed=null", "seed is null; expected a whole number"),
        ("compile=maybe", "compile is 'maybe'; expected true or false"),
        ("precision=fp16", "precision is 'fp16'; did you mean amp_fp16?"),
        ("optimizer={lr: 1, lr: 2}", "optimizer.lr is given twice; expected it once"),
        ("callbacks.one=!!python/name:os.system x", "callbacks.one is 'x'; expected a number, text"),
    ],
)
def test_a_message_is_a_sentence_of_ours(override, message):
    with pytest.raises(UserError) as error:
        load_config(overrides=[override])
    assert str(error.value).startswith(f"override {override}: ")
    assert message in str(error.value)


def test_anchors_and_merge_keys_work(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "callbacks: {one: &a {x: 1, y: 2}, two: {<<: *a, y: 3}}\nrun_name: &n 007\nsave_folder: *n\n"
    )
    config = load_config(tmp_path / "x.yaml")
    assert config.callbacks == {"one": {"x": 1, "y": 2}, "two": {"x": 1, "y": 3}}
    assert config.run_name == config.save_folder == "007"
