"""What changes from step to step besides the weights, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.logger.metrics import RunStatistics
from common.run.checkpoint import random_state, restore_random_state
from common.run.directory import Run
from common.training.collector import Collector
from common.training.learner import Learner
from common.training.policy_and_reference import Models
from common.training.ranks import Ranks
from common.training.sampling_ahead import SamplingAhead

if TYPE_CHECKING:
    import transformers

# A single bad batch is skipped; this many optimizer steps in a row without a finite gradient mean
# that the run has diverged.
MAX_INVALID_STEPS = 5


@dataclass
class TrainingState:
    """Everything that a resumed run needs to go on as if it had not stopped."""

    run: Run
    models: Models
    learner: Learner
    collector: Collector | SamplingAhead
    tokenizer: transformers.PreTrainedTokenizerBase
    statistics: RunStatistics
    ranks: Ranks
    num_threads: int
    """That the process was given; it may have handed over some to one that samples."""
    _marked: tuple[int, int, dict[str, int], dict[str, Any]] = field(init=False)
    _saved_step: int | None = None

    def restore(self) -> None:
        """Bring optimizer, statistics and global random numbers to where the run's checkpoint has
        them; a run that starts anew has none."""
        if self.run.checkpoint:
            state = self.run.state
            self.models.restore_optimizer(self.learner.optimizer, self.run.checkpoint)
            self.learner.global_step = state["global_step"]
            # One of before planned it anew from --max-steps.
            self.learner.warmup_steps = state.get("warmup_steps", self.learner.warmup_steps)
            self.statistics.load_state_dict(state["statistics"])
            random = state["random"]
            restore_random_state(random[self.ranks.index % len(random)])
            if isinstance(self.collector, SamplingAhead) and "sampled_ahead" in state:
                self.collector.restore(state["sampled_ahead"])
            self._saved_step = self.run.step

    def mark(self, step: int) -> None:
        """Remember where `step` done rollout batches end, for a `save` in the middle of the next.

        Until its rollouts are there, a step changes nothing but the files of rows and, through a
        user's reward function, the global random numbers.
        """
        lengths, random = self.run.directory.lengths(), random_state()
        self._marked = (step, self.learner.global_step, lengths, random)

    @property
    def has_moved(self) -> bool:
        """Whether the weights are no longer those of the step marked last."""
        _, global_step, _, _ = self._marked
        return self.learner.global_step != global_step

    def save(self) -> None:
        """Write the checkpoint of the step marked last, unless there is one or it is past.

        All ranks call this; they go on when the first has written it.
        """
        step, _, lengths, random = self._marked
        if self._saved_step == step or self.has_moved:
            return
        randoms = self.ranks.merge(random)
        parts = self.run.checkpoints.parts(step)
        weights, optimizer = self.models.to_be_saved(self.learner.optimizer, parts)

        def write() -> None:
            self.run.directory.sync()
            state = {
                **optimizer,
                "statistics": self.statistics.state_dict(),
                "global_step": self.learner.global_step,
                "warmup_steps": self.learner.warmup_steps,
                "random": randoms,
                "num_threads": self.num_threads,
                "lengths": lengths,
            }
            if isinstance(self.collector, SamplingAhead):
                state["sampled_ahead"] = self.collector.state(step)
            model = self.models.sampler.model
            self.run.checkpoints.save(step, model, self.tokenizer, state, weights)

        self.ranks.first(write)
        self._saved_step = step

    def stop_if_diverged(self, step: int) -> None:
        """Save and raise `UserError` after too many optimizer steps without a finite gradient."""
        if self.statistics.invalid_in_a_row < MAX_INVALID_STEPS:
            return
        self.mark(step)
        self.save()
        raise UserError(
            f"the gradient was not finite in {self.statistics.invalid_in_a_row} optimizer steps in "
            f"a row; their tasks are in {self.run.directory.samples_file}; lower --lr"
        )
