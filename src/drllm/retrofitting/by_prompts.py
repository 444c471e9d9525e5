"""`retrofit_prompts()`: from prompts without an answer key to a policy that says what the base says, on fewer blocks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from drllm.core.config import HealConfig, PromptsConfig, to_dict
from drllm.core.errors import InputError
from drllm.core.files import write_json
from drllm.core.progress import say
from drllm.core.route import Route, kept_passes
from drllm.core.text import type_name
from drllm.evaluation.fit import save_as
from drllm.healing.heal import Healing
from drllm.healing.measuring import answer_kls, greedy_answers
from drllm.healing.prompts import Ids, fields_of, file_keys, file_prompts, in_order, most_tokens, parted
from drllm.healing.teacher import Teacher
from drllm.healing.training import check_targets, need_peft
from drllm.methods.nearest import Nearest, fit_nearest
from drllm.model.pool import threads_here
from drllm.model.routed import RoutedModel
from drllm.policies.adapter import Adapter
from drllm.policies.healed import HealedPolicy
from drllm.policies.policy import Policy
from drllm.reporting.report import report
from drllm.retrofitting.claim import claim_folder, claimed_if_begun
from drllm.retrofitting.pace import CLOCK_TOKENS, PromptSizes, check_parts, seconds_on, sizes_of_prompts, token_ms
from drllm.runs.layout import RunFolder
from drllm.runs.provenance import alone_in, running
from drllm.runs.recommendation import TOLERATED, Agreed, NestRow, PointRow
from drllm.runs.stages import Stages
from drllm.stats.agreement import Agreement, find_agreement
from drllm.stats.spending import by_group, dealt_loss, least_loss

SELECTOR, PROMISED = "selector", "promised"  # policies' names in the run
CLOCKED = 32  # calibrate prompts on which seconds are measured, at most
HELD_OUT = 0.25  # of the heal prompts, at most, that say when to stop


def retrofit_prompts(
    routed: RoutedModel, prompts: str | Path, out: str | Path, configs: Mapping[str, Any], argv: Sequence[str] | None = None
) -> tuple[Agreed, dict[str, Any]]:
    """Heal a nest of routes, learn which prompt bears which, and promise how often answers differ from the base's.

    A stage that an earlier call finished is recognised; what fits into the time is settled once and kept.

    Args:
        prompts: a file of plain lines, or `.jsonl` with messages, text, or requests that hold them.
        configs: by section: `retrofit` (minutes), `prompts`, `heal`, `promise` (delta of the promise), `resources`.

    Returns:
        What it came to, also in `out/agreement.json`; and report (a path), skipped (names of the stages that were done already).

    `InputError` for too few prompts, too little time, or without peft; `ArtifactError` where `out` holds another run.
    """
    run = RunFolder(Path(out))
    need_peft()
    asked, about = file_prompts(routed, prompts), {name: to_dict(configs[name]) for name in ("retrofit", "prompts", "heal")}
    with threads_here(configs["resources"]), alone_in(run.root, "retrofit"), claimed_if_begun(run):
        found = _ByPrompts(routed, run, configs, asked)
        with running(run.root, "retrofit", about, argv):
            run.nest.mkdir(parents=True, exist_ok=True)
            write_json(run.nested(1).asked, file_keys(prompts))
            return found.run_all()


class _ByPrompts:
    """One retrofit under way."""

    def __init__(self, routed: RoutedModel, run: RunFolder, configs: Mapping[str, Any], asked: Sequence[Any]):
        self.routed, self.folder = routed, run
        self.minutes: float = configs["retrofit"].minutes
        self.of: PromptsConfig = configs["prompts"]
        self.delta: float = configs["promise"].delta
        self.config: HealConfig = configs["heal"]
        check_targets(routed, self.config)
        if not self.config.new_tokens:
            raise InputError("--heal-new-tokens is 0, and the base's answers are what a selector learns from: give 1 at least")
        self.parts = parted(in_order(routed, [one.ids for one in asked], self.config))
        check_parts(self.parts)
        self.kinds, self.form = {one.ids: one.kind for one in asked}, asked[0].form
        about = {"model": routed.fingerprint, "dtype": type_name(routed.model.dtype), "delta": self.delta}
        about["prompts"] = fields_of([ids for part in self.parts.values() for ids in part])
        settings = about | to_dict(self.config) | to_dict(self.of) | {"budgets": list(self.of.budgets), "minutes": self.minutes}
        claim_folder(run, settings | {"targets": list(self.config.targets)})
        steps = [("what fits into the time",), tuple(f"heal {name}" for name in self.names), ("KL of every route", "selector")]
        self.stages = Stages(run, [*steps, ("promise", "seconds of answers"), ("report",)], settings)

    @cached_property
    def names(self) -> dict[str, float]:
        """The policies of the nest, each with its share of the base's passes: of shares that keep as many blocks the largest."""
        found: dict[int, float] = {}
        for share in self.of.shares:
            n_kept = kept_passes(share, self.routed.n_layers)
            if found.setdefault(n_kept, share) != share:
                say(f"budgets {found[n_kept]:g} and {share:g} both keep {n_kept} of {self.routed.n_layers} blocks: one route serves both")
        return {f"healed-{share:g}": share for share in found.values()}

    @cached_property
    def sizes(self) -> PromptSizes:
        """What fits into the time, settled by the first call."""

        def work() -> dict[str, int]:
            ms = token_ms(self.routed, self.parts["heal"])
            found = sizes_of_prompts(self.parts, ms, self.minutes, self.config, [*self.names.values()], self.routed.n_layers)
            say(f"{ms:.3g} ms a token: {found.steps} steps a route, {found.select} select and {found.calibrate} calibrate prompts")
            return asdict(found)

        return PromptSizes(**self.stages.then("what fits into the time", {}, [], work))

    def run_all(self) -> tuple[Agreed, dict[str, Any]]:
        heal, select, calibrate = self.parts["heal"], *(self.parts[name][: getattr(self.sizes, name)] for name in ("select", "calibrate"))
        healed = [self._heal(name, share, heal) for name, share in self.names.items()]
        adapters = [self._policy(name).adapters[0] for name in self.names]
        kls_NK = self._kls(select, adapters)
        longest = most_tokens(self.routed, self.config)  # none longer is tested
        nearest = fit_nearest(select, kls_NK, [one.healed for one in adapters], adapters, self.config.seed, longest)
        nearest.policy.prompt_format = self.form
        points = self.stages.then("selector", {}, [self.folder.policy(SELECTOR)], lambda: self._selected(nearest, select, kls_NK))
        promise = self.stages.then("promise", {}, [self.folder.policy(PROMISED)], lambda: self._promised(nearest.policy, calibrate))
        clock: dict[str, Any] = {}
        if promise["point"] >= 0:
            timed, kept = calibrate[:CLOCKED], self._policy(PROMISED)
            clock = self.stages.then("seconds of answers", {"tokens": CLOCK_TOKENS}, [], lambda: seconds_on(self.routed, timed, kept))
        nest = [NestRow(policy=name, kl=float(kl), **row) for name, kl, row in zip(self.names, kls_NK.mean(0), healed, strict=True)]
        found = Agreed(
            model=self.routed.base_id,
            deploy=PROMISED if clock.get("ratio_high", 1.0) < 1 and promise["differ"] <= (self.of.differ or TOLERATED) else "",
            n_layers=self.routed.n_layers,
            prompts={"heal": len(heal), "select": len(select), "calibrate": len(calibrate)},
            nest=nest,
            points=[PointRow(**point) for point in points],
            asked_minutes=self.minutes,
            asked_differ=self.of.differ,
            minutes=round(self.stages.seconds / 60, 2),
            **promise,
            **clock,
        )
        write_json(self.folder.agreed, found.to_json())
        written = self.stages.then("report", found.to_json(), [self.folder.report], lambda: report(self.folder.root).name)
        return found, {"report": self.folder.report / written, "skipped": self.stages.skipped}

    def _heal(self, name: str, share: float, prompts: Sequence[Ids]) -> dict[str, Any]:
        """One route of the nest and its adapter: the choice of blocks goes on where the wider route's ended."""
        held_out = min(self.config.held_out, int(HELD_OUT * len(prompts)))
        config = replace(self.config, budget=share, steps=self.sizes.steps, held_out=held_out)

        def work() -> dict[str, Any]:
            healing = Healing(self.routed, self.folder.nested(share), config, list(prompts[:held_out]), list(prompts[held_out:]))
            adapter, found = healing.run(None)
            save_as(self.routed, HealedPolicy(adapter), self.folder.policy(name))
            kept = ("kl_before", "kl_after", "same_before", "same_after", "steps")
            return {"route": found.route, "passes": found.n_passes} | {key: getattr(found, key) for key in kept}

        return self.stages.then(f"heal {name}", to_dict(config) | {"targets": list(config.targets)}, [self.folder.policy(name)], work)

    def _kls(self, prompts: Sequence[Ids], adapters: Sequence[Adapter]) -> np.ndarray:
        """(N, K), read where it was computed."""
        folder, step = self.folder.nest, self.config.max_step_tokens
        texts = Teacher(self.routed, folder / "select", self.config.new_tokens, step).texts(prompts, "the base on select prompts", "base")
        routes = [adapter.healed for adapter in adapters]

        def work() -> None:
            answer_kls(self.routed, texts, prompts, routes, folder / "kl", step)

        self.stages.then("KL of every route", {}, [folder / "kl"], work)
        return answer_kls(self.routed, texts, prompts, routes, folder / "kl", step)

    def _selected(self, nearest: Nearest, prompts: Sequence[Ids], kls_NK: np.ndarray) -> list[dict[str, float]]:
        """Save the selector; what each operating point is worth beside its baselines."""
        save_as(self.routed, nearest.policy, self.folder.policy(SELECTOR))
        losses = np.concatenate([np.zeros((len(prompts), 1)), kls_NK], 1)
        passes = np.array([float(route.n_passes) for route in nearest.policy.routes])
        kinds = np.array([self.kinds[ids] for ids in prompts])
        groups = {"one": np.zeros(len(prompts)), "own": np.arange(len(prompts))} | ({"told": kinds} if len(set(kinds)) > 1 else {})
        by = {name: by_group(losses, of) for name, of in groups.items()}
        found = []
        for taken in nearest.taken:
            mean = float(passes[taken].mean())
            row = {name: least_loss(*of, passes, mean) for name, of in by.items()}
            row |= {"passes": mean, "dealt": dealt_loss(losses, taken), "kl": float(losses[np.arange(len(taken)), taken].mean())}
            found.append(row | {"left": float((taken > 0).mean())})
        return found

    def _promised(self, policy: Any, prompts: Sequence[Ids]) -> dict[str, Any]:
        """On how many prompts each point's answer is another than the base's, and what may be promised; saves the policy at that point."""
        points, base = policy.operating_points(), Route.full(self.routed.n_layers)
        self.routed.as_source(policy)
        taken = [point.routes_for(prompts) for point in points]
        wanted = [{base, *of} for of in zip(*taken, strict=True)]
        answers = greedy_answers(self.routed, prompts, wanted, self.config.new_tokens, self.folder.nest / "answers")
        differ = [[of[route] != of[base] for of, route in zip(answers, routes, strict=True)] for routes in taken]
        passes = [float(np.mean([route.n_passes for route in routes])) for routes in taken]
        about: dict[str, Any] = {
            "dtype": str(self.routed.model.dtype),
            "judged": "the base's own greedy answer",
            "tokens": self.config.new_tokens,
            "longest": most_tokens(self.routed, self.config),
        }
        found = find_agreement(
            Agreement(self.of.differ, self.delta, len(prompts), {"prompts": len(prompts)}, "calibrate", **about), differ, passes
        )
        shutil.rmtree(self.folder.policy(PROMISED), ignore_errors=True)  # of another promise
        result: dict[str, Any] = {"promise": found.sentence, "differ": found.epsilon, "point": -1}
        if found.point is None:
            return result
        chosen = points[found.point]
        chosen.promise = found.to_json()
        save_as(self.routed, chosen, self.folder.policy(PROMISED))
        routes = taken[found.point]
        place = next((at for at, is_other in enumerate(differ[found.point]) if is_other), 0)
        text = self.routed.tokenizer.decode
        example = {"prompt": text(prompts[place]), "base": text(answers[place][base]), "policy": text(answers[place][routes[place]])}
        return result | {"point": found.point, "passes": passes[found.point], "example": example | {"route": str(routes[place])}}

    def _policy(self, name: str) -> Policy:
        return self.routed.load_policy(self.folder.policy(name))
