// The panel of settings: read, kept between visits (the key only until the tab closes), and shown beside a narrow page.

import { Problem, schemaOf, toolsOf } from "./request.js";

const PLACE = "inflight.settings";
const KEY_PLACE = "inflight.key";
const NAMES = ["system", "temperature", "top_p", "max_tokens", "seed", "stop", "format", "schema", "tools", "tool_choice"];

const by = (id) => document.getElementById(id);

function kept(store, place) {
  try {
    return store.getItem(place);
  } catch {
    return null;
  }
}

function keep(store, place, value) {
  try {
    store.setItem(place, value);
  } catch {
    // A browser that keeps nothing.
  }
}

export class Settings {
  constructor(form, model) {
    this.form = form;
    this.model = model;
    let known = {};
    try {
      known = JSON.parse(kept(localStorage, PLACE) ?? "{}") ?? {};
    } catch {
      // Written by something else: begin anew.
    }
    this.wanted = known.model ?? "";
    this.fill(known);
    form.elements.key.value = kept(sessionStorage, KEY_PLACE) ?? "";
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.changed());
    form.addEventListener("change", () => this.check());
    model.addEventListener("change", () => this.changed());
  }

  get key() {
    return this.form.elements.key.value.trim();
  }

  /** Everything as text, under the names of request.js. */
  get values() {
    const values = Object.fromEntries(NAMES.map((name) => [name, this.form.elements[name].value]));
    return { ...values, model: this.model.value };
  }

  /** Set what `known` names. */
  fill(known) {
    for (const name of NAMES) {
      if (typeof known[name] === "string") this.form.elements[name].value = known[name];
    }
    this.arranged();
  }

  reset() {
    const key = this.form.elements.key.value;
    this.form.reset();
    this.form.elements.key.value = key;
    this.changed();
    this.check();
  }

  changed() {
    keep(localStorage, PLACE, JSON.stringify(this.values));
    keep(sessionStorage, KEY_PLACE, this.form.elements.key.value);
    this.arranged();
  }

  arranged() {
    by("schema-field").hidden = this.form.elements.format.value !== "json_schema";
  }

  /** Say of the JSON fields what is wrong with them, where somebody looks for it. */
  check() {
    const { format, schema, tools } = this.values;
    this.told("schema", format === "json_schema" ? () => schemaOf(schema) : () => {});
    this.told("tools", () => toolsOf(tools));
  }

  told(field, read) {
    let problem = "";
    try {
      read();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      problem = error.message;
    }
    const said = by(`${field}-problem`);
    said.hidden = !problem;
    said.textContent = problem;
    by(field).setAttribute("aria-invalid", String(Boolean(problem)));
  }

  /** Offer these models, and keep the one that was chosen. */
  offer(names) {
    const chosen = [this.model.value, this.wanted].find((name) => names.includes(name)) ?? names[0] ?? "";
    const options = names.map((name) => new Option(name, name, false, name === chosen));
    this.model.replaceChildren(...(options.length ? options : [new Option("none is ready", "")]));
    this.model.disabled = !options.length;
  }
}

/** The panel of a narrow page: over the conversation, and left with Escape. */
export class Panel {
  constructor(panel, opener, closer, main) {
    Object.assign(this, { panel, opener, main });
    opener.addEventListener("click", () => this.show(!this.shown));
    closer.addEventListener("click", () => this.show(false));
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.shown) this.show(false);
    });
    // A window that is made wide again shows both.
    matchMedia("(min-width: 60rem)").addEventListener("change", (wide) => wide.matches && this.show(false, false));
  }

  get narrow() {
    return getComputedStyle(this.opener).display !== "none";
  }

  get shown() {
    return this.panel.classList.contains("open");
  }

  show(open, move = true) {
    this.panel.classList.toggle("open", open);
    this.opener.setAttribute("aria-expanded", String(open));
    this.main.inert = open;
    if (!move) return;
    if (open) this.panel.querySelector("textarea, input").focus();
    else this.opener.focus();
  }

  /** Bring a field into view. */
  reveal(id) {
    if (this.narrow && !this.shown) this.show(true, false);
    by(id)?.focus();
  }
}
