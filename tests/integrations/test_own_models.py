"""A user's own generator and language model, from the command line: unmodified upstream classes with small weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from denoiserl import Policy, Rng, tasks
from denoiserl.cli import main
from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.recipes.generators import flow_grpo
from denoiserl.tasks import generator, language
from denoiserl.tasks.prompts_and_rewards import PromptList, load_prompts, load_reward, split_prompts, trial_rewards
from denoiserl.train import Run
from tests.integrations import models

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.filterwarnings(w) for w in models.QUIET]

SCORES = """
import numpy as np

def red(images, prompts):
    assert len(images) == len(prompts) and all(image.size == (16, 16) for image in images)
    return [float(np.asarray(image)[..., 0].mean()) / 255 for image in images]

def red_tensor(x, prompts):
    return x[:, 0].mean((1, 2)).numpy()

def strings(images, prompts):
    return ["good"] * len(images)

def crashes(images, prompts):
    raise KeyError("no scorer")

def needs(answers, prompts, solution):
    return [0.0 for _ in answers]

def ones(answers, prompts):
    return [a.count("a") for a in answers]

def matches(answers, answer):
    return [None if b == "skip" else float(b in a) for a, b in zip(answers, answer)]

def prompts():
    return ["a cat", "a dog"]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my.py").write_text(SCORES)
    Path("prompts.txt").write_text("\n".join(["a cat", "a dog", "", "a fish", "a bird", "a cow", "a cat"]))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    models.stable_diffusion_3(scheduler).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh0123"]
    raw = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**models.SIZES, "vocab_size": len(words), "max_position_embeddings": 16}
    transformers.BertForMaskedLM(transformers.BertConfig(**sizes, pad_token_id=0)).save_pretrained(folder)
    return str(folder)


def small(model: str, reward: str = "my.py:red", **more: Any) -> generator.Args:
    return generator.Args(model, reward, "prompts.txt", sampling_steps=3, **more)


