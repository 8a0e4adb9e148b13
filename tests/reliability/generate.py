"""Random commands and random configurations: what users might ask for, from the type hints of what they ask.

Most values are good, so that most commands get far; some are borderline, some absurd. Everything comes from one
`random.RandomPerturbation`, so that a number stands for a command.
"""

import inspect
import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from flatbayes import flatness, models, posteriors
from flatbayes.cli.aliases import list_names
from flatbayes.training import TrainingConfig, schedules
from flatbayes.training.config import CONFIG_GROUPS

GOOD = {
    int: ["1", "2", "3", "4"],
    float: ["0.05", "0.1", "0.5", "0.9", "1", "2"],
    bool: ["true", "false"],
    str: ["cpu", "auto", "all", "32-true"],
}
BORDERLINE = {
    int: ["0", "-1", "1.0", "999999999", "9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "0x10", "1_0"],
    float: [
        "0",
        "-0.0",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e-45",
        "1e-300",
        "1e308",
        "1e400",
        "1e30",
        "5e-324",
        "1" * 400,
    ],
    bool: ["2", "yes", "null", "0"],
    str: ["", "nan", "../..", "cuda", "cuda:99", "tpu", "мир", "\N{SNOWMAN}\u202e", "a" * 5000, "*", "[", "(?"],
}
ABSURD = ["", " ", "null", "~", "[]", "{}", "[[]]", "x", "[1, 2, 3]", '{"a": 1}', "日本", "nan", "-", "--",
          "@", "!!int 3", "[null]", "{1: 2}", "os.system", "1e", "%s%n", "${HOME}", "\ud800", "\t",
          "\n", "2020-01-01"]  # fmt: skip
HOSTILE = ["os.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "os.remove", "shutil.rmtree",
           "torch.load", "torch.nn.Module", "flatbayes.cli.main", "importlib.import_module", "sys.exit", "os._exit",
           "os.abort", "no.such.Thing", "..", "flatbayes.posteriors", "flatbayes.posteriors.Posterior"]  # fmt: skip
OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax", "Rprop", "ASGD",
              "LBFGS", "SparseAdam", "Adafactor", "Muon", "Optimizer"]  # fmt: skip
WORK = {"epochs", "num_draws", "num_seeds", "size", "num_samples", "ascent_steps", "num_trials", "max_snapshots",
        "rank", "num_validations", "depth", "width", "hidden", "growth", "widen", "layers", "heads", "patch",
        "num_jobs",
        "accumulation_steps", "max_examples", "blocks", "num_sharpness_draws", "batch_size", "num_cycles", "pad",
        "growth_rate", "units", "num_norm_batches", "num_grid_points"}  # fmt: skip
"""Options that legitimately ask for any amount of work or memory: a command with a large one may run out of time."""

ELSEWHERE = ("optimizer", "schedule", "compile", "devices", *CONFIG_GROUPS)
"""Fields that are chosen below, or start other programs: a compiler, more processes."""


def command(dice: random.Random) -> list[str]:
    """A random `fit`, sometimes a `compare`, of tiny data."""
    oddness = dice.choice([0.0, 0.0, 0.05, 0.1, 0.3])
    comparing = dice.random() < 0.1
    words = ["compare" if comparing else "fit", "--data=digits", "--data.train_size=40", "--data.test_size=0.9"]
    if dice.random() < 0.15:
        words[1:] = [f"--data={dice.choice(['diabetes', 'classes.npz', 'numbers.csv', 'classes.csv'])}"]
    words += _options("data", _data_hints(oddness), dice, oddness, 0.05)
    words += [f"--epochs={dice.choice('123')}", "--batch_size=20", "--collection.start_fraction=0"]
    words += _options("", _hints(TrainingConfig), dice, oddness, 0.08)
    for group, target in CONFIG_GROUPS.items():
        words += _options(group, _hints(target), dice, oddness, 0.08)
    axes: list[tuple[str, Any, float]] = [("flatness", flatness, 0.9), ("schedule", schedules, 0.4)]
    if comparing:
        words += [
            "--num_seeds=1",
            "--num_jobs=1",
            f"--posteriors=[{', '.join(dice.sample(list_names('posteriors'), 2))}]",
        ]
    else:
        axes.append(("posterior", posteriors, 0.9))
    for axis, module, often in axes:
        words += _axis(axis, module, dice, oddness) if dice.random() < often else []
    words += _model(dice, oddness)
    if dice.random() < 0.3:
        name = dice.choice(OPTIMIZERS) if dice.random() < 0.9 else None
        words.append(f"--optimizer={f'torch.optim.{name}' if name else dice.choice(HOSTILE)}")
        words += _options("optimizer", {"lr": float, "momentum": float, "weight_decay": float}, dice, oddness, 0.5)
    rest = {"draws": int, "seed": int} if comparing else {"draws": int, "seed": int, "log_steps": int,
            "checkpoint_steps": int | None, "checkpoint_seconds": float}  # fmt: skip
    words += ["--num_draws=2", *_options("", rest, dice, oddness, 0.15)]
    if dice.random() < oddness:
        words.insert(dice.randrange(1, len(words)), dice.choice([*ABSURD, "--", "--no_such=1", "--config=none.yaml"]))
    return [word.encode("utf-8", "surrogateescape" if word.isascii() else "ignore").decode() for word in words]


