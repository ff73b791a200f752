// The data: keys by prefix, page by page, beside the value of one of them (value.js).

import { Failure, listKeys } from "./api.js";
import { element, write } from "./dom.js";
import { ValueView } from "./value.js";
import { failure } from "./words.js";

const PAGE_KEYS = 100;
const TYPING_MS = 250;
const SLOW_MS = 400;

export class DataView {
  #list = new KeyList();
  #value = new ValueView(() => this.#list.load());
  #hash = "#data";

  constructor(container) {
    container.append(this.#list.element, this.#value.element);
    this.container = container;
    window.addEventListener("beforeunload", (event) => {
      if (this.#value.isChanged()) event.preventDefault();
    });
  }

  /** Shows a key; null is none, and "" a new one. The address goes back when somebody wants to keep what they typed. */
  async open(key) {
    const { hash } = location;
    if (this.#list.isEmpty) this.#list.load();
    const mayLeave = await this.#value.mayLeaveFor(key);
    if (hash !== location.hash) return; // the question went with the address
    if (!mayLeave) {
      history.replaceState(null, "", this.#hash);
      return;
    }
    this.#hash = hash;
    this.#list.select(key);
    this.container.classList.toggle("has-value", key !== null);
    this.#value.open(key);
  }

  /** The server is of use again: asks once more for what it could not tell. */
  retry() {
    if (this.container.hidden) return;
    this.#list.retry();
    this.#value.retry();
  }
}

class KeyList {
  #trail = [""]; // where each page up to this one begins: after which key
  #request = 0;
  #failed = false;
  #selected = null;
  isEmpty = true;

  constructor() {
    this.prefix = element("input", {
      id: "prefix",
      type: "search",
      placeholder: "begins with …",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      oninput: () => this.#onTyping(),
    });
    this.notice = element("p", { class: "notice", role: "status", hidden: true });
    this.list = element("ul", { class: "keys", onkeydown: (event) => this.#onKey(event) });
    this.previous = element("button", { type: "button", onclick: () => this.#turn(-1) }, "Previous");
    this.next = element("button", { type: "button", onclick: () => this.#turn(1) }, "Next");
    this.page = element("span", { class: "quiet" });
    const create = element("button", { type: "button", onclick: () => (location.hash = "#data/") }, "New key");
    const again = element(
      "button",
      { type: "button", onclick: () => this.load(), title: "Ask the server again" },
      "Refresh",
    );
    this.element = element(
      "section",
      { class: "card list" },
      element("h2", {}, "Keys"),
      element("label", { for: "prefix", class: "hidden" }, "Keys that begin with"),
      element("div", { class: "row" }, this.prefix, again, create),
      this.notice,
      this.list,
      element("div", { class: "row between" }, this.previous, this.page, this.next),
    );
  }

  /** Asks for this page anew. The answer to an older question is thrown away when it comes later. */
  async load() {
    this.isEmpty = false;
    this.#request += 1;
    const request = this.#request;
    const prefix = this.prefix.value;
    const slow = setTimeout(() => this.#say("Asking …"), SLOW_MS);
    this.previous.disabled = this.next.disabled = true;
    try {
      const page = await listKeys(prefix, this.#trail.at(-1), PAGE_KEYS);
      if (request === this.#request) this.#show(prefix, page);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (request === this.#request) this.#fail(error);
    } finally {
      clearTimeout(slow);
    }
  }

  retry() {
    if (this.#failed) this.load();
  }

  select(key) {
    this.#selected = key;
    for (const line of this.list.children) this.#mark(line.firstChild);
  }

  #show(prefix, { keys, hasMore }) {
    this.#failed = false;
    this.list.replaceChildren(...keys.map((key) => this.#entry(key)));
    this.list.scrollTop = 0;
    this.previous.disabled = this.#trail.length === 1;
    this.next.disabled = !hasMore;
    write(this.page, keys.length ? `page ${this.#trail.length}` : "");
    if (keys.length) this.notice.hidden = true;
    else if (this.#trail.length > 1) this.#say("There are no more keys.");
    else this.#say(prefix ? `No key begins with “${prefix}”.` : "There are no keys yet.");
  }

  #fail(error) {
    this.#failed = true;
    this.previous.disabled = this.#trail.length === 1;
    this.#say(failure(error), true);
  }

  #say(words, isBad = false) {
    write(this.notice, words);
    this.notice.classList.toggle("bad", isBad);
    this.notice.hidden = false;
  }

  #entry(key) {
    const link = element("a", { href: `#data/${key}`, title: key }, key);
    this.#mark(link);
    return element("li", {}, link);
  }

  #mark(link) {
    if (link.title === this.#selected) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }

  #onTyping() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      this.#trail = [""];
      this.load();
    }, TYPING_MS);
  }

  async #turn(direction) {
    if (direction > 0) this.#trail.push(this.list.lastChild.firstChild.title);
    else this.#trail.pop();
    await this.load();
    const pressed = direction > 0 ? this.next : this.previous;
    if (document.activeElement === document.body) pressed.focus(); // it lost the focus while it was disabled
  }

  /** The arrows walk along the keys, as in any list. */
  #onKey(event) {
    const line = document.activeElement.closest("li");
    const to = { ArrowDown: line?.nextSibling, ArrowUp: line?.previousSibling }[event.key];
    if (!to) return;
    event.preventDefault();
    to.firstChild.focus();
  }
}
