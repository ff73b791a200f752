// Changes one value, or makes a new key. A text is stored only if the value is still the one that was shown; what
// somebody else has stored meanwhile is shown beside the text, and never overwritten unasked.

import { Failure, readValue, store } from "./api.js";
import { button, element, notice } from "./dom.js";
import { decode, isPlain, visible } from "./text.js";
import { failure } from "./words.js";

const KEY = /^[A-Za-z0-9:_.-]+$/;
const UNSTORED = "It is not stored, or too large to be compared here. This is what the key has now.";
const CHANGED = "Not stored: this key has changed since you began. Nothing was overwritten.";

export class Editor {
  /**
   * `key` is "" for a new one; `value` is null, or what api.readValue gave, with its text. `onDone` is called at the
   * end with the key, and with what is to be said if something was stored.
   */
  constructor(key, value, onDone) {
    this.key = key;
    this.before = value?.text ?? "";
    this.etag = value?.etag ?? null; // of the value that may be replaced; null: there is none
    this.onDone = onDone;
    this.said = element("div", { role: "alert" });
    this.name = element("input", { "aria-label": "Key", placeholder: "key", autocomplete: "off", spellcheck: "false" });
    this.area = element("textarea", { "aria-label": "Value", rows: "16", spellcheck: "false" });
    this.area.value = this.before;
    this.area.addEventListener("keydown", (event) => this.#onKey(event));
    this.store = button("Store", () => this.#store(), { kind: "primary" });
    this.hint = element("span", { class: "quiet" }, "Ctrl+Enter stores");
    const row = element(
      "div",
      { class: "row" },
      this.store,
      button("Cancel", () => onDone(key)),
      this.hint,
    );
    this.element = element("div", {}, ...(key ? [] : [this.name]), this.said, this.area, row);
  }

  focus() {
    (this.key ? this.area : this.name).focus();
  }

  isChanged() {
    return this.area.value !== this.before;
  }

  #onKey(event) {
    const isOffered = !this.store.hidden && !this.store.disabled;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isOffered) this.#store();
  }

  #say(...content) {
    this.said.replaceChildren(...content);
  }

  #complain(words, ...more) {
    this.#say(notice(words, "bad"), ...more);
  }

  async #store(key = this.key || this.name.value) {
    if (!KEY.test(key)) {
      this.#complain("A key has letters, digits and : _ . - alone, and at least one of them.");
    } else if (!this.area.value) {
      this.#complain("A value cannot be empty.");
    } else {
      this.#say(element("p", { class: "quiet" }, "Storing …"));
      await this.#locked(this.#send(key, this.area.value));
    }
  }

  /** What is typed before the answer would not be part of it. */
  async #locked(answer) {
    this.#lock(true);
    try {
      await answer;
    } finally {
      this.#lock(false);
    }
  }

  #lock(isLocked) {
    this.area.readOnly = this.name.readOnly = isLocked;
    for (const each of this.element.querySelectorAll("button")) each.disabled = isLocked;
  }

  async #send(key, text) {
    try {
      await store(key, text, this.etag);
      this.onDone(key, "Stored: it is on the disk.");
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      const isUnknown = error.status === 504 || error.status === 0;
      if (error.status === 412) await this.#compare(key, text, CHANGED);
      else if (isUnknown)
        this.#complain(
          failure(error),
          button("Look whether it is stored", () => this.#locked(this.#compare(key, text, UNSTORED))),
        );
      else this.#complain(failure(error));
    }
  }

  /** The value itself says whether a text was stored, also after an answer that was lost. `why` is said if not. */
  async #compare(key, text, why) {
    const other = await this.#read(key);
    if (other === undefined) return;
    const isStored = other?.isWhole && decode(other.bytes) === text;
    if (isStored && this.area.value === text) this.onDone(key, "It is stored.");
    else this.#showOther(key, other, isStored ? "Stored, but for what you have typed since." : why);
  }

  /** Shows what is stored now. To store from here on is to replace that, and is called so. */
  #showOther(key, other, why) {
    this.etag = other?.etag ?? null;
    this.store.hidden = this.hint.hidden = true;
    const theirs = other
      ? element("pre", { class: "text theirs", tabindex: "0", "aria-label": "What is stored now" }, shown(other))
      : element("p", {}, "The key is not there any more.");
    const row = element(
      "div",
      { class: "row" },
      button(other ? "Replace it by my text" : "Store my text again", () => this.#store(key)),
      button(other ? "Take what is stored" : "Let it be gone", () => this.onDone(key)),
    );
    const label = (words) => element("p", { class: "quiet" }, words);
    this.#complain(why, label("Stored now:"), theirs, row, label("Your text:"));
  }

  /** A value, null when there is none, or undefined when that cannot be found out; then it says so. */
  async #read(key) {
    try {
      return await readValue(key);
    } catch (error) {
      if (error.status === 404) return null;
      this.#complain(failure(error));
      return undefined;
    }
  }
}

function shown({ bytes, isWhole }) {
  const text = decode(bytes);
  return (isPlain(text) ? text : visible(text)) + (isWhole ? "" : " …");
}
