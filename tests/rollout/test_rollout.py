import pickle
from functools import partial

import pytest

from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.reward import TEXT_REWARDS, build_rewards
from common.rollout.chat import ChatFormat, ChatOptions
from common.rollout.rollout import rollout, single_turn
from common.rollout.sampling import Sampling, StreamKey
from common.tasks.task import Task
from tests.helpers import ScriptedGenerator, scripted_lines

TASKS = [Task(11, "What is 1+1?", "2"), Task(22, "What is 1+2?", "3")]
SCRIPT = ["<think> 1+1=2</think><answer> 2</answer>", "2", "<answer> 3</answer>"]
REWARDS = build_rewards(TEXT_REWARDS, [], "answer_check=1,format_exact=0.1")


@pytest.fixture
def scripted(tokenizer) -> ScriptedGenerator:
    lines = [tokenizer(line, add_special_tokens=False).input_ids for line in SCRIPT]
    return scripted_lines(lines, tokenizer.eos_token_id)


def run(generator, tokenizer, max_new_tokens=64, chat=None):
    return rollout(
        TASKS,
        step=5,
        group_size=3,
        seed=9,
        converse=partial(
            single_turn,
            generator=generator,
            chat=chat or ChatFormat(tokenizer, ""),
            sampling=Sampling(1.0, 1.0),
            max_completion_tokens=max_new_tokens,
        ),
        judge=Judge(REWARDS, Notion(is_correct)),
    )


def test_groups_hold_the_scripted_completions_with_their_scores(scripted, tokenizer):
    first, second = run(scripted, tokenizer)
    assert [rollout.completion for rollout in first.rollouts] == SCRIPT
    assert first.rewards == pytest.approx([1.1, 0.0, 0.0])
    assert second.rewards == pytest.approx([0.1, 0.0, 1.0])
    assert [rollout.correct for rollout in first.rollouts] == [True, False, False]
    assert [rollout.correct for rollout in second.rollouts] == [False, False, True]
    assert first.rollouts[0].scores["format_exact"] == 1


def test_a_completion_knows_the_reasoning_tag_of_the_run(scripted, tokenizer):
    chat = ChatFormat(tokenizer, "", options=ChatOptions("why"))
    completion = run(scripted, tokenizer, chat=chat)[0].rollouts[0].completion
    assert completion.reasoning_tag == "why"
    assert pickle.loads(pickle.dumps(completion)).reasoning_tag == "why"


def test_the_trajectory_is_prompt_and_sampled_tokens_with_the_stop_token(scripted, tokenizer):
    trajectory = run(scripted, tokenizer)[1].rollouts[1].trajectory
    prompt, reply = trajectory.segments
    assert tokenizer.decode(prompt.token_ids) == (
        "<|im_start|>user\nWhat is 1+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(reply.token_ids) == "2<|im_end|>"
    assert (prompt.sampled, reply.sampled) == (False, True)
    assert reply.log_probs == (-0.5, -0.5)
    assert trajectory.stop_reason == "stop"


def test_every_member_of_every_group_has_a_stream_of_its_own(scripted, tokenizer):
    run(scripted, tokenizer)
    assert [request.stream for request in scripted.requests] == [
        StreamKey(9, 5, task_id, member) for task_id in (11, 22) for member in range(3)
    ]


def test_a_completion_that_is_cut_is_scored_as_it_was_cut(scripted, tokenizer):
    groups = run(scripted, tokenizer, max_new_tokens=2)
    cut = groups[0].rollouts[0]
    assert cut.completion == "<think> "
    assert cut.trajectory.stop_reason == "length"
    assert cut.reward == 0
