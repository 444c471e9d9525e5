"""Command-line flags and `run.yaml`, both derived from the frozen dataclasses of `config.py`; the command line wins. No torch."""

import argparse
import dataclasses
import math
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from drllm.core.config import SECTIONS, PromiseConfig
from drllm.core.errors import InputError
from drllm.core.names import COMMANDS, did_you_mean, load_plugin, plugin_names
from drllm.core.options import check_ranges, option
from drllm.methods.base import get_method, method_names

Config = TypeVar("Config")
Parser = argparse.ArgumentParser  # of one command
Namespace = argparse.Namespace

DTYPE_HELP = "type of the weights; auto: the checkpoint's own, float32 on a CPU without 16-bit instructions"
COMPARED = "what to compare, comma-separated: base, policies of the run by name, and blind baselines of them: random-NAME, shuffled-NAME"

DRY_RUN = "print the stages, what each costs in plain forwards and time, and stop"

ROUTE_HELP = "digits, one a block: 0 skip, 1 execute, 2 repeat; or a path: 0-14,12-29, or 0-14,(12-14)*0.5,15-29 with a strength"


def section_names() -> tuple[str, ...]:
    """Those of the jobs, also of other packages' commands, then each method's."""
    return (*SECTIONS, *(name for name in plugin_names(COMMANDS) if hasattr(load_plugin(COMMANDS, name), "CONFIG")), *method_names())


def section_class(name: str) -> type:
    if name in SECTIONS:
        return SECTIONS[name]
    return getattr(load_plugin(COMMANDS, name), "CONFIG", None) or get_method(name).config


@dataclass(frozen=True)
class CommonConfig:
    """Settings that several commands share; at the top level of a YAML file."""

    model: str = option("", "Hub id, local folder, .gguf file or alias (see `drllm models`)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", DTYPE_HELP)
    device: str = option("", "where the model runs, for example cpu or cuda:0; default: a GPU where torch sees one")
    tasks: tuple[str, ...] = option((), "task names, comma-separated or repeated (see `drllm tasks`)")
    data: str = option("", "file with the questions (.jsonl, .csv, .parquet), or a folder of them; without --tasks its name is the task's")
    out: str = option("", "run folder; the same command resumes there")
    methods: tuple[str, ...] = option(("base", "static", "routers"), COMPARED)


@dataclass(frozen=True)
class Flag:
    name: str
    kind: type  # int, float, bool, str or tuple (of str)
    choices: tuple[str, ...]
    default: Any
    help: str

    @property
    def text_of_default(self) -> str:
        if self.kind is bool:
            return "yes" if self.default else "no"
        return ",".join(self.default) if self.kind is tuple else f"{self.default}"


@dataclass(frozen=True)
class Settings:
    """What a YAML file says: common settings, and a mapping for each section."""

    common: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def flags_of(config_class: type) -> list[Flag]:
    hints, flags = typing.get_type_hints(config_class), []
    for item in dataclasses.fields(config_class):
        hint, origin = hints[item.name], typing.get_origin(hints[item.name])
        choices = typing.get_args(hint) if origin is Literal else ()
        kind = str if choices else origin or hint
        if kind not in (int, float, bool, str, tuple):
            raise TypeError(f"{config_class.__name__}.{item.name}: no flag can be made for {hint}")
        flags.append(Flag(item.name, kind, choices, item.default, item.metadata["help"]))
    return flags


def add_config(parser: Parser, config_class: type, only: Sequence[str], title: str, prefix: str = "") -> None:
    """Add a flag for each field (or those named in `only`), None where it is not given, so that `build` can tell it from its default."""
    group = parser.add_argument_group(title)
    for flag in (flag for flag in flags_of(config_class) if not only or flag.name in only):
        shown = flag.text_of_default
        options: dict[str, Any] = {"dest": prefix + flag.name, "default": None}
        options["help"] = flag.help.replace("%", "%%") + (f" (default: {shown})" if shown else "")
        if flag.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif flag.kind is tuple:
            options |= {"action": "append", "metavar": "A,B"}
        elif flag.choices:
            options["choices"] = flag.choices
        else:
            options |= {"type": number if flag.kind is float else flag.kind, "metavar": {int: "N", float: "X", str: "TEXT"}[flag.kind]}
        group.add_argument("--" + (prefix + flag.name).replace("_", "-"), **options)


