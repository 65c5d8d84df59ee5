"""Starts the release binary in front of scripted providers. Everything is on loopback, every key is a dummy."""

import json
import os
import pathlib
import subprocess
import urllib.request

import anthropic
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("BALANCER") or ROOT / "target/release/claude-code-balancer")

CLIENT_KEY = "sk-ant-dummy-of-the-client"

CONFIG = """
providers:
  - {{ name: "A", base_url: "{A}", auth_value: "key-of-a" }}
  - {{ name: "B", base_url: "{B}", auth_type: auth_token, auth_value: "key-of-b" }}
  - {{ name: "Closed", base_url: "{closed}", auth_value: "key-of-closed" }}
model_routes:
  "only-a": [{{ provider: "A" }}]
  "only-b": [{{ provider: "B" }}]
  "closed-first":
    - {{ provider: "Closed", priority: 1 }}
    - {{ provider: "B", priority: 2 }}
  "all-down":
    - {{ provider: "Closed", priority: 1 }}
    - {{ provider: "A", priority: 2 }}
  "renamed": [{{ provider: "A", model: "claude-other" }}]
  "claude-*":
    - {{ provider: "A", priority: 1 }}
    - {{ provider: "B", priority: 2 }}
settings:
  log_file_path: ""
  log_level: DEBUG
"""


def pytest_configure():
    # Neither a real account nor a real proxy may come in by way of the environment.
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE_")) or name.lower().endswith("_proxy"):
            del os.environ[name]


@pytest.fixture(scope="session")
def lab():
    """The addresses of the scripted providers `A` and `B`, and `closed`, which refuses."""
    command = ["cargo", "test", "--locked", "--quiet", "--test", "lab_server", "--", "--serve", "A", "B"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    yield json.loads(line)
    # It ends with its input.
    server.stdin.close()
    assert server.wait(timeout=10) == 0


class Balancer:
    def __init__(self, folder, lab):
        config = folder / "config.yaml"
        config.write_text(CONFIG.format(**lab))
        config.chmod(0o600)
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

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def end(self):
        self.process.terminate()
        assert self.process.wait(timeout=10) == 0, self.log.read_text()
        assert "panicked" not in self.log.read_text()
        for secret in (CLIENT_KEY, "key-of-a", "key-of-b", "key-of-closed"):
            assert secret not in self.log.read_text()


@pytest.fixture
def balancer(tmp_path, lab):
    """One of its own for each test: health does not carry over."""
    balancer = Balancer(tmp_path, lab)
    yield balancer
    balancer.end()


def client_of(url, retries=0, kind=anthropic.Anthropic):
    return kind(base_url=url, api_key=CLIENT_KEY, max_retries=retries, timeout=20)


@pytest.fixture
def client(balancer):
    with client_of(balancer.url) as client:
        yield client


@pytest.fixture
def direct(lab):
    """The same client without a balancer, at provider A."""
    with client_of(lab["A"]) as client:
        yield client
