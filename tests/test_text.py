"""Language-model data and the transformer that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from netsim_ddp import names
from netsim_ddp.errors import UsageError
from netsim_ddp.workloads.corpus import DEFAULT_BYTES, MOST_BYTES, read_corpus
from netsim_ddp.workloads.data import ShardSampler, get_dataloaders
from netsim_ddp.workloads.emulated import record_gradient_sets
from netsim_ddp.workloads.models import get_model
from netsim_ddp.workloads.tokens import BLOCK, CONTEXT, SyntheticText, Text
from netsim_ddp.workloads.transformer import Transformer
from netsim_ddp.workloads.workload import build_workload


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """A text of 100 blocks in which every five bytes are another number, so that a context says where it is from."""
    text = "".join(f"{number:05d}" for number in range(20 * BLOCK))
    (tmp_path / "numbered.txt").write_text(text)
    return str(tmp_path / "numbered.txt")


# the text


def test_the_default_text_is_the_standard_library_s() -> None:
    text = read_corpus(None)
    assert len(text) == DEFAULT_BYTES
    assert text.startswith(Path(__import__("__future__").__file__).read_bytes())
    assert text == read_corpus(None)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": b"2",
        "a/z": b"1",
        "c": b"\xc3\xa9",
        ".git/x": b"no",
        "d": b"a\0b",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert read_corpus(tmp_path) == b"12\xc3\xa9"
    assert read_corpus(tmp_path / "b.txt") == b"2"


def test_texts_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"a\0b" * 1000)
    (tmp_path / "short").write_bytes(b"x" * (2 * BLOCK - 1))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for name, message in {
        "gone": "is neither a file nor a folder",
        "empty": "holds no text",
        "binary": "holds no text",
        "short": f"holds {2 * BLOCK - 1} bytes: too little to train on",
    }.items():
        with pytest.raises(UsageError, match=message) as caught:
            get_dataloaders("text", 1, text=tmp_path / name)
        assert "\n" not in caught.value.message


def test_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsim_ddp.workloads.corpus.MOST_BYTES", 10)
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123456")
    with pytest.raises(UsageError, match="holds more than 10 B of text"):
        read_corpus(tmp_path)


# contexts


def test_targets_are_the_bytes_that_follow(numbered: str) -> None:
    data = Text(numbered, train=True, seed=0)
    inputs, targets = data.__getitems__([0, len(data) - 1, 5])
    assert inputs.shape == targets.shape == (3, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = Path(numbered).read_bytes()
    for row, last in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        assert bytes([*row, last]) in text


def test_no_byte_is_in_both_splits(numbered: str) -> None:
    seen: list[set[int]] = []
    for train in (True, False):
        data = Text(numbered, train=train, seed=3)
        spans = [range(start, start + CONTEXT + 1) for start in data.starts.tolist()]
        seen.append({place for span in spans for place in span})
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(100 * BLOCK))
    assert len(seen[1]) == 10 * BLOCK


def test_the_split_depends_on_the_seed(numbered: str) -> None:
    first, again, other = (Text(numbered, train=False, seed=seed).starts for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ranks_read_different_contexts_and_together_all(numbered: str) -> None:
    loaders = [get_dataloaders("text", 8, rank, 2, text=numbered)[0] for rank in range(2)]
    shards = []
    for loader in loaders:
        assert isinstance(loader.sampler, ShardSampler)
        loader.sampler.set_epoch(2)
        shards.append([tuple(row.tolist()) for inputs, _ in loader for row in inputs])
    together = set(shards[0]) | set(shards[1])
    assert len(together) == len(shards[0]) + len(shards[1])  # no two contexts are the same
    assert len(together) == 90 * 16
    alone, _ = get_dataloaders("text", 16, text=numbered)
    assert isinstance(alone.sampler, ShardSampler)
    alone.sampler.set_epoch(2)
    assert together == {tuple(row.tolist()) for inputs, _ in alone for row in inputs}


def test_synthetic_words_are_skewed_and_can_be_predicted() -> None:
    data = SyntheticText("synthetic-text", train=True, seed=0)
    inputs, targets = data.__getitems__(range(2000))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert 0 <= int(inputs.min()) <= int(inputs.max()) < names.DATASETS["synthetic-text"].classes
    follows = (targets - inputs) % 10_000 == 7919
    assert 0.49 < follows.float().mean().item() < 0.51
    drawn = targets[~follows].bincount(minlength=10_000)
    assert drawn[0] / drawn.sum() == pytest.approx(1 / 13.3, rel=0.1)  # log 2 / log 10,000
    assert not torch.equal(
        inputs, SyntheticText("synthetic-text", train=True, seed=1).__getitems__(range(2000))[0]
    )


# the transformer


def test_no_position_sees_what_follows() -> None:
    model = get_model("transformer").eval()
    tokens = torch.randint(256, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 256
    one, other = model(tokens), model(changed)
    assert one.shape == (2, CONTEXT, 256)
    assert torch.equal(one[:, :40], other[:, :40])
    assert not torch.equal(one[:, 40], other[:, 40])


def test_a_step_touches_few_rows_of_the_large_table() -> None:
    workload = build_workload(model="transformer", batch_size=4)
    assert workload.parameters_count == 2_234_368
    model = workload.model
    assert isinstance(model, Transformer)
    inputs, targets = workload.next_batch()
    workload.loss(model(inputs), targets).backward()
    gradient = model.runs.weight.grad
    assert gradient is not None
    touched = gradient.abs().amax(dim=1).nonzero().flatten()
    assert torch.equal(touched, model.rows(inputs).unique())
    assert 0.3 * inputs.numel() < len(touched) <= inputs.numel() < 0.01 * len(gradient)


def test_rows_depend_on_the_last_three_tokens() -> None:
    model = Transformer()
    (rows,) = model.rows(torch.tensor([[7, 1, 2, 3, 9, 1, 2, 3, 9]])).tolist()
    assert rows[3:5] == rows[7:9]
    assert len(set(rows)) == 7
    many = model.rows(torch.randint(32, 127, (200, CONTEXT), generator=torch.Generator().manual_seed(0)))
    # 12,800 runs thrown into 32,768 rows at random would hit 10,600 of them.
    assert 10_000 < len(many.unique()) <= int(many.max()) + 1 <= model.ROWS


def test_the_transformer_learns_text() -> None:
    workload = build_workload(model="transformer", batch_size=8)
    optimizer = torch.optim.AdamW(workload.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        inputs, targets = workload.next_batch()
        optimizer.zero_grad()
        loss = workload.loss(workload.model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(5.55, abs=0.1)  # log 256: it knows nothing yet
    assert sum(losses[-5:]) / 5 < 3.3  # frequencies of bytes alone give 3.4


def test_its_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = get_model("transformer", seed=4).state_dict()
    torch.manual_seed(2)
    again, other = (get_model("transformer", seed=seed).state_dict() for seed in (4, 5))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["runs.weight"], other["runs.weight"])


def test_its_gradients_can_be_recorded_and_it_takes_a_large_vocabulary() -> None:
    workload = build_workload(model="transformer", dataset="synthetic-text", batch_size=2)
    sets = record_gradient_sets(workload, 2)
    parameters = list(workload.model.parameters())
    assert [each.shape for each in sets[0]] == [each.shape for each in parameters]
    assert all(parameter.grad is None for parameter in parameters)
    assert (workload.epoch, workload.batch) == (0, 2)


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ("transformer", "digits", "'transformer' is for tokens, and digits holds images"),
        ("resnet18", "text", "'resnet18' is for images, and text holds tokens"),
        (
            "torchvision:vgg16",
            "synthetic-text",
            "'torchvision:vgg16' is for images, and synthetic-text holds",
        ),
    ],
)
def test_models_and_data_of_different_kinds(model: str, dataset: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_workload(model=model, dataset=dataset)
    assert "choose a dataset from" in str(caught.value.hint)


def test_a_model_of_one_s_own_that_does_not_fit_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netsim_own_words.py").write_text(
        "from torch import nn\n\ndef build(num_classes):\n    return nn.Embedding(num_classes, num_classes)\n\n"
        "def narrow():\n    return nn.Embedding(256, 200)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    workload = build_workload(model="netsim_own_words:build", dataset="text", batch_size=2)
    assert workload.validation_loader.dataset[0][0].shape == (CONTEXT,)
    with pytest.raises(
        UsageError,
        match=r"gives \[1, 64, 200\] for one of the contexts of 64 tokens of text, not \[1, 64, 256\]",
    ):
        build_workload(model="netsim_own_words:narrow", dataset="text")


def test_a_text_for_another_dataset() -> None:
    with pytest.raises(UsageError, match="a text is read by the dataset text, not by digits"):
        get_dataloaders("digits", text="book.txt")
