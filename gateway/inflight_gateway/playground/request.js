// What is set in the page → the body of a request. Pure: no document, no network.

/** A setting that cannot be sent: `field` is the id of the element at fault. */
export class Problem extends Error {
  constructor(field, sentence) {
    super(sentence);
    this.field = field;
  }
}

function json(text, field, name) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem(field, `${name} is no JSON: ${error.message}.`);
  }
}

/** The schema as an object. Throws `Problem`. */
export function schemaOf(text) {
  const schema = json(text.trim() || "{}", "schema", "The schema");
  if (schema === null || typeof schema !== "object" || Array.isArray(schema)) {
    throw new Problem("schema", "The schema must be an object.");
  }
  return schema;
}

/** The tools as OpenAI takes them; plain functions are wrapped. Throws `Problem`. */
export function toolsOf(text) {
  if (!text.trim()) return [];
  const given = json(text, "tools", "The list of tools");
  const tools = Array.isArray(given) ? given : [given];
  return tools.map((tool, place) => {
    const whole = tool?.function ? tool : { type: "function", function: tool };
    if (typeof whole.function?.name !== "string") {
      throw new Problem("tools", `Tool ${place + 1} has no name.`);
    }
    return whole;
  });
}

const NUMBERS = {
  temperature: [0, 2, false, "Temperature"],
  top_p: [0, 1, false, "Top p"],
  max_tokens: [1, 2 ** 31 - 1, true, "Max tokens"],
  seed: [-(2 ** 53 - 1), 2 ** 53 - 1, true, "Seed"],
};

function number(settings, name) {
  const [least, most, whole, label] = NUMBERS[name];
  const text = (settings[name] ?? "").trim();
  if (!text) return undefined;
  const value = Number(text);
  if (!Number.isFinite(value) || value < least || value > most || (whole && !Number.isInteger(value))) {
    throw new Problem(name, `${label} must be a ${whole ? "whole " : ""}number from ${least} to ${most}.`);
  }
  return value;
}

/** The body of one chat request. `messages` are those of the conversation, without the system prompt. */
export function bodyOf(settings, messages) {
  if (!settings.model) throw new Problem("model", "There is no model to ask yet.");
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const body = { model: settings.model, messages: [...system, ...messages], stream: true };
  for (const name of Object.keys(NUMBERS)) {
    const value = number(settings, name);
    if (value !== undefined) body[name] = value;
  }
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: schemaOf(settings.schema) } };
  }
  const tools = toolsOf(settings.tools);
  if (tools.length) {
    body.tools = tools;
    body.tool_choice = settings.tool_choice;
  }
  return body;
}
