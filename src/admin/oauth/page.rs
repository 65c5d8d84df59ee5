//! The page on which a human signs in: the link, and a field for the code. All of it is in this program; its policy
//! lets a browser load nothing, and run nothing but its own script.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, Response, StatusCode};
use sha2::{Digest, Sha256};

use super::GENERATE_URL;
use crate::admin::reply;
use crate::config::Language;
use crate::oauth::human;
use crate::provider::Email;
use crate::proxy::reject::Error;
use crate::proxy::relay::Outbound;

const SHELL: &str = include_str!("shell.html");
const FORM: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const KIND: &str = "text/html; charset=utf-8";

/// The style and the script are known by their digest.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; form-action 'none'; \
         frame-ancestors 'none'; base-uri 'none'",
        digest(STYLE),
        digest(SCRIPT)
    )
});

/// What the page is made for.
pub(super) struct Page<'a> {
    /// The account that is to sign in; `None` = the human says.
    pub(super) account: Option<&'a Email>,
    /// The page of the authorization server. It holds the state, which is the one secret here. `None` = the page begins
    /// the login itself, once it has the key.
    pub(super) link: Option<&'a str>,
    /// Whether calls need the balancer's key.
    pub(super) locked: bool,
    /// Of the words.
    pub(super) language: Language,
}

impl Page<'_> {
    pub(super) fn response(&self) -> Response<Outbound> {
        let hidden_unless = |shown: bool| if shown { "" } else { " hidden" }.to_owned();
        let body = fill(FORM, &|name| {
            Some(match name {
                "who" => match self.account {
                    Some(account) => {
                        let who = say("for_account", self.language);
                        format!("{who} <strong>{}</strong>", escaped(account.as_str()))
                    }
                    None => say("for_any", self.language).into(),
                },
                "account" => self.account.map(|account| escaped(account.as_str())).unwrap_or_default(),
                "link" => escaped(self.link.unwrap_or_default()),
                "again_link" => escaped(&human::login_url("", self.account)),
                "unless_locked" => hidden_unless(self.locked),
                "unless_link" => hidden_unless(self.link.is_some()),
                "unless_link_missing" => hidden_unless(self.link.is_none()),
                "unless_email" => hidden_unless(self.account.is_none()),
                "email_required" => if self.account.is_none() { " required" } else { "" }.into(),
                name => escaped(word(name, self.language)?),
            })
        });
        page(StatusCode::OK, &body, self.language)
    }
}

/// An error, for people.
pub(super) fn refusal(error: &Error, language: Language) -> Response<Outbound> {
    let body = format!(
        "<h1>{}</h1>\n<div class=\"bad\" role=\"alert\"><p>{}</p></div>\n<p><a href=\"{GENERATE_URL}\">{}</a></p>",
        escaped(say("title", language)),
        escaped(&error.message),
        escaped(say("again", language)),
    );
    let mut response = page(error.status, &body, language);
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The head of the page alone, for HEAD.
pub(super) fn empty() -> Response<Outbound> {
    ruled(reply::text(StatusCode::OK, KIND, String::new()))
}

fn page(status: StatusCode, body: &str, language: Language) -> Response<Outbound> {
    let text = fill(SHELL, &|name| {
        Some(match name {
            "lang" => match language {
                Language::En => "en".into(),
                Language::Zh => "zh-CN".into(),
            },
            "css" => STYLE.into(),
            "js" => SCRIPT.into(),
            "body" => body.into(),
            name => escaped(word(name, language)?),
        })
    });
    ruled(reply::text(status, KIND, text))
}

fn ruled(mut response: Response<Outbound>) -> Response<Outbound> {
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Puts values into a template, in one pass: what is put in is not looked at again.
fn fill(template: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut parts = template.split("{{");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        out.push_str(&value(name).unwrap_or_default());
        out.push_str(rest);
    }
    out
}

/// For text and for quoted attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            character => out.push(character),
        }
    }
    out
}

/// A word of the page, for people.
fn say(name: &str, language: Language) -> &'static str {
    word(name, language).unwrap_or_default()
}

fn word(name: &str, language: Language) -> Option<&'static str> {
    let (_, english, chinese) = WORDS.iter().find(|(known, _, _)| *known == name)?;
    Some(match language {
        Language::En => english,
        Language::Zh => chinese,
    })
}

