"""Time of a snapshot and of a draw of SWAG, relative to reading the tensors that they need.

A draw of rank 20 reads 22 vectors (mean, squares, deviations) and draws a normal random number per weight, which
takes
about as long on a CPU, where torch draws normal numbers in one thread. The limit is the sum of both, measured
separately. A snapshot reads the weights and two moments and writes two moments and a deviation.
"""

import torch
from timing import ratio, row, threads
from torch import nn

from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors import SWAG
from flatbayes.posteriors.swag import block_size, gaussian_sample

SIZES = (1_000_000, 10_000_000, 36_000_000)
RANK = 20


def make_collected_state(num_weights: int, posterior: SWAG):
    """A state with the number of snapshots of a full rank."""
    width = round((num_weights / 4) ** 0.5)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
    state = posterior.init(model, None, 100)
    for _ in range(2):
        posterior.collect(state)
        for param in model.parameters():
            param.data.mul_(1.01)
    state.statistics["count"].fill_(RANK + 1)
    state.statistics["deviations"].normal_(std=0.01)
    return state


def rows(quick: bool) -> list[dict]:
    """Draws and snapshots, on one and two threads."""
    sizes, rounds = ((100_000,), 2) if quick else (SIZES, 7)
    results = []
    for size in sizes:
        posterior = SWAG(rank=RANK)
        state = make_collected_state(size, posterior)
        for count in (1, 2):
            with threads(count):
                results += measure_state(posterior, state, f"{size / 1e6:g} M weights", rounds)
    return results


def measure_state(posterior: SWAG, state, case: str, rounds: int) -> list[dict]:
    """Rows of a sample, of a draw swapped into the network, and of a snapshot."""
    mean, squares, deviations = (state.statistics[name] for name in ("mean", "sum_squares", "deviations"))
    generator, params = torch.Generator().manual_seed(0), trainable_parameters(state.model)
    size = block_size(mean)
    blocks = [slice(k, k + size) for k in range(0, len(mean), size)]
    scratch, z2 = torch.empty(size), torch.randn(RANK)

    def read():
        return [tensor.sum() for tensor in (mean, squares, deviations)]

    def noise():
        for _ in blocks:
            scratch.normal_(generator=generator)

    def sample():
        for block in blocks:
            z1 = torch.randn(mean[block].shape, generator=generator)
            gaussian_sample(mean[block], squares[block] / (RANK + 1), deviations[:, block], 0.5, z1, z2)

    def draw():
        with posterior.draw(state, generator):
            pass

    def sample_unblocked():
        z1 = torch.randn(mean.shape, generator=generator)
        return mean + 0.7 * ((squares / (RANK + 1)).sqrt() * z1 + (deviations.T @ z2) / (RANK - 1) ** 0.5)

    def copy_six():
        for _ in range(3):  # a copy reads one vector and writes one
            deviations[0].copy_(deviations[1])

    def collect_unblocked():
        weights = flatten(params)
        before = weights - mean
        squares.addcmul_(before, weights - (mean + before / 1000))
        deviations[0] = before

    limit = 1 + ratio(noise, read, rounds)
    naive_draw = ratio(sample_unblocked, read, rounds)
    naive_collect = ratio(collect_unblocked, copy_six, rounds)
    note = f"whole vectors at once: {naive_draw:.2f}"
    return [
        row("swag draw", f"{case}, sample", sample, read, rounds=rounds, limit=limit, target=2.0, note=note),
        row("swag draw", f"{case}, draw swapped in and out", draw, read, rounds=rounds, limit=limit),
        row(
            "swag collect",
            case,
            lambda: posterior.collect(state),
            copy_six,
            rounds=rounds,
            limit=1.0,
            note=f"whole vectors at once: {naive_collect:.2f}",
        ),
    ]
