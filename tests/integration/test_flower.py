"""The Durable tab in a real Flower on a real Postgres: who sees what, who may do what, and nothing breaks."""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from harness.flower import ADA, BASIC, FlowerServer, flower, flower_world
from harness.waiting import eventually
from inspecting import Worker, execute, open_transaction

from celery_durable.run import RunState
from celery_durable.store.writes import Finish
from celery_durable.tokens import Token, sign

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from harness.world import World

    from celery_durable.store import Store

PROVIDER = ("--auth=ada@example.com", "--auth_provider=flowering.login.Login")
SECRET = "a secret that is long enough"
ACTION = {"X-Durable-Action": "1"}
HOSTILE = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with flower_world(postgres_url, durable_signal_secret=SECRET) as made:
        yield made


@pytest.fixture(scope="module")
def store(world: World) -> Store:
    backend: Any = world.app.backend
    return backend.store


@pytest.fixture(scope="module")
def runs(world: World, store: Store) -> dict[str, str]:
    """Runs in several states, with values that a page must not believe."""
    worker = Worker(store)
    story = worker.start(
        "story",
        task="media.process",
        body=b'[["s3cret"],{"token":"s3cret"},{}]',
        message=b'{"content_type":"application/json","headers":{}}',
    )
    worker.step(
        story, "fetch", 1, arguments="(url='s3cret')", output=json.dumps({"token": "s3cret"}).encode()
    )
    worker.step(story, HOSTILE, 2, output=b'"\\u0000<b>"')
    worker.fail(story, error=f"ValueError: s3cret {HOSTILE}")
    waiting = worker.retry(worker.start("waiting"))
    running = worker.start("running").id
    odd = worker.start("odd/id ?&#<b>")
    store.runs.finish(
        odd.key, odd.fence, Finish(RunState.SUCCEEDED, b"\x80\x00\xff", "application/x-msgpack")
    )
    return {"failed": "story", "waiting": waiting, "running": running, "odd": odd.id}


@pytest.fixture(scope="module")
def basic(world: World, runs: dict[str, str]) -> Iterator[FlowerServer]:
    with flower(world, BASIC) as server:
        yield server


@pytest.fixture(scope="module")
def opened(world: World, runs: dict[str, str]) -> Iterator[FlowerServer]:
    with flower(world) as server:
        yield server


@pytest.fixture(scope="module")
def provided(world: World, runs: dict[str, str]) -> Iterator[FlowerServer]:
    with flower(world, *PROVIDER, "--url_prefix=/ops/flower/", "--debug") as server:
        yield server


def resume(client: httpx.Client, run_id: str, **headers: str) -> httpx.Response:
    body = {"reason": "a test"}
    return client.post(f"/api/durable/run/{run_id}/resume", json=body, headers={**ACTION, **headers})


def test_the_tab_is_on_every_page_of_flower_and_active_on_its_own(basic: FlowerServer) -> None:
    with basic.client(ADA) as client:
        for path in ("/", "/tasks", "/broker", "/durable", "/durable/overview", "/durable/run/story"):
            page = client.get(path)
            assert page.status_code == 200, page.text[-500:]
            assert 'href="/durable"' in page.text, path
            assert ('href="/durable" aria-current="page"' in page.text) is path.startswith("/durable")


def test_pages_need_whatever_flower_needs(basic: FlowerServer, provided: FlowerServer) -> None:
    paths = (
        "/durable",
        "/durable/run/story",
        "/durable/run/story/payload?part=result",
        "/durable/stream",
        "/api/durable/runs",
        "/api/durable/run/story",
    )
    with basic.client() as anonymous, provided.client() as stranger:
        for path in paths:
            answer = anonymous.get(path)
            assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (401, True), path
            answer = stranger.get(path)
            assert answer.status_code == 302, path
            assert answer.headers["Location"].startswith("/ops/flower/login?next=")
        assert resume(anonymous, "story").status_code == 401
        assert resume(stranger, "story").status_code == 403


