// Asks the daemon that this page comes from, once a second while somebody looks, and shows what it says.
// Whatever is shown is set as text: names of programs are anybody's to choose.
"use strict";

const PERIOD = 1000;
const KEPT = 120;
const MOST = 200;

const by = (id) => document.getElementById(id);
const history = { open: [], made: [], up: [], down: [] };
let before = null;
let paused = false;
let number = 0;

const scaled = (value, units, base) => {
  let unit = 0;
  while (value >= base && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  const digits = unit > 0 && value < 10 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[unit]}`;
};
const size = (bytes) => scaled(bytes, ["B", "KiB", "MiB", "GiB", "TiB"], 1024);
const speed = (bytes) => `${size(bytes)}/s`;
const count = (value) => value.toLocaleString("en");
const delay = (micros) => (micros == null ? "" : scaled(micros, ["µs", "ms", "s"], 1000));
const span = (seconds) => {
  const parts = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const first = parts.findIndex(([, long]) => seconds >= long);
  if (first < 0) return "0 s";
  let rest = seconds;
  return parts.slice(first, first + 2).map(([name, long]) => {
    const many = Math.floor(rest / long);
    rest -= many * long;
    return `${many} ${name}`;
  }).join(" ");
};

const element = (name, text, kind) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

// A long address is broken between its parts, if at all.
const parts = (text) => text.startsWith("[") ? text.split(/(?<=:)/).flatMap((part) => [part, element("wbr")]) : [text];

// Columns are [heading, cell], where a cell is text, or { text, small, kind, share }.
const table = (id, columns, rows, none) => {
  const whole = by(id);
  if (rows.length === 0 && none === undefined) {
    whole.replaceChildren();
    return;
  }
  const head = element("tr");
  for (const [heading, , kind] of columns) head.append(element("th", heading, kind));
  const body = element("tbody");
  body.append(head);
  for (const row of rows) {
    const line = element("tr");
    for (const [heading, cell, kind] of columns) {
      const value = cell(row);
      const plain = typeof value === "string" ? { text: value } : value;
      const shown = element("td", undefined, [kind, plain.kind, plain.text ? "" : "empty"].filter(Boolean).join(" "));
      shown.dataset.label = heading;
      shown.append(...parts(plain.text));
      if (plain.small) shown.append(" ", element("small", plain.small));
      if (plain.share !== undefined) {
        const bar = element("meter");
        bar.value = plain.share;
        shown.append(bar);
      }
      line.append(shown);
    }
    body.append(line);
  }
  if (rows.length === 0) {
    const cell = element("td", none, "none");
    cell.colSpan = columns.length;
    const line = element("tr");
    line.append(cell);
    body.append(line);
  }
  whole.replaceChildren(body);
};

const chart = (id, values) => {
  const canvas = by(`${id}-chart`);
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth * ratio;
  const height = canvas.clientHeight * ratio;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const colours = getComputedStyle(document.documentElement);
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  const top = Math.max(1, ...values);
  const step = width / (KEPT - 1);
  const left = width - step * (values.length - 1);
  const at = (value) => height - 2 * ratio - (value / top) * (height - 5 * ratio);
  pen.beginPath();
  values.forEach((value, place) => pen.lineTo(left + place * step, at(value)));
  pen.lineWidth = 1.5 * ratio;
  pen.lineJoin = "round";
  pen.strokeStyle = colours.getPropertyValue("--accent");
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(left, height);
  pen.closePath();
  pen.fillStyle = colours.getPropertyValue("--fill");
  pen.fill();
};

const keep = (id, value, text) => {
  const values = history[id];
  values.push(value);
  if (values.length > KEPT) values.shift();
  by(id).textContent = text;
  chart(id, values);
};

const showStatus = (status) => {
  by("daemon").textContent =
    `${status.version}, process ${status.pid}, for ${span(status.uptime_seconds)}, below ${status.cgroup}`;
  const { live, accepted, up, down } = status.connections;
  const now = { pid: status.pid, time: performance.now(), accepted, up, down };
  keep("open", live, count(live));
  // Another daemon counts from the beginning.
  if (before && before.pid === now.pid) {
    const seconds = (now.time - before.time) / 1000;
    const rate = (key) => Math.max(0, (now[key] - before[key]) / seconds);
    keep("made", rate("accepted"), `${rate("accepted").toFixed(rate("accepted") < 10 ? 1 : 0)}/s`);
    keep("up", rate("up"), speed(rate("up")));
    keep("down", rate("down"), speed(rate("down")));
  }
  before = now;
  table("paths", [
    ["Path", (path) => path.path],
    ["State", (path) => path.usable == null
      ? { text: "untested", small: "no rule has asked" }
      : path.usable ? { text: "on", kind: "good" } : { text: "off", small: path.failed, kind: "doubt" }],
    ["Moved", (path) => size(path.moved), "number"],
  ], status.paths);
  const numbers = (counts) => Object.entries(counts).filter(([, many]) => many > 0).sort((one, other) => other[1] - one[1]);
  const columns = (what) => [[what, ([name]) => name], ["Times", ([, many]) => count(many), "number"]];
  table("closed", columns("Reason"), numbers(status.connections.closed), "none yet");
  table("hooks", columns("Event"), numbers(status.hooks), "none yet");
};

const opener = (one) => one.comm ? { text: one.comm, small: `${one.pid}, uid ${one.uid}` } : { text: one.client };

const showConnections = (list) => {
  const shown = list.connections.length;
  by("shown").textContent = shown < list.matching ? `${count(shown)} of ${count(list.matching)}` : count(shown);
  table("connections", [
    ["From", opener],
    ["To", (one) => ({ text: one.to, small: one.name })],
    ["Rule", (one) => one.rule],
    ["Via", (one) => ({ text: one.endpoint || one.upstream || "", small: one.endpoint ? one.upstream : "" })],
    ["Path", (one) => ({ text: one.path || "", small: one.path_reason })],
    ["Up", (one) => ({ text: size(one.up), small: speed(one.up_rate) }), "number"],
    ["Down", (one) => ({ text: size(one.down), small: speed(one.down_rate) }), "number"],
    ["Round trip", (one) => [one.downstream_rtt_us, one.upstream_rtt_us].filter((it) => it != null).map(delay).join(" + "), "number"],
    ["Waits", (one) => {
      const waits = (one.up_backlog || 0) + (one.down_backlog || 0);
      return waits > 0 ? size(waits) : "";
    }, "number"],
    ["Age", (one) => span(Math.floor(one.age_ms / 1000)), "number"],
  ], list.connections, "no connection is open, or none that is looked for");
};

const showRules = ({ rules }) => {
  const most = Math.max(1, ...rules.map((rule) => rule.hits));
  table("rules", [
    ["Rule", (rule) => ({ text: rule.name, small: rule.role })],
    ["Selects", (rule) => rule.selects || "everything"],
    ["Action", (rule) => ({ text: rule.action, small: rule.action === rule.via ? "" : rule.via })],
    ["Hits", (rule) => ({ text: count(rule.hits), share: rule.hits / most }), "number"],
    ["Failed", (rule) => rule.failed > 0 ? { text: count(rule.failed), kind: "doubt" } : "0", "number"],
    ["Open", (rule) => count(rule.live), "number"],
  ], rules, "no rules: everything is direct");
};

const health = (one) => {
  const kind = one.drained ? "doubt" : { up: "good", down: "bad", ejected: "doubt" }[one.state];
  const error = one.state === "up" ? "" : one.last_error;
  return { text: one.drained ? `${one.state}, drained` : one.state, small: error, kind };
};

const showUpstreams = ({ upstreams }) => {
  table("upstreams", [
    ["Upstream", (one) => one.name],
    ["Way", (one) => one.way],
    ["Open", (one) => count(one.live), "number"],
  ], upstreams, "no upstreams");
  const endpoints = upstreams.flatMap(({ group }) => group ? group.endpoints.map((one) => ({ ...one, group: group.name })) : []);
  table("endpoints", [
    ["Endpoint", (one) => ({ text: one.address, small: one.group })],
    ["Health", health],
    ["Weight", (one) => count(one.weight), "number"],
    ["Latency", (one) => one.latency_us > 0 ? delay(one.latency_us) : "", "number"],
    ["Open", (one) => count(one.live), "number"],
    ["Made", (one) => count(one.connections + one.rewritten), "number"],
    ["Failed", (one) => one.failures > 0 ? { text: count(one.failures), kind: "doubt" } : "0", "number"],
    ["Failed checks", (one) => count(one.failed_checks), "number"],
  ], endpoints);
};

// What is written in the field, as a query: words with a key as they are, others as a part of anything.
const query = () => {
  const wanted = new URLSearchParams({ sort: by("sort").value, limit: MOST });
  for (const word of by("filter").value.split(" ").filter(Boolean)) {
    const at = word.indexOf("=");
    wanted.append(at > 0 ? word.slice(0, at) : "any", word.slice(at + 1));
  }
  return wanted;
};

const ask = async (what) => {
  let response, answer;
  try {
    response = await fetch(`v1/${what}`, { signal: AbortSignal.timeout(5000) });
    answer = await response.json();
  } catch (error) {
    throw Object.assign(error, { unanswered: true });
  }
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
};

const say = (text, kind) => {
  by("state").textContent = text;
  by("state").className = kind;
};

// What fails here is not the daemon's failure.
const sayFailure = (error) => {
  if (!error.unanswered) console.error(error);
  say(error.unanswered ? "the daemon does not answer" : `this page fails: ${error.message}`, "bad");
};

const askForConnections = async () => {
  const asked = ++number;
  try {
    const list = await ask(`connections?${query()}`);
    // Answers to what was asked before something else was typed come too late.
    if (asked === number) showConnections(list);
    by("filter").className = "";
    by("filter").title = "";
  } catch (error) {
    if (error.status !== 400) throw error;
    by("filter").className = "bad";
    by("filter").title = error.message;
    by("shown").textContent = error.message;
  }
};

const look = async () => {
  const [status, rules, upstreams] = await Promise.all([ask("status"), ask("rules"), ask("upstreams"), askForConnections()]);
  showStatus(status);
  showRules(rules);
  showUpstreams(upstreams);
};

const go = async () => {
  if (!paused && !document.hidden) {
    try {
      await look();
      say("live", "good");
    } catch (error) {
      sayFailure(error);
    }
  }
  setTimeout(go, PERIOD);
};

by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").textContent = paused ? "Go on" : "Pause";
  by("pause").setAttribute("aria-pressed", String(paused));
  say(paused ? "paused" : "live", paused ? "" : "good");
});
for (const [id, event] of [["filter", "input"], ["sort", "change"]]) {
  by(id).addEventListener(event, () => askForConnections().catch(sayFailure));
}
window.addEventListener("resize", () => Object.entries(history).forEach(([id, values]) => chart(id, values)));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  Object.entries(history).forEach(([id, values]) => chart(id, values)));
go();
