// One turn of the conversation as elements: what was asked, or an answer with its climb, its figures and its calls.

import { show } from "./text.js";
import { Trace } from "./trace.js";

function made(kind, options = {}, ...children) {
  const element = document.createElement(kind);
  const { text, ...properties } = options;
  if (text !== undefined) element.textContent = text;
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

const seconds = (value) => (value < 0.9995 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);

/** What a person asked, or a tool's result. */
export function question(text, who = "You") {
  return made("article", { className: "turn asked" }, made("h3", { text: who }), made("div", { className: "text", text }));
}

const ENDS = {
  stop: "complete", length: "out of tokens", tool_calls: "calls a tool", stopped: "stopped by you", error: "failed",
};

/** An answer, while it comes and after. */
export class Answer {
  constructor(model, form) {
    this.form = form; // of the answer, as response_format says
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.tokens = 0;
    this.finish = "";
    this.began = performance.now();
    this.first = null;
    this.tokensAtFirst = 0;
    this.last = 0;
    this.trace = new Trace();
    this.body = made("div", { className: "text" });
    this.thoughts = made("p", { className: "thought" });
    this.thinking = made("details", { hidden: true }, made("summary", { text: "Thoughts" }), this.thoughts);
    this.extra = made("div", { className: "extra" });
    this.figures = made("dl", { className: "figures" });
    this.actions = made("div", { className: "actions" });
    this.element = made(
      "article", { className: "turn answered going" },
      made("h3", { text: model }), this.thinking, this.body, this.extra,
      made("div", { className: "flight" }, this.trace.element, this.figures), this.actions,
    );
    this.element.setAttribute("aria-busy", "true"); // a screen reader reads it when it is whole
    this.drawing = requestAnimationFrame(() => this.draw());
  }

  get elapsed() {
    return (performance.now() - this.began) / 1000;
  }

  /** Take one chunk of the stream. */
  take(chunk) {
    const choice = chunk.choices[0];
    const delta = choice?.delta ?? {};
    this.text += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? "";
    for (const call of delta.tool_calls ?? []) {
      const known = (this.calls[call.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
      known.id ||= call.id ?? "";
      known.function.name ||= call.function?.name ?? "";
      known.function.arguments += call.function?.arguments ?? "";
    }
    this.finish = choice?.finish_reason ?? this.finish;
    this.count(chunk.usage?.completion_tokens ?? this.tokens);
  }

  count(tokens) {
    if (tokens === this.tokens) return;
    this.last = this.elapsed;
    if (this.first === null) {
      this.first = this.last;
      this.tokensAtFirst = tokens;
    }
    this.tokens = tokens;
    this.trace.add(this.last, tokens);
  }

  /** Tokens per second after the first of them; null where there is nothing to divide. */
  get rate() {
    const span = this.first === null ? 0 : this.last - this.first;
    return span > 0 ? (this.tokens - this.tokensAtFirst) / span : null;
  }

  draw() {
    show(this.body, this.shown);
    this.thinking.hidden = !this.reasoning;
    this.thoughts.textContent = this.reasoning;
    this.trace.draw(this.finish ? this.last : this.elapsed);
    this.showFigures();
    if (!this.finish || this.element.classList.contains("going")) {
      this.drawing = requestAnimationFrame(() => this.draw());
    }
  }

  get shown() {
    if (this.calls.length && !this.text) return "";
    if (this.form === "text") return this.text;
    try {
      return `\`\`\`\n${JSON.stringify(JSON.parse(this.text), null, 2)}\n\`\`\``;
    } catch {
      return this.text && `\`\`\`\n${this.text}\n\`\`\``; // not whole yet
    }
  }

  showFigures() {
    const figures = [
      ["First token", this.first === null ? "…" : seconds(this.first)],
      ["Tokens/s", this.rate === null ? "…" : this.rate.toFixed(1)],
      ["Tokens", String(this.tokens)],
      ["Time", seconds(this.finish ? Math.max(this.last, 0) : this.elapsed)],
      ["End", this.finish ? (ENDS[this.finish] ?? this.finish) : "…"],
    ];
    figures.forEach(([name, value], place) => {
      const known = this.figures.children[place];
      if (known) known.lastChild.textContent = value;
      else this.figures.append(made("div", {}, made("dt", { text: name }), made("dd", { text: value })));
    });
  }

  /** Nothing more comes. `finish`: stopped or error, where the model did not say. */
  end(finish = this.finish || "stop") {
    this.finish = finish;
    this.element.classList.remove("going");
    cancelAnimationFrame(this.drawing);
    this.calls = finish === "tool_calls" ? this.calls.filter(Boolean) : [];
    if (this.first === null) this.last = this.elapsed;
    this.draw();
    if (this.rate === null) this.figures.children[1].lastChild.textContent = "–";
    if (this.first === null) {
      this.figures.children[0].lastChild.textContent = "–";
      if (finish === "error") this.element.querySelector(".flight").remove();
    }
    this.trace.describe(this.summary);
    this.element.setAttribute("aria-busy", "false");
  }

  /** The answer's figures as a sentence. */
  get summary() {
    const first = this.first === null ? "no token came" : `the first token after ${seconds(this.first)}`;
    const rate = this.rate === null ? "" : `, then ${this.rate.toFixed(1)} tokens per second`;
    return `${this.tokens} tokens: ${first}${rate}; ${ENDS[this.finish] ?? this.finish}.`;
  }

  /** Say what went wrong. */
  fail(sentence) {
    this.extra.append(made("p", { className: "error", role: "alert", text: sentence }));
  }

  /** Show the calls, each with a place for its result. `send` is told when the results are there. */
  ask(send) {
    const form = made("form", { className: "calls" });
    for (const [place, call] of this.calls.entries()) {
      const id = `result-${call.id || place}`;
      form.append(
        made("p", { className: "call" }, made("b", { text: call.function.name })),
        made("pre", { className: "arguments", text: pretty(call.function.arguments), tabIndex: 0 }),
        made("label", { htmlFor: id, text: `Result of ${call.function.name}` }),
        made("textarea", { id, rows: 2, className: "code result", placeholder: '{"celsius": 18}', spellcheck: false }),
      );
    }
    form.append(made("button", { type: "submit", className: "main", text: this.calls.length > 1 ? "Send results" : "Send result" }));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    this.extra.append(form);
  }

  /** The results as messages; what was left empty is told as such. Afterwards nothing can be changed. */
  results() {
    const fields = [...this.extra.querySelectorAll(".result")];
    fields.forEach((field) => (field.readOnly = true));
    this.extra.querySelector("button")?.remove();
    return this.calls.map((call, place) => ({ role: "tool", tool_call_id: call.id, content: fields[place].value }));
  }

  /** A button below the answer. */
  offer(name, act) {
    const button = made("button", { type: "button", className: "plain", text: name });
    button.addEventListener("click", () => act(button));
    this.actions.append(button);
    return button;
  }

  /** The answer as a message of the conversation; null where there is none. */
  get message() {
    if (this.calls.length) return { role: "assistant", content: this.text || null, tool_calls: this.calls };
    return this.text ? { role: "assistant", content: this.text } : null;
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
