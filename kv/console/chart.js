// A line chart of the last minutes that draws itself anew with each point. Knows numbers, not what they mean.

import { element, shape, write } from "./dom.js";

const SECONDS = 120;
const WIDTH = 300;
const HEIGHT = 56;

export class Chart {
  #points = [];

  /**
   * `series` are the names of the lines, in the order of their colours; `format` makes a value a text; the scale ends
   * at `least` at least, so that noise about nothing does not look like a mountain range.
   */
  constructor(title, series, format, least) {
    this.title = title;
    this.series = series;
    this.format = format;
    this.least = least;
    this.lines = series.map((_, index) => shape("path", { class: `line series-${index}` }));
    this.area = shape("path", { class: "area" });
    this.drawing = shape(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      shape("path", { class: "grid", d: `M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` }),
      this.area,
      ...this.lines,
    );
    this.top = element("span", { class: "top" });
    const since = element("span", { class: "since" }, `${SECONDS / 60} min ago`);
    this.element = element("figure", { class: "chart" }, this.drawing, this.top, since);
  }

  /** Adds a point: a value, or undefined, of each series. */
  add(at, values) {
    this.#points.push({ at, values });
    this.#points = this.#points.filter((each) => each.at >= at - SECONDS);
    this.#draw(at);
  }

  #draw(now) {
    const known = this.#points.flatMap((each) => each.values).filter((each) => each !== undefined);
    const top = Math.max(this.least, 1.1 * Math.max(0, ...known));
    const path = (index) => this.#path(now, top, index);
    this.lines.forEach((line, index) => line.setAttribute("d", path(index).line));
    this.area.setAttribute("d", path(0).area);
    write(this.top, this.format(top));
    const latest = this.#points.at(-1).values.map((value, index) => `${this.series[index]} ${this.format(value)}`);
    this.drawing.setAttribute("aria-label", `${this.title}: ${latest.join(", ")}; at most ${this.format(top)}`);
  }

  /** A line, and the area below it. Each is broken where a value is not known. */
  #path(now, top, index) {
    let line = "";
    let area = "";
    let last = null;
    for (const { at, values } of this.#points) {
      const value = values[index];
      if (value === undefined) {
        if (last) area += `V${HEIGHT}Z`;
        last = null;
        continue;
      }
      const x = (WIDTH * (1 - (now - at) / SECONDS)).toFixed(1);
      const y = ((HEIGHT - 1) * (1 - value / top) + 0.5).toFixed(1);
      line += `${last ? "L" : "M"}${x} ${y}`;
      area += last ? `L${x} ${y}` : `M${x} ${HEIGHT}V${y}`;
      last = x;
    }
    return { line, area: last ? `${area}V${HEIGHT}Z` : area };
  }
}

/** What the lines are: a swatch, the name, and the present value of each. */
export class Legend {
  constructor(series) {
    this.values = series.map(() => element("b", {}, "–"));
    const entry = (name, index) =>
      element("li", {}, element("i", { class: `swatch series-${index}` }), `${name} `, this.values[index]);
    this.element = element("ul", { class: "legend" }, ...series.map(entry));
  }

  show(texts) {
    texts.forEach((text, index) => write(this.values[index], text));
  }
}
