"""A compiled posterior, or a student, as a file that needs neither flatbayes nor the code of the network."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package
from flatbayes.prediction.deploy import CompiledPosterior

INPUT_NAME = "inputs"
MAX_ONNX_BYTES = 2 * 10**9
"""Bytes of weights: a file of this format cannot be larger than 2 GiB."""


def export_torch(module: CompiledPosterior, path: str | Path, inputs: Tensor | None = None) -> Path:
    """Write a program of `torch.export`, with a batch of any size: `torch.export.load(path).module()(inputs)`.

    The file is torch's own; load only those that come from you, since they may hold more than data.

    Args:
        module: What to export.
        path: The file, usually ending in .pt2; one that exists is replaced.
        inputs: At least one input, of the type and shape that there will be; may be left out where the posterior
            knows them.

    Raises:
        ValueError: The shape of inputs is not known, or the network cannot be exported.
    """
    path = Path(path)
    program = export_program(module, inputs)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)
    return path


def export_onnx(module: CompiledPosterior, path: str | Path, inputs: Tensor | None = None) -> Path:
    """Write an ONNX file, with a batch of any size: one input, `inputs`, and an output for each of `module.fields`.

    Args:
        module: What to export.
        path: The file, usually ending in .onnx; one that exists is replaced.
        inputs: As in `export_torch`.

    Raises:
        ValueError: The shape of inputs is not known, the network cannot be exported, or is too large.
        ImportError: The extra `export` is not installed.
    """
    path = Path(path)
    with require_package("export"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise ValueError(
            f"The weights take {size / 1e9:.1f} GB, and an ONNX file holds at most 2. Compile fewer draws, distil "
            "the posterior into one network, or use export_torch."
        )
    program = export_program(module, inputs)
    with _suppress_exporter_warnings():
        found: Any = torch.onnx.export(program, input_names=[INPUT_NAME], dynamo=True, verbose=False)
    _name_outputs(found.model.graph, module.output_names)
    with atomic_write(path) as temporary:
        found.save(temporary)
    return path


def export_program(module: CompiledPosterior, inputs: Tensor | None = None) -> ExportedProgram:
    """The module as a graph of torch's own operations.

    Raises:
        ValueError: The shape of inputs is not known, or torch cannot follow what the network does.
    """
    example = module.example if inputs is None else inputs
    if example is None:
        raise ValueError(
            "What inputs look like is not known, since the posterior was fitted to a loader: pass `inputs`, a batch "
            "of at least one example."
        )
    device = next(module.networks.parameters()).device
    pair = torch.cat([example[:1], example[:1]]).to(device)  # torch.export makes a constant of a batch of 1
    try:
        return torch.export.export(module, (pair,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # of many kinds, by what it could not follow
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"torch.export cannot follow this network with a batch of any size: {reason} Its forward pass must not "
            "depend on the values of tensors, nor on the number of examples."
        ) from error


@torch.no_grad()
def onnx_difference(module: CompiledPosterior, path: str | Path, inputs: Tensor | None = None) -> float:
    """Largest difference between what onnxruntime makes of the file and what the module says.

    Each quantity is measured in units of its largest value, if that is above one.

    Raises:
        ValueError: There are no inputs to compare on.
        ImportError: The extra `export` is not installed.
    """
    with require_package("export"):
        import onnxruntime
    batch = module.example if inputs is None else inputs
    if batch is None:
        raise ValueError("There is nothing to compare on: pass `inputs`, a batch of examples.")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    written = batch.float() if session.get_inputs()[0].type == "tensor(float)" else batch
    found = session.run(list(module.output_names), {INPUT_NAME: written.cpu().numpy()})
    device = next(module.networks.parameters()).device
    expected = module(batch.to(device))
    return max(
        float((torch.from_numpy(values) - expected[name].cpu()).abs().max() / expected[name].abs().max().clamp_min(1))
        for name, values in zip(module.output_names, found, strict=True)
    )


def _name_outputs(graph: Any, output_names: Sequence[str]) -> None:
    # The exporter, asked for names, does not see that values inside have some of them already.
    for value in (value for node in graph for value in node.outputs):
        if value.name in output_names:
            value.name = f"inner_{value.name}"
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Torch's exporter warns of its own deprecations, and logs that torchvision is missing; nothing here needs it."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
