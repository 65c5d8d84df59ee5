"""The rows of the table: what a provider does, and where a client's behaviour through the balancer differs on purpose."""

from dataclasses import dataclass, field

CLI, SDK = "cli", "sdk"

# Why a row differs; the letters stand in the table.
REASONS = {
    "a": "a break after content ends in `event: error`, so that no client takes half an answer for a whole one",
    "b": "a web page is never handed on: the error is the balancer's own, in the API's shape",
    "c": "the balancer answers where the provider does not: 503, and it says who failed",
    "d": "a stream that fails before its first event is an error with a status, not an error within a stream",
    "e": "half a body is never handed on: the error is the balancer's own",
}


@dataclass
class Row:
    """`orders` steer the scripted provider, see lab_server.rs; `differs` names a reason per kind of client."""

    title: str
    orders: str = ""
    turn: str = "prompt"
    differs: dict = field(default_factory=dict)
    kinds: tuple = (CLI, SDK)

    def reason(self, kind):
        return self.differs.get(kind, "")


def both(letter):
    return {CLI: letter, SDK: letter}


ROWS = [
    Row("a streamed prompt", turn="stream"),
    Row("a plain prompt"),
    Row("a tool turn (`Read`)", "tool", "tool", kinds=(CLI,)),
    Row("closes after each answer, a tool turn", "tool closing", "tool", kinds=(CLI,)),
    Row("a subagent", "agent", "agent", kinds=(CLI,)),
    Row("`/context` (a burst of count_tokens)", turn="context", kinds=(CLI,)),
    Row("counting tokens", turn="count", kinds=(SDK,)),
    Row("model discovery", turn="models"),
    Row("pings and comments first", "pings", "stream"),
    Row("writes of 7 bytes", "writes=7", "stream"),
    Row("pieces of 7 bytes", "split=7", "stream"),
    Row("20 ms between events", "slow", "stream"),
    Row("2 s before the head", "late=2000", "stream"),
    Row("103 first", "hint", "stream"),
    Row("trailers", "trailer", "stream"),
    Row("ends with its connection", "eof", "stream"),
    Row("a stream in gzip", "gzip", "stream"),
    Row("400", "status=400"),
    Row("400 and `x-should-retry: true`, once", "status=400 retry times=1"),
    Row("401", "status=401"),
    Row("401 and `x-should-retry: false`", "status=401 no_retry"),
    Row("402", "status=402"),
    Row("403", "status=403"),
    Row("403, a web page", "html=403", differs=both("b")),
    Row("404", "status=404"),
    Row("408", "status=408"),
    Row("409", "status=409"),
    Row("413", "status=413"),
    Row("429, `retry-after: 1`", "status=429 retry_after=1"),
    Row("429, `retry-after: 3600` and `x-should-retry: false`", "status=429 retry_after=3600 no_retry"),
    Row("429, `retry-after: 61`", "status=429 retry_after=61", kinds=(CLI,)),
    Row("429 in gzip", "status=429 retry_after=1 gzip"),
    Row("500", "status=500"),
    Row("502, a web page, once", "html=502 times=1", differs={CLI: "b"}),
    Row("503, once", "status=503 times=1"),
    Row("529", "status=529"),
    Row("529 and `x-should-retry: false`", "status=529 no_retry"),
    Row("refuses connections", turn="refused", differs=both("c")),
    Row("FIN before the head", "close", differs=both("c")),
    Row("RST before the head", "reset", differs=both("c")),
    Row("`event: error` as first event", "first_error=overloaded_error", "stream", differs=both("d")),
    Row("`event: error` after content, once", "error_after=5 times=1", "stream"),
    Row("cut after content, once", "cut_after=5 times=1", "stream", differs=both("a")),
    Row("a clean end without `message_stop`, once", "end_after=5 times=1", "stream", differs=both("a")),
    Row("a message that is cut", "cut_at=40", "message", differs={SDK: "e"}, kinds=(SDK,)),
]

# How the first provider fails where a second one saves the client.
FAILURES = {
    "529": "status=529",
    "500": "status=500",
    "429": "status=429 retry_after=3600",
    "401": "status=401",
    "cut before content": "cut_after=0",
    "refused": None,
}
