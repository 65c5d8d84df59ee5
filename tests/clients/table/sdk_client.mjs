// The TypeScript SDK: one job per line of input, one outcome per line of output.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

// It is installed elsewhere: `node sdk_client.mjs FOLDER`.
const require = createRequire(join(process.argv[2], 'package.json'));
const entry = require.resolve('@anthropic-ai/sdk');
const { default: Anthropic } = await import(pathToFileURL(entry.replace(/\.js$/, '.mjs')));
const { version } = JSON.parse(readFileSync(join(dirname(entry), 'package.json')));

async function job(client, turn, prompt) {
  const task = { model: 'claude-test', messages: [{ role: 'user', content: prompt }] };
  if (turn === 'count') {
    return { tokens: (await client.messages.countTokens(task)).input_tokens };
  }
  if (turn === 'models') {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return { models };
  }
  task.max_tokens = 64;
  let kinds = null;
  let message;
  if (turn === 'stream') {
    kinds = [];
    const stream = client.messages.stream(task);
    for await (const event of stream) kinds.push(event.type);
    message = await stream.finalMessage();
  } else {
    message = await client.messages.create(task);
  }
  const text = message.content.map((block) => block.text).join('');
  return { text, stop: message.stop_reason, model: message.model, kinds };
}

console.log(JSON.stringify({ version }));
for await (const line of createInterface({ input: process.stdin })) {
  const { url, turn, prompt } = JSON.parse(line);
  const options = { baseURL: url, apiKey: 'dummy-of-the-client', maxRetries: 2, timeout: 30_000 };
  let outcome;
  try {
    outcome = await job(new Anthropic(options), turn, prompt);
  } catch (error) {
    outcome = { error: error.constructor.name, status: error.status ?? null, message: error.message };
  }
  console.log(JSON.stringify(outcome));
}
