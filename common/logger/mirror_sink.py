"""The training's end of the process that shows it in TensorBoard and W&B."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.logger.media import Media
from common.logger.mirror import CHARGE, IS_BUSY, REFUSES, Order
from common.logger.sinks import Row

# Above all that W&B may take at the start and at the end of a run that logged nothing else. Counted
# anew whenever the mirror says that it is busy, which it does as long as artifacts are uploaded.
FINISH_SECONDS = 24


class MirrorSink:
    """Starts the module that mirrors a run, which reads the rows from the run's file by itself."""

    def __init__(self, module: str, order: Order, say: Callable[[str], None]) -> None:
        self._say = say
        (Path(order.directory) / CHARGE).write_text(order.charge)
        self._refusal: str | None = None
        self._last_sign = 0.0
        # In a session of its own, so that Ctrl-C reaches the training alone.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._write(json.dumps(dataclasses.asdict(order)))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def log(self, row: Row) -> None:
        """Raises `UserError` if a sink does not accept the run, such as W&B one of its names."""
        if self._refusal is not None:
            raise UserError(self._refusal)

    def log_media(self, name: str, media: Media, batch_step: int) -> None:
        self.log({})

    def close(self, exit_code: int) -> None:
        self._write(str(exit_code))
        self._last_sign = time.monotonic()
        while (left := self._last_sign + FINISH_SECONDS - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(left)
                break
        else:
            self._process.kill()
        code = self._process.wait()
        self._listener.join()
        if code:
            self._say(
                f"the process that writes to TensorBoard and W&B ended with {code}: they may lack "
                "rows; metrics.jsonl has all"
            )
        if exit_code == 0:
            self.log({})

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # It has ended; `close` says so.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, text = json.loads(line)
            if kind == REFUSES:
                self._refusal = text
            elif kind == IS_BUSY:
                self._last_sign = time.monotonic()
            else:
                self._say(text)
