"""The page's model of a record is the Python model, in a file that was saved and opened from the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.page.package import one_file
from shared.recording.head import make_head
from shared.uapi.syscalls import Nr
from tests.recording.test_model import STEPS
from tests.support.programs import USER, page
from tests.support.recorded import recorded
from tests.support.traced import TracedWorld
from tests.trace.test_replay import Script
from tests.web.chromium import Browser
from tests.web.summary import IN_THE_PAGE, summary

pytestmark = pytest.mark.slow


def test_both_models_are_the_same_at_any_moment(in_browser: Callable[..., Any], tmp_path: Path) -> None:
    world = TracedWorld(12 << 20, swap_bytes=16 << 20, thp="always")
    programs = [world.attach(USER), world.attach(USER)]
    for program in programs:
        program.call(Nr.RT_SIGACTION, 11, 2)
        program.mmap(4 * 512, at=page(0))
    script, pick = Script(0), random.Random(0)
    with recorded(world, key_events=500) as record:
        for _ in range(STEPS):
            program = pick.choice(programs)
            if not program.process.ended:
                script.step(program)
                record.read()
        recording = record.recording()
        saved = tmp_path / "machine.html"
        saved.write_bytes(one_file(make_head(pids=(), superuser=True), record.chunks))
    world.close()
    moments = [0, recording.nr_events, *pick.sample(range(recording.nr_events), 6)]

    async def compare(browser: Browser) -> None:
        await browser.open(saved.as_uri())
        await browser.until(f"kerneld.recording.nrEvents === {recording.nr_events} && kerneld.ended")
        for moment in moments:
            assert await browser.run(f"{IN_THE_PAGE}(kerneld.recording.machine({moment}))") == summary(
                recording.machine(moment)
            )
        first = recording.record(0)
        assert first is not None
        assert await browser.run("kerneld.recording.event(0).fields") == first.fields

    in_browser(compare)
