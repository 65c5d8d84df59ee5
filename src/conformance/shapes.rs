//! What the real clients send: heads in wire order and case as they were recorded on loopback from Claude Code 2.1.331
//! and 2.1.197 and the SDKs for Python (2.12.0) and TypeScript (1.13.0), bodies of the recorded keys and sizes with
//! content of our own. Every credential is a dummy.

use super::ask::Ask;
use super::scene::CANARY;

/// The betas of a plain prompt.
pub(super) const BETAS: &str = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,\
                                per-turn-control-2026-07-01,mid-conversation-tool-changes-2026-07-01,\
                                thinking-token-count-2026-05-13,advanced-tool-use-2025-11-20,effort-2025-11-24,\
                                thinking-display-updates-2026-08-18";
/// The same of the older generation.
const OLD_BETAS: &str = "claude-code-20250219,context-1m-2025-08-07,interleaved-thinking-2025-05-14,\
                         thinking-token-count-2026-05-13,context-management-2025-06-27,\
                         prompt-caching-scope-2026-01-05,mid-conversation-system-2026-04-07,effort-2025-11-24";
/// One session of a client.
pub(super) const SESSION: &str = "5f0f3c1e-6a0b-4c57-9a53-0d8e0b3f6a11";
/// The bodies of `-p hello`, in bytes.
const BODY: usize = 49_258;
const OLD_BODY: usize = 76_335;
/// The small request for a title.
const TITLE_BODY: usize = 4_096;

/// The client's key, as it stands in `x-api-key`.
pub(super) fn client_key() -> String {
    format!("sk-ant-{CANARY}-client-key")
}

/// The client's token, without `Bearer`.
pub(super) fn client_token() -> String {
    format!("sk-ant-{CANARY}-client-token")
}

/// Claude Code 2.1.331, `-p hello`.
pub(super) fn claude_code(model: &str, stream: bool) -> Ask {
    claude_code_head("/v1/messages?beta=true", BETAS).body(conversation(model, stream, BODY))
}

/// Claude Code 2.1.197, `-p hello`.
pub(super) fn claude_code_old(model: &str) -> Ask {
    claude_code(model, true)
        .set("User-Agent", "claude-cli/2.1.197 (external, sdk-cli)")
        .set("X-Stainless-Package-Version", "0.94.0")
        .set("X-Stainless-Runtime-Version", "v26.3.0")
        .set("anthropic-beta", OLD_BETAS)
        .body(conversation(model, true, OLD_BODY))
}

/// A subagent of 2.1.331.
pub(super) fn subagent(model: &str) -> Ask {
    claude_code(model, true)
        .with("x-claude-code-agent-id", "a8bc354b8e384af94")
        .with("x-claude-code-parent-agent-id", "a00000000000000001")
}

/// The small request that names a session.
pub(super) fn title(model: &str) -> Ask {
    let text = padding(TITLE_BODY);
    let body = format!(
        concat!(
            r#"{{"model":"{}","messages":[{{"role":"user","content":[{{"type":"text","text":"hello"}}]}}],"#,
            r#""system":[{{"type":"text","text":"{}"}}],"max_tokens":512,"output_config":"#,
            r#"{{"format":{{"type":"json_schema","schema":{{"type":"object"}}}}}},"stream":true}}"#
        ),
        model, text
    );
    claude_code_head("/v1/messages?beta=true", &format!("{BETAS},structured-outputs-2025-12-15")).body(body)
}

/// One of the burst that `/context` makes.
pub(super) fn count_tokens(model: &str, size: usize) -> Ask {
    let content = padding(size.saturating_sub(80));
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{content}"}}]}}"#);
    claude_code_head("/v1/messages/count_tokens?beta=true", &format!("{BETAS},token-counting-2024-11-01")).body(body)
}

/// The Python SDK.
pub(super) fn python(model: &str) -> Ask {
    sdk("Anthropic/Python 2.12.0", "python")
        .with("x-stainless-read-timeout", "600")
        .with("x-stainless-timeout", "NOT_GIVEN")
        .with("x-stainless-helper-method", "stream")
        .with("X-Stainless-Async", "false")
        .body(small(model))
}

/// The TypeScript SDK.
pub(super) fn typescript(model: &str) -> Ask {
    sdk("Anthropic/JS 1.13.0", "js")
        .with("accept-language", "*")
        .with("sec-fetch-mode", "cors")
        .with("x-stainless-timeout", "600")
        .body(small(model))
}

/// An upload of the Python SDK: multipart, with a length.
pub(super) fn upload() -> Ask {
    const BOUNDARY: &str = "c4a8e7f1d2b34e6f";
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"notes.bin\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    // 100,167 bytes in all, among them every byte value.
    body.extend((0..100_014_u32).map(|number| number.wrapping_mul(31).to_le_bytes().first().copied().unwrap_or(0)));
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    sdk("Anthropic/Python 2.12.0", "python")
        .to("/v1/files")
        .set("Content-Type", &format!("multipart/form-data; boundary={BOUNDARY}"))
        .with("anthropic-beta", "files-api-2025-04-14")
        .body(body)
}

