"""Saved policies as things to share: golden files, model cards, the Hub."""

import json
import shutil
import types
from pathlib import Path

import pytest

import families
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, InputError, Route, RoutedModel
from drllm.cli.main import main
from drllm.core.errors import network_errors
from drllm.policies.card import is_card
from drllm.policies.routers import RouterConfig, Routers
from drllm.policies.saved import open_policy
from drllm.policies.saved_config import policy_digest
from drllm.runs.card_facts import refresh_card

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = ["What do plants need?", "12 and 7", "Hello", "Once upon a time there was a river"]


@pytest.fixture
def routed() -> RoutedModel:
    return RoutedModel.wrap(families.build("llama", vocab_size=300, max_position_embeddings=512), byte_tokenizer())


@pytest.fixture(scope="module")
def golden_base() -> RoutedModel:
    return RoutedModel.wrap(str(GOLDEN / "base"))


@pytest.mark.parametrize("name", ["static-v1", "routers-v1"])
def test_golden_files_load_decide_and_are_saved_as_they_were(name, golden_base, tmp_path):
    """Saving what was loaded writes the same bytes: a change of the format must be a change of the version."""
    model = RoutedModel.from_pretrained(GOLDEN / name, base=golden_base)
    outs = model.generate(PROMPTS, max_new_tokens=4, do_sample=False)
    decided = json.loads((GOLDEN / "decided.json").read_text())[name]
    assert [str(out.route) for out in outs] == decided["routes"]
    assert [out.token_ids for out in outs] == decided["token_ids"]
    model.base_id = "tests/golden/base"  # wherever the repository lies
    model.save_pretrained(tmp_path / name)
    for path in sorted((GOLDEN / name).iterdir()):
        if path.name != "README.md":
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_newer_key_warns_and_a_newer_schema_refuses(golden_base, tmp_path):
    folder = tmp_path / "newer"
    shutil.copytree(GOLDEN / "static-v1", folder)
    config = json.loads((folder / "drllm_config.json").read_text())
    (folder / "drllm_config.json").write_text(json.dumps(config | {"colour": "blue"}))
    with pytest.warns(UserWarning, match=r"keys this drllm does not know \(colour\)"):
        RoutedModel.from_pretrained(folder, base=golden_base)
    (folder / "drllm_config.json").write_text(json.dumps(config | {"schema_version": 99}))
    with pytest.raises(ArtifactError, match="upgrade drllm"):
        RoutedModel.from_pretrained(folder, base=golden_base)


