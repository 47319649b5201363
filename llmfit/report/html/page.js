"use strict";
// Draws the plots in the page's colours, and makes tables sortable by their heads.

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const still = window.matchMedia("(prefers-reduced-motion: reduce)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw() {
  const line = colour("--line");
  for (const [id, chart] of Object.entries(charts)) {
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const layout = {
      margin: { l: 60, r: 16, t: 16, b: 48 },
      paper_bgcolor: colour("--page"),
      plot_bgcolor: colour("--page"),
      font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
      hoverlabel: { namelength: -1 },
      transition: { duration: still.matches ? 0 : 200 },
      ...chart.layout,
      xaxis: { ...axis, ...(chart.layout.xaxis || {}) },
      yaxis: { ...axis, ...(chart.layout.yaxis || {}) },
    };
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    Plotly.react(id, chart.data, layout, options);
  }
}

function keyOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.key !== undefined) {
    return Number(cell.dataset.key);
  }
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") {
    return a - b;
  }
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(table, column, head) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
  // What is not known stays last, whichever way.
  rows.sort(([a], [b]) => {
    if (a === null || b === null) {
      return (a === null) - (b === null);
    }
    return falling ? compare(b, a) : compare(a, b);
  });
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
  }
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column, head));
    head.append(button);
  });
}

draw();
dark.addEventListener("change", draw);
