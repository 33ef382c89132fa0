"""`ugt export`: exported programs give the model's scores and do not need this package."""

import json
import runpy
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.conftest import CODEBOOKS, TINY
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import load_portable, save_portable
from ugt_composer.cli.main import main
from ugt_composer.config.load import load_config
from ugt_composer.data.codec import Row, encode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.history import encoder_lists
from ugt_composer.errors import UserError
from ugt_composer.generation.item_log_probs import score_items
from ugt_composer.inference.export_programs import INPUTS, NO_ITEMS, export_programs
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

ALONE = """
import json, runpy, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ugt_composer", "composer", "streaming", "safetensors"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Forbidden())
score = runpy.run_path(sys.argv[1], run_name="__main__")["score"]
print(json.dumps([score(*case).tolist() for case in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def exported(stages, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", "--checkpoint", str(stages / "stage2" / "best"), "--out", str(out)]) == 0
    return out


def random_items(sizes, *shape):
    return torch.stack([torch.randint(NUM_SPECIAL_IDS, size, shape) for size in sizes], dim=-1)


def batch_of(histories):
    """A batch of the histories, built by the dataset's decoding and the collation."""
    rows = []
    for history in histories:
        lists = list(encoder_lists([tuple(item) for item in history]).values())
        encoder = torch.tensor(lists[:5]).T.numpy()
        row = Row("", encoder, torch.ones(1, 8, dtype=torch.long).numpy(), NO_ITEMS)
        rows.append(PackedRow(0, encode_row(row, 2)))
    return collate(rows)


def test_usage_alone_gives_the_scores_of_the_model_for_any_sizes(exported):
    torch.manual_seed(0)
    model, config, _ = load_portable(exported)
    sizes = config.model.codebook_sizes
    cases = [
        ([random_items(sizes, length).tolist() for length in lengths], random_items(sizes, len(lengths), candidates))
        for lengths, candidates in (((9, 1, 4, 20, 0), 7), ((6,), 1), ((0,), 2))
    ]
    given = json.dumps([[histories, items.tolist()] for histories, items in cases])
    command = [sys.executable, "-c", ALONE, str(exported / "usage.py")]
    result = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    for (histories, items), scores in zip(cases, json.loads(result.stdout.splitlines()[-1]), strict=True):
        with torch.no_grad():
            read = [history[-7:] for history in histories]  # the longest history that the model was trained on
            expected = model.item_logps(model.start(batch_of(read)), items)
        torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


def test_the_encoder_also_gives_the_users_vector(exported):
    model, _, _ = load_portable(exported)
    batch = batch_of([[(6, 7, 8)] * 3, [(5, 6, 7)]])
    _, vector = torch.export.load(exported / "encoder.pt2").module()(*(batch[name] for name in INPUTS))
    with torch.no_grad():
        expected = model.user_vector(model.encode(batch))
    torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)


def test_no_program_carries_weights_of_the_other(exported):
    encoder, scorer = (torch.export.load(exported / f"{name}.pt2").state_dict for name in ("encoder", "scorer"))
    assert not any("heads" in name or "item_proj" in name for name in encoder)
    assert {name.partition(".")[0] for name in scorer} == {"heads", "item_embedding"}
    assert {tensor.dtype for tensor in (*encoder.values(), *scorer.values())} == {torch.float32}


def test_the_folder_is_a_model_and_is_not_overwritten(exported, stages, capsys):
    assert main(["inspect", str(exported)]) == 0
    command = ["export", "--checkpoint", str(stages / "stage1" / "best"), "--out", str(exported)]
    with pytest.raises(UserError, match="--overwrite"):
        main(command)


