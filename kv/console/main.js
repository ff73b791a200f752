// The page: asks the server once a second, and hands the answers to the views. Owns which view is shown, and what is
// said of the server's health and of a missing token.

import { request, text, useToken } from "./api.js";
import { element, write } from "./dom.js";
import { DataView } from "./keys.js";
import { Live } from "./live.js";
import { Events, isWhole, Processes } from "./processes.js";

const CALM_MS = 1000;
const BUSY_MS = 250; // while something heals, so that one sees how
const TIMEOUT_MS = 8000;
const by = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const live = new Live();
const processes = new Processes();
const events = new Events();
const data = new DataView(by("data"));

/** What is known of the server. */
const server = { health: "unknown", isWhole: true, isAllowed: true, workers: 0, isLogdUp: true, time: undefined };

// Asking --------------------------------------------------------------------------------------------------

/** Asks for ever, one question at a time, so that a slow link is never asked for more than it carries. */
async function repeat(ask, needsToken) {
  for (;;) {
    const began = performance.now();
    if ((server.isAllowed || !needsToken) && !document.hidden) await ask();
    const isHealing = server.health === "bad" || (server.health === "good" && !server.isWhole);
    const interval = isHealing ? BUSY_MS : CALM_MS;
    await pause(Math.max(50, interval - (performance.now() - began)));
  }
}

async function askHealth() {
  try {
    await request("health", { timeoutMs: TIMEOUT_MS });
    showHealth("good", "Takes reads and writes");
  } catch (failure) {
    if (failure.status === 503) showHealth("bad", `Not ready: ${failure.message}`);
    else showHealth("unknown", "No answer from the server; trying again");
  }
}

function showHealth(state, words) {
  const isBack = state === "good" && server.health !== "good";
  server.health = state;
  by("health").dataset.state = state;
  write(by("health"), words);
  document.title = state === "good" ? "kv console" : "⚠ kv console";
  if (isBack) data.retry();
}

async function askMetrics() {
  try {
    const metrics = await text("metrics", { timeoutMs: TIMEOUT_MS });
    server.workers = Number(/^kv_workers_configured (\d+)/m.exec(metrics)?.[1] ?? 0);
    server.isLogdUp = !/^kv_logd_up 0/m.test(metrics);
    live.show(metrics, performance.now() / 1000, server.time);
  } catch (failure) {
    live.show(null);
    if (failure.status === 401) demandToken();
  }
}

async function askStatus() {
  try {
    const status = JSON.parse(await text("status", { timeoutMs: TIMEOUT_MS }));
    server.time = status.time;
    server.isWhole = isWhole(status, server.workers);
    processes.show(status, server.workers, server.isLogdUp);
    events.show(status);
  } catch (failure) {
    if (failure.status === 401) demandToken();
  }
}

// The token -----------------------------------------------------------------------------------------------

function demandToken() {
  if (!server.isAllowed) return;
  server.isAllowed = false;
  showView();
  by("token").focus();
}

async function onToken(event) {
  event.preventDefault();
  useToken(by("token").value.trim());
  try {
    await request("status");
  } catch (failure) {
    by("refused").hidden = false;
    const isRefused = failure.status === 401;
    write(
      by("refused"),
      isRefused ? "The server does not accept this token." : "The server did not answer. Try again.",
    );
    return;
  }
  by("token").value = "";
  by("refused").hidden = true;
  server.isAllowed = true;
  await showView();
  data.retry(); // what was refused without the token
}

// Views ---------------------------------------------------------------------------------------------------

/** #server, #data, #data/KEY, or #data/ for a new key: in the address, so that back and bookmarks work. */
async function showView() {
  const [, view, key] = /^#(server|data)(?:\/(.*))?$/.exec(location.hash) ?? [null, "server"];
  by("login").hidden = server.isAllowed;
  by("server").hidden = !server.isAllowed || view !== "server";
  by("data").hidden = !server.isAllowed || view !== "data";
  for (const link of by("views").children) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (server.isAllowed && view === "data") await data.open(key ?? null);
}

by("address").textContent = location.host;
by("server").append(live.element, element("div", { class: "rows" }, processes.element, events.element));
by("login").addEventListener("submit", onToken);
window.addEventListener("hashchange", showView);
repeat(askHealth, false);
for (const ask of [askMetrics, askStatus]) repeat(ask, true);
showView();
