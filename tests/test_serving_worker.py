"""The queue: batches, slots, replacement, abortion. A gate controls the model's forward passes."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving_parts import Asked, asking, blotchy, decoded, encoded, form, gated, painted, problem, save_vivid, thumbnail

import gleansr
from gleansr.inference.upscaler import Upscaler
from gleansr.serving import admission
from gleansr.serving.admission import TOTAL_SHARE, Admission
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem
from gleansr.serving.worker import ModelWorker, default_batch_size


@pytest.fixture(scope="module")
def vivid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vivid(tmp_path_factory.mktemp("model") / "vivid.safetensors")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def counted(asked: Asked, name: str) -> float:
    return next(
        float(line.split()[-1]) for line in asked.app.service.metrics.text().decode().splitlines() if line.startswith(f"gleansr_{name} ")
    )


# ----------------------------------------------------------------------------------------------------------------- batches


def test_waiting_requests_form_the_next_batch_and_get_their_own_results(vivid: Path):
    upscaler = gleansr.load(vivid)

    async def test() -> None:
        async with asking(vivid, batch_size=4) as asked:
            first = await asked.busy()
            images = [thumbnail(seed) for seed in range(6)]
            sent = [asyncio.create_task(asked.upscale(image)) for image in images]
            await asked.until(waiting=6)
            asked.method.open.set()
            answers = await asyncio.gather(*sent)
            assert asked.method.batches == [1, 4, 2]
            assert (await first).status_code == 200
        for image, answer in zip(images, answers, strict=True):
            wanted = np.asarray(upscaler(image)).astype(int)
            assert np.abs(decoded(answer.content) - wanted).max() <= 1
            assert sum(np.abs(decoded(other.content) - wanted).max() <= 2 for other in answers) == 1  # all others are far away

    run(test())


def test_upscaling_and_retouching_share_a_batch(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            await asked.busy()
            files = {"edited": encoded(painted(blotchy(1))), "original": encoded(blotchy(1))}
            sent = [asyncio.create_task(asked.upscale(thumbnail(2))), asyncio.create_task(asked.client.post("/v1/retouch", files=files))]
            await asked.until(waiting=2)
            asked.method.open.set()
            assert [(await one).status_code for one in sent] == [200, 200]
            assert asked.method.batches == [1, 2]

    run(test())


def test_models_take_turns_by_age(vivid: Path):
    upscalers, methods = zip(*(gated(vivid) for _ in range(2)), strict=True)

    async def test() -> None:
        worker = ModelWorker(2, Metrics())
        lr, order = torch.zeros(3, 8, 8), []

        def job(name: str, upscaler: Upscaler) -> "asyncio.Task[Any]":
            return asyncio.create_task(worker.forward(upscaler, lr, lambda: order.append(name)))

        one, two = upscalers
        jobs = [job("a1", one), job("b1", two), job("a2", one), job("a3", one), job("b2", two)]
        await asyncio.sleep(0)
        working = asyncio.create_task(worker.run())
        await asyncio.gather(*jobs)
        assert order == ["a1", "a2", "b1", "b2", "a3"]
        assert [method.batches for method in methods] == [[2, 1], [2]]
        working.cancel()
        worker.close()

    run(test())


def test_on_a_cpu_batches_stay_small():
    upscaler = gleansr.load("cats-8x", device="cpu")
    assert default_batch_size(upscaler) == 4


# ------------------------------------------------------------------------------------------------------- those who go away


async def ask_and_go(asked: Asked, body: bytes, *, at_once: bool = False) -> list[dict[str, Any]]:
    """A request whose client disconnects during the upload or while it waits. Returns the response."""
    gone, sent = asyncio.Event(), []
    messages = [{"type": "http.request", "body": body, "more_body": at_once}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if not at_once:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=edge")]
    scope = {"type": "http", "method": "POST", "path": "/v1/upscale", "raw_path": b"/v1/upscale", "query_string": b"", "headers": headers}
    request = asyncio.create_task(asked.app(scope | {"root_path": "", "http_version": "1.1", "scheme": "http"}, receive, send))
    if not at_once:
        before = len(asked.app.service.worker)
        await asked.until(waiting=before + 1)
        gone.set()
    await request
    return sent


def test_disconnected_clients_cost_no_forward_pass(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            first = await asked.busy()
            sent = await ask_and_go(asked, form({"image": encoded(thumbnail(1))}))
            assert len(asked.app.service.worker) == 0
            assert len(asked.app.service.admission) == 1  # the first
            asked.method.open.set()
            assert (await first).status_code == 200
            assert asked.method.batches == [1]
            assert sent[0]["status"] == 499
            assert counted(asked, 'outcomes_total{outcome="client-gone"}') == 1

    run(test())


def test_clients_that_disconnect_while_sending_are_forgotten(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            sent = await ask_and_go(asked, form({"image": encoded(thumbnail(1))})[:200], at_once=True)
            assert sent[0]["status"] == 499
            assert len(asked.app.service.admission) == 0
            assert counted(asked, 'outcomes_total{outcome="client-gone"}') == 1
            assert counted(asked, "in_flight") == 0

    run(test())


def test_the_newest_request_of_an_editor_replaces_waiting_ones(vivid: Path):
    async def test() -> None:
        async with asking(vivid, queue=3) as asked:
            editor = {"gleansr-editor": "tab-1"}
            running = await asked.busy(**editor)
            older = asyncio.create_task(asked.upscale(thumbnail(2), **editor))
            other = asyncio.create_task(asked.upscale(thumbnail(3), **{"gleansr-editor": "tab-2"}))
            await asked.until(waiting=2)
            assert (await asked.upscale(thumbnail(5))).status_code == 429  # no place is left
            newer = asyncio.create_task(asked.upscale(thumbnail(4), **editor))  # but it takes the one of the older
            assert problem(await older)[:2] == (409, "superseded")
            await asked.until(waiting=2)
            asked.method.open.set()
            assert [(await one).status_code for one in (running, other, newer)] == [200, 200, 200]
            assert asked.method.batches == [1, 2]
            assert counted(asked, 'outcomes_total{outcome="superseded"}') == 1
            assert np.abs(decoded((await newer).content).astype(int) - np.asarray(gleansr.load(vivid)(thumbnail(4)))).max() <= 1
            assert len(asked.app.service.admission) == 0

    run(test())


def test_a_replaced_request_gets_a_problem_at_any_stage(vivid: Path):
    """The older request is aborted during its upload, and notices by itself."""

    async def test() -> None:
        async with asking(vivid) as asked:
            begun, replaced = asyncio.Event(), asyncio.Event()
            body = form({"image": encoded(thumbnail(1))})

            async def slow() -> AsyncIterator[bytes]:
                yield body[:100]
                begun.set()
                await replaced.wait()
                yield body[100:]

            headers = {"content-type": "multipart/form-data; boundary=edge", "gleansr-editor": "tab"}
            older = asyncio.create_task(asked.client.post("/v1/upscale", content=slow(), headers=headers))
            await begun.wait()
            replaced.set()  # the newer comes first, then the rest of the older, before its task has noticed
            asked.app.service.admission.enter("tab")
            assert problem(await older)[:2] == (409, "superseded")
            assert counted(asked, 'outcomes_total{outcome="superseded"}') == 1

    run(test())


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä"])
def test_names_of_editors(vivid: Path, name: str):
    async def test() -> None:
        async with asking(vivid) as asked:
            response = await asked.client.post("/v1/upscale", files={"image": b""}, headers={b"gleansr-editor": name.encode("latin-1")})
            assert problem(response)[:2] == (400, "bad-field")

    run(test())


# ------------------------------------------------------------------------------------------------------------------ limits


def test_a_full_queue_answers_with_an_estimate(vivid: Path):
    async def test() -> None:
        async with asking(vivid, queue=3, batch_size=1) as asked:
            first = await asked.busy()
            waiting = [asyncio.create_task(asked.upscale(thumbnail(seed))) for seed in range(2)]
            await asked.until(waiting=2)
            refused = await asked.upscale(thumbnail(5))
            assert problem(refused)[:2] == (429, "busy")
            assert refused.headers["retry-after"] == "1"
            asked.app.service.worker._seconds = 2.5  # as if passes took that long
            refused = await asked.upscale(thumbnail(5))
            assert refused.headers["retry-after"] == "8"  # three places of 2.5 s each
            assert "8 s" in problem(refused)[2]
            assert (await asked.client.get("/readyz")).status_code == 200
            asked.method.open.set()
            assert {(await one).status_code for one in (first, *waiting)} == {200}
            assert (await asked.upscale(thumbnail(5))).status_code == 200

    run(test())


def test_the_estimate_follows_the_forward_passes(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            worker = asked.app.service.worker
            assert 0 < worker.estimate_seconds(1) < 1
            worker._seconds = 100.0
            for _ in range(30):
                await asked.upscale(thumbnail(1))
            assert worker.estimate_seconds(10) < 10

    run(test())


def test_the_total_size_of_images_is_bounded(vivid: Path):
    async def test() -> None:
        side = 64
        async with asking(vivid, max_pixels=side**2, max_bytes=20_000) as asked:
            first = await asked.busy()
            # With their results, images of half that side take 1.25 times the pixels that one image may have.
            waiting = [asyncio.create_task(asked.upscale(blotchy(seed, side // 2))) for seed in range(TOTAL_SHARE - 1)]
            await asked.until(waiting=TOTAL_SHARE - 1)
            assert problem(await asked.upscale(blotchy(7, side // 2)))[:2] == (429, "busy")
            asked.method.open.set()
            assert {(await one).status_code for one in (first, *waiting)} == {200}
            assert (await asked.upscale(blotchy(7, side))).status_code == 200
            inside = asked.app.service.admission
            assert inside._held_bytes == inside._held_pixels == 0

    run(test())


@pytest.mark.parametrize("what", ["places", "bytes"])
def test_slow_uploads_make_room_for_others(vivid: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    monkeypatch.setattr(admission, "SLOW_SECONDS", 0.0)
    config = {"queue": 2} if what == "places" else {"max_bytes": 20_000}

    async def test() -> None:
        async with asking(vivid, **config) as asked:
            first, begun = await asked.busy(), asyncio.Semaphore(0)

            async def stalling() -> AsyncIterator[bytes]:
                yield form({"image": bytes(19_000)})[:-12]
                begun.release()
                await asyncio.sleep(20)

            headers = {"content-type": "multipart/form-data; boundary=edge"}
            count = 1 if what == "places" else TOTAL_SHARE
            held = [asyncio.create_task(asked.client.post("/v1/upscale", content=stalling(), headers=headers)) for _ in range(count)]
            for _ in held[:TOTAL_SHARE]:
                await begun.acquire()
            newer = asyncio.create_task(asked.upscale(blotchy(1)))
            done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            assert [problem(one.result())[:2] for one in done] == [(408, "slow-upload")]
            asked.method.open.set()
            assert [(await one).status_code for one in (first, newer)] == [200, 200]  # who waits for the device keeps its place
            for one in held:
                one.cancel()
            await asyncio.wait(held)

    run(test())


def test_stalled_uploads_are_aborted(vivid: Path):
    async def test() -> None:
        async with asking(vivid, stall_timeout=0.1) as asked:

            async def trickling() -> AsyncIterator[bytes]:
                for byte in form({"image": bytes(19_000)}):
                    yield bytes([byte])
                    await asyncio.sleep(0.001)

            headers = {"content-type": "multipart/form-data; boundary=edge"}
            response = await asked.client.post("/v1/upscale", content=trickling(), headers=headers)
            assert problem(response)[:2] == (408, "slow-upload")
            assert "less than 65536 bytes of the request came within 0.1 s" in problem(response)[2]
            assert counted(asked, 'outcomes_total{outcome="slow-upload"}') == 1

    run(test())


def test_aborted_requests_release_their_memory():
    async def test() -> None:
        inside = Admission(2, 100, 100, lambda _: 0.0)
        older = inside.enter("tab")
        newer = inside.enter("tab")
        with pytest.raises(Problem, match="aborted"):
            older.hold(n_pixels=300)
        newer.hold(300, 400)
        with pytest.raises(Problem, match="busy"):
            newer.hold(101)
        with newer:
            pass
        inside.enter(None).hold(400, 400)

    run(test())


def test_time_is_bounded_while_waiting_and_while_sending(vivid: Path):
    async def test() -> None:
        async with asking(vivid, timeout=0.3) as asked:
            first = await asked.busy()
            assert problem(await asked.upscale(thumbnail(1)))[:2] == (504, "timeout")
            assert problem(await first)[:2] == (504, "timeout")
            assert len(asked.app.service.worker) == 0

            async def slow() -> AsyncIterator[bytes]:
                yield form({"image": b"x"})[:50]
                await asyncio.sleep(5)

            headers = {"content-type": "multipart/form-data; boundary=edge"}
            response = await asked.client.post("/v1/upscale", content=slow(), headers=headers)
            assert problem(response)[:2] == (408, "slow-upload")
            asked.method.open.set()
            assert (await asked.upscale(thumbnail(1))).status_code == 200
            assert asked.method.batches == [1, 1]  # the one that was given up while it ran, and the last

    run(test())


def test_the_service_responds_while_images_are_processed(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            first = await asked.busy()
            for path in ("/healthz", "/readyz", "/v1/models", "/metrics"):
                assert (await asked.client.get(path)).status_code == 200
            assert counted(asked, "in_flight") == 1
            asked.method.open.set()
            await first

    run(test())


def test_a_failed_batch_fails_its_own_images_only(vivid: Path):
    async def test() -> None:
        async with asking(vivid) as asked:
            first = await asked.busy()
            waiting = [asyncio.create_task(asked.upscale(thumbnail(seed))) for seed in range(2)]
            await asked.until(waiting=2)
            asked.method.error = RuntimeError("CUDA out of memory")
            asked.method.open.set()
            assert {problem(await one)[:2] for one in (first, *waiting)} == {(500, "failed")}
            asked.method.error = None
            assert (await asked.upscale(thumbnail(1))).status_code == 200

    run(test())


def test_readiness_ends_with_the_service(vivid: Path):
    async def test() -> None:
        app = App(ServingConfig(), {"vivid": gated(vivid)[0]})
        assert not app.service.ready
        async with asking(vivid) as asked:
            service = asked.app.service
            assert service.ready
            service.stopping = True
            assert problem(await asked.client.get("/readyz"))[:2] == (503, "stopping")
            assert (await asked.client.get("/healthz")).status_code == 200
            assert (await asked.upscale(thumbnail(1))).status_code == 200  # what still comes in is served
        assert not service.ready

    run(test())


def test_waiting_requests_do_not_keep_large_images(vivid: Path):
    """Only the model's input remains in memory."""
    from gleansr.images.codec import decode
    from gleansr.serving import endpoints

    endpoint = endpoints.make_endpoints({"vivid": gleansr.load(vivid)}, None, 10**8)[0]
    values = {name: one.default for name, one in endpoint.fields.items()}
    image = decode(blotchy(1, 12))
    ready, pixels = endpoint.prepare({"image": image}, values, lambda _done, _total: None), weakref.ref(image)
    del image
    gc.collect()
    assert pixels() is None
    assert [lr.untyped_storage().nbytes() for lr in ready.lrs] == [3 * 8 * 8 * 4]
