"""Policies that run parts of blocks: what they leave out is left out, what they compute is what was trained, and they only evaluate."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import families
from byte_tokens import byte_tokenizer
from drllm import ArtifactError, InputError, Route, RoutedModel, evaluate, search
from drllm.core.errors import UnsupportedModelError
from drllm.methods.training_data import TrainingData
from drllm.policies.saved import open_folder
from drllm.scoring.generated import GeneratedScorer
from drllm.scoring.loglik import LoglikScorer
from drllm.tasks import Example, get_task
from drllm_research.comparison.oracle import cover, first_right, oracle_routes
from drllm_research.rivals.evaluator import fit_evaluator, load_evaluator
from drllm_research.rivals.fit import FlexiDepthConfig, MindSkipConfig
from drllm_research.rivals.gated_blocks import Step, count
from drllm_research.rivals.gates import FlexiDepth, MindSkip, check_parts, train_gates
from rote import answering
from runs import EVALUATE, SEARCH, TASK, L, model, questions

pytestmark = pytest.mark.long

KINDS = [MindSkip, FlexiDepth]
ROUTES = [Route.full(L).edit(2, 0), Route.full(L).edit(1, 2), Route.full(L).edit(3, 0)]
OPTIONS = {
    "mindskip": MindSkipConfig(steps=3, batch_size=4, tune_questions=10),
    "flexidepth": FlexiDepthConfig(steps=3, batch_size=4, adapter=4, tune_questions=10),
}


@pytest.fixture(scope="module")
def run(tiny, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    search(tiny, [TASK], dataclasses.replace(SEARCH, splits=("fit", "tune")), out, data, routes=ROUTES)
    return out


def random_gates(kind, routed: RoutedModel, first_block: int = 0, seed: int = 0):
    policy = kind.new(routed.n_layers, routed.hidden_size, first_block, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in policy.tensors.items():
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) * (0 if name == "bias" else 1))
    return policy


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, real, prompt mask), padded on the right: rows of 9, 6 and 4 tokens whose last two belong to an answer."""
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(seed))
    places, lengths = torch.arange(9)[None], torch.tensor([9, 6, 4])[:, None]
    return ids, (places < lengths).long(), (places < lengths - 2).long()


