"""No text ends a run or a command: at every entrance it is refused in one line, or replaced.

Halves of surrogate pairs stand for all that Python holds and UTF-8 does not: JSON and YAML can
spell them, and bytes that are no UTF-8 become them in the arguments of a program.
"""

from __future__ import annotations

import io
import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.command import read_env_file, take_any_text
from common.errors import UserError
from common.logger.media import Table
from common.logger.mirror import pass_on
from common.logger.sinks import JsonlSink
from common.logger.tensorboard_sink import TensorBoardSink
from common.own_code import code_of_the_user
from common.tools.calls import parse_calls
from common.tools.passages import read_documents
from common.tools.toolbox import make_tool, make_toolbox
from common.views import samples
from common.views.compare import __main__ as compare
from common.yaml_file import read_yaml
from tests.helpers import complain, load_script, read_rows, run_here, train_here
from tests.views.compared_runs import whole_run, write_run

HALF = "\ud83d"
BYTES = "caf\udce9"  # `café` in Latin-1, as Python passes it on


@pytest.mark.parametrize(
    "flags",
    [
        ("--system-prompt", BYTES),
        ("--wandb-notes", BYTES),
        ("--wandb-tags", "a", BYTES),
        ("--reward", f"{BYTES}.py:f"),
        ("--data-path", f"{BYTES}.jsonl"),
        ("--log-dir", BYTES),
        ("--model-name", BYTES),
        ("--objective", f"{BYTES}:f"),
    ],
)
def test_flags_are_refused(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    code, complaint = complain(load_script("experiment_base"), flags)
    assert code == 2
    assert complaint.startswith(f"error: {flags[0]} '")
    assert complaint.endswith("': is not UTF-8; write or name it in UTF-8\n")
    assert "caf\\udce9" in complaint
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_commands_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["samples", BYTES])
    with pytest.raises(SystemExit):
        samples.run_command(samples.main, samples.SamplesConfig)
    assert capsys.readouterr().err.endswith("is not UTF-8; write or name it in UTF-8\n")


def test_an_env_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (b"A=caf\xe9\n", b"A=a\0b\n"):
        (tmp_path / ".env").write_bytes(content)
        with pytest.raises(UserError, match=r"^\.env: is no UTF-8 text \("):
            read_env_file()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            b'a: 1\nname: "a\\ud83d"\n',
            r"line 2: not valid YAML \(half of a surrogate pair or a NUL",
        ),
        (b'a: 1\n\n- "b\\0"\n', "line 3: "),
        (b'a: [x, "b\\0"]\n', "line 1: not valid YAML .half of a surrogate pair or a NUL in 'b"),
        (b'"k\\0": 1\n', "line 1: not valid YAML .half of a surrogate pair or a NUL in 'k"),
        (b"a: 1\nb: \0\n", "line 2: special characters are not allowed .#x0000.; take it out"),
        (b"a: 1\r\nb: caf\xe9\r\n", "line 2: not UTF-8; save the file as UTF-8"),
    ],
)
def test_yaml_is_refused_by_its_line(tmp_path, content, complaint):
    file = tmp_path / "rubric.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^--rubric-file {file}, {complaint}") as caught:
        read_yaml("--rubric-file", file)
    assert "\n" not in str(caught.value)


def test_documents_are_read_with_marks_for_what_is_no_text(tmp_path):
    (tmp_path / "a.md").write_bytes(b"caf\xe9 by the river\0, a long way down")
    (tmp_path / "b.md").write_bytes("Größe".encode("utf-16"))
    (tmp_path / f"{BYTES}.md").write_bytes(b"c")
    documents = {document.source: document.text for document in read_documents(tmp_path)}
    assert documents == {
        "a.md": "caf� by the river�, a long way down",
        "b.md": "Größe",
        "caf�.md": "c",
    }


def test_what_a_model_spells_in_the_json_of_a_call_is_replaced():
    def shout(text: str) -> str:
        """Shout.

        Args:
            text: What.
        """
        return text

    toolbox = make_toolbox([make_tool(shout)])
    for name, status in (("shout", "ok"), ("sh\\ud83d", "unknown_tool")):
        written = (
            f'<tool_call>{{"name": "{name}", "arguments": {{"text": "a\\ud83d"}}}}</tool_call>'
        )
        (call,) = parse_calls(written, "hermes", toolbox)
        assert call.status == status
        f"{call.name}{call.complaint}{call.arguments}".encode()
    assert parse_calls(written.replace(name, "shout"), "hermes", toolbox)[0].arguments == {
        "text": "a�"
    }


