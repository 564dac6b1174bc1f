import pytest

from common.errors import UserError
from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.reward import TEXT_REWARDS, build_rewards
from common.rewards.transcript import Transcript
from common.tasks.task import Task

TASK = Task(0, "What is 1+1?", "2", {"bonus": 3})
FUNCTIONS = TEXT_REWARDS


def judged(rewards, text):
    return Judge(rewards, Notion(is_correct))([Transcript(text)], [TASK])[0]


def test_the_default_weights_sum_by_hand():
    rewards = build_rewards(FUNCTIONS, [], "answer_check=1,format_exact=0.1")
    assert {reward.name: reward.weight for reward in rewards} == {
        "answer_check": 1.0,
        "number_check": 0.0,
        "last_number": 0.0,
        "boxed": 0.0,
        "format_exact": 0.1,
        "format_approx": 0.0,
    }
    right = judged(rewards, "<think>a</think><answer>2</answer>")
    assert right.scores == {
        "answer_check": 1.0,
        "number_check": 1.0,
        "last_number": 1.0,
        "boxed": 0.0,
        "format_exact": 1.0,
        "format_approx": 1.0,
    }
    assert (right.reward, right.correct) == (pytest.approx(1.1), True)
    untagged = judged(rewards, "2")
    assert (untagged.reward, untagged.correct) == (0, False)


def test_a_users_function_sees_the_other_columns(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def bonus(completion, task):\n    return task.columns['bonus'] * len(completion)\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = build_rewards(FUNCTIONS, ["my_rewards:bonus"], "answer_check=0.5")
    assert rewards[-1].name == "bonus"
    assert rewards[-1].weight == 1.0
    assert judged(rewards, "abcd").reward == 12
    named = build_rewards(FUNCTIONS, ["my_rewards.py:bonus"], "bonus=0.25")
    assert named[-1].name == "bonus"
    assert judged(named, "abcd").reward == 3


@pytest.mark.parametrize(
    ("own", "weights", "complaint"),
    [
        ([], "nosuch=1", "--reward-weights nosuch: unknown reward; known: answer_check"),
        ([], "answer_check=much", "--reward-weights answer_check=much: not name=number"),
        ([], "answer_check", "--reward-weights answer_check: not name=number"),
        ([], "answer_check=inf", "--reward-weights answer_check=inf"),
        ([], "answer_check=0", "every weight is 0"),
        ([], "", "every weight is 0"),
        (["nomodule"], "answer_check=1", "--reward nomodule: not of the form module:function"),
        (["no_such_module:f"], "answer_check=1", "no module 'no_such_module'"),
        (["math:nope"], "answer_check=1", "math has no function 'nope'"),
        (["no/such.py:f"], "answer_check=1", "--reward no/such.py:f: no such file"),
        (["math:fmod", "cmath:fmod"], "", "--reward cmath:fmod: there is another reward called"),
    ],
)
def test_mistakes_are_named_in_one_line(own, weights, complaint):
    with pytest.raises(UserError) as error:
        build_rewards(FUNCTIONS, own, weights)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
