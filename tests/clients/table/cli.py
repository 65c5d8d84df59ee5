"""Claude Code, driven without a terminal: a throw-away home, dummy credentials, loopback only."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile

from rows import CLI
from world import TEXT

NONCE = "the nonce of this file is 4711"


class ClaudeCode:
    kind = CLI

    def __init__(self, program):
        self.program = str(program)
        said = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=60, env=environment("/tmp"))
        self.name = f"Claude Code {said.stdout.split()[0]}"

    def run(self, url, turn, orders):
        """What it printed and how it ended, as a short word and in full."""
        arguments, prompt = ["-p"], f"Say hello. {orders}"
        extra = {}
        if turn == "stream":
            arguments += ["--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        if turn == "tool":
            prompt = f"Read it. {orders} FILE[note.txt]"
        if turn == "context":
            prompt = "/context"
        if turn == "models":
            extra["CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY"] = "1"
        with tempfile.TemporaryDirectory(prefix="home-") as home:
            work = pathlib.Path(home, "work")
            work.mkdir()
            (work / "note.txt").write_text(NONCE + "\n")
            status, out, err = self.process([*arguments, prompt], work, {**environment(home, url), **extra})
            # Names of folders and ports are those of one run.
            clean = lambda text: re.sub(r"127\.0\.0\.1:\d+", "HOST", text.replace(home, "HOME"))
            out, err = clean(out), clean(err)
        if turn == "stream":
            out = streamed(out)
        return self.word(turn, status, out), {"exit": status, "out": lasting(out), "err": lasting(err)}

    def word(self, turn, status, out):
        wanted = {"tool": NONCE, "context": "## Context Usage"}.get(turn, TEXT)
        if status == 0 and wanted in out:
            return "answer"
        found = re.search(r"\b[45]\d\d\b", out)
        return f"error {found.group()}" if found else "error"

    def process(self, arguments, folder, environment):
        child = subprocess.Popen(
            [self.program, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        try:
            out, err = child.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            err += "\n(no end within 90 s)"
        return child.returncode, out, err


def environment(home, url="http://127.0.0.1:9"):
    return {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "dummy-of-the-client",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_AUTOUPDATER": "1",
        # Enough to see whether it retries.
        "CLAUDE_CODE_MAX_RETRIES": "2",
        # Whatever else it may want to reach, it does not: nobody listens there.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }


def lasting(text):
    """Without what is new in each run: times and names made up by chance."""
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID", text)
    text = re.sub(r"\ba[0-9a-f]{16}\b", "AGENT", text)
    return re.sub(r"duration_ms: \d+", "duration_ms: N", text).strip()


def streamed(out):
    """The events of the model that it passed on, and its result."""
    kinds, text, result = [], "", None
    for line in out.splitlines():
        event = json.loads(line)
        if event["type"] == "stream_event":
            inner = event["event"]
            kinds.append(inner["type"])
            text += inner.get("delta", {}).get("text", "")
        if event["type"] == "result":
            result = (event["subtype"], event["is_error"], event.get("result"))
    return f"{kinds}\n{text}\n{result}"