def test_what_own_code_raises_is_replaced():
    raised = pytest.raises(UserError, match=r"^--reward mine:f: raised OSError: a� b")
    with raised as caught, code_of_the_user("--reward", "mine:f"):
        raise OSError(f"a{HALF}\nb")
    str(caught.value).encode()


def test_a_run_is_mirrored_whatever_its_names_and_texts_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log({"rollouts/batch_step": 1, f"rewards/{HALF}": 0.5})
    sink.log_media("examples/completion", f"a{HALF}\0", 1)
    sink.log_media(f"table{HALF}", Table([HALF], [[HALF]]), 1)
    sink.log({"rollouts/batch_step": 2, "rollouts/returns_mean": 1.0})
    sink.close(0)
    shown = TensorBoardSink(tmp_path)
    with path.open("rb") as file:
        pass_on(file, [shown])
    shown.close(0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("rewards/�")] == [0.5]
    assert [event.step for event in events.Scalars("rollouts/returns_mean")] == [2]
    assert {"examples/completion/text_summary", "table�/text_summary"} <= {
        *events.Tags()["tensors"]
    }


def test_what_cannot_be_printed_or_read_is_replaced(monkeypatch):
    printed, typed = io.BytesIO(), io.BytesIO(b"caf\xe9\n")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    take_any_text()
    sys.stdout.write(f"{HALF} é")
    sys.stdout.flush()
    assert printed.getvalue() == b"\\ud83d \\xe9"
    assert sys.stdin.readline() == "caf�\n"


def test_a_run_of_before_can_be_looked_at(tmp_path, capsys):
    """Its files hold halves of pairs, as there was no gate when it was written."""
    run = write_run(tmp_path, "old", whole_run(), wandb_notes=HALF, lr=1)
    other = write_run(tmp_path, "new", whole_run(), wandb_notes="x", lr=2)
    sample = {
        **{"step": 1, "split": HALF, "question": HALF, "completion": HALF, "ground_truth": HALF},
        **{"reward": 1.0, HALF: 0.5, "stop_reason": HALF},
        "conversation": [{"role": "assistant", "content": HALF}],
        "calls": [{"tool": HALF, "outcome": "error", "reply": HALF}],
    }
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    samples.main(samples.SamplesConfig(run))
    compare.main(compare.CompareConfig((str(run), str(other))))
    capsys.readouterr().out.encode()


NASTY = '''
class Room:
    """An environment that says what cannot be written down."""

    def reset(self, **row):
        return "Look\\ud83d\\0."

    def open(self, door: str) -> str:
        """Open a door.

        Args:
            door: Which.
        """
        return door

def odd(completion, task):
    return 0.5

def failing(completion, task):
    raise ValueError("half \\ud83d of it")
'''


@pytest.mark.slow
def test_a_run_among_such_texts_is_whole(tmp_path):
    (tmp_path / "nasty.py").write_text(NASTY)
    flags = [
        *("--environment", f"{tmp_path}/nasty.py:Room", "--max-length", "400", "--no-wandb"),
        *("--rollouts-per-step", "2", "--group-size", "4", "--max-steps", "2", "--eval-samples"),
        *("2", "--log-completions-interval", "1", "--run-name", "nasty"),
    ]
    experiment = "experiment_multiturn_tool_calling"
    said = train_here(
        *flags, "--reward", f"{tmp_path}/nasty.py:odd", experiment=experiment, log_dir=tmp_path
    )
    said.encode()
    assert "may lack rows" not in said
    run = tmp_path / experiment / "nasty"
    (run / "samples.jsonl").read_text(encoding="utf-8").encode()
    assert "Look��." in read_rows(run / "samples.jsonl")[0]["conversation"][0]["content"]
    events = EventAccumulator(str(run)).Reload()
    assert len(events.Scalars("rollouts/returns_mean")) == 2
    assert events.Scalars("training/completed")
    code, _, complaint = run_here(
        load_script(experiment),
        [*flags, "--run-name", "b", "--reward", f"{tmp_path}/nasty.py:failing"],
    )
    assert code == 2
    assert "raised ValueError: half � of it" in complaint
