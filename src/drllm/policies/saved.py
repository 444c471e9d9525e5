"""A saved policy: `drllm_config.json` says what it is and which base it belongs to, beside the policy's own files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from drllm.core.errors import ArtifactError, InputError, network_errors
from drllm.core.files import write_json, write_text
from drllm.policies.card import CARD_FILE, CONFIG_FILE, is_card, policy_digest, render_card
from drllm.policies.policy import Policy, policy_class

RoutedModel = Any

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
    files: dict[str, str]  # the policy's own files, each with its SHA-256
    schema_version: int = SCHEMA_VERSION
    guarantee: dict[str, Any] | None = None  # what the gate found, if it was calibrated


def save(routed: RoutedModel, folder: Path) -> Path:
    """Write the model's policy to a folder; `InputError` when it has none or the folder is a file."""
    policy = routed.policy
    if policy is None:
        raise InputError("this model has no policy to save: set m.policy, for example to train(...)")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder to save the policy in")
    folder.mkdir(parents=True, exist_ok=True)
    written = policy.save(folder)
    config = ArtifactConfig(
        policy.name, routed.base_id, routed.revision, routed.fingerprint, routed.config.model_type, routed.n_layers, routed.hidden_size,
        policy.prompt_format, {name: _digest(folder / name) for name in written}, guarantee=policy.guarantee,
    )  # fmt: skip
    # Last, with digests of the files: whatever a crash leaves in between is refused, never half old and half new.
    write_json(folder / CONFIG_FILE, {name: value for name, value in asdict(config).items() if name != "guarantee" or value is not None})
    write_card(folder)
    return folder


def card(folder: Path) -> str:
    """The policy's model card, with the figures that its run folder holds for these files by now."""
    saved = read(folder)
    run = folder.parent if (folder.parent / "run.json").is_file() else None
    route = policy_class(saved.policy).load(folder).route
    return render_card(asdict(saved), digest(folder), None if route is None else str(route), run, folder.name if run else "")


def write_card(folder: Path) -> None:
    """Write `card` into the folder, over the one before; a README that is no card of ours stays."""
    path = folder / CARD_FILE
    if not path.is_file() or is_card(path.read_text(encoding="utf-8", errors="replace")):
        write_text(path, card(folder))


digest = policy_digest


def locate(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a saved policy: a local one, else the Hub's files of that id, at a revision (branch, tag or commit).

    Raises `ArtifactError` when neither is there.
    """
    if Path(name).exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        if revision is not None:
            raise ArtifactError(f"{name} is a local folder, which has no revision {revision!r}: leave it out")
        return Path(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        fetch = lambda file: Path(hf_hub_download(str(name), file, revision=revision))  # noqa: E731
        folder = fetch(CONFIG_FILE).parent
        for file in read(folder).files:
            fetch(file)
        with contextlib.suppress(EntryNotFoundError):
            fetch(CARD_FILE)
    except (*network_errors(), HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(
            f"{name} holds no saved policy: there is no such folder, and the Hub gives none ({type(error).__name__}: {reason}); give the "
            "folder that `drllm train` printed, or a Hub id"
        ) from None
    return folder


def is_policy(name: str | Path, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds a saved policy; a base model's does not."""
    try:
        return (locate(name, revision) / CONFIG_FILE).is_file()
    except ArtifactError:
        return False


def push(folder: Path, repo_id: str, revision: str | None = None, private: bool | None = None, token: str | None = None) -> str:
    """Upload a saved policy and its card to the Hub, making the repository if there is none; the commit's address.

    Raises `ArtifactError` for a folder that holds no whole policy, `InputError` when the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    saved = read(folder)
    check_files(folder, saved)
    write_card(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, allow_patterns=[CONFIG_FILE, CARD_FILE, *saved.files],
            commit_message=f"{saved.policy} policy for {saved.base_id or 'a model in memory'}",
        )  # fmt: skip
    except (*network_errors(), HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"the Hub does not take {repo_id!r} ({type(error).__name__}: {' '.join(str(error).split())[:160]})") from None
    return done.commit_url


def push_model(routed: RoutedModel, repo_id: str, **options: str | bool | None) -> str:
    """As `push`, of the policy in memory."""
    with tempfile.TemporaryDirectory() as place:
        return push(save(routed, Path(place) / "policy"), repo_id, **options)  # type: ignore[arg-type]


def read(folder: Path) -> ArtifactConfig:
    """The configuration of a saved policy; unknown keys warn, a newer schema and anything missing or corrupt are refused."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no saved policy ({CONFIG_FILE} is missing): give the folder that `drllm train` printed")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable JSON ({error}): train the policy again") from None
    kinds = {"policy": str, "base_id": str, "base_revision": (str, NoneType), "fingerprint": str, "model_type": str, "n_layers": int,
             "hidden_size": int, "prompt_format": (str, NoneType), "files": dict, "schema_version": int,
             "guarantee": (dict, NoneType)}  # fmt: skip
    if isinstance(values, dict):
        values.setdefault("guarantee", None)  # older policies have none
    if not isinstance(values, dict) or any(name not in values or not isinstance(values[name], kind) for name, kind in kinds.items()):
        raise ArtifactError(f"{path} is not the configuration of a drllm policy: give the folder that `drllm train` printed")
    promised = values["guarantee"]
    if promised is not None and not (
        {"point", "epsilon", "dtype", "sentence", "tested"} <= promised.keys() and isinstance(promised["epsilon"], float)
    ):
        raise ArtifactError(f"{path} holds a guarantee that is none of `drllm train --calibrate`: calibrate the policy again")
    if values["schema_version"] > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema {values['schema_version']}, this drllm reads up to {SCHEMA_VERSION}: upgrade drllm")
    if unknown := sorted(values.keys() - kinds.keys()):
        warnings.warn(f"{path} has keys this drllm does not know ({', '.join(unknown)}); they are ignored", stacklevel=2)
    return ArtifactConfig(**{name: values[name] for name in kinds})


def load_policy(folder: Path, routed: RoutedModel) -> Policy:
    """The saved policy, after checking that its files are whole and that it was made for these very weights."""
    saved = read(folder)
    if saved.fingerprint != routed.fingerprint:
        raise ArtifactError(
            f"the policy in {folder} was made for {saved.base_id or 'a model in memory'} (weights {saved.fingerprint}), "
            f"this is {routed.base_id or 'a model in memory'} (weights {routed.fingerprint}): "
            "load its own base, or train a policy for this one"
        )
    check_files(folder, saved)
    policy = policy_class(saved.policy).load(folder)
    if policy.n_layers != routed.n_layers or saved.model_type != routed.config.model_type or saved.hidden_size != routed.hidden_size:
        raise ArtifactError(
            f"the policy in {folder} is for {saved.model_type} with {policy.n_layers} blocks of size {saved.hidden_size}, the model is "
            f"{routed.config.model_type} with {routed.n_layers} of {routed.hidden_size}: train it again"
        )
    policy.prompt_format, policy.guarantee = saved.prompt_format, saved.guarantee
    return policy


def check_files(folder: Path, saved: ArtifactConfig) -> None:
    """Refuse a policy of which a file is missing or another one."""
    for name, expected in saved.files.items():
        if not (folder / name).is_file() or _digest(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is missing or not the file that was saved with {CONFIG_FILE}: train the policy again")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
