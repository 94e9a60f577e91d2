"""The service without a named model: it recognises the image, as `gleansr.upscale` does."""

import threading
import time
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from serving_parts import Client, blotchy, decoded, encoded, problem
from skimage import data

import gleansr
from gleansr.inference.method import ModelOutput
from gleansr.inference.router import GENERAL, Models, bundled_models
from gleansr.photos.align import Frame
from gleansr.photos.detect import Detection
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig
from gleansr.serving.problems import Problem
from gleansr.serving.server import load_models

FACE = Image.fromarray(data.astronaut()[:224, 112:336]).resize((32, 32), Image.Resampling.BOX)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(device="cpu")


@pytest.fixture(scope="module")
def client(models: Models) -> Iterator[Client]:
    upscalers = {name: models[name] for name in ("cats-8x-light", "faces-8x")}
    with Client(App(ServingConfig(), upscalers, models)) as client:
        yield client


def test_a_thumbnail_gets_the_model_of_its_category(client: Client):
    response = client.post("/v1/upscale", files={"image": encoded(FACE)})
    assert np.array_equal(decoded(response.content), np.asarray(gleansr.upscale(FACE, device="cpu")))
    assert response.headers["gleansr-model"] == "faces-8x"
    assert unquote(response.headers["gleansr-summary"]).startswith("face (")
    assert response.headers["gleansr-size"] == "256x256"


def test_a_photo_gets_the_general_model_and_the_models_of_its_objects(client: Client):
    photo = Image.fromarray(data.astronaut()).resize((160, 160), Image.Resampling.BICUBIC)
    answer = client.post("/v1/upscale", files={"image": encoded(photo)}, data={"scale": "2"}, headers={"accept": "application/json"}).json()
    wanted = gleansr.upscale(photo, scale=2, device="cpu")
    assert (answer["width"], answer["height"], answer["scale"], answer["category"]) == (320, 320, 2, None)
    assert len(answer["objects"]) == 1
    assert answer["model"].split(", ")[-1] == GENERAL
    assert "; ".join([answer["summary"], *answer["notes"]]) == wanted.info["gleansr"]


def test_an_unknown_thumbnail_and_one_named_auto(client: Client):
    response = client.post("/v1/upscale", files={"image": encoded(blotchy(1, 24))}, data={"model": "auto"})
    assert response.headers["gleansr-model"] == GENERAL
    assert response.headers["gleansr-size"] == "96x96"


def test_results_are_limited(models: Models):
    files = {"image": encoded(blotchy(1, 100))}
    with Client(App(ServingConfig(max_pixels=10_000), {"faces-8x": models["faces-8x"]}, models)) as client:
        assert problem(client.post("/v1/upscale", files=files, data={"scale": "3"}))[1] == "too-many-pixels"
        assert client.post("/v1/upscale", files=files).headers["gleansr-size"] == "200x200"


def test_the_answer_names_the_models_that_worked(client: Client):
    """A named one works on objects that it takes; the rest of a photo is another's."""
    files = {"image": encoded(blotchy(2, 300))}
    response = client.post("/v1/upscale", files=files, data={"model": "faces-8x"}, headers={"accept": "application/json"})
    answer = response.json()
    assert answer["model"] == GENERAL, "no face was found"
    assert answer["model"] in answer["summary"]
    assert client.post("/v1/upscale", files=files, data={"model": "faces-8x"}).headers["gleansr-model"] == GENERAL


def test_fit_is_for_a_named_model(client: Client):
    files = {"image": encoded(FACE)}
    assert problem(client.post("/v1/upscale", files=files, data={"fit": "crop"}))[2].startswith("fit is for one model")
    named = {"fit": "crop", "model": "faces-8x"}
    assert client.post("/v1/upscale", files=files, data=named).headers["gleansr-size"] == "256x256"
    assert problem(client.post("/v1/upscale", files=files, data=named | {"scale": "4"}))[1] == "unfit"
    large = {"image": encoded(blotchy(2, 300))}
    assert "larger than what faces-8x makes" in problem(client.post("/v1/upscale", files=large, data=named))[2]


