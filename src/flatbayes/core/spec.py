"""Serialisation of objects as plain data: `{"class_path": ..., "init_args": {...}}`, as in YAML, JSON and the CLI."""

import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from types import MethodType
from typing import Any

from flatbayes.core.renames import explain_name, translate_path, translate_spec
from flatbayes.core.signatures import read_signature


def to_spec(obj: Any, *, allow_instances: bool = False) -> Any:
    """Plain data from which `instantiate` makes an equal object.

    Dataclasses and classes or functions (also with arguments bound by `functools.partial`) become class paths
    with their arguments; numbers, strings, lists and dictionaries are unchanged. NumPy numbers become those of
    Python, and rows of NumPy integers become lists.

    Args:
        obj: The object.
        allow_instances: Describe an instance of some other class, such as a network, by the path of its class and a
            checksum of its content, and leave out the `content_fields` of a class, which hold examples. Such a
            description serves as a label or, with a fingerprint of the examples, as an identity; `instantiate` does
            not read it.

    Raises:
        TypeError: The object has no such description (a lambda, an instance of some other class).
    """
    convert = partial(to_spec, allow_instances=allow_instances)
    numpy = sys.modules.get("numpy")  # slow to import; without it there are no such numbers
    if numpy is not None and isinstance(obj, numpy.generic):
        return convert(obj.item())
    if numpy is not None and isinstance(obj, numpy.ndarray) and obj.ndim == 1 and obj.dtype.kind in "iu":
        return obj.tolist()
    if obj is None or isinstance(obj, str | int | float | bool):
        return obj
    if isinstance(obj, list | tuple):
        return [convert(item) for item in obj]
    if isinstance(obj, dict):
        return {key: convert(value) for key, value in obj.items()}
    if isinstance(obj, partial) and not obj.args:
        return {"class_path": class_path(obj.func), "init_args": convert(obj.keywords)}
    if is_dataclass(obj) and not isinstance(obj, type):
        content = {n for n in getattr(obj, "content_fields", ()) if not isinstance(getattr(obj, n), str | None)}
        if content and not allow_instances:
            raise TypeError(
                f"{type(obj).__name__} cannot be written down as data with an instance as its {min(content)}. Give "
                "the dotted path of the class instead, and its arguments as options."
            )
        arguments = {
            f.name: _convert_field(obj, f.name, convert) for f in fields(obj) if f.init and f.name not in content
        }
        description: dict[str, Any] = {"class_path": class_path(type(obj)), "init_args": arguments}
        state: Any = (_list_extra_attributes(obj) if allow_instances else None) or None
    elif allow_instances and not hasattr(obj, "__qualname__"):
        path = f"{type(obj).__module__}.{type(obj).__qualname__}"
        description, state = {"class_path": path, "init_args": {}}, obj
    else:
        is_bound = isinstance(obj, MethodType) and not isinstance(obj.__self__, type)
        description = {"class_path": class_path(obj), "init_args": {}}
        state = obj if allow_instances and is_bound else None
    if state is None:
        return description
    from flatbayes.core.content import hash_content  # imports torch

    checksum = hash_content(state)
    return description if checksum is None else {**description, "content": checksum}


def _convert_field(obj: Any, name: str, convert: Callable[[Any], Any]) -> Any:
    """The description of a field of a dataclass; an error for a function without a name says which field it is."""
    value = getattr(obj, name)
    if callable(value) and "<" in getattr(value, "__qualname__", ""):
        try:
            return convert(value)
        except TypeError as error:
            raise TypeError(f"The {name} of the {type(obj).__name__}, {error}") from None
    return convert(value)


def _list_extra_attributes(obj: Any) -> dict[str, Any]:
    """Attributes that a subclass of a dataclass has without being one, such as those that its `__init__` sets."""
    if "__dataclass_fields__" in vars(type(obj)) or hasattr(obj, "content_fields"):
        return {}
    names = {field.name for field in fields(obj)}
    return {name: value for name, value in getattr(obj, "__dict__", {}).items() if name not in names}


