"""`mapformers`: the commands, and how errors read: one line on stderr, exit code 2."""

import os
import sys

import typer

from mapformers.cli import catalog_commands, run_commands
from mapformers.cli.audit_command import audit
from mapformers.cli.bench_command import bench
from mapformers.cli.choose_command import choose
from mapformers.cli.compare_command import compare
from mapformers.cli.doctor import doctor
from mapformers.cli.inspect_command import inspect
from mapformers.cli.map_command import map_
from mapformers.core.errors import MapformersError, require_known

app = typer.Typer(
    help="Efficient attention for long sequences: train, score, generate, and see what a mechanism sees.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {
    "train": run_commands.train,
    "eval": run_commands.evaluate,
    "generate": run_commands.generate,
    "inspect": inspect,
    "list": catalog_commands.list_entries,
    "show": catalog_commands.show,
    "audit": audit,
    "bench": bench,
    "choose": choose,
    "compare": compare,
    "map": map_,
    "doctor": doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 2 for bad input, 130 when interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        if arguments and not arguments[0].startswith("-"):
            require_known("mapformers", "command", arguments[0], COMMANDS)
        code = app(arguments, prog_name="mapformers", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except MapformersError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: leave quietly
        return 1
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's errors about the command line itself
        if usage is None:
            raise
        return _fail(f"{usage()} See: mapformers {arguments[0] if arguments else ''} --help")


def _fail(message: str, code: int = 2) -> int:
    """One line on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code
