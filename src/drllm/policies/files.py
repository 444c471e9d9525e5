"""How policies lie on disk: one JSON file, and for some a safetensors file whose checksum the JSON holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from drllm.core.digest import digest
from drllm.core.errors import ArtifactError, first_line
from drllm.core.files import read_json, write_bytes, write_json

CHECKSUM = "weights_sha256"


@dataclass(frozen=True)
class PolicyFiles:
    what: str  # they hold, for messages
    remedy: str  # when they do not
    config: str  # the name of the JSON file
    weights: str = ""  # the name of the file of tensors; none for a policy without
    checked: bool = True  # whether the JSON holds the checksum of the weights

    def save(self, folder: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> list[str]:
        """Write them into an existing folder, each atomically; their names."""
        about, written = dict(about), [self.config]
        if self.weights:
            data = save_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()})
            write_bytes(folder / self.weights, data)
            written.append(self.weights)
            if self.checked:
                about[CHECKSUM] = digest(data)  # so that `load` refuses the pair that a crash leaves in between
        write_json(folder / self.config, about)
        return written

    def load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON without the checksum, tensors) as `save` wrote them; `ArtifactError` for anything missing, corrupt or mismatched."""
        about = read_json(folder / self.config, self.remedy, dict)
        if not self.weights:
            return about, {}
        with self.reading(folder):
            data = (folder / self.weights).read_bytes()
            tensors = load_safetensors(data)
        if self.checked and digest(data) != about.pop(CHECKSUM, None):
            why = f"is not the file {self.config} was written for (checksums differ)"
            raise ArtifactError(f"{folder / self.weights} {why}: {self.remedy}")
        return about, tensors

    @contextmanager
    def reading(self, folder: Path) -> Iterator[None]:
        """While active, what unreadable values raise becomes an `ArtifactError`."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise ArtifactError(f"{folder} holds no readable {self.what} ({first_line(error)}): {self.remedy}") from None


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """`ValueError` for a tensor that is missing, of another shape, not float32 or not finite."""
    for name, shape in expected.items():
        found = f"{tuple(tensors[name].shape)} {tensors[name].dtype}" if name in tensors else "missing"
        if found != f"{shape} {torch.float32}":
            raise ValueError(f"{name} is {found}, expected {shape} {torch.float32}")
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} holds values that are NaN or infinite")
