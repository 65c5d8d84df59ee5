"""The official SDKs, each a process of its own that takes one job after another."""

import json
import os
import re
import subprocess

from rows import SDK
from world import TEXT


class Client:
    kind = SDK

    def __init__(self, name, command):
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = f"{name} {json.loads(self.process.stdout.readline())['version']}"

    def run(self, url, turn, orders):
        turn = "stream" if turn == "refused" else turn
        print(json.dumps({"url": url, "turn": turn, "prompt": f"Say hello. {orders}"}), file=self.process.stdin, flush=True)
        outcome = json.loads(self.process.stdout.readline())
        if "error" in outcome:
            outcome["message"] = re.sub(r"127\.0\.0\.1:\d+", "HOST", outcome["message"])
        return self.word(turn, outcome), outcome

    def word(self, turn, outcome):
        if "error" in outcome:
            return f"error {outcome['status'] or ''}".strip()
        if turn in ("count", "models"):
            return "answer" if outcome.get("tokens") or outcome.get("models") else "nothing"
        return "answer" if (outcome["text"], outcome["stop"]) == (TEXT, "end_turn") else "half an answer"

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)
