// Elements of the page, made and filled without ever reading text as HTML. Knows no data and no requests.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element. `on…` properties are listeners, `class` and other strings are attributes, true is an empty
 * attribute, and false, null and undefined are none. Children are elements or text.
 */
export function element(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** Makes an element of a drawing. */
export function shape(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Sets a text, and leaves the document alone when it is the same already: nothing flickers, selections stay. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function button(words, onclick, { disabled = false, kind = "" } = {}) {
  return element("button", { type: "button", onclick, disabled, class: kind }, words);
}

/** A line that stands out; `kind` is "good", "bad", or neither. */
export function notice(words, kind = "") {
  return element("p", { class: `notice ${kind}` }, words);
}

/**
 * Asks in a modal dialog; resolves to true when the answer is `yes`. Escape and the safe button are false, and so is a
 * change of the address: the question was about another view.
 */
export function ask(title, text, yes) {
  const dialog = element(
    "dialog",
    {},
    element("h2", {}, title),
    element("p", {}, text),
    element(
      "div",
      { class: "row end" },
      button("Cancel", () => dialog.close("no")), // the first one has the focus
      button(yes, () => dialog.close("yes"), { kind: "danger" }),
    ),
  );
  const leave = () => dialog.close("no");
  window.addEventListener("hashchange", leave, { once: true });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      window.removeEventListener("hashchange", leave);
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}