def test_thumbnails_do_not_wait_for_photos_and_an_abandoned_photo_ends(models: Models, monkeypatch: pytest.MonkeyPatch):
    tiles, begun, gate = [], threading.Event(), threading.Event()
    general = models[GENERAL]

    def tile(lrs: list[torch.Tensor]) -> ModelOutput:
        tiles.append(lrs[0])
        begun.set()
        assert gate.wait(20)
        return ModelOutput(torch.zeros(1, 3, 4 * lrs[0].shape[1], 4 * lrs[0].shape[2]))

    monkeypatch.setattr("gleansr.photos.search.DETECTED", ())
    with Client(App(ServingConfig(), {"faces-8x": models["faces-8x"]}, models)) as client:
        monkeypatch.setattr(general, "runner", tile)
        photo = threading.Thread(target=lambda: answers.append(client.post("/v1/upscale", files={"image": encoded(blotchy(3, 2000))})))
        answers = []
        photo.start()
        assert begun.wait(20)
        assert client.post("/v1/upscale", files={"image": encoded(FACE)}).status_code == 200
        assert not answers
        [ticket] = client.app.service.admission._active
        client.call(ticket.stop, Problem("timeout", "too late"))
        photo.join()
        assert problem(answers[0])[:2] == (504, "timeout")
        gate.set()
    assert len(tiles) < 25


def test_the_progress_of_a_photo_is_told(models: Models, monkeypatch: pytest.MonkeyPatch):
    """By stages in order: a photo of 500x480 has four tiles, and here two heads in boxes of its own detector."""
    general, answers = models[GENERAL], []
    searched, searching, gate = threading.Event(), threading.Event(), threading.Semaphore(0)

    def detect_all(*_: object) -> dict[str, list[Detection]]:
        searching.set()
        assert searched.wait(20)
        return {"faces": [Detection((x, 50.0, 40.0, 40.0), Frame(x, 70.0, 40.0, 40.0)) for x in (100.0, 300.0)]}

    def tile(lrs: list[torch.Tensor]) -> ModelOutput:
        assert gate.acquire(timeout=20)
        return ModelOutput(torch.zeros(1, 3, 4 * lrs[0].shape[1], 4 * lrs[0].shape[2]))

    monkeypatch.setattr("gleansr.photos.auto.detect_all", detect_all)
    # One at a time: of two tiles that wait at the gate, either may be let through first.
    monkeypatch.setattr("gleansr.photos.background.in_order", lambda compute, parts, _: map(compute, parts))
    with Client(App(ServingConfig(), {"faces-8x": models["faces-8x"]}, models)) as client:
        monkeypatch.setattr(general, "runner", tile)

        def told() -> dict[str, object]:
            return client.get("/v1/progress/my-photo").json()

        def upscale() -> None:
            answers.append(client.post("/v1/upscale", files={"image": encoded(blotchy(3, 480))}, headers={"gleansr-progress": "my-photo"}))

        def until(stage: str, done: int, total: int) -> None:
            deadline = time.monotonic() + 20
            while told() != {"stage": stage, "done": done, "total": total}:
                assert time.monotonic() < deadline, (stage, told())

        assert told() == {"stage": "unknown", "done": 0, "total": 0}
        request = threading.Thread(target=upscale)
        request.start()
        assert searching.wait(20)
        until("searching", 0, 0)
        searched.set()
        until("background", 0, 0)
        for done in (1, 2, 3):
            gate.release()
            until("background", done, 4)
        gate.release()
        request.join()
        assert answers[0].status_code == 200
        assert told()["stage"] == "unknown"
        wrong = client.post("/v1/upscale", files={"image": encoded(FACE)}, headers={"gleansr-progress": "a/b"})
        assert problem(wrong)[:2] == (400, "bad-field")


def test_the_default_serves_all_bundled_models():
    upscalers, models = load_models(ServingConfig(device="cpu"), lambda name: pytest.fail(name))
    assert list(upscalers) == [model.name for model in bundled_models()]
    assert {upscaler.category for upscaler in upscalers.values()} >= {"cats", "faces"}
    assert models
    alone, none = load_models(ServingConfig(models=("faces-8x",), device="cpu"), gleansr.checkpoints.model_path)
    assert (list(alone), none) == (["faces-8x"], None)
