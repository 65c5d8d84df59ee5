"""The release binary in front of a scripted authorization server, and a real browser. Everything is on loopback."""

import json
import os
import pathlib
import shutil
import subprocess
import urllib.request

import pytest
from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("BALANCER") or ROOT / "target/release/claude-code-balancer")
KEY = "a-dummy-key-of-the-balancer"

CONFIG = """
providers:
  - {{ name: "A", base_url: "{A}", auth_value: oauth }}
settings:
  log_file_path: ""
  language: {language}
  oauth: {{ storage: memory, authorize_url: "{authorize_url}", token_url: "{token_url}" }}
"""


def pytest_configure():
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE_")) or name.lower().endswith("_proxy"):
            del os.environ[name]


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def lab():
    """The address of the scripted provider `A`, and of the desk of the authorization server."""
    command = ["cargo", "test", "--locked", "--quiet", "--test", "lab_server", "--", "--serve", "A", "authority"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    urls = json.loads(server.stdout.readline())
    yield urls
    assert call(urls["authority"])["reuses"] == 0
    # It ends with its input.
    server.stdin.close()
    assert server.wait(timeout=10) == 0


class Balancer:
    def __init__(self, folder, lab, language="en", more=""):
        facts = call(lab["authority"])
        config = folder / "config.yaml"
        config.write_text(CONFIG.format(A=lab["A"], language=language, **facts) + more)
        config.chmod(0o600)
        self.lab = lab
        self.log = folder / "log"
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "NO_COLOR": "1"}
        command = [str(BINARY), "--config", str(config), "--port", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.url = self.announced()

    def announced(self):
        """Its address, which it says when it is ready."""
        marker = "ANTHROPIC_BASE_URL="
        while self.process.poll() is None:
            text = self.log.read_text()
            if marker in text and "\n" in text.split(marker, 1)[1]:
                return text.split(marker, 1)[1].split()[0]
        raise AssertionError(f"it did not start:\n{self.log.read_text()}")

    def sign_in(self, link, email):
        """What a human does on the authorization page; answers what is shown there."""
        return call(self.lab["authority"] + "/sign-in", {"url": link, "email": email})["code"]

    def accounts(self):
        return [token["account_email"] for token in call(self.url + "/oauth/status")["tokens"]]

    def end(self):
        self.process.terminate()
        assert self.process.wait(timeout=10) == 0, self.log.read_text()
        assert "panicked" not in self.log.read_text()


@pytest.fixture
def start(tmp_path, lab):
    """Starts balancers."""
    running = []

    def begin(**options):
        running.append(Balancer(tmp_path, lab, **options))
        return running[-1]

    yield begin
    for balancer in running:
        balancer.end()


@pytest.fixture(scope="session")
def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    options = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder for pictures, which a human may want to look at."""
    named = os.environ.get("PICTURES")
    folder = pathlib.Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Tab:
    """A page of the browser, and everything that must not happen on it."""

    def __init__(self, page, url, allowed):
        self.page = page
        self.url = url
        self.allowed = allowed
        self.requests, self.complaints = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (event) => console.error('policy: ' + event.violatedDirective + ' ' + event.blockedURI))"
        )

    def assert_clean(self):
        page = self.page
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"it scrolls sideways by {overflow} pixels"
        foreign = [url for url in self.requests if not url.startswith(self.url + "/")]
        assert foreign == [], foreign
        # A refused call is said on the console by the browser itself.
        refused = tuple(f"error: Failed to load resource: the server responded with a status of {code}" for code in self.allowed)
        others = [text for text in self.complaints if not (refused and text.startswith(refused))]
        assert others == [], others


@pytest.fixture
def open_tab(chromium):
    """Opens a page of a balancer in a window of this width."""
    contexts = []

    def begin(balancer, path, width=1000, scheme="light", allowed=()):
        size = {"width": width, "height": 900 if width > 500 else 740}
        context = chromium.new_context(viewport=size, color_scheme=scheme, locale="en-GB")
        contexts.append(context)
        tab = Tab(context.new_page(), balancer.url, allowed)
        tab.answer = tab.page.goto(balancer.url + path)
        return tab

    yield begin
    for context in contexts:
        context.close()
