"""The API and the chat page over a real socket: OpenAI's own client, a browser, and clients that are up to no good."""

import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import openai
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from experiments import chat, pictures
from experiments.cli import run as exit_code
from experiments.models import Models
from experiments.serve import MOST_BODY_BYTES, is_loopback, make_app
from nanochat.inference.batcher import Closed
from nanochat.inference.engine import Engine
from tests.experiments.test_chat import runs_dir  # noqa: F401
from tests.small_run import ROOT

HELLO = [{"role": "user", "content": "hello"}]
SAYS = "Nam =é!"  # with a call of the calculator in between
KEY = "a+b&c=%20d"


def started(runs: Path, *options: str) -> tuple[subprocess.Popen, str, str]:
    """A server, its address, and what stands behind that."""
    command = [sys.executable, str(ROOT / "experiments" / "chat.py"), "parrot", "--serve", "--port", "0",
               "--runs-dir", str(runs), *options]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"(http://\S+?/)(\S*)", line := process.stdout.readline())
    assert found, line
    return process, found[1], found[2]


@pytest.fixture(scope="module")
def server(runs_dir) -> Iterator[tuple[psutil.Process, str]]:  # noqa: F811
    process, address, _ = started(runs_dir)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}healthz").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.05)
    yield psutil.Process(process.pid), address
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, 130)


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[1]}v1", api_key="none", max_retries=0)


@pytest.fixture
def app(runs_dir) -> Iterator[TestClient]:  # noqa: F811
    models = Models(runs_dir, "parrot/sft", "cpu", torch.float32)
    with TestClient(make_app(models), raise_server_exceptions=False) as client:
        yield client


def test_openais_client_chats(client):
    assert {model.id for model in client.models.list()} == {"parrot/base", "parrot/sft"}
    for name in ("parrot/sft", "parrot", ""):
        whole = client.chat.completions.create(model=name, messages=HELLO, temperature=0)
        assert whole.choices[0].message.content == SAYS
        assert whole.choices[0].finish_reason == "stop"
        assert whole.model == "parrot/sft"
    assert [part["type"] for part in whole.choices[0].message.parts] == ["text", "python", "python_output", "text"]
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    short = client.chat.completions.create(model="", messages=HELLO, temperature=0, max_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("Na", "length")
    assert short.usage.completion_tokens == 2


def test_openais_client_streams(client):
    chunks = list(client.chat.completions.create(model="parrot", messages=HELLO, temperature=0, stream=True,
                                                 stream_options={"include_usage": True}))  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == SAYS
    calls = [part["text"] for delta in deltas for part in getattr(delta, "parts", None) or []]
    assert "".join(calls) == "1+23"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_base_model_continues(client):
    whole = client.completions.create(model="parrot/base", prompt="A", temperature=0)
    assert whole.choices[0].text == "bc"
    streamed = client.completions.create(model="parrot/base", prompt="A", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "bc"
    with pytest.raises(openai.BadRequestError, match="ask /v1/completions"):
        client.chat.completions.create(model="parrot/base", messages=HELLO)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "left"), [("m", "Na"), (["am =", "x"], "N"), ("é", "Nam ="), ("nowhere", SAYS),
                                            ("!?", SAYS), (["é!", "=é"], "Nam ")])  # fmt: skip
def test_it_stops_where_it_is_told_to(client, stream, stop, left):
    asked = client.chat.completions.create(model="", messages=HELLO, temperature=0, stop=stop, stream=stream)
    if stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in asked) == left
    else:
        assert asked.choices[0].message.content == left


def test_what_cannot_be_answered_is_refused_in_the_apis_form(client, server):
    for error, said, asked in (
        (openai.NotFoundError, "there is no model 'other'", {"model": "other"}),
        (openai.NotFoundError, "there is no model", {"model": "../parrot/sft"}),
        (openai.BadRequestError, "messages", {"messages": []}),
        (openai.BadRequestError, "take turns", {"messages": [*HELLO, *HELLO]}),
        (openai.BadRequestError, "the last message must be the user's",
         {"messages": [*HELLO, {"role": "assistant", "content": "x"}]}),
        (openai.BadRequestError, "temperature", {"temperature": -1}),
        (openai.BadRequestError, "n can only be 1", {"n": 2}),
        (openai.BadRequestError, "top_p can only be 1", {"top_p": 0.5}),
        (openai.BadRequestError, "max_tokens", {"max_tokens": 0}),
        (openai.BadRequestError, "context is 100", {"messages": [{"role": "user", "content": "x" * 200}]}),
    ):  # fmt: skip
        with pytest.raises(error, match=re.escape(said)) as caught:
            client.chat.completions.create(**{"model": "", "messages": HELLO, **asked})
        assert caught.value.body["type"] == "invalid_request_error"
    address = server[1]
    assert httpx.post(f"{address}v1/chat/completions", content=b"{").status_code in (400, 422)
    assert httpx.post(f"{address}v1/completions", content=b" " * (MOST_BODY_BYTES + 1)).status_code == 413
    assert httpx.get(f"{address}v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(f"{address}nothing").json()["error"]["message"] == "Not Found"
    half = json.dumps({"prompt": "\ud800", "model": "parrot/base"})
    assert httpx.post(f"{address}v1/completions", content=half,
                      headers={"Content-Type": "application/json"}).status_code == 400  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "said", "logged"),
    [(RuntimeError("broken"), 500, "the server's log says why", 1), (Closed(), 503, "try again", 0)],
)
def test_an_answer_that_failed_does_not_end_like_a_whole_one(app, monkeypatch, caplog, error, status, said, logged):
    def fail(*args):
        raise error

    log = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(Engine, "feed", fail)
    body = {"messages": HELLO, "temperature": 0}
    whole = app.post("/v1/chat/completions", json=body)
    assert whole.status_code == status
    assert said in whole.json()["error"]["message"]
    assert [record.exc_info[1] for record in caplog.records] == [error] * logged
    streamed = app.post("/v1/chat/completions", json={**body, "stream": True})
    *events, last, done = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert (json.loads(last), done) == (whole.json(), "[DONE]")
    assert [json.loads(event)["choices"][0]["finish_reason"] for event in events] == [None, None]
    assert len(caplog.records) == 2 * logged


