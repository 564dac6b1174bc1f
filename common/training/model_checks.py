"""What a model must be able to do before a run with it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import stop_token_ids
from common.models.log_probs import TokenLogProbs
from common.models.vocabulary import embedding_rows, tokens_beyond
from common.rollout.chat import ChatFormat
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task


def check_model(
    config: TrainConfig,
    policy: TokenLogProbs,
    chat: ChatFormat,
    tasks: Sequence[Task],
    say: Callable[[str], object],
) -> None:
    """Raise `UserError` for a model that cannot read the tasks, or samples what it does not learn.

    Says if nothing ends a completion, and if the learner reads a prompt once for each completion.
    """
    from common.rollout.self_check import check_decoding

    name = config.model_name
    stop_ids = stop_token_ids(policy.model, chat.tokenizer) | chat.turn_end_ids
    check_tokens(name, embedding_rows(policy.model), stop_ids, chat, tasks)
    check_decoding(policy, chat.prompt_ids(tasks[0].question), name)
    if policy.why_it_cannot_share:
        say(f"equal prompts are not read once for all: {policy.why_it_cannot_share}")
    if not stop_ids and not config.stop:
        say(
            f"warning: no token of {name} ends a completion: each has --max-completion-tokens; "
            "give its tokenizer an eos_token, or --stop"
        )


def check_tokens(
    name: str, rows: int, stop_ids: Iterable[int], chat: ChatFormat, tasks: Iterable[Task]
) -> None:
    """Raise `UserError` if a prompt, a reply or the end of a turn could hold what is not embedded.

    An embedding of so many rows ends there. Most models embed all that their tokenizer knows.
    """
    beyond = tokens_beyond(chat.tokenizer, rows)
    if not beyond:
        return

    def check(token_ids: Iterable[int], where: str) -> None:
        if found := next((token_id for token_id in token_ids if token_id in beyond), None):
            raise UserError(
                f"--model-name {name}: {where} {beyond[found]!r}, which is token {found} to "
                f"the tokenizer, and the model has {rows}; take the tokenizer that belongs to the "
                "model, or resize its embedding"
            )

    for task in tasks:
        check(chat.prompt_ids(task.question), f"the prompt of line {task.line} holds")
    check(stop_ids, "a turn ends with")
    if isinstance(chat, ToolChat):
        check(chat.bridge([], ""), "around the reply of a tool the chat template writes")
        for token_id in beyond:
            check(
                chat.bridge([], str(chat.tokenizer.decode([token_id]))), "what a tool says may hold"
            )
