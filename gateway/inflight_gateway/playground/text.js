// A model's text as elements: paragraphs, fenced code, `code`, **bold** and *stress*. What it says is only ever text: every
// piece enters the page through textContent.

/** Text → [{ code, text }]: what lies between ``` fences, and what lies around them. An open fence runs to the end. */
export function blocks(text) {
  const found = [];
  let code = false;
  let lines = [];
  const close = () => {
    const joined = lines.join("\n");
    if (code || joined.trim()) found.push({ code, text: code ? joined : joined.trim() });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (/^\s*```/.test(line)) {
      close();
      code = !code;
    } else lines.push(line);
  }
  if (lines.length || code) close();
  return found;
}

function made(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function inline(text) {
  const parts = text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*|\*\b[^*\n]+\b\*)/);
  return parts.filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return made("code", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return made("strong", part.slice(2, -2));
    if (/^\*\b[^*]+\*$/.test(part)) return made("em", part.slice(1, -1));
    return document.createTextNode(part);
  });
}

/** Put `text` into `element`; only blocks that changed are made anew, so that a long answer stays cheap. */
export function show(element, text) {
  const wanted = blocks(text);
  wanted.forEach((block, place) => {
    const old = element.children[place];
    if (old && old.shown === block.text && old.code === block.code) return;
    const fresh = document.createElement(block.code ? "pre" : "p");
    fresh.append(...(block.code ? [made("code", block.text)] : inline(block.text)));
    fresh.shown = block.text;
    fresh.code = block.code;
    if (block.code) fresh.tabIndex = 0; // it scrolls sideways
    if (old) old.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.children.length > wanted.length) element.lastElementChild.remove();
}
