
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const [unlock, key, begin, steps, link] = ["unlock", "key", "begin", "steps", "link"].map(at);
  const [finish, code, email, send, outcome, again] = ["finish", "code", "email", "send", "outcome", "again"].map(at);
  if (!finish) return;
  const words = finish.dataset;

  // Text only: what a server says is never markup.
  const say = (kind, lines) => {
    outcome.className = kind;
    outcome.replaceChildren(...lines.map((line) => {
      const p = document.createElement("p");
      p.textContent = line;
      return p;
    }));
    outcome.scrollIntoView({ block: "nearest" });
  };

  const call = async (path, options) => {
    const headers = { accept: "application/json", ...options.headers };
    if (key.value) headers["x-api-key"] = key.value;
    let reply, body;
    try {
      reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
      body = await reply.json();
    } catch {
      throw new Error(words.unreachable);
    }
    if (!reply.ok) throw new Error(body.message || (body.error && body.error.message) || words.failed);
    return body;
  };

  const working = async (button, job) => {
    button.disabled = true;
    outcome.className = "";
    outcome.textContent = words.busy;
    try {
      await job();
    } catch (error) {
      say("bad", [words.failed, error.message]);
    } finally {
      button.disabled = false;
    }
  };

  unlock.addEventListener("submit", (event) => {
    event.preventDefault();
    if (begin.hidden) return;
    working(begin, async () => {
      const begun = await call(location.pathname + location.search, { method: "GET" });
      if (!/^https?:/.test(begun.authorization_url)) throw new Error(words.failed);
      link.href = begun.authorization_url;
      outcome.textContent = "";
      begin.hidden = true;
      steps.hidden = false;
      again.hidden = false;
      link.focus();
    });
  });

  finish.addEventListener("submit", (event) => {
    event.preventDefault();
    working(send, async () => {
      const account = words.account || email.value.trim();
      const body = { code: code.value };
      if (account) body.account_email = account;
      const done = await call("/oauth/exchange-code", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      const ends = new Date(done.expires_at * 1000).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
      const lines = [`${words.done} ${done.account_email}`, `${words.ends} ${ends}`];
      if (done.persisted === false) lines.push(words.unsaved);
      if (done.verified === false) lines.push(words.unverified);
      lines.push(words.retry);
      code.value = "";
      key.value = "";
      steps.hidden = true;
      unlock.hidden = true;
      again.hidden = true;
      at("who").hidden = true;
      say("good", lines);
      // The field that had it is gone.
      outcome.focus();
    });
  });
})();