def instantiate(
    spec: Any,
    *,
    package: str | None = None,
    base_class: type | None = None,
    bind: bool = False,
    allowed_paths: Collection[str] = (),
) -> Any:
    """The inverse of `to_spec`. Names of version 0.1 are translated.

    Args:
        spec: Plain data.
        package: Refuse class paths outside this package. Set it wherever the data may come from someone else.
        base_class: Call nothing but subclasses of this class.
        bind: Return the outermost class with its arguments bound, instead of calling it.
        allowed_paths: Dotted paths outside `package` that the user named: a class or function, or a module with all
            that is in it. They may be class paths, and values of the arguments that a class lists in
            `import_path_fields`, because it imports them later.

    Raises:
        ValueError: A class path is outside `package`, cannot be imported, or is not a subclass of `base_class`.
    """
    convert = partial(instantiate, package=package, base_class=base_class, allowed_paths=allowed_paths)
    if isinstance(spec, list):
        return [convert(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    if set(spec) - {"class_path", "init_args"} or "class_path" not in spec:
        return {key: convert(value) for key, value in spec.items()}
    if not isinstance(spec["class_path"], str):
        raise ValueError(f"A class path is a dotted name, such as flatbayes.SWAG; got {spec['class_path']!r}.")
    if not isinstance(spec.get("init_args", {}), dict):
        raise ValueError(f"init_args is a mapping of arguments by name; got {str(spec['init_args'])[:80]}.")
    path, arguments = translate_spec(spec["class_path"], spec.get("init_args", {}))
    arguments = {key: convert(value) for key, value in arguments.items()}
    target = import_object(path, package=None if is_allowed(path, allowed_paths) else package)
    for name in getattr(target, "import_path_fields", ()):
        value = arguments.get(name)
        if package is not None and isinstance(value, str) and not is_allowed(value, allowed_paths):
            raise ValueError(
                f"{value!r} is not part of {package}, and nothing else is imported because a file says so. "
                f"If you trust it, name it yourself (on the command line, --data {value})."
            )
    if base_class is not None and not (isinstance(target, type) and issubclass(target, base_class)):
        raise ValueError(f"{path!r} is not a subclass of {base_class.__name__}.")
    return partial(target, **arguments) if bind else target(**arguments)


def is_allowed(path: object, allowed_paths: Collection[str]) -> bool:
    """Whether a dotted path is one of those allowed, or within an allowed module.

    >>> is_allowed("models.nets.Net", ["models.nets"]), is_allowed("models.netsuite.Net", ["models.nets"])
    (True, False)
    """
    return isinstance(path, str) and any(f"{path}.".startswith(f"{allowed}.") for allowed in allowed_paths)


def import_object(path: str, *, package: str | None = None) -> Callable[..., Any]:
    """Import the class or function at a dotted path. Names of version 0.1 are translated.

    With a package, paths outside of it, and names that it does not export, are refused.

    Raises:
        ValueError: The path is outside `package`, or cannot be imported.
    """
    path = translate_path(path)
    module_name, _, name = path.rpartition(".")
    if package is not None and not f"{module_name}.".startswith(f"{package}."):
        raise ValueError(f"{path!r} is not part of {package}, and nothing else is imported because a file says so.")
    try:
        module = importlib.import_module(module_name)
        if package is not None and name not in getattr(module, "__all__", ()):
            raise AttributeError(name)
        target: Callable[..., Any] = getattr(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        reason = explain_name(path) or f"({error})."
        raise ValueError(f"{path!r} does not lead to a class or function: {reason}") from error
    if not callable(target):
        raise ValueError(f"{path!r} is not a class or function.")
    return target


def class_path(obj: Any) -> str:
    """Dotted path of a class or function, by its public package if that exports it.

    Raises:
        TypeError: It has no name that could be imported.
    """
    name, module = getattr(obj, "__qualname__", "<instance>"), getattr(obj, "__module__", "")
    if "<" in name or not module:  # a function that `exec` has made has none
        raise TypeError(
            f"{obj!r} cannot be written down as data. Define it at the top level of a module and, if it needs "
            "arguments, bind them with functools.partial, such as partial(torch.optim.AdamW, lr=0.001)."
        )
    package = module.rpartition(".")[0]
    is_exported = package and getattr(importlib.import_module(package), name, None) is obj
    return f"{package if is_exported else module}.{name}"


def short_name(obj: Any) -> str:
    """Class name with the arguments that differ from their defaults: `SWAG(rank=0)`, `Plain`.

    A description may come from a file, so classes outside flatbayes are not imported for their defaults.
    """
    spec = obj if isinstance(obj, dict) else to_spec(obj, allow_instances=True)
    path, arguments = translate_spec(spec["class_path"], spec.get("init_args", {}))
    is_safe = path.startswith("flatbayes.") or path.rpartition(".")[0] in sys.modules
    defaults = get_defaults(import_object(path)) if is_safe and arguments else {}
    changed = {key: value for key, value in arguments.items() if key not in defaults or defaults[key] != value}
    inside = ", ".join(f"{key}={_format_value(value)}" for key, value in changed.items())
    name = path.rpartition(".")[2]
    return f"{name}({inside})" if inside else name


def _format_value(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return short_name(value)
    return format(value, "g") if isinstance(value, float) else str(value)


def get_defaults(target: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a class or function that have defaults, as plain data."""
    if is_dataclass(target):
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(target)
            if f.init
        }
        return {name: to_spec(value) for name, value in defaults.items() if value is not MISSING}
    parameters = read_signature(target).parameters.values()
    return {p.name: to_spec(p.default) for p in parameters if p.default is not inspect.Parameter.empty}
