"""Export of a compiled posterior or a distilled student to `torch.export` and ONNX files."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package
from flatbayes.core.randomness import RandomState, preserve_rng
from flatbayes.prediction.decompositions import decompose_missing
from flatbayes.prediction.deploy import CompiledPosterior, check_tensor

INPUT_NAME = "inputs"
ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}
"""Types of the inputs of an ONNX file."""
MAX_ONNX_BYTES = 2 * 10**9
"""Maximum size of the weights: an ONNX file cannot exceed 2 GiB."""


def export_torch(
    module: CompiledPosterior,
    path: str | Path,
    inputs: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a `torch.export` program for batches of any size: `torch.export.load(path).module()(inputs)`.

    Reading such a file can execute code, so load only files from a trusted source.

    Args:
        module: The module to export.
        path: The file, usually ending in .pt2; an existing file is replaced.
        inputs: A batch of at least one example input, of the type and shape in use; may be left out if
            `module.example` is set.
        dtype: Type of the inputs of the file, such as `torch.uint8` for images as they are stored; by default that of
            the example. A file takes inputs of one type.
        metadata: Texts to keep in the file, by name, such as the names of the features; `torch.export.load` reads
            them with `extra_files`.

    Raises:
        ValueError: The shape of the inputs is unknown, or the network cannot be exported.
        TypeError: The posterior is not compiled.

    Examples:
        >>> path = export_torch(fitted.compile(num_draws=2), "digits.pt2", inputs[:2])
        >>> sorted(torch.export.load(path).module()(inputs[:4]))
        ['entropy', 'mean', 'mutual_information']
    """
    path = Path(path)
    check_compiled(module)
    program = export_program(module, inputs, dtype)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files=dict(metadata))
    return path


def export_onnx(
    module: CompiledPosterior,
    path: str | Path,
    inputs: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write an ONNX file for batches of any size.

    The file has one input, `inputs`, and one output for each name in `module.output_names`.

    Args:
        module: The module to export.
        path: The file, usually ending in .onnx; an existing file is replaced.
        inputs: As in `export_torch`.
        dtype: As in `export_torch`.
        metadata: Texts to keep in the file, by name: `get_modelmeta().custom_metadata_map` of onnxruntime.

    Raises:
        ValueError: The shape of the inputs is unknown, or the network cannot be exported or is too large.
        TypeError: The posterior is not compiled.
        ImportError: The extra `export` is not installed.

    Examples:
        >>> linear = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, MAP(), config=config)
        >>> path = export_onnx(linear.compile(), "digits.onnx")
        >>> path.exists()
        True
    """
    path = Path(path)
    check_compiled(module)
    with require_package("export"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise ValueError(
            f"The weights take {size / 1e9:.1f} GB, and an ONNX file holds at most 2. Compile fewer draws, distil "
            "the posterior into one network, or use export_torch."
        )
    program = export_program(module, inputs, dtype)
    onnx_program = _translate(program)
    _name_outputs(onnx_program.model.graph, module.output_names)
    onnx_program.model.metadata_props.update(metadata)
    with atomic_write(path) as temporary:
        onnx_program.save(temporary)
    return path


def check_compiled(module: object) -> None:
    """Refuse a posterior that is not compiled, with how to compile it.

    Raises:
        TypeError: It is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"A file has the networks of a compiled posterior, got a {type(module).__name__}: pass "
            "fitted.compile(num_draws=30)."
        )