def test_links_and_routes_keep_the_prefix(provided: FlowerServer) -> None:
    with provided.client(follow_redirects=True) as client:
        page = client.get("/durable")
        assert 'href="/ops/flower/durable/run/story"' in page.text
        assert 'href="/ops/flower/durable" aria-current="page"' in page.text
        style = page.text.partition('<link rel="stylesheet" href="/ops/flower/durable/static')[2].partition(
            '"'
        )[0]
        assert client.get(f"/durable/static{style}").headers["Content-Type"] == "text/css"
        assert client.get("/durable/run/story").status_code == 200


def test_lists_are_filtered_and_paged_by_their_url(basic: FlowerServer) -> None:
    with basic.client(ADA) as client:

        def ids(query: str) -> list[str]:
            return [run["id"] for run in client.get(f"/api/durable/runs?{query}").json()["runs"]]

        assert ids("state=retrying") == ["waiting"]
        assert ids("state=failed&task=media.process") == ["story"]
        assert ids("q=stor") == ["story"]
        assert ids("error=1") == ["waiting", "story"]
        first = client.get("/api/durable/runs?limit=2").json()
        rest = client.get(f"/api/durable/runs?limit=2&before={first['next']}").json()
        assert [run["id"] for run in first["runs"] + rest["runs"]] == ids("")
        refused = client.get("/api/durable/runs?state=burning")
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "FilterError")
        assert client.get("/durable?since=yesterday").status_code == 400
        assert client.get("/api/durable/counts").json()["counts"]["retrying"] == 1