def asks_much(words: list[str]) -> bool:
    """Whether a command may take any time: an amount is large, or the network."""
    for word in words:
        if word.startswith("--model=") and word != "--model=mlp":
            return True
        name, _, value = word.lstrip("-").partition("=")
        digits = "".join(c if c.isdigit() else " " for c in value).split()
        if name.rpartition(".")[2] in WORK and any(len(d) > 2 for d in digits):
            return True
    return False


def value(hint: Any, dice: random.Random, oddness: float) -> str:
    """A value for a type hint; with a probability of `oddness` each, a borderline and an absurd one."""
    if dice.random() < oddness / 2:
        return dice.choice([*ABSURD, *HOSTILE])
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        arms = [arm for arm in inner if arm is not NoneType]
        return "null" if NoneType in inner and dice.random() < 0.2 else value(dice.choice(arms), dice, oddness)
    if origin is Literal:
        return str(dice.choice(inner))
    if origin in (list, tuple, set):
        one = inner[0] if inner else int
        return f"[{', '.join(value(one, dice, oddness) for _ in range(dice.choice([0, 1, 1, 2, 3])))}]"
    if origin is dict:
        return f"{{layers.*: {value(inner[1], dice, oddness)}}}"
    if hint in GOOD:
        return dice.choice(BORDERLINE[hint] if dice.random() < oddness else GOOD[hint])
    axis = {posteriors.Posterior: "posterior", flatness.Flatness: "flatness", schedules.Schedule: "schedule"}.get(
        hint
    )
    return dice.choice(list_names(axis)) if axis else dice.choice(ABSURD)


def _axis(axis: str, module: Any, dice: random.Random, oddness: float) -> list[str]:
    if dice.random() < oddness / 3:
        return [f"--{axis}={dice.choice([*ABSURD, *HOSTILE])}"]
    name = dice.choice(list_names(axis))
    return [f"--{axis}={name}", *_options(axis, _hints(getattr(module, name)), dice, oddness, 0.25)]


def _model(dice: random.Random, oddness: float) -> list[str]:
    if dice.random() < oddness / 3:
        return [f"--model={dice.choice([*ABSURD, *HOSTILE])}"]
    if dice.random() < 0.7:
        words = ["--model=mlp", "--model.hidden=[8]", "--model.dropout=0.1"]
        return words + _options("model", _hints(models.MLP), dice, oddness, 0.2)
    name = dice.choice(list_names("model"))
    return [f"--model={name}", *_options("model", _hints(getattr(models, name)), dice, oddness, 0.25)]


def _options(axis: str, hints: dict[str, Any], dice: random.Random, oddness: float, often: float) -> list[str]:
    prefix = f"--{axis}." if axis else "--"
    chosen = [name for name in hints if dice.random() < often]
    return [f"{prefix}{name}={value(hints[name], dice, oddness)}" for name in chosen]


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(target if is_dataclass(target) else target.__init__, localns={"Fabric": object})
    if is_dataclass(target):
        names = [field.name for field in fields(target) if field.init]
    else:
        names = [n for n in inspect.signature(target).parameters if n not in ("input_shape", "num_classes")]
    hints = {name: hints[name] for name in names if name in hints and name not in ELSEWHERE}
    here = {"accelerator": Literal["cpu", "auto"], "members": Literal["one_by_one", "auto", "vectorized"]}
    return hints | {name: here[name] for name in here if name in hints}


def _data_hints(oddness: float) -> dict[str, Any]:
    usual = {"train_size": int | None, "val_size": float, "test_size": float, "split_seed": int}
    return usual | ({"flip": bool, "pad": int, "path": str, "target": str} if oddness else {})


