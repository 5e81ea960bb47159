// The gateway, as the page speaks to it: relative addresses, so that a path prefix in front of it does no harm.

const at = (path) => new URL(path, document.baseURI);

/** An answer that did not come, or broke off; the message is a sentence for a person. */
export class Refusal extends Error {
  constructor(sentence, status = 0, code = null) {
    super(sentence);
    this.status = status;
    this.code = code;
  }
}

// As a sentence, whose first word stays as it is where it is the name of a field.
function sentence(text, param) {
  const first = param && text.startsWith(param) ? text.charAt(0) : text.charAt(0).toUpperCase();
  return `${first}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}

function headers(key, more = {}) {
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(at(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The gateway cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // What stands between us and the gateway answers in its own form.
  }
  const again = response.headers.get("retry-after");
  let text = sentence(said.message || `The server answered with status ${response.status}`, said.param);
  if (response.status === 401) text = "This gateway wants an API key. Type one under Settings, Key.";
  else if (again && !/again/.test(text)) text += ` Try again in ${again} s.`;
  return new Refusal(text, response.status, said.code ?? null);
}

/** The names of the models. Throws `Refusal`. */
export async function models(key) {
  const response = await asked("v1/models", { headers: headers(key), signal: AbortSignal.timeout(15_000) });
  return (await response.json()).data.map((model) => model.id);
}

/** The chunks of one chat answer, as they come. Ends after [DONE]; throws `Refusal`, or AbortError when stopped. */
export async function* chat(body, key, signal) {
  const sent = { ...body, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await asked("v1/chat/completions", {
    method: "POST",
    headers: headers(key, { "content-type": "application/json" }),
    body: JSON.stringify(sent),
    signal,
  });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue; // a comment, which keeps the connection open
        if (event === "data: [DONE]") return;
        const chunk = JSON.parse(event.slice(6));
        if (chunk.error) throw new Refusal(sentence(chunk.error.message, chunk.error.param), 200, chunk.error.code);
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof Refusal || error.name === "AbortError") throw error;
    throw new Refusal("The connection broke. What came so far is above.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Refusal("The answer ended before it was whole. What came so far is above.");
}
