"""Runs the real clients through every row, directly and through the balancer, and compares.

`run.py --programs FOLDER [--only TITLE] [--write] [--json FILE]`: FOLDER holds what package-lock.json installs; the
Python SDK is that of the running interpreter. The table stands in the README between two comments; it is compared with
what was found, or with `--write` put there. Exit status 1 where something differs that must not.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import time

import rows
from cli import ClaudeCode
from sdk import Client
from world import ALONE, PAIR, REFUSED, ROOT, Balancer, Lab

HERE = pathlib.Path(__file__).resolve().parent
README = ROOT / "README.md"
BEGIN, END = "<!-- tests/clients/table: begin -->\n", "<!-- tests/clients/table: end -->\n"
TURNS = {"cli": ("prompt", "tool", "agent"), "sdk": ("prompt", "stream")}
TITLES = {"prompt": "a prompt", "tool": "a tool turn", "agent": "a subagent turn", "stream": "a streamed prompt"}


def requests(seen):
    """What a client asked of the model, in short; a retry is one more."""
    path = lambda one: one["target"].split("?")[0]
    return [(path(one), one["stream"], one["size"]) for one in seen if one["method"] == "POST"]


class Course:
    """One client on its way through all rows, with scripted providers of its own."""

    def __init__(self, client):
        self.client = client
        self.table, self.saved, self.faults = {}, {}, []

    def fault(self, where, what):
        self.faults.append(f"{self.client.name}, {where}: {what}")

    def once(self, lab, url, turn, orders):
        lab.seen("A")
        word, detail = self.client.run(url, turn, orders)
        return word, detail, requests(lab.seen("A"))

    def row(self, lab, row):
        orders = f"LAB[A {row.orders}]" if row.orders else ""
        refused = row.turn == "refused"
        direct = self.once(lab, lab.urls["closed" if refused else "A"], row.turn, orders)
        with Balancer(REFUSED if refused else ALONE, lab.urls) as balancer:
            through = self.once(lab, balancer.url, row.turn, orders)
        if row.turn == "agent":
            # How long it took is told in what it says, and is a digit longer now and then.
            direct, through = ((word, detail, [one[:2] for one in asked]) for word, detail, asked in (direct, through))
        if row.turn == "context":
            # Many at once, on connections of their own: their order is nobody's.
            direct, through = ((word, detail, sorted(asked, key=str)) for word, detail, asked in (direct, through))
            if len(direct[2]) < 10:
                self.fault(row.title, f"{len(direct[2])} requests are no burst")
        reason = row.reason(self.client.kind)
        # The table tells what a user sees; how far a client had got with a broken stream is its own race.
        same = cell(direct) == cell(through)
        self.table[row.title] = cell(direct) if same else f"{cell(direct)} → {cell(through)} {reason}".strip()
        if direct == through:
            return
        if not reason:
            self.fault(row.title, f"directly {direct}, through the balancer {through}")
        if through[0] == "half an answer":
            self.fault(row.title, "half an answer through the balancer")

    def save(self, lab, name, failure, turn):
        urls = lab.urls
        first = urls["A"] if failure else urls["closed"]
        does = {"tool": " tool", "agent": " agent"}.get(turn, "")
        orders = (f"LAB[A {failure}]" if failure else "") + (f" LAB[B{does}]" if does else "")
        for provider in "AB":
            lab.seen(provider)
        with Balancer(PAIR, {**urls, "first": first}) as balancer:
            word, detail = self.client.run(balancer.url, turn, orders)
        a, b = len(requests(lab.seen("A"))), len(requests(lab.seen("B")))
        wanted = {"tool": 2, "agent": 3}.get(turn, 1)
        asked = a >= 1 if failure else a == 0
        if word != "answer" or b != wanted or not asked or detail.get("err"):
            self.fault(f"{turn} while the first provider fails with {name}", f"{word}, {a} and {b} requests: {detail}")
        self.saved[(name, turn)] = word

    def rows(self, only):
        """Every row, directly and through the balancer."""
        lab = Lab()
        for row in rows.ROWS:
            if self.client.kind in row.kinds and (not only or only in row.title):
                self.row(lab, row)
        lab.end()

    def failures(self, only):
        """Every way in which a first provider fails while a second one is well."""
        if only:
            return
        lab = Lab()
        for name, failure in rows.FAILURES.items():
            for turn in TURNS[self.client.kind]:
                self.save(lab, name, failure, turn)
        lab.end()

    def parts(self):
        """What can be done side by side: an SDK is one process, which takes one job after another."""
        if isinstance(self.client, Client):
            return [lambda only: (self.rows(only), self.failures(only), self.client.end())]
        return [self.rows, self.failures]


def cell(outcome):
    word, _, asked = outcome
    return word if len(asked) < 2 else f"{word} ({len(asked)})"


def markdown(courses):
    """The two tables, as they stand in the README."""
    head = ["a provider that …", *(course.client.name for course in courses)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    used = set()
    for row in rows.ROWS:
        cells = [course.table.get(row.title, "–") for course in courses]
        used |= {entry[-1] for entry in cells if "→" in entry and entry[-1] in rows.REASONS and entry[-2] == " "}
        lines.append("| " + " | ".join([row.title, *cells]) + " |")
    lines += ["", *(f"* {letter}: {rows.REASONS[letter]}." for letter in sorted(used)), ""]
    head = ["the first of two providers fails", *(course.client.name for course in courses)]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in rows.FAILURES:
        cells = []
        for course in courses:
            turns = TURNS[course.client.kind]
            good = [turn for turn in turns if course.saved.get((name, turn)) == "answer"]
            cells.append("answer: " + ", ".join(TITLES[turn] for turn in good) if good else "error")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def programs(folder):
    """Both generations of Claude Code: what their packages hold for this machine."""
    for name in ("claude-code-new", "claude-code-old"):
        places = [folder / "node_modules" / name / "node_modules", folder / "node_modules"]
        version = json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for place in places:
            for package in sorted(place.glob("@anthropic-ai/claude-code-*")):
                if json.loads((package / "package.json").read_text())["version"] == version and (package / "claude").exists():
                    yield package / "claude"
                    break
            else:
                continue
            break


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    folder = arguments.programs.resolve()
    clients = [ClaudeCode(program) for program in programs(folder)]
    assert len(clients) == 2, f"both generations of Claude Code are needed in {folder}"
    clients.append(Client("Python SDK", [sys.executable, str(HERE / "sdk_client.py")]))
    clients.append(Client("TypeScript SDK", ["node", str(HERE / "sdk_client.mjs"), str(folder)]))
    courses = [Course(client) for client in clients]
    begun = time.monotonic()
    parts = [part for course in courses for part in course.parts()]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: part(arguments.only), parts))
    for course in courses:
        print(f"{course.client.name}: {len(course.table)} rows, {len(course.faults)} fault(s)")
    print(f"{time.monotonic() - begun:.0f} s")
    faults = [fault for course in courses for fault in course.faults]
    print("\n".join(faults))
    table = markdown(courses)
    if arguments.json:
        found = {course.client.name: course.table for course in courses}
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    text = README.read_text()
    before, rest = text.split(BEGIN)
    stands, after = rest.split(END)
    if arguments.write:
        README.write_text(before + BEGIN + table + END + after)
    elif not arguments.only and stands != table:
        print(f"the table in the README is another one (--write puts it there):\n{table}")
        faults.append("README")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
