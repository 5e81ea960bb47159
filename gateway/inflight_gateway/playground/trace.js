// The climb of one answer: tokens over time, as a line that draws itself while they come.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 64;
const FOOT = 4;
const MOST_POINTS = 400;

const drawn = (name, attributes) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

export class Trace {
  constructor() {
    this.points = [[0, 0]]; // seconds since the request, tokens
    this.first = null;
    this.element = drawn("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "trace", role: "img",
      "aria-label": "Tokens over time",
    });
    this.area = drawn("path", { class: "trace-area" });
    this.line = drawn("path", { class: "trace-line" });
    this.mark = drawn("line", { class: "trace-first", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.element.append(drawn("line", { class: "trace-ground", x1: 0, x2: WIDTH, y1: HEIGHT - FOOT, y2: HEIGHT - FOOT }));
    this.element.append(this.mark, this.area, this.line);
  }

  /** `tokens` so far, `seconds` after the request was sent. */
  add(seconds, tokens) {
    if (this.first === null && tokens > 0) {
      this.first = seconds;
      this.points.push([seconds, 0]);
    }
    this.points.push([seconds, tokens]);
    if (this.points.length > MOST_POINTS) this.points = this.points.filter((_, place) => place < 2 || place % 2);
  }

  /** Draw up to `now` seconds. */
  draw(now) {
    const tokens = this.points.at(-1)[1];
    const across = WIDTH / Math.max(now, 0.25);
    const up = (HEIGHT - 2 * FOOT) / Math.max(tokens, 8);
    const place = ([seconds, count]) => `${(seconds * across).toFixed(1)} ${(HEIGHT - FOOT - count * up).toFixed(1)}`;
    const line = `M${[...this.points, [now, tokens]].map(place).join("L")}`;
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", `${line}L${WIDTH} ${HEIGHT - FOOT}L0 ${HEIGHT - FOOT}Z`);
    if (this.first === null) return;
    this.mark.setAttribute("x1", this.first * across);
    this.mark.setAttribute("x2", this.first * across);
    this.mark.setAttribute("visibility", "visible");
  }

  /** What the line shows, in words. */
  describe(sentence) {
    this.element.setAttribute("aria-label", sentence);
  }
}
