"""Running out of memory is one line that names the phase and the flags that help."""

import re

import pytest
import torch

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.logger.timer import REMEDIES, Timer
from common.models.load import ModelOptions, load_policy
from tests.helpers import REPOSITORY


@pytest.mark.parametrize("phase", REMEDIES)
def test_of_the_device_names_the_phase_and_flags_that_exist(phase):
    timer = Timer(torch.device("cpu"))
    with pytest.raises(UserError) as caught, timer.explain_lack_of_memory(), timer(phase):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")
    message = str(caught.value)
    assert message.startswith(f"out of memory in {phase}: lower --")
    assert "\n" not in message
    for flag in re.findall(r"--([a-z-]+)", message):
        assert flag.replace("-", "_") in TrainConfig.__dataclass_fields__


def test_of_the_machine_is_recognised():
    expected = "out of memory in train: lower --micro-batch-tokens"
    timer = Timer(torch.device("cpu"))
    with pytest.raises(UserError, match=expected), timer.explain_lack_of_memory(), timer("train"):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_stay_what_they_are():
    timer = Timer(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="a bug"), timer.explain_lack_of_memory(), timer("train"):
        raise RuntimeError("a bug")


def test_every_phase_of_every_experiment_has_a_remedy():
    phases = {
        phase
        for script in REPOSITORY.glob("common/training/*.py")
        for phase in re.findall(r'timer\("(\w+)"\)', script.read_text(encoding="utf-8"))
    }
    assert {"rollout", "train"} <= phases <= set(REMEDIES)


def test_while_loading_names_the_model_and_lora(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(UserError) as caught:
        load_policy(ModelOptions("tiny", torch.device("cpu")))
    assert str(caught.value).startswith(
        "--model-name tiny: out of memory while loading; add --lora"
    )
