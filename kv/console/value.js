// One value: shown, changed, removed, downloaded. A change is made only if the value is still the one that was shown;
// what somebody else has stored meanwhile is shown beside it, and never overwritten unasked.

import { download, Failure, readValue, remove, store } from "./api.js";
import { ask, element, write } from "./dom.js";
import { decode, hexadecimal, isEditable, isPlain, visible } from "./text.js";
import { bytes as size, count, failure } from "./words.js";

const WHOLE_BYTES = 256 << 10; // a larger value is shown by its beginning, and is not edited here
const BEGINNING_BYTES = 32 << 10;
const KEY = /^[A-Za-z0-9:_.-]+$/;

export class ValueView {
  #key = null; // "" is a new one
  #value = null; // of api.readValue, with its text; null while there is none
  #editor = null;
  #failed = false;

  /** `onKeys` is called when there may be other keys than before. */
  constructor(onKeys) {
    this.onKeys = onKeys;
    this.element = element("section", { class: "card value", "aria-label": "Value" });
    this.#hint();
  }

  /** Shows a key; null is none, and "" a new one. False when somebody wants to keep what they typed. */
  async open(key) {
    if (key === this.#key) return true;
    if (!(await this.#mayDiscard())) return false;
    this.#key = key;
    this.#editor = null;
    if (key) await this.#load();
    else if (key === "") this.#create();
    else this.#hint();
    return true;
  }

  retry() {
    if (this.#failed && !this.#editor) this.#load();
  }

  isChanged() {
    return this.#editor !== null && this.#editor.area.value !== this.#editor.before;
  }

  async #mayDiscard() {
    const text = "What you have typed is not stored, and would be gone.";
    return !this.isChanged() || ask("Leave without storing?", text, "Leave");
  }

  // Showing -----------------------------------------------------------------------------------------------

  async #load(said = "") {
    const key = this.#key;
    this.#draw(element("p", { class: "quiet" }, "Asking …"));
    this.#failed = false;
    try {
      const value = await readValue(key, WHOLE_BYTES, BEGINNING_BYTES);
      if (key !== this.#key) return;
      this.#value = { ...value, text: decode(value.bytes) };
      this.#show(said);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (key !== this.#key) return;
      this.#value = null;
      this.#failed = error.status !== 404;
      if (error.status === 404)
        this.#draw(notice(said || "There is no such key.", said ? "good" : ""), this.#actions("create"));
      else this.#draw(notice(failure(error), "bad"), this.#actions("again"));
    }
  }

  #hint() {
    this.element.replaceChildren(element("p", { class: "quiet" }, "Choose a key to see its value."));
  }

  #draw(...content) {
    const back = element("a", { href: "#data", class: "back" }, "← Keys");
    const heading = element("h2", { class: "key", tabindex: "-1" }, this.#key || "New key");
    this.element.replaceChildren(back, heading, ...content.filter(Boolean));
  }

  #show(said) {
    const { text, size: length, bytes, isWhole, etag } = this.#value;
    const kind = isPlain(text) ? `text, ${count(text.split("\n").length, "line")}` : "text with control characters";
    const facts = `${size(length)} · ${isWhole ? kind : "too large to show as a whole"} · ETag ${etag}`;
    const reason = this.#whyNotEditable();
    this.#draw(
      said && notice(said, "good"),
      element("p", { class: "quiet" }, facts),
      this.#actions("edit", "download", "remove", "again"),
      reason && notice(reason),
      isWhole ? "" : notice(`The first ${size(bytes.length)} of ${size(length)}:`),
      isPlain(text) ? element("pre", { tabindex: "0", class: "text" }, text) : this.#bytesOrText(),
    );
  }

