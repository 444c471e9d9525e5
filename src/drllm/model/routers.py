"""Dr.LLM's routers (arXiv 2510.12773, section 3.1): one Linear-GELU-Linear a block, on windows of the prompt's states.

Shapes: B rows, T tokens, W windows, D hidden size, H router width, L blocks, N records, C = 3 actions.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from drllm.errors import ArtifactError, InputError
from drllm.files import write_bytes, write_json
from drllm.model.policy import Policy, register_policy
from drllm.routes import Action

CONFIG_FILE = "router_config.json"
WEIGHTS_FILE = "routers.safetensors"
N_ACTIONS = len(Action)
RMS_EPS = 1e-6


@dataclass(frozen=True)
class RouterConfig:
    """The shape of a set of routers; what base they belong to stands in the artefact's own `config.json`."""

    n_layers: int
    hidden_size: int
    n_windows: int = 8
    width: int = 128
    normalize: bool = True
    schema_version: int = 1


def pool_matrix(prompt_mask_BT: Tensor, n_windows: int) -> tuple[Tensor, Tensor]:
    """The averaging weights of every window: (P (B, W, T) float32, valid (B, W) bool), so that `P @ x` pools states.

    A row with T' prompt tokens has min(W, T') windows of floor(T' / windows) consecutive prompt tokens each; the remainder at the end is
    dropped, as in the paper. Padding and continuations are outside the mask and enter no window.
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


def pool_windows(x_BTD: Tensor, prompt_mask_BT: Tensor, n_windows: int) -> tuple[Tensor, Tensor]:
    """(means (B, W, D) float32, valid (B, W)) of the prompt's states; windows a short prompt lacks are zero and not valid."""
    weights, valid = pool_matrix(prompt_mask_BT, n_windows)
    return weights.to(x_BTD.device) @ x_BTD.float(), valid.to(x_BTD.device)


def rms_normalize(pooled: Tensor) -> Tensor:
    """Scale the last dimension to unit root mean square."""
    return pooled * torch.rsqrt(pooled.square().mean(-1, keepdim=True) + RMS_EPS)