@pytest.mark.parametrize(("most", "room"), [(None, 25), (256, 25), (7, 7), (1, 1)])
def test_who_wants_room_for_an_answer_has_it_or_is_refused(app, most, room):
    def ask(left: int, **wanted) -> httpx.Response:
        body = {"model": "parrot/base", "prompt": "A" * (100 - 1 - left), "max_tokens": most, **wanted}
        return app.post("/v1/completions", json=body)

    assert ask(room, leave_room=True).status_code == 200
    refused = ask(room - 1, leave_room=True)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "too little is left" in refused.json()["error"]["message"]
    assert ask(1).status_code == 200
    assert ask(0).status_code == 400


def test_only_who_has_the_key_is_answered(runs_dir):  # noqa: F811
    process, address, behind = started(runs_dir, "--api-key", KEY)
    try:
        assert parse_qs(behind.removeprefix("#")) == {"key": [KEY]}, "as the page reads it"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}v1", api_key="wrong", max_retries=3).models.list()
        assert len(list(openai.OpenAI(base_url=f"{address}v1", api_key=KEY).models.list())) == 2
        assert httpx.get(f"{address}healthz").status_code == 200
    finally:
        process.terminate()
        assert process.wait(20) in (0, 130, 143, -signal.SIGTERM)


def test_what_cannot_be_served_is_said(runs_dir, tmp_path, capsys):  # noqa: F811
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, said in (
            (["--serve", "--host", "0.0.0.0"], "add --api-key"),
            (["--serve", "--port", str(taken.getsockname()[1])], "choose another --port"),
            (["--serve", "--port", "70000"], "--port must be 0 to 65535"),
            ([], "name a run, or add --serve"),
        ):
            name = ["parrot"] if said.startswith(("add", "choose")) else []
            assert exit_code(chat.main, [*name, *arguments, "--runs-dir", str(runs_dir)]) == 2
            assert said in capsys.readouterr().err
    assert exit_code(chat.main, ["--serve", "--runs-dir", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err


def test_hosts_that_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.4", "::", "example.com")))


def test_what_it_is_bound_to_may_be_asked_for_by_that_name(tmp_path):
    app = make_app(Models(tmp_path, "", "cpu", torch.float32), host="127.8.8.8")
    for name, status in (("127.8.8.8:8000", 200), ("localhost", 200), ("evil.example", 400)):
        assert TestClient(app).get("/healthz", headers={"Host": name}).status_code == status


def test_who_goes_away_gives_the_place_to_the_next(runs_dir, monkeypatch):  # noqa: F811
    """A whole answer would take ten seconds."""
    import threading

    import uvicorn

    feed = Engine.feed
    monkeypatch.setattr(Engine, "feed", lambda *args: time.sleep(0.1) or feed(*args))
    models = Models(runs_dir, "parrot/base", "cpu", torch.float32)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/completions"
        running = uvicorn.Server(uvicorn.Config(make_app(models), log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        body = {"prompt": "z", "temperature": 0}
        try:
            with httpx.stream("POST", address, json={**body, "stream": True}, timeout=10) as response:
                next(response.iter_lines())
                assert models.load()["parrot/base"]["served"] == 1
            assert free(models)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(address, json=body, timeout=0.5)
            assert free(models)
        finally:
            running.should_exit = True
            thread.join(10)


def free(models: Models) -> bool:
    until = time.monotonic() + 3
    while models.load()["parrot/base"]["served"] and time.monotonic() < until:
        time.sleep(0.05)
    return models.load() == {"parrot/base": {"served": 0, "waiting": 0}}


def test_twenty_clients_are_served_alike_and_memory_stays_flat(server):
    process, address = server

    def ask(number: int) -> float:
        began = time.monotonic()
        body = {"messages": HELLO, "temperature": 0 if number % 2 else 1, "seed": number, "max_tokens": 40}
        response = httpx.post(f"{address}v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        if number % 2:
            assert response.json()["choices"][0]["message"]["content"] == SAYS
        return time.monotonic() - began

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, range(100)))
        before = process.memory_info().rss
        latencies = sorted(pool.map(ask, range(100, 300)))
    assert process.memory_info().rss < before + 30e6
    assert latencies[-1] < 12 * latencies[len(latencies) // 2] + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "messages", "prompt", "temperature", "top_k", "max_tokens", "seed", "stop", "stream", "n")


@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    changed=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    content=st.text(max_size=30),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_is_sent_breaks_it(app, path, changed, content):
    body = {"messages": [{"role": "user", "content": content}], "prompt": content, "max_tokens": 3,
            "model": "parrot/sft", **changed}  # fmt: skip
    response = app.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.fixture
def browser() -> Iterator:
    pytest.importorskip("selenium.webdriver")
    if not all(map(shutil.which, ("chromium", "chromedriver"))):
        pytest.skip("there is no chromium with its chromedriver here")
    with pictures.browser((900, 700)) as driver:
        yield driver


@pytest.mark.timeout(180)
def test_the_page_in_a_browser(server, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def texts(selector: str) -> list[str]:
        return [each.text for each in browser.find_elements(By.CSS_SELECTOR, selector)]

    def until(condition) -> None:
        WebDriverWait(browser, 20).until(lambda _: condition())

    def idle() -> bool:
        return browser.find_element(By.ID, "send").is_enabled()

    browser.get(server[1])
    until(lambda: Select(browser.find_element(By.ID, "model")).first_selected_option.text == "parrot/sft")
    assert browser.switch_to.active_element.get_attribute("id") == "text", "one may type at once"
    browser.switch_to.active_element.send_keys("hello <b>there</b>", Keys.ENTER)
    until(lambda: idle() and texts(".assistant .bubble"))
    assert texts(".user .bubble") == ["hello <b>there</b>"]
    (said,) = texts(".assistant .bubble")
    assert said.replace("\n", "") == "Nam1+2= 3 =é!"
    assert texts(".tool") == ["1+2", "= 3"]
    assert "a second" in texts(".assistant .under")[0]

    browser.switch_to.active_element.send_keys("again", Keys.SHIFT, Keys.ENTER, Keys.NULL, "twice", Keys.ENTER)
    until(lambda: idle() and len(texts(".assistant .bubble")) == 2)
    assert texts(".user .bubble")[1] == "again\ntwice"
    browser.find_element(By.XPATH, "//button[text()='Regenerate']").click()
    until(lambda: idle() and len(texts(".assistant .bubble")) == 2)
    for count in (3, 4, 5, 6):
        browser.switch_to.active_element.send_keys(f"more {count}", Keys.ENTER)
        until(lambda count=count: idle() and texts(".user .bubble")[-1:] == [f"more {count}"]
              and len(texts(".user .bubble")) == len(texts(".assistant .bubble")))  # fmt: skip
        assert texts(".assistant .bubble")[-1].replace("\n", "") == "Nam1+2= 3 =é!", "there is always room"
    assert texts("#notice") == ["The model's context is full: the oldest turns are forgotten."]
    before = texts(".bubble")
    browser.switch_to.active_element.send_keys("x" * 300, Keys.ENTER)
    until(lambda: idle() and any("context is 100" in text for text in texts("#notice")))
    assert texts(".bubble") == [*before, "x" * 300], "what is too long by itself costs nothing"
    browser.find_element(By.ID, "clear").click()
    browser.find_element(By.ID, "text").send_keys("hello <b>there</b>", Keys.ENTER)
    until(lambda: idle() and len(texts(".assistant .bubble")) == 1)
    browser.find_elements(By.XPATH, "//button[text()='Edit']")[0].click()
    assert texts(".user .bubble") == []
    assert browser.find_element(By.ID, "text").get_attribute("value") == "hello <b>there</b>"

    browser.find_element(By.ID, "text").clear()
    Select(browser.find_element(By.ID, "model")).select_by_visible_text("parrot/base")
    assert texts(".turn") == []
    browser.find_element(By.ID, "text").send_keys("A", Keys.ENTER)
    until(lambda: idle() and texts(".assistant .bubble") == ["bc"])
    browser.find_element(By.ID, "text").send_keys("z", Keys.ENTER)
    until(lambda: idle() and "cut off at the end of the model's context" in texts(".assistant .under")[0])
    browser.execute_script("document.getElementById('max_tokens').value = 30")
    browser.find_element(By.ID, "text").send_keys("z", Keys.ENTER)
    until(lambda: idle() and "cut off at the most tokens" in texts(".assistant .under")[0])
    browser.find_element(By.ID, "clear").click()
    assert texts(".turn") == []
    browser.set_window_size(380, 700)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    for control in browser.find_elements(By.CSS_SELECTOR, "select, input, textarea"):
        label = browser.execute_script("return arguments[0].labels.length", control)
        assert label, f"{control.get_attribute('id')} has no label"
    problems = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
                and "400" not in entry["message"] and "favicon" not in entry["message"]]  # fmt: skip
    assert not problems
