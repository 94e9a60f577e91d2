"""The benchmarks: counts and tables are correct at any speed, all run end to end, and invalid requests fail at once."""

import argparse
import copy
import functools
import json
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import forward, measure, networks, pipeline, report, roofline, searches, tables, training
from benchmarks.ceilings import NAMES, Ceilings
from benchmarks.counting import Cost, counted, total
from benchmarks.machine import described, machine
from benchmarks.networks import GLEANSR, PEER, PLAIN
from benchmarks.stages import STAGES, stage_seconds
from gleansr.checkpoints import native
from gleansr.errors import RequestError
from gleansr.models.glean import GLEAN, GLEANConfig, lighten
from gleansr.models.rrdb import RRDBNet, RRDBNetConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator

CPU = torch.device("cpu")
Main = Callable[[Sequence[str]], None]


def tiny(in_size: int = 8, out_size: int = 16) -> GLEANConfig:
    channels = (12, 12, 10, 8, 8)[: {8: 2, 16: 3, 32: 4, 64: 5}[out_size]]
    return GLEANConfig(in_size, StyleGAN2Config(channels, code_dim=8), n_rrdb=1, features=8, growth=4, out_features=8)


def costs(config: GLEANConfig, batch: int = 2) -> dict[str, Cost]:
    return networks.costs_of(networks.Network("tiny", config.in_size, config.out_size, config, trained=False), batch)