@register_policy("routers")
class Routers(Policy):
    """All L routers, stacked: w1 (L, D, H), b1 (L, H), w2 (L, H, C), b2 (L, C), in float32 whatever the base's dtype."""

    def __init__(self, config: RouterConfig, seed: int = 0):
        self.config = config
        self.n_layers = config.n_layers
        self.control: float | None = None
        generator = torch.Generator().manual_seed(seed)

        def xavier(rows: int, columns: int) -> Tensor:
            bound = math.sqrt(6 / (rows + columns))
            return (torch.rand(config.n_layers, rows, columns, generator=generator) * 2 - 1) * bound

        self.w1 = xavier(config.hidden_size, config.width)
        self.b1 = torch.zeros(config.n_layers, config.width)
        self.w2 = xavier(config.width, N_ACTIONS)
        self.b2 = torch.zeros(config.n_layers, N_ACTIONS)

    def parameters(self) -> list[Tensor]:
        """The trainable tensors."""
        return [self.w1, self.b1, self.w2, self.b2]

    def all_logits(self, pooled_LBWD: Tensor, valid_BW: Tensor) -> Tensor:
        """Logits (L, B, C) of every router on its own block's pooled states, averaged over the valid windows; the training path.

        States are given as the base made them; they are normalised here if the routers normalise.
        """
        n_layers, n_rows, n_windows, size = pooled_LBWD.shape
        x = pooled_LBWD.float().reshape(n_layers, n_rows * n_windows, size)
        x = rms_normalize(x) if self.config.normalize else x
        hidden = torch.nn.functional.gelu(torch.baddbmm(self.b1[:, None], x, self.w1))
        logits = torch.baddbmm(self.b2[:, None], hidden, self.w2).reshape(n_layers, n_rows, n_windows, N_ACTIONS)
        weights = valid_BW.float() / valid_BW.sum(1, keepdim=True)
        return (logits * weights[None, :, :, None]).sum(2)

    def logits(self, block: int, pooled_BWD: Tensor, valid_BW: Tensor) -> Tensor:
        """Logits (B, C) of one block's router; the inference path."""
        w1, b1, w2, b2 = (parameter[block].to(pooled_BWD.device) for parameter in self.parameters())
        x = rms_normalize(pooled_BWD.float()) if self.config.normalize else pooled_BWD.float()
        logits_BWC = torch.nn.functional.gelu(x @ w1 + b1) @ w2 + b2
        weights = valid_BW.float() / valid_BW.sum(1, keepdim=True)
        return (logits_BWC * weights[..., None]).sum(1)

    def start(self, prompt_mask_BT: Tensor) -> _PrefillRouters:
        """A view that pools with this prompt's windows, computed once for all blocks."""
        return _PrefillRouters(self, prompt_mask_BT)

    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        """Greedy actions (B,) from the states entering the block."""
        return self.start(prompt_mask_BT).decide(block, x_BTD, prompt_mask_BT)

    def actions(self, logits_BC: Tensor) -> Tensor:
        """Argmax of the probabilities, after the control knob if there is one."""
        if self.control is None:
            return logits_BC.argmax(-1)
        return apply_control(logits_BC.softmax(-1), self.control).argmax(-1)

    def with_control(self, p: float) -> Routers:
        """The same routers under the knob p of appendix C: -1 skips all, -0.5 is the router, 0.5 executes all, 1 repeats all."""
        if not -1 <= p <= 1:
            raise InputError(f"the control knob is {p}, expected -1 (skip) to 1 (repeat); -0.5 leaves the routers as they are")
        view = copy.copy(self)
        view.control = p
        return view

    def save(self, folder: Path) -> None:
        """`router_config.json` and `routers.safetensors`."""
        if self.control is not None:
            raise InputError("routers under a control knob are a view: save the routers they were made from")
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in ("w1", "b1", "w2", "b2")}
        write_bytes(folder / WEIGHTS_FILE, save_safetensors(tensors))
        write_json(folder / CONFIG_FILE, asdict(self.config))

    @classmethod
    def load(cls, folder: Path) -> Routers:
        """Read back what `save` wrote."""
        retrain = "train the routers again"
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            tensors = load_safetensors((folder / WEIGHTS_FILE).read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} holds no readable routers ({str(error).splitlines()[0][:100]}): {retrain}") from None
        known = {field.name for field in fields(RouterConfig)}
        if not isinstance(values, dict) or {"n_layers", "hidden_size"} - values.keys():
            raise ArtifactError(f"{folder / CONFIG_FILE} is not a router configuration: {retrain}")
        if unknown := sorted(values.keys() - known):
            warnings.warn(f"{folder / CONFIG_FILE} has keys this drllm does not know ({', '.join(unknown)}); they are ignored", stacklevel=2)
        routers = cls(RouterConfig(**{name: values[name] for name in known & values.keys()}))
        for name, parameter in zip(("w1", "b1", "w2", "b2"), routers.parameters(), strict=True):
            if name not in tensors or tensors[name].shape != parameter.shape:
                found = tuple(tensors[name].shape) if name in tensors else "missing"
                raise ArtifactError(f"{folder / WEIGHTS_FILE}: {name} is {found}, its configuration says {tuple(parameter.shape)}: {retrain}")
            setattr(routers, name, tensors[name].float())
        return routers


class _PrefillRouters(Policy):
    """Routers during one prefill: holds the pooling weights of this prompt."""

    def __init__(self, routers: Routers, prompt_mask_BT: Tensor):
        self._routers = routers
        self.n_layers = routers.n_layers
        self._weights_BWT, self._valid_BW = pool_matrix(prompt_mask_BT, routers.config.n_windows)

    @torch.no_grad()
    def decide(self, block: int, x_BTD: Tensor, prompt_mask_BT: Tensor) -> Tensor:
        pooled = self._weights_BWT.to(x_BTD.device) @ x_BTD.float()
        return self._routers.actions(self._routers.logits(block, pooled, self._valid_BW.to(x_BTD.device)))

    def save(self, folder: Path) -> None:
        self._routers.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Policy:
        return Routers.load(folder)


def apply_control(probabilities: Tensor, p: float) -> Tensor:
    """Appendix C: blend the routers' probabilities (..., C) with pure skip, execute or repeat."""
    skip, execute, repeat = torch.eye(N_ACTIONS, device=probabilities.device)
    if p <= -0.5:
        t = (p + 1) / 0.5
        return (1 - t) * skip + t * probabilities
    if p <= 0.5:
        t = p + 0.5
        return (1 - t) * probabilities + t * execute
    t = (p - 0.5) / 0.5
    return (1 - t) * execute + t * repeat