const WORDS: [(&str, &str, &str); 26] = [
    ("title", "Sign in", "登录"),
    ("for_account", "This login is for the account", "此次登录的账户："),
    (
        "for_any",
        "This login is for any of your accounts: give its e-mail below.",
        "此次登录可用于您的任意账户：请在下方填写其邮箱。",
    ),
    (
        "noscript",
        "This page needs JavaScript; or send the code with curl, as the README shows.",
        "此页面需要 JavaScript；也可以按照 README 用 curl 提交授权码。",
    ),
    ("key", "Key of this balancer", "本代理的密钥"),
    (
        "key_hint",
        "settings.auth is on: every call needs one of its keys. It is sent to this balancer only, and is not kept.",
        "settings.auth 已启用，每次调用都需要其中一个密钥。密钥只发送给本代理，不会保存。",
    ),
    ("begin", "Continue", "继续"),
    ("open", "Open the authorization page", "打开授权页面"),
    (
        "open_hint",
        "It opens in a new tab. The link is good for 10 minutes, once.",
        "将在新标签页中打开。链接 10 分钟内有效，仅可使用一次。",
    ),
    ("open_link", "Open and sign in", "打开并登录"),
    ("allow", "Sign in and allow access", "登录并授予权限"),
    (
        "allow_hint",
        "Use the account that is meant here. The page then shows a code.",
        "请使用此处指定的账户。随后页面会显示授权码。",
    ),
    ("paste", "Paste the code here", "在此粘贴授权码"),
    ("code", "Code", "授权码"),
    ("email", "E-mail of the account", "账户邮箱"),
    ("send", "Finish signing in", "完成登录"),
    ("busy", "One moment …", "请稍候……"),
    ("failed", "That did not work.", "未能完成。"),
    ("unreachable", "The balancer did not answer. Is it still running?", "代理没有响应，它还在运行吗？"),
    ("done", "Signed in:", "登录成功："),
    ("ends", "Its token is renewed by itself; this one ends at", "令牌会自动续期，当前令牌到期时间："),
    ("retry", "You may close this page and retry your request.", "您可以关闭此页面并重试请求。"),
    (
        "unsaved",
        "The store does not take the token at the moment: it is kept in memory, and saved as soon as that works.",
        "存储暂时无法写入：令牌保存在内存中，恢复后会自动保存。",
    ),
    (
        "unverified",
        "The authorization server did not say which account this is; make sure that it is the right one.",
        "授权服务器没有说明这是哪个账户，请确认账户无误。",
    ),
    ("again", "Start again", "重新开始"),
    ("again_hint", "with a new link, if this one was used or is too old.", "（如果链接已使用或已过期，可获取新链接）"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_templates_is_known_in_both_languages() {
        let own = [
            "who",
            "account",
            "link",
            "again_link",
            "unless_locked",
            "unless_link",
            "unless_link_missing",
            "unless_email",
            "email_required",
            "lang",
            "css",
            "js",
            "body",
        ];
        let used = |template: &'static str| {
            template.split("{{").skip(1).map(|part| part.split_once("}}").expect("an end").0).collect::<Vec<_>>()
        };
        let names = [used(SHELL), used(FORM)].concat();
        for name in &names {
            assert!(own.contains(name) || word(name, Language::En).is_some(), "{name}");
        }
        for (name, english, chinese) in WORDS {
            assert!(!english.is_empty() && !chinese.is_empty());
            assert!(names.contains(&name) || ["for_account", "for_any"].contains(&name), "{name} is not used");
        }
    }

    #[test]
    fn what_is_put_into_the_page_is_text() {
        let account = Email::parse("a&b'{{js}}@x.y").expect("valid");
        assert_eq!(escaped(r#"<a href="x">'&"#), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
        let filled = fill("<p>{{who}}</p>", &|_| Some(escaped(account.as_str())));
        assert_eq!(filled, "<p>a&amp;b&#39;{{js}}@x.y</p>");
    }

    #[test]
    fn nothing_ends_the_style_or_the_script_early() {
        for text in [STYLE, SCRIPT] {
            assert!(!text.contains("</") && !text.contains("<!--") && !text.contains("{{"));
        }
        assert!(!SCRIPT.contains("innerHTML"));
    }
}