def architecture(model: Path) -> GLEANConfig:
    return networks.find_network(str(model), None, None, (64, 1024)).architecture


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No process is started; returns the arguments that they would have got. Each has 100 MiB, the first one 50."""
    asked: list[list[str]] = []

    def child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
        asked.append([module, *arguments])
        return {"peak_mib": 50.0 if len(asked) == 1 else 100.0, "seconds": [0.1, 0.2, 0.4]}

    monkeypatch.setattr(forward, "child", child)
    monkeypatch.setattr(training, "child", child)
    return asked


def refused(main: Main, arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of a benchmark, and the last line that it says."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert not said.out
    assert "Traceback" not in said.err
    return int(ended.value.code or 0), said.err.strip().splitlines()[-1]


# --------------------------------------------------------------------------------------------------- counting


def test_arithmetic_and_numbers_of_a_small_network_are_those_computed_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(5, 2, 3, stride=2), nn.Flatten(), nn.Linear(18, 4))
    with torch.no_grad():
        found = counted(functools.partial(model, torch.zeros(2, 3, 8, 8)))
    first, second, last = (2 * 2 * 5 * 3 * 9 * 8 * 8, 2 * 2 * 2 * 5 * 9 * 3 * 3, 2 * 2 * 18 * 4)
    weights = sum(parameter.numel() for parameter in model.parameters())
    maps = 2 * (3 * 64 + 5 * 64 + 5 * 64 + 2 * 9 + 18 + 4)  # what convolutions and linear layer read and write, no activation
    assert found == {"rest": Cost(first + second + last, weights + maps)}


@pytest.mark.parametrize("config", [tiny(), tiny(8, 32), lighten(tiny(16, 64))], ids=["8 to 16", "8 to 32", "light, 16 to 64"])
def test_arithmetic_of_a_glean_is_that_of_pytorchs_counter_and_all_in_its_stages(config: GLEANConfig):
    found = costs(config, batch=2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        GLEAN(config).eval()(torch.zeros(2, 3, config.in_size, config.in_size))
    assert total(found).flop == counter.get_total_flops()
    assert {stage for stage, cost in found.items() if cost.flop} == set(STAGES)


def test_backward_passes_count():
    layer, lr = nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 6, 6)
    forwards = total(counted(lambda: layer(lr))).flop
    both = total(counted(lambda: layer(lr).sum().backward())).flop
    assert both == 2 * forwards  # the weights' gradient costs as much; the image needs none


def test_costs_add_up_and_their_intensity_follows_the_precision():
    once = Cost(600, 25)
    assert once + once == once * 2 == total({"encoder": once, "bank": once})
    assert once.as_dict("float32")["intensity"] == 6
    assert once.as_dict("bfloat16")["intensity"] == 12


def test_stages_take_time_together_and_nothing_shows_where_there_are_none():
    model, lr = GLEAN(tiny()).eval(), torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        spent = stage_seconds(functools.partial(model, lr), model, CPU, 1)
        assert set(spent) == set(STAGES)
        assert all(seconds > 0 for seconds in spent.values())
        assert stage_seconds(functools.partial(nn.Conv2d(3, 3, 3), lr), nn.Identity(), CPU, 1) == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_small_ceilings_are_measured_and_their_arithmetic_is_right():
    ceilings = Ceilings("bfloat16", CPU, small=True)
    assert ceilings.gflop == {"matrix_gflops": 2 * 16**3 / 1e9, "convolution_gflops": 2 * 4 * 4 * 9 * 8 * 8 / 1e9}
    found = measure.interleaved(ceilings.runs("bfloat16 "), 3)
    assert list(found) == [f"bfloat16 {name}" for name in NAMES]
    assert all(np.isfinite(value) and value > 0 for values in found.values() for value in values)


def test_runs_take_turns_after_the_warm_up():
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = measure.interleaved({name: functools.partial(run, name) for name in "ab"}, 2)
    assert "".join(order) == "ababab"
    assert found == {"a": [3, 5], "b": [4, 6]}


# --------------------------------------------------------------------------------------------------- reports


def made_report() -> report.Report:
    """Of made-up seconds: 100 GFLOP, 1 GB in float32, ceilings of 400 and 200 GFLOP/s."""
    cost, ceilings = Cost(100 * 10**9, 250 * 10**6), {"convolution_gflops": 400.0, "matrix_gflops": 200.0, "copy_gbs": 10.0}
    half = {name: 4 * value for name, value in ceilings.items()}
    ours = report.entry(GLEANSR, "float32", [0.5, 1.0, 4.0], cost, ceilings, 2) | {
        "peak_mib": 50.0,
        "differences": {"mmagic, float32": 3e-6},
    }
    bfloat16 = report.entry(GLEANSR, "bfloat16", [0.25, 0.25, 0.25], cost, half, 2) | {"peak_mib": 60.0}
    stage = Cost(20 * 10**9, 10**8).as_dict("float32") | {"seconds": 0.2, "gflops": 100.0}
    peer = report.entry(PEER, "float32", [2.0, 3.0, 2.5], cost, ceilings, 2) | {"peak_mib": 100.0, "stages": {"bank": stage}}
    onnx = report.entry("ONNX Runtime", "float32", [2.0, 2.0, 2.0], cost, ceilings, 2)
    case = {"batch": 2, "contestants": [ours, bfloat16, peer, onnx], "ceilings": {"float32": ceilings, "bfloat16": half}}
    return {"benchmark": "forward", "unit": "pass", "network": {"label": "made"}, "machine": machine(CPU), "cases": [case]}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_has_medians_ratios_and_shares_of_made_up_seconds():
    head, _, *rows = cells(report.speed_table(made_report()))
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["made"], row["against"]) for row in found] == [
        ("float32 (100 GFLOP)", "mmagic, float32"),
        ("float32 (100 GFLOP)", "ONNX Runtime, float32"),
        ("bfloat16 (100 GFLOP)", "mmagic, float32"),
    ]
    assert found[0] == {
        "made": "float32 (100 GFLOP)",
        "batch": "2",
        "gleansr, s per pass": "1.00 (0.500 to 4.00)",
        "against": "mmagic, float32",
        "its s": "2.50",
        "faster": "2.50x",
        "images/s": "2.00",
        "GFLOP/s": "100",
        "of the convolution's speed": "0.25",
        "of the matrix product's": "0.50",
        "peak memory, MiB": "50 against 100: 0.50",
        "largest difference": "3.0e-06",
    }
    assert found[2]["faster"] == "10.0x"
    assert [row["largest difference"] for row in found[1:]] == ["-", "-"]


def test_half_precision_is_beside_mmagics_in_both():
    [case] = made_report()["cases"]
    case["contestants"].append(case["contestants"][2] | {"precision": "float16"})
    assert [(one["precision"], other["name"], other["precision"]) for one, other in report.baselines(case) if other] == [
        ("float32", PEER, "float32"), ("float32", "ONNX Runtime", "float32"), ("bfloat16", PEER, "float32"), ("bfloat16", PEER, "float16"),
    ]  # fmt: skip


def test_stages_and_ceilings_have_their_tables():
    made = made_report()
    assert cells(report.stage_table(made))[2:] == [["mmagic, float32: bank", "20.0", "400", "200", "100", "0.25"]]
    assert cells(report.ceiling_table(made))[2:] == [["float32", "2", "200", "400", "10.0"], ["bfloat16", "2", "800", "1,600", "40.0"]]
    for one in made["cases"][0]["contestants"]:
        one.pop("stages", None)
    assert report.stage_table(made) == ""


@pytest.mark.parametrize(
    ("value", "said"), [(None, "-"), (0, "0"), (0.01234, "0.0123"), (9.996, "10.0"), (1385.4, "1,385"), (99.96, "100")]
)
def test_numbers_have_three_digits(value: float | None, said: str):
    assert tables.digits(value) == said


def test_columns_without_a_number_are_left_out():
    assert cells(tables.markdown(["", "a", "b"], [["x", "-", "1"], ["y", "-", "-"]])) == [
        ["", "b"], ["---", "---:"], ["x", "1"], ["y", "-"],
    ]  # fmt: skip


def test_a_written_report_is_printed_and_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = made_report()
    (tmp_path / "report.json").write_text(json.dumps(made), encoding="utf-8")
    report.main([str(tmp_path / "report.json"), "--plot", str(tmp_path / "roofline.pdf")])
    assert capsys.readouterr().out == report.text(made) + "\n"
    assert (tmp_path / "roofline.pdf").read_bytes().startswith(b"%PDF")
    assert described(made["machine"]) in report.text(made)


def test_the_roof_is_memory_and_then_the_faster_ceiling():
    ceilings = {"convolution_gflops": 100.0, "matrix_gflops": 80.0, "copy_gbs": 10.0}
    assert [roofline.roof(intensity, ceilings) for intensity in (1, 10, 50)] == [10, 100, 100]


def test_the_roofline_shows_networks_and_stages(tmp_path: Path):
    made = made_report()
    assert [(one.name, one.note, one.stage) for one in roofline.points(made)] == [
        (GLEANSR, "", False), (GLEANSR, "", False), (PEER, "", False), (PEER, "bank", True), ("ONNX Runtime", "", False),
    ]  # fmt: skip
    roofline.draw(made, tmp_path / "roofline.png")
    with Image.open(tmp_path / "roofline.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour in (roofline.COLOURS[name] for name in (GLEANSR, PEER, "ONNX Runtime")):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) <= 1).sum() > 100, colour


# --------------------------------------------------------------------------------------------------- end to end


def test_forward_passes_end_to_end(tiny_model: Path, tmp_path: Path, no_child: list[list[str]], capsys: pytest.CaptureFixture[str]):
    written, plot = tmp_path / "report.json", tmp_path / "roofline.png"
    forward.main(
        [f"--network={tiny_model}", "--precision", "float32", "bfloat16", "--batch", "1", "2", "--rounds=1", "--small-ceilings",
         "--device=cpu", f"--json={written}", f"--plot={plot}"]
    )  # fmt: skip
    printed, made = capsys.readouterr().out, json.loads(written.read_text(encoding="utf-8"))
    assert printed == report.text(made) + "\n"
    assert plot.stat().st_size > 1000
    assert [case["batch"] for case in made["cases"]] == [1, 2]
    network = networks.find_network(str(tiny_model), None, None, (64, 1024))
    assert (network.in_size, network.out_size, network.trained) == (8, 32, True)
    for case in made["cases"]:
        single, half, plain, plain_half = case["contestants"]
        assert [(one["name"], one["precision"]) for one in case["contestants"]] == [
            (GLEANSR, "float32"), (GLEANSR, "bfloat16"), (PLAIN, "float32"), (PLAIN, "bfloat16"),
        ]  # fmt: skip
        assert single["gflop"] * 1e9 == total(networks.costs_of(network, case["batch"])).flop
        assert half["intensity"] == pytest.approx(2 * single["intensity"])
        assert single["differences"]["plain formulation, float32"] < 1e-4 < half["differences"]["plain formulation, float32"] < 0.3
        assert set(plain["stages"]) == set(plain_half["stages"]) == set(STAGES)
        assert sum(stage["gflop"] for stage in plain["stages"].values()) == pytest.approx(single["gflop"])
        assert single["stages"] == {}  # it is computed in strips
        assert set(case["ceilings"]) == {"float32", "bfloat16"}
    assert len(no_child) == 8
    assert no_child[0][1:3] == [f"--network={tiny_model}", "--in-size=8"]
    assert "50 against 100: 0.50" in printed


def test_a_process_of_its_own_says_its_memory_and_its_seconds(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    for name in (GLEANSR, PLAIN):
        forward.main([f"--network={tiny_model}", "--rounds=2", "--device=cpu", f"--alone={name},float32"])
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["peak_mib"] is None or said["peak_mib"] > 10
        assert len(said["seconds"]) == 2


@pytest.mark.slow
def test_processes_are_started_and_say_what_failed(tiny_model: Path):
    options = forward.build_parser().parse_args(["--device=cpu"])
    network = networks.find_network(str(tiny_model), None, None, (64, 1024))
    said = forward.in_child(options, network, GLEANSR, "float32", batch=2, rounds=1)
    assert len(said["seconds"]) == 1
    with pytest.raises(measure.ChildError, match=r"ended with status 2: .*RESULT\.PNG"):
        measure.child("report", ["RESULT.PNG"])


def test_a_sweep_leaves_out_what_cannot_be_and_says_what_failed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
        if "--batch=8" in arguments:
            raise measure.ChildError("it ended with signal 9")
        return {"peak_mib": 100.0, "seconds": [0.1, 0.4, 0.2]}

    monkeypatch.setattr(forward, "child", child)
    arguments = [f"--network={tiny_model}", "--sweep", "--device=cpu", "--small-ceilings", "--json", str(tmp_path / "sweep.json")]
    forward.main([*arguments, "--plot", str(tmp_path / "sweep.png")])
    printed, made = capsys.readouterr().out, json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    points = made["points"]
    assert [(one["in_size"], one["out_size"], one["batch"]) for one in points] == [
        (16, 32, 1), (8, 32, 1), (4, 32, 1), (8, 32, 2), (8, 32, 4), (8, 32, 8),
    ]  # fmt: skip
    assert "failed" in points[-1]
    assert all(one["share_of_convolution"] > 0 for one in points[:-1])
    assert points[3]["pictures_per_second"] == pytest.approx(2 / 0.2)
    assert "8→32, batch 8: it ended with signal 9" in printed
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_training_end_to_end(tiny_model: Path, tmp_path: Path, no_child: list[list[str]], capsys: pytest.CaptureFixture[str]):
    written = tmp_path / "report.json"
    training.main([f"--network={tiny_model}", "--rounds=1", "--small-ceilings", "--device=cpu", f"--json={written}"])
    printed, made = capsys.readouterr().out, json.loads(written.read_text(encoding="utf-8"))
    assert printed == report.text(made) + "\n"
    ours, plain = made["cases"][0]["contestants"]
    assert (ours["name"], plain["name"]) == (GLEANSR, PLAIN)
    assert ours["gflop"] < plain["gflop"]  # no gradient of the bank's weights
    assert ours["gflop"] * 1e9 > 2 * total(costs(architecture(tiny_model), batch=2)).flop  # forwards, and backwards at least as much
    assert [arguments[-1] for arguments in no_child] == ["--alone=gleansr", "--alone=plain formulation"]
    training.main([*no_child[0][1:], "--device=cpu"])
    assert "peak_mib" in json.loads(capsys.readouterr().out)


def test_a_step_trains_the_generator_and_the_discriminator(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []

    def kept(network: networks.Network, device: torch.device) -> Any:
        made.append(training.plain(network, device))
        return made[-1]

    monkeypatch.setattr(training, "gleansr", kept)
    network = networks.Network("tiny", 8, 16, tiny(), trained=False)
    options = training.build_parser().parse_args(["--precision=bfloat16"])
    run = training.step(GLEANSR, network, options, CPU)
    model, discriminator, parameters = made[0]
    before = copy.deepcopy([model.state_dict(), discriminator.state_dict()])
    run(training.gts(network, options, CPU))
    changed = [any(not torch.equal(a, b) for a, b in zip(one.values(), two.state_dict().values(), strict=True))
               for one, two in zip(before, (model, discriminator), strict=True)]  # fmt: skip
    assert changed == [True, True]
    assert all(torch.isfinite(parameter).all() for parameter in parameters)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_pipeline_end_to_end(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written, plot = tmp_path / "report.json", tmp_path / "roofline.png"
    pipeline.main(
        [f"--model={tiny_model}", "--images=5", "--batch-size=2", "--rounds=2", "--plain", "--small-ceilings", "--device=cpu",
         f"--json={written}", f"--plot={plot}"]
    )  # fmt: skip
    printed, made = capsys.readouterr().out, json.loads(written.read_text(encoding="utf-8"))
    assert printed == report.text(made) + "\n"
    [case] = made["cases"]
    folder, bare, plain = case["contestants"]
    assert [one["name"] for one in (folder, bare, plain)] == ["folder mode", "bare forward passes", PLAIN]
    assert folder["gflop"] * 1e9 == pytest.approx(total(costs(architecture(tiny_model), 1)).flop * 5)
    assert folder["pictures_per_second"] == pytest.approx(5 / np.median(folder["seconds"]))
    assert len(made["resident_mib"]) == 5
    assert [row[0] for row in cells(printed)[2:5]] == ["folder mode", "bare forward passes", PLAIN]
    assert plot.stat().st_size > 1000


def test_the_searches_share_within_the_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLEANSR_HOME", str(tmp_path))
    config = StyleGAN2Config((8, 8, 4), code_dim=8, mapping_layers=2)
    bank = tmp_path / "bank.safetensors"
    native.save(bank, {"generator": StyleGAN2(config), "discriminator": StyleGAN2Discriminator(config)}, native.About())
    made: dict[str, int] = {"pulse": 0, "dgp": 0}
    for name in made:
        alone = getattr(searches, f"{name}_alone")
        monkeypatch.setattr(searches, f"{name}_alone", lambda *a, name=name, alone=alone: (made.update({name: made[name] + 1}), alone(*a)))
    searches.main(["--model", str(bank), "--scale", "4", "--shorter", "100", "--rounds", "2", "--json"])
    methods = json.loads(capsys.readouterr().out)["methods"]
    assert made == {"pulse": 3, "dgp": 3}  # with the warm-up
    assert {name: one["steps"] for name, one in methods.items()} == {"PULSE": 2, "DGP": 10}
    for one in methods.values():
        assert one["share"] == [a / b for a, b in zip(one["networks_seconds"], one["seconds"], strict=True)]
    searches.main(["--model", str(bank), "--scale", "4", "--shorter", "100", "--rounds", "1", "--methods", "DGP"])
    printed = capsys.readouterr().out
    assert "| DGP | 10 |" in printed
    assert "PULSE" not in printed
    assert "give a StyleGAN or StyleGAN2" in refused(searches.main, ["--model", "plain-cats-8x"], capsys)[1]


def test_the_pipelines_ratio_is_that_of_the_rounds():
    made = made_report()
    [case] = made["cases"]
    case |= {"pictures": 10, "contestants": [case["contestants"][i] | {"processor_ms_per_picture": [1.0]} for i in (0, 2)]}
    case["contestants"][0]["name"] = "folder mode"
    head, _, folder, other = cells(report.pipeline_table(made | {"resident_mib": [1.0, 2000.0]}))[:4]
    assert head[3] == "folder mode is faster"
    assert folder[2:4] == ["10.0 (2.50 to 20.0)", "-"]
    assert other[3] == "3.00 (0.625 to 4.00)x"  # 2 / 0.5, 3 / 1, 2.5 / 4


# --------------------------------------------------------------------------------------------------- against mmagic


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a mmagic_glean.py, whose networks are ours, as if mmagic were installed; full networks are tiny."""
    (tmp_path / "mmagic_glean.py").write_text(
        "from gleansr.models.glean import GLEAN\n"
        "from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Discriminator, StyleGAN2Discriminator\n"
        "from benchmarks.networks import PRESETS\n"
        "calls = []\n"
        "def classes():\n"
        "    calls.append(1)\n"
        "    full = lambda in_size, out_size, fp16_enabled: (print('a line'), GLEAN(PRESETS['full'](in_size, out_size)))[1]\n"
        "    discriminator = lambda in_size: StyleGAN2Discriminator(StyleGAN2Config(PRESETS['full'](8, in_size).bank.channels))\n"
        "    return {'GLEANStyleGANv2': full, 'StyleGAN2Discriminator': discriminator}\n",
        encoding="utf-8",
    )
    monkeypatch.setitem(networks.PRESETS, "full", tiny)
    monkeypatch.setitem(networks.PRESETS, "light", lambda *sizes: lighten(tiny(*sizes)))
    monkeypatch.setattr(networks, "read_peer", copy.deepcopy)
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.delitem(sys.modules, "mmagic_glean", raising=False)
    return tmp_path


