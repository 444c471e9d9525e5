"""What a command is given: its flags, the YAML file's settings, and the model they name. torch is imported when a model loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drllm.cli.options import CommonConfig, Namespace, Settings, build, section_class
from drllm.core.errors import ArtifactError, InputError, first_line
from drllm.core.progress import said_if_slow
from drllm.core.route import Route
from drllm.runs.manifest import Manifest, path_manifests, search_manifests

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel


Lines = Iterator[str]  # what a command prints on standard output


@dataclass(frozen=True)
class Job:
    """What a command gets: the parsed flags, the YAML file, and the common settings of both."""

    arguments: Namespace
    settings: Settings
    common: CommonConfig
    argv: list[str]

    def config(self, section: str, prefix: str = "", **unless_given: Any) -> Any:
        """Of one section, a job's or a method's: command line over YAML over defaults, those named here first."""
        given = {**unless_given, **self.settings.sections.get(section, {})}
        return build(section_class(section), given, self.arguments, prefix)

    def need(self, name: str) -> Any:
        value = getattr(self.common, name)
        if not value:
            raise InputError(f"--{name} is missing: give it on the command line or in the --config file; see `drllm {self.argv[1]} --help`")
        return value

    @property
    def out(self) -> str:
        """The folder that a command writes; `InputError` where it was not said, or is a file."""
        if Path(out := self.need("out")).is_file():
            raise InputError(f"--out {out} is a file: give a folder")
        return out

    @property
    def data(self) -> str | None:
        return self.common.data or None

    def tasks(self) -> tuple[str, ...]:
        """The tasks asked for, each a known name, or that of --data, which is also the one task where none is asked for."""
        from drllm.tasks import get_task, own_name

        own = own_name(self.data) if self.data else ""
        if own and not self.common.tasks:
            return (own,)
        if not self.common.tasks and "data" in vars(self.arguments):
            raise InputError(f"no questions: give a file of yours (--data) or known tasks (--tasks); see `drllm {self.argv[1]} --help`")
        return tuple(name if name == own else get_task(name).name for name in self.need("tasks"))

    def load(self, name: str, dtype: str = "", keeps_type: bool = False) -> RoutedModel:
        """The base model, wrapped; `dtype` and `keeps_type`: as of `placement`."""
        with self.loading(name, dtype, keeps_type) as placement:
            from drllm.model.routed import RoutedModel

            return RoutedModel.wrap(name, **placement)

    def check_route(self, why: str) -> bool:
        """Whether --route is given, and reads as one; refused beside --policy, before any weights load."""
        given = self.arguments.route
        if given is not None and self.arguments.policy is not None:
            raise InputError(f"got both --route and --policy: {why}, leave one of them out")
        return given is not None and bool(Route.parse(given))

    def load_routed(self, keeps_type: bool = False) -> tuple[RoutedModel, Route | None]:
        """The policy of --policy on its base, refused before any weights load where there is none; or the model, and --route on it."""
        if self.arguments.policy is None:
            routed = self.load(self.need("model"), keeps_type=keeps_type)
            return routed, None if self.arguments.route is None else Route.parse(self.arguments.route, routed.n_layers)
        from drllm.policies.saved import open_policy

        saved, base = open_policy(self.arguments.policy), self.common.model or None
        with self.loading(base or saved.config.base_id, keeps_type=keeps_type) as placement:
            from drllm.model.routed import RoutedModel

            return RoutedModel.from_pretrained(saved, base=base, **placement), None

    def costs(self, stages: Mapping[str, float], routed: RoutedModel, tasks: Sequence[str], config: Any) -> Lines:
        """--dry-run: plain forwards of each stage, with their time."""
        from drllm.core.text import cost_lines
        from drllm.evaluation.clock import batched_ms

        spent = batched_ms(routed, tasks, config, self.data)
        yield from cost_lines([(name, forwards, "") for name, forwards in stages.items()], spent)

    @contextmanager
    def loading(self, name: str, dtype: str = "", keeps_type: bool = False) -> Iterator[dict[str, Any]]:
        """While a model loads: its `placement`. Where that takes long, what loads is said, and a type that nobody asked for."""
        with said_if_slow(f"loading {name} ..."):
            placement = self.placement(dtype, keeps_type)
            is_chosen = self.common.dtype == "auto" and not dtype and placement["dtype"] is not None
            told = "... in float32: this processor has no instructions for bfloat16 (--dtype bfloat16 takes it all the same)"
            with said_if_slow(told) if is_chosen else nullcontext():
                yield placement

    def searched_model(self, out: Path) -> tuple[str, str]:
        """Model and dtype of a run: what --model and --dtype say, else what was searched."""
        if not out.is_dir():
            raise ArtifactError(f"no run folder {str(out)!r}: run `drllm search --out {out}` first")
        found = next(iter((search_manifests(out) | path_manifests(out)).values()), Manifest())
        return self.common.model or found.model or self.need("model"), found.dtype_name

    def placement(self, dtype: str = "", keeps_type: bool = False) -> dict[str, Any]:
        """The dtype and device arguments of `RoutedModel`; a GPU where torch sees one and nothing else is asked for.

        `dtype` is what "auto" stands for, else the checkpoint's own; unless the type is to be kept, float32 on a processor that lacks
        instructions for 16 bits: bfloat16 has a fifth of float32's products a second there (AVX2, one thread).
        """
        import torch
        from huggingface_hub.utils import logging as hub_logging

        hub_logging.set_verbosity_error()  # its retries without a network would bury the one line that says what to do
        wanted = self.common.dtype if self.common.dtype != "auto" else dtype
        if self.common.device:
            try:
                torch.empty(0, device=self.common.device)
            except (RuntimeError, AssertionError) as error:
                raise InputError(f"device {self.common.device!r} cannot be used here ({first_line(error)}): use cpu") from None
        device = self.common.device or ("cuda" if torch.cuda.is_available() else None)
        if not (wanted or keeps_type) and device in (None, "cpu") and torch.backends.cpu.get_cpu_capability() == "AVX2":
            wanted = "float32"
        return {"dtype": getattr(torch, wanted) if wanted else None, "device": device}
