"""Checkpoints are whole or absent, and what is not a checkpoint is refused in one line."""

import pytest
import torch
from torch import nn

from medvlp_kit import checkpoint
from medvlp_kit.errors import KitError
from medvlp_kit.run_folder import load_run


def test_tensors_and_metadata_come_back(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared[:3], "c": torch.tensor(1, dtype=torch.int64)}
    checkpoint.save_tensors(tmp_path / "x.safetensors", tensors, metadata={"step": 3, "history": [{"loss": 0.1}]})
    found, metadata = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": 3, "history": [{"loss": 0.1}]}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, {"a": torch.ones(2)})

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError):
        checkpoint.save_tensors(path, {"a": torch.zeros(2)})
    assert torch.equal(checkpoint.load_tensors(path)[0]["a"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"\x80\x04 not a checkpoint", b"\xff" * 64])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(KitError, match="not a whole safetensors file") as caught:
        checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin", "model.pkl"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    for load in (checkpoint.load_tensors, load_run):
        with pytest.raises(KitError, match="pickle"):
            load(tmp_path / name)


def test_another_model_is_one_line():
    one, other = nn.Linear(3, 2), nn.Linear(4, 2)
    with pytest.raises(KitError, match="another model.*weight"):
        checkpoint.load_weights(one, other.state_dict(), source="x")
    with pytest.raises(KitError, match="1 missing"):
        checkpoint.load_weights(one, {"weight": one.weight}, source="x")


def test_the_optimiser_comes_back():
    torch.manual_seed(0)

    def make():
        module = nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def step(module, optimizer):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (one, first), (two, second) = make(), make()
    step(one, first)
    packed = checkpoint.pack_optimizer(one, first)
    two.load_state_dict(one.state_dict())
    checkpoint.unpack_optimizer(two, second, packed)
    step(one, first)
    step(two, second)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(KitError, match="holds no run"):
        load_run(tmp_path)
