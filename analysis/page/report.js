"use strict";

const report = JSON.parse(document.getElementById("report-data").textContent);
const words = new Intl.Collator("en", { numeric: true });
const tables = [...document.querySelectorAll("#tables table")];

// Tables: sort by a column, missing numbers last; show the rows that hold all words of the filter.

function compareCells(one, other) {
  const [a, b] = [one.dataset.v, other.dataset.v];
  return a && b ? a - b : words.compare(one.textContent, other.textContent);
}

function isMissing(cell) {
  return cell.dataset.v === "" || cell.textContent === "-";
}

function sortTable(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const up = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const missing = isMissing(a) - isMissing(b);
    return missing || (up ? compareCells(a, b) : compareCells(b, a));
  });
  table.tBodies[0].append(...rows);
}

function filterRows(text) {
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  let [shown, all] = [0, 0];
  for (const row of tables.flatMap((table) => [...table.tBodies[0].rows])) {
    row.words ??= [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !wanted.every((word) => row.words.includes(word));
    shown += !row.hidden;
    all += 1;
  }
  document.getElementById("shown").textContent = wanted.length ? `${shown} of ${all} rows` : "";
}

// Called by a click on a mark in a plot, and by links to #run-<place>.
function openRun(place) {
  const filter = document.getElementById("filter");
  const rows = [...document.querySelectorAll(`tr[data-run="${place}"]`)];
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  rows.forEach((row) => row.classList.add("chosen"));
  if (!rows.length) return;
  if (rows[0].hidden) {
    filter.value = "";
    filterRows("");
  }
  rows.forEach((row) => {
    const box = row.closest(".scroll");
    box.scrollTop = row.offsetTop - box.clientHeight / 2;
  });
  rows[0].closest(".scroll").scrollIntoView({ block: "center" });
}

function openLinked() {
  const found = /^#run-(\d+)$/.exec(location.hash);
  if (found) openRun(Number(found[1]));
}

async function copyCommand(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "selected";
  }
}

// Plots: the figures are drawn once; choosing a group of runs fills their sources.

function model(name) {
  for (const one of Bokeh.documents) {
    const found = one.get_model_by_name(name);
    if (found) return found;
  }
  throw new Error(`no figure holds ${name}`);
}

// A point names its run by its place; hovering and the point's look need the run's facts.
function withFacts(columns) {
  const runs = (columns.run ?? []).map((place) => report.runs[place]);
  const facts = Object.keys(report.runs[0]).map((name) => [name, runs.map((run) => run[name])]);
  return columns.run ? { ...Object.fromEntries(facts), ...columns } : columns;
}

function fill(plot, sources) {
  let points = 0;
  for (const [name, columns] of Object.entries(sources)) {
    const source = model(name);
    source.selected.indices = [];
    const none = Object.fromEntries(Object.keys(source.data).map((column) => [column, []]));
    source.data = { ...none, ...withFacts(columns) };
    points += Object.values(columns)[0]?.length ?? 0;
  }
  const figure = document.querySelector(`[data-plot="${plot}"]`);
  figure.querySelector(".plot").hidden = points === 0;
  figure.querySelector(".empty").hidden = points > 0;
}

function options(select, names) {
  select.replaceChildren(...names.map((name, place) => new Option(name, place)));
}

function showSweep(setting, place) {
  const sources = Object.values(setting.sweeps)[place] ?? { sweep_cells: {} };
  const factors = (values) => [...new Set(values ?? [])].sort((a, b) => a - b);
  model("sweep_x").factors = factors(sources.sweep_cells.x);
  model("sweep_y").factors = factors(sources.sweep_cells.y);
  fill("sweep", sources);
}

function showSetting(place) {
  const setting = report.settings[place];
  for (const [plot, sources] of Object.entries(setting.plots)) fill(plot, sources);
  const plans = Object.keys(setting.sweeps);
  const select = document.getElementById("sweep-plan");
  options(select, plans);
  select.closest("label").hidden = plans.length < 2;
  showSweep(setting, 0);
}

async function drawPlots() {
  if (!report.settings.length) return;
  for (const item of Object.values(report.figures)) await Bokeh.embed.embed_item(item);
  const select = document.getElementById("setting");
  const titles = report.settings.map(({ title, runs }) => `${title.replaceAll("\n", ", ")} (${runs})`);
  options(select, titles);
  select.addEventListener("change", () => showSetting(Number(select.value)));
  document.getElementById("sweep-plan").addEventListener("change", (event) => {
    showSweep(report.settings[Number(select.value)], Number(event.target.value));
  });
  showSetting(0);
}

for (const table of tables) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.addEventListener("click", () => sortTable(table, column));
  });
}
document.getElementById("filter").addEventListener("input", (event) => filterRows(event.target.value));
document.querySelectorAll(".copy").forEach((button) => {
  button.addEventListener("click", () => copyCommand(button));
});
addEventListener("hashchange", openLinked);
drawPlots().then(() => {
  document.documentElement.dataset.ready = "true";
  openLinked();
});
