"""The command line: one thin file per command, imported when it is called."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from gleansr.allocator import keep_freed_memory
from gleansr.errors import GleansrError, InternalError, one_line
from gleansr.files import printable
from gleansr.version import version

GROUPS = {
    "Enlarge and retouch": {
        "upscale": "Enlarge images, folders of images, photos and videos",
        "retouch": "Make a retouched image realistic, in one forward pass",
        "serve": "A page in the browser and an HTTP service, for both",
        "page": "The page as a static site, whose models run in the browser",
    },
    "Models": {
        "models": "List models, inspect, convert and download them",
        "export": "Write a model as an ONNX file and check it",
        "doctor": "Check this machine and this installation",
    },
    "Research": {
        "evaluate": "Measure a model on ground-truth images",
        "compare": "Compare GLEAN with PULSE, DGP, ESRGAN+ and bicubic",
        "figure": "Draw a figure of the paper from your images",
        "data": "Prepare images for training, and preview them",
        "train": "Train a GLEAN or a baseline",
        "train-bank": "Train a StyleGAN2 bank",
        "train-classifier": "Train the classifier of what an image shows",
    },
}
"""Commands and what they do. The function of `train-bank` is `gleansr.cli.train.train_bank`, of `train-classifier` likewise, of any other
`gleansr.cli.NAME.NAME`. In its place, `models` and `data` have functions by the name of an action, the first of which is the default."""

EXAMPLES = """\
gleansr upscale cat.jpg                      the result is cat_8x.png
gleansr upscale me.jpg --photo -m faces-8x   a whole photo, its faces by faces-8x
gleansr upscale small/ -o large/             a folder; run it again to resume\
"""

EXIT_STATUS = """\
0 done, 1 some work failed, 2 wrong request, 3 nothing found in a photo (--require-object),
70 a fault of gleansr itself (please report it), 130 and 143 stopped by a signal\
"""

RENAMED = {
    "--factor": "--scale",
    "--find-every": "--detect-every",
    "--report": "--sidecar",
    "--keep": "--keep-detail",
    "--set": "--option",
    "--consistent": "--back-project",
    "--consistent-strength": "--back-project-strength",
    "--low": "--lr",
    "--pictures": "--images",
}
"""Options that had other names before; these still work."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line on `args`, by default those of the process, and exits."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _run(arguments)
    except GleansrError as error:
        if debug:
            raise
        sys.exit(_fail(f"{error}", error.exit_code))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:
        if debug:
            raise
        sys.exit(_fail(f"{getattr(error, 'filename', None) or type(error).__name__}: {one_line(error)}", 1))
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; --debug shows where"
        cause = f"internal error: {type(error).__name__}: {one_line(error)}"
        sys.exit(_fail(f"{cause}; this is a fault of gleansr, not of your files: please report it{hint}", InternalError.exit_code))
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_overview()
        return
    if arguments[0] in ("-V", "--version"):
        print(f"gleansr {version()}")
        return
    name, rest = arguments[0], [_present(one) for one in arguments[1:]]
    _check_known(name, [command for group in GROUPS.values() for command in group], "command")
    module = importlib.import_module(f"gleansr.cli.{name.partition('-')[0]}")
    actions: dict[str, Callable[..., None]] | None = getattr(module, "ACTIONS", None)
    if actions is None:
        command = getattr(module, name.replace("-", "_"))
    elif rest[:1] in (["-h"], ["--help"]):
        _print_actions(name, actions)
        return
    else:
        action = rest.pop(0) if rest and not rest[0].startswith("-") else next(iter(actions))
        _check_known(action, list(actions), f"action of gleansr {name}")
        name, command = f"{name} {action}", actions[action]
    import tyro

    from gleansr.cli.options import registry

    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    tyro.cli(command, prog=f"gleansr {name}", args=rest, config=markers, registry=registry())


def _check_known(name: str, known: list[str], what: str) -> None:
    """Exits with the nearest name unless `name` is known."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there {'are' if len(known) > 1 else 'is'} {', '.join(known)}"
        sys.exit(_fail(f"there is no {what} {name!r}; {hint}", 2))


def _present(argument: str) -> str:
    """An argument with the present name of its option."""
    name, equals, value = argument.partition("=")
    if name not in RENAMED:
        return argument
    print(f"gleansr: {name} is now called {RENAMED[name]}", file=sys.stderr)
    return f"{RENAMED[name]}{equals}{value}"


def _print_overview() -> None:
    print("usage: gleansr COMMAND [OPTIONS]\n\nLarge-factor image super-resolution with a generative latent bank.")
    for group, commands in GROUPS.items():
        print(f"\n{group}:")
        for name, summary in commands.items():
            print(f"  {name:18}{summary}")
    print("\nExamples:")
    print("\n".join(f"  {line}" for line in EXAMPLES.splitlines()))
    print(
        "\n`gleansr COMMAND --help` lists the options of a command, --version prints the version, --debug shows the traceback of an error."
    )
    print(f"Exit status: {EXIT_STATUS}")


def _print_actions(name: str, actions: dict[str, Callable[..., None]]) -> None:
    print(f"usage: gleansr {name} [{'|'.join(actions)}] [OPTIONS]\n")
    examples = []
    for action, function in actions.items():
        summary, _, rest = (function.__doc__ or "").partition("\n")
        print(f"  {action:12}{summary}")
        examples += [line.strip() for line in rest.splitlines() if line.strip().startswith("- gleansr")]
    print("\n" + "\n".join(examples) + f"\n\n`gleansr {name} ACTION --help` lists the options.")


def _fail(message: str, status: int) -> int:
    """Prints an error; returns the exit status that it means."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(printable(f"gleansr: {message}"), markup=False, highlight=False, style="red")
    return status