def configuration(dice: random.Random, whole: dict[str, Any]) -> bytes:
    """A random damage to a good configuration: of its content, of its text, or another text altogether."""
    kind = dice.random()
    if kind < 0.5:
        damaged: Any = yaml.safe_load(yaml.safe_dump(whole))
        for _ in range(dice.choice([1, 1, 2, 4])):
            damaged = _changed(damaged, dice)
        return yaml.safe_dump(damaged, allow_unicode=True).encode("utf-8", "replace")
    text = bytearray(yaml.safe_dump(whole).encode())
    if kind < 0.85:
        for _ in range(dice.choice([1, 1, 3, 20])):
            at = dice.randrange(len(text) or 1)
            how = dice.randrange(5)
            if how == 0 and text:
                text[at] ^= 1 << dice.randrange(8)
            elif how == 1:
                del text[at:]
                text += b" "
            elif how == 2:
                text[at:at] = dice.choice(BITS)
            elif how == 3:
                del text[at : at + dice.randrange(1, 40)]
            else:
                text[at:at] = text[at : at + dice.randrange(1, 200)]
        return bytes(text)
    return dice.choice(TEXTS)


def _changed(config: Any, dice: random.Random) -> Any:
    places = list(_places(config))
    if not places:
        return config
    holder, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key] = _odd(dice)
    elif how == 2:
        holder[key] = [holder[key]] if dice.random() < 0.5 else {key if isinstance(key, str) else "k": holder[key]}
    elif how == 3 and isinstance(holder, dict):
        holder[f"{key}{dice.choice(['x', '', ' ', 'é'])}"] = holder.pop(key)
    elif how == 4 and isinstance(holder, dict):
        holder[dice.choice(["class_path", "init_args", "no_such", "rho", "__init__", "config", ""])] = _odd(dice)
    else:
        other, there = dice.choice(places)
        holder[key] = yaml.safe_load(yaml.safe_dump(other[there])) if there in _keys(other) else _odd(dice)
    return config


def _odd(dice: random.Random) -> Any:
    hostile = {"class_path": dice.choice(HOSTILE), "init_args": dice.choice([{}, {"command": "touch pwned"},
               {"args": "touch pwned", "shell": True}, {"path": "victim"}, None, 3, {"name": "pwned"}])}  # fmt: skip
    deep: Any = 0
    for _ in range(dice.choice([5, 60])):
        deep = [deep] if dice.random() < 0.5 else {"class_path": deep}
    odd = [None, True, 0, -1, 2**63, 10**40, 1.5, float("nan"), float("inf"), -1e308, "", "x", "日本\n", [], {}, [[]],
           [None], {"a": {}}, {"": ""}, deep, hostile, hostile, hostile, [hostile], "a" * 20000]  # fmt: skip
    return dice.choice(odd)


def _places(thing: Any) -> Any:
    for key in _keys(thing):
        yield thing, key
        yield from _places(thing[key])


def _keys(thing: Any) -> list[Any]:
    return list(thing) if isinstance(thing, dict) else list(range(len(thing))) if isinstance(thing, list) else []


BITS = [b"\t", b"\x00", b"\xff\xfe", b"&a *a ", b"!!python/name:os.system ", b"%", b"{[", b"- ", b": ", b"<<: ",
        b"? ", b"\n---\n", b"\xef\xbb\xbf", b"|\n"]  # fmt: skip
LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("j"))
)
TEXTS = [
    LAUGHS,
    LAUGHS + b"epochs: *i\n",
    b"posterior: &p {class_path: flatbayes.posteriors.Ensemble, init_args: {member: *p}}\n",
    b"data: &d [*d]\n",
    b"[" * 3000,
    b"{a: " * 500 + b"1" + b"}" * 500,
    b"- " * 2000,
    b"",
    b"\x00",
    b"\xff\xfe\x00\x00",
    b"\x80abc",
    b"epochs:\t3\n\tbatch_size: 4\n",
    b"epochs: " + b"9" * 5000 + b"\n",
    b"epochs: 1e400\n",
    b"epochs: 0o777777777777777777777777\n",
    b"epochs: 190:20:30:30\n",
    b"!!python/object/apply:os.system ['touch pwned']\n",
    b"data: !!python/object/new:os.system ['touch pwned']\n",
    b"epochs: !!python/name:os.system\n",
    b"--- 1\n--- 2\n",
    b"just words\n",
    b"- a\n- list\n",
    b"42\n",
    b"<<: {epochs: 2}\nout: other\n",
    b"epochs: 1\nepochs: 2\n",
    b"config: self.yaml\n",
    b"{" + b"k" * 200000 + b": 1}\n",
    "épochs: 2\nout: \N{SNOWMAN}\n".encode(),
    b'{"epochs": 2, "data": "digits"',
    b"%YAML 9.9\n---\nepochs: 2\n",
    b"epochs: &x !!binary AAAA\n",
    b"epochs: 2020-13-45\n",
    b"? [complex, key]\n: 1\n",
    b"? {a: b}\n: 1\n",
]
