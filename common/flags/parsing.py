"""From the command line to a config."""

from __future__ import annotations

import dataclasses
import difflib
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import docstring_parser
import tyro

from common.command import complaint_as_line, refuse_unstorable
from common.errors import UserError
from common.flags.markers import OWN_CODE, marked
from common.flags.train_config import ConfigType, OpenDefault, TrainConfig
from common.models.load import is_bundled
from common.own_code import anchored

# Names that older guides use.
ALIASES = {"lr": ["--learning-rate"], "train_batch_size": ["--batch-size"]}


def parse_config(
    config_class: type[ConfigType],
    arguments: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
) -> ConfigType:
    """Read flags into the flat config class; `defaults` replace those of the class.

    tyro groups its help by nested class, so the flags are parsed as one nested class per class that
    declares them and then laid flat. Raises `UserError` for anything that is not a valid flag.
    """
    groups = _flag_groups(config_class, defaults or {})
    _reject_unknown_flags(arguments, groups)
    nested = dataclasses.make_dataclass(
        "Flags",
        [
            (name, Annotated[group, tyro.conf.OmitArgPrefixes], dataclasses.field(default=group()))
            for name, group in groups.items()
        ],
        frozen=True,
    )
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed = tyro.cli(nested, args=arguments, description=config_class.__doc__)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(complaint_as_line(complaint.getvalue())) from None
    open_flags = {
        field.name
        for field in dataclasses.fields(config_class)
        if isinstance(field.default, OpenDefault)
    }
    values = {
        field.name: getattr(getattr(parsed, name), field.name)
        for name, group in groups.items()
        for field in dataclasses.fields(group)
    }
    given = {
        name: value for name, value in values.items() if name not in open_flags or value is not None
    }
    own_code = marked(config_class, OWN_CODE)
    flags = {name: _anchored(name, value, name in own_code) for name, value in given.items()}
    refuse_unstorable(flags)
    return config_class(**flags)


def _anchored(name: str, value: Any, is_own_code: bool) -> Any:
    """Paths as absolute ones, since a run may be resumed from another directory."""
    if name == "model_name" and not is_bundled(value) and Path(value).is_dir():
        return str(Path(value).absolute())
    if is_own_code and isinstance(value, str):
        return anchored(value, Path.cwd())
    if is_own_code and isinstance(value, tuple):
        return tuple(anchored(path, Path.cwd()) for path in value)
    return value.absolute() if isinstance(value, Path) else value


def _flag_groups(config_class: type[TrainConfig], defaults: Mapping[str, Any]) -> dict[str, type]:
    """A dataclass per class that declares flags, the experiment's own first."""
    declaring = [cls for cls in config_class.__mro__ if "__annotations__" in vars(cls)]
    help_texts = {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for cls in reversed(declaring)
        for parameter in docstring_parser.parse_from_object(cls).params
    }
    hints = get_type_hints(config_class)
    shared_home = {
        name: cls.__name__
        for cls in TrainConfig.__mro__
        for name in vars(cls).get("__annotations__", {})
    }
    members: dict[str, list] = {}
    for field in dataclasses.fields(config_class):
        home = shared_home.get(field.name, "ExperimentFlags").removesuffix("Flags").lower()
        hint = hints[field.name]
        is_open = isinstance(field.default, OpenDefault)
        annotated = Annotated[
            hint | None if is_open else hint,
            tyro.conf.arg(
                help=help_texts[field.name],
                help_behavior_hint=f"(default: {field.default})" if is_open else None,
                aliases=ALIASES.get(field.name),
            ),
        ]
        own = None if is_open else field.default
        default = dataclasses.field(default=defaults.get(field.name, own))
        members.setdefault(home, []).append((field.name, annotated, default))
    order = sorted(members, key=lambda home: home != "experiment")
    return {home: dataclasses.make_dataclass(home, members[home], frozen=True) for home in order}


def _reject_unknown_flags(arguments: Sequence[str], groups: dict[str, type]) -> None:
    known = {"--help", *chain.from_iterable(ALIASES.values())}
    for group in groups.values():
        for field in dataclasses.fields(group):
            flag = field.name.replace("_", "-")
            is_switch = get_args(field.type)[0] is bool
            known |= {f"--{flag}", f"--no-{flag}"} if is_switch else {f"--{flag}"}
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            nearest = difflib.get_close_matches(flag, sorted(known), n=1)
            remedy = f"did you mean {nearest[0]}?" if nearest else "see --help"
            raise UserError(f"{flag}: unknown flag; {remedy}")
