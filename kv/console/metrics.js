// The text of /metrics, and what follows from several of them: rates and quantiles. Knows no elements and no requests.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** One scrape: its samples by name, and when it arrived, in seconds. */
export class Scrape {
  constructor(text, at) {
    this.at = at;
    this.samples = new Map();
    for (const line of text.split("\n")) {
      const match = LINE.exec(line);
      if (!match) continue;
      const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
      if (!this.samples.has(match[1])) this.samples.set(match[1], []);
      this.samples.get(match[1]).push({ labels, value: Number(match[3]) });
    }
  }

  /** The sum of the samples that have these labels; undefined when there are none. */
  value(name, labels = {}) {
    const found = this.#matching(name, labels);
    return found.length ? found.reduce((sum, each) => sum + each.value, 0) : undefined;
  }

  /** The value of a label of the first sample. */
  label(name, label) {
    return this.samples.get(name)?.[0]?.labels[label];
  }

  /** The cumulated counts of a histogram by upper bound, summed over all samples that have these labels. */
  buckets(name, labels = {}) {
    const counts = new Map();
    for (const {
      labels: { le },
      value,
    } of this.#matching(`${name}_bucket`, labels)) {
      const bound = le === "+Inf" ? Infinity : Number(le);
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
    return counts;
  }

  #matching(name, labels) {
    const wanted = Object.entries(labels);
    const fits = (each) => wanted.every(([label, value]) => [value].flat().includes(each.labels[label]));
    return (this.samples.get(name) ?? []).filter(fits);
  }
}

/** What happened between two scrapes. Everything is undefined where one of them does not have it. */
export class Interval {
  constructor(older, newer) {
    this.older = older;
    this.newer = newer;
  }

  increase(name, labels) {
    const increase = this.newer.value(name, labels) - this.older.value(name, labels);
    return increase >= 0 ? increase : undefined;
  }

  /** The increase of a counter per second. */
  rate(name, labels) {
    const rate = this.increase(name, labels) / (this.newer.at - this.older.at);
    return Number.isFinite(rate) ? rate : undefined;
  }

  /** The mean of what a histogram has counted. */
  mean(name, labels) {
    const mean = this.increase(`${name}_sum`, labels) / this.increase(`${name}_count`, labels);
    return Number.isFinite(mean) ? mean : undefined;
  }

  /** A quantile of what a histogram has counted, taken as even within a bucket, as Prometheus does. */
  quantile(q, name, labels) {
    const before = this.older.buckets(name, labels);
    const counts = [...this.newer.buckets(name, labels)].sort(([a], [b]) => a - b);
    const increases = counts.map(([bound, count]) => [bound, count - (before.get(bound) ?? NaN)]);
    const total = increases.at(-1)?.[1];
    if (!(total > 0)) return undefined;
    const rank = q * total;
    let [lowerBound, lowerCount] = [0, 0];
    for (const [bound, count] of increases) {
      if (count >= rank && bound === Infinity) return lowerBound;
      if (count >= rank) return lowerBound + ((bound - lowerBound) * (rank - lowerCount)) / (count - lowerCount || 1);
      [lowerBound, lowerCount] = [bound, count];
    }
    return undefined;
  }
}

/** The scrapes of the last time. */
export class History {
  #scrapes = [];

  constructor(seconds) {
    this.seconds = seconds;
  }

  add(scrape) {
    this.#scrapes.push(scrape);
    this.#scrapes = this.#scrapes.filter((each) => each.at > scrape.at - this.seconds);
  }

  get latest() {
    return this.#scrapes.at(-1);
  }

  /**
   * The last `seconds`, or as much of them as counts: a counter begins anew with its process, the one whose counters
   * are asked for. Undefined while there are not two scrapes of one process.
   */
  last(seconds, role) {
    const start = { role };
    const { latest } = this;
    const isComparable = (each) =>
      each.at >= latest.at - seconds &&
      each.value("kv_process_start_time_seconds", start) === latest.value("kv_process_start_time_seconds", start) &&
      (role !== "logd" || each.value("kv_logd_up") === 1);
    const older = this.#scrapes.find(isComparable);
    return older && older !== latest ? new Interval(older, latest) : undefined;
  }
}
