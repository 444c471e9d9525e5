"""Gates on parts of blocks: on attention for a prompt (MindSkip), on every token (FlexiDepth), and their training. For evaluation only.

Shapes: B sequences, T tokens, D hidden size, L' gated blocks, R rank, A adapter units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from drllm.core.errors import InputError, UnsupportedModelError, first_line
from drllm.core.progress import Progress
from drllm.model.blocks import SEQUENCE_ARGUMENTS, pick_sequences
from drllm.policies.routers import pool, rms_normalize
from drllm_research.rivals.gated_blocks import Gates, Step, attention, attention_of, count, feed_forward

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel

OPEN = 2.0  # initial bias of a gate: it starts open


class MindSkip(Gates):
    """Attention of a block runs for a prompt or not, as a linear gate on the mean of its states says (arXiv 2410.13184).

    tensors: weight (L', D), bias (L',) of the gated blocks.
    """

    name = "mindskip"

    @classmethod
    def new(cls, n_layers: int, hidden_size: int, first_block: int, adapter_size: int, seed: int) -> MindSkip:
        """Open gates that do not look at the prompt yet."""
        n = n_layers - first_block
        return cls(n_layers, hidden_size, first_block, {"weight": torch.zeros(n, hidden_size), "bias": torch.full((n,), OPEN)})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.n_layers - self.first_block
        return {"weight": (n, self.hidden_size), "bias": (n,)}

    @staticmethod
    def spent(gates: Sequence[Tensor], real_BT: Tensor) -> Any:
        """Mean of all gates: the share of attention that is run (the penalty of the paper's equation 5)."""
        return sum(gate.mean() for gate in gates) / len(gates)

    def run(self, block: Any, index: int, x_BTD: Tensor, arguments: dict[str, Any], step: Step) -> Tensor:
        """x + attention(x) for prompts whose gate is open, then the feed-forward as ever."""
        weight, bias = (self.of_block(name, index, x_BTD.device) for name in ("weight", "bias"))
        gate_B = torch.sigmoid((rms_normalize(pool(step.weights_BT[:, None], x_BTD)[:, 0]) * weight).sum(-1) + bias)
        check_finite(gate_B, index)
        n_attention, n_other = count(block.self_attn), count(block.mlp)
        if not step.hard:
            step.gates.append(gate_B)
            # Straight-through: forward as the gate decides, backward as if it scaled.
            scale_B = (gate_B > self.threshold).float() + gate_B - gate_B.detach()
            x_BTD = x_BTD + scale_B[:, None, None].to(x_BTD.dtype) * attention(block, x_BTD, arguments)
            return x_BTD + feed_forward(block, x_BTD)
        running = (gate_B > self.threshold).nonzero()[:, 0]
        step.used_B += (n_other + self.hidden_size / x_BTD.shape[1]) / (n_attention + n_other)
        if len(running):
            step.used_B[running] += n_attention / (n_attention + n_other)
            by_sequence = SEQUENCE_ARGUMENTS & arguments.keys()
            passed = arguments | {name: pick_sequences(arguments[name], running, len(x_BTD)) for name in by_sequence}
            x_BTD = x_BTD.index_add(0, running, attention(block, x_BTD[running], passed))
        return x_BTD + feed_forward(block, x_BTD)


class FlexiDepth(Gates):
    """A token runs a block, scaled by its gate, or an adapter instead; keys and values are made of all tokens (arXiv 2503.23798).

    tensors: the gate, a bottleneck (down (L', D, R), up (L', R)) with bias (L',), and the adapter, a gated feed-forward of A units
    (gate (L', D, A), in (L', D, A), out (L', A, D)).
    """

    name = "flexidepth"

    @classmethod
    def new(cls, n_layers: int, hidden_size: int, first_block: int, adapter_size: int, seed: int) -> FlexiDepth:
        """Open gates, and adapters that add nothing yet."""
        n, generator = n_layers - first_block, torch.Generator().manual_seed(seed)
        rank = max(1, hidden_size // 16)

        def draw(*shape: int) -> Tensor:
            return torch.randn(n, *shape, generator=generator) / shape[0] ** 0.5

        gate = {"down": draw(hidden_size, rank), "up": torch.zeros(n, rank), "bias": torch.full((n,), OPEN)}
        adapter = {"gate": draw(hidden_size, adapter_size), "in": draw(hidden_size, adapter_size)}
        tensors = gate | adapter | {"out": torch.zeros(n, adapter_size, hidden_size)}
        return cls(n_layers, hidden_size, first_block, tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        n, size = self.n_layers - self.first_block, self.hidden_size
        rank, width = self.tensors["down"].shape[-1], self.tensors["gate"].shape[-1]
        gate = {"down": (n, size, rank), "up": (n, rank), "bias": (n,)}
        return gate | {"gate": (n, size, width), "in": (n, size, width), "out": (n, width, size)}

    @staticmethod
    def spent(gates: Sequence[Tensor], real_BT: Tensor) -> Any:
        """Mean over tokens of the squared sum of a token's gates (the paper's layer-skipping loss)."""
        total: Any = sum(gates)
        return (total**2)[real_BT.bool()].mean()

    def run(self, block: Any, index: int, x_BTD: Tensor, arguments: dict[str, Any], step: Step) -> Tensor:
        """Open tokens: x + g attention(x), then + g feed_forward; the others: x + (1 - g) adapter(x)."""
        down, up, bias = (self.of_block(name, index, x_BTD.device) for name in ("down", "up", "bias"))
        gate_BT = torch.sigmoid(torch.tanh(rms_normalize(x_BTD.float()) @ down) @ up + bias)
        gate_BT = gate_BT.masked_fill(~step.real_BT, 0)  # padding runs nothing
        check_finite(gate_BT, index)
        open_BT = gate_BT > self.threshold
        gates = gate_BT[..., None].to(x_BTD.dtype)
        if not step.hard:
            step.gates.append(gate_BT)
            ran = x_BTD + gates * attention(block, x_BTD, arguments)
            ran = ran + gates * feed_forward(block, ran)
            return torch.where(open_BT[..., None], ran, x_BTD + (1 - gates) * self._adapter(index, x_BTD))
        self._count(block, open_BT, down.numel(), step)
        out = x_BTD.clone()
        if bool(open_BT.any()):
            ran = x_BTD[open_BT] + gates[open_BT] * attention_of(block, x_BTD, arguments, open_BT)
            out[open_BT] = ran + gates[open_BT] * feed_forward(block, ran)
        closed = ~open_BT & step.real_BT
        if bool(closed.any()):
            out[closed] = x_BTD[closed] + (1 - gates[closed]) * self._adapter(index, x_BTD[closed])
        return out

    def _adapter(self, index: int, x: Tensor) -> Tensor:
        gate, into, out = (self.of_block(name, index, x.device) for name in ("gate", "in", "out"))
        z = rms_normalize(x.float())
        return ((nn.functional.silu(z @ gate) * (z @ into)) @ out).to(x.dtype)

    def _count(self, block: Any, open_BT: Tensor, n_gate: int, step: Step) -> None:
        n_block = count(block.self_attn) + count(block.mlp)
        n_keys = count(block.self_attn.k_proj) + count(block.self_attn.v_proj)
        n_adapter = sum(self.tensors[name][0].numel() for name in ("gate", "in", "out"))
        share_B = open_BT.float().sum(1) / step.real_BT.float().sum(1)
        step.used_B += (n_gate + n_keys + share_B * (n_block - n_keys) + (1 - share_B) * n_adapter) / n_block


def check_finite(gates: Tensor, index: int) -> None:
    """Refuse gates that are NaN or infinite: compared with a threshold they would be closed without a word."""
    if not bool(gates.isfinite().all()):
        raise InputError(f"the gates of block {index} are not finite on a prompt: load the base in bfloat16 or float32")


@torch.no_grad()
def check_parts(routed: RoutedModel) -> None:
    """Refuse a model whose blocks are not norm, attention, norm and one feed-forward, as these policies take them apart.

    Every block is compared with its parts on the states of 48 tokens, in float32, where only rounding may tell them apart.
    """
    seen: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    class Watching(MindSkip):
        def run(self, block: Any, index: int, x_BTD: Tensor, arguments: dict[str, Any], step: Step) -> Tensor:
            seen[index] = (x_BTD, arguments)
            return routed.run_block(index, x_BTD, arguments)

    ids = torch.arange(3, 51, device=routed.device)[None] % routed.model.get_input_embeddings().num_embeddings
    watching = Watching.new(routed.n_layers, routed.hidden_size, 0, 1, 0)
    with watching.installed(routed, Step.of(torch.ones_like(ids), torch.ones_like(ids))):
        routed.model(input_ids=ids, use_cache=False)
    problem = "its attention scores are capped" if getattr(routed.config, "attn_logit_softcapping", None) else None
    for index, (x_BTD, arguments) in seen.items():
        problem = problem or _part_problem(routed, index, x_BTD, arguments)
    if problem is not None:
        taken = "mindskip and flexidepth take models built as Llama, Qwen, Mistral or Gemma 3 are"
        raise UnsupportedModelError(f"model_type {routed.config.model_type!r} cannot be run in parts of a block ({problem}): {taken}")


def _part_problem(routed: RoutedModel, index: int, x_BTD: Tensor, arguments: dict[str, Any]) -> str | None:
    """Why one block is not the sum of its parts; None where it is."""
    block: Any = routed.blocks[index]
    lacking = [name for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm") if not hasattr(block, name)]
    if not lacking:
        lacking = [name for name in ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling") if not hasattr(block.self_attn, name)]
    if lacking:
        return f"a block has no {lacking[0]}"
    if any("expert" in name for name, _ in block.mlp.named_modules()) or any(part.ndim > 2 for part in block.mlp.parameters()):
        return "its feed-forward is a mixture of experts"
    dtype = x_BTD.dtype
    plain = {name: _as_float(value) for name, value in arguments.items()}
    open_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    try:
        block.float()  # and back: bfloat16 and float16 survive that bit for bit
        x = x_BTD.float()
        expected = routed.run_block(index, x, plain)
        for part in (attention(block, x, plain), attention_of(block, x, plain, open_BT)[None]):
            ran = x + part
            found = ran + feed_forward(block, ran)
            if (found - expected).abs().max() > 1e-4 * expected.abs().max():
                return f"block {index} is not norm, attention, norm and feed-forward"
    except (AttributeError, TypeError, KeyError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "device" in str(error):  # of the machine, not of the model
            raise
        return f"block {index}: {type(error).__name__}: {first_line(error)}"
    finally:
        block.to(dtype)
    return None


def _as_float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_as_float(part) for part in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def train_gates(
    routed: RoutedModel, policy: Gates, texts: Sequence[tuple[Sequence[int], Sequence[int]]], config: Any
) -> list[dict[str, float]]:
    """Next-token loss of prompt and answer plus `penalty` times what the gates spend, by AdamW; the policy's tensors change in place.

    Args:
        texts: token ids of each prompt and of its right answer.
        config: a `MindSkipConfig`.

    Returns:
        The loss of each step and the mean of its gates on real tokens.
    """
    generator = torch.Generator().manual_seed(config.seed)
    parameters = [tensor.requires_grad_() for tensor in policy.tensors.values()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01)
    frozen = [parameter for parameter in routed.model.parameters() if parameter.requires_grad]
    losses: list[dict[str, float]] = []
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad(), Progress(f"train {policy.name}", config.steps) as progress:
            for _ in range(config.steps):
                picked = torch.randint(len(texts), (config.batch_size,), generator=generator).tolist()
                loss, gates = _loss(routed, policy, [texts[place] for place in picked], config.penalty)
                if not bool(loss.isfinite()):
                    raise InputError(f"training diverged at step {len(losses)} (loss {float(loss)}): lower lr (now {config.lr})")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append({"loss": float(loss.detach()), "mean_gate": gates})
                progress.advance(1)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for tensor in parameters:
            tensor.requires_grad_(False)
    return losses


def _loss(routed: RoutedModel, policy: Gates, texts: Sequence[Any], penalty: float) -> tuple[Tensor, float]:
    lengths = [len(prompt) + len(answer) for prompt, answer in texts]
    ids = torch.full((len(texts), max(lengths)), routed.pad_id, dtype=torch.long)
    real, prompts = torch.zeros_like(ids), torch.zeros_like(ids)
    for at, (prompt, answer) in enumerate(texts):  # padded on the right: positions count from the first token
        ids[at, : lengths[at]] = torch.tensor([*prompt, *answer])
        real[at, : lengths[at]] = 1
        prompts[at, : len(prompt)] = 1
    ids, real, prompts = (tensor.to(routed.device) for tensor in (ids, real, prompts))
    step = Step.of(prompts, real, hard=False)
    with policy.installed(routed, step):
        logits = routed.model(input_ids=ids, attention_mask=real, use_cache=False).logits
    wanted = real[:, 1:].bool()
    language = nn.functional.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted])
    values = torch.cat([(gate if gate.ndim == 1 else gate[real.bool()]).flatten() for gate in step.gates])
    return language + penalty * policy.spent(step.gates, real), float(values.detach().mean())
