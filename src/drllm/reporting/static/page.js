// Draws the figures that stand in the page as JSON, in the colours of the page's face, and again when that or the width changes.
// Legends are buttons below the figure, and titles and row labels are broken where they are wider than their place.
"use strict";
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const SMALL = 600; // a plot narrower than this is a phone's
const FONT = { family: "system-ui, sans-serif", size: 13 };
// As Plotly draws them, in a box of 12 by 12.
const SHAPES = {
  circle: "M6 2a4 4 0 1 0 .01 0z", square: "M2.5 2.5h7v7h-7z", diamond: "M6 .8l5.2 5.2-5.2 5.2-5.2-5.2z",
  "triangle-up": "M6 1.5l5 8.5h-10z", "triangle-down": "M6 10.5l-5-8.5h10z", cross: "M4.5 1h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
  x: "M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z", star: "M6 .3l1.7 3.7 4 .5-3 2.7.8 4-3.5-2-3.5 2 .8-4-3-2.7 4-.5z",
};
const DASHES = { dash: "5 3", dot: "1.5 2.5" };
const plots = new Map(); // data and layout of each place
const pen = document.createElement("canvas").getContext("2d");

function widthOf(text, size) {
  pen.font = `${size}px ${FONT.family}`;
  return pen.measureText(text).width;
}

// Text in lines of a width, broken at spaces and after - _ @, and anywhere in a word that is longer.
function wrapped(text, width, size) {
  const lines = [""];
  const add = (piece) => {
    const longer = lines[lines.length - 1] + piece;
    if (lines[lines.length - 1] === "" || widthOf(longer.trimEnd(), size) <= width) lines[lines.length - 1] = longer;
    else lines.push(piece);
  };
  for (const word of text.match(/[^\s_@-]*[\s_@-]*/g)) {
    if (widthOf(word.trimEnd(), size) <= width) add(word);
    else for (const letter of word) add(letter);
  }
  return lines.map((line) => line.trim());
}

function axisOf(axis, style, room) {
  const of = (name) => style.getPropertyValue(name).trim();
  const result = { gridcolor: of("--line"), linecolor: of("--line"), zerolinecolor: of("--line"), ...axis };
  const text = axis.title ? wrapped(axis.title.text, room, FONT.size).join("<br>") : "";
  return { ...result, title: { text, font: { size: FONT.size }, standoff: 8 } };
}

// The names of a heat map's rows take at most a part of the width, so that the blocks keep theirs.
function rowsOf(trace, axis, width) {
  const size = width < SMALL ? 11 : 12;
  const lines = trace.y.map((name) => wrapped(name, (width < SMALL ? 0.34 : 0.4) * width, size));
  const most = Math.max(...lines.map((found) => found.length));
  const texts = lines.map((found) => found.join("<br>"));
  // Plotly leaves the blocks 64 pixels at least, and takes them from the axis' title where there are no more.
  const height = 84 + Math.max(64, trace.y.length * Math.max(24, 1.3 * size * most + 6));
  return { height, axis: { ...axis, tickmode: "array", tickvals: trace.y, ticktext: texts, tickfont: { size } } };
}

// Names on the x axis stand upright under their place, in lines.
function namesOf(data, axis, width) {
  const names = [...new Set(data.flatMap((trace) => trace.x ?? []))];
  if (axis.type !== "category" && !names.some((name) => typeof name === "string")) return axis;
  const texts = names.map((name) => wrapped(String(name), (width - 90) / names.length - 6, 12).join("<br>"));
  return { ...axis, tickmode: "array", tickvals: names, ticktext: texts, tickangle: 0, tickfont: { size: 12 } };
}