def run_with_figures(routed: RoutedModel, root: Path) -> Path:
    """A run folder: a static policy and its evaluation, one of these files and one of files before them."""
    routed.policy = Route.parse("1211")
    routed.base_id = "someone/tiny"
    (root / "run").mkdir()
    folder = routed.save_pretrained(root / "run" / "static")
    failed = {"argv": ["drllm", "train", "--block", "99"], "status": "failed"}
    (root / "run" / "run.json").write_text(
        json.dumps([{"argv": ["drllm", "train", "--out", "runs/a b"]}, {"argv": ["/x/pytest", "-q"]}, failed])
    )
    row = {"task": "arc_easy", "n": 200, "accuracy": 0.4, "wilson_low": 0.3, "wilson_high": 0.5, "mean_passes": 4.0, "n_layers": 4}
    ours = row | {"method": "static", "accuracy": 0.45, "mean_passes": 5.0}
    ours |= {"difference": 0.05, "difference_low": -0.01, "difference_high": 0.11, "mcnemar_p": 0.125}
    for split, digest in (("tune", policy_digest(folder)), ("test", "0" * 16)):
        place = root / "run" / "evaluate" / split
        place.mkdir(parents=True)
        summary = {"split": split, "model": "someone/tiny", "reference": "base", "tasks": ["arc_easy"], "policies": {"static": digest}}
        base = row | {"method": "base"}
        summary["rows"] = [base, base | {"task": "all"}, ours, ours | {"task": "all", "mean_passes": 4.75}]
        (place / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_card_holds_base_route_figures_and_commands(routed, tmp_path, capsys):
    folder = run_with_figures(routed, tmp_path)
    assert "None yet for these files" in (folder / "README.md").read_text(), "saved before it was evaluated"
    assert refresh_card(folder).folder == folder
    assert main(["info", str(folder)]) == 0
    card = capsys.readouterr().out
    assert "base_model: someone/tiny" in card
    assert "route `1211`" in card
    assert routed.fingerprint in card
    assert "promise: none" in card
    assert "| **static** | arc_easy | accuracy | 200 | 40.0 | 45.0 | +5.0 (-1.0 to +11.0) | 0.125 |" in card
    assert "It runs 4.75 block passes a prompt." in card, "over all tasks"
    (folder / "README.md").unlink()
    assert (main(["info", str(folder)]), capsys.readouterr().out) == (0, card), "made anew"
    assert "tune split" in card
    assert "test split" not in card, "figures of other files are not these files' figures"
    assert "drllm train --out 'runs/a b'" in card
    assert "pytest" not in card
    assert "--block 99" not in card, "it failed"


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("0-2,1-3", "`0-2,1-3` (runs 1-2 again after 2)"),
        ("0-2,(1-2)*0.5,3", "`0-2,(1-2)*0.5,3` (runs 1-2 again after 2 at strength 0.5)"),
        ("0-1,0-1/4", "`0-1,0-1/4` (skips 2, 3; runs 0-1 again after 1)"),
        ("0-1,1,1-3", "`0-1,1,1-3` (runs 1 3 times)"),
        ("1211", None),
    ],
)
def test_a_looped_route_saves_loads_and_its_card_says_it_in_words(route, words, routed, tmp_path):
    routed.policy = Route.parse(route)
    folder = routed.save_pretrained(tmp_path / "static")
    expected = routed.generate(PROMPTS, max_new_tokens=3, do_sample=False)
    loaded = RoutedModel.from_pretrained(folder, base=routed)
    outs = loaded.generate(PROMPTS, max_new_tokens=3, do_sample=False)
    assert [str(out.route) for out in outs] == [route] * len(PROMPTS)
    assert [out.token_ids for out in outs] == [out.token_ids for out in expected]
    card = (folder / "README.md").read_text()
    assert is_card(card)
    assert f"- blocks: 4, route `{route}`\n" in card
    assert (f"- loops: {words}\n" in card) == ("- loops" in card) == ("tags: [drllm, adaptive-depth, rys]" in card) == bool(words)
    (folder / "README.md").write_text(card.replace("# static", "# stale"))
    assert loaded.save_pretrained(folder) == folder
    assert (folder / "README.md").read_text() == card, "a card of ours is written anew"


def test_evaluate_writes_its_figures_into_the_card(tmp_path, data):
    from drllm import evaluate
    from runs import EVALUATE, TASK, folder_bytes, model

    tiny = model()
    tiny.policy = Route.parse("1211")
    folder = tiny.save_pretrained(tmp_path / "run" / "static")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate(tiny, ["base", "static"], [TASK], tmp_path / "run", EVALUATE, data, ["drllm", "evaluate"])
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"README.md"}
    assert "| **static** |" in (folder / "README.md").read_text()
    answered = folder_bytes(tmp_path / "run" / "verdicts")
    evaluate(tiny, ["base", "static"], [TASK], tmp_path / "run", EVALUATE, data, ["drllm", "evaluate"])
    assert folder_bytes(tmp_path / "run" / "verdicts") == answered, "a new card is no new policy"


def test_info_of_an_export_and_of_nothing(routed, tmp_path, capsys, monkeypatch):
    from drllm.deploy.export import export

    export(routed, Route.parse("1011"), tmp_path / "out")
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "skips 1 (counted from 0)" in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 2
    assert "holds no saved policy" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # it has a folder out, so that out/none is not asked of the Hub
    assert main(["info", "out/none"]) == 2
    assert "drllm_config.json is missing" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "out"), "--revision", "main"]) == 0


