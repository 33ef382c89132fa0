from pathlib import Path

import pytest

from convert.amazon_beauty_to_jsonl import main as import_beauty
from convert.interactions_to_jsonl import main as import_interactions
from convert.make_demo_data import main as make_demo_data
from convert.semantic_ids import main as make_ids
from ugt_composer.seeds import LARGEST_SEED, seed_of

COMMANDS = {
    import_interactions: ["interactions.csv"],
    make_ids: ["interactions.csv"],
    make_demo_data: [],
    import_beauty: ["--data", "beauty"],
}
NO_SEEDS = ["-1", str(LARGEST_SEED + 1), "9" * 5000, "010", "1.5", "1e3", "x", ""]


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
@pytest.mark.parametrize("seed", NO_SEEDS, ids=lambda seed: f"'{seed[:10]}'")
def test_a_command_refuses_what_is_no_seed(main, seed, tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*COMMANDS[main], "--out", str(tmp_path / "out"), "--seed", seed])
    assert "--seed: found" in (message := capsys.readouterr().err)
    assert "expected a whole number from 0 to 4294967294, without leading zeros" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [0, 7, LARGEST_SEED])
def test_seeds_are_accepted(seed):
    assert seed_of(str(seed)) == seed
