"""The console as a person sees it, in Chromium: what is shown, what heals, and what is never overwritten."""

import contextlib
import json
import os
import shutil
import tempfile

import pytest

from tests.support.harness import Server, await_true

webdriver = pytest.importorskip("selenium.webdriver")
Keys = webdriver.Keys
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("Chromium and its driver are not installed (chromium, chromium-driver)", allow_module_level=True)

TOKEN = "correct-horse"
PATIENCE_SECONDS = 30
KEYS_A_PAGE = 100


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", "--workers=2") as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="kvt-") as temporary:  # Chromium does not remove all that it has there
        service = webdriver.ChromeService(DRIVER, env=os.environ | {"TMPDIR": temporary})
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


class Person:
    """Somebody before the page: looks for texts, and clicks and types where a person would."""

    def __init__(self, driver, port):
        self.driver = driver
        self.address = f"http://127.0.0.1:{port}/console"

    def open(self, view=""):
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(self.address + view)
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector):
        """All that is to be seen there."""
        seen = "[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        return self.run(f"return {seen}.map(e => e.innerText).join('\\n')", selector)

    def await_text(self, text, selector="body"):
        await_true(lambda: text in self.text(selector), PATIENCE_SECONDS, f"{text!r} in {selector}")

    def click(self, text, selector="button"):
        """The one that is to be seen and has this text, once it is there."""

        def found():
            return self.run(
                "return [...document.querySelectorAll(arguments[0])].find("
                "e => e.innerText.trim() === arguments[1] && e.offsetParent && !e.disabled)",
                selector,
                text,
            )

        await_true(found, PATIENCE_SECONDS, f"a {selector} {text!r}")
        found().click()

    def type(self, text, selector):
        await_true(lambda: self.driver.find_elements("css selector", selector), PATIENCE_SECONDS, selector)
        field = self.driver.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)

    def open_key(self, key, shown):
        self.run("location.hash = `#data/${arguments[0]}`", key)
        self.await_text(shown, ".value")

    def hold(self, request):
        """Keeps back what the page sends as this, such as "GET /keys", until `release`."""
        self.run(
            """
            const [real, held] = [window.fetch, []];
            window.release = () => {
              window.fetch = real;
              held.forEach((go) => go());
            };
            window.fetch = async (address, options) => {
              if (`${options.method} ${address.pathname}` === arguments[0]) await new Promise((go) => held.push(go));
              return real(address, options);
            };
            """.replace("arguments[0]", json.dumps(request))
        )

    def release(self):
        self.run("window.release()")

    def complaints(self):
        """What the browser complains of, but for answers that were no success: those are for the page to explain."""
        return [each for each in self.driver.get_log("browser") if "Failed to load resource" not in each["message"]]


@pytest.fixture
def person(chromium, server):
    person = Person(chromium, server.port)
    yield person
    with contextlib.suppress(Exception):  # a dialog of the browser that asks whether to leave
        person.run("window.onbeforeunload = null")
    assert person.complaints() == []


def listed(person):
    return person.text(".keys").split()


# The server ----------------------------------------------------------------------------------------------