def export_program(
    module: CompiledPosterior, inputs: Tensor | None = None, dtype: torch.dtype | None = None
) -> ExportedProgram:
    """Trace the module with `torch.export`.

    Raises:
        ValueError: The shape of the inputs is unknown, or torch cannot trace the network.
    """
    example = module.example if inputs is None else inputs
    if example is None:
        raise ValueError(
            "The shape of the inputs is unknown, or the network takes integers, such as tokens: pass `inputs`, a "
            "batch of at least one example."
        )
    check_tensor(example)
    device = next(module.networks.parameters()).device
    example = convert_example(example, example.dtype if dtype is None else dtype)
    pair = torch.cat([example[:1], example[:1]]).to(device)  # torch.export turns a batch size of 1 into a constant
    check_deterministic(module, pair)
    try:
        return torch.export.export(module, (pair,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # its type depends on what cannot be traced
        reason = _get_first_line(error)
        raise ValueError(
            f"torch.export cannot trace this network with a batch of any size: {reason} Its forward pass, and a "
            "function of the likelihood, must not depend on the values of tensors (as distributions with "
            "validate_args=True do), nor on the number of examples."
        ) from error


def _translate(program: ExportedProgram) -> Any:
    """Convert a program to ONNX.

    Raises:
        ValueError: ONNX lacks an operation of it.
    """
    try:
        with _suppress_exporter_warnings():
            program = decompose_missing(program)
            onnx_program = torch.onnx.export(program, input_names=[INPUT_NAME], dynamo=True, verbose=False)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            "This network, or a function of the likelihood, cannot be written to an ONNX file: "
            f"{_get_first_line(cause)} Use export_torch, or distil the posterior into a network without "
            "this operation: flatbayes.distill."
        ) from error
    if onnx_program is None:
        raise RuntimeError("torch.onnx.export returned no program.")
    return onnx_program


def convert_example(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs as another type; as integers, rounded to the range of the type."""
    if not inputs.is_floating_point() or dtype.is_floating_point or dtype == torch.bool:
        return inputs.to(dtype)
    limits = torch.iinfo(dtype)
    return inputs.round().clamp(limits.min, limits.max).to(dtype)


@torch.no_grad()
def check_deterministic(module: CompiledPosterior, inputs: Tensor) -> None:
    """Refuse networks that use random numbers in eval mode, which a file would draw anew in each call.

    Raises:
        ValueError: A network uses random numbers.
    """
    for network in module.networks:
        with preserve_rng(network):
            before = RandomState.capture(network)
            network(module.preprocess(inputs))
            if not before.equals(RandomState.capture(network)):
                raise ValueError(
                    f"{type(network).__name__} uses random numbers in eval mode, such as functional dropout without "
                    "training=self.training, so the exported file would give other numbers in each call. Switch them "
                    "off in eval mode, or distil the posterior into one network: flatbayes.distill."
                )


@torch.no_grad()
def onnx_difference(module: CompiledPosterior, path: str | Path, inputs: Tensor | None = None) -> float:
    """Largest difference between the outputs of the file in onnxruntime and those of the module.

    Each output is divided by its largest absolute value if that exceeds 1.

    Args:
        module: The module that was exported.
        path: The ONNX file.
        inputs: Raw inputs to compare on; `module.example` by default.

    Raises:
        ValueError: There are no inputs to compare on.
        ImportError: The extra `export` is not installed.

    Examples:
        >>> linear = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, MAP(), config=config)
        >>> path = export_onnx(linear.compile(), "digits.onnx")
        >>> onnx_difference(linear.compile(), path) < 1e-5
        True
    """
    with require_package("export"):
        import onnxruntime
    batch = module.example if inputs is None else inputs
    if batch is None:
        raise ValueError("There is nothing to compare on: pass `inputs`, a batch of examples.")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = convert_example(batch, ONNX_TYPES.get(session.get_inputs()[0].type, batch.dtype))
    outputs = session.run(list(module.output_names), {INPUT_NAME: batch.cpu().numpy()})
    device = next(module.networks.parameters()).device
    expected = module(batch.to(device))
    return max(
        float((torch.from_numpy(values) - expected[name].cpu()).abs().max() / expected[name].abs().max().clamp_min(1))
        for name, values in zip(module.output_names, outputs, strict=True)
    )


def _get_first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _name_outputs(graph: Any, output_names: Sequence[str]) -> None:
    # Given the output names, the exporter would not avoid clashes with inner values of the same name.
    for value in (value for node in graph for value in node.outputs):
        if value.name in output_names:
            value.name = f"inner_{value.name}"
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations and its log message that torchvision is missing."""
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