def logits_of(routed: RoutedModel, policy, ids, real, prompt, hard: bool) -> tuple[torch.Tensor, Step]:
    step = Step.of(prompt, real, hard)
    with torch.no_grad(), policy.installed(routed, step):
        return routed.model(input_ids=ids, attention_mask=real, use_cache=False).logits, step


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_out_computes_what_masking_does(kind, family):
    """The evaluated path gathers rows and tokens, the trained one runs all and masks: the same states, and each row as alone."""
    routed = RoutedModel.wrap(families.build(family, attn="sdpa"))
    check_parts(routed)
    policy = random_gates(kind, routed, 1)
    ids, real, prompt = batch()
    found, step = logits_of(routed, policy, ids, real, prompt, hard=True)
    expected, _ = logits_of(routed, policy, ids, real, prompt, hard=False)
    base = routed.model(input_ids=ids, attention_mask=real, use_cache=False).logits
    seen = real.bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert (found - base)[seen].abs().max() > 1e-2, "the gates change something"
    for row in range(3):
        n = int(real[row].sum())
        alone, used = logits_of(routed, policy, ids[row : row + 1, :n], real[row : row + 1, :n], prompt[row : row + 1, :n], hard=True)
        torch.testing.assert_close(alone[0], found[row, :n], rtol=1e-4, atol=1e-4)
        if kind is FlexiDepth:
            assert used.used_B[0] == pytest.approx(float(step.used_B[row]), rel=1e-5)
    assert step.used_B.min() > 1
    assert step.used_B.min() < L


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_run_is_not_computed(kind, tiny):
    """Tokens that really enter attention and feed-forward, counted in the modules, against what is counted as spent."""
    policy = random_gates(kind, tiny, 0)
    ids, real, prompt = batch()
    entered = {"attention": 0, "queries": 0, "keys": 0, "mlp": 0}

    def counting(name):
        def hook(module, args):
            entered[name] += args[0].shape[:-1].numel()

        return hook

    maps = {"attention": "self_attn.o_proj", "queries": "self_attn.q_proj", "keys": "self_attn.k_proj", "mlp": "mlp.gate_proj"}
    placed = [(block.get_submodule(at), name) for block in tiny.blocks for name, at in maps.items()]
    handles = [module.register_forward_pre_hook(counting(name)) for module, name in placed]
    _, step = logits_of(tiny, policy, ids, real, prompt, hard=True)
    for handle in handles:
        handle.remove()
    assert entered["queries"] == entered["attention"]
    block = tiny.blocks[0]
    n_attention, n_mlp = count(block.self_attn), count(block.mlp)
    n_keys = count(block.self_attn.k_proj) + count(block.self_attn.v_proj)
    if kind is MindSkip:
        assert entered["mlp"] == L * 27
        assert 0 < entered["attention"] < L * 27
        assert entered["keys"] == entered["attention"]
        gates = L * tiny.hidden_size / 9
        by_hand = (entered["attention"] * n_attention + entered["mlp"] * n_mlp) / 27
        assert float(step.used_B.mean()) == pytest.approx((by_hand + gates) / (n_attention + n_mlp), rel=1e-5)
    else:
        assert entered["mlp"] == entered["attention"] < L * 19
        assert entered["keys"] == L * 27
        spent = float((step.used_B * real.sum(1)).sum()) * (n_attention + n_mlp)
        n_gate, n_adapter = policy.tensors["down"][0].numel(), 3 * tiny.hidden_size * 4
        skipped = L * 19 - entered["mlp"]
        by_hand = 19 * L * (n_gate + n_keys) + entered["mlp"] * (n_attention + n_mlp - n_keys) + skipped * n_adapter
        assert spent == pytest.approx(by_hand, rel=1e-5)


def test_a_prompts_gate_does_not_see_the_answer(tiny):
    policy = random_gates(MindSkip, tiny)
    ids, real, prompt = batch()
    other = torch.where(prompt.bool(), ids, (ids + 17) % 90 + 3)
    used = [logits_of(tiny, policy, tokens, real, prompt, hard=True)[1].used_B for tokens in (ids, other)]
    assert torch.equal(*used)


def test_scores_are_those_of_plain_forwards(tiny):
    policy = random_gates(FlexiDepth, tiny, 1)
    packed, apart = (LoglikScorer(tiny, 300, packed=how) for how in (True, False))
    examples = load_examples(tiny)
    answers = [policy.evaluate(scorer, [scorer.question(get_task(TASK), example) for example in examples]) for scorer in (packed, apart)]
    for one, other in zip(*(verdicts for verdicts, _ in answers), strict=True):
        assert one.margin == pytest.approx(other.margin, abs=1e-3)
    assert all(1 < depth.n_passes < L and not depth.is_full for depth in answers[0][1])


def load_examples(tiny):
    return [Example(row["id"], row["question"], tuple(row["choices"]), row["answer"], TASK) for row in questions(12)]


@pytest.mark.parametrize("kind", KINDS)
def test_training_closes_gates_and_leaves_the_base_alone(kind):
    tiny = model()
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    scorer = LoglikScorer(tiny, 300)
    asked = [scorer.question(get_task(TASK), example) for example in load_examples(tiny)]
    texts = [(question.context_ids, scorer.right_answer(question)) for question in asked]
    assert texts[0][1] == byte_tokenizer()(f" {asked[0].example.choices[asked[0].example.answer]}")["input_ids"]
    policy = kind.new(L, tiny.hidden_size, 0, 4, 0)
    config = MindSkipConfig(penalty=5.0, steps=60, batch_size=4, lr=3e-2)
    rows = train_gates(tiny, policy, texts, config)
    assert rows[-1]["mean_gate"] < 0.7 * rows[0]["mean_gate"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny.model.parameters())
    again = kind.new(L, tiny.hidden_size, 0, 4, 0)
    train_gates(tiny, again, texts, config)
    assert all(torch.equal(policy.tensors[name], again.tensors[name]) for name in policy.tensors)
    assert tiny.blocks[0].forward is tiny.routed_blocks[0], "blocks are routed again"


