"""Saved policies: written, opened once, loaded onto their base, and exchanged with the Hub."""

import contextlib
import tempfile
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from drllm.core.digest import file_digest, json_digest
from drllm.core.errors import ArtifactError, InputError, first_line, network_errors
from drllm.core.files import write_text
from drllm.policies.card import CARD_FILE, CardFacts, is_card, render_card
from drllm.policies.policy import Policy, RouteSource, policy_class
from drllm.policies.saved_config import CONFIG_FILE, BaseIdentity, SavedConfig, read_config


@dataclass(frozen=True)
class SavedPolicy:
    """A saved policy that was opened: its configuration is read and every file is the one that was saved."""

    folder: Path
    config: SavedConfig

    def load(self, base: BaseIdentity) -> Policy:
        """The policy, after checking that it was made for these very weights."""
        if self.config.fingerprint != base.fingerprint:
            made_for = f"was made for {self.config.base}, this is {base}"
            raise ArtifactError(f"the policy in {self.folder} {made_for}: load its own base, or train a policy for this one")
        policy = self.unchecked()
        was, shape = self.config, (base.model_type, base.n_layers, base.hidden_size)
        if (was.model_type, policy.n_layers, was.hidden_size) != shape:
            made_for = f"is for {was.model_type} with {policy.n_layers} blocks of size {was.hidden_size}"
            is_one = "the model is {} with {} of {}".format(*shape)
            raise ArtifactError(f"the policy in {self.folder} {made_for}, {is_one}: train it again")
        return policy

    def unchecked(self) -> Policy:
        """The policy, whatever the base: for a process that serves a base that was checked before."""
        policy = policy_class(self.config.policy).load(self.folder)
        policy.prompt_format, policy.promise = self.config.prompt_format, self.config.promise
        return policy

    def write_card(self, facts: CardFacts) -> None:
        """Write the model card into the folder, over the one before; a README that is no card of ours stays."""
        path = self.folder / CARD_FILE
        if not path.is_file() or is_card(path.read_text(encoding="utf-8", errors="replace")):
            write_text(path, self.card(facts))

    def card(self, facts: CardFacts) -> str:
        return render_card(asdict(self.config), self.unchecked(), facts)

    def push(self, repo_id: str, revision: str | None = None, private: bool | None = None, token: str | None = None) -> str:
        """Upload policy and card to the Hub, a new repository if there is none; the commit's address. `InputError` when the Hub refuses."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            files = [CONFIG_FILE, CARD_FILE, *self.config.files]
            said = f"{self.config.policy} policy for {self.config.base_id or 'a model in memory'}"
            done = api.upload_folder(repo_id=repo_id, folder_path=self.folder, revision=revision, allow_patterns=files, commit_message=said)
        except (*network_errors(), HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            raise InputError(f"the Hub does not take {repo_id!r} ({first_line(error)})") from None
        return done.commit_url


def save_policy(policy: RouteSource | None, base: BaseIdentity, folder: Path) -> None:
    """Write a policy to a folder; `InputError` when there is none to save or the folder is a file."""
    if policy is None:
        raise InputError("this model has no policy to save: set m.policy, for example to train(...)")
    if not isinstance(policy, Policy):
        raise InputError("a list of routes belongs to one batch and cannot be saved; save a Route or trained routers")
    if not policy.name:
        raise InputError(f"{type(policy).__name__} has no name and could not be loaded again: give it that of its entry point")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder to save the policy in")
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: file_digest(folder / name) for name in policy.save(folder)}
    rest = {"prompt_format": policy.prompt_format, "files": files, "promise": policy.promise}
    SavedConfig(policy.name, *astuple(base), **rest).write(folder)


def content_digest(policy: Policy) -> str:
    """Of what a policy is, as it would be saved, without its promise and format."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: file_digest(Path(folder) / name) for name in policy.save(Path(folder))}
    return json_digest([policy.name, files], sort_keys=True)


def open_policy(name: str | Path | SavedPolicy, revision: str | None = None) -> SavedPolicy:
    """A saved policy: one opened already, of a local folder, or of the Hub by its id and revision.

    `ArtifactError` when neither is there, and for a file that is corrupt, missing or another one.
    """
    if isinstance(name, SavedPolicy):
        return name
    is_hub_id = _is_hub_id(name)
    if revision is not None and not is_hub_id:
        raise ArtifactError(f"{name} is a local folder, which has no revision {revision!r}: leave it out")
    return open_folder(_fetch(str(name), revision) if is_hub_id else Path(name))


def open_folder(folder: Path) -> SavedPolicy:
    config = read_config(folder)
    config.check_files(folder)
    return SavedPolicy(folder, config)


def is_policy(name: str | Path, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds a saved policy; a base model's does not."""
    if not _is_hub_id(name):
        return revision is None and (Path(name) / CONFIG_FILE).is_file()
    try:
        return bool(_fetch(str(name), revision))
    except ArtifactError:
        return False


def _is_hub_id(name: str | Path) -> bool:
    # Where the first part is a folder here, a folder in it is missing: without a network the Hub would be asked for half a minute.
    return str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")) and not Path(name).parent.is_dir()


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(hf_hub_download(name, CONFIG_FILE, revision=revision)).parent
        for file in read_config(folder).files:
            hf_hub_download(name, file, revision=revision)
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(name, CARD_FILE, revision=revision)
    except (*network_errors(), HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        why = f"there is no such folder, and the Hub gives none ({first_line(error, 160)})"
        raise ArtifactError(f"{name} holds no saved policy: {why}; give the folder that `drllm train` printed, or a Hub id") from None
    return folder
