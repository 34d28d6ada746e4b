"""The style sheet of a report: light and dark by the reader's preference, from a telephone to a wide screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --page: #f6f7f9; --card: #fff; --rule: #e1e5ea;
  --good: #18794e; --bad: #b4323c; --goodback: #e3f4ea; --s1: #2563c9; --s2: #d4680f; --s3: #178a5f; --s4: #a33ea1;
  --s5: #8a6d00; --s6: #c02f4e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #98a3b3; --page: #12161c; --card: #1a2029;
  --rule: #2c3542; --good: #55c98f; --bad: #f08087; --goodback: #17352a; --s1: #6ba1f5; --s2: #f5a15a; --s3: #58c79b;
  --s4: #d586d3; --s5: #d9bb45; --s6: #f27d96; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; }
h4 { font-size: 12px; font-weight: 600; color: var(--soft); margin: 0 0 3px; }
.facts { color: var(--soft); margin: 0 0 16px; overflow-wrap: anywhere; }
.facts span { white-space: nowrap; } .facts b { color: var(--ink); font-weight: 600; }
.note { color: var(--soft); font-size: 13px; margin: 8px 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tile, .card, .strip, .task, .charts > figure, .scroll, details { background: var(--card);
  border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 10px 14px; } .tile span { display: block; color: var(--soft); font-size: 13px; }
.tile b { font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 12px; }
figure { margin: 0; }
.charts > figure { padding: 12px 12px 6px; }
.charts figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 13px; margin: 0 0 6px 4px; }
.charts figcaption b { font-weight: 600; margin-right: auto; }
.charts figcaption i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; background: var(--c); }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); stroke-opacity: .6; fill: none; }
svg .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--c); } svg .hit { fill: transparent; } svg .hit:hover { fill: var(--ink); fill-opacity: .25; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; }
th { font-weight: 500; } tbody th, thead tr:first-child th:first-child { text-align: left; }
thead th { color: var(--soft); font-size: 12.5px; border-bottom: 1px solid var(--rule); }
thead th[colspan] { text-align: center; border-left: 1px solid var(--rule); border-right: 1px solid var(--rule); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tr.best > * { background: var(--goodback); } tr.chance > * { color: var(--soft); font-style: italic; }
.plain th, .plain td { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
.words th { color: var(--soft); vertical-align: top; width: 1%; }
.tasks { columns: 2 420px; column-gap: 12px; }
.task { padding: 14px 14px 2px; margin-bottom: 12px; break-inside: avoid; }
.task .scroll { border: 0; border-radius: 0; }
.task th, .task td { padding: 5px 8px; }
.bar { width: 40%; min-width: 70px; }
.bar div { position: relative; height: 9px; border-radius: 5px; background: var(--rule); }
.bar div i:first-child { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--s1); }
.bar .tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.card { padding: 14px; display: grid; grid-template-columns: 128px minmax(0, 1fr); gap: 10px 14px; align-items: start; }
.card > div + div { grid-column: 1 / -1; }
img { display: block; width: 100%; height: auto; border-radius: 6px; } img.small { image-rendering: pixelated; }
.card ol, .card ul { list-style: none; margin: 0; padding: 0; font-size: 13px; line-height: 1.4; }
.card .own { color: var(--soft); list-style: disc; padding-left: 16px; } .card li { overflow-wrap: anywhere; }
.found li { display: grid; grid-template-columns: 14px minmax(0, 1fr) auto; gap: 5px; padding: 2px 4px;
  border-radius: 4px; } .found li + li { margin-top: 1px; }
.found i { font-style: normal; font-weight: 700; } .found b { font-weight: 500; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.right { background: var(--goodback); } .right i, .right figcaption { color: var(--good); }
.wrong i, .wrong figcaption { color: var(--bad); }
.strips { display: grid; gap: 10px; } .strip { padding: 12px 14px; }
.strip p { margin: 0 0 8px; overflow-wrap: anywhere; }
.strip > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 110px)); gap: 10px; }
.strip figure { border-radius: 8px; padding: 4px; border: 2px solid transparent; }
.strip figure.right { border-color: var(--good); }
.strip figcaption { font-size: 12px; text-align: center; font-variant-numeric: tabular-nums; }
details { margin-top: 12px; padding: 0 14px; } summary { cursor: pointer; padding: 11px 0; font-weight: 500; }
details .scroll { border: 0; border-top: 1px solid var(--rule); border-radius: 0; margin-bottom: 8px; }
@media (max-width: 480px) { main { padding: 18px 12px 40px; } .card { grid-template-columns: 92px minmax(0, 1fr); }
  th, td { padding: 5px 8px; } .bar, thead th:empty + th + th:empty { display: none; } }
"""