def test_prompts_are_read_from_lines_rows_and_functions() -> None:
    with pytest.warns(UserWarning, match="1 repeated prompts are left out"):
        assert load_prompts("prompts.txt").texts == ("a cat", "a dog", "a fish", "a bird", "a cow")
    assert load_prompts("my.py:prompts").texts == ("a cat", "a dog")
    Path("rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "1+2=", "answer": "3"}\n')
    found = load_prompts("rows.jsonl")
    assert found.select([1, 0]) == {"prompts": ["1+2=", "1+1="], "answer": ["3", "2"]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.txt", None, "There are no prompts at gone.txt: give a text file"),
        ("empty.txt", "\n\n", "holds no prompt"),
        ("rows.jsonl", '{"text": "x"}', "prompt 1 is"),
        ("rows.jsonl", "{", "line 1 is no JSON"),
        ("rows.jsonl", '{"prompt": "x", "prompts": 1}', "rename it"),
        ("my.py:scores", None, "There is no function 'scores'"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(name: str, content: str | None, words: str) -> None:
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(RunError, match=words):
        load_prompts(name)


def test_held_out_prompts_are_the_same_for_all_runs_and_never_trained_on() -> None:
    train, held_out = split_prompts(50, 0.2)
    assert len(held_out) == 10 and sorted(train + held_out) == list(range(50)) and split_prompts(50, 0.2)[1] == held_out
    assert split_prompts(4, 0.2) == (list(range(4)), list(range(4))) == split_prompts(4, 0.0)
    assert len(split_prompts(5, 1.0)[0]) == 1


def test_a_reward_gets_the_fields_that_it_names() -> None:
    prompts = PromptList(("p", "q"), {"answer": ["1", "2"]})
    assert load_reward("my.py:matches", prompts, "answers")(["x1", "x"], [0, 1]) == [1.0, 0.0]
    with pytest.raises(RunError, match="There is no field of the prompts 'solution'"):
        load_reward("my.py:needs", prompts, "answers")
    with pytest.raises(RunError, match="name a function"):
        load_reward("my.py:np", prompts, "answers")


def test_a_trial_without_an_answer_counts_as_the_lowest_reward() -> None:
    found = trial_rewards(lambda x, p: [1.0, None, 3.0], torch.zeros(3, 1), None)
    assert found["reward"].tolist() == [1.0, 1.0, 3.0] and found["missing_reward"].tolist() == [0.0, 1.0, 0.0]
    with (
        pytest.raises(RunError, match="no number in 3 trials") if False else pytest.raises(Exception, match="no number")
    ):
        trial_rewards(lambda x, p: [None] * 3, torch.zeros(3, 1), None)


def test_a_pipeline_is_improved_by_a_reward_of_pictures(sd3: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", sd3, "--prompts", "prompts.txt", "--sampling-steps", "3", "--lora", "2", "--no-progress"]
    words += ["--iterations", "1", "--num-prompts", "2", "--group-size", "2", "--batch-size", "2", "--eval-trials", "4"]
    words += ["--num-eval-trials", "2", "--sde-window", "1"]
    assert main(["run", "flow_grpo", *words, "--reward", "my.py:red"]) == 0
    out = capsys.readouterr().out
    assert "reward of pictures of held-out prompts" in out
    record = json.loads(Path("runs/flow_grpo-generator-0/run.json").read_text())
    assert record["args"]["task"] == "generator" and record["args"]["task_args"]["lora"] == 2
    assert main(["sample", "flow_grpo-generator-0", "--num-samples", "2"]) == 0
    assert Path("runs/flow_grpo-generator-0/samples/pictures.png").stat().st_size > 100
    assert "a " in Path("runs/flow_grpo-generator-0/samples/prompts.txt").read_text()
    for reward, said in (("strings", "non-numbers for 4 samples"), ("crashes", "my.py, line 15 in crashes: KeyError")):
        assert main(["run", "flow_grpo", *words, "--reward", f"my.py:{reward}"]) == 1
        assert said in capsys.readouterr().err
    assert not Path("runs/flow_grpo-generator-0-2").exists(), "a refused run leaves no folder"


def test_a_saved_policy_draws_the_pictures_that_it_drew(sd3: str, tmp_path: Path) -> None:
    base = small(sd3, lora=2)
    task = tasks.make("generator", {"model": sd3, "reward": "my.py:red", "prompts": "prompts.txt"} | vars(base))
    policy = generator.start(base, 0, Run())
    for p in policy.parameters():
        p.data += 0.02
    policy.save(tmp_path / "kept")
    again = generator.restore(base, tmp_path / "kept", torch.device("cpu"))
    one, two = (generator.generate(each, base, 5, 3)[0] for each in (policy, again))
    assert torch.equal(one, two) and not torch.equal(
        one, generator.generate(generator.start(base, 0, Run()), base, 5, 3)[0]
    )
    assert set(task.evaluate(policy, 1, 2)) == {"reward"}


def test_adapters_are_saved_alone_and_only_their_own_base_takes_them(sd3: str, tmp_path: Path) -> None:
    base = small(sd3, lora=2)
    policy = generator.start(base, 0, Run())
    for p in policy.parameters():
        p.data += 0.02
    policy.save(tmp_path / "whole", frozen=True)
    policy.save(tmp_path / "adapters")
    whole, alone = ((tmp_path / name / store.TENSORS).stat().st_size for name in ("whole", "adapters"))
    names = store.read(tmp_path / "adapters")["weights"]
    assert alone < whole / 3 and any(".lora_" in n for n in names) and not any("base_layer" in n for n in names)
    again = generator.restore(base, tmp_path / "adapters", torch.device("cpu"))
    assert torch.equal(generator.generate(policy, base, 5, 2)[0], generator.generate(again, base, 5, 2)[0])
    other = generator.start(base, 0, Run())
    with torch.no_grad():
        next(p for p in other.denoiser.parameters() if not p.requires_grad).add_(1)
    with pytest.raises(
        RunError, match="holds the trained weights alone, and the model that was given has other frozen"
    ):
        Policy.load(tmp_path / "adapters", other.denoiser.net.model, "cpu", other.codec.vae)


def test_a_state_of_adapters_goes_on_exactly(sd3: str, tmp_path: Path) -> None:
    base, args = small(sd3, lora=2), flow_grpo.Args(3, 2, 2, 1, batch_size=2, kl_coef=0.1, lr=1e-2)
    task = generator.task(base)

    def rows(run: Run, leave: int = 9) -> list[dict]:
        policy = generator.start(base, 0, run)
        with task.signal("reward", None, 0) as signal:
            told = flow_grpo.improve(policy, signal, args, Rng(1), run)
            return [row for _, row in zip(range(leave), told, strict=False)]

    whole = rows(Run(tmp_path / "whole", every=1))
    assert rows(Run(tmp_path / "half", every=1), 2) == whole[:2]  # left before its second save
    assert rows(Run(tmp_path / "half", every=1)) == whole[1:]
    state = (tmp_path / "half" / "state" / store.TENSORS).stat().st_size
    assert state < 400_000, "the base is not in the state"


def test_trials_do_not_depend_on_how_many_are_drawn_together(sd3: str) -> None:
    policy = generator.start(small(sd3), 0, Run())
    whole = generator.generate(policy, small(sd3), 3, 4)[0]
    parts = generator.generate(policy, small(sd3, sample_batch_size=1), 3, 4)[0]
    assert torch.allclose(whole, parts, atol=1e-5)


def test_pictures_are_pil_or_tensors(sd3: str) -> None:
    x = torch.rand(2, 3, 16, 16)
    cond = {"index": torch.tensor([0, 1])}
    pil = generator.reward_function(small(sd3))(x, cond)
    tensor = generator.reward_function(small(sd3, "my.py:red_tensor", reward_input="tensor"))(x, cond)
    assert pil == pytest.approx(tensor.tolist(), abs=1 / 255)


def asks(model: str, **more: Any) -> language.Args:
    Path("rows.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in (("ab", "c"), ("abc", "a"), ("b", "skip")))
    )
    return language.Args(model, "my.py:matches", "rows.jsonl", **{"answer_length": 4, **more})


def test_prompts_are_padded_on_the_left_and_answers_have_one_length(bert: str) -> None:
    base = asks(bert)
    found = language.canvases(base)
    assert found.tokens.tolist() == [[0, 5, 6, 1, 1, 1, 1], [5, 6, 7, 1, 1, 1, 1], [0, 0, 6, 1, 1, 1, 1]]
    assert found.find(found.tokens[[2, 0]]) == [2, 0]


@pytest.mark.parametrize("more", [{}, {"tokens_per_step": 3}, {"tokens_per_step": 2, "block": 3}, {"order": "left"}])
def test_no_mask_is_left_in_an_answer(bert: str, more: dict[str, Any]) -> None:
    base = asks(bert, **more)
    policy = language.start(base, 0, Run())
    filled, index = language.answer(policy, base, 1, 6)
    assert not filled.eq(1).any() and len(filled) == 6 and set(index) == {0, 1, 2}
    assert all(set(text.replace(" ", "")) <= set("abcdefgh0123") for text in language.decode(base, filled))
    assert torch.equal(filled, language.answer(policy, asks(bert, **more, sample_batch_size=2), 1, 6)[0])


def test_a_language_model_is_improved_by_a_verifier(bert: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", bert, "--answer-length", "3", "--iterations", "2", "--num-prompts", "2", "--group-size", "4"]
    words += ["--eval-trials", "4", "--num-eval-trials", "2", "--no-progress", "--prompts", "rows.jsonl"]
    asks(bert)
    assert main(["run", "tracerl", *words, "--reward", "my.py:ones"]) == 0
    assert "reward of answers" in capsys.readouterr().out
    assert main(["sample", "tracerl-language-0", "--num-samples", "2"]) == 0
    assert "  -> " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"answer_length": 40}, "do not fit a model of 16 positions"),
        ({"chat": True}, "no chat template: leave --chat out"),
        ({"stop_token": "zz"}, "'zz' is no token of this tokenizer"),
        ({"mask_token": "zz"}, "'zz' is no token of this tokenizer"),
    ],
)
def test_a_language_model_that_does_not_fit_is_refused(bert: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        language.start(asks(bert, **more), 0, Run())


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no model_index\.json"):
        generator.load_pipeline("empty")
    with pytest.raises(RunError, match=r"no config\.json"):
        language.load_model(asks("empty"))


def test_a_model_of_ones_own_chooses_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "flow_grpo", "--model", "x"]) == 2
    assert "--reward" in capsys.readouterr().err.replace("│", "")