  /** Bytes first, because control characters may hide what is there; as text they are shown by their pictures. */
  #bytesOrText() {
    const { text, bytes } = this.#value;
    const shown = element("pre", { tabindex: "0" }, hexadecimal(bytes));
    const toggle = element("button", { type: "button", "aria-pressed": "false" }, "Show as text");
    toggle.addEventListener("click", () => {
      const asText = toggle.getAttribute("aria-pressed") === "false";
      toggle.setAttribute("aria-pressed", String(asText));
      shown.classList.toggle("text", asText);
      write(shown, asText ? visible(text) : hexadecimal(bytes));
    });
    return element("div", {}, element("p", {}, toggle), shown);
  }

  #whyNotEditable() {
    const { text, isWhole } = this.#value;
    if (!isWhole) return "It is too large to be edited here. Download it, and store it with PUT.";
    if (!isEditable(text))
      return "It cannot be edited here: a text field would change characters of it that cannot be seen.";
    return "";
  }

  #actions(...names) {
    const action = {
      edit: () => button("Edit", () => this.#edit(), this.#whyNotEditable() !== ""),
      create: () => button("Create it", () => this.#create()),
      download: () => button("Download", () => this.#download()),
      remove: () => button("Delete …", () => this.#remove(), false, "danger"),
      again: () => button("Refresh", () => this.#load()),
    };
    return element("div", { class: "row" }, ...names.map((name) => action[name]()));
  }

  // Removing and downloading ------------------------------------------------------------------------------

  async #remove() {
    const text = `${this.#key}, ${size(this.#value.size)}. This cannot be undone.`;
    if (!(await ask("Delete this key?", text, "Delete"))) return;
    try {
      await remove(this.#key, this.#value.etag);
      await this.#load("Deleted.");
    } catch (error) {
      if (error.status === 412)
        await this.#load("Not deleted: somebody else has changed it meanwhile. This is what is stored now.");
      else this.#complain(error);
    }
    this.onKeys();
  }

  async #download() {
    try {
      const address = URL.createObjectURL(await download(this.#key));
      element("a", { href: address, download: `${this.#key.replaceAll(":", "_")}.txt` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      this.#complain(error);
    }
  }

  #complain(error) {
    if (!(error instanceof Failure)) throw error;
    this.element.querySelector(".row").after(notice(failure(error), "bad"));
  }

  // Changing ----------------------------------------------------------------------------------------------

  #create() {
    this.#value = null;
    this.#edit();
  }

  #edit() {
    const before = this.#value?.text ?? "";
    const area = element("textarea", { "aria-label": "Value", rows: "16", spellcheck: "false" });
    area.value = before;
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#save();
    });
    const name = element("input", {
      "aria-label": "Key",
      placeholder: "A-Z a-z 0-9 : _ . -",
      autocomplete: "off",
      spellcheck: "false",
    });
    this.#editor = { area, name, before, etag: this.#value?.etag ?? null, said: element("div", { role: "alert" }) };
    const cancel = () => {
      this.#editor = null;
      if (this.#key) this.#load();
      else location.hash = "#data";
    };
    const row = element(
      "div",
      { class: "row" },
      button("Store", () => this.#save(), false, "primary"),
      button("Cancel", cancel),
      element("span", { class: "quiet" }, "Ctrl+Enter stores"),
    );
    this.#draw(this.#key ? "" : element("p", {}, name), this.#editor.said, area, row);
    (this.#key ? area : name).focus();
  }

  #say(...content) {
    this.#editor.said.replaceChildren(...content);
  }

  async #save() {
    const { area, name, etag } = this.#editor;
    const key = this.#key || name.value;
    if (!KEY.test(key))
      return this.#say(notice("A key has letters, digits and : _ . - alone, and at least one of them.", "bad"));
    if (!area.value) return this.#say(notice("A value cannot be empty.", "bad"));
    this.#say(element("p", { class: "quiet" }, "Storing …"));
    try {
      await store(key, area.value, etag);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      return error.status === 412
        ? this.#showOther(key)
        : this.#say(notice(failure(error), "bad"), this.#look(error, key));
    }
    return this.#stored(key);
  }

  async #stored(key) {
    this.#editor = null;
    const isNew = !this.#key;
    this.#key = key;
    if (isNew) location.replace(`#data/${key}`);
    await this.#load("Stored: it is on the disk.");
    this.onKeys();
  }

  /** After an answer that was lost, the value itself says whether it was stored. */
  #look({ status }, key) {
    const look = async () => {
      const other = await this.#read(key);
      if (other && other.isWhole && decode(other.bytes) === this.#editor.area.value) this.#stored(key);
      else this.#showOther(key, "It is not stored. This is what the key has now.");
    };
    return status === 504 || status === 0 ? button("Look whether it is stored", look) : "";
  }

  /** Somebody else was faster: their value is shown, and the next one who stores replaces that, and says so. */
  async #showOther(
    key,
    why = "Not stored: somebody else has changed this key since you began. Nothing was overwritten.",
  ) {
    const other = await this.#read(key);
    if (other === undefined || !this.#editor) return;
    this.#editor.etag = other?.etag ?? null;
    const take = () => {
      this.#editor = null;
      this.#key = key;
      this.#load();
    };
    const theirs = other
      ? element("pre", { class: "text theirs", tabindex: "0", "aria-label": "What is stored now" }, shown(other))
      : element("p", {}, "The key is not there any more.");
    const row = element(
      "div",
      { class: "row" },
      button(other ? "Replace it by my text" : "Store my text again", () => this.#save()),
      button(other ? "Take what is stored" : "Let it be gone", take),
    );
    this.#say(notice(why, "bad"), theirs, row, element("p", { class: "quiet" }, "Your text:"));
  }

  /** A value, null when there is none, or undefined when that cannot be found out; then it says so. */
  async #read(key) {
    try {
      return await readValue(key, WHOLE_BYTES, BEGINNING_BYTES);
    } catch (error) {
      if (error.status === 404) return null;
      this.#say(notice(failure(error), "bad"));
      return undefined;
    }
  }
}

function shown({ bytes, isWhole }) {
  const text = decode(bytes);
  return (isPlain(text) ? text : visible(text)) + (isWhole ? "" : " …");
}

function notice(words, kind = "") {
  return element("p", { class: `notice ${kind}` }, words);
}

function button(words, onclick, disabled = false, kind = "") {
  return element("button", { type: "button", onclick, disabled, class: kind }, words);
}
