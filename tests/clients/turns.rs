//! A model that uses a tool: it asks for one, gets its result, and finishes with what that says.

use bytes::Bytes;
use claude_code_balancer::lab::{Received, Script, event};
use serde_json::{Value, json};

/// The orders for a provider in what was said; the first that are found.
pub(crate) fn orders<'a>(name: &str, said: &'a str) -> Vec<&'a str> {
    let marker = format!("LAB[{name} ");
    let orders = said.split_once(&marker).and_then(|(_, rest)| rest.split_once(']')).map_or("", |(orders, _)| orders);
    orders.split_whitespace().collect()
}

/// Reads the file that the prompt names by `FILE[/path]`; then says what was in it.
pub(crate) fn tool(request: &Received, said: &str) -> Script {
    let file = said.split_once("FILE[").and_then(|(_, rest)| rest.split_once(']')).map_or("", |(file, _)| file);
    turn(request, "Read", &json!({ "file_path": file }))
}

/// Has a subagent say hello, with the same orders for the other providers; then says what it said.
pub(crate) fn agent(name: &str, request: &Received, said: &str) -> Script {
    let mut prompt = String::from("Say hello.");
    for other in ["A", "B"].into_iter().filter(|other| *other != name) {
        let orders = orders(other, said);
        if !orders.is_empty() {
            prompt.push_str(&format!(" LAB[{other} {}]", orders.join(" ")));
        }
    }
    // Its name has changed between versions: the client says which it knows.
    let tools = request.json();
    let tools = tools.get("tools").and_then(Value::as_array).cloned().unwrap_or_default();
    let knows = |name: &str| tools.iter().any(|tool| tool.get("name").and_then(Value::as_str) == Some(name));
    let tool = if knows("Task") { "Task" } else { "Agent" };
    // Newer clients let it work behind the conversation, unless told otherwise.
    let input = json!({
        "description": "says hello", "prompt": prompt, "subagent_type": "general-purpose", "run_in_background": false,
    });
    turn(request, tool, &input)
}

/// The tool with this input, or, once it has been used, what came of it.
fn turn(request: &Received, tool: &str, input: &Value) -> Script {
    let body = request.json();
    let model = body.get("model").and_then(Value::as_str).unwrap_or_default();
    let stream = body.get("stream") == Some(&Value::Bool(true));
    if let Some(result) = result(&body) {
        let text = format!("The tool said: {result}");
        return if stream { Script::stream_of(model, &[text]) } else { Script::message_of(model, &text) };
    }
    let block = json!({ "type": "tool_use", "id": "toolu_lab", "name": tool, "input": input });
    if !stream {
        return Script::json(
            200,
            &json!({
                "id": "msg_lab", "type": "message", "role": "assistant", "model": model, "content": [block],
                "stop_reason": "tool_use", "stop_sequence": null, "usage": { "input_tokens": 9, "output_tokens": 9 },
            }),
        );
    }
    Script::events(vec![
        event::message_start(model),
        start(tool),
        delta(&input.to_string()),
        event::block_stop(),
        event::event(
            "message_delta",
            &json!({
                "type": "message_delta", "delta": { "stop_reason": "tool_use", "stop_sequence": null },
                "usage": { "output_tokens": 9 },
            }),
        ),
        event::message_stop(),
    ])
    .header("request-id", "req_lab")
}

fn start(tool: &str) -> Bytes {
    let block = json!({ "type": "tool_use", "id": "toolu_lab", "name": tool, "input": {} });
    event::event("content_block_start", &json!({ "type": "content_block_start", "index": 0, "content_block": block }))
}

fn delta(input: &str) -> Bytes {
    let delta = json!({ "type": "input_json_delta", "partial_json": input });
    event::event("content_block_delta", &json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
}

/// The text of the last tool result of a conversation.
fn result(body: &Value) -> Option<String> {
    let messages = body.get("messages")?.as_array()?;
    let mut blocks = messages.iter().rev().filter_map(|message| message.get("content")?.as_array()).flatten();
    let content = blocks.find(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"))?;
    Some(match content.get("content")? {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            texts.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    })
}
