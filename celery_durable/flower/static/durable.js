// The Durable pages come rendered from the server; this keeps them up to date and lets people act on them.

const root = document.querySelector(".dur");
const page = root.dataset.page;
const $ = (selector, from = root) => from.querySelector(selector);
const $$ = (selector, from = root) => [...from.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const remember = (key, value) => { try { localStorage.setItem(`durable-${key}`, JSON.stringify(value)); } catch { /* private window */ } };
const remembered = (key, otherwise) => {
  try { return JSON.parse(localStorage.getItem(`durable-${key}`)) ?? otherwise; } catch { return otherwise; }
};

// --- requests ---------------------------------------------------------------------------------------------------

class Problem extends Error {}
let expired = false; // the session: whatever is asked for now leads to a login

async function ask(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", redirect: "manual", ...options }); // a login may be elsewhere
  } catch {
    throw new Problem("Flower does not answer");
  }
  const isJson = (response.headers.get("Content-Type") || "").includes("application/json");
  if (response.type === "opaqueredirect" || (response.ok && !isJson)) {
    expired = true;
    hush();
    throw new Problem("Your session has ended: reload the page");
  }
  const answer = isJson ? await response.json().catch(() => ({})) : {};
  if (!response.ok) throw new Problem(answer.error?.message || `Flower answered ${response.status}`);
  return answer;
}

function act(url, body) {
  const token = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
  const headers = { "Content-Type": "application/json", "X-Durable-Action": "1" };
  if (token) headers["X-XSRFToken"] = decodeURIComponent(token[1]);
  return ask(url, { method: "POST", headers, body: JSON.stringify(body) });
}

// --- times ------------------------------------------------------------------------------------------------------