@pytest.mark.parametrize("name", OPTIONS)
def test_gates_from_records_to_a_row(name, tiny, run, data):
    folder = run / name
    fit_evaluator(tiny, run, name, OPTIONS[name], None, (), folder)

    def rows(*methods: str, **changes):
        return evaluate(tiny, methods, [TASK], run, dataclasses.replace(EVALUATE, **changes), data, evaluators=gates).rows

    gates = {name: load_evaluator(folder, tiny)}
    found = rows(name)
    assert [row.method for row in found] == ["base", name]
    assert rows(name) == found, "read back"
    assert 0 < found[1].mean_passes < L * 1.2
    assert found[1].mean_passes % 1
    assert json.loads((run / "train" / name / "knob.json").read_text())["points"]
    with pytest.raises(InputError, match="no route of its own"):
        rows(f"shuffled-{name}")
    letters = rows(name, reward="letter", limit=3)
    assert [(row.method, row.n) for row in letters] == [("base", 3), (name, 3)]
    with pytest.raises(InputError, match="spends at least"):
        fit_evaluator(tiny, run, name, dataclasses.replace(OPTIONS[name], budget=0.1), None, (), run / "cheaper")


def test_gates_are_no_policy(tiny, run, data, tmp_path):
    folder = tmp_path / "mindskip"
    fit_evaluator(tiny, run, "mindskip", OPTIONS["mindskip"], None, (), folder)
    for load in (lambda: open_folder(folder).load(tiny.identity), lambda: RoutedModel.from_pretrained(folder, base=tiny)):
        with pytest.raises(ArtifactError, match=r"'mindskip' decides no route and can only be evaluated") as refusal:
            load()
        assert "\n" not in str(refusal.value)
    with pytest.raises(ArtifactError, match="train them again"):
        load_evaluator(folder, model(seed=1))
    (folder / "gates.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"gates\.json is missing or not the file that was saved"):
        load_evaluator(folder, tiny)


def test_the_oracle_by_hand(tiny, run):
    ranked = oracle_routes(TrainingData(tiny, run))
    assert ranked[0].is_full
    assert {*ranked[1:]} <= {*ROUTES}
    right = {route: [False, place == 0, place >= 1, place == 2] for place, route in enumerate(ranked)}
    assert first_right(ranked, right) == [ranked[0], ranked[0], ranked[1], ranked[2]]


def test_covering_takes_what_is_new():
    correct = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    assert cover(correct, 2) == [1, 3]
    assert cover(correct, 9) == [1, 3, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_saved_whole_or_refused(kind, tiny, tmp_path):
    policy = random_gates(kind, tiny, 2).at_threshold(0.7)
    policy.save(tmp_path)
    again = kind.load(tmp_path)
    assert (again.threshold, again.first_block) == (0.7, 2)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in policy.tensors.items())
    about = json.loads((tmp_path / "gates.json").read_text())
    for change in ({"first_block": 1}, {"hidden_size": 8}, {"threshold": None}):
        (tmp_path / "gates.json").write_text(json.dumps(about | change))
        with pytest.raises(ArtifactError, match="no readable gates"):
            kind.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "gpt_neox", "gemma2", "cohere", "smollm3", "nanochat", "dots1"])
