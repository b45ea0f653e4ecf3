"""The queue: who waits, who is stopped, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hf_gmar.app.limits import Limits
from hf_gmar.app.work import Desk, Done, Job, LimitError, Progress, StoppedError, stop_if_told
from tests.reference.tolerances import PATIENCE


async def ask(desk: Desk, visitor: str, kind: str, work: Callable[[Job], Any]) -> list[Any]:
    return [item async for item in desk.run(visitor, kind, work)]


def test_a_result_comes_last() -> None:
    async def main() -> list[Any]:
        return await ask(Desk(Limits()), "a", "explain", lambda _: 5)

    assert asyncio.run(main())[-1] == Done(5)


def test_an_error_is_the_visitors() -> None:
    def fail(_: Job) -> None:
        raise ValueError("no")

    async def main() -> None:
        desk = Desk(Limits())
        with pytest.raises(ValueError, match="no"):
            await ask(desk, "a", "explain", fail)
        assert (await ask(desk, "a", "explain", lambda _: 1))[-1] == Done(1)
        assert desk.busy == 0

    asyncio.run(main())


def until_stopped(job: Job) -> None:
    """Work without end, which asks the model again and again."""
    job.report("Working", 0.5)
    while True:
        stop_if_told()


def started(job: Job, begun: threading.Event) -> None:
    begun.set()
    until_stopped(job)


@pytest.mark.parametrize(("first", "second"), [("explain", "explain"), ("check", "explain"),
                                               ("check", "check")])  # fmt: skip
def test_a_visitor_who_asks_again_stops_the_former_request(first: str, second: str) -> None:
    async def main() -> None:
        desk, begun = Desk(Limits(workers=1)), threading.Event()
        before = asyncio.create_task(ask(desk, "a", first, lambda job: started(job, begun)))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        assert (await ask(desk, "a", second, lambda _: 2))[-1] == Done(2)
        with pytest.raises(StoppedError):
            await before
        assert desk.busy == 0

    asyncio.run(main())


def test_a_stopped_request_says_nothing_more_though_its_thread_goes_on() -> None:
    """Its last words would stand on the page after the answer to the later one."""

    async def main() -> None:
        desk, begun, end = Desk(Limits(workers=2)), threading.Event(), threading.Event()

        def wait(job: Job) -> None:
            job.report("Working")
            begun.set()
            end.wait(PATIENCE)

        try:
            before = asyncio.create_task(ask(desk, "a", "check", wait))
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            assert (await ask(desk, "a", "explain", lambda _: 2))[-1] == Done(2)
            with pytest.raises(StoppedError):
                await asyncio.wait_for(before, 60)
            assert desk.busy == 1
        finally:
            end.set()

    asyncio.run(main())


@pytest.mark.parametrize(("visitor", "kind"), [("b", "explain"), ("a", "heads")])
def test_other_requests_go_on(visitor: str, kind: str) -> None:
    async def main() -> None:
        desk, begun, end = Desk(Limits(workers=2)), threading.Event(), threading.Event()

        def wait(_: Job) -> int:
            begun.set()
            assert end.wait(PATIENCE)
            stop_if_told()
            return 1

        before = asyncio.create_task(ask(desk, "a", "check", wait))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        assert (await ask(desk, visitor, kind, lambda _: 2))[-1] == Done(2)
        end.set()
        assert (await before)[-1] == Done(1)

    asyncio.run(main())


def test_a_visitor_who_leaves_frees_the_place() -> None:
    async def main() -> None:
        desk, begun = Desk(Limits(workers=1)), threading.Event()
        request = desk.run("a", "explain", lambda job: started(job, begun))
        shown = await anext(request)
        while shown != Progress("Working", 0.5):
            shown = await anext(request)
        await request.aclose()
        assert (await ask(desk, "b", "explain", lambda _: 2))[-1] == Done(2)
        assert desk.busy == 0

    asyncio.run(main())


def test_a_request_that_waits_never_runs_when_its_visitor_leaves() -> None:
    async def main() -> None:
        desk, begun = Desk(Limits(workers=1)), threading.Event()
        ran: list[Job] = []
        first = asyncio.create_task(ask(desk, "a", "explain", lambda job: started(job, begun)))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        waiting = desk.run("b", "explain", ran.append)
        assert await anext(waiting) == Progress("Waiting for other visitors")
        await waiting.aclose()
        await ask(desk, "a", "explain", lambda _: 0)
        with pytest.raises(StoppedError):
            await first
        assert ran == []
        assert desk.busy == 0

    asyncio.run(main())


def test_the_queue_has_an_end() -> None:
    async def main() -> None:
        desk, begun = Desk(Limits(workers=1, waiting=2)), threading.Event()
        first = asyncio.create_task(ask(desk, "a", "explain", lambda job: started(job, begun)))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        second = desk.run("b", "explain", lambda _: 2)
        await anext(second)
        with pytest.raises(LimitError, match="too many visitors"):
            await ask(desk, "c", "explain", lambda _: 3)
        await second.aclose()
        desk.close()
        with pytest.raises(StoppedError):
            await first

    asyncio.run(main())


def test_a_request_has_an_end() -> None:
    async def main() -> None:
        with pytest.raises(LimitError, match=r"more than 0 seconds.*own machine"):
            await ask(Desk(Limits(seconds=0.01)), "a", "explain", until_stopped)

    asyncio.run(main())


def test_the_time_in_the_queue_does_not_count() -> None:
    job = Job(0.0)
    job.check()
    job.begin()
    with pytest.raises(LimitError):
        job.check()


def test_other_threads_are_not_asked() -> None:
    stop_if_told()
