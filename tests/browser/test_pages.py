"""What a person sees and does in a browser, on a run that really happens."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from harness.authority import authority
from harness.flower import BASIC, OAUTH, flower
from harness.nginx import nginx
from inspecting import Worker, execute
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.flower import FlowerServer
    from harness.world import World
    from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=document.title='owned'>"
expect.set_options(timeout=20_000)


def store_of(world: World) -> Any:
    backend: Any = world.app.backend
    return backend.store


def hand(world: World) -> Worker:
    """Return a worker that does what the test says and whose heart is said to beat for an hour."""
    store = store_of(world)
    worker = Worker(store)
    execute(store, "update durable.worker set beat_at = beat_at + interval '1 hour' where id = %s", worker.id)
    return worker


def serious(page: Page) -> list[str]:
    """Return what axe finds serious on our part of the page; the frame around it is Flower's."""
    found = Axe().run(page, context=".dur").response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_a_run_is_watched_while_its_worker_is_killed_and_another_one_finishes_it(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    first = world.worker()
    world.gates.close("two")
    result = world.send("flow", ["one", "two", "three"])
    page = open_page(basic, "/durable")
    page.get_by_role("link", name=re.compile(f"flow.*{result.id[:8]}")).click()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_role("button", name=re.compile("^one"))).to_be_visible()
    expect(page.get_by_text("executing now")).to_be_visible()

    first.kill9()

    expect(page.get_by_text("has been silent for").first).to_be_visible()
    expect(page.get_by_text("no other is alive to go on with it")).to_be_visible()
    expect(page.get_by_text("cut off here")).to_be_visible()
    world.gates.open("two")
    world.worker()
    expect(page.get_by_text("Succeeded", exact=False).first).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name=re.compile("^three"))).to_be_visible()
    expect(page.get_by_text("worker gone").or_(page.get_by_text("lost", exact=True)).first).to_be_visible()
    page.get_by_role("button", name=re.compile("^one")).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_text('"one done"')).to_be_visible()
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()