def test_models_that_cannot_be_taken_apart_are_refused(family, dtype):
    if family not in families.FAMILIES:
        pytest.skip(f"the installed transformers has no {family}")
    routed = RoutedModel.wrap(families.build(family).to(dtype))
    before = {name: tensor.clone() for name, tensor in routed.model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="cannot be run in parts of a block"):
        check_parts(routed)
    ids = torch.tensor([[3, 4, 5]])
    routed(ids)  # and work as before
    assert all(torch.equal(tensor, before[name]) for name, tensor in routed.model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_gates_that_are_no_numbers_are_refused(kind, tiny, tmp_path):
    policy = random_gates(kind, tiny)
    ids, real, prompt = batch()
    policy.tensors["bias"][1] = float("nan")
    with pytest.raises(InputError, match="gates of block 1 are not finite"):
        logits_of(tiny, policy, ids, real, prompt, hard=True)
    assert tiny.blocks[0].forward is tiny.routed_blocks[0]
    policy.save(tmp_path)
    with pytest.raises(ArtifactError, match="no readable gates"):
        kind.load(tmp_path)


ASKED = ("What melts ice?", "How many legs does a spider have?", "Red?")
PROMPTS = [Example(f"q{n}", text, ("heat", "sand", "six", "eight"), n, TASK) for n, text in enumerate(ASKED)]


@pytest.mark.parametrize("reward", ["letter", "boxed"])
def test_open_gates_on_attention_answer_as_the_base(reward):
    routed = answering("llama")
    task = get_task(TASK if reward == "letter" else "gsm8k")
    examples = PROMPTS if reward == "letter" else [dataclasses.replace(one, choices=(), answer="5", task="gsm8k") for one in PROMPTS]
    scorer = GeneratedScorer(routed, reward, 600, to_the_end=True)
    asked = [scorer.question(task, example) for example in examples]
    base = [verdicts[0] for verdicts in scorer.score_all(asked, [Route.full(routed.n_layers)])]
    found, depths = MindSkip.new(routed.n_layers, routed.hidden_size, 0, 1, 0).evaluate(scorer, asked)
    assert found == base
    assert all(depth.n_passes == pytest.approx(routed.n_layers, rel=0.1) for depth in depths)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_under_gates_are_those_of_each_prompt_alone(kind):
    routed = answering("llama")
    policy = kind.new(routed.n_layers, routed.hidden_size, 0, 4, 1)
    generator = torch.Generator().manual_seed(3)
    policy.tensors = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in policy.tensors.items()}
    policy.tensors["bias"] = torch.tensor([3.0, -40.0] * routed.n_layers)[: routed.n_layers]
    found = []
    for max_step_tokens in (1, 4000):
        scorer = GeneratedScorer(routed, "letter", max_step_tokens, to_the_end=True)
        found.append(policy.evaluate(scorer, [scorer.question(get_task(TASK), example) for example in PROMPTS]))
    (alone, depths), (together, others) = found
    assert [verdict.text for verdict in alone] == [verdict.text for verdict in together]
    assert [depth.n_passes for depth in depths] == pytest.approx([depth.n_passes for depth in others], rel=1e-5)
    assert all(depth.n_passes < routed.n_layers for depth in depths)


def test_the_right_answer_of_each_reward_is_read_as_right():
    routed = answering("llama")
    task, passage = get_task(TASK), get_task("gsm8k")
    for prompts in ("ours", "instruct", "base"):
        letters, boxes = (GeneratedScorer(routed, reward, prompts=prompts) for reward in ("letter", "boxed"))
        question = letters.question(task, PROMPTS[0])
        assert task.read(PROMPTS[0], routed.tokenizer.decode(letters.right_answer(question)), "letter").strict
        example = dataclasses.replace(PROMPTS[0], choices=(), answer="\\frac{1}{2}", task="gsm8k")
        text = routed.tokenizer.decode(boxes.right_answer(boxes.question(passage, example)))
        assert passage.read(example, text, "boxed", boxes.wording is not None and boxes.wording.opens_box).strict
