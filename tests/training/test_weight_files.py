"""Weights in files of other programs."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flatbayes import fit
from flatbayes.training.weight_files import extract_state_dict, read_weights

WEIGHTS = nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "network"])
def test_state_dicts_at_the_top_or_under_usual_names(tmp_path, key):
    held = WEIGHTS if key is None else {"epoch": 3, key: WEIGHTS, "optimizer": {"lr": 0.1}}
    torch.save(held, tmp_path / "net.pt")
    found = read_weights(tmp_path / "net.pt")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "net.safetensors")
    assert torch.equal(read_weights(tmp_path / "net.safetensors")["weight"], WEIGHTS["weight"])


class Hostile:
    def __reduce__(self):
        return (print, ("code has run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"state_dict": WEIGHTS, "callback": Hostile()}, tmp_path / "net.pt")
    with pytest.raises(
        ValueError,
        match=r"net\.pt cannot be read as weights: it is damaged, or holds more.*torch\.save\(network",
    ):
        read_weights(tmp_path / "net.pt")
    assert "code has run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_files(tmp_path, suffix, keep):
    path = tmp_path / f"net{suffix}"
    torch.save(WEIGHTS, path) if suffix == ".pt" else save_file(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(path)


@pytest.mark.parametrize("held", [[1, 2], {"epoch": 3, "state_dict": {}}, {}, torch.zeros(3)])
def test_files_without_a_state_dict_say_what_they_hold(tmp_path, held):
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(
        ValueError, match=r"holds no state dict.*state_dict, model_state_dict, model, network; it holds"
    ):
        read_weights(tmp_path / "net.pt")


def test_what_is_no_tensor_is_left_out():
    assert extract_state_dict({"a": torch.ones(1), "note": "x"}, "it").keys() == {"a"}


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained weights at"):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["model.safetensors", "config.json"], r" The folder has a file model\.safetensors: give its path\."),
        (["a.safetensors", "b.safetensors"], " The folder has weights in 2 files: give one with all"),
        (["adapter_model.safetensors", "adapter_config.json"], r"adapters of PEFT: load them, PeftModel.from_pre"),
        (["config.json"], r"no folder of a run\.$"),
    ],
    ids=["transformers", "parts", "peft", "none"],
)
def test_a_folder_of_another_library_says_what_to_give(tmp_path, names, advice):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=advice):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=advice):
        fit(nn.Linear(3, 2), (torch.zeros(4, 3), torch.arange(4) % 2), init=tmp_path, config={"epochs": 1})
