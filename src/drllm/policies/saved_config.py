"""`drllm_config.json` of a saved policy: what the policy is, which base it was made for, and the digests of its files. No torch."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from drllm.core.digest import SHORT, file_digest
from drllm.core.errors import ArtifactError
from drllm.core.files import read_json, write_json

# Not config.json: a policy saved into a checkpoint's folder must not overwrite the checkpoint's own.
CONFIG_FILE = "drllm_config.json"
SCHEMA_VERSION = 1
_PROMISED = {"point", "epsilon", "dtype", "sentence", "tested"}
_NO_POLICY = "give the folder that `drllm train` printed"


@dataclass(frozen=True)
class BaseIdentity:
    id: str  # where it was loaded from, with its revision; empty for a model in memory
    revision: str | None
    fingerprint: str  # of its weights (`drllm.model.load.fingerprint`)
    model_type: str
    n_layers: int
    hidden_size: int

    def __str__(self) -> str:
        return f"{self.id or 'a model in memory'} (weights {self.fingerprint})"


@dataclass(frozen=True)
class SavedConfig:
    policy: str
    base_id: str
    base_revision: str | None
    fingerprint: str
    model_type: str
    n_layers: int
    hidden_size: int
    prompt_format: str | None
    files: dict  # the policy's own files, each with its SHA-256
    schema_version: int = SCHEMA_VERSION
    promise: dict | None = None  # what `drllm train --calibrate` found, if it was calibrated

    @property
    def base(self) -> BaseIdentity:
        return BaseIdentity(self.base_id, self.base_revision, self.fingerprint, self.model_type, self.n_layers, self.hidden_size)

    def write(self, folder: Path) -> None:
        """Into the policy's folder, last of its files, so that whatever a crash leaves in between is refused."""
        write_json(folder / CONFIG_FILE, {name: value for name, value in asdict(self).items() if name != "promise" or value is not None})

    def check_files(self, folder: Path) -> None:
        for name, expected in self.files.items():
            if not (folder / name).is_file() or file_digest(folder / name) != expected:
                raise ArtifactError(f"{folder / name} is missing or not the file that was saved with {CONFIG_FILE}: train the policy again")


_KINDS = get_type_hints(SavedConfig)


def read_config(folder: Path) -> SavedConfig:
    """Unknown keys warn, a newer schema and anything missing or corrupt are refused."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no saved policy ({CONFIG_FILE} is missing): {_NO_POLICY}")
    found = read_json(path, "train the policy again")
    values: dict[str, Any] = {"promise": None} | found if isinstance(found, dict) else {}
    if any(name not in values or not isinstance(values[name], kind) for name, kind in _KINDS.items()):
        raise ArtifactError(f"{path} is not the configuration of a drllm policy: {_NO_POLICY}")
    promised = values["promise"]
    if promised is not None and not (promised.keys() >= _PROMISED and isinstance(promised["epsilon"], float)):
        raise ArtifactError(f"{path} holds a promise that is none of `drllm train --calibrate`: calibrate the policy again")
    if values["schema_version"] > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {values['schema_version']}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    if unknown := sorted(values.keys() - _KINDS.keys()):
        warnings.warn(f"{path} has keys this drllm does not know ({', '.join(unknown)}); they are ignored", stacklevel=2)
    return SavedConfig(**{name: values[name] for name in _KINDS})


def policy_digest(folder: Path) -> str:
    """Identifies a saved policy: its configuration and, through it, every file of it."""
    return file_digest(folder / CONFIG_FILE)[:SHORT]