let ahead = 0; // milliseconds by which the database's clock is ahead of this one
function span(seconds) {
  if (seconds < 0.9995) return `${Math.round(Math.max(seconds, 0) * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  for (const [unit, name, smaller, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= unit) {
      const rest = Math.floor((whole % unit) / smaller);
      return `${Math.floor(whole / unit)} ${name}${rest ? ` ${rest} ${small}` : ""}`;
    }
  }
  return `${whole} s`;
}
const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const hour = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
function short(iso) { // the day only if it is not today
  const at = new Date(iso);
  return (at.toDateString() === new Date(Date.now() + ahead).toDateString() ? hour : clock).format(at);
}

function tick() {
  const now = Date.now() + ahead;
  for (const element of $$("[data-since]")) {
    const text = span((now - Date.parse(element.dataset.since)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
  for (const element of $$("time[data-relative]")) {
    const seconds = (Date.parse(element.dateTime) - now) / 1000;
    const text = seconds > 0 ? `in ${span(seconds)}` : `${span(-seconds)} ago`;
    if (element.textContent !== text) element.textContent = text;
    if (!element.title) element.title = clock.format(new Date(element.dateTime));
  }
}

function settle() { // after content has come in
  const now = $("[data-now]")?.dataset.now;
  if (now) ahead = Date.parse(now) - Date.now();
  for (const element of $$("time[data-clock]")) {
    element.textContent = clock.format(new Date(element.dateTime));
    element.title = element.dateTime;
  }
  tick();
}

// --- live -------------------------------------------------------------------------------------------------------

const status = $("[data-live]");
function say(state, words) {
  if (document.hidden && state !== "paused") return; // an answer that came after the tab was hidden
  if (!status || (status.dataset.is === state && status.textContent === words)) return;
  status.dataset.is = state;
  status.textContent = words;
}

function busy() { // do not pull content away from under a hand
  const open = $("details.dur-menu[open], .dur-ticks[data-dragging]");
  const typing = document.activeElement?.matches?.("[data-section] input:not([type=checkbox])");
  return Boolean(open || typing);
}

function replace(section, html) {
  const old = $(`[data-section="${section}"]`);
  if (!old) return;
  const before = new Set($$("[data-id]", old).map((row) => row.dataset.id));
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const where = focused && [focused.tagName, $$(focused.tagName, old).indexOf(focused)];
  const open = $$("details", old).map((details) => details.open);
  const template = document.createElement("template");
  template.innerHTML = html;
  old.replaceChildren(template.content);
  if ($$("details", old).length === open.length) $$("details", old).forEach((details, n) => { details.open = open[n]; });
  if (where) $$(where[0], old)[where[1]]?.focus({ preventScroll: true });
  if (before.size) $$("[data-id]", old).forEach((row) => before.has(row.dataset.id) || row.classList.add("dur-new"));
}

const known = new Map((root.dataset.known || "").split(",").filter(Boolean).map((pair) => pair.split(":")));
let refreshing = false;
let again = false;
let final = root.dataset.final === "1";
let asked = 0;

async function refresh() {
  if (refreshing || busy()) { again = true; return; }
  refreshing = true;
  again = false;
  asked = Date.now();
  try {
    const url = new URL(location.href);
    url.hash = "";
    url.searchParams.set("part", "live");
    if (known.size) url.searchParams.set("known", [...known].map((pair) => pair.join(":")).join(","));
    const answer = await ask(url);
    const chosen = new Set($$("[data-check]:checked").map((box) => box.value));
    for (const [section, html] of Object.entries(answer.sections || {})) replace(section, html);
    for (const [section, hash] of Object.entries(answer.hashes || {})) known.set(section, hash);
    $$("[data-check]").forEach((box) => { box.checked = chosen.has(box.value); });
    if (answer.final !== undefined) final = answer.final;
    settle();
    dressed();
    say(final ? "done" : "live", final ? "Ended" : "Live");
  } catch (error) {
    say("trouble", error.message);
  } finally {
    refreshing = false;
    if (again) setTimeout(refresh, 1000);
  }
}

let source = null;
let failures = 0;
let polling = null;
function listen() {
  if (!root.dataset.stream || source || expired || document.hidden || root.dataset.older === "1") return;
  if (failures >= 3) {
    polling ??= setInterval(() => { if (!document.hidden && !expired) refresh(); }, 3000);
    return;
  }
  source = new EventSource(root.dataset.stream);
  source.addEventListener("changed", () => {
    failures = 0;
    const pause = Math.max(0, 400 - (Date.now() - asked));
    clearTimeout(listen.soon);
    listen.soon = setTimeout(refresh, pause);
  });
  source.addEventListener("trouble", () => say("trouble", "Postgres does not answer"));
  source.onerror = () => {
    failures += 1;
    say("trouble", "Reconnecting");
    hush();
    setTimeout(listen, 1000 * failures);
  };
}
function hush() { // a browser has few connections to a host: a hidden tab gives its own back
  source?.close();
  source = null;
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { hush(); say("paused", "Paused"); } else { listen(); refresh(); }
});
addEventListener("pagehide", hush);
addEventListener("pageshow", (event) => { if (event.persisted) listen(); });

// --- timeline ---------------------------------------------------------------------------------------------------

const zoom = { from: 0, to: 100, folded: remembered("folded", true), find: "", trouble: false };

function dressTimeline() {
  const card = $("[data-timeline]");
  if (!card) return;
  card.classList.toggle("dur-folded", zoom.folded);
  const fold = $("[data-fold]", card);
  if (fold) fold.setAttribute("aria-pressed", String(zoom.folded));
  card.style.setProperty("--z0", zoom.from);
  card.style.setProperty("--zk", 100 / (zoom.to - zoom.from));
  drawTicks(card);
  const find = $("[data-find]", card);
  if (find) find.value = zoom.find;
  filterSteps(card);
}

function drawTicks(card) {
  const axis = $("[data-ticks]", card);
  const pieces = JSON.parse(card.dataset.pieces);
  const whole = Number(zoom.folded ? card.dataset.folded : card.dataset.seconds);
  const map = (from, to, value) => { // along the pieces, from one of their columns to the other
    for (let n = 1; n < pieces.length; n += 1) {
      const [before, after] = [pieces[n - 1], pieces[n]];
      if (value <= after[from]) {
        const share = after[from] > before[from] ? (value - before[from]) / (after[from] - before[from]) : 0;
        return before[to] + share * (after[to] - before[to]);
      }
    }
    return pieces.at(-1)[to];
  };
  const secondAt = (percent) => (zoom.folded ? map(1, 0, (percent / 100) * whole) : (percent / 100) * whole);
  const placeOf = (second) => ((zoom.folded ? map(0, 1, second) : second) / whole) * 100;
  const [first, last] = [secondAt(zoom.from), secondAt(zoom.to)];
  const rough = (last - first) / Math.max(2, Math.min(8, axis.clientWidth / 90));
  const nice = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].find((step) => step >= rough)
    ?? Math.ceil(rough / 86400) * 86400;
  const small = 10 ** Math.floor(Math.log10(Math.max(rough, 1e-4)));
  const step = rough >= 0.5 ? nice : [1, 2, 5, 10].map((n) => n * small).find((n) => n >= rough);
  const labels = [];
  let edge = -Infinity;
  for (let n = Math.ceil(first / step); n * step <= last && labels.length < 40; n += 1) {
    const left = ((placeOf(n * step) - zoom.from) / (zoom.to - zoom.from)) * axis.clientWidth;
    if (left < edge + 70 || left > axis.clientWidth - 20) continue; // folded time brings labels together
    edge = left;
    const label = make("span", { textContent: n ? `+${span(n * step)}` : "0" });
    label.style.left = `${left}px`;
    labels.push(label);
  }
  axis.replaceChildren(...labels);
}

function filterSteps(card) {
  const table = $(".dur-steps", card);
  table.classList.toggle("dur-only-trouble", zoom.trouble);
  $("[data-errors]", card)?.setAttribute("aria-pressed", String(zoom.trouble));
  const text = zoom.find.toLowerCase();
  for (const row of $$("tr.dur-step", table)) row.classList.toggle("dur-unfound", text !== "" && !row.dataset.step.toLowerCase().includes(text));
}

function zoomTo(from, to) {
  const wide = Math.min(100, Math.max(0.05, to - from));
  zoom.from = Math.max(0, Math.min(100 - wide, from));
  zoom.to = zoom.from + wide;
  dressTimeline();
}
function zoomBy(factor, at = (zoom.from + zoom.to) / 2) {
  zoomTo(at - (at - zoom.from) * factor, at + (zoom.to - at) * factor);
}
const fit = () => zoomTo(0, 100);

root.addEventListener("wheel", (event) => {
  const track = event.target.closest?.(".dur-track, .dur-axis");
  if (!track || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  const box = track.getBoundingClientRect();
  zoomBy(event.deltaY > 0 ? 1.25 : 0.8, zoom.from + ((event.clientX - box.left) / box.width) * (zoom.to - zoom.from));
}, { passive: false });
root.addEventListener("pointerdown", (event) => {
  const axis = event.target.closest?.("[data-ticks]");
  if (!axis) return;
  const box = axis.getBoundingClientRect();
  const start = event.clientX - box.left;
  const brush = make("i", { className: "dur-brush" });
  axis.append(brush);
  axis.dataset.dragging = "1";
  axis.setPointerCapture(event.pointerId);
  const ends = (other) => [start, other.clientX - box.left].map((x) => Math.max(0, Math.min(box.width, x))).sort((a, b) => a - b);
  axis.onpointermove = (other) => {
    const [from, to] = ends(other);
    brush.style.left = `${from}px`;
    brush.style.width = `${to - from}px`;
  };
  axis.onpointerup = axis.onpointercancel = (other) => {
    axis.onpointermove = axis.onpointerup = axis.onpointercancel = null;
    delete axis.dataset.dragging;
    brush.remove();
    const [from, to] = ends(other);
    const scale = (zoom.to - zoom.from) / box.width;
    if (to - from > 4) zoomTo(zoom.from + from * scale, zoom.from + to * scale);
  };
});
root.addEventListener("dblclick", (event) => { if (event.target.closest?.(".dur-axis")) fit(); });

// --- steps and payloads -----------------------------------------------------------------------------------------

const drawer = $('[data-dialog="step"]');

function viewer(title, query) {
  const pre = make("pre", { className: "dur-code", tabIndex: 0, textContent: "…" });
  const find = make("input", { type: "search", className: "form-control form-control-sm", placeholder: "Find", ariaLabel: `Find in ${title}` });
  const copy = make("button", { type: "button", className: "btn btn-sm btn-outline-secondary", textContent: "Copy" });
  const raw = make("a", { className: "btn btn-sm btn-outline-secondary", textContent: "Download", href: `${root.dataset.raw}?${query}` });
  const note = make("span", { className: "dur-muted" });
  const section = make("section", {}, make("h3", { textContent: title }), make("div", { className: "dur-viewer-tools" }, find, copy, raw, note), pre);
  let text = "";
  ask(`${root.dataset.payload}?${query}`).then((payload) => {
    text = payload.text ?? "";
    pre.textContent = text || "(empty)";
    note.textContent = [payload.form === "json" ? "" : payload.form, payload.note || ""].filter(Boolean).join(" · ");
  }).catch((error) => { pre.textContent = error.message; });
  copy.onclick = () => copyText(text, copy);
  find.oninput = () => mark(pre, text, find.value);
  return section;
}

function mark(pre, text, wanted) {
  if (!wanted) { pre.textContent = text; return; }
  const parts = [];
  const lower = text.toLowerCase();
  const needle = wanted.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(needle); at >= 0 && parts.length < 2000; at = lower.indexOf(needle, from)) {
    parts.push(text.slice(from, at), make("mark", { textContent: text.slice(at, at + needle.length) }));
    from = at + needle.length;
  }
  pre.replaceChildren(...parts, text.slice(from));
  $("mark", pre)?.scrollIntoView({ block: "nearest" });
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or no https
    const area = make("textarea", { value: text });
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "✓";
  setTimeout(() => { button.textContent = before; }, 1200);
}

function openDrawer(title, ...content) {
  $("[data-title]", drawer).textContent = title;
  $("[data-body]", drawer).replaceChildren(...content);
  if (!drawer.open) drawer.showModal();
}

function earlierTries(tries, all) {
  const rows = tries.toReversed().map(([number, at, seconds, attempt, error]) => make("tr", {},
    make("td", { className: "dur-num", textContent: number }),
    make("td", { className: "text-nowrap", textContent: short(at), title: clock.format(new Date(at)) }),
    make("td", { className: "dur-num", textContent: span(seconds) }),
    make("td", { className: "dur-num", textContent: attempt }),
    make("td", { className: "dur-wide", textContent: error ?? "" })));
  const heads = ["Try", "Failed at", "Took", "Attempt", "Error"].map((textContent) => make("th", { scope: "col", textContent }));
  const missing = tries.length ? tries[0][0] - 1 : 0;
  const title = make("h3", { textContent: `Failed tries before this one (${all - 1})` });
  const table = make("table", { className: "dur-table" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  const note = make("p", { className: "dur-muted", textContent: missing ? `The ${missing} before these are only counted.` : "" });
  return make("section", {}, title, make("div", { className: "dur-scroll", tabIndex: 0 }, table), note);
}

function openStep(row) {
  const step = row.dataset;
  const facts = make("p", { className: "dur-facts" });
  for (const words of [step.outcome, `${step.tries} ${step.tries === "1" ? "try" : "tries"}`, `attempt ${step.attempt}`, `took ${step.took}`, `stored ${clock.format(new Date(step.stored))}`]) facts.append(make("span", { textContent: words }));
  const content = [facts];
  if (step.error) content.push(make("section", {}, make("h3", { textContent: "Error" }), make("pre", { className: "dur-code", textContent: step.error, tabIndex: 0 })));
  if (step.earlier) content.push(earlierTries(JSON.parse(step.earlier), Number(step.tries)));
  const query = (part) => new URLSearchParams({ part, step: step.step });
  const calls = $$("[data-call-of]").filter((one) => one.dataset.callOf === step.step).map((one) => one.cloneNode(true));
  if (calls.length) {
    const head = $("[data-calls] thead").cloneNode(true);
    const table = make("table", { className: "dur-table dur-calls" }, head, make("tbody", {}, ...calls));
    content.push(make("section", {}, make("h3", { textContent: "External calls" }), make("div", { className: "dur-scroll", tabIndex: 0 }, table)));
  }
  if (root.dataset.payloads === "1") {
    if (step.bytes !== "") content.push(viewer("Output", query("output")));
    content.push(viewer("Called with", query("input")));
    if (root.dataset.state) {
      const before = make("section", {}, make("h3", { textContent: "State at this checkpoint" }));
      const button = make("button", { type: "button", className: "btn btn-sm btn-outline-secondary", textContent: "Show what the run knew here" });
      button.onclick = () => ask(`${root.dataset.state}?${query("")}`).then((answer) => {
        before.replaceChildren(make("h3", { textContent: "State at this checkpoint" }), ...answer.steps.map((one) => make("details", {}, make("summary", { textContent: `${one.key}: ${one.outcome}` }), make("pre", { className: "dur-code", textContent: one.text, tabIndex: 0 }))));
      }).catch((error) => { button.textContent = error.message; });
      before.append(button);
      content.push(before);
    }
  } else {
    content.push(make("p", { className: "dur-muted", textContent: "Payloads are hidden: Flower has no authentication. --durable_payloads=show shows them to everybody." }));
  }
  openDrawer(step.step, ...content);
}

// --- actions ----------------------------------------------------------------------------------------------------

const dialog = $('[data-dialog="action"]');
const ACTIONS = {
  resume: ["Resume", "Execute it again from its last checkpoint. Finished steps stay and do not run again; retries count from zero. Children that did not succeed are resumed when it waits for them again."],
  retry: ["Retry now", "Do not wait for the retry's time: try again at once."],
  signal: ["Send signal", "Send it what it waits for."],
  fork: ["Fork", "Start a new run with the checkpoints before a step. This run stays as it is."],
  cancel: ["Cancel", "End it for good: at once if it waits, at its next step if it is being executed."],
};

// What an action asks for beside a reason: fields, and how they become part of what is sent.
function field(label, control) { return make("label", {}, label, " ", control); }
function json(text, label) {
  try { return JSON.parse(text); } catch { throw new Problem(`${label} is not JSON; a text needs its quotes`); }
}
const EXTRA = {
  signal(button) {
    const name = make("input", { className: "form-control", value: button.dataset.awaits, required: true });
    const payload = make("textarea", { className: "form-control", rows: 4, value: "null", spellcheck: false });
    return { fields: [field("Signal", name), field("Payload, as JSON", payload)], body: () => ({ name: name.value, payload: json(payload.value, "The payload") }), silent: true };
  },
  fork(button) {
    const first = make("select", { className: "form-select" }, make("option", { value: "", textContent: "From the very beginning" }));
    for (const row of $$("tr.dur-step")) first.append(make("option", { value: row.dataset.step, textContent: row.dataset.step }));
    const failed = $$("tr.dur-step").find((row) => row.dataset.outcome === "error");
    if (failed) first.value = failed.dataset.step;
    const plan = make("p", { className: "dur-muted" });
    const edited = make("textarea", { className: "form-control", rows: 4, spellcheck: false });
    let original = "";
    const show = () => act(button.dataset.url, { dry_run: true, ...(first.value ? { from_step: first.value } : {}) }).then((answer) => {
      const list = (keys) => (keys.length > 12 ? `${keys.slice(0, 12).join(", ")} and ${keys.length - 12} more` : keys.join(", ") || "none");
      plan.textContent = `Kept: ${list(answer.kept)}. Will run again: ${list(answer.again)}, and what comes after.`;
    }).catch((error) => { plan.textContent = error.message; });
    first.onchange = show;
    show();
    const fields = [field("First step to run again", first), plan];
    if (root.dataset.payloads === "1") {
      fields.push(field("Arguments, which may be edited", edited));
      ask(`${root.dataset.payload}?part=arguments`).then((answer) => { if (answer.whole && answer.form === "json") edited.value = original = answer.text; });
    }
    const body = () => {
      const sent = first.value ? { from_step: first.value } : {};
      if (edited.value !== original) {
        const { args, kwargs } = json(edited.value, "Arguments");
        Object.assign(sent, { args, kwargs });
      }
      return sent;
    };
    return { fields, body, then: (answer) => { location.href = button.dataset.run.replace("__id__", encodeURIComponent(answer.id)); } };
  },
};

function confirmAction(name, words, work, extra) {
  $("[data-title]", dialog).textContent = ACTIONS[name][0];
  $("[data-words]", dialog).textContent = words;
  $("[data-extra]", dialog).replaceChildren(...(extra?.fields ?? []));
  const [button, error, progress] = ["[data-do]", "[data-error]", "progress"].map((selector) => $(selector, dialog));
  button.textContent = ACTIONS[name][0];
  button.disabled = false;
  error.hidden = true;
  progress.hidden = true;
  const form = $("form", dialog);
  form.elements.reason.required = !extra?.silent; // a signal is kept with its sender, and explains itself
  form.elements.reason.closest("label").hidden = Boolean(extra?.silent);
  form.onsubmit = async (event) => {
    if (event.submitter?.value !== "do") return;
    event.preventDefault();
    button.disabled = true;
    error.hidden = true;
    try {
      const left = await work(form.elements.reason.value, progress);
      if (left) throw new Problem(left);
      dialog.close();
      form.reset();
    } catch (problem) {
      error.textContent = problem.message;
      error.hidden = false;
      button.disabled = false;
    }
    refresh();
  };
  dialog.showModal();
  $("input:not([hidden]), select", form)?.focus();
}

function chosenIds() { return $$("[data-check]:checked").map((box) => box.value); }
function dressBulk() {
  const bar = $("[data-bulk-bar]");
  if (!bar) return;
  const count = chosenIds().length;
  const all = $("[data-all-matching]", bar)?.checked;
  $("[data-chosen]", bar).textContent = all ? "All that match" : count ? `${count} chosen` : "Nothing chosen";
}

async function bulk(name) {
  const everything = $("[data-all-matching]")?.checked;
  let ids = chosenIds();
  let words = "";
  if (everything) {
    const filter = {};
    for (const [key, value] of new URLSearchParams($("[data-bulk-bar]").dataset.query)) filter[key] = key in filter ? [filter[key], value].flat() : value;
    const answer = await act(`${root.dataset.bulk}`, { action: name, filter, dry_run: true });
    ids = answer.ids;
    words = answer.children ? ` ${answer.children.toLocaleString()} children go on with them.` : "";
    words += answer.more ? " The filter matches more; these are the newest." : "";
  }
  if (!ids.length) { say("trouble", "Choose runs first"); return; }
  confirmAction(name, `${ids.length.toLocaleString()} runs. ${ACTIONS[name][1]}${words}`, async (reason, progress) => {
    progress.hidden = false;
    progress.max = ids.length;
    let changed = 0;
    const left = [];
    for (let at = 0; at < ids.length && dialog.open; at += 100) {
      const answer = await act(root.dataset.bulk, { action: name, ids: ids.slice(at, at + 100), reason });
      changed += answer.changed;
      left.push(...answer.runs.filter((run) => run.error));
      progress.value = Math.min(at + 100, ids.length);
    }
    $$("[data-check], [data-check-all]").forEach((box) => { box.checked = false; });
    dressBulk();
    return left.length ? `${changed} done, ${left.length} left alone: ${left[0].error.message}` : "";
  });
}

// --- list: columns and saved views ------------------------------------------------------------------------------

const USUALLY_HIDDEN = ["worker", "queue", "version"];
function dressColumns() {
  const hidden = new Set(remembered("hidden-columns", USUALLY_HIDDEN));
  let style = document.getElementById("dur-columns");
  if (!style) { style = make("style", { id: "dur-columns" }); document.head.append(style); }
  style.textContent = [...hidden].map((column) => `.dur-table [data-col="${CSS.escape(column)}"]{display:none}`).join("");
  const menu = $("[data-columns] .dur-menu-body");
  if (!menu || menu.childElementCount) return;
  for (const head of $$("[data-runs] th[data-col]")) {
    const box = make("input", { type: "checkbox", checked: !hidden.has(head.dataset.col) });
    box.onchange = () => {
      const now = new Set(remembered("hidden-columns", USUALLY_HIDDEN));
      if (box.checked) now.delete(head.dataset.col); else now.add(head.dataset.col);
      remember("hidden-columns", [...now]);
      dressColumns();
    };
    menu.append(make("label", {}, box, head.textContent));
  }
}

function dressSaved() {
  const menu = $("[data-saved] .dur-menu-body");
  if (!menu) return;
  const views = remembered("views", {});
  const rows = Object.entries(views).map(([name, query]) => {
    const drop = make("button", { type: "button", textContent: "✕", ariaLabel: `Forget ${name}` });
    drop.onclick = () => { delete views[name]; remember("views", views); dressSaved(); };
    return make("div", { className: "dur-saved-row" }, make("a", { href: `?${query}`, textContent: name }), drop);
  });
  const name = make("input", { className: "form-control form-control-sm", placeholder: "Name of this view", ariaLabel: "Name of this view" });
  const save = make("button", { type: "button", className: "btn btn-sm btn-outline-secondary", textContent: "Save this view" });
  save.onclick = () => {
    if (!name.value.trim()) { name.focus(); return; }
    views[name.value.trim()] = $("[data-bulk-bar]").dataset.query;
    remember("views", views);
    dressSaved();
  };
  menu.replaceChildren(...rows, name, save);
}

// --- everything that is clicked or typed ------------------------------------------------------------------------

root.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  let hit;
  if ((hit = on("[data-step-open]"))) openStep(hit.closest("tr"));
  else if ((hit = on("[data-goto]"))) {
    event.preventDefault();
    const row = $$("tr.dur-step").find((one) => one.dataset.step === hit.dataset.goto);
    if (row) openStep(row);
  }
  else if ((hit = on("[data-open]"))) {
    const { open: part, number } = hit.dataset;
    const query = new URLSearchParams(number === undefined ? { part } : { part, number });
    openDrawer({ result: "Result", signal: "Signal" }[part] ?? "Arguments", viewer(hit.textContent.trim(), query));
  } else if ((hit = on("[data-copy]"))) copyText(hit.dataset.copy, hit);
  else if ((hit = on("[data-copy-next]"))) copyText(hit.nextElementSibling.textContent, hit);
  else if ((hit = on("[data-zoom]"))) ({ in: () => zoomBy(0.5), out: () => zoomBy(2), fit })[hit.dataset.zoom]();
  else if ((hit = on("[data-fold]"))) {
    zoom.folded = !zoom.folded;
    remember("folded", zoom.folded);
    hit.textContent = zoom.folded ? "Idle time folded" : "Fold idle time";
    fit();
  } else if (on("[data-errors]")) { zoom.trouble = !zoom.trouble; dressTimeline(); }
  else if ((hit = on("[data-action]"))) {
    const { action, url } = hit.dataset;
    const extra = EXTRA[action]?.(hit);
    confirmAction(action, ACTIONS[action][1], async (reason) => {
      const answer = await act(url, { ...(extra?.silent ? {} : { reason }), ...(extra?.body() ?? {}) });
      extra?.then?.(answer);
    }, extra);
  } else if ((hit = on("[data-bulk-action]"))) bulk(hit.dataset.bulkAction).catch((error) => say("trouble", error.message));
  else if ((hit = on("[data-check-all]"))) { $$("[data-check]").forEach((box) => { box.checked = hit.checked; }); dressBulk(); }
  else if (on("[data-check], [data-all-matching]")) dressBulk();
  for (const menu of $$("details.dur-menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
root.addEventListener("input", (event) => {
  if (event.target.matches("[data-find]")) { zoom.find = event.target.value; filterSteps($("[data-timeline]")); }
});
root.addEventListener("change", (event) => {
  const form = event.target.closest("[data-filters]");
  if (form && event.target.matches("select")) form.requestSubmit();
});
$("[data-filters]")?.addEventListener("submit", (event) => { // a URL without empty parts
  event.preventDefault();
  const query = new URLSearchParams([...new FormData(event.target)].filter(([, value]) => value !== ""));
  location.search = query;
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || drawer?.open || dialog?.open) return;
  const steps = { "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(2), 0: fit };
  if ($("[data-timeline]") && steps[event.key]) { steps[event.key](); event.preventDefault(); }
  if (event.key === "/" && $("[type=search]")) { $("[type=search]").focus(); event.preventDefault(); }
  const rows = $$("[data-step-open], .dur-run");
  const here = rows.indexOf(document.activeElement);
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (step && rows.length && (here >= 0 || event.key.length === 1)) {
    rows[Math.max(0, Math.min(rows.length - 1, here + step))].focus();
    event.preventDefault();
  }
});
addEventListener("resize", () => dressTimeline());

function dressed() { // what the server does not know: choices of this browser
  dressTimeline();
  dressColumns();
  dressBulk();
}

settle();
dressed();
dressSaved();
setInterval(tick, 1000);
if (root.dataset.retry === "1") setTimeout(() => location.reload(), 5000);
if (page === "runs" || page === "run") {
  say(final ? "done" : "live", final ? "Ended" : "Live");
  listen();
  setInterval(() => { if (!document.hidden && !final && !expired && root.dataset.older !== "1" && Date.now() - asked > 5000) refresh(); }, 1000);
}
if (page === "overview") setInterval(() => { if (!document.hidden && !expired) refresh(); }, 10000);
