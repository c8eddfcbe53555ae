"""The page's style sheet: light and dark, wide and narrow, on screen and on paper, nothing fetched."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f5f7fa; --ink: #1c2330; --soft: #5b6473; --line: #dce1e8;
  --base: #b4552d; --candidate: #1f6fb2; --loss: #d3e7f8; --loss-next: #bcdaf3; --loss-ink: #0c3556;
  --good: #18734a; --bad: #b0281f; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #14181f; --card: #1b212b; --ink: #e6e9ef; --soft: #9da7b5; --line: #353d4a;
  --base: #e8935f; --candidate: #6cb4ee; --loss: #16395a; --loss-next: #1f4b73; --loss-ink: #dcecfb;
  --good: #5cc795; --bad: #f0837b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
:focus-visible { outline: 3px solid var(--candidate); outline-offset: 2px; border-radius: .2rem; }
.heard { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
a { color: var(--candidate); text-underline-offset: .15em; }
.contents { margin: 1.25rem 0 0; font-size: .93rem; }
.contents ul { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; margin: 0; padding: 0; list-style: none; }
.contents a { display: inline-block; padding: .15rem 0; }
body { margin: 0 auto; padding: 2.25rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .35rem; } h4 { font-size: .85rem; margin: 1rem 0 .25rem; color: var(--soft); }
p, li { max-width: 46rem; } p { margin: .4rem 0; } .soft { color: var(--soft); }
.scroll { position: relative; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } thead th, td.n { overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tbody th { font-weight: 400; min-width: 7.5rem; } tbody th.in { padding-left: 1.25rem; color: var(--soft); }
table.named tbody th { width: 16rem; color: var(--soft); }
summary { cursor: pointer; padding: .2rem 0; } details > summary { color: var(--soft); }
.columns { display: grid; gap: 0 2.5rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.columns > * { min-width: 0; } .columns h3:first-child { margin-top: .35rem; }
.columns table.named tbody th { width: 12rem; }
.tiles { display: grid; gap: .75rem; margin: 1.25rem 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem .75rem; }
.tile .turn { font-size: 1.5rem; font-weight: 650; line-height: 1.35; font-variant-numeric: tabular-nums; }
dt, dd { margin: 0; } .tile .soft { font-size: .85rem; }
.base { color: var(--base); } .candidate { color: var(--candidate); }
.figures { columns: 2 22rem; column-gap: .75rem; }
figure { break-inside: avoid; margin: 0 0 .75rem; padding: .8rem 1rem .6rem; border: 1px solid var(--line);
  border-radius: .6rem; }
figcaption { font-weight: 600; margin-bottom: .35rem; } figcaption div { font-weight: 400; font-size: .9rem; }
figcaption span { white-space: nowrap; margin-right: .9rem; }
figure details { margin-top: .3rem; font-size: .9rem; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.code { font: .82rem/1.6 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .5rem .7rem; margin: .25rem 0; tab-size: 4; }
.tokens .nl::before { content: "\\21b5"; opacity: .7; } .tab::before { content: "\\2192"; opacity: .6; }
.ch { unicode-bidi: isolate; }
.ch::before { content: attr(data-c); font-size: .72em; padding: 0 .2em; border: 1px solid currentColor;
  border-radius: .2em; opacity: .8; }
.trace { border: 1px solid var(--line); border-radius: .6rem; padding: .2rem 1rem 1rem; margin: 1rem 0; }
.attempt { margin: .9rem 0 0; padding-left: .8rem; border-left: 3px solid var(--line); }
.attempt.accepted { border-color: var(--good); } .attempt.rejected { border-color: var(--bad); }
.chip { display: inline-block; font-size: .8rem; font-weight: 600; padding: 0 .5em; border-radius: 1em;
  border: 1px solid currentColor; color: var(--soft); }
.chip.accepted { color: var(--good); } .chip.rejected { color: var(--bad); }
.said { font-size: .93rem; white-space: pre-wrap; } .said b { font-weight: 600; }
.tokens { color: var(--soft); line-height: 1.75; } .tokens span:nth-child(even) { background: var(--paper); }
.diff > * { display: block; text-decoration: none; } .diff ins { color: var(--good); } .diff del { color: var(--bad); }
.diff span { color: var(--soft); } .outcome { font-weight: 600; }
.outcome.holds { color: var(--good); } .outcome.fails { color: var(--bad); }
.tokens span + mark::before { content: " [with loss:] "; position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
.tokens mark { background: var(--loss); color: var(--loss-ink); -webkit-box-decoration-break: clone;
  box-decoration-break: clone; } .tokens mark:nth-child(even) { background: var(--loss-next); }
.tokens .special { border: 1px dashed currentColor; border-radius: .25rem; padding: 0 .15rem; }
.tokens mark.end { background: var(--candidate); color: var(--paper); border: 0; font-weight: 600; }
.tokens em { font-family: system-ui, sans-serif; }
.key { display: inline-block; } .key .tokens { padding: 0; border: 0; background: none; }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem; } h1 { font-size: 1.35rem; }
  figure { padding: .6rem .5rem .4rem; } .trace { padding: .1rem .7rem .8rem; }
  table.named tbody th { width: 9rem; } }
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } .contents, summary::marker { display: none; }
  details > *:not(summary) { display: block; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .scroll { overflow: visible; } thead { display: table-header-group; }
  tr, figure, .tile, .attempt > p, .said { break-inside: avoid; } h2, h3, h4, summary { break-after: avoid; }
  table { font-size: 9pt; } thead th, tbody th, td, td.n { overflow-wrap: anywhere; min-width: 0; }
  .figures { columns: 1; } figure svg { max-width: 24rem; margin: 0; }
  .tokens mark, .tokens span, .code, .tile { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .tokens mark { text-decoration: underline; }
}
"""