def test_the_page_shows_the_server_live_and_asks_nobody_else(person, server):
    server.put("a", b"1")
    person.open().await_text("Takes reads and writes", "#health")
    person.await_text("1 key", ".cards")
    for number in range(200):
        server.put(f"live:{number % 10}", b"x")
    person.await_text("11 keys", ".cards")
    person.await_text("ms", ".cards table")
    pids = {str(each.pid) for role in ("supervisor", "logd", "gunicorn", "worker") for each in server.role(role)}
    await_true(lambda: pids <= set(person.text(".processes").split()), PATIENCE_SECONDS, "the pids")
    asked = person.run("return performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert set(asked) == {person.address.removesuffix("/console")}


def test_a_killed_logd_is_seen_with_how_long_it_was_away_and_what_that_means(person, server):
    person.open().await_text("serves", "tr[data-role=logd]")
    killed = server.only("logd").pid
    server.only("logd").kill()
    await_true(lambda: str(killed) not in person.text(".processes"), PATIENCE_SECONDS, "another logd")
    person.await_text("again after", "tr[data-role=logd][data-state=ready]")
    person.await_text("The log writer was killed and is started again.", ".events")
    person.await_text("logd ended with status -9", ".events small")
    person.await_text("logd does its work again, as process", ".events")
    person.await_text("Takes reads and writes", "#health")


def test_a_killed_worker_is_seen_and_so_is_the_one_in_its_place(person, server):
    person.open().await_text("serves", "tr[data-role=worker]:last-child[data-state=ready]")
    killed = server.role("worker")[0]
    killed.kill()
    person.await_text(f"Worker {killed.pid} was ended by SIGKILL; another one takes its place.", ".events")
    person.await_text("answers requests.", ".events")


def test_while_logd_is_away_the_page_says_so_and_goes_on_with_the_rest(person, server):
    person.open().await_text("Takes reads and writes", "#health")
    logd = server.only("logd")
    logd.suspend()
    try:
        person.await_text("Not ready: ", "#health")
        person.await_text("does not answer", "tr[data-role=logd]")
    finally:
        logd.resume()
    person.await_text("Takes reads and writes", "#health")


def test_on_a_phone_nothing_is_wider_than_the_screen(person):
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    person.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for view, shown in (("#server", "serves"), ("#data", "Refresh")):
            person.open(view).await_text(shown, "main")
            assert person.run("return document.documentElement.scrollWidth") == 360
    finally:
        person.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_rates_and_quantiles_are_those_of_prometheus(person):
    person.open().await_text("Takes reads and writes", "#health")
    counter = 'c_total{{method="GET",status="200"}} {0}\n'
    buckets = 'h_bucket{{le="0.1"}} {1}\nh_bucket{{le="1.0"}} {2}\nh_bucket{{le="+Inf"}} {2}\n'
    scrape = f"{counter}{buckets}h_sum {{0}}\nh_count {{2}}\n"
    computed = person.driver.execute_async_script(
        """
        const [older, newer, done] = arguments;
        import("/console/metrics.js").then(({ Scrape, Interval }) => {
          const last = new Interval(new Scrape(older, 10), new Scrape(newer, 12));
          const restarted = new Interval(new Scrape(newer, 10), new Scrape(older, 12));
          done([last.rate("c_total", { method: ["GET", "HEAD"] }), last.quantile(0.5, "h"), last.quantile(0.95, "h"),
                last.mean("h"), last.rate("none") ?? null, restarted.rate("c_total") ?? null]);
        });
        """,
        scrape.format(10, 5, 5),
        scrape.format(30, 13, 15),
    )
    assert computed == pytest.approx([10, 0.0625, 0.775, 2.0, None, None])


# Data ----------------------------------------------------------------------------------------------------


def test_keys_are_found_by_their_beginning_and_page_by_page(person, server):
    lines = [{"op": "put", "key": f"page:{number:03}", "value": "v"} for number in range(250)]
    assert server.call("POST", "/batch", "\n".join(map(json.dumps, lines)).encode()).status == 200
    server.put("a", b"without the prefix, so that what it finds is told from all keys")
    person.open("#data").await_text("page:000", ".keys")
    person.type("page:", "#prefix")
    await_true(lambda: listed(person)[0] == "page:000", PATIENCE_SECONDS, "the prefix")
    seen = listed(person)
    for number in (2, 3):
        person.click("Next")
        person.await_text(f"page {number}", ".list")
        seen += listed(person)
    assert seen == [line["key"] for line in lines]
    person.click("Previous")
    await_true(lambda: listed(person)[0] == f"page:{KEYS_A_PAGE}", PATIENCE_SECONDS, "the page before")
    person.run("for (let i = 0; i < 2; i++) [...document.querySelectorAll('.list button')].at(-1).click()")
    person.await_text("page 3", ".list")
    assert listed(person) == seen[2 * KEYS_A_PAGE :]
    person.type("none", "#prefix")
    person.await_text("No key begins with “none”.")
    person.type("a b", "#prefix")
    person.await_text("prefix contains invalid characters")


def test_the_arrows_walk_along_the_keys_and_enter_shows_a_value(person, server):
    for name in "xyz":
        server.put(f"walk:{name}", name.encode())
    person.open("#data").type("walk:", "#prefix")
    await_true(lambda: listed(person) == ["walk:x", "walk:y", "walk:z"], PATIENCE_SECONDS, "the prefix")
    person.run("document.querySelector('.keys a').focus()")
    for key in ("ARROW_DOWN", "ARROW_DOWN", "ARROW_UP", "ENTER"):
        person.driver.switch_to.active_element.send_keys(getattr(Keys, key))
    person.await_text("walk:y", ".value h2")
    person.await_text("y", ".value pre")


def test_a_value_is_changed_and_a_new_key_is_made(person, server):
    server.put("edit", b"before")
    person.open("#data/edit").await_text("before", ".value")
    person.click("Edit")
    person.type("after", "textarea")
    person.click("Store")
    person.await_text("Stored: it is on the disk.")
    assert server.get("edit") == b"after"
    person.click("New key")
    person.type("made:here", ".value input")
    person.type("new\nvalue", "textarea")
    person.click("Store")
    person.await_text("made:here", ".value h2")
    person.await_text("Stored: it is on the disk.")
    assert server.get("made:here") == b"new\nvalue"
    person.await_text("made:here", ".keys")


def test_what_somebody_else_has_stored_meanwhile_is_shown_and_not_overwritten_unasked(person, server):
    server.put("shared", b"one")
    person.open("#data/shared").await_text("one", ".value pre")
    person.click("Edit")
    person.type("mine", "textarea")
    server.put("shared", b"theirs")
    person.click("Store")
    person.await_text("Not stored: this key has changed since you began")
    person.await_text("theirs", ".value pre")
    assert "Store" not in person.text(".value button").split("\n")
    assert server.get("shared") == b"theirs"
    server.put("shared", b"theirs again")
    person.click("Replace it by my text")
    person.await_text("theirs again", ".value pre")
    assert server.get("shared") == b"theirs again"
    person.click("Replace it by my text")
    person.await_text("Stored: it is on the disk.")
    assert server.get("shared") == b"mine"


def test_a_key_is_deleted_after_a_question_and_only_as_it_was_shown(person, server):
    server.put("gone", b"one")
    person.open("#data/gone").await_text("one", ".value pre")
    person.click("Delete …")
    person.click("Cancel", "dialog button")
    assert server.get("gone") == b"one"
    server.put("gone", b"two")
    person.click("Delete …")
    person.click("Delete", "dialog button")
    person.await_text("Not deleted: it has changed meanwhile.")
    person.await_text("two", ".value pre")
    assert server.get("gone") == b"two"
    person.click("Delete …")
    person.click("Delete", "dialog button")
    person.await_text("Deleted.")
    assert server.get("gone") is None


def test_a_question_about_one_key_is_gone_when_another_one_is_shown(person, server):
    for name in ("first", "second"):
        server.put(name, name.encode())
    person.open("#data/first").await_text("first", ".value pre")
    person.open_key("second", "ETag")
    person.await_text("second", ".value pre")
    person.click("Delete …")
    person.await_text("second, 6 bytes.", "dialog")
    person.driver.back()
    person.await_text("first", ".value pre")
    assert person.text("dialog") == ""
    assert (server.get("first"), server.get("second")) == (b"first", b"second")


def test_an_answer_that_comes_after_somebody_has_gone_on_changes_nothing_that_is_shown(person, server):
    for name in ("a.late", "a.soon"):
        server.put(name, name.encode())
    person.open("#data").await_text("a.soon", ".keys")
    person.hold("GET /kv/a.late")
    person.open_key("a.late", "Asking …")
    person.open_key("a.soon", "ETag")
    person.release()
    person.open_key("a.late", "ETag")
    person.await_text("a.late", ".keys [aria-current]")
    person.click("Edit")
    person.type("stored late", "textarea")
    person.hold("PUT /kv/a.late")
    person.click("Store")
    person.run("location.hash = '#data/a.soon'")
    person.click("Leave", "dialog button")
    person.await_text("a.soon", ".value pre")
    person.release()
    await_true(lambda: server.get("a.late") == b"stored late", PATIENCE_SECONDS, "the value")
    person.await_text("a.soon", ".keys [aria-current]")
    assert person.text(".value h2") == "a.soon"


def test_while_a_value_is_stored_nothing_can_be_typed_that_would_be_lost(person, server):
    server.put("busy", b"one")
    person.open("#data/busy").await_text("one", ".value pre")
    person.click("Edit")
    person.type("two", "textarea")
    person.hold("PUT /kv/busy")
    person.click("Store")
    person.await_text("Storing …", ".value")
    person.driver.find_element("css selector", "textarea").send_keys(" three", Keys.CONTROL, Keys.ENTER)
    assert person.run("return [...document.querySelectorAll('.value button')].every((each) => each.disabled)")
    person.release()
    person.await_text("Stored: it is on the disk.")
    assert server.get("busy") == b"two"


def test_a_value_whose_answer_was_lost_is_found_to_be_stored_and_nobody_else_is_blamed(person, server):
    server.put("lost", b"one")
    lose = """
        const real = window.fetch;
        window.fetch = async (address, options) => {
          const response = await real(address, options);
          if (options.method !== "PUT") return response;
          window.fetch = real;
          throw new TypeError("lost");
        };
    """
    for text, next_click in (("two", "Look whether it is stored"), ("three", "Store")):
        person.open("#data/lost").await_text("ETag", ".value")
        person.click("Edit")
        person.type(text, "textarea")
        person.run(lose)
        person.click("Store")
        person.await_text("No answer from the server.", ".value")
        person.click(next_click)
        person.await_text("It is stored.", ".value")
        assert server.get("lost") == text.encode()


def test_an_answer_that_is_cut_off_or_that_stops_is_a_failure_that_is_told(person):
    person.open("#data").await_text("Refresh", ".list")
    person.run(
        """
        window.fetch = async (_, { signal }) => new Response(new ReadableStream({
          start(body) {
            body.enqueue(new TextEncoder().encode("half a k"));
            signal.addEventListener("abort", () => body.error(signal.reason));
            if (!window.isSilent) body.error(new TypeError("cut off"));
          },
        }));
        """
    )
    person.click("Refresh")
    person.await_text("No answer from the server (the answer was cut off).", ".list")
    message = person.driver.execute_async_script(
        """
        const [done] = arguments;
        window.isSilent = true;
        import("/console/api.js")
          .then(({ request }) => request("keys", { timeoutMs: 50 }))
          .catch((failure) => done(failure.message));
        """
    )
    assert message == "the answer was cut off"


def test_a_key_that_no_browser_can_ask_for_is_said_to_be_one(person, server):
    assert server.call("POST", "/batch", b'{"op": "put", "key": "..", "value": "up"}').status == 200
    person.open("#data/..").await_text("A browser cannot ask for the key “..”.", ".value")


def test_what_was_typed_is_not_thrown_away_unasked(person, server):
    server.put("draft", b"one")
    person.open("#data/draft").await_text("one", ".value pre")
    person.click("Edit")
    person.type("half", "textarea")
    person.run("location.hash = '#data'")
    person.click("Cancel", "dialog button")
    assert person.run("return [location.hash, document.querySelector('textarea').value]") == ["#data/draft", "half"]
    person.run("location.hash = '#data'")
    person.click("Leave", "dialog button")
    person.await_text("Choose a key to see its value.")


def test_a_value_is_shown_as_what_it_is_whatever_it_is(person, server):
    markup = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    server.put("odd:markup", markup.encode())
    server.put("odd:control", b"\x00\x01\x1b[31mred")
    server.put("odd:lines", b"a\r\nb\r\n")
    server.put("odd:large", b"0123456789abcde\n" * 40_000)
    person.open("#data/odd:markup").await_text(markup, ".value pre")
    assert person.run("return document.title") not in ("1", "2")
    person.open_key("odd:control", "00000000  00 01 1b 5b 33 31 6d 72")
    person.click("Show as text")
    person.await_text("␀␁␛[31mred", ".value pre")
    person.open_key("odd:lines", "It cannot be edited here")
    person.open_key("odd:large", "The first 32 KiB of 625 KiB:")
    assert len(person.text(".value pre")) <= 32 << 10
    assert server.get("odd:lines") == b"a\r\nb\r\n"


def test_a_value_is_downloaded_byte_by_byte(person, server, tmp_path):
    server.put("down:load", "Zürich\r\n\0".encode())
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    person.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    person.open("#data/down:load").await_text("down:load", ".value h2")
    person.click("Download")
    await_true((tmp_path / "down_load.txt").exists, PATIENCE_SECONDS, "the file")
    assert (tmp_path / "down_load.txt").read_bytes() == "Zürich\r\n\0".encode()


def test_when_logd_is_away_data_says_so_and_is_asked_for_again_when_it_is_back(person, server):
    server.put("back", b"again")
    person.open("#data").await_text("back", ".keys")
    logd = server.only("logd")
    logd.suspend()
    try:
        person.await_text("Not ready: ", "#health")
        person.run("location.hash = '#data/back'")
        person.await_text("Asking …", ".value")
    finally:
        logd.resume()
    person.await_text("again", ".value pre")


# The token -----------------------------------------------------------------------------------------------


def test_the_page_asks_for_the_token_and_keeps_it_in_its_memory_alone(chromium, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    with Server(tmp_path / "data", "--workers=1", f"--token-file={token_file}") as server:
        person = Person(chromium, server.port).open()
        person.await_text("This server asks for a token")
        person.type("wrong", "#token")
        person.click("Go on")
        person.await_text("The server does not accept this token.")
        assert person.text("#server") == ""
        person.type(TOKEN, "#token")
        person.click("Go on")
        person.await_text("serves", "tr[data-role=logd]")
        assert person.run("return document.getElementById('token').value") == ""
        kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert TOKEN not in person.run(kept)
        guarded = {"Authorization": f"Bearer {TOKEN}"}
        assert server.call("PUT", "/kv/marked", b"a bookmark", headers=guarded).status < 300
        person.open("#data/marked").await_text("This server asks for a token")
        person.run("performance.clearResourceTimings()")
        asked = "return performance.getEntriesByType('resource').map(e => new URL(e.name).pathname)"
        await_true(lambda: set(person.run(asked)) == {"/health"}, PATIENCE_SECONDS, "health alone")
        person.type(TOKEN, "#token")
        person.click("Go on")
        person.await_text("a bookmark", ".value pre")
        person.await_text("marked", ".keys")
        assert person.complaints() == []
