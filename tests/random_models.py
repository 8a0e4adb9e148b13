"""Random small networks and their data: a specification in plain data, and what it builds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pick = Callable[[Sequence[Any]], Any]
"""Picks one of several options; the first is the plainest, to which hypothesis shrinks."""

WIDTH, LENGTH, SIDE, FEATURES, VOCABULARY, NUM_CLASSES = 4, 3, 4, 3, 7, 3
BLOCKS = {
    "vector": ["linear", "residual", "gated"],
    "image": ["convolution", "residual", "depthwise"],
    "sequence": ["convolution", "lstm", "gru", "attention", "encoder", "encoder_pre_norm", "residual"],
}
NORMS = {
    "vector": ["none", "batch", "batch_average", "batch_no_statistics", "layer", "group"],
    "image": ["none", "batch", "batch_no_statistics", "group", "instance", "instance_statistics", "batch_no_affine"],
    "sequence": ["none", "batch", "layer", "instance_statistics"],
}
DROPOUTS = {
    "vector": ["none", "dropout", "alpha", "functional"],
    "image": ["none", "dropout", "channels"],
    "sequence": ["none", "dropout", "functional"],
}
ACTIVATIONS = ["relu", "relu_in_place", "tanh", "gelu", "prelu", "silu", "leaky"]
BUFFERS = ["none", "integer", "boolean", "complex", "nan", "infinite", "not_saved", "empty", "counter"]


@dataclass(frozen=True)
class ModelSpec:
    """A network, and the data that it takes."""

    inputs: str = "vector"
    container: str = "tensor"
    blocks: tuple[str, ...] = ("linear",)
    norm: str = "none"
    dropout: str = "none"
    activation: str = "relu"
    parametrization: str = "none"
    sharing: str = "none"
    frozen: str = "nothing"
    unused: str = "nothing"
    lazy: bool = False
    buffer: str = "none"
    dtype: str = "float32"
    output: str = "tensor"
    num_outputs: int = NUM_CLASSES

    def __str__(self) -> str:
        plain = ModelSpec()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value != getattr(plain, name))


def pick_model(pick: Pick, num_outputs: int) -> ModelSpec:
    """A random specification. Unusual properties are rarer than plain ones, so that most networks have one or two."""

    def pick_rarely(usual: Any, unusual: Sequence[Any]) -> Any:
        return pick(unusual) if pick([False, False, False, False, True]) else usual

    inputs = pick(["vector", "vector", "image", "sequence", "tokens"])
    kind = "sequence" if inputs == "tokens" else inputs
    return ModelSpec(
        inputs=inputs,
        container=pick_rarely("tensor", ["tuple", "dict"]),
        blocks=tuple(pick(BLOCKS[kind]) for _ in range(pick([1, 2]))),
        norm=pick(NORMS[kind]),
        dropout=pick(DROPOUTS[kind]),
        activation=pick(ACTIVATIONS),
        parametrization=pick_rarely("none", ["weight_norm", "spectral_norm", "orthogonal"]),
        sharing=pick_rarely("none", ["tied", "two_names"]),
        frozen=pick_rarely("nothing", ["first", "norms", "all_but_head", "biases"]),
        unused=pick_rarely("nothing", ["parameter", "last_layer"]),
        lazy=pick_rarely(False, [True]),
        buffer=pick_rarely("none", BUFFERS[1:]),
        dtype=pick_rarely("float32", ["float64", "bfloat16", "mixed"]),
        output=pick_rarely("tensor", ["dict", "tuple", "dataclass"]),
        num_outputs=num_outputs,
    )


@dataclass
class Output:
    """Output of a network as a dataclass."""

    logits: Tensor


class RandomNetwork(nn.Module):
    """The network of a specification."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.kind = kind = "sequence" if spec.inputs == "tokens" else spec.inputs
        if spec.inputs == "tokens":
            self.stem: nn.Module = nn.Embedding(VOCABULARY, WIDTH)
        elif spec.inputs == "image":
            self.stem = nn.LazyConv2d(WIDTH, 3) if spec.lazy else nn.Conv2d(2, WIDTH, 3)
        else:
            self.stem = nn.LazyLinear(WIDTH) if spec.lazy else nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(make_block(block, kind) for block in spec.blocks)
        self.norms = nn.ModuleList(make_norm(spec.norm, kind) for _ in spec.blocks)
        self.activation = make_activation(spec.activation)
        self.dropout = make_dropout(spec.dropout)
        self.mixing = nn.Linear(WIDTH, WIDTH) if spec.sharing == "tied" else nn.Identity()
        self.demixing = nn.Linear(WIDTH, WIDTH, bias=False) if spec.sharing == "tied" else nn.Identity()
        if spec.sharing == "tied":
            self.demixing.weight = self.mixing.weight
        self.head = nn.Linear(WIDTH, spec.num_outputs)
        if spec.sharing == "two_names":
            self.first_block = self.blocks[0]
        if spec.unused == "parameter":
            self.unused = nn.Parameter(torch.zeros(2))
        if spec.unused == "last_layer":
            self.auxiliary = nn.Linear(WIDTH, spec.num_outputs)
        self._parametrize(spec.parametrization)
        self._convert(spec.dtype)
        self._freeze(spec.frozen)
        self._register_buffer(spec.buffer)

    def forward(self, inputs: Any) -> Any:
        """Outputs in the structure of the specification."""
        if isinstance(inputs, dict):
            inputs = inputs["first"] + inputs["second"]
        elif isinstance(inputs, tuple | list):
            inputs = inputs[0] + inputs[1]
        if self.spec.buffer == "counter" and self.training:
            self.extra.add_(1)
        hidden = self.stem(inputs)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            hidden = self.dropout_of(
                self.activation(apply_norm(norm, apply_block(block, hidden, self.kind), self.kind))
            )
        if self.kind != "vector":
            hidden = hidden.mean((2, 3)) if self.kind == "image" else hidden.mean(1)
        outputs = self.head(self.demixing(self.mixing(hidden)).to(self.head.bias.dtype))
        match self.spec.output:
            case "dict":
                return {"logits": outputs}
            case "tuple":
                return outputs, hidden
            case "dataclass":
                return Output(outputs)
        return outputs

    def dropout_of(self, hidden: Tensor) -> Tensor:
        """Dropout as a layer, or as a function that looks at the mode of the network."""
        return F.dropout(hidden, 0.3, self.training) if self.spec.dropout == "functional" else self.dropout(hidden)

    def train(self, mode: bool = True) -> "RandomNetwork":
        """Frozen normalization layers stay in eval mode, as in detection and fine-tuning."""
        super().train(mode)
        if self.spec.frozen == "norms":
            self.norms.eval()
        return self

    def _parametrize(self, kind: str) -> None:
        if kind == "weight_norm":
            nn.utils.parametrizations.weight_norm(self.head)
        elif kind == "spectral_norm":
            nn.utils.parametrizations.spectral_norm(self.head)
        elif kind == "orthogonal":
            nn.utils.parametrizations.orthogonal(self.head)

    def _convert(self, dtype: str) -> None:
        if dtype != "float32":
            self.to(torch.bfloat16 if dtype == "mixed" else getattr(torch, dtype))
        if dtype == "mixed":
            self.head.float()

    def _freeze(self, kind: str) -> None:
        modules = {"first": [self.stem], "norms": [self.norms], "all_but_head": list(self.children())}.get(kind, [])
        for module in modules:
            if module is not self.head and not any(is_lazy(param) for param in module.parameters()):
                module.requires_grad_(False)
        if kind == "norms":
            self.norms.eval()
        if kind == "biases":
            for name, param in self.named_parameters():
                if name.endswith("bias") and not is_lazy(param):
                    param.requires_grad_(False)

    def _register_buffer(self, kind: str) -> None:
        values = {
            "integer": torch.arange(3),
            "boolean": torch.tensor([True, False]),
            "complex": torch.tensor([1 + 2j]),
            "nan": torch.full((2,), torch.nan),
            "infinite": torch.full((2,), -torch.inf),
            "not_saved": torch.ones(2),
            "empty": torch.zeros(0, 3),
            "counter": torch.zeros((), dtype=torch.int64),
        }
        if kind in values:
            self.register_buffer("extra", values[kind], persistent=kind != "not_saved")


