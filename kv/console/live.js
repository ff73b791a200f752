// The cards with numbers: what each shows, and how it is computed from /metrics. Knows no requests.

import { Chart, Legend } from "./chart.js";
import { element, write } from "./dom.js";
import { History, Scrape } from "./metrics.js";
import { age, bytes, count, duration, number } from "./words.js";

const HISTORY_SECONDS = 30;
const RATE_SECONDS = 3;
const QUANTILE_SECONDS = 10;
const REQUESTS = "kv_http_requests_total";
const LATENCY = "kv_http_request_duration_seconds";
const SYNC = "kv_log_sync_duration_seconds";
const KINDS = [
  ["Reads", { method: ["GET", "HEAD"] }],
  ["Writes", { method: ["PUT", "DELETE", "POST"] }],
];
const METHODS = [
  ["GET", { method: ["GET", "HEAD"] }],
  ["PUT", { method: "PUT" }],
  ["DELETE", { method: "DELETE" }],
  ["batch", { method: "POST" }],
];
const perSecond = (value) => (value === undefined ? "–" : `${number(value)}/s`);

/** All cards. Each takes what was scraped in the last seconds, and the server's clock. */
export class Live {
  #history = new History(HISTORY_SECONDS);
  #cards = [new Requests(), new Latency(), new Groups(), new Log(), new Data(), new Memory()];

  constructor() {
    this.element = element("div", { class: "cards" }, ...this.#cards.map((each) => each.element));
  }

  /**
   * Takes the text of /metrics; null when it could not be had. `at` is when, by any clock that is never set; `time` is
   * the time of day by the server's clock, undefined while that is not known.
   */
  show(text, at, time) {
    if (text === null) {
      this.element.classList.add("stale");
      return;
    }
    this.element.classList.remove("stale");
    this.#history.add(new Scrape(text, at));
    const isLogdAway = this.#history.latest.value("kv_logd_up") !== 1;
    for (const card of this.#cards) {
      card.element.classList.toggle("stale", card.isOfLogd && isLogdAway);
      card.show(this.#history, time);
    }
  }
}

class Card {
  isOfLogd = false; // then what it shows is old while logd is away

  constructor(title, note, ...content) {
    const heading = element("h2", {}, title, " ", element("small", {}, note));
    this.element = element("section", { class: "card" }, heading, ...content);
  }

  /** An engine that has no such numbers has no such card. */
  appearIf(isThere) {
    this.element.hidden = !isThere;
  }
}

/** Names and values. `show` takes the values. */
class Facts {
  constructor(...names) {
    this.values = names.map(() => element("dd", {}, "–"));
    const pair = (name, index) => element("div", {}, element("dt", {}, name), this.values[index]);
    this.element = element("dl", { class: "facts" }, ...names.map(pair));
  }

  show(...texts) {
    texts.forEach((text, index) => write(this.values[index], text));
  }
}

class Requests extends Card {
  constructor() {
    const total = element("p", { class: "figure" }, "–");
    const legend = new Legend(KINDS.map(([name]) => name));
    const chart = new Chart("Requests a second", ["reads", "writes"], perSecond, 10);
    const facts = new Facts(...METHODS.map(([name]) => name), "answered 4xx", "answered 5xx");
    super("Requests", "a second, with those of this page", total, legend.element, chart.element, facts.element);
    Object.assign(this, { total, legend, chart, facts });
  }

  show(history) {
    const last = history.last(RATE_SECONDS, "supervisor");
    const rates = KINDS.map(([, labels]) => last?.rate(REQUESTS, labels));
    write(this.total, perSecond(last?.rate(REQUESTS)));
    this.legend.show(rates.map(perSecond));
    this.chart.add(history.latest.at, rates);
    const answered = (first) => last && last.rate(REQUESTS, { status: statuses(history.latest, first) });
    const [refused, failed] = [answered("4"), answered("5")];
    const methods = METHODS.map(([, labels]) => perSecond(last?.rate(REQUESTS, labels)));
    this.facts.show(...methods, perSecond(refused), perSecond(failed));
    this.facts.values.at(-1).classList.toggle("bad", failed > 0);
  }
}

/** The statuses that are counted and begin with a digit. */
function statuses(scrape, digit) {
  const samples = scrape.samples.get(REQUESTS) ?? [];
  return [...new Set(samples.map((each) => each.labels.status))].filter((each) => each.startsWith(digit));
}

class Latency extends Card {
  constructor() {
    const legend = new Legend(["p99 of reads", "p99 of writes"]);
    const chart = new Chart("Latency, p99", ["reads", "writes"], duration, 0.005);
    const rows = METHODS.map(([name]) => [element("th", { scope: "row" }, name), element("td"), element("td")]);
    const head = ["", "p50", "p99"].map((name) => element("th", { scope: "col" }, name));
    const lines = [head, ...rows].map((cells) => element("tr", {}, ...cells));
    super("Latency", "of the last 10 s", legend.element, chart.element, element("table", {}, ...lines));
    Object.assign(this, { legend, chart, rows });
  }

  show(history) {
    const last = history.last(QUANTILE_SECONDS, "supervisor");
    const quantiles = KINDS.map(([, labels]) => last?.quantile(0.99, LATENCY, labels));
    this.legend.show(quantiles.map(duration));
    this.chart.add(history.latest.at, quantiles);
    METHODS.forEach(([, labels], index) => {
      const [, p50, p99] = this.rows[index];
      write(p50, duration(last?.quantile(0.5, LATENCY, labels)));
      write(p99, duration(last?.quantile(0.99, LATENCY, labels)));
    });
  }
}

class Groups extends Card {
  isOfLogd = true;

  constructor() {
    const legend = new Legend(["sync, p50", "sync, p99"]);
    const chart = new Chart("Duration of a sync", ["p50", "p99"], duration, 0.005);
    const facts = new Facts("writes a group", "groups", "written", "waiting writes");
    super("Group commit", "one sync for many writes", legend.element, chart.element, facts.element);
    Object.assign(this, { legend, chart, facts });
  }

  show(history) {
    const last = history.last(QUANTILE_SECONDS, "logd");
    const quantiles = [0.5, 0.99].map((q) => last?.quantile(q, SYNC));
    this.legend.show(quantiles.map(duration));
    this.chart.add(history.latest.at, quantiles);
    const now = history.last(RATE_SECONDS, "logd");
    const written = now?.rate("kv_log_appended_bytes_total");
    this.facts.show(
      number(last?.mean("kv_log_group_writes")),
      perSecond(now?.rate("kv_log_groups_total")),
      written === undefined ? "–" : `${bytes(written)}/s`,
      number(history.latest.value("kv_http_queued_writes")),
    );
  }
}

class Log extends Card {
  isOfLogd = true;

  constructor() {
    const meter = element("meter", { min: 0, max: 1, value: 0, "aria-label": "Log until the next checkpoint" });
    const state = element("p", {}, "–");
    const facts = new Facts("last checkpoint", "it took", "snapshot", "segments", "failed", "free on the disk");
    super("Log and checkpoint", "what a start replays", meter, state, facts.element);
    Object.assign(this, { meter, state, facts });
  }

  show(history, time) {
    const { latest } = history;
    const value = (name, labels) => latest.value(name, labels);
    const [log, due] = [value("kv_log_bytes"), value("kv_checkpoint_due_bytes")];
    if (value("kv_logd_up") === 1) this.appearIf(log !== undefined);
    if (log === undefined) return;
    this.meter.value = Math.min(1, log / due);
    write(this.state, `${bytes(log)} of ${bytes(due)}. ${this.#due(history, due - log)}`);
    const [at, failed] = [
      value("kv_checkpoint_last_timestamp_seconds"),
      value("kv_checkpoints_total", { outcome: "failed" }),
    ];
    const took = value("kv_checkpoint_last_duration_seconds");
    this.facts.show(
      at ? (time ? `${age(time - at)} ago` : "–") : "none yet",
      took ? duration(took) : "–",
      at ? bytes(value("kv_snapshot_bytes")) : "–",
      number(value("kv_log_segments")),
      number(failed),
      bytes(value("kv_disk_free_bytes")),
    );
    this.facts.values[4].classList.toggle("bad", failed > 0);
  }

  #due(history, left) {
    if (left <= 0) return "A checkpoint runs, or begins with the next segment.";
    const rate = history.last(QUANTILE_SECONDS, "logd")?.rate("kv_log_appended_bytes_total");
    if (!(rate > 0)) return "Nothing is written now.";
    return `The next checkpoint is due in ${left < rate ? "a moment" : `about ${age(left / rate)}`}.`;
  }
}

class Data extends Card {
  isOfLogd = true;

