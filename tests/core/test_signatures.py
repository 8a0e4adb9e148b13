import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import flatbayes
from flatbayes.core.model_arguments import bind_arguments
from flatbayes.core.network_interface import adapt_network
from flatbayes.core.signatures import read_signature, write_annotations_as_text
from flatbayes.core.spec import get_defaults
from flatbayes.data.torch_dataset import list_parameters

SOURCE = """
class Base:
    def __init__(self, width: int = 4, loader: Missing | None = None): ...

class Child(Base):
    limit: Missing

    def __init__(self, num_classes: int, **kwargs: Missing): ...

class Network(nn.Module):
    def forward(self, images: Missing, mask: Missing):
        return images * mask

def build(num_classes: int, width: int = 4, loader: list[Missing] = ()) -> Missing: ...

def plain(width: int): ...
"""


@pytest.fixture(
    params=[
        "from __future__ import annotations\n",
        pytest.param(
            "",
            marks=pytest.mark.skipif(sys.version_info < (3, 14), reason="a definition evaluates its annotations"),
        ),
    ],
    ids=["text", "deferred"],
)
def module(request):
    """Classes and functions with annotations that name a type which is not imported."""
    namespace = {"__name__": "own", "nn": nn}
    exec(compile(request.param + SOURCE, "own.py", "exec", dont_inherit=True), namespace)
    return namespace


def test_signatures_with_types_that_are_not_imported(module):
    assert list(read_signature(module["build"]).parameters) == ["num_classes", "width", "loader"]
    assert list(read_signature(module["Child"]).parameters) == ["num_classes", "kwargs"]
    assert list(read_signature(partial(module["build"], 3)).parameters) == ["width", "loader"]


def test_networks_datasets_and_factories_with_types_that_are_not_imported(module):
    assert bind_arguments(module["build"], {"num_classes": 3, "input_shape": (4,)}, "the data") == {"num_classes": 3}
    assert get_defaults(module["Base"]) == {"width": 4, "loader": None}
    assert list_parameters(module["Child"]) == ["num_classes", "width", "loader"]
    network = adapt_network(module["Network"]())
    assert torch.equal(network((torch.ones(2, 3), torch.full((2, 3), 2.0))), torch.full((2, 3), 2.0))


def test_annotations_that_cannot_be_evaluated_become_text(module):
    for name in ("Child", "build", "plain"):
        write_annotations_as_text(module[name])
    assert module["build"].__annotations__["width"] in (int, "int")
    assert module["build"].__annotations__["loader"] == "list[Missing]"
    assert module["Child"].__annotations__ == {"limit": "Missing"}
    assert module["Child"].__init__.__annotations__["kwargs"] == "Missing"
    assert module["Base"].__init__.__annotations__["loader"] == "Missing | None"
    is_evaluated = sys.version_info >= (3, 14) and module["plain"].__annotations__ == {"width": int}
    assert is_evaluated or module["plain"].__annotations__ == {"width": "int"}


def test_the_library_reads_signatures_only_so():
    package = Path(flatbayes.__file__).parent
    found = [p.name for p in package.rglob("*.py") if "inspect.signature(" in p.read_text(encoding="utf-8")]
    assert found == ["signatures.py"]
