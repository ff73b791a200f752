// The tree of processes, and what happened to them: deaths and recoveries as the page sees them, and the warnings of
// the server. Takes answers of /status; knows no requests.

import { element, write } from "./dom.js";
import { age, bytes, clock, duration, meaning } from "./words.js";

const EVENTS_MAX = 100;
const NEWS_SECONDS = 8;
const STATES = { gone: "gone", starting: "starts", silent: "does not answer", ready: "serves" };
const OTHERS = 3; // supervisor, logd, gunicorn
const DUTIES = {
  supervisor: "starts, watches and restarts the others",
  logd: "owns the data: log, syncs, state",
  gunicorn: "parent of the workers",
  worker: "answers HTTP; holds no data",
};

/** Whether everybody who should be there does its work. */
export function isWhole(status, workers) {
  const serving = status.processes.filter((each) => each.pid && each.ready_at);
  return serving.length >= OTHERS + workers;
}

export class Processes {
  #rows = element("tbody");

  constructor() {
    const head = ["process", "pid", "state", "age", "restarts", "memory"];
    const cells = head.map((name) => element("th", { scope: "col" }, name));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...cells)), this.#rows);
    const heading = element("h2", {}, "Processes ", element("small", {}, "kill -9 any of them, and look"));
    this.element = element(
      "section",
      { class: "card processes" },
      heading,
      element("div", { class: "scroll" }, table),
    );
  }

  /** `workers` is how many there should be; `isLogdUp` whether logd has answered of late. */
  show(status, workers, isLogdUp) {
    const missing = workers - status.processes.filter((each) => each.role === "worker").length;
    const absent = { role: "worker", pid: null, restarts: null, started_at: null, ready_at: null, ended_at: null };
    const processes = [...status.processes, ...Array(Math.max(0, missing)).fill(absent)];
    while (this.#rows.rows.length > processes.length) this.#rows.lastChild.remove();
    while (this.#rows.rows.length < processes.length) this.#rows.append(row());
    processes.forEach((each, index) => {
      const isSilent = each.role === "logd" && !isLogdUp;
      fill(this.#rows.rows[index], each, status.time, isSilent);
    });
  }
}

function row() {
  const name = element("th", { scope: "row" }, element("span", { class: "name" }), element("small"));
  const cells = Array.from({ length: 5 }, () => element("td"));
  cells[1].append(element("span", { class: "state" }), element("small"));
  return element("tr", {}, name, ...cells);
}

function fill(line, process, now, isSilent) {
  const { role, pid } = process;
  const [name, pidCell, state, ageCell, restarts, memory] = line.cells;
  line.dataset.role = role;
  line.dataset.state = pid === null ? "gone" : !process.ready_at ? "starting" : isSilent ? "silent" : "ready";
  line.classList.toggle("news", process.restarts > 0 && now - process.started_at < NEWS_SECONDS);
  write(name.firstChild, role);
  write(name.lastChild, DUTIES[role]);
  write(pidCell, pid === null ? "–" : String(pid));
  write(state.firstChild, STATES[line.dataset.state]);
  write(state.lastChild, outage(process, now));
  write(ageCell, pid === null ? "–" : age(now - process.started_at));
  write(restarts, process.restarts === null ? "–" : String(process.restarts));
  write(memory, process.resident_bytes ? bytes(process.resident_bytes) : "–");
}

/** How long nobody did the work, when that is known. */
function outage({ pid, ended_at, ready_at }, now) {
  if (ended_at === null) return "";
  if (pid === null || ready_at === null) return `for ${duration(now - ended_at)}`;
  return `again after ${duration(ready_at - ended_at)}`;
}

// What happened -------------------------------------------------------------------------------------------

/** The warnings of the server, and between them what the page has seen itself. Newest first. */
export class Events {
  #shown = new Set();
  #working = null; // the processes that did their work at the last look
  #list = element("ol", { class: "events" });
  #none = element(
    "p",
    { class: "quiet" },
    "No warnings. Deaths of processes, faults of the disk and the like are shown here.",
  );

  constructor() {
    const heading = element("h2", {}, "What happened ", element("small", {}, "the last warnings, and what followed"));
    this.element = element("section", { class: "card" }, heading, this.#none, this.#list);
  }

  show(status) {
    for (const warning of status.warnings) this.#add(`${warning.time} ${warning.pid} ${warning.message}`, warning);
    for (const process of status.processes) this.#note(process);
    this.#working = new Set(status.processes.filter((each) => each.ready_at).map((each) => each.pid));
  }

  /** Notes that the work goes on. The server knows when it ended for all but workers; a new worker is seen here. */
  #note({ role, pid, ended_at, ready_at }) {
    if (!ready_at || pid === null) return;
    const known = { time: ready_at, level: "good", role, pid };
    const isNew = this.#working && !this.#working.has(pid);
    if (ended_at !== null && ready_at > ended_at) {
      const pause = duration(ready_at - ended_at);
      const message = `${role} does its work again, as process ${pid}, ${pause} after the last one ended.`;
      this.#add(`${role} ${ready_at}`, { ...known, message });
    } else if (role === "worker" && isNew) {
      this.#add(`${role} ${ready_at}`, { ...known, message: `Worker ${pid} answers requests.` });
    }
  }

  #add(id, event) {
    if (this.#shown.has(id)) return;
    this.#shown.add(id);
    this.#list.insertBefore(entry(id, event), this.#place(event.time));
    this.#none.hidden = true;
    if (this.#list.children.length <= EVENTS_MAX) return;
    this.#shown.delete(this.#list.lastChild.dataset.id);
    this.#list.lastChild.remove();
  }

  /** The first entry that is not newer. */
  #place(time) {
    return [...this.#list.children].find((each) => Number(each.dataset.time) <= time) ?? null;
  }
}

function entry(id, { time, level, role, pid, message }) {
  const plain = meaning(message);
  const said = level === "good" ? message : `${role}[${pid}] ${level}: ${message}`;
  return element(
    "li",
    { "data-id": id, "data-level": level, "data-time": time },
    element("time", { datetime: new Date(time * 1000).toISOString() }, clock(time)),
    element(
      "div",
      {},
      element("span", {}, plain ?? (level === "good" ? message : said)),
      plain ? element("small", {}, said) : "",
    ),
  );
}