def add_section(parser: Parser, section: str, only: Sequence[str] = (), prefix: str = "", about: str = "") -> None:
    title = f"{section}: {about}" if about else section
    add_config(parser, section_class(section), only, f"{title} (section `{section}` of the YAML file)", prefix)


def add_common(parser: Parser, *names: str) -> None:
    if names:
        add_config(parser, CommonConfig, names, "common")
    parser.add_argument("--config", metavar="RUN.YAML", help="settings from a YAML file; flags given here win over it")


def build(config_class: type[Config], given: Mapping[str, Any], arguments: Namespace, prefix: str = "") -> Config:
    """The configuration: command line over YAML (`given`) over defaults."""
    values: dict[str, Any] = dict(given)
    for flag in flags_of(config_class):
        value = getattr(arguments, prefix + flag.name, None)
        if value is not None:
            values[flag.name] = split_names(value) if flag.kind is tuple else value
    try:
        config = config_class(**values)
        check_ranges(config)
    except InputError as error:
        said = str(error).removeprefix(f"{config_class.__name__}.")
        name = said.partition(" ")[0]
        if getattr(arguments, prefix + name, None) is None:  # of the YAML file
            raise
        raise InputError(f"--{(prefix + name).replace('_', '-')}{said.removeprefix(name)}") from None
    if isinstance(config, PromiseConfig):
        config.check_given(values)
    return config


def number(value: Any) -> float:
    """A finite float; ValueError otherwise, since nan passes every range check."""
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is not finite")
    return result


def split_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Names out of comma lists, blanks removed, each once, in the order given."""
    names = (name.strip() for text in texts for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def split_words(flag: str, text: str) -> list[str]:
    """The words of a flag that holds another program's flags, split as a shell would."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{flag} {text!r} cannot be split into words ({error})") from None


def read_yaml(path: str | Path | None) -> Settings:
    """A YAML file, every key and type checked, also in sections that the command at hand does not use."""
    if path is None:
        return Settings()
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {str(path)!r}: --config expects an existing YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): --config expects a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "syntax error"
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{where} is not YAML ({problem}): write `key: value` lines") from None
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}, expected `key: value` lines")
    of_all, common, found = {flag.name: flag for flag in flags_of(CommonConfig)}, {}, {}
    known = [*of_all, *section_names()]
    for key, value in loaded.items():
        if key in of_all:
            common[key] = _checked(of_all[key], value, str(path))
        elif key in known:
            found[key] = _section(path, key, value)
        else:
            inside = [section for section in section_names() if key in {flag.name for flag in flags_of(section_class(section))}]
            hint = f"; it belongs in section {' or '.join(inside)}" if inside else did_you_mean(str(key), known)
            raise InputError(f"{path}: unknown key {key!r}{hint or '; expected one of ' + ', '.join(known)}")
    return Settings(common, found)


def _section(path: str | Path, section: str, values: Any) -> dict[str, Any]:
    flags = {flag.name: flag for flag in flags_of(section_class(section))}
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: section {section!r} holds {values!r}, expected `key: value` lines under it")
    for key in values:
        if key not in flags:
            hint = did_you_mean(str(key), flags) or f"; expected one of {', '.join(flags)}"
            raise InputError(f"{path}: unknown key {key!r} in section {section!r}{hint}")
    checked = {key: _checked(flags[key], value, f"{path}, section {section}") for key, value in values.items()}
    check_ranges(section_class(section)(**checked))  # a value out of range is refused whichever command reads the file
    return checked


def _checked(flag: Flag, value: Any, where: str) -> Any:
    if flag.kind is tuple:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(item, str) for item in texts):
            return split_names(texts)
        raise InputError(f"{where}: {flag.name} is {value!r}, expected names such as [a, b]")
    if flag.choices:
        if value in flag.choices:
            return value
        hint = did_you_mean(str(value), flag.choices)
        raise InputError(f"{where}: {flag.name} is {value!r}, expected one of {', '.join(flag.choices)}{hint}")
    if flag.kind is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3, which has no dot, as a text.
        try:
            return number(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is flag.kind:
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[flag.kind]
    raise InputError(f"{where}: {flag.name} is {value!r}, expected {expected}")