def test_a_run_that_no_live_worker_may_execute_is_listed_as_stuck_and_says_why(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    run_id = worker.enqueue(version="2026.1", task="stranded.task")
    execute(
        store,
        "update durable.run set state = 'waiting', reason = 'version', published_at = null,"
        " due = now() + interval '1 minute' where id = %s",
        run_id,
    )
    with basic.client(ADA) as client:
        listed = client.get("/api/durable/runs?state=stuck&task=stranded.task").json()["runs"]
        assert [run["id"] for run in listed] == [run_id]
        why = client.get(f"/api/durable/run/{run_id}").json()["why"]
        assert (why["stuck"], why["sentence"]) == (True, "No live worker has the code of its version 2026.1")
    execute(store, "delete from durable.run where id = %s", run_id)


def test_the_head_says_until_when_a_run_may_go_on_and_until_when_it_may_begin(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    claim = worker.start(deadline=timedelta(hours=1), expires=timedelta(hours=2))
    unclaimed = worker.enqueue(expires=timedelta(hours=2))
    with basic.client(ADA) as client:
        claimed = client.get(f"/durable/run/{claim.id}").text
        assert "<dt>Deadline</dt>" in claimed
        assert "<dt>Expires</dt>" not in claimed  # it has begun
        page = client.get(f"/durable/run/{unclaimed}").text
        assert "<dt>Expires</dt>" in page
        assert "<dt>Deadline</dt>" not in page
        assert client.get(f"/api/durable/run/{claim.id}").json()["run"]["deadline"]


def test_a_failed_run_is_not_stuck_wherever_that_is_said(basic: FlowerServer) -> None:
    with basic.client(ADA) as client:
        why = client.get("/api/durable/run/story").json()["why"]
        assert (why["tone"], why["stuck"]) == ("bad", False)
        listed = client.get("/api/durable/runs?state=stuck&id=story").json()["runs"]
        assert [run["id"] for run in listed] == []


def test_a_run_is_told_in_json_with_why_it_does_not_move(basic: FlowerServer) -> None:
    with basic.client(ADA) as client:
        told = client.get("/api/durable/run/waiting").json()
        assert told["why"]["sentence"].startswith("Waits for a retry until")
        assert [attempt["outcome"] for attempt in told["attempts"]] == ["retry"]
        assert client.get("/api/durable/run/nobody").status_code == 404
        assert client.get("/durable/run/nobody").status_code == 404
        assert client.get("/api/durable/overview?window=15m").json()["workers"]


def test_the_overview_counts_a_run_whose_result_was_stored_from_outside_before_anybody_claimed_it(
    basic: FlowerServer, store: Store
) -> None:
    run_id = Worker(store).enqueue()
    execute(
        store,
        "update durable.run set state = 'succeeded', due = null, finished_at = now() - interval '6 days'"
        " where id = %s",
        run_id,
    )
    with basic.client(ADA) as client:
        slots = client.get("/api/durable/overview?window=7d").json()["slots"]
        assert next(slot["took"] for slot in slots if slot["succeeded"]) == [None, None]
        assert client.get("/durable/overview?window=7d").status_code == 200
    execute(store, "delete from durable.run where id = %s", run_id)


def test_what_runs_bring_along_is_text_and_never_markup(basic: FlowerServer, runs: dict[str, str]) -> None:
    with basic.client(ADA) as client:
        for path in ("/durable", "/durable/run/story"):
            text = client.get(path).text
            assert "&lt;script&gt;" in text
            assert HOSTILE not in text
        listed = client.get("/durable", params={"q": HOSTILE, "worker": '"><img src=x>'}).text
        assert HOSTILE not in listed
        assert "<img src=x>" not in listed
        assert "default-src 'self'" in client.get("/durable/run/story").headers["Content-Security-Policy"]
        for path in ("/durable/run/a%00b", "/api/durable/run/a%00b", "/durable?q=a%00b", "/durable/run/%FF"):
            assert client.get(path).status_code == 400, path
        page = client.get("/durable/run/odd%2Fid%20%3F%26%23%3Cb%3E")
        assert page.status_code == 200
        assert "odd/id ?&amp;#&lt;b&gt;" in page.text


def test_payloads_are_read_searched_and_downloaded_as_they_are_stored(basic: FlowerServer) -> None:
    with basic.client(ADA) as client:

        def payload(query: str, run: str = "story") -> Any:
            return client.get(f"/durable/run/{run}/payload?{query}").json()

        assert json.loads(payload("part=arguments")["text"]) == {
            "args": ["s3cret"],
            "kwargs": {"token": "s3cret"},
        }
        assert json.loads(payload("part=output&step=fetch")["text"]) == {"token": "s3cret"}
        assert payload("part=input&step=fetch")["text"] == "(url='s3cret')"
        assert payload("part=result", "odd%2Fid%20%3F%26%23%3Cb%3E")["form"] == "hex"
        state = client.get("/durable/run/story/state", params={"step": HOSTILE}).json()
        assert [step["key"] for step in state["steps"]] == ["fetch", HOSTILE]
        raw = client.get("/durable/run/story/raw?part=output&step=fetch")
        assert raw.content == b'{"token": "s3cret"}'
        assert raw.headers["Content-Disposition"] == 'attachment; filename="story-fetch.json"'
        assert "sandbox" in raw.headers["Content-Security-Policy"]
        assert client.get("/durable/run/story/payload?part=output&step=nothing").status_code == 404
        assert client.get("/durable/run/story/payload?part=everything").status_code == 400


def test_a_payload_of_fifty_megabytes_is_shown_in_part_and_downloaded_whole(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    claim = worker.start("large")
    worker.step(claim, "huge", 1, output=b'"' + b"\xc3\xa9" * 26_000_000 + b'"')
    worker.succeed(claim)
    with basic.client(ADA) as client:
        shown = client.get("/durable/run/large/payload?part=output&step=huge")
        assert len(shown.content) < 500_000
        assert (shown.json()["bytes"], shown.json()["whole"]) == (52_000_002, False)
        raw = client.get("/durable/run/large/raw?part=output&step=huge")
        assert len(raw.content) == 52_000_002


def test_without_authentication_pages_are_open_payloads_hidden_and_nothing_can_be_done(
    opened: FlowerServer,
) -> None:
    with opened.client() as client:
        page = client.get("/durable/run/story")
        assert page.status_code == 200
        assert "(url=" not in page.text
        assert "start it with --basic_auth or --auth" in page.text
        assert client.get("/durable/run/story/payload?part=arguments").status_code == 403
        assert client.get("/durable/run/story/raw?part=arguments").status_code == 403
        assert client.get("/durable/run/story/state?step=fetch").status_code == 403
        assert client.get("/api/durable/run/story").status_code == 401
        assert resume(client, "story").status_code == 401


def test_a_change_across_sites_is_refused_however_open_flower_is(
    world: World, provided: FlowerServer
) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    with flower(world, variables={"FLOWER_UNAUTHENTICATED_API": "true"}) as server, server.client() as client:
        assert resume(client, "nobody", **foreign).status_code == 403
        plain = client.post("/api/durable/run/nobody/resume", content=b'{"reason":"x"}')
        assert plain.status_code == 403  # as a form of another site would send it
        assert resume(client, "nobody").status_code == 404
        preflight = client.options("/api/durable/run/nobody/resume", headers=foreign)
        assert "x-durable-action" not in preflight.headers.get("Access-Control-Allow-Headers", "").lower()
    with provided.client(follow_redirects=True) as client:
        client.get("/durable")
        assert resume(client, "nobody").status_code == 403  # no token
        token = {"X-XSRFToken": client.cookies["_xsrf"]}
        assert resume(client, "nobody", **token, **foreign).status_code == 403
        assert resume(client, "nobody", **token).status_code == 404


def test_in_read_only_mode_nothing_can_be_done(world: World) -> None:
    with flower(world, BASIC, "--read_only=true") as server, server.client(ADA) as client:
        assert resume(client, "story").status_code == 403
        assert "Flower is in read-only mode" in client.get("/durable/run/story").text
        bulk = {"action": "cancel", "ids": ["waiting"], "reason": "x"}
        assert client.post("/api/durable/bulk", json=bulk, headers=ACTION).status_code == 403


def test_an_action_is_done_once_and_audited_with_its_user_and_reason(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    failed, waiting = worker.fail(worker.start()), worker.retry(worker.start())
    with basic.client(ADA) as client:

        def act(run_id: str, name: str, **body: Any) -> httpx.Response:
            return client.post(f"/api/durable/run/{run_id}/{name}", json=body, headers=ACTION)

        assert act(failed, "resume").status_code == 400  # no reason
        assert act(failed, "resume", reason="x" * 5_000_000).status_code == 413
        assert act(failed, "explode", reason="x").status_code == 404
        assert act(failed, "resume", reason="the API is back").json()["state"] == "pending"
        again = act(failed, "resume", reason="again")
        assert (again.status_code, again.json()["error"]["type"]) == (409, "RunStateError")
        assert act(waiting, "retry", reason="now").json()["changed"] is True
        assert act(waiting, "cancel", reason="not at all").json()["state"] == "cancelled"
        events = client.get(f"/api/durable/run/{failed}").json()["events"]
    assert [(one["kind"], one["actor"], one["detail"]["reason"]) for one in events] == [
        ("resumed", "ada", "the API is back")
    ]


CHANGES = {
    "resume": {"reason": "x"},
    "retry": {"reason": "x"},
    "cancel": {"reason": "x"},
    "fork": {"reason": "x"},
    "signal": {"name": "go"},
}
MISSPELT: list[tuple[dict[str, Any], str]] = [
    ({"dryrun": True}, "There is no field 'dryrun'; "),
    ({"dry_run": "true"}, ""),
    ({"dry_run": None}, ""),
    ({"reasno": "x"}, "There is no field 'reasno'; "),
    ({"100%s": 1}, "There is no field '100%s'; known are "),
]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_whose_body_is_misspelt_is_refused_and_changes_nothing(
    basic: FlowerServer, world: World, store: Store, name: str
) -> None:
    run = world.send("plain", "text")
    Worker(store).claim(run.id)
    with basic.client(ADA) as client:
        before = client.get("/api/durable/runs?limit=1").json()["runs"]
        for wrong, words in MISSPELT:
            path = f"/api/durable/run/{run.id}/{name}"
            refused = client.post(path, json={**CHANGES[name], **wrong}, headers=ACTION)
            assert refused.status_code == 400, (wrong, refused.text)
            assert words in refused.json()["error"]["message"]
        told = client.get(f"/api/durable/run/{run.id}").json()
        assert (told["run"]["state"], told["events"], told["signals"]) == ("running", [], [])
        assert client.get("/api/durable/runs?limit=1").json()["runs"][0]["id"] == before[0]["id"]


def test_a_fork_with_arguments_that_its_task_does_not_take_is_told_so(
    basic: FlowerServer, world: World
) -> None:
    result = world.send("plain", "text")
    with basic.client(ADA) as client:
        path = f"/api/durable/run/{result.id}/fork"
        for body in ({"reason": "x"}, {"dry_run": True}):
            refused = client.post(path, json={"args": [1, 2, 3], **body}, headers=ACTION)
            assert refused.status_code == 400
            assert "The task does not take these arguments: " in refused.json()["error"]["message"]


def test_a_fork_says_first_which_steps_run_again(basic: FlowerServer, world: World, store: Store) -> None:
    source = world.send("plain", "text")
    worker = Worker(store)
    claim = worker.claim(source.id)
    for seq, key in enumerate(("one", "two", "three"), 1):
        worker.step(claim, key, seq)
    worker.fail(claim)
    with basic.client(ADA) as client:
        path = f"/api/durable/run/{source.id}/fork"
        plan = client.post(path, json={"from_step": "two", "dry_run": True}, headers=ACTION).json()
        assert (plan["kept"], plan["again"], plan["id"]) == (["one"], ["two", "three"], None)
        assert client.post(path, json={"from_step": "two"}, headers=ACTION).status_code == 400
        body = {"from_step": "two", "args": ["other"], "reason": "a wrong text"}
        made = client.post(path, json=body, headers=ACTION).json()
        told = client.get(f"/api/durable/run/{made['id']}").json()
        assert [step["key"] for step in told["steps"]] == ["one"]
        wrong = client.post(path, json={"from_step": "nine", "reason": "x"}, headers=ACTION)
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (404, "StepNotFoundError")


def test_a_signal_is_sent_to_a_run_and_kept_with_its_sender(
    basic: FlowerServer, world: World, store: Store
) -> None:
    result = world.send("plain", "text")
    with basic.client(ADA) as client:
        path = f"/api/durable/run/{result.id}/signal"
        sent = {"name": "approved", "payload": {"by": "ada"}, "idempotency_key": "form-17"}
        assert client.post(path, json={"payload": 1}, headers=ACTION).status_code == 400
        assert client.post(path, json=sent, headers=ACTION).json() == {"delivered": True}
        assert client.post(path, json=sent, headers=ACTION).json() == {"delivered": False}
        told = client.get(f"/api/durable/run/{result.id}").json()
        assert [(one["name"], one["actor"], one["taken_by"]) for one in told["signals"]] == [
            ("approved", "ada", None)
        ]
        carried = client.get(f"/durable/run/{result.id}/payload?part=signal&number=0").json()
        assert json.loads(carried["text"]) == {"by": "ada"}
        assert client.get(f"/durable/run/{result.id}/payload?part=signal&number=1").status_code == 404
        assert client.post("/api/durable/run/story/signal", json=sent, headers=ACTION).status_code == 409


def test_whoever_holds_a_token_sends_its_signal_once_and_nobody_else_does(
    basic: FlowerServer, world: World
) -> None:
    result = world.send("plain", "text")
    soon = datetime.fromtimestamp(time.time() + 300, timezone.utc)
    token = sign(Token(result.id, "approved", "here", soon), SECRET)
    late = sign(Token(result.id, "approved", "there", soon - timedelta(hours=1)), SECRET)
    forged = sign(Token(result.id, "approved", "here", soon), "another secret")
    with basic.client() as anybody, basic.client(ADA) as client:

        def send(token: str, **options: Any) -> httpx.Response:
            foreign = {"Origin": "https://pay.example", "Sec-Fetch-Site": "cross-site"}
            return anybody.post(f"/api/durable/token/{token}", headers=foreign, **options)

        assert send(forged, json=1).status_code == 403
        assert send(late, json=1).status_code == 403
        assert send(token, content=b"not json").status_code == 400
        assert send(token, json={"paid": True}).json() == {"delivered": True}
        assert send(token, json={"paid": True}).json() == {"delivered": False}
        told = client.get(f"/api/durable/run/{result.id}").json()
        assert [(one["name"], one["actor"]) for one in told["signals"]] == [("approved", "token")]


def test_bulk_counts_first_changes_what_it_can_and_refuses_an_empty_filter(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    failed = [worker.fail(worker.start(task="bulk.task")) for _ in range(3)]
    worker.succeed(worker.start(task="bulk.task"))
    with basic.client(ADA) as client:

        def bulk(**body: Any) -> httpx.Response:
            return client.post("/api/durable/bulk", json={"action": "resume", **body}, headers=ACTION)

        assert bulk(filter={}, reason="x").status_code == 400
        assert bulk(filter={"tsk": "bulk.task"}, reason="x").status_code == 400
        assert bulk(ids=[], reason="x").status_code == 400
        counted = bulk(filter={"task": "bulk.task"}, dry_run=True).json()
        assert (counted["count"], set(counted["ids"]), counted["more"]) == (3, set(failed), False)
        assert bulk(filter={"task": "bulk.task"}).status_code == 400  # no reason
        done = bulk(ids=[*failed, "nobody"], reason="the API is back").json()
    assert done["changed"] == 3
    assert done["runs"][-1]["error"]["type"] == "RunNotFoundError"


def test_bulk_acts_on_what_is_meant_alone(basic: FlowerServer, store: Store) -> None:
    worker = Worker(store)
    failed, done = worker.fail(worker.start(task="meant")), worker.succeed(worker.start(task="meant"))
    meant = {"action": "resume", "ids": [failed], "reason": "x"}
    with basic.client(ADA) as client:

        def bulk(**body: Any) -> httpx.Response:
            return client.post("/api/durable/bulk", json=body, headers=ACTION)

        for wrong, words in [
            ({"dry_run": "true"}, "dry_run is neither true nor false"),
            ({"dryrun": True}, "There is no field 'dryrun'; did you mean 'dry_run'?"),
            ({"filter": {"task": "meant"}}, "one of the two"),
            ({"ids": failed}, "ids is no JSON array"),
            ({"action": None}, "action is no JSON string"),
        ]:
            refused = bulk(**{**meant, **wrong})
            assert (refused.status_code, words in refused.text) == (400, True), refused.text
        assert bulk(action="resume", reason="x").status_code == 400
        counted = bulk(action="resume", ids=[failed, "nobody", done, failed], dry_run=True).json()
        assert client.get(f"/api/durable/run/{failed}").json()["run"]["state"] == "failed"
    assert (counted["count"], counted["ids"], counted["unknown"]) == (1, [failed], ["nobody"])


def test_a_redaction_function_applies_to_page_json_download_and_log(world: World) -> None:
    options = (BASIC, "--durable_redact=flowering:without_secrets")
    with flower(world, *options) as server, server.client(ADA) as client:
        for path in (
            "/durable",
            "/durable?state=failed",
            "/durable/run/story",
            "/api/durable/run/story",
            "/api/durable/runs",
            "/durable/run/story/payload?part=arguments",
            "/durable/run/story/payload?part=output&step=fetch",
            "/durable/run/story/payload?part=input&step=fetch",
            "/durable/run/story/raw?part=arguments",
            "/durable/run/story/raw?part=output&step=fetch",
            "/durable/run/story/raw?part=result",
            "/durable/run/story/state?step=fetch",
        ):
            answer = client.get(path)
            assert answer.status_code == 200, (path, answer.text)
            assert "s3cret" not in answer.text, path
        assert "s3cret" not in server.output


def test_a_stream_says_that_something_changed_and_ends_with_its_listener(
    basic: FlowerServer, store: Store
) -> None:
    worker = Worker(store)
    claim = worker.start("streamed")
    with basic.client(ADA) as client, client.stream("GET", "/durable/stream?run=streamed") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["X-Accel-Buffering"] == "no"
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: changed"
        worker.step(claim, "one", 1)
        assert next(line for line in lines if line.startswith("event")) == "event: changed"


def test_without_an_app_a_dsn_shows_the_runs_and_without_either_there_is_no_tab(
    world: World, runs: dict[str, str]
) -> None:
    backend: Any = world.app.backend
    with (
        flower(world, app=None, variables={"FLOWER_DURABLE_DSN": backend.url}) as server,
        server.client() as client,
    ):
        assert "story" in client.get("/durable").text
    worker = Worker(backend.store)
    failed = worker.fail(worker.start())
    with (
        flower(world, BASIC, f"--durable_dsn={backend.url}", app=None) as server,
        server.client(ADA) as client,
    ):
        assert resume(client, failed).json()["changed"] is True
    with flower(world, app=None) as server, server.client() as client:
        assert 'href="/durable"' not in client.get("/tasks").text
        assert client.get("/durable").status_code == 404
    with flower(world, "--durable_tab=false") as server, server.client() as client:
        assert 'href="/durable"' not in client.get("/tasks").text
        assert client.get("/durable").status_code == 404


def test_a_slow_postgres_holds_up_neither_flower_nor_the_page_for_long(world: World, store: Store) -> None:
    with flower(world, BASIC, "--durable_timeout=0.5") as server, server.client(ADA) as client:
        assert client.get("/durable").status_code == 200
        with open_transaction(store) as blocking:
            blocking.execute("lock table durable.run in access exclusive mode")
            started = time.monotonic()
            page, answer = client.get("/durable"), client.get("/api/durable/runs")
            live = client.get("/durable?part=live")
            assert client.get("/tasks").status_code == 200
            took = time.monotonic() - started
        assert (page.status_code, answer.status_code, live.status_code) == (503, 503, 503)
        assert live.json()["error"]["type"] == "StoreUnavailableError"
        assert "did not answer within 0.5 s" in page.text
        assert took < 10
        assert client.get("/durable").status_code == 200


def test_a_postgres_that_is_away_is_said_and_flower_goes_on(world: World) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dsn = f"postgresql://postgres@127.0.0.1:{closed.getsockname()[1]}/none"
        with flower(world, BASIC, f"--durable_dsn={dsn}") as server, server.client(ADA) as client:
            page = client.get("/durable")
            assert page.status_code == 503
            assert "Nothing is lost" in page.text
            assert "Connection refused" in page.text
            assert 'href="/durable"' in client.get("/tasks").text
            assert client.get("/metrics").status_code == 200


def test_metrics_count_runs_and_name_none_of_them(basic: FlowerServer) -> None:
    def metrics() -> str:
        with basic.client() as client:
            return client.get("/metrics").text

    eventually(lambda: "celery_durable_runs{" in metrics(), what=metrics)
    text = metrics()

    assert 'celery_durable_runs{reason="",state="failed"}' in text
    assert "story" not in text


def test_an_unset_up_database_is_said_with_the_command_that_sets_it_up(postgres_url: str) -> None:
    with flower_world(postgres_url) as world:
        backend: Any = world.app.backend
        execute(backend.store, "drop schema durable cascade")
        with flower(world) as server, server.client() as client:
            page = client.get("/durable")
            assert page.status_code == 200
            assert "durable init" in page.text
