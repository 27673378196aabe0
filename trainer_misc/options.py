"""Settings of the trainers: flags of a command line, or the same names in a TOML file.

The names are those of the reference's trainers, with `_` or `-`. No flag is taken in silence
without an effect: one that has none says what takes its place.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flag:
    """One setting.

    Attributes:
        name: As the reference has it, with underscores.
        default: Its value where nobody says one. A switch has False, or True if it is on.
        help: What it does.
        kind: What makes a value of text; by default the type of `default`.
        choices: All that is allowed.
        instead: What takes the place of a flag without effect.
        check: Raises a ValueError or TypeError for a value that is not allowed.
    """

    name: str
    default: Any
    help: str = ""
    kind: Callable[[str], Any] | None = None
    choices: tuple[Any, ...] | None = None
    instead: str = ""
    check: Callable[[str, Any], object] | None = None

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value on the command line."""
        return isinstance(self.default, bool)

    def add_to(self, parser: argparse._ArgumentGroup) -> None:
        """Let `parser` know it, with underscores and with dashes."""
        names = list(dict.fromkeys([f"--{self.name.replace('_', '-')}", f"--{self.name}"]))
        text = f"without effect: {self.instead}" if self.instead else self.help
        text = text.replace("%", "%%")
        if self.is_switch:
            if self.default:
                text += " (on by default)"
            on_or_off = argparse.BooleanOptionalAction if self.default else "store_true"
            parser.add_argument(
                *names, action=on_or_off, default=argparse.SUPPRESS, help=text, dest=self.name
            )
            if self.default:  # argparse knows `--no-` alone
                parser.add_argument(
                    f"--no_{self.name}",
                    action="store_false",
                    default=argparse.SUPPRESS,
                    help=argparse.SUPPRESS,
                    dest=self.name,
                )
            return
        if self.default is not None and not self.instead:
            text += f" (default: {self.default})"
        parser.add_argument(
            *names,
            type=self.kind or type(self.default),
            choices=self.choices,
            default=argparse.SUPPRESS,
            help=text,
            dest=self.name,
            metavar=None if self.choices else self.name.rpartition("_")[2].upper(),
        )

    def checked(self, value: Any, source: str) -> Any:
        """`value` as a file has it, in the kind that the command line would make of it.

        Raises:
            ValueError: It is of another kind, or not allowed.
        """
        wanted = bool if self.is_switch else self.kind or type(self.default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(wanted, type) and not isinstance(value, wanted) and wanted is not Path:
            raise ValueError(f"{source}: {self.name} must be a {wanted.__name__}, got {value!r}")
        if not isinstance(wanted, type) or wanted is Path:
            value = wanted(value)
        if self.choices and value not in self.choices:
            allowed = ", ".join(map(str, self.choices))
            raise ValueError(f"{source}: {self.name} must be one of {allowed}, got {value!r}")
        return value


def parse(
    description: str | None, groups: Mapping[str, Sequence[Flag]], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Read the command line, and the file that its `--config` names; flags win.

    Args:
        description: What `--help` says first.
        groups: The flags, under headings.
        arguments: By default those of this process.

    Raises:
        SystemExit: They are no good (2), or only help was asked for (0).
    """
    flags = {flag.name: flag for group in groups.values() for flag in group}
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--config", type=Path, help="TOML file with settings by these names")
    for title, group in groups.items():
        section = parser.add_argument_group(title)
        for flag in group:
            flag.add_to(section)
    given = vars(parser.parse_args(arguments))
    try:
        path = given.pop("config", None)
        given = (read_settings(path, flags) if path is not None else {}) | given
        for name, value in given.items():
            check = flags[name].check
            if check is not None and value is not None:
                check(name, value)
    except (OSError, ValueError, TypeError) as error:
        parser.error(str(error))
    for name in given:
        if flags[name].instead:
            logger.warning("--%s has no effect: %s", name, flags[name].instead)
    return argparse.Namespace(**{name: flag.default for name, flag in flags.items()} | given)


def read_settings(path: Path, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """What a TOML file says, by the names of flags; tables in it are only for order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TOML, or has a setting that no flag is called, or a bad value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    settings: dict[str, Any] = {}
    for entries in (content, *(entry for entry in content.values() if isinstance(entry, dict))):
        for key, value in entries.items():
            if isinstance(value, dict) and entries is content:
                continue
            name = key.replace("-", "_")
            if name not in flags:
                near = difflib.get_close_matches(name, flags, n=1)
                hint = f", perhaps {near[0]}" if near else ""
                raise ValueError(f"{path}: no setting is called {key!r}{hint}")
            if name in settings:
                raise ValueError(f"{path}: {key!r} appears twice")
            settings[name] = flags[name].checked(value, str(path))
    return settings
