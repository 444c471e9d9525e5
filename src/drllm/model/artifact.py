"""A saved policy: `config.json` says what it is and which base it belongs to, beside the policy's own files."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from drllm.errors import ArtifactError, InputError
from drllm.files import write_json
from drllm.model.policy import Policy, policy_class

if TYPE_CHECKING:
    from drllm.model.routed import RoutedModel

CONFIG_FILE = "config.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ArtifactConfig:
    """What a saved policy belongs to."""

    policy: str
    base_id: str
    base_revision: str | None
    fingerprint: str
    model_type: str
    n_layers: int
    hidden_size: int
    prompt_format: str | None
    schema_version: int = SCHEMA_VERSION
    folder: str = ""


def save(routed: RoutedModel, folder: Path) -> Path:
    """Write the model's policy to a folder; `InputError` when it has none."""
    if routed.policy is None:
        raise InputError("this model has no policy to save: set m.policy, for example to train(...)")
    folder.mkdir(parents=True, exist_ok=True)
    routed.policy.save(folder)
    config = ArtifactConfig(
        routed.policy.name, routed.base_id, routed.revision, routed.fingerprint, routed.config.model_type, routed.n_layers,
        routed.hidden_size, routed.policy.prompt_format,
    )  # fmt: skip
    written = asdict(config)
    del written["folder"]
    # Last: a folder with a config.json is complete.
    write_json(folder / CONFIG_FILE, written)
    return folder


def read(folder: Path) -> ArtifactConfig:
    """The configuration of a saved policy; unknown newer keys warn, anything missing or corrupt is refused."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no saved policy ({CONFIG_FILE} is missing): give the folder that `drllm train` printed")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): train the policy again") from None
    known = {field.name for field in fields(ArtifactConfig)} - {"folder"}
    if not isinstance(values, dict) or known - {"schema_version"} - values.keys():
        raise ArtifactError(f"{path} is not the configuration of a drllm policy: give the folder that `drllm train` printed")
    if values.keys() - known:
        warnings.warn(
            f"{path} has keys this drllm does not know ({', '.join(sorted(values.keys() - known))}); they are ignored", stacklevel=2
        )
    return ArtifactConfig(**{key: values[key] for key in known & values.keys()}, folder=str(folder))


def load_policy(saved: ArtifactConfig, routed: RoutedModel) -> Policy:
    """The saved policy, after checking that it was made for these very weights."""
    if saved.fingerprint != routed.fingerprint:
        raise ArtifactError(
            f"the policy in {saved.folder} was made for {saved.base_id} (weights {saved.fingerprint}), "
            f"this is {routed.base_id or 'a model'} (weights {routed.fingerprint}): load its own base, or train a policy for this one"
        )
    policy = policy_class(saved.policy).load(Path(saved.folder))
    if policy.n_layers != routed.n_layers:
        raise ArtifactError(f"the policy in {saved.folder} has {policy.n_layers} blocks, the model has {routed.n_layers}: train it again")
    policy.prompt_format = saved.prompt_format
    return policy
