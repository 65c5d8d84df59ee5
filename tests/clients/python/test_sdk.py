"""What a user of the official Python SDK gets: answers, errors, and never half an answer that looks whole."""

import asyncio
import json

import anthropic
import pytest

from conftest import CLIENT_KEY, client_of

TEXT = "Hello, wörld: 你好 🔐 and goodbye."


def ask(orders="", model="claude-test"):
    """Arguments for `messages.create`; `orders` steer the scripted providers."""
    return {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": f"Say hello. {orders}"}]}


def text_of(message):
    return "".join(block.text for block in message.content)


def streamed(client, **arguments):
    """The text of a stream, and its final message; raises what the SDK raises."""
    with client.messages.stream(**arguments) as stream:
        text = "".join(stream.text_stream)
        return text, stream.get_final_message()


def raw_events(client, **arguments):
    with client.messages.create(**arguments, stream=True) as stream:
        return [event.to_dict() for event in stream]


def used(client, **arguments):
    """Who answered, and how many were tried."""
    headers = client.messages.with_raw_response.create(**arguments).headers
    return headers["x-provider-used"], headers["x-balancer-attempts"]


# Where nothing goes wrong, the balancer makes no difference.


@pytest.mark.parametrize("orders", ["", "LAB[A pings]", "LAB[A split=1]", "LAB[A split=7]", "LAB[A slow]"])
def test_a_stream_is_the_same_as_without_the_balancer(client, direct, orders):
    through, original = streamed(client, **ask(orders)), streamed(direct, **ask(orders))
    assert through == original
    assert through[0] == TEXT
    assert through[1].stop_reason == "end_turn"
    assert raw_events(client, **ask(orders)) == raw_events(direct, **ask(orders))


def test_a_message_is_the_same_as_without_the_balancer(client, direct):
    through, original = client.messages.create(**ask()), direct.messages.create(**ask())
    assert through == original
    assert (text_of(through), through.stop_reason, through.model) == (TEXT, "end_turn", "claude-test")
    assert through._request_id == original._request_id == "req_lab"


def test_tokens_are_counted_upstream(client, direct):
    arguments = {"model": "claude-test", "messages": [{"role": "user", "content": "Count me."}]}
    assert client.messages.count_tokens(**arguments) == direct.messages.count_tokens(**arguments)


def test_models_are_listed(client, direct):
    through, original = client.models.list(), direct.models.list()
    assert through.to_dict() == original.to_dict()
    assert [model.id for model in through] == ["claude-lab-1", "claude-lab-2"]
    assert client.models.retrieve("claude-lab-2") == direct.models.retrieve("claude-lab-2")


def test_other_paths_pass_through(client, direct):
    assert client.messages.batches.list().data == direct.messages.batches.list().data == []
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.get("/v1/odd", cast_to=object)
    assert caught.value.body["error"]["message"] == "Not found"


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_an_error_of_the_request_is_the_same_as_without_the_balancer(client, direct, status):
    seen = []
    for one in (client, direct):
        with pytest.raises(anthropic.APIStatusError) as caught:
            one.messages.create(**ask(f"LAB[A status={status}]"))
        error = caught.value
        seen.append((type(error), error.status_code, error.message, error.body, error.request_id))
    assert seen[0] == seen[1]
    assert f"Scripted {status}" in seen[0][2]
    assert seen[0][0] is not anthropic.BadRequestError or status == 400


def test_concurrent_streams_do_not_mix(balancer):
    async def all_of_them():
        async with client_of(balancer.url, kind=anthropic.AsyncAnthropic) as client:

            async def one(number):
                async with client.messages.stream(**ask("LAB[A slow]", f"claude-{number}")) as stream:
                    text = "".join([piece async for piece in stream.text_stream])
                    return text, (await stream.get_final_message()).model

            return await asyncio.gather(*(one(number) for number in range(20)))

    assert asyncio.run(all_of_them()) == [(TEXT, f"claude-{number}") for number in range(20)]


def test_a_client_that_leaves_ends_the_stream(client, balancer):
    with client.messages.stream(**ask("LAB[A slow]")) as stream:
        next(iter(stream.text_stream))
    assert streamed(client, **ask())[0] == TEXT
    assert balancer.metric("balancer_open_streams") in (0, 1)


# Credentials.


def test_the_provider_gets_its_own_key_and_nothing_of_the_clients(client):
    for model, name, key in [("only-a", "x-api-key", "key-of-a"), ("only-b", "authorization", "Bearer key-of-b")]:
        seen = json.loads(text_of(client.messages.create(**ask(f"LAB[{model[-1].upper()} echo]", model))))
        headers = [(name.lower(), value) for name, value in seen["headers"]]
        assert [value for name_, value in headers if name_ in ("x-api-key", "authorization")] == [key]
        assert dict(headers)[name] == key
        assert CLIENT_KEY not in str(seen)
        assert dict(headers)["user-agent"].startswith("Anthropic/Python")
        assert dict(headers)["anthropic-version"]


def test_a_route_may_ask_for_another_model(client):
    assert client.messages.create(**ask(model="renamed")).model == "claude-other"


# Failover: the client sees a clean answer, and no error.

FAILURES = [
    "status=529",
    "status=500",
    "status=503",
    "status=401",
    "status=403",
    "status=402",
    "status=429",
    "status=429 retry_after=3600",
    "html=502",
    "close",
    "reset",
]


@pytest.mark.parametrize("failure", [*FAILURES, "first_error=overloaded_error", "cut_after=0", "cut_at=40", "end_after=0"])
def test_a_stream_fails_over(client, failure):
    text, message = streamed(client, **ask(f"LAB[A {failure}]"))
    assert (text, message.stop_reason) == (TEXT, "end_turn")


@pytest.mark.parametrize("failure", [*FAILURES, "cut_at=0", "cut_at=40", "end_after=0"])
def test_a_message_fails_over(client, failure):
    response = client.messages.with_raw_response.create(**ask(f"LAB[A {failure}]"))
    assert (response.headers["x-provider-used"], response.headers["x-balancer-attempts"]) == ("B", "2")
    assert text_of(response.parse()) == TEXT


def test_a_provider_that_is_gone_is_passed_over(client):
    assert used(client, **ask(model="closed-first")) == ("B", "2")
    assert streamed(client, **ask(model="closed-first"))[0] == TEXT


def test_counting_tokens_fails_over(client):
    arguments = {"model": "claude-test", "messages": [{"role": "user", "content": "LAB[A status=529]"}]}
    assert client.messages.count_tokens(**arguments).input_tokens > 0


def test_the_list_of_models_fails_over(client):
    assert len(client.models.list(extra_headers={"x-lab": "LAB[A status=503]"}).data) == 2


# A stream that breaks after it has begun: an exception of the SDK's own, never half an answer that looks whole.


def broken(client, orders, how=streamed):
    with pytest.raises(anthropic.APIStatusError) as caught:
        how(client, **ask(orders, "only-a"))
    assert caught.value.body["type"] == "error"
    return caught.value


@pytest.mark.parametrize("events", range(1, 9))
def test_a_stream_that_is_cut_between_events_raises(client, events):
    error = broken(client, f"LAB[A cut_after={events}]")
    assert "A: the provider's stream ended before it was complete" in error.message
    assert error.body["error"]["type"] == "api_error"


def whole_stream(direct):
    with direct.messages.with_streaming_response.create(**ask(model="only-a"), stream=True) as response:
        return b"".join(response.iter_bytes())


def test_a_stream_that_is_cut_anywhere_raises(client, direct):
    # The last event lacks nothing but its blank line from four bytes before the end on: nothing is missing then.
    body = whole_stream(direct)
    first = body.index(b"\n\n") + 2
    end = body.index(b"event: message_stop")
    # Every byte from within the longest event with many-byte characters, and every seventh elsewhere.
    dense = body.index("你好".encode())
    offsets = sorted({*range(first, end, 7), *range(dense - 40, dense + 40), *range(end, len(body) - 4, 3)})
    for offset in offsets:
        error = broken(client, f"LAB[A cut_at={offset}]", how=raw_events)
        assert error.body["error"]["type"] == "api_error", offset
    assert len(offsets) > 100


@pytest.mark.parametrize("offset", [300, 500, 700])
def test_a_stream_that_is_reset_raises(client, offset):
    # What was on its way may be lost with a reset: then it fails over, and the answer is whole.
    try:
        text, _ = streamed(client, **ask(f"LAB[A reset_at={offset}]"))
    except anthropic.APIStatusError as error:
        assert error.body["error"]["type"] == "api_error"
    else:
        assert text == TEXT


@pytest.mark.parametrize("events", [1, 4, 7])
def test_a_stream_that_ends_well_but_too_early_raises(client, direct, events):
    orders = f"LAB[A end_after={events}]"
    broken(client, orders, how=raw_events)
    # Without the balancer this SDK notices nothing.
    assert len(raw_events(direct, **ask(orders))) < 9


def test_an_error_within_a_stream_is_the_same_as_without_the_balancer(client, direct):
    through = broken(client, "LAB[A error_after=4]")
    original = broken(direct, "LAB[A error_after=4]")
    assert (through.body, through.status_code) == (original.body, original.status_code)


# Nothing works.


def test_everything_down_is_one_honest_error(client):
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.create(**ask("LAB[A status=500]", "all-down"))
    error = caught.value
    assert error.status_code == 503
    assert error.body["error"]["type"] == "api_error"
    assert "All providers failed: Closed: " in error.message and "; A: " in error.message
    assert error.request_id


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        ("status=429 retry_after=30", 429, anthropic.RateLimitError),
        ("status=529", 529, anthropic.InternalServerError),
        ("status=403", 403, anthropic.PermissionDeniedError),
        ("status=404", 404, anthropic.NotFoundError),
    ],
)
def test_what_all_have_in_common_is_the_status(client, failure, status, kind):
    for how in (lambda **arguments: client.messages.create(**arguments), lambda **arguments: streamed(client, **arguments)):
        with pytest.raises(kind) as caught:
            how(**ask(f"LAB[A {failure}] LAB[B {failure}]"))
        assert caught.value.status_code == status


def test_the_answer_of_an_only_provider_is_unmodified(client):
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**ask("LAB[A status=429 retry_after=30]", "only-a"))
    assert "Scripted 429" in caught.value.message
    assert caught.value.response.headers["retry-after"] == "30"


def test_a_hopeless_wait_is_not_waited_for(balancer):
    # The SDK honours any retry-after: an hour's would keep it asleep.
    with client_of(balancer.url, retries=2) as client, pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**ask("LAB[A status=429 retry_after=3600] LAB[B status=429 retry_after=7200]"))
    headers = caught.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert 3590 <= int(headers["retry-after"]) <= 3600


def test_a_retry_of_the_clients_own_reaches_who_is_left(balancer):
    # This client tries three times; after the second failure A is cooling.
    orders = "LAB[A status=500] LAB[B status=400]"
    with client_of(balancer.url, retries=2) as client, pytest.raises(anthropic.InternalServerError):
        client.messages.create(**ask(orders, "only-a"))
    assert "LAB" not in balancer.log.read_text()
    with client_of(balancer.url) as client:
        assert used(client, **ask()) == ("B", "1")
        # Our own belief alone turns no request away.
        assert text_of(client.messages.create(**ask(model="only-a"))) == TEXT
