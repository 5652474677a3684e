"use strict";

// Every string of the run is set as text, never as HTML. Jobs run one after the other, so that no key is lost and each
// decides on the row that is shown; a decision counts when the server says that it is on the disk.

const find = (id) => document.getElementById(id);
const SUGGESTION_KEYS = ["a", "s", "d"];
const KEPT_ROWS = 8;
const view = { state: null, row: null, page: null, rows: new Map() };

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

let jobs = Promise.resolve();
function inTurn(job) {
  jobs = jobs.then(async () => {
    await job();
    find("trouble").hidden = true;
  }).catch((error) => {
    const away = error instanceof TypeError;
    find("trouble").textContent = away
      ? "The server does not answer, so this was not saved. All decisions before it are on the disk: run `unlearn review` again and open the address that it prints."
      : error.message;
    find("trouble").hidden = false;
  });
  return jobs;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function look(one, alt) {
  return one.picture ? make("img", { src: one.picture, alt }) : make("span", { class: "text" }, one.text);
}

function told(decision) {
  if (decision === null) return "not decided";
  return decision.action === "relabel" ? `relabel to ${decision.label}` : decision.action;
}

const percent = (share) => `${Math.round(100 * share)} %`;

function number(value) {
  return Math.abs(value) >= 1000 || value === 0 ? value.toFixed(0) : value.toPrecision(3);
}

// What is shown

function showProgress(progress) {
  Object.assign(view.state, progress);
  const { counts, written, command, before } = view.state;
  find("done").max = counts.rows;
  find("done").value = counts.decided;
  find("count").textContent = `${counts.decided} of ${counts.rows} decided`;
  find("tally").textContent = `${counts.relabel} relabel, ${counts.remove} remove, ${counts.keep} keep`;
  find("finish").disabled = counts.decided === 0;
  find("written").hidden = written === null && counts.decided < counts.rows;
  if (find("written").hidden) return;
  const open = counts.rows - counts.decided;
  const rest = open ? ` ${open} rows are not decided and stay as they are.` : "";
  const kept = before ? ` What stood there before the review is in ${before}.` : "";
  find("written").replaceChildren(
    ...(written === null
      ? [make("strong", {}, "All rows are decided."), " Press w to write decisions.csv."]
      : [make("strong", {}, `${written} is written.`), rest + kept, ...next(counts, command)]),
  );
}

function next(counts, command) {
  if (counts.relabel + counts.remove === 0) return [" Every row is kept, so there is nothing to repair."];
  return [make("span", {}, "Next, in a terminal: "), make("code", {}, command)];
}

function button(key, action, label, text) {
  const made = make("button", { class: action, "aria-keyshortcuts": key, "data-action": action }, make("kbd", {}, key), text);
  if (label !== null) made.dataset.label = label;
  return made;
}

function showRow(row) {
  view.row = row;
  find("place").textContent = `Row ${row.at + 1} of ${view.state.counts.rows}, score ${number(row.score)}`;
  find("row-title").textContent = row.id;
  find("given").textContent = row.given;
  find("suggested").textContent = row.suggested.length ? row.suggested[0] : "–";
  find("predicted").replaceChildren(String(row.predicted), make("small", {}, percent(row.probability)));
  find("look").replaceChildren(
    row.picture ? look(row, `Picture of row ${row.id}, given label ${row.given}`) : make("p", { class: "text" }, row.text),
  );
  const focused = [...find("choices").children].indexOf(document.activeElement);
  find("choices").replaceChildren(
    button("k", "keep", null, `Keep ${row.given}`),
    ...row.suggested.slice(0, SUGGESTION_KEYS.length).map((label, k) =>
      button(SUGGESTION_KEYS[k], "relabel", label, `Relabel ${label}`)),
    button("x", "remove", null, "Remove"),
  );
  for (const choice of find("choices").children) {
    const [action, label] = chosen(choice), made = row.decision;
    choice.setAttribute("aria-pressed", made !== null && made.action === action && made.label === label);
  }
  if (focused >= 0) find("choices").children[Math.min(focused, find("choices").children.length - 1)].focus();
  find("decision").textContent = row.decision ? `Decided: ${told(row.decision)}` : "Not decided yet";
  find("decision").className = `decision ${row.decision ? row.decision.action : ""}`;
  find("label").value = "";
  for (const side of ["alike", "against"]) {
    find(side).replaceChildren(...row[side].map(neighbour));
    find(side).parentElement.hidden = row[side].length === 0;
  }
  const none = row.alike.length + row.against.length === 0;
  find("note").textContent = none
    ? `No influential rows: ${view.state.neighbours_note || "none is known for this row"}.`
    : `By influence through the last layer; unlearn explain --query ${row.id} takes all layers.`;
  for (const id of ["row", "beside", "list"]) find(id).hidden = false;
  history.replaceState(null, "", `#${row.at}`);
}

function neighbour(one) {
  return make("li", {}, make("figure", { class: "card" },
    look(one, `Picture of training row ${one.id}, label ${one.given}`),
    make("figcaption", {},
      make("span", { class: "labels" }, String(one.given)),
      make("span", { class: "id" }, one.id),
      make("span", { class: "change" }, `influence ${number(one.influence)}`))));
}

function showPage(page) {
  view.page = page;
  const last = page.from + page.rows.length;
  find("rows").start = page.from + 1;
  find("rows").replaceChildren(...page.rows.map((one) => make("li", {},
    make("button", { "data-at": one.at }, look(one, ""), make("span", { class: "what" })))));
  find("range").textContent = `${page.from + 1} to ${last} of ${view.state.counts.rows}`;
}

function markPage() {
  for (const one of view.page.rows) {
    const thumb = find("rows").querySelector(`[data-at="${one.at}"]`);
    const { action, label } = one.decision || { action: "open" };
    thumb.className = action;
    thumb.lastChild.textContent = { open: one.given, relabel: `${one.given} → ${label}` }[action] ?? action;
    thumb.setAttribute("aria-label", `Row ${one.id}, given ${one.given}, ${told(one.decision)}`);
    thumb.setAttribute("aria-current", one.at === view.row.at);
  }
}

// What is done: these are called in turn

async function fetchRow(at) {
  if (!view.rows.has(at)) {
    view.rows.set(at, ask(`row?at=${at}`).catch((error) => {
      view.rows.delete(at);
      throw error;
    }));
    if (view.rows.size > KEPT_ROWS) view.rows.delete(view.rows.keys().next().value);
  }
  return view.rows.get(at);
}

async function go(wanted) {
  const at = Math.min(Math.max(wanted, 0), view.state.counts.rows - 1);
  const size = view.state.page_rows, start = Math.floor(at / size) * size;
  const [row, page] = await Promise.all([
    fetchRow(at),
    view.page && view.page.from === start ? view.page : ask(`page?at=${start}`),
  ]);
  showRow(row);
  if (page !== view.page) showPage(page);
  markPage();
  if (at + 1 < view.state.counts.rows) fetchRow(at + 1).catch(() => {});
}

async function decide(action, label) {
  const { id, at } = view.row, decision = { action, label };
  showProgress(await ask("decide", { row: id, ...decision }));
  view.rows.delete(at);
  const listed = view.page.rows.find((one) => one.at === at);
  if (listed) listed.decision = decision;
  const { counts, next: following } = view.state;
  tell(`${id}: ${told(decision)}. ${counts.decided} of ${counts.rows} decided.`);
  await go(following === null ? at : following);
}

async function relabel(label) {
  await (label === view.row.given ? decide("keep", null) : decide("relabel", label));
}

async function undo() {
  const { undone, ...progress } = await ask("undo", {});
  showProgress(progress);
  tell(undone === null ? "Nothing to undo." : "Undone.");
  if (undone === null) return;
  view.rows.delete(undone);
  view.page = null;
  await go(undone);
}

async function nextOpen() {
  const { next: following } = await ask(`next?at=${view.row.at}`);
  if (following === null) tell("All rows are decided.");
  else await go(following);
}

async function finish() {
  if (view.state.counts.decided === 0) return;
  showProgress(await ask("finish", {}));
  tell("decisions.csv is written.");
  find("written").scrollIntoView({ block: "nearest" });
}

function tell(text) {
  find("live").textContent = text;
}

const page = (step) => (Math.floor(view.row.at / view.state.page_rows) + step) * view.state.page_rows;
const ACTS = {
  back: () => go(view.row.at - 1),
  forward: () => go(view.row.at + 1),
  open: nextOpen,
  undo,
  earlier: () => go(page(-1)),
  later: () => go(page(1)),
};
const KEYS = {
  ArrowLeft: ACTS.back, ArrowRight: ACTS.forward, n: nextOpen, u: undo, "[": ACTS.earlier, "]": ACTS.later, w: finish,
};

async function press(key) {
  const choice = find("choices").querySelector(`[aria-keyshortcuts="${CSS.escape(key)}"]`);
  if (choice) await decide(...chosen(choice));
  else if (isClass(key)) await relabel(Number(key));
  else if (KEYS[key]) await KEYS[key]();
}

function chosen(choice) {
  const { action, label } = choice.dataset;
  return [action, label === undefined ? null : Number(label)];
}

function isClass(key) {
  return view.state.classes <= 10 && /^[0-9]$/.test(key) && Number(key) < view.state.classes;
}

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (target.tagName === "INPUT") {
    if (key === "Escape") target.blur();
    return;
  }
  const undoing = (event.ctrlKey || event.metaKey) && key === "z";
  if (!view.row || ((event.ctrlKey || event.metaKey || event.altKey) && !undoing)) return;
  if (key === "l") {
    event.preventDefault();
    find("label").focus();
  } else if (key === "?") {
    find("help").open = !find("help").open;
    find("help").scrollIntoView({ block: "nearest" });
  } else if (undoing || "kasdx".includes(key) || isClass(key) || KEYS[key]) {
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow")) inTurn(() => press(undoing ? "u" : key));
  }
});

