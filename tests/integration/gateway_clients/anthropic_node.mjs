// Anthropic's client for JavaScript. `node anthropic_node.mjs URL` says per feature "yes" or what went wrong.
import { readFileSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 180_000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const tools = [
  {
    name: "get_weather",
    description: "The weather in a city.",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];

function must(holds, said) {
  if (!holds) throw new Error(JSON.stringify(said));
}

function callsForACity(answer) {
  const call = answer.content.at(-1);
  must(answer.stop_reason === "tool_use" && call.type === "tool_use", answer);
  must(call.name === "get_weather" && typeof call.input.city === "string", call);
}

const features = {
  messages: async () => {
    const answer = await client.messages.create({ model: "llm", max_tokens: 24, messages });
    must(answer.content[0].text.length > 0 && answer.usage.output_tokens > 0, answer);
  },
  "messages, streamed": async () => {
    const stream = client.messages.stream({ model: "llm", max_tokens: 24, messages });
    let said = "";
    stream.on("text", (text) => (said += text));
    const answer = await stream.finalMessage();
    must(said.length > 0 && answer.content[0].text === said, answer);
  },
  tools: async () => {
    const asked = { model: "llm", max_tokens: 200, messages, tools, tool_choice: { type: "any" } };
    callsForACity(await client.messages.create(asked));
  },
  "tools, streamed": async () => {
    const asked = { model: "llm", max_tokens: 200, messages, tools, tool_choice: { type: "any" } };
    callsForACity(await client.messages.stream(asked).finalMessage());
  },
  "tokens counted": async () => {
    const answer = await client.messages.countTokens({ model: "llm", messages });
    must(answer.input_tokens > 0, answer);
  },
  errors: async () => {
    try {
      await client.messages.create({ model: "nope", max_tokens: 8, messages });
    } catch (error) {
      must(error instanceof Anthropic.NotFoundError, String(error));
      return;
    }
    must(false, "a model that is not there answered");
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
const own = new URL("./node_modules/@anthropic-ai/sdk/package.json", import.meta.url);
console.log(JSON.stringify({ version: JSON.parse(readFileSync(own, "utf8")).version, features: found }));
