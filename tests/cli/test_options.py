"""Flags and run.yaml derive from the dataclasses: every field, its type, its default, and who wins."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from drllm.cli import options as flags
from drllm.cli.main import make_parser
from drllm.cli.retrofit import COMPARING, JUDGING
from drllm.core.config import EvaluateConfig, PromiseConfig, RoutersConfig, SearchConfig
from drllm.core.errors import InputError

SECTIONS = [("search", SearchConfig), ("routers", RoutersConfig), ("evaluate", EvaluateConfig)]
COMMANDS = {"routers": "train"}
NEEDS = {"teacher_forcing": {"preset": "paper"}}  # fields that have a meaning beside others alone
OTHER = {int: 7, float: 0.25, str: "text", tuple: ("a", "b")}


def typed(flag: flags.Flag) -> tuple[list[str], object]:
    """A command line that sets the flag to something else than its default, and the value it should give."""
    name = "--" + flag.name.replace("_", "-")
    if flag.kind is bool:
        return [f"--no-{name[2:]}" if flag.default else name], not flag.default
    if flag.choices:
        value = next(choice for choice in reversed(flag.choices) if choice != flag.default)
        return [name, value], value
    value = {"n_resamples": 200, "max_passes_ratio": 1.5}.get(flag.name, OTHER[flag.kind])
    return [name, ",".join(value) if isinstance(value, tuple) else str(value)], value


@pytest.mark.parametrize(("section", "config_class"), SECTIONS)
def test_every_field_has_a_flag_that_sets_it(section, config_class):
    parser = make_parser(COMMANDS.get(section, section))
    for flag in flags.flags_of(config_class):
        arguments, expected = typed(flag)
        needs = NEEDS.get(flag.name, {})
        arguments += [word for name, value in needs.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        config = flags.build(config_class, {}, parser.parse_args(arguments))
        assert config == dataclasses.replace(config_class(), **{flag.name: expected, **needs})


def test_retrofit_has_the_flags_that_it_reads_with_a_prefix():
    parser = make_parser("retrofit")
    read = {"search": (SearchConfig, JUDGING), "evaluate": (EvaluateConfig, COMPARING), "promise": (PromiseConfig, ("epsilon", "delta"))}
    for section, (config_class, names) in read.items():
        for flag in flags.flags_of(config_class):
            (name, *value), expected = typed(flag)
            words = [name.replace("--", f"--{section}-", 1), *value]
            if flag.name in names:
                assert getattr(parser.parse_args(words), f"{section}_{flag.name}") == expected
            else:
                with pytest.raises(InputError, match="unrecognized arguments"):
                    parser.parse_args(words)


def test_help_shows_the_defaults():
    text = " ".join(make_parser("search").format_help().split())
    for flag in flags.flags_of(SearchConfig):
        assert f"--{flag.name.replace('_', '-')}" in text
        assert f"(default: {flag.text_of_default})" in text


def test_a_field_no_flag_can_be_made_for_is_a_mistake_of_ours():
    odd = dataclasses.make_dataclass("Odd", [("names", dict, dataclasses.field(default=None, metadata={"help": "?"}))])
    with pytest.raises(TypeError, match=r"Odd\.names"):
        flags.flags_of(odd)


def test_command_line_over_yaml_over_default(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: from-yaml\ntasks: arc_easy, piqa\nout: runs/y\nsearch: {n_simulations: 9, limit: 8, exploration: 2}\n")
    settings = flags.read_yaml(path)
    parsed = make_parser("search").parse_args(["--n-simulations", "3", "--out", "runs/c", "--no-early-stop"])
    config = flags.build(SearchConfig, settings.sections["search"], parsed)
    assert (config.n_simulations, config.limit, config.exploration, config.early_stop) == (3, 8, 2.0, False)
    assert config.random_prob == SearchConfig().random_prob
    common = flags.build(flags.CommonConfig, settings.common, parsed)
    assert (common.model, common.out, common.tasks, common.dtype) == ("from-yaml", "runs/c", ("arc_easy", "piqa"), "auto")


def test_zero_and_false_on_the_command_line_are_given_values():
    parsed = make_parser("search").parse_args(["--limit", "0", "--no-early-stop"])
    config = flags.build(SearchConfig, {"limit": 5, "early_stop": True}, parsed)
    assert (config.limit, config.early_stop) == (0, False)


def test_tasks_by_comma_and_repeated_are_the_same():
    parser = make_parser("search")
    one, two = (parser.parse_args(line) for line in (["--tasks", "a, b,a"], ["--tasks", "a", "--tasks", "b"]))
    assert flags.build(flags.CommonConfig, {}, one).tasks == flags.build(flags.CommonConfig, {}, two).tasks == ("a", "b")


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\nsearch:\n")
    settings = flags.read_yaml(path)
    assert flags.build(SearchConfig, settings.sections.get("search", {}), argparse.Namespace()) == SearchConfig()
    assert flags.read_yaml(None) == flags.Settings()


def test_yaml_numbers_in_the_forms_people_write(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("routers: {lr: 1e-3, gamma: 2, normalize: raw}\n")
    sections = flags.read_yaml(path).sections
    config = flags.build(RoutersConfig, sections["routers"], argparse.Namespace())
    assert (config.lr, config.gamma, config.normalize) == (1e-3, 2.0, "raw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {n_simulatons: 3}", r"unknown key 'n_simulatons' in section 'search'; did you mean 'n_simulations'"),
        ("modle: x", r"unknown key 'modle'; did you mean 'model'"),
        ("n_simulations: 3", r"unknown key 'n_simulations'; it belongs in section search"),
        ("3: x", r"unknown key 3; expected one of model"),
        ("search: {n_simulations: many}", r"n_simulations is 'many', expected a whole number"),
        ("search: {n_simulations: 2.5}", r"n_simulations is 2\.5, expected a whole number"),
        ("search: {n_simulations: true}", r"n_simulations is True, expected a whole number"),
        ("search: {exploration: true}", r"exploration is True, expected a number"),
        ("search: {exploration: .nan}", r"exploration is nan, expected a number"),
        ("search: {exploration: [1]}", r"exploration is \[1\], expected a number"),
        ("search: {early_stop: 1}", r"early_stop is 1, expected true or false"),
        (
            "search: {reward: leter}",
            r"reward is 'leter', expected one of auto, generated, loglik, letter, boxed, number, exact; did you mean 'letter'",
        ),
        ("search: {limit: -1}", r"limit is -1, expected at least 0"),
        ("search: 3", r"section 'search' holds 3"),
        ("tasks: 3", r"tasks is 3, expected names"),
        ("tasks: [a, 3]", r"tasks is \['a', 3\], expected names"),
        ("model: 3", r"model is 3, expected a text"),
        ("- a", r"holds a list"),
        ("a: [b", r"line \d+ is not YAML"),
    ],
)
def test_a_wrong_yaml_file_is_refused_in_one_line(text, message, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=message) as caught:
        flags.read_yaml(path)
    assert "\n" not in str(caught.value)
    assert "run.yaml" in str(caught.value) or "expected at least" in str(caught.value)


def test_a_missing_or_unreadable_yaml_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no file"):
        flags.read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot read"):
        flags.read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(InputError, match="cannot read"):
        flags.read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_configurations_are_valid(path: Path):
    settings = flags.read_yaml(path)
    assert settings.sections
