// Asks /api/v1/status and /api/v1/alerts every two seconds. Names come from devices: they are only ever textContent.
"use strict";

const place = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
let before = null;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function time(micros) {
  const date = new Date(micros / 1000);
  return Number.isNaN(date.getTime()) ? String(micros) : date.toISOString().slice(0, 19).replace("T", " ");
}

function showReady(kind, text) {
  place("ready").className = kind;
  place("ready").textContent = text;
}

function showStatus(status) {
  showReady(status.ready ? "good" : "unknown", status.ready ? "ready" : "not ready");
  place("problems").replaceChildren(...status.problems.map((problem) =>
    element("li", `${problem.reason}${problem.about ? ` (${problem.about})` : ""}: ${problem.problem}`)));
  place("problems").hidden = status.problems.length === 0;
  const process = status.processes > 1 ? `${status.processes} processes run, this is ${status.process}; ` : "";
  const workers = status.workers === 1 ? "1 worker" : `${status.workers} workers`;
  place("about").textContent =
    `${status.version}, ${process}${workers}, up ${span(Math.max(0, Date.now() - status.started_ms) / 1000)}`;

  const now = performance.now();
  const passed = before && status.started_ms === before.started ? (now - before.at) / 1000 : 0;
  const rate = passed > 0 ? count.format((status.records - before.records) / passed) : "…";
  before = { at: now, records: status.records, started: status.started_ms };
  const dead = Object.values(status.dead_letters).reduce((sum, letters) => sum + letters, 0);
  const mean = status.epoch_duration_seconds_mean;
  const figures = [
    ["records/s", rate],
    ["records", count.format(status.records)],
    ["accepted", count.format(status.readings.accepted ?? 0)],
    ["duplicates", count.format(status.readings.duplicate ?? 0)],
    ["late", count.format(status.readings.late ?? 0)],
    ["dead letters", count.format(dead), dead > 0 ? "warning" : ""],
    ["lag, records", count.format(status.lag_records)],
    ["epoch, mean", mean === null ? "…" : span(mean)],
  ];
  if (status.imbalance > 0) figures.push(["unaccounted", count.format(status.imbalance), "bad"]);
  for (const [sink, up] of Object.entries(status.sinks_up)) {
    if (!up) figures.push([`sink ${sink}`, "down", "bad"]);
  }
  place("figures").replaceChildren(...figures.map(([name, value, kind]) => {
    const figure = document.createElement("div");
    figure.append(element("dt", name), element("dd", value, kind));
    return figure;
  }));
}

function showAlerts({ total, alerts }) {
  place("total").textContent = total > alerts.length ? `${total}, the newest ${alerts.length}` : String(total);
  place("alerts").hidden = total === 0;
  place("empty").hidden = total > 0;
  place("empty").textContent = "no alert fires";
  place("alerts").tBodies[0].replaceChildren(...alerts.map((alert) => {
    const row = document.createElement("tr");
    const severity = ["warning", "critical"].includes(alert.severity) ? alert.severity : "";
    const id = element("td", alert.alert.slice(0, 6), "id");
    id.title = alert.alert;
    const sensor = element("td", alert.sensor);
    sensor.title = alert.sensor;
    row.append(
      element("td", alert.severity, severity), element("td", alert.rule), sensor, element("td", alert.site ?? ""),
      element("td", alert.metric), element("td", alert.value === null ? "" : short.format(alert.value), "number"),
      element("td", time(alert.since)), id);
    return row;
  }));
}

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(5000) });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function refresh() {
  try {
    showStatus(await ask("/api/v1/status"));
  } catch {
    showReady("bad", "no answer");
    before = null;
  }
  try {
    showAlerts(await ask("/api/v1/alerts?limit=200"));
  } catch (error) {
    place("alerts").hidden = true;
    place("empty").hidden = false;
    place("empty").textContent = error.message;
    place("total").textContent = "";
  }
  setTimeout(refresh, 2000);
}

refresh();