find("choices").addEventListener("click", (event) => {
  const choice = event.target.closest("button"), { row } = view;
  if (choice) inTurn(async () => row === view.row && decide(...chosen(choice)));
});
find("rows").addEventListener("click", (event) => {
  const thumb = event.target.closest("button");
  if (thumb) inTurn(() => go(Number(thumb.dataset.at)));
});
find("other").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("label").value.trim();
  if (/^[0-9]{1,9}$/.test(text)) {
    find("label").blur();
    inTurn(() => relabel(Number(text)));
  } else {
    find("label").setCustomValidity(`Give a whole number from 0 to ${view.state.classes - 1}`);
    find("label").reportValidity();
  }
});
find("label").addEventListener("input", () => find("label").setCustomValidity(""));
find("finish").addEventListener("click", () => inTurn(finish));
for (const one of document.querySelectorAll("[data-do]")) {
  one.addEventListener("click", () => inTurn(ACTS[one.dataset.do]));
}

inTurn(async () => {
  view.state = await ask("state");
  document.title = `${view.state.name}: review`;
  find("name").textContent = `${view.state.name}: review of flagged rows`;
  find("digits").textContent = view.state.classes <= 10 ? "or press its digit" : `0 to ${view.state.classes - 1}`;
  find("text").textContent = view.state.text_shows ? `Inputs: ${view.state.text_shows}.` : "";
  showProgress({});
  const asked = /^#[0-9]{1,9}$/.test(location.hash) ? Number(location.hash.slice(1)) : view.state.next;
  await go(asked === null ? 0 : asked);
});
