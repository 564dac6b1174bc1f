"""A talk by hand goes on where it was, and is held as the run held its conversations."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.errors import UserError
from common.models.load import load_tokenizer
from common.models.tiny.tokenizer import END_ID
from common.rollout.chat import ChatFormat
from common.rollout.generator import Completion, Request
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.rollout import single_turn
from common.rollout.sampling import Sampling
from common.rollout.tool_chat import ToolChat
from common.run.directory import newest_checkpoint, run_at
from common.run.merge_lora import find_adapters
from common.tasks.task import Task
from common.tools.calculator import calculate
from common.tools.environment import EnvironmentFactory
from common.tools.runner import ToolRunner
from common.tools.toolbox import make_tool, make_toolbox
from common.training.ask import AskConfig, main, script_of_run
from common.training.talk import Talk, UnansweredError, as_question
from tests.helpers import (
    REPOSITORY,
    ScriptedGenerator,
    load_script,
    run_here,
    scripted_lines,
    train_here,
)
from tests.small_models import save_model, save_model_with_code

TOKENIZER = load_tokenizer("tiny")
GREEDY = Sampling(0.0, 1.0)
USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
EXPERIMENT = "experiment_multiturn_tool_calling"


def lines(*texts: str) -> list[list[int]]:
    return [TOKENIZER(text, add_special_tokens=False).input_ids for text in texts]


def prompts(generator) -> list[str]:
    return [str(TOKENIZER.decode(request.prompt_ids)) for request in generator.requests]


def test_a_question_is_asked_after_all_that_was_said():
    generator = scripted_lines(lines("4", "5"), END_ID)
    converse = partial(single_turn, generator=generator, sampling=GREEDY, max_completion_tokens=8)
    talk = Talk(ChatFormat(TOKENIZER, "Be brief."), converse, 200)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert [talk.ask("2+2?"), talk.ask("<|im_end|> and 2+3?")] == ["4", "5"]
    first, second = prompts(generator)
    assert first == system + USER.format("2+2?")
    assert second == first + "4<|im_end|>\n" + USER.format("<|im_end|> and 2+3?")
    ends = [request.prompt_ids.count(END_ID) for request in generator.requests]
    assert ends == [2, 4], "what the user types ends no turn"
    assert not talk.is_full("2+2?")
    assert talk.is_full("2+2? " * 30)
    talk.start_anew()
    assert not talk.is_full("2+2? " * 30), "a question of its own is asked in any case"
    talk.ask("2+2?")
    assert prompts(generator)[2] == first


class TestAQuestionThatCannotBeAnswered:
    """It leaves the conversation as it was."""

    @pytest.fixture
    def talk(self) -> Talk:
        def complete(request: Request) -> Completion:
            room = 60 - len(request.prompt_ids)
            return Completion([END_ID][: max(room, 0)], [-0.5][: max(room, 0)], "context")

        converse = partial(
            single_turn,
            generator=ScriptedGenerator(complete),
            sampling=GREEDY,
            max_completion_tokens=8,
        )
        (seven,) = lines("7")[0]
        return Talk(ChatFormat(TOKENIZER, ""), converse, 60, unreadable={seven: "7"})

    def test_for_want_of_room(self, talk):
        talk.ask("2+2?")
        so_far = talk._so_far
        with pytest.raises(
            UnansweredError,
            match=r"^no room is left for an answer: the prompt has \d+ tokens, and a conversation "
            "at most 60; ask a shorter question$",
        ):
            talk.ask("2+2? " * 30)
        assert talk._so_far == so_far

    def test_for_a_token_that_the_model_does_not_embed(self, talk):
        with pytest.raises(UnansweredError, match=r"^the prompt holds '7', which is token "):
            talk.ask("2+7?")
        assert talk._so_far == []


@pytest.fixture
def model_with_a_word_too_many(tmp_path) -> str:
    directory = save_model("gpt2", tmp_path / "model")
    tokenizer = load_tokenizer(str(directory))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("question", "complaint"),
    [
        ("the zebra", "the prompt holds 'zebra', which is token 400 to the tokenizer, and "),
        ("cows " * 2000, "no room is left for an answer: the prompt has "),
    ],
)
def test_what_cannot_be_answered_is_said(
    model_with_a_word_too_many, question, complaint, monkeypatch, capsys
):
    config = AskConfig(model_with_a_word_too_many, question, max_completion_tokens=4)
    with pytest.raises(UserError, match=f"^{complaint}"):
        main(config)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\nthe cow\n"))
    capsys.readouterr()
    main(replace(config, question=None))
    _, said, *answer = capsys.readouterr().out.splitlines()
    assert said.startswith(complaint)
    assert answer, "the talk goes on"


def test_code_of_a_models_own_runs_where_it_may(tmp_path, capsys):
    directory = str(save_model_with_code(tmp_path / "own"))
    config = AskConfig(directory, "How many?", max_completion_tokens=4)
    with pytest.raises(UserError, match=r"--trust-remote-code$"):
        main(config)
    main(replace(config, trust_remote_code=True))
    assert capsys.readouterr().out


def test_calls_are_run_and_read_by_later_questions():
    toolbox = make_toolbox([make_tool(calculate, "calc")])
    chat = ToolChat(TOKENIZER, "", toolbox, "tags")
    generator = scripted_lines(lines("<tool:calc> 2 * 4</tool>", "It is 8.", "I said."), END_ID)
    converse = partial(
        multi_turn,
        generator=generator,
        sampling=GREEDY,
        max_completion_tokens=60,
        runner=ToolRunner(toolbox, 5.0),
        limits=Limits(max_turns=4, max_length=400, max_tool_tokens=48, max_invalid_calls=3),
    )
    talk = Talk(chat, converse, 400)
    said = talk.ask("2*4?")
    assert [(m.role, m.content) for m in said.messages] == [
        ("assistant", "<tool:calc> 2 * 4</tool>"),
        ("tool", "8"),
        ("assistant", "It is 8."),
    ]
    talk.ask("Why?")
    assert prompts(generator)[-1] == (
        USER.format("2*4?") + "<tool:calc> 2 * 4</tool><|im_end|>\n"
        "<|im_start|>tool\n8<|im_end|>\n<|im_start|>assistant\nIt is 8.<|im_end|>\n"
        + USER.format("Why?")
    )


def test_each_question_has_an_environment_that_is_told_a_task(tmp_path, monkeypatch):
    (tmp_path / "box.py").write_text(
        "class Box:\n    def reset(self, number, **row):\n        self.number = number\n"
        "        return f'{row[\"question\"]} {number}'\n"
        "    def get_reward(self):\n        return self.number\n"
    )
    monkeypatch.chdir(tmp_path)
    chat = ToolChat(TOKENIZER, "", {}, "tags", EnvironmentFactory("box.py:Box"))
    generator = scripted_lines(lines("yes"), END_ID)
    converse = partial(
        multi_turn,
        generator=generator,
        sampling=GREEDY,
        max_completion_tokens=60,
        runner=ToolRunner({}, 5.0),
        limits=Limits(max_turns=4, max_length=400, max_tool_tokens=48, max_invalid_calls=3),
    )
    tasks = [Task(n, f"Box {n}?", "", {"number": n}) for n in (3, 7)]
    talk = Talk(chat, converse, 400, tasks)
    said = [talk.ask(question) for question in ("Box 7?", "And now?")]
    assert [turn.environment_reward for turn in said] == [7, 3]
    assert [turn.messages[0].content for turn in said] == ["Box 7? 7", "And now? 3"]
    assert prompts(generator)[1] == USER.format("And now?\n\nAnd now? 3")


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        ("12+5-3", "What is 12+5-3?"),
        ("What is 2?", "What is 2?"),
        ("half \ud83d", "half \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_typed_becomes_a_question(typed, question):
    assert as_question(typed) == question


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with its checkpoints elsewhere, and flags that a talk must have."""
    root = tmp_path_factory.mktemp("talk")
    train_here(
        *("--max-steps", "1", "--rollouts-per-step", "2", "--group-size", "4", "--run-name", "run"),
        *("--eval-samples", "0", "--no-wandb", "--no-tensorboard", "--kl-weight", "0"),
        *("--checkpoint-path", str(root / "elsewhere"), "--stop", "</tool>"),
        experiment=EXPERIMENT,
        log_dir=root,
    )
    return root / EXPERIMENT / "run"


