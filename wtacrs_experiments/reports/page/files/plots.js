"use strict";
// Draws what wtacrs_experiments/reports/page/plots.py and curves.py give, in the colours of the page.

const content = JSON.parse(document.getElementById("content").textContent);
const NARROW = 760; // pixels: plots stand one below the other
const TITLES = { memory: "peak memory, MiB", speed: "samples/s" };
const PLANES = [
  ["memory", "score"],
  ["speed", "score"],
  ["memory", "speed"],
];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
// Where the budget stands beside a marker, by method.
const BESIDE = ["top center", "bottom center", "middle right"];
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };

// Plotly reads some tags in the texts of a plot; a record's names are none.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Black is the colour of text, which the dark scheme turns round.
function inked(given) {
  return given === "#000000" ? colour("text") : given;
}

function axis(title, more) {
  const lines = { gridcolor: colour("line"), linecolor: colour("quiet"), zeroline: false };
  return { title: { text: plain(title), standoff: 8 }, automargin: true, ...lines, ...more };
}

function layout(height, more) {
  return {
    height,
    margin: { l: 8, r: 12, t: 16, b: 8 },
    paper_bgcolor: colour("ground"),
    plot_bgcolor: colour("ground"),
    font: { family: "system-ui, sans-serif", size: 13, color: colour("text") },
    hoverlabel: {
      align: "left",
      bgcolor: colour("raised"),
      bordercolor: colour("quiet"),
      font: { size: 12, color: colour("text") },
    },
    hovermode: "closest",
    dragmode: false,
    ...more,
  };
}

// The traces of one plane: for each method its settings and its runs, then the front.
function planeTraces(group, at) {
  const [across, up] = PLANES[at];
  const axes = at ? { xaxis: `x${at + 1}`, yaxis: `y${at + 1}` } : {};
  const traces = group.series.flatMap((one, place) => {
    const usual = ["linear", "plain"].includes(one.memory);
    const shared = {
      ...axes,
      name: plain(usual ? one.estimator : `${one.estimator}, ${one.memory}`),
      legendgroup: String(place),
      hoverinfo: "text",
      type: "scatter",
    };
    const points = (rows) => ({
      x: rows.map((row) => row[across]),
      y: rows.map((row) => row[up]),
      hovertext: rows.map((row) => row.told.map(plain).join("<br>")),
    });
    const marker = { symbol: one.symbol, color: inked(one.color) };
    const edge = one.symbol.includes("open") ? inked(one.color) : colour("text");
    return [
      {
        ...shared,
        ...points(one.runs),
        mode: "markers",
        showlegend: false,
        opacity: 0.55,
        marker: { ...marker, size: 6 },
      },
      {
        ...shared,
        ...points(one.points),
        mode: "markers+text",
        showlegend: at === 0,
        text: one.points.map((point) => point.label),
        textposition: BESIDE[place % BESIDE.length],
        textfont: { size: 11 },
        marker: {
          ...marker,
          size: 13,
          line: { width: one.symbol.includes("open") ? 2.5 : 1, color: edge },
        },
      },
    ];
  });
  const front = group.fronts[at];
  const line = { color: colour("quiet"), dash: "dot", width: 1.5 };
  const joined = { x: front.map((point) => point[0]), y: front.map((point) => point[1]) };
  const named = { name: "unbeaten in both", legendgroup: "front", showlegend: at === 0 };
  return [
    { ...axes, ...joined, ...named, mode: "lines", line, hoverinfo: "skip", type: "scatter" },
    ...traces,
  ];
}

function drawCosts() {
  const target = document.getElementById("costs-plot");
  const group = content.groups[document.getElementById("group").value];
  const narrow = target.clientWidth < NARROW;
  const titles = { ...TITLES, score: group.less ? `${group.score} (less is better)` : group.score };
  const axes = {};
  PLANES.forEach(([across, up], at) => {
    const end = at ? String(at + 1) : "";
    const third = [
      [0, 0.27],
      [0.365, 0.635],
      [0.73, 1],
    ][at];
    const stacked = [
      [0.74, 1],
      [0.37, 0.63],
      [0, 0.26],
    ][at];
    axes[`xaxis${end}`] = axis(titles[across], {
      domain: narrow ? [0, 1] : third,
      anchor: `y${end}`,
      nticks: 6,
    });
    axes[`yaxis${end}`] = axis(titles[up], {
      domain: narrow ? stacked : [0, 1],
      anchor: `x${end}`,
    });
  });
  const rows = group.series.length + 1;
  const legend = {
    orientation: "h",
    x: 0,
    xanchor: "left",
    yanchor: "top",
    y: narrow ? -0.08 : -0.2,
  };
  const height = narrow ? 1000 + 12 * rows : 460;
  const traces = PLANES.flatMap((_, at) => planeTraces(group, at));
  Plotly.react(target, traces, layout(height, { ...axes, legend }), CONFIG);
}

function drawLosses() {
  const target = document.getElementById("losses-plot");
  if (!target) return;
  const chosen = [...document.querySelectorAll("#choices input:checked")].map(
    (box) => content.curves[box.value],
  );
  const traces = chosen.flatMap((curve, at) => {
    const line = { color: inked(curve.color), dash: DASHES[at % DASHES.length], width: 2 };
    const named = {
      name: plain(curve.label),
      legendgroup: curve.name,
      hoverinfo: "text",
      type: "scatter",
    };
    const points = (pairs, what) => ({
      x: pairs.map((pair) => pair[0]),
      y: pairs.map((pair) => pair[1]),
      hovertext: pairs.map(
        (pair) => `${plain(curve.name)}<br>step ${pair[0]}, ${what} ${pair[1].toPrecision(4)}`,
      ),
    });
    const edge = { width: 1, color: curve.symbol.includes("open") ? line.color : colour("text") };
    const marker = { symbol: curve.symbol, color: line.color, size: 9, line: edge };
    const mode = curve.training.length ? "markers" : "lines+markers"; // one line a run
    return [
      { ...named, x: [null], y: [null], mode: "lines+markers", line, marker }, // for the legend
      { ...named, ...points(curve.training, "training"), mode: "lines", line, showlegend: false },
      {
        ...named,
        ...points(curve.evaluation, "validation"),
        mode,
        line,
        marker,
        showlegend: false,
      },
    ];
  });
  const narrow = target.clientWidth < NARROW;
  const legend = { orientation: "h", x: 0, y: -0.2, yanchor: "top" };
  const height = 400 + (narrow ? 22 : 12) * chosen.length;
  const axes = { xaxis: axis("step"), yaxis: axis("loss") };
  Plotly.react(target, traces, layout(height, { ...axes, legend, showlegend: true }), CONFIG);
}

function drawAll() {
  drawCosts();
  drawLosses();
}

document.getElementById("group").addEventListener("change", drawCosts);
document.getElementById("choices")?.addEventListener("change", drawLosses);
document.getElementById("none")?.addEventListener("click", () => {
  document.querySelectorAll("#choices input").forEach((box) => {
    box.checked = false;
  });
  drawLosses();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
matchMedia(`(min-width: ${NARROW}px)`).addEventListener("change", drawAll);
drawAll();
