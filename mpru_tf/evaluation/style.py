"""The style sheet of the report: light, dark and on paper, from a phone to a wide screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1f262d; --soft: #5c6873; --line: #dde3e8; --ground: #fff; --panel: #f5f7f9;
  --before: #7d8b99; --after: #1f6f8b; --retrained: #b06a00; --bad: #c8553d; --heat: 31 111 139; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9fabb7; --line: #323b44; --ground: #14181c;
  --panel: #1c2228; --before: #93a1af; --after: #5bbbdb; --retrained: #e8ab4c; --bad: #ee8871; --heat: 91 187 219; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 3rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: .5rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .3rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption small, caption small { color: var(--soft); }
.verdict { background: var(--panel); border-left: 4px solid var(--after); border-radius: 0 .5rem .5rem 0;
  padding: .9rem 1.1rem; margin: 1.1rem 0; max-width: none; }
.verdict p { max-width: 56rem; margin: .25rem 0; }
.verdict .first { font-size: 1.15rem; font-weight: 600; }
.verdict.bad { border-color: var(--bad); }
dl.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.2rem; margin: 1rem 0; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .45rem .45rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; vertical-align: bottom; font-weight: 600; white-space: normal; min-width: 4rem;
  background: var(--panel); }
thead th small { display: block; font-weight: 400; color: var(--soft); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--ground); font-weight: 500; z-index: 1;
  max-width: 13rem; white-space: normal; min-width: 8rem; }
thead th:first-child { background: var(--panel); }
tr.this th, tr.this td { background: var(--panel); font-weight: 700; }
tr.this th:first-child { box-shadow: inset 4px 0 var(--after); }
tr.floor th, tr.floor td, tr.reference th, tr.reference td { color: var(--soft); font-style: italic; }
.tag { display: block; font-size: .8rem; font-weight: 400; font-style: normal; color: var(--soft); }
dl.columns { font-size: .9rem; color: var(--soft); margin: .6rem 0; display: grid; gap: .25rem; max-width: 56rem; }
dl.columns div { display: block; }
dl.columns dt { display: inline; font-weight: 600; color: var(--ink); }
dl.columns dd { display: inline; margin: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem 1.5rem;
  margin: 1rem 0; align-items: start; }
.panels > * { max-width: 30rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption small { font-weight: 400; }
figcaption { font-weight: 600; margin-bottom: .35rem; }
svg.plot { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; }
.guess { fill: none; stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.before { stroke: var(--before); stroke-dasharray: 5 3; }
.line.after { stroke: var(--after); }
.line.retrained { stroke: var(--retrained); stroke-dasharray: 1.5 2.5; stroke-width: 2.4; }
.area { stroke: none; fill-opacity: .12; }
.area.before { fill: var(--before); }
.area.after { fill: var(--after); }
.area.retrained { fill: none; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0; padding: 0;
  font-size: .85rem; color: var(--soft); }
svg.key { width: 24px; height: 8px; margin-right: .4rem; }
table.heat { table-layout: fixed; font-size: .9rem; }
table.heat th, table.heat td { padding: .3rem .35rem; }
table.heat thead th { min-width: 0; text-align: right; font-size: .82rem;
  white-space: nowrap; }
table.heat thead th + th { padding-left: 0; }
table.heat th:first-child { position: static; width: 34%; max-width: none; min-width: 0; text-align: left; }
table.heat th span, ol.bars .name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  line-clamp: 2; overflow: hidden; overflow-wrap: anywhere; line-height: 1.25; }
table.heat td { text-align: right; border-left: 2px solid var(--ground); }
table.heat tr.gone th { color: var(--bad); font-weight: 700; }
ol.bars { list-style: none; margin: .8rem 0; padding: 0; display: grid; gap: .3rem; max-width: 46rem; }
ol.bars li { display: grid; grid-template-columns: min(var(--name), 9rem) 1fr 3.6rem; gap: .7rem; align-items: center;
  font-size: .92rem; font-variant-numeric: tabular-nums; }
ol.bars li.gone .name { color: var(--bad); font-weight: 700; }
ol.bars .track { position: relative; height: 1rem; background: var(--panel); border-radius: .2rem; }
ol.bars .bar { display: block; height: 100%; background: var(--after); border-radius: .2rem; }
ol.bars .mark { position: absolute; top: -.15rem; bottom: -.15rem; width: 3px; margin-left: -1.5px;
  background: var(--bad); border-radius: 2px; }
ol.bars .value { text-align: right; }
.swatch { display: inline-block; vertical-align: -.1em; width: .9rem; height: .8rem; border-radius: .15rem;
  background: var(--after); }
.swatch.mark { width: 3px; height: 1rem; background: var(--bad); margin: 0 .3rem; }
ul.limits { padding-left: 1.2rem; max-width: 50rem; }
ul.limits li { margin: .35rem 0; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--after); }
footer { margin-top: 2.5rem; font-size: .85rem; color: var(--soft); border-top: 1px solid var(--line);
  padding-top: .8rem; }
@media (max-width: 40rem) {
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: .5rem; }
  th, td { padding: .4rem .45rem; }
  th:first-child { max-width: 8.5rem; min-width: 7rem; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --ground: #fff; --panel: #f1f1f1;
    --before: #7d8b99; --after: #1f6f8b; --retrained: #b06a00; --bad: #c8553d; --heat: 31 111 139; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .3rem; }
  thead th { min-width: 0; }
  th:first-child { min-width: 0; }
}
"""
