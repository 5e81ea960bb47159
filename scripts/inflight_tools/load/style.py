"""The stylesheet of a load test's report: light and dark, as wide as a phone, printable. It fetches nothing."""

from __future__ import annotations

from build_engine import svg


def stylesheet() -> str:
    """CSS text; the colours of the charts are those of `build_engine/svg.py` on either ground."""
    light, dark = _colours(svg.COLOURS, svg.ORDER), _colours(svg.DARK_COLOURS, svg.DARK_ORDER)
    return _STYLE.replace("/* light */", light).replace("/* dark */", dark).replace("DARK_GROUND", svg.DARK_GROUND)


def _colours(series: tuple[str, ...], order: tuple[str, ...]) -> str:
    named = [*((f"c{number}", colour) for number, colour in enumerate(series))]
    named += [(f"o{number}", colour) for number, colour in enumerate(order)]
    return " ".join(f"svg .{name} {{ color: {colour}; }}" for name, colour in named)


_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f3f5f7; --paper: #ffffff; --edge: #d5dce3; --ink: #12171d; --quiet: #55606c; --grid: #e3e7eb;
  --signal: #b8400e; --good: #1b6b45; --bad: #a30f2d; --sunk: #e9edf1;
}
/* light */
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #0d1014; --paper: DARK_GROUND; --edge: #2a323c; --ink: #e9edf2; --quiet: #9aa6b3; --grid: #262d36;
    --signal: #ff9254; --good: #6fd9a3; --bad: #ff8c9b; --sunk: #1c222a;
  }
  /* dark */
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 400 15px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", sans-serif; -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 48px; }
h1, h2, h3, p, ul, dl, dd, figure { margin: 0; padding: 0; }
h1 {
  font-size: clamp(21px, 3.4vw, 30px); line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere;
  text-wrap: balance;
}
h2 { font-size: 19px; margin: 44px 0 12px; }
h3 { font-size: 16px; }
.kind { color: var(--signal); font-weight: 600; letter-spacing: 0.06em; text-transform: uppercase; font-size: 12.5px; }
.lead { color: var(--quiet); margin-top: 10px; max-width: 46em; font-size: 16px; }
.note { color: var(--quiet); margin: 8px 0 18px; font-size: 13.5px; max-width: 62em; }
.tiles {
  list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px;
  margin-top: 26px;
}
.tiles li, figure, .panel {
  background: var(--paper); border: 1px solid var(--edge); border-radius: 10px; padding: 16px 18px;
}
.tiles .name { font-size: 13.5px; color: var(--quiet); }
.tiles .value { font-size: 30px; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles .unit { font-size: 15px; font-weight: 500; color: var(--quiet); }
.tiles .detail { font-size: 13.5px; color: var(--quiet); margin-top: 2px; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; }
.pictures > *, .pair > * { min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 18px; align-items: start; }
figcaption p { color: var(--quiet); font-size: 13.5px; min-height: 3.1em; }
figure svg { display: block; width: 100%; height: auto; }
svg .ground { fill: transparent; } svg .text { fill: var(--ink); } svg .grid { stroke: var(--grid); }
svg .rule { stroke: var(--quiet); } svg .hollow { fill: var(--paper); } svg .seam { stroke: var(--paper); }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--signal); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--edge); white-space: nowrap; }
thead th { font-weight: 600; color: var(--quiet); vertical-align: bottom; font-size: 13px; }
thead tr:not(:last-child) > * { border-bottom: 0; padding-bottom: 0; }
.stick thead th { white-space: normal; min-width: 4.6em; }
tbody th { font-weight: 600; } tbody [scope=rowgroup] { padding-top: 16px; color: var(--signal); }
th:first-child, .left { text-align: left; }
.group { border-left: 1px solid var(--edge); }
[scope=colgroup] { text-align: left; color: var(--ink); }
td small { display: block; color: var(--quiet); font-size: 12px; }
tbody:last-child tr:last-child > * { border-bottom: 0; }
.stick tr > :first-child { position: sticky; left: 0; background: var(--paper); }
.stick .best > *, .stick .best > :first-child { background: var(--sunk); }
.facts th, .facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts tbody th { color: var(--quiet); font-weight: 500; width: 34%; }
.differs { font-weight: 650; }
.mark { color: var(--signal); font-weight: 600; font-size: 12.5px; white-space: nowrap; }
.better { color: var(--good); font-weight: 650; }
.worse { color: var(--bad); font-weight: 650; }
.track { position: relative; min-width: 190px; padding: 0; }
.track i { position: absolute; display: block; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.track .one { top: 0; bottom: 0; border-left: 1px dashed var(--quiet); }
.track .bar { top: calc(50% - 2px); height: 4px; background: currentColor; border-radius: 2px; min-width: 2px; }
.track .dot { top: calc(50% - 5px); width: 10px; height: 10px; margin-left: -5px; border-radius: 5px;
  background: currentColor; }
details { margin-top: 6px; }
summary { cursor: pointer; color: var(--quiet); font-size: 13.5px; padding: 4px 0; width: fit-content; }
pre {
  margin: 0; padding: 12px 14px; background: var(--sunk); border-radius: 8px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 8px 18px; font-size: 14px; }
dt { font-weight: 600; } dd { color: var(--quiet); max-width: 60em; }
footer { color: var(--quiet); font-size: 13px; margin-top: 40px; }
@media (max-width: 860px) {
  .pictures, .pair { grid-template-columns: minmax(0, 1fr); }
  figcaption p { min-height: 0; }
}
@media (max-width: 520px) {
  main { padding: 20px 12px 36px; }
  .tiles { grid-template-columns: 1fr; gap: 10px; }
  .tiles li, figure, .panel { padding: 12px; }
  .tiles .value { font-size: 26px; }
  th, td { padding: 6px 8px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 2px; } dd { margin-bottom: 10px; }
}
@media print {
  :root { --ground: #ffffff; }
  main { max-width: none; padding: 0; }
  body { font-size: 11px; } table { font-size: 8.5px; } th, td { padding: 2px 4px; }
  thead th { font-size: 8.5px; } td small { font-size: 7.5px; } .stick thead th { min-width: 0; }
  .track { min-width: 100px; } .tiles li, figure, .panel { padding: 8px 10px; }
  .pictures, .pair { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .note, .lead, dl, pre, figcaption p, .tiles .detail, summary { font-size: 10px; } .mark { font-size: 8px; }
  h2 { break-after: avoid; margin-top: 24px; font-size: 15px; }
  figure, .tiles li, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px; }
  .tiles .value { font-size: 20px; }
}
"""
