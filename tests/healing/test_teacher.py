"""What the base says, kept: the same as asking it, at most the whole vocabulary's KL, computed once."""

from __future__ import annotations

import os

import pytest
import torch

import runs
from drllm import ArtifactError, InputError, Route
from drllm.core.progress import Reporter, reporting_to
from drllm.healing.measuring import RouteMeter, distance
from drllm.healing.teacher import TOP, Teacher, divergence, joined

pytestmark = pytest.mark.long

ROUTED = runs.model()
PROMPTS = [tuple(int(token) for token in torch.randint(3, 90, (n,), generator=torch.Generator().manual_seed(n))) for n in range(5, 45)]


def told(folder, new_tokens=0, answer_share=0.0):
    return Teacher(ROUTED, folder, new_tokens, 200, answer_share).texts(PROMPTS, "teaching", "fit")


@torch.no_grad()
def full_kl(route: Route, texts) -> float:
    """Over the whole vocabulary, text by text, in plain forwards."""
    total, n = 0.0, 0
    for text in texts:
        ids = torch.tensor([text.ids])
        logs_p, logs_q = (ROUTED(ids, routes=one).logits[0].double().log_softmax(-1) for one in (Route.full(4), route))
        total += float((logs_p.exp() * (logs_p - logs_q)).sum())
        n += len(text.ids)
    return total / n


def test_a_text_says_what_the_base_says(tmp_path):
    for text, prompt in zip(told(tmp_path), PROMPTS, strict=True):
        logs = ROUTED.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert text.ids == prompt
        assert torch.equal(text.top[:, 0].long(), logs.argmax(-1))
        assert (text.logs - logs.gather(1, text.top.long())).abs().max() < 5e-3
        assert torch.allclose(text.logs.exp().sum(1) + text.rest.exp(), torch.ones(len(prompt)))
        assert text.top.shape == (len(prompt), TOP)


def test_behind_a_prompt_stands_the_base_s_own_answer(tmp_path):
    for text, prompt in zip(told(tmp_path, 6), PROMPTS, strict=True):
        alone = ROUTED.generate(input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0]
        assert text.ids == (*prompt, *alone.token_ids[:-1])


def test_a_divergence_is_at_most_the_whole_vocabulary_s(tmp_path):
    texts, route = told(tmp_path), Route.parse("1011")
    kept, whole = RouteMeter(ROUTED, texts, 200).kls([route])[route], full_kl(route, texts)
    assert 0.2 * whole < kept < whole * (1 + 1e-3)  # a random model is nearly uniform: the kept tokens are few of many
    found = distance(ROUTED, texts, 200, lambda **inputs: ROUTED(**inputs, routes=route))
    assert found.kl == pytest.approx(kept, rel=1e-4)
    same = [ROUTED(torch.tensor([text.ids]), routes=route).logits[0].argmax(-1) == text.top[:, 0] for text in texts]
    assert found.same == pytest.approx(float(torch.cat(same).float().mean()))
    others = [Route.full(4), Route.parse("1021"), route]
    together = RouteMeter(ROUTED, texts, 200).kls(others)
    assert together[others[0]] == pytest.approx(0, abs=1e-5)
    assert together[route] == kept  # whatever is measured beside it


def test_an_answer_weighs_its_share_whatever_its_prompt_s_length(tmp_path):
    texts, route = told(tmp_path, 6, 0.75), Route.parse("1011")
    wanted = 0.0
    for text, prompt in zip(texts, PROMPTS, strict=True):
        kls_T = divergence(ROUTED(torch.tensor([text.ids]), routes=route).logits[0], text.top, text.logs, text.rest).detach()
        wanted += float(0.25 * kls_T[: len(prompt) - 1].mean() + 0.75 * kls_T[len(prompt) - 1 :].mean()) / len(texts)
    assert RouteMeter(ROUTED, texts, 200).kls([route])[route] == pytest.approx(wanted, rel=1e-4)
    assert distance(ROUTED, texts, 200, lambda **inputs: ROUTED(**inputs, routes=route)).kl == pytest.approx(wanted, rel=1e-4)


def test_with_every_token_kept_it_is_the_kl(tmp_path):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    logs, top = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).log_softmax(-1).sort(descending=True)
    wanted = (logs.exp() * (logs - logits.log_softmax(-1).gather(1, top))).sum(1)
    assert torch.allclose(divergence(logits, top, logs, torch.full((6,), -30.0)), wanted, atol=1e-4)


class Deadly(Reporter):
    """Ends the process by `kill -9` once a file is written."""

    def advance(self, job) -> None:
        os.kill(os.getpid(), 9)


def test_killed_it_goes_on_and_makes_the_same_files(tmp_path):
    told(tmp_path / "whole")
    if (pid := os.fork()) == 0:
        with reporting_to(Deadly()):
            told(tmp_path / "killed")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    assert len(list((tmp_path / "killed").iterdir())) == 1
    told(tmp_path / "killed")
    assert runs.folder_bytes(tmp_path / "killed") == runs.folder_bytes(tmp_path / "whole")
    # It is not asked again: this one would answer nothing.
    texts = Teacher(broken_model(), tmp_path / "killed", 0, 200).texts(PROMPTS, "teaching", "fit")
    assert [text.ids for text in texts] == PROMPTS
    assert joined(texts, torch.device("cpu"))[0].shape == (sum(map(len, PROMPTS)), TOP)


def broken_model():
    broken = runs.model()
    broken.model.model.norm.weight.data.fill_(float("nan"))
    return broken


def test_what_cannot_be_used_is_refused(tmp_path):
    told(tmp_path)
    with pytest.raises(ArtifactError, match="holds 40 other prompts than these 40: give another --out"):
        Teacher(ROUTED, tmp_path, 0, 200).texts(PROMPTS[::-1], "teaching", "fit")
    with pytest.raises(ArtifactError, match="holds 40 other prompts than these 39: give another --out"):
        Teacher(ROUTED, tmp_path, 0, 200).texts(PROMPTS[:-1], "teaching", "fit")
    (tmp_path / "fit-00001.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"fit-00001\.safetensors is not readable .*delete it"):
        told(tmp_path)
    with pytest.raises(InputError, match="the base's logits are NaN or infinite on a prompt"):
        Teacher(broken_model(), tmp_path / "nan", 0, 200).texts(PROMPTS, "teaching", "fit")
