"""The door of the command line: finds the command, imports that one module, turns errors into messages and exit codes.

Arguments come in, an exit code goes out (0 done, 1 failed or refused, 2 wrong usage or configuration, 130 interrupted).
A command's module offers ``add_parser(subparsers)`` and ``run(arguments) -> int``; it is imported only when its command
is asked for, so that ``edgeopt --help`` is instant and ``edgeopt serve`` carries nothing that it does not need.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias

from edgeopt.errors import ConfigError, EdgeoptError, UsageError

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns
    Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

_LONGEST_LINE = 4096
DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, the module in ``edgeopt.cli`` that holds it, and its line in ``edgeopt --help``."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("demo", "demo", "the whole job in one minute, with nothing configured"),
    Command("serve", "serve", "the daemon: watch the inbox, optimize, publish"),
    Command("optimize", "optimize", "optimize one model in the foreground"),
    Command("accept", "accept", "choose on this device among what was prepared elsewhere"),
    Command("merge", "merge", "several models into one graph"),
    Command("bench", "bench", "measure one artifact, or two against each other"),
    Command("inspect", "inspect", "what a model or an artifact is"),
    Command("verify", "verify", "check a published version: checksums, manifest, does it run"),
    Command("status", "state", "the daemon's state in a few lines"),
    Command("jobs", "state", "the jobs, newest first"),
    Command("explain", "state", "why a file or a model is where it is"),
    Command("retry", "steer", "put a failed, held or rejected job back into the queue"),
    Command("cancel", "steer", "stop a job"),
    Command("pin", "steer", "keep a version from being replaced or removed"),
    Command("rollback", "steer", "make an earlier version the current one"),
    Command("gc", "steer", "remove what nothing needs any more"),
    Command("doctor", "doctor", "what this device can do, and what is missing"),
    Command("config", "config", "check or show the configuration"),
)


class CommandModule(Protocol):
    """What every module behind a command offers."""

    def add_parser(self, subparsers: Subparsers) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are :class:`UsageError`, so that they are printed like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"Run `{self.prog} --help` to see what it takes.")


class _ShowVersion(argparse.Action):
    """``--version``; unlike argparse's own, it looks the version up only when it is asked for."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        import edgeopt

        del namespace, values, option_string
        print(f"edgeopt {edgeopt.__version__}")
        parser.exit()


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code and prints every error as a message and a hint, on stderr."""
    sys.excepthook = _report_bug
    try:
        return _dispatch(list(argv))
    except UsageError as error:
        _print_error(error)
        return WRONG_USAGE
    except EdgeoptError as error:
        _print_error(error)
        return FAILED
    except KeyboardInterrupt:
        print("edgeopt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output left (`edgeopt jobs | head`); the interpreter must not complain at its own exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if _debugging():
            raise
        _say(f"edgeopt: {_describe(error)}")
        return FAILED


def build_parser(name: str | None = None) -> tuple[argparse.ArgumentParser, CommandModule | None]:
    """The root parser, complete for the command ``name`` and with a line in the help for each of the others."""
    parser = Parser(
        prog="edgeopt",
        description="Turns models dropped into a folder into the fastest version this device can run that is still right.",
        epilog="Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration, 130 interrupted.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    asked = next((command for command in COMMANDS if command.name == name), None)
    module: CommandModule | None = None
    if asked is not None:
        module = importlib.import_module(f"edgeopt.cli.{asked.module}")
        module.add_parser(subparsers)
    for command in COMMANDS:
        if asked is None or command.module != asked.module:
            subparsers.add_parser(command.name, help=command.summary, add_help=False)
    return parser, module


def _dispatch(argv: list[str]) -> int:
    name = next((argument for argument in argv if not argument.startswith("-")), None)
    if name is not None and argv[0] == name and all(command.name != name for command in COMMANDS):
        raise _unknown(name)
    parser, module = build_parser(name)
    arguments = parser.parse_args(argv)
    if module is None:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    code = module.run(arguments)
    sys.stdout.flush()
    return code


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1)
    hint = f"Did you mean `edgeopt {near[0]}`?" if near else "Run `edgeopt --help` to see the commands."
    return UsageError(f"{name!r:.80} is no command", hint=hint)


def _print_error(error: EdgeoptError) -> None:
    if _debugging():
        import traceback

        traceback.print_exception(error)
    mistakes = error.mistakes if isinstance(error, ConfigError) else ()
    _say(f"edgeopt: {error.message}", *(f"  {mistake}" for mistake in mistakes))
    if error.hint:
        _say(f"  {error.hint}")


def _say(*texts: str) -> None:
    """Print on stderr with everything escaped that a terminal would act on: messages quote names out of drops."""
    from edgeopt.daemon.printable import printable

    for line in (line for text in texts for line in text.split("\n")):
        print(printable(line, limit=_LONGEST_LINE), file=sys.stderr)


def _describe(error: OSError) -> str:
    named = f"{error.filename}: " if error.filename is not None else ""
    return f"{named}{error.strerror or error}"


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last line of defence: what nobody foresaw is one line, too, unless EDGEOPT_DEBUG asks for the traceback."""
    if _debugging():
        sys.__excepthook__(kind, error, trace)
        return
    _say(f"edgeopt: internal error: {kind.__name__}: {error}")
    _say("  Run it again with EDGEOPT_DEBUG=1 and report the traceback.")


def _debugging() -> bool:
    return os.environ.get("EDGEOPT_DEBUG", "") not in ("", "0")
