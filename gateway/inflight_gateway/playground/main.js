// The page: a conversation, the settings beside it, and one request at a time.

import { Refusal, chat, models } from "./api.js";
import { EXAMPLES } from "./examples.js";
import { Problem, bodyOf } from "./request.js";
import { Panel, Settings } from "./settings.js";
import { curl, python } from "./snippets.js";
import { Answer, question } from "./turn.js";

const by = (id) => document.getElementById(id);
const LOOK_AGAIN_MS = 5000;

const settings = new Settings(by("form"), by("model"));
const panel = new Panel(by("settings"), by("open-settings"), by("close-settings"), document.querySelector("main"));
const log = by("log");
const prompt = by("prompt");

let history = []; // messages, as they are sent
let pending = null; // the answer whose calls wait for results
let under = null; // what stops the request under way

// What a screen reader is told in passing.
function say(sentence) {
  by("status").textContent = sentence;
}

// Models.

let looking = null;

async function look() {
  clearTimeout(looking);
  try {
    const names = await models(settings.key);
    settings.offer(names);
    notice("");
    if (!names.length) looking = setTimeout(look, LOOK_AGAIN_MS);
  } catch (error) {
    if (!settings.values.model) settings.offer([]); // those known before stay
    notice(error instanceof Refusal ? error.message : "The list of models did not come.");
    if (error.status !== 401) looking = setTimeout(look, LOOK_AGAIN_MS);
  }
}

// A sentence above the prompt, of what concerns no single answer.
function notice(sentence) {
  const known = by("notice");
  if (known?.textContent === sentence) return;
  known?.remove();
  if (!sentence) return;
  const said = document.createElement("p");
  said.id = "notice";
  said.className = "error";
  said.setAttribute("role", "alert");
  said.textContent = sentence;
  by("ask").before(said);
}

// The conversation.

// The end stays in view while an answer grows, unless somebody has scrolled away from it.
let following = true;
log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
});

function follow() {
  if (following) log.scrollTop = log.scrollHeight;
}

function add(element) {
  by("empty").hidden = true;
  log.append(element);
  following = true;
  follow();
}

function busy(going) {
  by("send").hidden = going;
  by("stop").hidden = !going;
  by("new").disabled = going;
}

/** Ask for an answer to the conversation and these further messages. */
async function ask(further) {
  let body;
  try {
    body = bodyOf(settings.values, [...history, ...further]);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    settings.check();
    notice(error.message);
    panel.reveal(error.field);
    return false;
  }
  notice("");
  for (const message of further) add(question(message.content || "(nothing)", message.role === "tool" ? "Tool" : "You"));
  await answer(body, further);
  return true;
}

async function answer(body, further) {
  const shown = new Answer(body.model, settings.values.format);
  add(shown.element);
  under = new AbortController();
  busy(true);
  say("The model answers.");
  const keepUp = new ResizeObserver(follow);
  keepUp.observe(shown.element);
  try {
    for await (const chunk of chat(body, settings.key, under.signal)) shown.take(chunk);
    shown.end();
    say(`The answer is there. ${shown.summary}`);
  } catch (error) {
    failed(shown, error);
  } finally {
    under = null;
    busy(false);
    keepUp.disconnect();
  }
  settle(shown, body, further);
  follow();
}

function failed(shown, error) {
  if (error.name === "AbortError") {
    shown.end("stopped");
    say("Stopped.");
    return;
  }
  shown.end("error");
  shown.fail(error instanceof Refusal ? error.message : "The page met an error of its own; its console has the reason.");
  if (!(error instanceof Refusal)) console.error(error);
  if (error.status === 401) panel.reveal("key");
}

// What an answer leaves: its place in the conversation, and what can be done with it.
function settle(shown, body, further) {
  const message = shown.message;
  const before = history;
  if (message) history = [...history, ...further, message];
  pending = shown.calls.length ? shown : null;
  if (pending) {
    shown.ask(() => ask(settleCalls()));
    shown.extra.querySelector(".result").focus();
  }
  if (shown.text) shown.offer("Copy text", (button) => copied(button, shown.text));
  shown.offer("Copy as curl / Python", () => elsewhere(body));
  if (!message) {
    const again = shown.offer("Try again", () => {
      if (under) return;
      again.remove();
      history = before;
      ask(further.map((one) => ({ ...one })));
    });
  }
}

function settleCalls() {
  const results = pending ? pending.results() : [];
  pending = null;
  return results;
}

function send(text) {
  if (under || !text.trim()) return;
  const further = [...settleCalls(), { role: "user", content: text }];
  prompt.value = "";
  grow();
  ask(further).then((sent) => {
    if (!sent && !prompt.value) prompt.value = text;
    grow();
  });
}

// The request as a program.

const dialog = by("code");
let told = { body: {}, language: "curl" };

function elsewhere(body, language = told.language) {
  told = { body, language };
  const base = new URL("v1", document.baseURI).href;
  by("code-text").value = language === "curl" ? curl(body, base) : python(body, base);
  for (const button of dialog.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
  if (!dialog.open) dialog.showModal();
}

async function copied(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("Copied.");
  } catch {
    // Only pages by https, or of this machine, may write there.
    button.textContent = "Not allowed here";
    say("This browser does not let the page copy; select the text instead.");
    if (dialog.open) by("code-text").select();
  }
  setTimeout(() => (button.textContent = name), 1600);
}

for (const button of dialog.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => elsewhere(told.body, button.dataset.language));
}
by("code-copy").addEventListener("click", () => copied(by("code-copy"), by("code-text").value));
by("code-close").addEventListener("click", () => dialog.close());

// Hands on the page.

function grow() {
  prompt.rows = Math.min(8, prompt.value.split("\n").length);
}

prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(prompt.value);
});
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send(prompt.value);
});
by("stop").addEventListener("click", () => {
  under?.abort();
  prompt.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !dialog.open && !panel.shown) under?.abort();
});
by("new").addEventListener("click", () => {
  history = [];
  pending = null;
  for (const turn of log.querySelectorAll(".turn")) turn.remove();
  by("empty").hidden = false;
  notice("");
  prompt.focus();
});
by("defaults").addEventListener("click", () => settings.reset());
by("key").addEventListener("change", look);
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => {
    const example = EXAMPLES[button.dataset.example];
    settings.fill(example.settings);
    settings.changed();
    settings.check();
    send(example.ask);
    prompt.focus();
  });
}

look();
