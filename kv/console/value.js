// One value: shown, removed, downloaded; editor.js changes it. It is removed only if it is still the one that is shown.

import { download, Failure, readValue, remove } from "./api.js";
import { ask, button, element, notice, write } from "./dom.js";
import { Editor } from "./editor.js";
import { decode, hexadecimal, isEditable, isPlain, visible } from "./text.js";
import { bytes as size, count, failure } from "./words.js";

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
    return this.#editor !== null && this.#editor.isChanged();
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
      const value = await readValue(key);
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
      edit: () => button("Edit", () => this.#edit(), { disabled: this.#whyNotEditable() !== "" }),
      create: () => button("Create it", () => this.#create()),
      download: () => button("Download", () => this.#download()),
      remove: () => button("Delete …", () => this.#remove(), { kind: "danger" }),
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
    this.#editor = new Editor(this.#key, this.#value, (key, said) => this.#leave(key, said));
    this.#draw(this.#editor.element);
    this.#editor.focus();
  }

  /** The editor is done: the key is shown as it is stored now; without a key, none is. */
  async #leave(key, said) {
    this.#editor = null;
    if (!key) {
      location.hash = "#data";
      return;
    }
    const isNew = !this.#key;
    this.#key = key;
    if (isNew) location.replace(`#data/${key}`);
    await this.#load(said);
    if (said) this.onKeys();
  }
}