/// Model discovery of 2.1.331.
pub(super) fn discovery() -> Ask {
    Ask::new("GET", "/v1/models?limit=1000", "")
        .with("User-Agent", "claude-code/2.1.331")
        .with("Authorization", &format!("Bearer {}", client_token()))
        .with("anthropic-version", "2023-06-01")
        .with("Accept-Encoding", "gzip, deflate, br, zstd")
        .with("Connection", "keep-alive")
}

/// The probe at start, without a credential: 2.1.331's, and 2.1.197's.
pub(super) fn probes() -> [Ask; 2] {
    let probe = |target, agent| {
        Ask::new("HEAD", target, "").with("Connection", "keep-alive").with("User-Agent", agent).with("Accept", "*/*")
    };
    [probe("/api/hello", "Bun/1.4.6"), probe("/", "Bun/1.4.0")]
}

/// Any other request under `/v1/`.
pub(super) fn other(method: &'static str, target: &str) -> Ask {
    sdk("Anthropic/Python 2.12.0", "python").to(target).method(method).without("Content-Type")
}

fn claude_code_head(target: &str, betas: &str) -> Ask {
    Ask::new("POST", target, "")
        .with("Accept", "application/json")
        .with("Authorization", &format!("Bearer {}", client_token()))
        .with("Content-Type", "application/json")
        .with("User-Agent", "claude-cli/2.1.331 (external, sdk-cli)")
        .with("X-Claude-Code-Session-Id", SESSION)
        .with("X-Stainless-Arch", "x64")
        .with("X-Stainless-Lang", "js")
        .with("X-Stainless-OS", "Linux")
        .with("X-Stainless-Package-Version", "0.128.0")
        .with("X-Stainless-Retry-Count", "0")
        .with("X-Stainless-Runtime", "node")
        .with("X-Stainless-Runtime-Version", "v26.12.1")
        .with("X-Stainless-Timeout", "600")
        .with("anthropic-beta", betas)
        .with("anthropic-dangerous-direct-browser-access", "true")
        .with("anthropic-version", "2023-06-01")
        .with("x-app", "cli")
        .with("Connection", "keep-alive")
        .with("Accept-Encoding", "gzip, deflate, br, zstd")
}

fn sdk(agent: &str, language: &str) -> Ask {
    Ask::new("POST", "/v1/messages", "")
        .with("Accept-Encoding", "gzip, deflate")
        .with("Connection", "keep-alive")
        .with("Accept", "application/json")
        .with("Content-Type", "application/json")
        .with("User-Agent", agent)
        .with("X-Stainless-Lang", language)
        .with("X-Stainless-Package-Version", "2.12.0")
        .with("X-Stainless-OS", "Linux")
        .with("X-Stainless-Arch", "x64")
        .with("anthropic-version", "2026-10-21")
        .with("Authorization", &format!("Bearer {}", client_key()))
        .with("x-stainless-retry-count", "0")
}

fn small(model: &str) -> String {
    format!(
        r#"{{"max_tokens":64,"messages":[{{"role":"user","content":"Say hello."}}],"model":"{model}","stream":true}}"#
    )
}

/// A conversation of Claude Code's own keys, in its order; `MODEL`, `STREAM` and `PADDING` are put in.
const CONVERSATION: &str = concat!(
    r#"{"model":"MODEL","messages":[{"role":"user","content":[{"type":"text","text":"hello"}]},"#,
    r#"{"role":"system","content":"A reminder in the middle of a conversation."}],"#,
    r#""system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.331.417; cc_entrypoint=sdk-cli;"},"#,
    r#"{"type":"text","text":"A synthetic identity line.","cache_control":{"type":"ephemeral"}},"#,
    r#"{"type":"text","text":"A prompt: 你好 🔐 \"quoted\".","cache_control":{"type":"ephemeral"}}],"#,
    r#""tools":[{"name":"Read","description":"Reads a file.","input_schema":{"type":"object"}},"#,
    r#"{"name":"Bash","description":"PADDING","input_schema":{"type":"object"}}],"#,
    r#""metadata":{"user_id":"{\"device_id\":\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\","#,
    r#"\"account_uuid\":\"\",\"session_id\":\"5f0f3c1e-6a0b-4c57-9a53-0d8e0b3f6a11\"}"},"max_tokens":128000,"#,
    r#""thinking":{"type":"adaptive","display":"summarized"},"#,
    r#""context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]},"#,
    r#""output_config":{"effort":"high"},"stream":STREAM}"#,
);

/// [`CONVERSATION`], `size` bytes long.
fn conversation(model: &str, stream: bool, size: usize) -> String {
    let bare = CONVERSATION.replace("MODEL", model).replace("STREAM", if stream { "true" } else { "false" });
    let missing = size.saturating_sub(bare.len() - "PADDING".len());
    bare.replace("PADDING", &padding(missing))
}

/// Text without anything that JSON would escape.
fn padding(size: usize) -> String {
    "Some words of a description. ".chars().cycle().take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_recorded_sizes() {
        assert_eq!(claude_code("claude-opus-4-1", true).body.len(), BODY);
        assert_eq!(claude_code_old("claude-opus-4-1").body.len(), OLD_BODY);
        assert_eq!(upload().body.len(), 100_167);
    }
}