def is_lazy(tensor: Tensor) -> bool:
    """Whether a tensor has no shape yet."""
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin)


def make_block(kind: str, inputs: str) -> nn.Module:
    """A block that keeps the shape: (batch, width), (batch, width, side, side) or (batch, length, width)."""
    convolution = {"image": nn.Conv2d, "sequence": nn.Conv1d}.get(inputs)
    match kind:
        case "linear" | "residual" if convolution is None:
            return nn.Linear(WIDTH, WIDTH)
        case "gated":
            return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU())
        case "depthwise":
            return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        case "convolution" | "residual":
            return convolution(WIDTH, WIDTH, 3, padding=1)
        case "lstm":
            return nn.LSTM(WIDTH, WIDTH, batch_first=True)
        case "gru":
            return nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        case "attention":
            return nn.MultiheadAttention(WIDTH, 2, batch_first=True, dropout=0.1)
    return nn.TransformerEncoderLayer(
        WIDTH, 2, WIDTH, dropout=0.1, batch_first=True, norm_first=kind == "encoder_pre_norm"
    )


def apply_block(block: nn.Module, hidden: Tensor, inputs: str) -> Tensor:
    """Apply a block; a convolution takes the axis of the length last."""
    if isinstance(block, nn.LSTM | nn.GRU):
        return block(hidden)[0]
    if isinstance(block, nn.MultiheadAttention):
        return hidden + block(hidden, hidden, hidden, need_weights=False)[0]
    if isinstance(block, nn.Conv1d):
        return hidden + block(hidden.transpose(1, 2)).transpose(1, 2)
    return block(hidden)


