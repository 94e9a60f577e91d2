"""The command line: one thin file per command."""

import os
import sys
import traceback
from collections.abc import Sequence

import tyro
from rich.console import Console

from gleansr.allocator import keep_freed_memory
from gleansr.cli.compare import compare
from gleansr.cli.data import data
from gleansr.cli.doctor import doctor
from gleansr.cli.evaluate import evaluate
from gleansr.cli.export import export
from gleansr.cli.figure import figure
from gleansr.cli.models import models
from gleansr.cli.retouch import retouch
from gleansr.cli.serve import serve
from gleansr.cli.train import train, train_bank
from gleansr.cli.upscale import upscale
from gleansr.errors import GleansrError, InternalError, one_line
from gleansr.files import printable
from gleansr.version import version

DESCRIPTION = (
    "Large-factor image super-resolution with a generative latent bank. Exit status: 0 done, 1 some work failed, "
    "2 wrong request, 3 nothing found in a photograph that --require-object wants something in, 70 a fault of gleansr itself, which please "
    "report, 130 and 143 stopped by a signal. --debug, anywhere, shows the traceback of an error. --version prints the version; "
    "`gleansr help COMMAND` is `gleansr COMMAND --help`."
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line on `args`, by default those of the process, and exits."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if arguments == ["--version"]:
        print(f"gleansr {version()}")
        return
    if arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    commands = {
        "upscale": upscale,
        "retouch": retouch,
        "serve": serve,
        "models": models,
        "export": export,
        "evaluate": evaluate,
        "compare": compare,
        "figure": figure,
        "train": train,
        "train-bank": train_bank,
        "data": data,
        "doctor": doctor,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="gleansr",
            description=DESCRIPTION,
            args=arguments,
        )
    except GleansrError as error:
        if debug:
            raise
        sys.exit(_told(f"{error}", error.exit_code))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        sys.exit(_told(f"{getattr(error, 'filename', None) or type(error).__name__}: {one_line(error)}", 1))
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; --debug shows where"
        said = f"internal error: {type(error).__name__}: {one_line(error)}"
        sys.exit(_told(f"{said}; this is a fault of gleansr, not of your files: please report it{hint}", InternalError.exit_code))
    except KeyboardInterrupt:
        sys.exit(130)


def _told(message: str, status: int) -> int:
    """Prints an error; returns the exit status that it means."""
    Console(stderr=True, soft_wrap=True).print(printable(f"gleansr: {message}"), markup=False, highlight=False, style="red")
    return status
