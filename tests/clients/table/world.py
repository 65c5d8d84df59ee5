"""What stands around a client: scripted providers, the release binary in front of them, and a way to ask what came."""

import json
import os
import pathlib
import subprocess
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("BALANCER") or ROOT / "target/release/claude-code-balancer")
TEXT = "Hello, wörld: 你好 🔐 and goodbye."

SETTINGS = 'settings: { log_file_path: "", log_level: DEBUG }\n'
ALONE = 'providers:\n  - {{ name: "A", base_url: "{A}", auth_value: passthrough }}\n' + SETTINGS.replace("{", "{{").replace("}", "}}")
REFUSED = ALONE.replace("{A}", "{closed}")
PAIR = """providers:
  - {{ name: "A", base_url: "{first}", auth_value: "key-of-a" }}
  - {{ name: "B", base_url: "{B}", auth_value: "key-of-b" }}
""" + SETTINGS.replace("{", "{{").replace("}", "}}")


class Lab:
    """Scripted providers `A` and `B`, and `closed`, which refuses; one set for each client."""

    def __init__(self):
        command = ["cargo", "test", "--locked", "--quiet", "--test", "lab_server", "--", "--serve", "A", "B"]
        self.server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.urls = json.loads(self.server.stdout.readline())

    def seen(self, name):
        """What has come to a provider since the last time."""
        with urllib.request.urlopen(f"{self.urls[name]}/lab/seen", timeout=5) as answer:
            return json.load(answer)

    def end(self):
        # It ends with its input.
        self.server.stdin.close()
        assert self.server.wait(timeout=10) == 0


class Balancer:
    """The release binary with a configuration of its own: health does not carry over."""

    def __init__(self, config, urls):
        self.folder = tempfile.TemporaryDirectory(prefix="balancer-")
        folder = pathlib.Path(self.folder.name)
        (folder / "config.yaml").write_text(config.format(**urls))
        (folder / "config.yaml").chmod(0o600)
        self.log = folder / "log"
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "NO_COLOR": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(BINARY), "--config", str(folder / "config.yaml"), "--port", "0"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def __enter__(self):
        marker = "ANTHROPIC_BASE_URL="
        while self.process.poll() is None:
            text = self.log.read_text()
            if marker in text and "\n" in text.split(marker, 1)[1]:
                self.url = text.split(marker, 1)[1].split()[0]
                return self
        raise AssertionError(f"it did not start:\n{self.log.read_text()}")

    def __exit__(self, *_):
        self.process.terminate()
        status = self.process.wait(timeout=40)
        text = self.log.read_text()
        self.folder.cleanup()
        assert status == 0 and "panicked" not in text and "a panic at" not in text, text
        for secret in ("key-of-a", "key-of-b", "dummy-of-the-client"):
            assert secret not in text, "a secret in the log"