def test_nothing_is_left_if_the_model_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        main(["export", "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_scorer_over_the_catalogue_carries_it_for_any_sizes(tiny_model, random_batch, tmp_path):
    model = tiny_model(level_softmax="catalogue", pair_buckets=100)
    torch.nn.init.normal_(model.heads.heads[1].pairs.weight)
    sizes = model.codebook_sizes
    trie = ItemTrie.from_triples(random_items(sizes, 300))
    hidden = model.start(random_batch(rows=5))
    _, scorer = export_programs(deepcopy(model), trie)
    torch.export.save(scorer, tmp_path / "scorer.pt2")
    alone = torch.export.load(tmp_path / "scorer.pt2").module()
    for rows, items in ((5, trie.items[:9]), (1, trie.items[40:42]), (3, random_items(sizes, 4))):
        candidates = items.expand(rows, -1, -1)
        expected = model.item_logps(hidden[:rows], candidates, trie)
        torch.testing.assert_close(alone(hidden[:rows], candidates), expected)


def test_an_exported_model_knows_what_the_history_has(tiny_model, tmp_path):
    changes = {"level_softmax": "catalogue", "repeat_bias": True, "n_encoder_layers": 1, "n_decoder_layers": 1}
    model = tiny_model(**changes)
    torch.nn.init.normal_(model.level_repeats.weight)
    items = random_items(CODEBOOKS, 30)
    lines = [
        {"item_id": str(row), **{f"l{level}_id": x for level, x in enumerate(ids, 1)}}
        for row, ids in enumerate(items.tolist())
    ]
    (tmp_path / "catalogue.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "model").mkdir()
    config = load_config()
    data = replace(config.data, catalogue=str(tmp_path / "catalogue.jsonl"))
    config = replace(config, model=replace(TINY, **changes), data=data)
    save_portable(tmp_path / "model", model.state_dict(), config, {"longest_history": "4"})
    out = tmp_path / "exported"
    catalogue = ["--catalogue", str(tmp_path / "catalogue.jsonl")]
    assert main(["export", "--checkpoint", str(tmp_path / "model"), *catalogue, "--out", str(out)]) == 0
    score = runpy.run_path(str(out / "usage.py"))["score"]
    trie = ItemTrie.from_triples(items)
    for histories in ([items[:6].tolist(), [], items[[9, 9, 20]].tolist()], [items[3:4].tolist()]):
        batch = batch_of([history[-4:] for history in histories])
        hidden = model.start(batch)
        candidates = trie.items.expand(len(histories), -1, -1)
        biases = model.repeat_biases(hidden[:, None], model.seen_nodes(batch, trie))
        expected = model.item_logps(hidden, candidates, trie, biases).detach()
        assert (expected - score_items(model.level_logits, hidden, candidates, trie)).abs().max() > 0.1
        torch.testing.assert_close(torch.from_numpy(score(histories, candidates)), expected)


def test_an_exported_model_reads_actions_and_times(tiny_model, tmp_path):
    changes = {"num_actions": 3, "time_buckets": 8, "relative_time_bias": True}
    changes |= {"n_encoder_layers": 1, "n_decoder_layers": 1}
    model = tiny_model(**changes)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    (tmp_path / "model").mkdir()
    config = replace(load_config(), model=replace(TINY, **changes))
    save_portable(tmp_path / "model", model.state_dict(), config, {"longest_history": "4"})
    out = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(tmp_path / "model"), "--out", str(out)]) == 0
    score = runpy.run_path(str(out / "usage.py"))["score"]
    histories = [random_items(CODEBOOKS, length).tolist() for length in (6, 0, 3)]
    items = random_items(CODEBOOKS, 3, 5)
    actions, times = [[1, 2, 3, 1, 2, 3], [], [0, 3, 1]], [[5, 5, 60, 70, 900, 10**6], [], [-1, 7, 8]]
    batch = batch_of([history[-4:] for history in histories])
    batch["encoder_actions"] = torch.tensor([[0, 3, 1, 2, 3], [0] * 5, [0, 0, 3, 1, 0]])
    batch["encoder_times"] = torch.tensor([[-1, 60, 70, 900, 10**6], [-1] * 5, [-1, -1, 7, 8, -1]])
    batch["decoder_times"] = torch.tensor([[10**7], [5], [-1]])
    unknown = {name: torch.full_like(batch[name], -1) for name in ("encoder_times", "decoder_times")}
    unknown["encoder_actions"] = torch.zeros_like(batch["encoder_actions"])
    for read, arguments in ((batch, (actions, times, [10**7, 5, -1])), ({**batch, **unknown}, ())):
        with torch.no_grad():
            expected = model.item_logps(model.start(read), items)
        found = torch.from_numpy(score(histories, items, *arguments))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_usage_refuses_inputs_that_the_model_does_not_read(exported):
    score = runpy.run_path(str(exported / "usage.py"))["score"]
    with pytest.raises(ValueError, match="reads no actions"):
        score([[(5, 6, 7)]], [[(5, 6, 7)]], times=[[1]])
