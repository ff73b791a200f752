// Numbers, times and messages as people read them. Knows no elements and no requests.

const NONE = "–";
const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SIZES = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** 1,234,567; three digits at least where there is a fraction: 12.3, 1.23. */
export function number(value) {
  if (value === undefined || Number.isNaN(value)) return NONE;
  if (Number.isInteger(value) || value >= 100) return NUMBER.format(value);
  return value < 0.005 ? "0" : String(Number(value.toPrecision(value < 1 ? 2 : 3)));
}

export function bytes(value) {
  if (value === undefined || Number.isNaN(value)) return NONE;
  let unit = 0;
  while (value >= 1024 && unit < SIZES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${number(value)} ${unit === 0 && value === 1 ? "byte" : SIZES[unit]}`;
}

/** A short time, such as a latency. */
export function duration(seconds) {
  if (seconds === undefined || Number.isNaN(seconds)) return NONE;
  if (seconds < 0.001) return `${number(seconds * 1e6)} µs`;
  if (seconds < 1) return `${number(seconds * 1e3)} ms`;
  return seconds < 100 ? `${number(seconds)} s` : age(seconds);
}

/** A long time, such as an age, in its largest unit. */
export function age(seconds) {
  if (seconds === undefined || Number.isNaN(seconds)) return NONE;
  if (seconds < 100) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 6000) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${NUMBER.format(Math.floor(seconds / 86400))} days`;
}

/** The time of day of a moment in seconds since 1970; with the date when that is not today's. */
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-GB")} ${time}`;
}

/** "1 key", "2 keys" */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

// Lines of the log ----------------------------------------------------------------------------------------

const LINES = [
  [
    /^logd ended with status -9; /,
    "The log writer was killed and is started again. Nothing acknowledged is lost; clients see a pause.",
  ],
  [
    /^logd ended with status 13; /,
    "The disk failed while the log writer wrote. It starts again, and trusts only what it writes anew.",
  ],
  [
    /^logd ended with status -?\d+ before it was ready; /,
    "The log writer ended before it had read the data, and is tried again, ever more rarely.",
  ],
  [/^logd ended with status /, "The log writer ended and is started again."],
  [
    /^gunicorn ended with status -?\d+; /,
    "The parent of the workers ended, and they with it. All are started again; new connections wait.",
  ],
  [/^(logd|gunicorn) cannot be started: /, "The system has no room for another process now. It is tried again."],
  [
    /^Worker \(pid:(\d+)\) was sent SIG(\w+)!/,
    (m) => `Worker ${m[1]} was ended by SIG${m[2]}; another one takes its place. Its clients lost their connections.`,
  ],
  [/^worker (\d+) is frozen; killing it/, (m) => `Worker ${m[1]} did nothing for half a minute and is replaced.`],
  [
    /^\[TORN_TAIL\]/,
    "A crash had cut a write short. It was never acknowledged, and is dropped. There is nothing to do.",
  ],
  [/^\[BAD_SNAPSHOT\]/, "A snapshot is damaged; an older one and the log replace it. Check the disk."],
  [
    /^checkpoint as of frame \d+ failed/,
    "A checkpoint failed and is tried again in half a minute. Until one succeeds, the log grows.",
  ],
  [
    /: writes are refused until there is room$/,
    "There is no room on the disk: writes are answered 507, reads go on. Free some space.",
  ],
  [
    /^no space left on the device of /,
    "There is no room on the disk, and the log writer waits for some. Free some space.",
  ],
  [
    /^no space left on the device: released the ballast/,
    "There was no room on the disk; what was kept for this case is in use now. Free some space.",
  ],
  [
    /^a sync reported /,
    "The disk reported a lack of room only when the log was synced. The log is written anew before any answer.",
  ],
  [/^the log was written anew/, "The log was written anew, and holds all that was acknowledged. Writes go on."],
  [/^the disk failed, /, "The disk failed. Nothing of that group of writes was acknowledged."],
  [/^\d+ lines of the log were dropped/, "Nobody reads the log fast enough, so lines of it were dropped."],
  [/^the workers are not restarted: /, "A reload found a file that it cannot use; the workers go on with the old one."],
  [/^gunicorn is not started: /, "The certificate cannot be used, so nobody is served until it is put right."],
  [/^not upgraded: /, "The code on disk cannot be started; the old code serves on."],
  [
    /^listening on .* without authentication/,
    "Everybody who reaches this address can read and write: consider --token-file.",
  ],
  [
    /^listening on .* without TLS/,
    "Whoever sees the traffic has the token and the data: consider TLS, or a proxy with it.",
  ],
  [/^\d+ file descriptors are few/, "The limit on open files is low: beyond it, connections are reset."],
  [
    /^logd has dropped this worker's session/,
    "The log writer no longer knew this worker; writes under way were answered 504.",
  ],
];

/** What a line of the log means, in plain words; undefined for one that has to speak for itself. */
export function meaning(message) {
  for (const [pattern, words] of LINES) {
    const match = pattern.exec(message);
    if (match) return typeof words === "string" ? words : words(match);
  }
  return undefined;
}

// Answers -------------------------------------------------------------------------------------------------

/** What an answer that is an error means for somebody who looks at data. */
export function failure({ status, message }) {
  if (status === null) return message; // nobody was asked
  const said = message ? ` (${message})` : "";
  if (status === 0) return `No answer from the server${message === "no answer from the server" ? "" : said}.`;
  if (status === 503) return `The server cannot do this just now${said}. Nothing was changed.`;
  if (status === 504) return `Nobody knows whether this was done${said}.`;
  if (status === 507) return `There is no room for it${said}. Nothing was changed.`;
  if (status === 413) return "This is larger than a value may be. Nothing was changed.";
  return `The server refused: ${message || status}.`;
}
