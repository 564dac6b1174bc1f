"""YAML files of the user's, read safely, with `5e-7` a number as in YAML 1.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.printable import line_of, unstorable_in


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2, no key twice, and text that is storable."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if unstorable_in(value) is not None:
            problem = f"half of a surrogate pair or a NUL in {value[:60]!a}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None) or key in seen:
                problem = "is there twice" if key in seen else "is no name"
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} {problem}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)$|[-+]?(?:\d+\.\d*|\.\d+)$"),
    list("-+0123456789."),
)


def read_yaml(flag: str, path: Path) -> Any:
    """What a YAML file holds. Raises `UserError`, naming flag, file and line, if it is not one."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        where = f"{flag} {path}, line {line_of(error)}"
        raise UserError(f"{where}: not UTF-8; save the file as UTF-8") from None
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        where = f"{flag} {path}, line {text.count(chr(10), 0, error.position) + 1}"
        raise UserError(f"{where}: {error.reason} (#x{error.character:04x}); take it out") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{flag} {path}{where}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{flag} {path}: not valid YAML ({' '.join(str(error).split())})") from None
