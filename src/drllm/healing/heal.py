"""`heal()`: prompts, the base's word on them, a route, an adapter, a policy. Each step is kept in the run folder; the same call resumes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drllm.core.config import HealConfig, to_dict
from drllm.core.errors import ArtifactError, InputError
from drllm.core.files import read_json, write_json
from drllm.core.route import Route, kept_passes
from drllm.core.text import type_name
from drllm.healing.measuring import choose_route
from drllm.healing.prompts import Ids, fields_of, file_keys, file_prompts, split_prompts, task_prompts, training_steps
from drllm.healing.teacher import Teacher, Text
from drllm.healing.training import Course, check_targets, distance_along, need_peft, train_adapter
from drllm.model.onednn import laid_out
from drllm.model.routed import RoutedModel
from drllm.policies.adapter import Adapter
from drllm.policies.codebook import Codebook, TextSelector
from drllm.policies.constant import RoutePolicy
from drllm.policies.healed import HealedPolicy
from drllm.policies.policy import Policy, RouteSource
from drllm.policies.saved import save_policy
from drllm.runs.card_facts import refresh_card
from drllm.runs.layout import HealFolder, RunFolder
from drllm.runs.manifest import differences
from drllm.runs.provenance import alone_in, running

POLICY = "healed"  # the policy's name in its run


@dataclass(frozen=True)
class Healed:
    """What a healing came to; as JSON in `heal.json`."""

    route: str  # healed, with the name of its adapter
    n_layers: int  # of the base
    n_passes: int
    n_weights: int  # of the adapter
    rank: int
    n_prompts: int  # learned from
    n_held_out: int
    n_tokens: int  # learned from
    kl_before: float  # to the base without the adapter, nats a held-out token, by `answer_share`; of the kept tokens (`teacher.py`)
    kl_after: float  # with it
    same_before: float  # share of held-out tokens, weighed so, behind which the most likely next token is the base's
    same_after: float
    steps: int
    ended: str  # why there were no more steps, where they ended early
    seconds: dict[str, float]  # of each stage, by the call that ended it; of training, by all calls
    looks: list[tuple[int, float, float]]  # (step, KL, share of the same next token) while it was trained

    def lines(self) -> list[str]:
        return [
            f"route {self.route}: {self.n_passes} block passes of {self.n_layers}, {self.n_layers - self.n_passes} saved",
            f"on {self.n_held_out} held-out prompts, which also chose when to stop, without and with the adapter:",
            f"  KL to the base, nats a token  {self.kl_before:.3f}  {self.kl_after:.3f}",
            f"  same next token as the base   {self.same_before:.1%}  {self.same_after:.1%}",
            f"adapter: {self.n_weights / 1e6:.2f} million numbers of rank {self.rank}; {self.steps} steps, {self.n_prompts} prompts, "
            f"{self.n_tokens:,} tokens{f'; {self.ended}' if self.ended else ''}",
            "seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items()),
        ]


def heal(
    routed: RoutedModel,
    out: str | Path,
    route: Route | RouteSource | None = None,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    prompts: str | Path | None = None,
    config: HealConfig | None = None,
    argv: Sequence[str] | None = None,
) -> tuple[Policy, list[Healed]]:
    """Train an adapter that brings a cheaper route back to what the base says, by KL, from prompts without labels.

    Args:
        routed: the base; its weights are only read, and its policy is not used.
        out: the run folder; the policy is saved as `out/healed`, all else lies in `out/train/healed`. The same call resumes there.
        route: the route to heal, or a policy of one, or a codebook that reads text: each of its routes gets an adapter of its own. None:
            `config.budget` says how many passes to keep, and the KL on some prompts which.
        tasks: their fit questions are prompts, as they are asked; `data` as of `drllm.search`.
        prompts: a file of prompts beside or instead of them: plain lines, or `.jsonl` with messages or text.

    Raises:
        InputError: peft is not installed, no prompts, too few, or a route that cannot be healed.
        UnsupportedModelError: no linear maps to adapt, or a family that computes something else in a shorter model.
        ArtifactError: `out` holds a healing of something else, or another one is at work there.
    """
    config, out = config or HealConfig(), Path(out)
    need_peft()
    check_targets(routed, config)
    routes = _routes_of(routed, route)
    folder = RunFolder(out).healing
    with alone_in(out, "heal"), running(out, "heal", to_dict(config) | {"tasks": list(tasks), "prompts": prompts and str(prompts)}, argv):
        if not tasks and prompts is None:
            raise InputError("no prompts to learn from: give tasks (--tasks) or a file of prompts (--prompts)")
        found = [] if prompts is None else [one.ids for one in file_prompts(routed, prompts)]
        held_out, fit = split_prompts(routed, [*task_prompts(routed, tasks, data, config), *found], config)
        about: dict[str, Any] = {"model": routed.fingerprint, "dtype": type_name(routed.model.dtype)}
        about |= {"route": " ".join(map(str, routes)) if route else None, "tasks": list(tasks), "data": data and str(data)}
        about["prompts"] = fields_of([*held_out, *fit])
        _check_settings(folder, about | to_dict(config))
        if prompts is not None:
            write_json(folder.asked, file_keys(prompts))
        folders = [folder] if len(routes) == 1 else [HealFolder(folder.root / str(one), folder.root) for one in routes]
        done = [Healing(routed, place, config, held_out, fit).run(one) for place, one in zip(folders, routes, strict=True)]
        adapters, healed = zip(*done, strict=True)
        policy = route.with_adapters(adapters) if isinstance(route, Codebook) and route.route is None else HealedPolicy(*adapters)
        save_policy(policy, routed.identity, RunFolder(out).policy(POLICY))
    refresh_card(RunFolder(out).policy(POLICY))  # with this command and its figures
    return policy, list(healed)


def _routes_of(routed: RoutedModel, what: Route | RouteSource | None) -> Sequence[Route | None]:
    """Those to heal, as they are without adapters; None: one that the budget will choose."""
    if what is None:
        return [None]
    source = RoutePolicy(what) if isinstance(what, Route) else what
    if source.route is not None:
        routes = [source.route.bare]
    elif isinstance(source, Codebook) and isinstance(source.selector, TextSelector):
        routes = [route.bare for route in source.routes if not route.is_full]
    else:
        raise InputError(f"a {source.name!r} policy decides in the model: give one of its routes (--route), or a codebook that reads text")
    for route in routes:
        if len(route) != routed.n_layers:
            raise InputError(f"route {route} leads through {len(route)} blocks, the model has {routed.n_layers}")
        if not route.n_passes or any(span.strength != 1 for span in route.spans):
            why = "runs no block" if not route.n_passes else "has a strength, which no adapter of a plain checkpoint can follow"
            raise InputError(f"route {route} {why}: heal a route of whole passes")
    return routes


def _check_settings(folder: HealFolder, settings: dict[str, Any]) -> None:
    """Refuse to go on with another healing's files."""
    if not folder.settings.is_file():
        folder.root.mkdir(parents=True, exist_ok=True)
        write_json(folder.settings, settings)
    for key, before, now in differences(read_json(folder.settings, "give another --out", dict), settings):
        raise ArtifactError(f"{folder.root} holds a healing with {key} {before}, this one has {now}: give another --out")


