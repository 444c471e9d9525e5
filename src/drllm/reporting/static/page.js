// Draws the figures that stand in the page as JSON, in the colours of the page's face, and again when that changes.
"use strict";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function faced(layout) {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: of("--line"), linecolor: of("--line"), zerolinecolor: of("--line") };
  const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true };
  result.font = { family: "system-ui, sans-serif", size: 13, color: of("--text") };
  for (const name of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) {
    if (layout[name]) result[name] = { ...axis, ...layout[name] };
  }
  return result;
}

function drawAll() {
  for (const place of document.querySelectorAll(".plot")) {
    const { data, layout } = JSON.parse(document.getElementById(place.dataset.plot).textContent);
    if (layout.height) place.style.minHeight = `${layout.height}px`;
    Plotly.react(place, data, faced(layout), { responsive: true, displayModeBar: false });
  }
}

drawAll();
dark.addEventListener("change", drawAll);
window.addEventListener("beforeprint", drawAll);
