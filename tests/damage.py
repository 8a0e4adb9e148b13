"""Files that were damaged by accident, or made to do harm: as functions of a seeded generator."""

import copy
import shutil
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

EXTREMES = [0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]

CLASS_PATHS = [
    "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "flatbayes.core.files.write_json",
    "flatbayes.posteriors.Posterior", "flatbayes.posteriors.SGLD", "flatbayes.posteriors.Ensemble",
    "flatbayes.posteriors.swag.gaussian_sample", "flatbayes.likelihoods.Categorical", "flatbayes.models.replace_head",
    "flatbayes.models.MLP", "flatbayes.models.PreResNet", "flatbayes.models.ViT", "flatbayes.models.DenseNet",
    "flatbayes.posteriors", "flatbayes.models..", "", ".", "flatbayes.likelihoods.Gaussian",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**62, -(2**62), 2**63, 10**18, 10**400, 0.0, -1.0, 1e308, 0.5, "", "all",
    "x", "../../etc/passwd", "/dev/zero", "\u0000", "\ud800", "9" * 5000, [], [[]], {}, {"class_path": "os.system"},
    {"class_path": "flatbayes.posteriors.SWAG", "init_args": {"rank": 10**9}}, [10**9] * 3, [1] * 3000, ["*"],
]  # fmt: skip


def cut(content: bytes, random: Random) -> bytes:
    """Truncated: to nothing, to a few bytes, within the first kilobyte, anywhere, or by one byte."""
    most = len(content)
    kept = random.choice([0, 1, 7, 8, 9, random.randint(0, min(most, 1024)), random.randint(0, most), most - 1])
    return content[: max(0, kept)]


def flipped(content: bytes, random: Random) -> bytes:
    """One to 64 bits turned over, in the first kilobyte as often as anywhere."""
    found = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 4, 64])):
        end = random.choice([len(found), min(len(found), 1024)])
        found[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(found)


def overwritten(content: bytes, random: Random) -> bytes:
    """A whole number of four or eight bytes, such as a size, replaced by an extreme one."""
    width = random.choice([4, 8])
    number = random.choice(EXTREMES) % 2 ** (8 * width)
    place = random.choice([0, random.randrange(max(1, len(content) - width))])
    return content[:place] + number.to_bytes(width, random.choice(["little", "big"])) + content[place + width :]


def rearranged(content: bytes, random: Random) -> bytes:
    """A block left out, said twice, made zero, or replaced by noise."""
    start = random.randrange(len(content))
    block = content[start : start + random.choice([1, 16, 256])]
    new = random.choice([b"", block * 2, bytes(len(block)), random.randbytes(len(block)), b"\xff" * len(block)])
    return content[:start] + new + content[start + len(block) :]


def oversized(content: bytes, random: Random) -> bytes:
    """More at the end, or at the beginning."""
    more = random.choice([b"\0", b"\0" * 2**16, random.randbytes(100), content])
    return content + more if random.random() < 0.7 else more + content


DAMAGES: list[Callable[[bytes, Random], bytes]] = [cut, flipped, overwritten, rearranged, oversized]


def damaged(content: bytes, random: Random) -> bytes:
    """Damaged in one of these ways."""
    return random.choice(DAMAGES)(content, random)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in plain data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [(*path, key) for key, _ in inner] + [
        found for key, value in inner for found in places(value, (*path, key))
    ]


def distorted(data: Any, random: Random) -> Any:
    """Plain data in which one to three values were replaced, left out or renamed."""
    found = copy.deepcopy(data)
    for _ in range(random.choice([1, 1, 2, 3])):
        known = places(found)
        if not known:
            return found
        *above, key = random.choice(known)
        holder = found
        for step in above:
            holder = holder[step]
        match random.randrange(10):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[random.choice(["x", "class_path", "init_args", ""])] = holder.pop(key)
            case 2 | 3 if key == "class_path":
                holder[key] = random.choice(CLASS_PATHS)
            case 4 if isinstance(holder[key], int | float):
                holder[key] = random.choice([-1, 1000, 10**6]) * holder[key]
            case 5:
                nested: Any = 1
                for _ in range(random.choice([10, 400])):
                    nested = [nested]
                holder[key] = nested
            case _:
                holder[key] = copy.deepcopy(random.choice(VALUES))
    return found


def harness() -> Any:
    """The module tests/reliability/fuzz.py, which tries thousands of such files."""
    spec = spec_from_file_location("fuzz", Path(__file__).parent / "reliability" / "fuzz.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusals(fuzz, kind, folder, num_seeds):
    """What was said to files of a kind, damaged from several seeds; anything but an error of ours is raised."""
    make, use = fuzz.KINDS[kind]
    contents = make(folder / "whole")
    use(folder / "whole")
    refused = []

    @settings(max_examples=num_seeds)
    @given(st.integers(0, 2**32))
    def tried(seed):
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        contents(folder / "damaged", Random(seed))
        try:
            use(folder / "damaged")
        except fuzz.EXPECTED as error:
            refused.append(str(error))

    tried()
    return refused