@dataclass
class Healing:
    """One healing."""

    routed: RoutedModel
    folder: HealFolder
    config: HealConfig
    held_out: list[Ids]  # say when to stop
    fit: list[Ids]

    def __post_init__(self) -> None:
        done = read_json(self.folder.report, "delete it and run the same command again", dict) if self.folder.report.is_file() else {}
        self.seconds: dict[str, float] = done.get("seconds", {})

    def run(self, route: Route | None) -> tuple[Adapter, Healed]:
        """All stages, as far as they are not done; what it came to is written to the folder. None: a route of the budget is chosen."""
        self.folder.root.mkdir(parents=True, exist_ok=True)
        config, numbers = self.config, training_steps([len(ids) + self.config.new_tokens for ids in self.fit], self.config)
        used = sorted({index for step in numbers for index in step})
        started = time.monotonic()
        teacher = Teacher(self.routed, self.folder.teacher, config.new_tokens, config.max_step_tokens, config.answer_share)
        with laid_out(self.routed.model):
            held_out = teacher.texts(self.held_out, "heal: the base on held-out prompts", "held-out")
            learned = teacher.texts([self.fit[index] for index in used], "heal: the base on prompts to learn from", "fit")
            self._spent("base", started)
            if route is None:
                started = time.monotonic()
                keep = kept_passes(config.budget, self.routed.n_layers)
                route = choose_route(self.routed, learned[: config.choose_on], keep, self.folder.choice, config.max_step_tokens)
                self._spent("route", started)
        texts = dict(zip(used, learned, strict=True))
        steps = [[texts[index] for index in step] for step in numbers]
        adapter, course = train_adapter(self.routed, route.bare, steps, held_out, config, self.folder.root)
        self.routed.as_source(HealedPolicy(adapter))
        found = self._measured(adapter, course, held_out, [text for step in steps[: course.step] for text in step])
        write_json(self.folder.report, asdict(found))
        return adapter, found

    def _measured(self, adapter: Adapter, course: Course, held_out: Sequence[Text], learned: Sequence[Text]) -> Healed:
        before, after = (distance_along(self.routed, one, held_out, self.config.max_step_tokens) for one in (adapter.route, adapter.healed))
        return Healed(
            route=str(adapter.healed),
            n_layers=len(adapter.route),
            n_passes=adapter.route.n_passes,
            n_weights=adapter.n_weights,
            rank=adapter.rank,
            n_prompts=len({text.ids for text in learned}),
            n_held_out=len(held_out),
            n_tokens=sum(len(text.ids) for text in learned),
            kl_before=before.kl,
            kl_after=after.kl,
            same_before=before.same,
            same_after=after.same,
            steps=course.step,
            ended=course.ended,
            seconds=self.seconds | {"training": round(course.seconds, 1)},
            looks=course.looks,
        )

    def _spent(self, stage: str, started: float) -> None:
        # A stage's first time: later calls only read what it made.
        self.seconds.setdefault(stage, round(time.monotonic() - started, 1))
