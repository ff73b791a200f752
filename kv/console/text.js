// Values as text and as bytes: what can be shown, and what a text field would not change. Knows no elements.

/** Characters that are not to be seen, or that turn the direction of others round. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffd]/;
const ROW_BYTES = 16;
const ROWS_MAX = 256;

/** Bytes as text, with a byte order mark if there is one, and without a character that was cut off at the end. */
export function decode(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes, { stream: true });
}

export function isPlain(text) {
  return !HIDDEN.test(text.replaceAll("\r\n", "\n"));
}

/** Whether a text field gives a text back as it got it: it makes every end of line a line feed. */
export function isEditable(text) {
  return isPlain(text) && !text.includes("\r");
}

/** A text whose hidden characters are seen: control characters by their pictures, others by their numbers. */
export function visible(text) {
  const picture = (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\\u${code.toString(16).padStart(4, "0")}`;
  };
  return text.replaceAll(new RegExp(HIDDEN, "g"), picture);
}

/** The beginning of some bytes, as a dump: address, sixteen bytes, and the characters of ASCII among them. */
export function hexadecimal(bytes) {
  const rows = [];
  for (let start = 0; start < bytes.length && rows.length < ROWS_MAX; start += ROW_BYTES) {
    const row = [...bytes.subarray(start, start + ROW_BYTES)];
    const digits = row.map((each) => each.toString(16).padStart(2, "0")).join(" ");
    const letters = row.map((each) => (each >= 0x20 && each < 0x7f ? String.fromCharCode(each) : ".")).join("");
    rows.push(`${start.toString(16).padStart(8, "0")}  ${digits.padEnd(3 * ROW_BYTES - 1)}  ${letters}`);
  }
  const left = bytes.length - ROWS_MAX * ROW_BYTES;
  return rows.join("\n") + (left > 0 ? `\n… and ${left} bytes` : "");
}