def test_mmagics_network_has_our_weights_and_is_made_importable_once(
    stand_in: Path, no_child: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    forward.main(
        ["--in-size=8", "--out-size=16", "--precision", "float32", "bfloat16", "--batch", "1", "2", "--rounds=1", "--small-ceilings",
         "--device=cpu", f"--peer={stand_in}", "--json"]
    )  # fmt: skip
    made = json.loads(capsys.readouterr().out)  # nothing else is printed there
    assert sys.modules["mmagic_glean"].calls == [1]
    for case in made["cases"]:
        ours, _, *peers = case["contestants"]
        assert [(one["name"], one["precision"]) for one in case["contestants"][1:]] == [
            (GLEANSR, "bfloat16"), (PEER, "float32"), (PEER, "bfloat16"),
        ]  # fmt: skip
        assert ours["differences"]["mmagic, float32"] < 1e-4 < ours["differences"]["mmagic, bfloat16"] < 0.2
        assert all(peer["stages"] for peer in peers)
    assert [arguments[-2:] for arguments in no_child[:4]] == [
        ["--rounds=1", "--alone=gleansr,float32"],  # without mmagic's packages in memory
        ["--rounds=1", "--alone=gleansr,bfloat16"],
        ["--alone=mmagic,float32", f"--peer={stand_in}"],
        ["--alone=mmagic,bfloat16", f"--peer={stand_in}"],
    ]


def test_a_light_network_beside_mmagics_has_its_own_arithmetic_and_weights(
    stand_in: Path, no_child: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    arguments = ["--in-size=8", "--out-size=16", "--rounds=1", "--small-ceilings", "--device=cpu", f"--peer={stand_in}", "--json"]
    forward.main(["--network=light", *arguments])
    ours, peer = json.loads(capsys.readouterr().out)["cases"][0]["contestants"]
    assert ours["gflop"] * 1e9 == total(costs(lighten(tiny()), 1)).flop
    assert peer["gflop"] * 1e9 == total(costs(tiny(), 1)).flop
    assert peer["stages"]["encoder"]["gflop"] * 1e9 == costs(tiny(), 1)["encoder"].flop
    assert ours["differences"] == {}
    training.main([*arguments, "--precision=bfloat16"])
    case = json.loads(capsys.readouterr().out)["cases"][0]
    assert [(one["name"], one["precision"]) for one in case["contestants"]] == [(GLEANSR, "bfloat16"), (PEER, "float32")]
    assert set(case["ceilings"]) == {"float32", "bfloat16"}
    assert no_child[-2][-1] == "--alone=gleansr"
    assert no_child[-1][-1] == f"--peer={stand_in}"


# --------------------------------------------------------------------------------------------------- wrong requests


@pytest.mark.parametrize(
    ("main", "arguments", "expected"),
    [
        (forward.main, ["--peer=/nowhere"], "--peer /nowhere: has no mmagic_glean.py"),
        (training.main, ["--peer=/nowhere"], "--peer /nowhere: has no mmagic_glean.py"),
        (forward.main, ["--network=dogs-9x"], "dogs-9x"),
        (training.main, ["--network=dogs-9x"], "dogs-9x"),
        (pipeline.main, ["--model=dogs-9x"], "dogs-9x"),
        (forward.main, ["--precision", "float32", "float16"], "float16 is for GPUs"),
        (forward.main, ["--sweep", "--precision", "float16"], "float16 is for GPUs"),
        (pipeline.main, ["--precision=float16"], "float16 is for GPUs"),
        (training.main, ["--precision=float64"], "invalid choice: 'float64'"),
        (forward.main, ["--in-size=48"], "full cannot be 48→1024"),
        (forward.main, ["--out-size=100"], "full cannot be 64→100"),
        (training.main, ["--in-size=256"], "full cannot be 256→256"),
        (forward.main, ["--batch", "0"], "'0' is not a positive whole number"),
        (pipeline.main, ["--rounds=-1"], "'-1' is not a positive whole number"),
        (forward.main, ["--json=/nowhere/report.json"], "there is no folder /nowhere"),
        (training.main, ["--plot=roofline.jpg"], "roofline.jpg must end in .png or .pdf"),
    ],
)
def test_wrong_requests_are_refused_in_one_line_before_any_work(
    main: Main, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(measure, "clock", None)
    status, said = refused(main, ["--device=cpu", *arguments], capsys)
    assert status == 2
    assert expected in said


def test_what_mmagic_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mmagic_glean.py").write_text("import a_package_that_is_not_there\n", encoding="utf-8")
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None if name == "mmcv" else ModuleSpec(name, None))
    with pytest.raises(RequestError, match="--peer needs mmcv; "):
        measure.mmagic(str(tmp_path))
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.delitem(sys.modules, "mmagic_glean", raising=False)
    with pytest.raises(RequestError, match=r"needs a package: .*a_package_that_is_not_there"):
        measure.mmagic(str(tmp_path))
    assert str(tmp_path) not in sys.path


def test_networks_without_a_glean_are_enlarged_but_not_trained_nor_compared_with_mmagics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "esrgan.safetensors"
    native.save(path, {"generator": RRDBNet(RRDBNetConfig(features=4, n_blocks=1, growth=2))}, native.About("esrgan"))
    network = networks.find_network(str(path), 8, None, (64, 1024))
    assert (network.in_size, network.out_size) == (8, 32)
    lr = forward.lr_of(network, 1, CPU)
    with torch.inference_mode():
        ours, plain = networks.default(network.build(), "float32", CPU), networks.plain(network.build(), "float32", CPU)
        assert torch.allclose(ours.forward(lr), plain.forward(lr), atol=1e-4)
    assert "is not a GLEAN" in refused(training.main, [f"--network={path}", "--device=cpu"], capsys)[1]


def test_other_sizes_of_a_file_are_cut_out_of_its_table(tiny_model: Path):
    cut = networks.find_network(str(tiny_model), 4, 16, (64, 1024))
    assert (cut.in_size, cut.out_size, cut.trained) == (4, 16, False)
    assert cut.architecture.bank.channels == architecture(tiny_model).bank.channels[:3]
    assert cut.build()(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 16, 16)
    with pytest.raises(RequestError, match="its channel table has 4, 8, 16, 32 px"):
        networks.find_network(str(tiny_model), 8, 64, (64, 1024))


def test_failed_work_is_told_from_a_wrong_request(capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser("benchmark")
    with pytest.raises(SystemExit) as ended, measure.errors_in_one_line(parser):
        raise measure.ChildError("it ended\nwith signal 9")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "benchmark: error: it ended with signal 9\n"
