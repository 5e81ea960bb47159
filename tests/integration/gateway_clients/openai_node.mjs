// OpenAI's client for JavaScript: `node openai_node.mjs URL`, with the package `openai` beside it. Writes what
// common.py's scripts write.
import OpenAI from "openai";
import { readFileSync } from "node:fs";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0, timeout: 180_000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const base = { model: "llm", messages, temperature: 0, max_tokens: 200 };

function check(holds, what) {
  if (!holds) throw new Error(JSON.stringify(what));
}

function calls(message) {
  const { name, arguments: text } = message.tool_calls[0].function;
  check(name === "get_weather" && typeof JSON.parse(text).city === "string", message);
}

const features = {
  chat: async () => {
    const answer = await client.chat.completions.create(base);
    check(answer.choices[0].message.content.includes("Paris"), answer);
  },
  "chat, streamed": async () => {
    const answer = await client.chat.completions.stream(base).finalChatCompletion();
    check(answer.choices[0].message.content.includes("Paris"), answer);
    check(answer.choices[0].finish_reason === "stop", answer);
  },
  tools: async () => {
    const answer = await client.chat.completions.create({ ...base, tools, tool_choice: "required" });
    calls(answer.choices[0].message);
  },
  "tools, streamed": async () => {
    const stream = client.chat.completions.stream({ ...base, tools, tool_choice: "required" });
    calls((await stream.finalChatCompletion()).choices[0].message);
  },
  structured: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "city", strict: true, schema: parameters } };
    const answer = await client.chat.completions.parse({ ...base, response_format });
    check(typeof answer.choices[0].message.parsed.city === "string", answer);
  },
  completions: async () => {
    const answer = await client.completions.create({ model: "llm", prompt: "The capital of France is", temperature: 0 });
    check(answer.choices[0].text.includes("Paris"), answer);
  },
  "completions, streamed": async () => {
    const asked = { model: "llm", prompt: "The capital of France is", temperature: 0, stream: true };
    let text = "";
    for await (const chunk of await client.completions.create(asked)) text += chunk.choices[0].text;
    check(text.includes("Paris"), text);
  },
  models: async () => {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    check(names.join() === "llm", names);
  },
};

const found = {};
for (const [name, attempt] of Object.entries(features)) {
  try {
    await attempt();
    found[name] = "yes";
  } catch (error) {
    found[name] = String(error).slice(0, 500);
  }
}
const { version } = JSON.parse(readFileSync(new URL("node_modules/openai/package.json", import.meta.url), "utf-8"));
process.stdout.write(JSON.stringify({ version, features: found }));