def talk_of(run: Path, *flags: str) -> str:
    script = load_script(EXPERIMENT)
    code, output, errors = run_here(script, ["--chat", str(run), *flags])
    assert (code, errors) == (0, "")
    return output


def test_a_run_is_asked_by_its_script_with_its_tools(run):
    before = sorted(path.name for path in run.iterdir())
    asked = talk_of(run, "--question", "What is 783 + 1383?", "--temperature", "0")
    assert asked.splitlines() == [
        "assistant  <tool:calc> 783 + 1383</tool>",
        "     tool  2166",
        "assistant  <answer> 2166</answer>",
    ]
    assert sorted(path.name for path in run.iterdir()) == before


def test_questions_are_read_line_by_line(run, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO(b"What is 2 + 2?\n\n/new\nWhat is \xff?\n"), "utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    first, *said = talk_of(run, "--temperature", "0").splitlines()
    assert first.endswith("ask a question, for example What is 3+5-2?  (/new forgets, Ctrl-D ends)")
    assert sum(line.startswith("assistant") for line in said) >= 2


def test_the_script_of_a_run_is_found(run, tmp_path):
    assert script_of_run(run) == REPOSITORY / EXPERIMENT / "train.py"
    assert script_of_run(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "gone", "script": "gone.py"}))
    with pytest.raises(UserError, match=r"gone\.py, which made it, is gone; put it back"):
        script_of_run(tmp_path)


@pytest.mark.parametrize("damaged", ['{"experiment": "experiment_ba', "[1]"])
def test_a_damaged_record_of_a_run_is_one_line(damaged, tmp_path):
    (tmp_path / "config.json").write_text(damaged)
    for read in (script_of_run, run_at):
        with pytest.raises(UserError, match=r"config\.json: is damaged \(.*\); put it back$"):
            read(tmp_path)


def test_checkpoints_are_found_where_the_flags_put_them(run, tmp_path):
    checkpoint = newest_checkpoint(run_at(run))
    assert checkpoint == run.parents[1] / "elsewhere" / EXPERIMENT / "run" / "step_000001"
    with pytest.raises(UserError, match="step_000001 is a whole model already"):
        find_adapters(run)
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint_path": None}))
    with pytest.raises(UserError, match="there is no checkpoint in"):
        newest_checkpoint(run_at(tmp_path))