function faced(place, data, layout) {
  const style = getComputedStyle(document.documentElement);
  const width = place.clientWidth;
  const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, showlegend: false };
  result.font = { ...FONT, color: style.getPropertyValue("--text").trim() };
  const heat = data.find((trace) => trace.type === "heatmap");
  if (heat) {
    const rows = rowsOf(heat, layout.yaxis, width);
    result.yaxis = rows.axis;
    result.height = rows.height;
  }
  result.xaxis = namesOf(data, layout.xaxis, width);
  place.style.height = result.height ? `${result.height}px` : "";
  const height = place.clientHeight;
  for (const name of ["xaxis", "yaxis", "yaxis2"]) {
    if (!layout[name]) continue;
    const [low, high] = layout[name].domain ?? [0, 1];
    const room = name === "xaxis" ? (heat ? 0.55 * width : width - 110) : (high - low) * (height - 90);
    result[name] = axisOf(result[name], style, room);
  }
  return result;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// What a trace looks like, small.
function sample(trace) {
  const colour = trace.marker?.color ?? trace.line?.color;
  const lines = trace.mode?.includes("lines");
  const box = drawn("svg", { width: lines ? 28 : 12, height: 12, "aria-hidden": "true" });
  if (lines) box.append(drawn("path", { d: "M0 6h28", stroke: trace.line.color, "stroke-width": 2, "stroke-dasharray": DASHES[trace.line.dash] ?? "" }));
  const shape = drawn("path", { d: SHAPES[trace.marker?.symbol] ?? SHAPES.square, fill: colour ?? trace.line?.color });
  if (lines) shape.setAttribute("transform", "translate(8 0)");
  if (!lines || trace.mode.includes("markers")) box.append(shape);
  if (trace.marker?.pattern) box.append(drawn("path", { d: "M2 10l8-8", stroke: "#fff", "stroke-width": 1.5 }));
  return box;
}

// The scale of a heat map, from skipped to repeated.
function scaleOf(trace) {
  const scale = document.createElement("li");
  const bar = document.createElement("span");
  bar.className = "scale";
  bar.style.background = `linear-gradient(to right, ${trace.colorscale.map(([place, colour]) => `${colour} ${100 * place}%`).join(", ")})`;
  scale.append("mean passes: 0", bar, "2 (1 in the middle)");
  return scale;
}

function legendOf(place) {
  const { data } = plots.get(place);
  const list = document.createElement("ul");
  list.className = "legend";
  const nameOf = (trace) => trace.legendgroup ?? trace.name;
  const names = new Set(data.map(nameOf).filter(Boolean));
  for (const name of names.size > 1 ? names : []) {
    const traces = data.filter((trace) => nameOf(trace) === name);
    const button = document.createElement("button");
    button.type = "button";
    button.append(sample(traces[0]), name);
    button.setAttribute("aria-pressed", traces[0].visible !== "legendonly");
    button.addEventListener("click", () => {
      const show = traces[0].visible === "legendonly";
      for (const trace of traces) trace.visible = show ? true : "legendonly";
      button.setAttribute("aria-pressed", show);
      draw(place);
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
  list.append(...data.filter((trace) => trace.type === "heatmap").map(scaleOf));
  if (list.childElementCount) place.after(list);
}

// The squares of a map: each has its share of a cell, which is as wide as the plot lets it be; a phone's map is no higher than wide.
function sized(data, layout, width) {
  for (const trace of data.filter((found) => found.meta?.sides)) {
    layout.height = Math.min(600, Math.max(320, width));
    const cell = Math.min(width - 150, layout.height - 90) / trace.meta.cells;
    trace.marker.size = trace.meta.sides.map((side) => Math.max(2, side * cell - 1));
  }
}

function draw(place) {
  const { data, layout } = plots.get(place);
  sized(data, layout, place.clientWidth);
  Plotly.react(place, data, faced(place, data, layout), { responsive: true, displayModeBar: false });
}

function drawAll() {
  for (const place of plots.keys()) draw(place);
}

for (const place of document.querySelectorAll(".plot")) {
  plots.set(place, JSON.parse(document.getElementById(place.dataset.plot).textContent));
  draw(place);
  legendOf(place);
}
dark.addEventListener("change", drawAll);
window.addEventListener("beforeprint", drawAll);
let lastWidth = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== lastWidth) requestAnimationFrame(drawAll);
  lastWidth = window.innerWidth;
});