def test_the_list_shows_what_happens_without_a_reload_and_keeps_its_filters(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    page = open_page(basic)
    with page.expect_response(re.compile("/durable/stream")) as streamed:
        page.goto(f"{basic.url}/durable?task=listed.task")
    assert streamed.value.headers["content-type"] == "text/event-stream"
    expect(page.get_by_text("No run matches")).to_be_visible()

    claim = worker.start(task="listed.task")
    row = page.locator(f'tr[data-id="{claim.id}"]')
    expect(row.get_by_text("running")).to_be_visible()
    worker.fail(claim, error=f"ValueError: {HOSTILE}")
    expect(row.get_by_text("failed")).to_be_visible()
    expect(row.get_by_text(HOSTILE)).to_be_visible()
    page.get_by_role("link", name=re.compile("Failed")).click()
    assert "task=listed.task" in page.url
    assert "state=failed" in page.url
    expect(row).to_be_visible()
    assert page.title().startswith("Durable runs")


def test_where_no_stream_gets_through_the_page_asks_by_itself_and_says_so(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    page = open_page(basic)
    page.problems.clear()  # type: ignore[attr-defined]
    page.route(re.compile("/durable/stream"), lambda route: route.fulfill(status=502))
    page.goto(f"{basic.url}/durable?task=polled.task")
    expect(page.get_by_role("status")).to_have_text("Reconnecting")
    claim = hand(world).start(task="polled.task")
    expect(page.locator(f'tr[data-id="{claim.id}"]')).to_be_visible()
    page.problems.clear()  # type: ignore[attr-defined]  # (a browser logs each 502)


def test_filters_are_kept_as_a_view_and_columns_as_they_were_chosen(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    worker.start(task="kept.task", queue="video")
    page = open_page(basic, "/durable")
    page.locator("select[name=task]").select_option("kept.task")
    page.wait_for_url(re.compile("task=kept.task"))
    page.get_by_text("Saved views").click()
    page.get_by_label("Name of this view").fill("mine")
    page.get_by_role("button", name="Save this view").click()
    page.get_by_text("Columns").click()
    expect(page.get_by_role("cell", name="video")).to_be_hidden()
    page.get_by_label("Queue").check()
    page.goto(f"{basic.url}/durable")
    page.get_by_text("Saved views").click()
    page.get_by_role("link", name="mine").click()
    page.wait_for_url(re.compile("task=kept.task"))
    expect(page.get_by_role("cell", name="video")).to_be_visible()


def test_a_failed_run_is_resumed_from_its_page_with_a_reason(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    run_id = worker.fail(worker.start(task="acted.task"))
    # A deep link: a browser has no credentials for the path of the API yet (FLOWER answers with a challenge).
    page = open_page(basic, f"/durable/run/{run_id}")
    page.get_by_role("button", name="Resume").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Resume").click()
    expect(dialog).to_be_visible()  # a reason is required
    dialog.get_by_label("Why").fill("the bank is back")
    dialog.get_by_role("button", name="Resume").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("the bank is back")).to_be_visible()
    expect(page.get_by_role("cell", name="ada")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    dialog.get_by_label("Why").fill("after all")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled", exact=True).first).to_be_visible()


def test_a_run_is_forked_from_the_step_that_failed_with_other_arguments(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    result = world.send("plain", "wrong", queue="nobody")
    worker = hand(world)
    claim = worker.claim(result.id)
    worker.step(claim, "reserve", 1)
    worker.step(claim, "charge", 2, "error")
    worker.fail(claim)
    page = open_page(basic, f"/durable/run/{result.id}")
    page.get_by_role("button", name="Fork").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Kept: reserve. Will run again: charge")).to_be_visible()
    arguments = dialog.get_by_label("Arguments, which may be edited")
    expect(arguments).to_have_value(re.compile("wrong"))
    arguments.fill('{"args": ["right"], "kwargs": {}}')
    dialog.get_by_label("Why").fill("a wrong text")
    dialog.get_by_role("button", name="Fork").click()
    page.wait_for_url(re.compile(f"/durable/run/(?!{result.id})"))
    expect(page.get_by_text("fork of")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^reserve"))).to_be_visible()
    page.get_by_role("button", name="Arguments").click()
    expect(page.get_by_role("dialog").get_by_text("right")).to_be_visible()


def test_a_run_that_waits_for_a_signal_is_sent_it_from_its_page(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    run_id = hand(world).retry(hand(world).start(task="asks.somebody"))
    execute(store_of(world), "update durable.run set reason = 'signal', due = null where id = %s", run_id)
    page = open_page(basic, f"/durable/run/{run_id}")
    page.get_by_role("button", name="Send signal").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Signal").fill("approved")
    dialog.get_by_label("Payload, as JSON").fill('{"by": "ada"}')
    dialog.get_by_role("button", name="Send signal").click()
    expect(dialog).to_be_hidden()
    sent = execute(store_of(world), "select name, actor from durable.signal")
    assert [(one["name"], one["actor"]) for one in sent] == [("approved", "ada")]


def test_the_failed_tries_of_a_step_and_its_calls_are_where_they_were_and_told_in_its_drawer(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    store, worker = store_of(world), hand(world)
    claim = worker.start(task="tried.task")
    worker.step(claim, "reserve", 1)
    for tries in range(1, 48):
        error = "HTTPError: 503" if tries == 20 else f"ConnectionError: no answer within {tries} s"
        worker.step(claim, "charge", 2, "trying", tries=tries, error=error)
    call = {"call": "1", "step": "charge", "method": "POST", "url": f"https://bank/{HOSTILE}", "status": 503}
    call |= {"request": {"bytes": 9, "content_type": "application/json", "body": HOSTILE}}
    execute(
        store,
        "insert into durable.event (run_key, kind, detail) values (%s, 'call', %s::jsonb)",
        claim.key,
        json.dumps(call),
    )
    page = open_page(basic, f"/durable/run/{claim.id}")
    why = page.get_by_label("Why is it not moving?")
    expect(why).to_contain_text("Step charge has failed 47 times and is tried again")
    expect(why).to_contain_text(re.compile("46. ConnectionError: no answer within … s"))
    row = page.locator('tr[data-step="charge"]')
    expect(row.locator(".dur-try")).to_have_count(46)
    places = row.locator(".dur-try").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().x)")
    assert places == sorted(places)
    assert serious(page) == []

    why.get_by_role("link", name="Its failures").click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("cell", name="HTTPError: 503")).to_be_visible()
    expect(drawer.get_by_role("heading", name="Failed tries before this one (46)")).to_be_visible()
    drawer.get_by_text("https://bank/").click()
    expect(drawer.locator("pre", has_text=HOSTILE)).to_be_visible()
    assert serious(page) == []
    assert page.title() != "owned"


def test_many_runs_are_resumed_by_a_filter_after_they_were_counted(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    for _ in range(3):
        worker.fail(worker.start(task="bulk.task"))
    page = open_page(basic, "/durable?task=bulk.task&state=failed")
    page.get_by_label("everything that matches the filter").check()
    page.locator("[data-bulk-action=resume]").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("3 runs.")).to_be_visible()
    dialog.get_by_label("Why").fill("the bank is back")
    dialog.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("No run matches")).to_be_visible()


def test_a_timeline_of_two_thousand_steps_is_smooth_zooms_and_finds(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    store, worker = store_of(world), hand(world)
    claim = worker.start("two-thousand")
    with store.connections.dedicated() as connection:
        connection.execute(
            "insert into durable.checkpoint (run_key, key, seq, outcome, output, digest, arguments, fence,"
            " attempt, tries, seconds, stored_at)"
            " select %s, 'step#' || n, n, 'ok', '1', 'd', '()', gen_random_uuid(), 1, 1, 0.004,"
            " durable.clock() + n * interval '5 ms' from generate_series(1, 2000) n",
            (claim.key,),
        )
    worker.succeed(claim)
    page = open_page(basic, "/durable/run/two-thousand")
    expect(page.locator("tr.dur-step")).to_have_count(2000)
    took = page.evaluate(
        """() => {
            const start = performance.now();
            document.querySelector('[data-zoom=in]').click();
            return document.body.offsetHeight && performance.now() - start;
        }"""
    )
    assert took < 1500  # milliseconds on a busy machine; 60 on an idle one
    page.get_by_label("Find a step").fill("step#1999")
    expect(page.locator("tr.dur-step:visible")).to_have_count(1)
    page.get_by_role("button", name="Fit").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_hard_to_perceive_or_to_reach(
    world: World, basic: FlowerServer, open_page: Callable[..., Page], theme: str
) -> None:
    worker = hand(world)
    run_id = f"seen-{theme}"
    claim = worker.start(run_id, task="seen.task")
    worker.step(claim, "fetch", 1)
    worker.step(claim, "charge", 2, "error", tries=3)
    worker.fail(claim)
    page = open_page(basic, "/durable?q=nothing-like-it", color_scheme=theme)
    for path in ("/durable", f"/durable/run/{run_id}", "/durable/overview"):
        assert serious(page) == [], page.url
        page.goto(basic.url + path)
        expect(page.locator("html")).to_have_attribute("data-bs-theme", theme)
        assert page.locator("h1").count() == 1, path
    assert serious(page) == [], page.url
    phone = open_page(
        basic, f"/durable/run/{run_id}", viewport={"width": 360, "height": 740}, color_scheme=theme
    )
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.locator("[data-step-open]").first.focus()
    phone.keyboard.press("Enter")
    expect(phone.get_by_role("dialog")).to_be_visible()


def test_hidden_tabs_give_their_connection_back_so_that_any_number_of_them_works(
    world: World, basic: FlowerServer, open_page: Callable[..., Page]
) -> None:
    first = open_page(basic, "/durable")
    context = first.context
    for _ in range(7):
        first.evaluate(
            "() => { Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')) }"
        )
        expect(first.get_by_role("status")).to_have_text("Paused")
        first = context.new_page()
        first.goto(f"{basic.url}/durable")
    expect(first.get_by_role("status")).to_have_text("Live")


def test_behind_nginx_and_under_a_prefix_a_run_is_watched_and_resumed(
    world: World, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    claim = worker.start(task="proxied.task")
    with (
        flower(world, BASIC, "--url_prefix=flower", "--durable_poll=0.2") as server,
        nginx(server.port, prefix="flower") as url,
    ):
        server.url = url
        page = open_page(server, f"/durable/run/{claim.id}")
        expect(page.get_by_role("status")).to_have_text("Live")
        worker.fail(claim)
        page.get_by_role("button", name="Resume").click(timeout=4_000)  # a poll would come after five seconds
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Why").fill("the bank is back")
        dialog.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("the bank is back")).to_be_visible()
        page.context.close()  # before its server


def test_a_login_through_oauth_leads_to_a_page_that_acts_and_its_end_is_said(
    world: World, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    run_id = worker.fail(worker.start(task="guarded.task"))
    with authority() as login:
        options = (*OAUTH, "--auth_provider=flowering.oauth.Login", "--durable_poll=0.2")
        with flower(world, *options, variables={"FLOWERING_OAUTH_SERVER": login.url}) as server:
            page = open_page(server, "/durable", auth=False)
            page.goto(f"{server.url}/durable/run/{run_id}")
            page.get_by_role("button", name="Resume").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Why").fill("the bank is back")
            dialog.get_by_role("button", name="Resume").click()
            expect(page.get_by_role("cell", name="ada@example.com")).to_be_visible()
            page.get_by_role("button", name="Cancel").click()
            page.context.clear_cookies()
            dialog.get_by_label("Why").fill("after all")
            dialog.get_by_role("button", name="Cancel").click()
            expect(dialog.get_by_role("alert")).to_have_text(re.compile("You are not logged in"))
            expect(page.locator("[data-live]")).to_have_text("Your session has ended: reload the page")
            page.problems.clear()  # type: ignore[attr-defined]  # (a browser logs a 403)
            page.context.close()  # before its server


def test_without_authentication_buttons_are_disabled_and_say_why(
    world: World, open_page: Callable[..., Page]
) -> None:
    worker = hand(world)
    run_id = worker.fail(worker.start())
    with flower(world, "--url_prefix=flower") as server:
        page = open_page(server, f"/durable/run/{run_id}", auth=False)
        button = page.get_by_role("button", name="Resume")
        expect(button).to_be_disabled()
        expect(page.get_by_text("start it with --basic_auth or --auth").first).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("Ended")
        page.context.close()  # before its server
