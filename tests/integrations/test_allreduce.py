import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("lightning.pytorch")

SCRIPT = Path(__file__).parent / "on_two_ranks.py"


def simulated(accumulate):
    """Both processes in one: each finds its own worst point, and the gradients there are averaged."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from on_two_ranks import EPOCHS, FLAT, RATE, SIZE, data, network
    finally:
        sys.path.remove(str(SCRIPT.parent))
    (x, y), net = data(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    for _ in range(EPOCHS):
        for k in range(0, len(x) // 2, SIZE * accumulate):
            grads = []
            for rank in range(2):
                parts = [
                    (x[rank::2][j : j + SIZE], y[rank::2][j : j + SIZE])
                    for j in range(k, k + SIZE * accumulate, SIZE)
                ]

                def closure(parts=parts):
                    optimizer.zero_grad()
                    loss = sum(F.cross_entropy(net(inputs), targets) for inputs, targets in parts) / accumulate
                    loss.backward()
                    return loss.detach()

                FLAT(closure, net)()
                grads.append([param.grad for param in net.parameters()])
            for param, one, other in zip(net.parameters(), *grads, strict=True):
                param.grad = (one + other) / 2
            optimizer.step()
    return net


@pytest.mark.slow
def test_ranks_agree(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], env=environment, timeout=200, check=True)
    for name in (
        "LayerNorm-1",
        "LayerNorm-2",
        "BatchNorm1d-1",
        "SGHMC-1",
        "EntropyMCMC-1",
        "SGVB-1",
        "SVGD-1",
        "LRT-1",
    ):
        statistics = assert_ranks_agree(tmp_path, name)["statistics"]
        is_trained = {"particles"} & statistics.keys() or "raw_scale" in " ".join(statistics)
        assert is_trained or statistics["count"] == (4 if name == "LayerNorm-2" else 8)
    for accumulate in (1, 2):
        found = torch.load(tmp_path / f"LayerNorm-{accumulate}-0.pt", weights_only=True)["net"]
        for key, tensor in simulated(accumulate).state_dict().items():
            assert torch.allclose(found[key], tensor, atol=1e-6), (accumulate, key)


@pytest.mark.slow
def test_ranks_of_transformers_agree(tmp_path):
    pytest.importorskip("transformers")
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK")}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = SCRIPT.with_name("transformers_on_two_ranks.py")
    command = [sys.executable, "-m", *launcher, str(script), str(tmp_path)]
    subprocess.run(command, env=environment, timeout=200, check=True)
    for name in ("SWAG", "SGHMC", "SGVB", "LRT"):
        assert assert_ranks_agree(tmp_path, name)["num_data"] == 32


def assert_ranks_agree(folder, name):
    """Check that both processes end with the same; return it."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
    for kind in ("net", "statistics"):
        for key, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][key]), (name, kind, key)
            assert tensor.isfinite().all()
    return first