def make_norm(kind: str, inputs: str) -> nn.Module:
    """A normalization layer over the width."""
    dimensions = {"vector": 1, "sequence": 1, "image": 2}[inputs]
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions]
    instance = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}[dimensions]
    return {
        "none": nn.Identity,
        "batch": lambda: batch(WIDTH),
        "batch_average": lambda: batch(WIDTH, momentum=None),
        "batch_no_statistics": lambda: batch(WIDTH, track_running_stats=False),
        "batch_no_affine": lambda: batch(WIDTH, affine=False),
        "layer": lambda: nn.LayerNorm(WIDTH),
        "group": lambda: nn.GroupNorm(2, WIDTH),
        "instance": lambda: instance(WIDTH),
        "instance_statistics": lambda: instance(WIDTH, affine=True, track_running_stats=True),
    }[kind]()


def apply_norm(norm: nn.Module, hidden: Tensor, inputs: str) -> Tensor:
    """Apply a normalization layer; all but LayerNorm take the axis of the length last."""
    if inputs == "sequence" and not isinstance(norm, nn.LayerNorm | nn.Identity):
        return norm(hidden.transpose(1, 2)).transpose(1, 2)
    return norm(hidden)


def make_activation(kind: str) -> nn.Module:
    """An activation."""
    return {
        "relu": nn.ReLU,
        "relu_in_place": lambda: nn.ReLU(inplace=True),
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "prelu": nn.PReLU,
        "silu": nn.SiLU,
        "leaky": nn.LeakyReLU,
    }[kind]()


def make_dropout(kind: str) -> nn.Module:
    """A dropout layer."""
    return {"dropout": nn.Dropout, "alpha": nn.AlphaDropout, "channels": nn.Dropout2d}.get(kind, nn.Identity)()


def make_inputs(spec: ModelSpec, num_examples: int, dtype: torch.dtype) -> Any:
    """Inputs of a network: a tensor, or a structure of two."""
    generator = torch.Generator().manual_seed(num_examples)
    shape = {"vector": (FEATURES,), "image": (2, SIDE, SIDE), "sequence": (LENGTH, FEATURES), "tokens": (LENGTH,)}
    size = (num_examples, *shape[spec.inputs])
    if spec.inputs == "tokens":
        whole = torch.randint(0, VOCABULARY // 2, size, generator=generator)
    else:
        whole = torch.randn(size, generator=generator).to(dtype)
    return {"tensor": whole, "tuple": (whole, whole), "dict": {"first": whole, "second": whole}}[spec.container]
