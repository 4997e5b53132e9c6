"""How the page looks, and the little that it does by itself in the browser: style sheet and script, as they stand in its head."""

from controller.dashboard.picture import DARK, LIGHT, Palette
from controller.dashboard.view import State


def _colours(palette: Palette) -> str:
    states = "".join(f"--state-{state.severity}: {colour}; " for state, colour in palette.states.items())
    return (
        f"--text: {palette.text}; --muted: {palette.muted}; --line: {palette.line}; --card: {palette.background}; "
        f"--received: {palette.received}; --sent: {palette.sent}; {states}"
    )


_STYLE = """
:root { --page: #f2f5f8; LIGHT_COLOURS color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #0e141b; DARK_COLOURS } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
.nicegui-content { padding: 0; gap: 0; display: block; width: 100%; max-width: 110rem; margin: 0 auto; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 1rem; top: 1rem; z-index: 10; padding: .5rem 1rem; background: var(--card); color: var(--text); }
:focus-visible { outline: 3px solid var(--received); outline-offset: 2px; border-radius: 4px; }
.top { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; padding: 1rem 1.5rem .5rem; }
.top h1 { font-size: 1.35rem; line-height: 1.4; font-weight: 650; margin: 0; }
.top p, .note { color: var(--muted); margin: 0; }
.body { display: grid; gap: 1rem; padding: .5rem 1.5rem 2rem; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); }
.body > .wide { grid-column: 1 / -1; }
@media (max-width: 900px) { .body { grid-template-columns: minmax(0, 1fr); padding: .5rem .75rem; } }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.25rem; min-width: 0; }
.card h2 { font-size: 1.05rem; line-height: 1.4; font-weight: 650; margin: 0 0 .5rem; }
.card h3 { font-size: .95rem; font-weight: 650; margin: 1rem 0 .25rem; }
.stack { display: grid; gap: 1rem; align-content: start; min-width: 0; }
.tiles { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
         grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .75rem 1rem; }
.tile .value { display: block; font-size: 1.25rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.5;
         white-space: nowrap; }
.tile .label { color: var(--muted); font-size: .9rem; }
.bad .value { color: var(--state-7); }
.warned .value { color: var(--state-4); }
.alert { border-left: 5px solid var(--state-7); }
.empty { text-align: center; padding: 4rem 1.5rem; }
.empty p { max-width: 46rem; margin: .5rem auto; }
.legend, .plain { list-style: none; margin: .5rem 0 0; padding: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
.plain li { padding: .35rem 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.plain li:first-child { border-top: 0; }
.scrolls { max-height: 22rem; overflow: auto; }
.bars { list-style: none; margin: 0; padding: 0; }
.bars li { display: grid; grid-template-columns: 8.5rem 3.5rem 1fr; gap: .5rem; align-items: center; }
.bars .count { text-align: right; font-variant-numeric: tabular-nums; }
.bars .bar { height: .7rem; border-radius: 4px; background: var(--state-0); min-width: 1px; }
.bars .late { background: var(--state-4); }
.facts li { min-width: 0; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0 0 .75rem; padding: 0; list-style: none; }
.heading { display: flex; justify-content: space-between; align-items: center; gap: 1rem; flex-wrap: wrap; }
input.filter { font: inherit; padding: .35rem .75rem; border-radius: 8px; border: 1px solid var(--muted);
         width: 18rem; max-width: 100%; background: var(--page); color: var(--text); }
button.close { font: inherit; padding: .3rem .9rem; border-radius: 8px; border: 1px solid var(--muted); background: transparent;
         color: inherit; cursor: pointer; }
kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 .35em; font-size: .85em; }
.picture { height: min(62vh, 34rem); width: 100%; }
.throughput { height: 15rem; width: 100%; }
.ag-root-wrapper { --ag-background-color: var(--card); --ag-foreground-color: var(--text); --ag-border-color: var(--line);
         --ag-odd-row-background-color: var(--card);
         --ag-header-background-color: var(--page); --ag-header-text-color: var(--text); --ag-font-family: inherit;
         font-variant-numeric: tabular-nums; }
STATE_CLASSES
"""

_SCRIPT = """
window.wgpy = {
  scaled(value, base, units) {
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return (unit === 0 ? value.toFixed(0) : value.toFixed(1)) + " " + units[unit];
  },
  rate(value) { return value == null ? "" : wgpy.scaled(value * 8, 1000, ["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"]); },
  size(value) { return value == null ? "" : wgpy.scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"]); },
  age(value) {
    if (value == null) return "never";
    if (value < 120) return Math.round(value) + " s";
    if (value < 7200) return Math.round(value / 60) + " min";
    return value < 172800 ? Math.round(value / 3600) + " h" : Math.round(value / 86400) + " days";
  },
  known(value) { return value == null ? "not known" : value; },
};
document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    document.querySelector("input.filter")?.focus();
  } else if (event.key === "Escape") {
    document.querySelector("button.close")?.click();
  }
});
"""

WATCH_SCHEME = """
const scheme = matchMedia("(prefers-color-scheme: dark)");
emitEvent("scheme", scheme.matches);
scheme.addEventListener("change", event => emitEvent("scheme", event.matches));
"""


def head() -> str:
    """What stands in the page's head."""
    classes = "".join(f".state-{state.severity} {{ color: var(--state-{state.severity}); }}\n" for state in State)
    style = (
        _STYLE.replace("LIGHT_COLOURS", _colours(LIGHT)).replace("DARK_COLOURS", _colours(DARK)).replace("STATE_CLASSES", classes)
    )
    return f"<style>{style}</style><script>{_SCRIPT}</script>"
