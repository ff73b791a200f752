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
  #request = 0;

  /** `onKeys` is called when there may be other keys than before. */
  constructor(onKeys) {
    this.onKeys = onKeys;
    this.element = element("section", { class: "card value", "aria-label": "Value" });
    this.#hint();
  }

  /** Shows a key; null is none, and "" a new one. What was typed is gone: see mayLeaveFor. */
  open(key) {
    if (key === this.#key) return;
    this.#key = key;
    this.#editor = null;
    this.#request += 1;
    if (key) this.#load();
    else if (key === "") this.#create();
    else this.#hint();
  }

  /** Whether another key may be shown; asks somebody who has typed something that is not stored. */
  async mayLeaveFor(key) {
    const text = "What you have typed is not stored, and would be gone.";
    return key === this.#key || !this.isChanged() || ask("Leave without storing?", text, "Leave");
  }

  retry() {
    if (this.#failed && !this.#editor) this.#load();
  }

  isChanged() {
    return this.#editor !== null && this.#editor.isChanged();
  }

  // Showing -----------------------------------------------------------------------------------------------

  /**
   * Reads the value and shows it, with `said`; `gone` is said when there is none. An answer to an older question is
   * thrown away when it comes later.
   */
  async #load(said = "", gone = "") {
    this.#request += 1;
    const request = this.#request;
    this.#failed = false;
    this.#draw(element("p", { class: "quiet" }, "Asking …"));
    try {
      const value = await readValue(this.#key);
      if (request !== this.#request) return;
      this.#value = { ...value, text: decode(value.bytes) };
      this.#show(said);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (request === this.#request) this.#showNone(error, gone);
    }
  }

  #showNone(error, gone) {
    this.#value = null;
    this.#failed = error.status !== 404;
    if (this.#failed) this.#draw(notice(failure(error), "bad"), this.#actions("again"));
    else this.#draw(notice(gone || "There is no such key.", gone && "good"), this.#actions("create"));
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

  // Removing and downloading: of the key that was shown at the click, whatever is shown by the answer ---------

  async #remove() {
    const key = this.#key;
    const { etag, size: length } = this.#value;
    if (!(await ask("Delete this key?", `${key}, ${size(length)}. This cannot be undone.`, "Delete"))) return;
    try {
      await remove(key, etag);
      if (key === this.#key) await this.#load("Deleted, and stored again since.", "Deleted.");
    } catch (error) {
      if (error.status !== 412) this.#complain(key, error);
      else if (key === this.#key)
        await this.#load("Not deleted: it has changed meanwhile. This is what is stored now.", "It is gone already.");
    }
    this.onKeys();
  }

  async #download() {
    const key = this.#key;
    try {
      const address = URL.createObjectURL(await download(key));
      element("a", { href: address, download: `${key.replaceAll(":", "_")}.txt` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      this.#complain(key, error);
    }
  }

  #complain(key, error) {
    if (!(error instanceof Failure)) throw error;
    if (key === this.#key) this.element.querySelector(".row").after(notice(failure(error), "bad"));
  }

  // Changing ----------------------------------------------------------------------------------------------

  #create() {
    this.#value = null;
    this.#edit();
  }

  #edit() {
    const editor = new Editor(this.#key, this.#value, (key, said) => {
      if (this.#editor === editor) this.#leave(key, said);
      else if (said) this.onKeys(); // stored after somebody has left
    });
    this.#editor = editor;
    this.#draw(editor.element);
    editor.focus();
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
