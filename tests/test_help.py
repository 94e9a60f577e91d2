"""The overview, the help of each command, and options under their former names."""

import subprocess
import sys
import typing
from typing import Annotated

import pytest

from gleansr.cli import GROUPS, RENAMED, main
from gleansr.configs import Range
from gleansr.serving.config import ServingConfig

COMMANDS = [command for group in GROUPS.values() for command in group]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status, and all that is printed."""
    status = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_all_commands(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]):
    status, text = printed(capsys, *arguments)
    assert status == 0
    assert all(f"  {command} " in text for command in COMMANDS)
    assert text.count("  gleansr ") == 3  # examples


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_without_noise(capsys: pytest.CaptureFixture[str], command: str):
    status, text = printed(capsys, command, "--help")
    assert status == 0
    assert printed(capsys, "help", command) == (0, text)
    assert "(default: None)" not in text
    assert "--no-" not in text
    assert "{None}" not in text
    assert text.count(f"\n- gleansr {command}") >= 1


@pytest.mark.parametrize(("command", "action"), [("models", "info"), ("models", "convert"), ("data", "prepare"), ("data", "preview")])
def test_each_action_has_help_of_its_own_options(capsys: pytest.CaptureFixture[str], command: str, action: str):
    status, text = printed(capsys, command, action, "--help")
    assert (status, printed(capsys, "help", command, action)) == (0, (0, text))
    assert f"- gleansr {command} {action} " in text
    assert ("--dtype" in text) == (action == "convert")
    assert ("--scales" in text) == (action == "prepare")
    assert printed(capsys, command, f"{action}s", "x")[1].endswith(f"did you mean {action}?\n")


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("upscale", ("output", "model", "photo", "video", "cluster", "device")),
        ("evaluate", ("data", "metric", "output", "device")),
        ("compare", ("method", "data", "metric", "device")),
        ("figure", ("output", "image", "method", "layout", "device")),
    ],
)
def test_long_help_has_groups(capsys: pytest.CaptureFixture[str], command: str, groups: tuple[str, ...]):
    _, text = printed(capsys, command, "--help")
    assert all(f" {group} options " in text for group in groups)


def test_help_leaves_the_classes_of_the_library_as_they_are(capsys: pytest.CaptureFixture[str]):
    status, text = printed(capsys, "serve", "--help")
    assert status == 0
    assert "--port N" in text
    hints = typing.get_type_hints(ServingConfig, include_extras=True)
    assert hints["port"] == Annotated[int, Range(0, 65535)]
    assert hints["host"] is str


def test_an_unknown_command_or_option_gets_the_nearest_once(capsys: pytest.CaptureFixture[str]):
    status, text = printed(capsys, "upscal", "x.png")
    assert (status, text.strip()) == (2, "gleansr: there is no command 'upscal'; did you mean upscale?")
    status, text = printed(capsys, "frobnicate")
    assert status == 2
    assert "there are upscale, retouch" in text
    status, text = printed(capsys, "upscale", "x.png", "--modle", "y")
    assert status == 2
    assert text.count("--model") == 1


@pytest.mark.parametrize("former", RENAMED)
def test_former_names_of_options_still_work(capsys: pytest.CaptureFixture[str], former: str):
    _, text = printed(capsys, "upscale", "missing.png", former, "1")
    assert f"{former} is now called {RENAMED[former]}" in text
    assert printed(capsys, "upscale", "missing.png", f"{former}=1")[1].startswith(f"gleansr: {former} is now called")


def test_the_overview_loads_neither_torch_nor_tyro():
    code = "import sys; from gleansr.cli import main; main(['--help']); print(sorted({'torch', 'tyro', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_help_of_commands_does_not_load_torch():
    code = f"""
import contextlib, sys
from gleansr.cli import main
for command in {COMMANDS}:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    assert "torch" not in sys.modules, command
"""
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_ctrl_c_during_imports_is_quiet():
    code = """
import builtins, gleansr.__main__ as program
real = builtins.__import__
def stop(name, *rest):
    if name == "gleansr.cli":
        raise KeyboardInterrupt
    return real(name, *rest)
builtins.__import__ = stop
program.main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "")
