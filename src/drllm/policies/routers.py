"""Dr.LLM's routers (arXiv 2510.12773, section 3.1): one small network a block, Linear-GELU-Linear, on windows of the prompt's states.

Shapes: B sequences, T tokens, W windows, D hidden size, H router width, L blocks, N records, C = 3 actions.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drllm.core.errors import ArtifactError, InputError
from drllm.core.route import Action
from drllm.policies.files import PolicyFiles, check_shapes
from drllm.policies.policy import NOT_FINITE, Decider, Policy, RouteSource

N_ACTIONS = len(Action)
RMS_EPS = 1e-6
MAX_DEPTH = 8
CONTROL = "control"
POINTS = (0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4)  # of the control, from nearly executing all to the routers themselves
_RETRAIN = "train the routers again"
_FILES = PolicyFiles("routers", _RETRAIN, "router_config.json", "routers.safetensors")


@dataclass(frozen=True)
class RouterConfig:
    """The shape of a set of routers; what base they belong to stands in the artefact's own `drllm_config.json`."""

    n_layers: int
    hidden_size: int
    n_windows: int = 8
    width: int = 128
    normalize: bool = True
    shared: bool = False  # one router serves all blocks
    first_block: bool = False  # all routers read the states entering the first block
    depth: int = 2  # linear layers, with a GELU between

    @classmethod
    def from_json(cls, values: dict[str, Any], source: Path) -> RouterConfig:
        """Of what was read from `source`: keys of a newer drllm warn, missing or wrong ones are refused."""
        known = {field.name: bool if isinstance(field.default, bool) else int for field in fields(cls)}
        if missing := ", ".join(sorted(known.keys() - values.keys())):
            raise ArtifactError(f"{source} is not a router configuration ({missing} missing): {_RETRAIN}")
        for name, kind in sorted(known.items()):
            # A bool is an int to Python, so the type is compared, not the instance.
            if type(values[name]) is not kind or (kind is int and values[name] < 1):
                wanted = "true or false" if kind is bool else "a whole number of at least 1"
                raise ArtifactError(f"{source}: {name} is {values[name]!r}, expected {wanted}: {_RETRAIN}")
        if values["depth"] > MAX_DEPTH:
            raise ArtifactError(f"{source}: depth is {values['depth']}, expected at most {MAX_DEPTH}: {_RETRAIN}")
        if unknown := sorted(values.keys() - known.keys()):
            warnings.warn(f"{source} has keys this drllm does not know ({', '.join(unknown)}); they are ignored", stacklevel=3)
        return cls(**{name: values[name] for name in known})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each stacked tensor: w1 (L, D, H), b1 (L, H), w2 (L, H, C), b2 (L, C); a layer more or less by depth."""
        n = 1 if self.shared else self.n_layers
        sizes = [self.hidden_size, *[self.width] * (self.depth - 1), N_ACTIONS]
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (size_in, size_out) in enumerate(itertools.pairwise(sizes), 1):
            shapes |= {f"w{layer}": (n, size_in, size_out), f"b{layer}": (n, size_out)}
        return shapes


def pool_matrix(prompt_mask_BT: Tensor, n_windows: int) -> tuple[Tensor, Tensor]:
    """The averaging weights of every window: (P (B, W, T) float32, valid (B, W) bool), so that `P @ x` pools states.

    A sequence with T' prompt tokens has min(W, T') windows of floor(T' / windows) tokens each; the remainder is dropped, as in the paper.
    """
    mask = prompt_mask_BT.bool()
    n_tokens = mask.sum(1)
    if not bool(n_tokens.all()):
        raise InputError(f"prompt {int((n_tokens == 0).nonzero()[0])} has no token a policy may read: the prompt mask is empty")
    n_valid = n_tokens.clamp(max=n_windows)
    length = n_tokens // n_valid
    window_BT = torch.div(mask.cumsum(1) - 1, length[:, None], rounding_mode="floor")
    window_BT = torch.where(mask & (window_BT < n_valid[:, None]), window_BT, -1)
    windows = torch.arange(n_windows, device=mask.device)
    pooled = (window_BT[:, None, :] == windows[None, :, None]).float() / length[:, None, None]
    return pooled, windows[None] < n_valid[:, None]


def pool(weights_BWT: Tensor, x_BTD: Tensor) -> Tensor:
    """Window means (B, W, D) float32, given `pool_matrix`'s weights.

    Where an attention kernel leaves nan on padding, states outside every window are zeroed first, for a copy of all: 0 * nan would spread.
    """
    pooled = _pool_plainly(weights_BWT, x_BTD)
    return pooled if _finite(pooled) else _pool_masked(weights_BWT, x_BTD)


def _pool_plainly(weights_BWT: Tensor, x_BTD: Tensor) -> Tensor:
    return weights_BWT.to(x_BTD.device) @ x_BTD.float()


def _pool_masked(weights_BWT: Tensor, x_BTD: Tensor) -> Tensor:
    outside_BT = (weights_BWT.to(x_BTD.device) == 0).all(1)
    return _pool_plainly(weights_BWT, x_BTD.float().masked_fill(outside_BT[..., None], 0))


def _finite(x: Tensor) -> bool:
    """In one pass; sums that overflow say no, too."""
    return math.isfinite(x.sum().item())


def rms_normalize(pooled: Tensor) -> Tensor:
    """Scale the last dimension to unit root mean square."""
    return torch.nn.functional.rms_norm(pooled, pooled.shape[-1:], eps=RMS_EPS)


class Routers(Policy):
    """All L routers, stacked as `RouterConfig.shapes` says, in float32 whatever the base's dtype."""

    name = "routers"
    about = "Dr.LLM's routers: a small network a block that decides, once a prompt, whether to skip, execute or repeat it"

    def __init__(self, config: RouterConfig, seed: int = 0):
        self.config = config
        self.n_layers, self.hidden_size = config.n_layers, config.hidden_size
        self.control: float | None = None
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {name: torch.zeros(shape) for name, shape in config.shapes.items()}
        for name, weights in self.tensors.items():
            if name.startswith("w"):
                bound = math.sqrt(6 / (weights.shape[1] + weights.shape[2]))  # Xavier's
                self.tensors[name] = (torch.rand(weights.shape, generator=generator) * 2 - 1) * bound

    def parameters(self) -> list[Tensor]:
        return list(self.tensors.values())

    def to(self, device: str | torch.device) -> Routers:
        """The same routers on a device, which they then need not be copied to at each block."""
        if all(tensor.device == torch.device(device) for tensor in self.parameters()):
            return self
        moved = copy.copy(self)
        moved.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return moved

    def all_logits(self, pooled_LBWD: Tensor, valid_BW: Tensor) -> Tensor:
        """Logits (L, B, C) of every router on its own block's pooled states, averaged over the valid windows; the training path."""
        weights = [parameter.expand(len(pooled_LBWD), *parameter.shape[1:]) for parameter in self.parameters()]
        read_LBWD = pooled_LBWD[:1].expand_as(pooled_LBWD) if self.config.first_block else pooled_LBWD
        x = read_LBWD.float().flatten(1, 2)
        x = rms_normalize(x) if self.config.normalize else x
        for place, (w, b) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
            x = torch.baddbmm(b[:, None], torch.nn.functional.gelu(x) if place else x, w)
        return (x.unflatten(1, pooled_LBWD.shape[1:3]) * window_shares(valid_BW)[None, :, :, None]).sum(2)

    def layers(self) -> list[list[tuple[Tensor, Tensor]]]:
        """The linear layers (weights, biases) of each block's router, as views."""
        parts = [parameter.unbind(0) for parameter in self.parameters()]
        found = [list(zip(of_block[::2], of_block[1::2], strict=True)) for of_block in zip(*parts, strict=True)]
        return found * self.n_layers if self.config.shared else found

    def logits(self, block: int, pooled_BWD: Tensor, valid_BW: Tensor) -> Tensor:
        """Logits (B, C) of one block's router, from the states that it reads."""
        return router_logits(self.layers()[block], pooled_BWD, window_shares(valid_BW), self.config.normalize)

    def start(self, prompt_mask_BT: Tensor) -> PrefillRouters:
        return PrefillRouters(self, prompt_mask_BT)

    def actions(self, logits_BC: Tensor) -> Tensor:
        return (logits_BC if self.control is None else self.probabilities(logits_BC)).argmax(-1)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Skip, execute and repeat (B, C), under the control if there is one."""
        probabilities = logits_BC.softmax(-1)
        return probabilities if self.control is None else apply_control(probabilities, self.control)

    def with_control(self, p: float) -> Routers:
        """A view that shares weights, under the control p of appendix C: -1 skips all, -0.5 is the router, 0.5 executes, 1 repeats all."""
        if not -1 <= p <= 1:
            raise InputError(f"the control is {p}, expected -1 (skip) to 1 (repeat); -0.5 leaves the routers as they are")
        view = copy.copy(self)
        view.promise = None  # promised for one setting of the control
        # The router itself by its logits: their softmax can round two of them to a tie.
        view.control = None if p == -0.5 else p
        return view

    def operating_points(self) -> list[Policy]:
        return [*(self.with_control(p) for p in POINTS if self.control is None or p > self.control), self]

    def save(self, folder: Path) -> list[str]:
        """`router_config.json`, which holds the control and a checksum of `routers.safetensors`."""
        return _FILES.save(folder, asdict(self.config) | ({} if self.control is None else {CONTROL: self.control}), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Routers:
        values, tensors = _FILES.load(folder)
        source, control = folder / _FILES.config, values.pop(CONTROL, None)
        if control is not None and (type(control) not in (int, float) or not -1 <= control <= 1):
            raise ArtifactError(f"{source}: {CONTROL} is {control!r}, expected -1 to 1: {_RETRAIN}")
        config = RouterConfig.from_json(values, source)
        with _FILES.reading(folder):
            check_shapes(tensors, config.shapes)  # before anything is allocated by the configuration's word
        routers = cls(config)
        routers.tensors = {name: tensors[name] for name in config.shapes}
        routers.control = control
        return routers


class PrefillRouters(Decider):
    """Routers during one prefill: holds the pooling weights of this batch."""

    def __init__(self, routers: Routers, prompt_mask_BT: Tensor):
        self._routers, self._layers = routers, routers.layers()
        self._weights_BWT, valid_BW = pool_matrix(prompt_mask_BT, routers.config.n_windows)
        self._shares_BW = window_shares(valid_BW)
        self._first_BWD: Tensor | None = None

    def decide(self, block: int, x_BTD: Tensor) -> Tensor:
        """Greedy actions (B,); `InputError` where the states are not finite."""
        return self._routers.actions(self.logits(block, x_BTD))

    def probabilities(self, block: int, x_BTD: Tensor) -> Tensor:
        return self._routers.probabilities(self.logits(block, x_BTD))

    @torch.no_grad()
    def logits(self, block: int, x_BTD: Tensor) -> Tensor:
        """(B, C) of one block's router; `InputError` where they are not finite."""
        if torch.is_autocast_enabled(x_BTD.device.type):  # the products would run in half precision
            with torch.autocast(x_BTD.device.type, enabled=False):
                return self.logits(block, x_BTD)
        for pool_by in (_pool_plainly, _pool_masked):
            pooled_BWD = self._pooled(x_BTD, pool_by)
            logits = router_logits(self._layers[block], pooled_BWD, self._shares_BW, self._routers.config.normalize)
            if _finite(logits):  # looked at once, here, not after pooling too: each operation counts in a prefill of few tokens
                return logits
        # argmax of nan is 0: every block would be skipped without a word.
        raise InputError(NOT_FINITE.format(block))

    def _pooled(self, x_BTD: Tensor, pool_by: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if not self._routers.config.first_block:
            return pool_by(self._weights_BWT, x_BTD)
        if self._first_BWD is None:
            self._first_BWD = pool(self._weights_BWT, x_BTD)
        return self._first_BWD.to(x_BTD.device)  # a device map may have put later blocks elsewhere


def controlled(policy: RouteSource, p: float) -> Routers:
    """A policy under the control p of appendix C; `InputError` where it is not the routers, which alone have one."""
    if not isinstance(policy, Routers):
        raise InputError(f"a {policy.name!r} policy has no control: it works on routers")
    return policy.with_control(p)


def window_shares(valid_BW: Tensor) -> Tensor:
    """What each window counts in a sequence's mean (B, W): nothing where a short prompt lacks it."""
    return valid_BW.float() / valid_BW.sum(1, keepdim=True)


def router_logits(layers: list[tuple[Tensor, Tensor]], pooled_BWD: Tensor, shares_BW: Tensor, normalize: bool) -> Tensor:
    """Logits (B, C) of one router on pooled states: each window's, averaged."""
    device = pooled_BWD.device
    x = (rms_normalize(pooled_BWD.float()) if normalize else pooled_BWD.float()).flatten(0, 1)
    for place, (w, b) in enumerate(layers):
        x = torch.addmm(b.to(device), torch.nn.functional.gelu(x) if place else x, w.to(device))
    return torch.bmm(shares_BW[:, None].to(device), x.view(*pooled_BWD.shape[:2], N_ACTIONS))[:, 0]


def apply_control(probabilities: Tensor, p: float) -> Tensor:
    """Appendix C: blend the routers' probabilities (..., C) with pure skip, execute or repeat."""
    # Expanded: above p = 0.5 the routers have no say, and the result still has one entry a prompt.
    skip, execute, repeat = (pure.expand_as(probabilities) for pure in torch.eye(N_ACTIONS, device=probabilities.device))
    if p <= -0.5:
        t, low, high = (p + 1) / 0.5, skip, probabilities
    elif p <= 0.5:
        t, low, high = p + 0.5, probabilities, execute
    else:
        t, low, high = (p - 0.5) / 0.5, execute, repeat
    return (1 - t) * low + t * high