  constructor() {
    const keys = element("p", { class: "figure" }, "–");
    const chart = new Chart("Keys", ["keys"], number, 10);
    const facts = new Facts("keys and values", "connections", "requests in flight", "sessions");
    super("Data", "", keys, chart.element, facts.element);
    Object.assign(this, { keys, chart, facts });
  }

  show({ latest }) {
    const keys = latest.value("kv_keys");
    if (latest.value("kv_logd_up") === 1) this.chart.element.hidden = this.keys.hidden = keys === undefined;
    write(this.keys, keys === undefined ? "–" : count(keys, "key"));
    this.chart.add(latest.at, [keys]);
    this.facts.show(
      bytes(latest.value("kv_data_bytes")),
      number(latest.value("kv_http_connections")),
      number(latest.value("kv_http_requests_in_flight")),
      number(latest.value("kv_sessions")),
    );
  }
}

class Memory extends Card {
  constructor() {
    const legend = new Legend(["logd", "workers"]);
    const chart = new Chart("Memory", ["logd", "workers"], bytes, 64 << 20);
    const facts = new Facts("processor, logd", "processor, workers", "waiting writes", "unread answers");
    super("Memory and processor", "", legend.element, chart.element, facts.element);
    Object.assign(this, { legend, chart, facts });
  }

  show(history) {
    const { latest } = history;
    const memory = ["logd", "worker"].map((role) => latest.value("kv_process_resident_memory_bytes", { role }));
    this.legend.show(memory.map(bytes));
    this.chart.add(latest.at, memory);
    const used = (role, counted) =>
      history.last(QUANTILE_SECONDS, counted)?.rate("kv_process_cpu_seconds_total", { role });
    const percent = (value) => (value === undefined ? "–" : `${number(Math.round(value * 100))} %`);
    this.facts.show(
      percent(used("logd", "logd")),
      percent(used("worker", "supervisor")),
      bytes(latest.value("kv_http_queued_bytes")),
      bytes(latest.value("kv_http_unsent_bytes")),
    );
  }
}