def test_a_readme_of_others_stays(routed, tmp_path):
    (tmp_path / "README.md").write_text("# My checkpoint\n")
    routed.policy = Route.parse("1211")
    routed.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My checkpoint\n"


def test_a_policy_without_a_name_is_not_saved(routed, tmp_path):
    routed.policy = type("Nameless", (Routers,), {"name": ""})(RouterConfig(len(routed.blocks), routed.hidden_size))
    with pytest.raises(InputError, match="Nameless has no name"):
        routed.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_info_refuses_a_torn_policy(routed, tmp_path, capsys):
    routed.policy = Route.parse("1211")
    folder = routed.save_pretrained(tmp_path / "static")
    (folder / "policy.json").write_text('{"route": "1111"}')
    assert main(["info", str(folder)]) == 2
    assert "not the file that was saved" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Uploads and downloads go to `hub/<id>/<revision>`, through the arguments that the real calls take."""
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    root = tmp_path / "hub"
    response = types.SimpleNamespace(headers={}, request=None, status_code=404, url="")

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, *, private=None, exist_ok=False, **_):
            if repo_id == "no/network":  # huggingface_hub raises its HTTP library's own errors, which are no OSErrors
                raise network_errors()[0]("no route to host")
            if "/" not in repo_id:
                raise huggingface_hub.errors.HFValidationError(f"Repo id must be namespace/name: {repo_id!r}")
            (root / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)

        def create_branch(self, repo_id, *, branch, exist_ok=False, **_):
            (root / repo_id / branch).mkdir(exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, revision=None, allow_patterns=None, commit_message=None, **_):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, root / repo_id / (revision or "main") / name)
            return types.SimpleNamespace(commit_url=f"hub://{repo_id}")

    def download(repo_id, filename, *, revision=None, **_):
        place = root / repo_id / (revision or "main")
        if not place.is_dir():
            raise RepositoryNotFoundError(f"404: no {repo_id}", response=response)
        if not (place / filename).is_file():
            raise RemoteEntryNotFoundError(f"404: no {filename}", response=response)
        return str(place / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return root


def test_push_and_pull_with_a_revision(routed, hub, tmp_path, capsys):
    routed.policy = Route.parse("1211")
    assert routed.push_to_hub("someone/routes") == "hub://someone/routes"
    routed.policy = Route.parse("1110")
    folder = routed.save_pretrained(tmp_path / "static")
    assert open_policy(folder).push("someone/routes", "short") == "hub://someone/routes"
    for revision, route in ((None, "1211"), ("main", "1211"), ("short", "1110")):
        model = RoutedModel.from_pretrained("someone/routes", base=routed, revision=revision)
        assert model.policy is not None
        assert model.policy.route == Route.parse(route)
    assert main(["info", "someone/routes", "--revision", "short"]) == 0
    assert "route `1110`" in capsys.readouterr().out
    assert sorted(path.name for path in (hub / "someone/routes/main").iterdir()) == ["README.md", "drllm_config.json", "policy.json"]


def test_what_the_hub_has_not_is_one_line(routed, hub):
    with pytest.raises(ArtifactError, match="there is no such folder, and the Hub gives none"):
        RoutedModel.from_pretrained("someone/else", base=routed)
    routed.policy = Route.parse("1211")
    for name in ("noslash", "no/network"):
        with pytest.raises(InputError, match=f"the Hub does not take '{name}'"):
            routed.push_to_hub(name)


def test_every_policy_is_found_by_its_name_in_a_process_that_has_imported_none():
    from drllm.policies import policy

    for name in policy.BUILT_IN:
        kind = policy.policy_class(name)
        assert (kind.name, bool(kind.about)) == (name, True)
