"""Flags as a run keeps them, and as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from common.errors import UserError
from common.flags.spelling import as_given
from common.flags.train_config import TrainConfig


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The flags as JSON has them: paths as text, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(config_class: type[TrainConfig], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that `saved` has, each of the type that its class declares.

    Raises `UserError` for a value that is none of that type.
    """
    hints = get_type_hints(config_class, include_extras=True)
    names = [field.name for field in dataclasses.fields(config_class) if field.name in saved]
    return {name: _restored(name, hints[name], saved[name]) for name in names}


def _restored(name: str, hint: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UserError(
            f"{as_given(name, value)}: so says config.json of the run to resume, but {why}; "
            "put it back, or start a new run without --resume"
        ) from None
