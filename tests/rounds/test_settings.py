import pytest

from tests.shop import ROOT
from ugt_composer.config.load import load_settings
from ugt_composer.config.values import keys_of
from ugt_composer.errors import UserError
from ugt_composer.rounds.settings import RoundsSettings

YAML = ROOT / "yamls/rounds.yaml"


def test_the_shipped_yaml_has_every_key_with_a_comment_and_its_default():
    given = load_settings(RoundsSettings, YAML)
    assert given == RoundsSettings(data=["mds/train"], validation=["mds/eval"])
    lines = [line for line in YAML.read_text().splitlines() if line and not line.startswith("#")]
    assert all(" # " in line for line in lines)
    assert [line.split(":")[0].strip() for line in lines if not line.startswith("preferences:")] == [
        key.rpartition(".")[2] for key in shipped_order()
    ]


def shipped_order():
    """The keys of the schema, in the order of the YAML."""
    text = YAML.read_text()
    return sorted(keys_of(RoundsSettings), key=lambda key: text.index(f"{key.rpartition('.')[2]}: "))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("preferences.rejectd=5", "preferences.rejectd is unknown; did you mean preferences.rejected?"),
        ("rounds=0", "rounds is 0; expected a number above 0"),
        ("data=[]", "data is empty"),
        ("proportion=1.5", "proportion is 1.5; expected above 0 and at most 1"),
        ("init_from=s3://bucket/best", "download it first"),
        ("init_from=null", "init_from is null; expected a folder on this machine"),
        ("save_folder=~", "save_folder is ~; expected a folder on this machine"),
        ("save_folder=s3://bucket/rounds", "expected a folder on this machine"),
        ("preferences.candidates=40", "preferences.candidates is 40 with preferences.reward null"),
        ("preferences={reward: r.csv, candidates: 9}", r"candidates is 9; expected at least preferences.rejected .20."),
    ],
)
def test_wrong_values_are_named(override, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        load_settings(RoundsSettings, YAML, overrides=[override])
