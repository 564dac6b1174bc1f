"""W&B that waits a second where a run waits ten: named in place of the sink by `log_rows`.

At the start it waits four, as a good server must be found in that time on a busy machine, too. The
mirror is another process, which imports this.
"""

from __future__ import annotations

from typing import Any

from common.logger import wandb_artifacts, wandb_sink
from common.logger.sinks import ShownRun
from common.logger.wandb_sink import WandbSink


def open_wandb(run: ShownRun, **given: Any) -> WandbSink:
    wandb_sink.INIT_TIMEOUT_SECONDS = 4
    wandb_sink.FINISH_TIMEOUT_SECONDS = 1
    wandb_artifacts.STILL_SECONDS = wandb_artifacts.ANSWER_SECONDS = 1
    return wandb_sink.open_wandb(run, **given)
