"""The Python SDK: one job per line of input, one outcome per line of output."""

import json
import sys

import anthropic


def text_of(message):
    return "".join(block.text for block in message.content)


def job(client, turn, prompt):
    arguments = {"model": "claude-test", "messages": [{"role": "user", "content": prompt}]}
    if turn == "count":
        return {"tokens": client.messages.count_tokens(**arguments).input_tokens}
    if turn == "models":
        return {"models": [model.id for model in client.models.list()]}
    arguments["max_tokens"] = 64
    if turn == "stream":
        kinds = []
        with client.messages.stream(**arguments) as stream:
            for event in stream:
                kinds.append(event.type)
            message = stream.get_final_message()
    else:
        kinds = None
        message = client.messages.create(**arguments)
    return {"text": text_of(message), "stop": message.stop_reason, "model": message.model, "kinds": kinds}


print(json.dumps({"version": anthropic.__version__}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    try:
        with anthropic.Anthropic(
            base_url=task["url"], api_key="dummy-of-the-client", max_retries=2, timeout=30
        ) as client:
            outcome = job(client, task["turn"], task["prompt"])
    except anthropic.APIError as error:
        status = getattr(error, "status_code", None)
        outcome = {"error": type(error).__name__, "status": status, "message": error.message}
    except Exception as error:
        outcome = {"error": type(error).__name__, "status": None, "message": str(error)}
    print(json.dumps(outcome), flush=True)
