import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shop import SIZES, shop_item
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.checkpoint.portable import EXTENDED_FROM, FINGERPRINT, check_portable, load_portable
from ugt_composer.cli.main import main as ugt
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer


def larger(shop: Path, folder: Path, more: int) -> list[str]:
    """Writes the shop's catalogue with more items, and vectors. Returns the options that name both."""
    items = [shop_item(n) for n in range(60, 60 + more)]
    lines = [{"item_id": f"new-{n}", "l1_id": 8, "l2_id": 19, "l3_id": l3} for n, (_, _, l3) in enumerate(items)]
    text = (shop / "catalogue.jsonl").read_text() + "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "larger.jsonl").write_text(text)
    angles = np.arange(60 + more)[:, None] * np.array([0.05, 0.1, 0.2])
    np.save(folder / "vectors.npy", np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    return ["--catalogue", str(folder / "larger.jsonl"), "--item-vectors", str(folder / "vectors.npy")]


def test_an_extended_model_is_loaded_by_every_command_with_old_and_new_items(shop, stages, tmp_path, capsys):
    options = larger(shop, tmp_path, 5)
    out = tmp_path / "extended"
    assert ugt(["extend", "--checkpoint", str(stages / "stage2/best"), *options, "--out", str(out)]) == 0
    assert "60 items that the model was trained on, and 5 new ones" in capsys.readouterr().out
    check_portable(out)
    model, _, facts = load_portable(out)
    before, _, earlier = load_portable(stages / "stage2/best")
    assert facts[FINGERPRINT] == Catalogue.load(tmp_path / "larger.jsonl").fingerprint
    assert facts[EXTENDED_FROM] == earlier[FINGERPRINT]
    for name, weight in before.state_dict().items():
        rows = slice(0, 65) if name in ("item_embedding.levels.2.weight", "heads.heads.2.bias") else slice(None)
        assert model.state_dict()[name][rows].equal(weight[rows]), name
    assert not model.item_embedding.levels[2].weight[65:70].isclose(before.item_embedding.levels[2].weight[65:70]).all()
    (tmp_path / "user.json").write_text('{"items": ["item-58", "new-0"]}')
    words = ["--checkpoint", str(out), "--history", str(tmp_path / "user.json"), "--json", "-k", "64"]
    assert ugt(["recommend", *words]) == 0
    printed = capsys.readouterr()
    assert "trained with" not in printed.err
    assert "new-1" in {entry["item_id"] for entry in json.loads(printed.out)["recommendations"]}
    assert ugt(["evaluate", "--checkpoint", str(out), "--data", str(shop / "eval")]) == 0


def test_the_next_stage_starts_from_an_extended_model_that_was_enlarged(shop, stages, stage_config, tmp_path, capsys):
    options = larger(shop, tmp_path, 20)
    out = tmp_path / "extended"
    assert ugt(["extend", "--checkpoint", str(stages / "stage1/best"), *options, "--out", str(out)]) == 0
    assert "model.codebook_sizes=[24,40,128]" in capsys.readouterr().out
    config = stage_config(
        tmp_path / "run",
        2,
        out,
        f"data.catalogue={tmp_path / 'larger.jsonl'}",
        "model.codebook_sizes=[24,40,128]",
        "max_duration=1ba",
    )
    trainer = build_trainer(config)
    trainer.train()
    trainer.close()
    trained = load_portable(tmp_path / "run/latest")[0].item_embedding.levels[2].weight
    with torch.no_grad():
        start = load_portable(out)[0].item_embedding.levels[2].weight
    assert trained.shape == (128, 32)
    assert (trained - start).abs().max() < 0.1


def test_what_cannot_be_extended_is_refused(shop, stages, tmp_path):
    options = larger(shop, tmp_path, 5)
    words = ["extend", "--checkpoint", str(stages / "stage1/best"), "--out", str(tmp_path / "out")]
    np.save(tmp_path / "v.npy", np.random.default_rng(0).random((60, 2)))
    with pytest.raises(UserError, match=r"has no items that .*best lacks"):
        ugt([*words, "--catalogue", str(shop / "catalogue.jsonl"), "--item-vectors", str(tmp_path / "v.npy")])
    with pytest.raises(UserError, match=r"--item-vectors: .*v\.npy has 60 rows, but .* has 65 items"):
        ugt([*words, *options[:3], str(tmp_path / "v.npy")])
    text = (tmp_path / "larger.jsonl").read_text()
    (tmp_path / "larger.jsonl").write_text(text.replace('"item-7"', '"another"'))
    with pytest.raises(UserError, match=r'1 of 60 items differ in .*larger\.jsonl: "item-7" \(5/6/12\) is missing'):
        ugt([*words, *options])
    larger(shop, tmp_path, 20)
    recommend = ["recommend", "--checkpoint", str(stages / "stage1/best"), "--history", "-", *options[:2]]
    with pytest.raises(UserError, match=f"expected at most {SIZES[2] - 1}, because model.codebook_sizes is .*ugt exte"):
        ugt(recommend)
    assert not (tmp_path / "out").exists()
