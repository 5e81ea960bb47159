// One request as a program that sends it from elsewhere. Pure.

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A command for a POSIX shell. */
export function curl(body, base) {
  return [
    `curl -N ${shell(`${base}/chat/completions`)} \\`,
    `  -H "Authorization: Bearer $INFLIGHT_KEY" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d ${shell(JSON.stringify(body, null, 2))}`,
    "",
  ].join("\n");
}

function literal(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const parts = Array.isArray(value)
    ? value.map((one) => literal(one, inner))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length + indent.length < 96 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}`;
}

/** A program for OpenAI's package. */
export function python(body, base) {
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  return `import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base)}, api_key=os.environ.get("INFLIGHT_KEY", "none"))
stream = client.chat.completions.create(
${fields.join("")})
for chunk in stream:
    for choice in chunk.choices:
        for call in choice.delta.tool_calls or []:
            print(call.function.name or "", call.function.arguments or "", end="", flush=True)
        print(choice.delta.content or "", end="", flush=True)
print()
`;
}
