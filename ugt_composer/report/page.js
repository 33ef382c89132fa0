"use strict";
// Draws the figures, and redraws them when theme, choices or shown runs change.
const report = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const touch = matchMedia("(pointer: coarse)");
const hidden = new Set();  // names of runs

function coloured(value) {
  if (root.dataset.theme !== "dark") return structuredClone(value);
  if (typeof value === "string") return report.dark[value] ?? value;
  if (Array.isArray(value)) return value.map(coloured);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
}

function draw(id) {
  const place = document.getElementById(id), figure = report.plots[id];
  place.classList.toggle("none", figure === null);
  if (figure === null) {
    Plotly.purge(place);
    place.textContent = "not logged by these runs";
    return;
  }
  if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
  const data = coloured(figure.data), layout = coloured(figure.layout);
  for (const trace of data) if (trace.legendgroup && hidden.has(trace.legendgroup)) trace.visible = false;
  if (touch.matches) layout.dragmode = false;  // so that a finger scrolls the page
  place.style.height = layout.height + "px";
  Plotly.react(place, data, layout, {responsive: true, displayModeBar: false});
}

function drawAll() { Object.keys(report.plots).forEach(draw); }

function setTheme(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "☀ Light" : "☾ Dark";
}

const system = matchMedia("(prefers-color-scheme: dark)");
setTheme(system.matches ? "dark" : "light");
system.addEventListener("change", () => { setTheme(system.matches ? "dark" : "light"); drawAll(); });
document.getElementById("theme").addEventListener("click", () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  drawAll();
});

for (const select of document.querySelectorAll("select[data-choice]")) {
  const choice = report.choices[select.dataset.choice];
  const show = () => choice.plots.forEach((id, at) => { report.plots[id] = choice.options[select.value][at]; });
  show();  // a reloaded page keeps what was chosen
  select.addEventListener("change", () => { show(); choice.plots.forEach(draw); });
}

for (const button of document.querySelectorAll("button.run")) {
  button.addEventListener("click", () => {
    const name = button.dataset.run, isHidden = !hidden.has(name);
    isHidden ? hidden.add(name) : hidden.delete(name);
    button.setAttribute("aria-pressed", String(!isHidden));
    drawAll();
  });
}

drawAll();
root.dataset.drawn = "true";
