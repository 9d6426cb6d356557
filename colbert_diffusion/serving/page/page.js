// The search page. Everything that comes from the server is text: textContent, never markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const K = 10;
const SHOWN_WORDS = 4;
let token = sessionStorage.getItem("token") || "";
let latest = 0; // answers to older questions are dropped
let indexes = []; // facts about each
let wanted = null; // the mode that was chosen, here or in the URL

function element(name, { text, ...properties } = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

async function call(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const request = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new Error("The server does not answer. Is it running?");
  }
  $("access").hidden = response.status !== 401;
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error || `The server answered ${response.status}.`);
  const timing = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") || "");
  return { answer, milliseconds: timing && Number(timing[1]) };
}

function served() {
  return indexes.find((index) => index.name === $("index").value);
}

// Of an index without words there is nothing to choose.
function offerModes() {
  const modes = [...$("modes").querySelectorAll("input")];
  $("modes").hidden = !served().lexical;
  (modes.find((mode) => mode.value === wanted) || modes.find((mode) => mode.value === served().mode)).checked = true;
}

function chosenMode() {
  return $("modes").hidden ? null : $("modes").querySelector(":checked").value;
}

async function search() {
  const query = $("query").value.trim();
  const turn = ++latest;
  $("results").replaceChildren();
  if (!query) return say("");
  say("Searching", "busy");
  const index = $("index").value || null;
  const mode = chosenMode();
  try {
    const { answer, milliseconds } = await call("api/search", { query, k: K, index, mode });
    if (turn !== latest) return;
    $("results").replaceChildren(...answer.topk.map((found) => result(query, index, mode, found)));
    const time = milliseconds === null ? "" : ` in ${Math.round(milliseconds)} ms`;
    say(answer.topk.length ? `${answer.topk.length} passages${time}` : "Nothing was found.");
  } catch (error) {
    if (turn === latest) say(error.message, "bad");
  }
}

function result(query, index, mode, found) {
  const text = element("p", { className: "text clipped", text: found.text });
  const button = element("button", { type: "button", text: "Why" });
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Why passage ${found.id} was found`);
  const facts = element("div", { className: "facts" },
    element("span", { text: `score ${found.score.toFixed(3)}` }),
    element("span", { text: `passage ${found.id}` }),
    button);
  const item = element("li", {}, text, facts);
  let why = null;
  button.addEventListener("click", async () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    text.classList.toggle("clipped", !open);
    if (why) return void (why.hidden = !open);
    why = element("div", { className: "why", text: "Looking …" });
    item.append(why);
    try {
      const { answer } = await call("api/explain", { query, pid: found.pid, index });
      why.replaceChildren(...explanation(answer, found.score, mode));
    } catch (error) {
      why.remove();
      why = null;
      button.setAttribute("aria-expanded", "false");
      say(error.message, "bad");
    }
  });
  return item;
}

function explanation(found, score, mode) {
  const sum = found.matches.map((match) => match.similarity.toFixed(2)).join(" + ");
  const then = {
    hybrid: ` This search combines both, each scaled, into ${score.toFixed(3)}.`,
    lexical: " This search went by the words alone.",
  };
  const parts = [
    ...(found.lexical ? sharedWords(found.lexical) : []),
    element("p", { text: `Each position of the query takes its best match in the passage: ${sum} = ${found.score.toFixed(2)}.` +
      (then[mode] || ` The index holds compressed vectors and gives ${score.toFixed(2)}.`) }),
  ];
  if (found.note) parts.push(element("p", { text: found.note }));
  const title = found.note ? "What matched" : "Words that each position predicts, and what it matched";
  parts.push(element("h2", { text: title }), links(found));
  parts.push(element("h2", { text: "Similarity of query positions (rows) and passage positions", className: "second" }), heat(found));
  return parts;
}

function sharedWords({ source, score, words }) {
  const title = element("h2", { text: source === "predicted" ? "Words that query and passage both predict" : "Words in query and passage" });
  if (!words.length) return [title, element("p", { text: "None." })];
  const list = element("ul", { className: "shared" }, ...words.map(({ word, contribution }) =>
    element("li", {}, element("b", { text: word }), contribution.toFixed(2))));
  if (words.length > 1) list.append(element("li", { text: `together ${score.toFixed(2)}` }));
  return [title, list];
}

function links(found) {
  const [rows, columns] = [found.similarities.length, found.similarities[0].length];
  const matched = new Set(found.matches.map((match) => match.passage));
  const height = Math.max(rows, columns);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 1 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const { query, passage, similarity } of found.matches) {
    const line = document.createElementNS(SVG, "line");
    const ends = { x1: 0.04, x2: 0.96, y1: ((query + 0.5) * height) / rows, y2: ((passage + 0.5) * height) / columns };
    for (const [name, value] of Object.entries(ends)) line.setAttribute(name, value);
    line.setAttribute("stroke-width", 1 + 2 * Math.max(0, similarity));
    line.setAttribute("stroke-opacity", 0.25 + 0.75 * Math.max(0, similarity));
    svg.append(line);
  }
  const side = (letter, count, words, marked) => Array.from({ length: count }, (_, i) => {
    const all = (words ? words[i] : []).filter((word) => word);
    const item = element("li", { title: all.join(" "), className: marked(i) ? "matched" : "" }, element("b", { text: `${letter}${i + 1}` }));
    item.append(all.slice(0, SHOWN_WORDS).join(" "));
    return item;
  });
  const drawn = element("div", { className: found.query_words ? "links" : "links bare" },
    element("ol", { className: "queries" }, ...side("q", rows, found.query_words, () => true)),
    element("div", { className: "lines" }, svg),
    element("ol", {}, ...side("p", columns, found.passage_words, (i) => matched.has(i))));
  drawn.querySelector(".queries").setAttribute("aria-label", "Query positions");
  drawn.lastElementChild.setAttribute("aria-label", "Passage positions");
  return drawn;
}

function heat(found) {
  const all = found.similarities.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const head = element("tr", {}, element("td"), ...found.similarities[0].map((_, j) => element("th", { text: `p${j + 1}`, scope: "col" })));
  head.firstElementChild.style.setProperty("--heat", 0);
  const body = found.similarities.map((row, i) => element("tr", {}, element("th", { text: `q${i + 1}`, scope: "row" }),
    ...row.map((similarity, j) => {
      const cell = element("td", { className: found.matches[i].passage === j ? "best" : "" },
        element("span", { text: similarity.toFixed(2).replace("0.", ".") }));
      cell.style.setProperty("--heat", high > low ? 0.55 * ((similarity - low) / (high - low)) : 0);
      return cell;
    })));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, element("table", {}, head, ...body));
  scroll.setAttribute("role", "group");
  scroll.setAttribute("aria-label", "Similarities");
  return scroll;
}

async function start() {
  try {
    const { answer } = await call("api/indexes");
    indexes = answer.indexes;
    const names = indexes.map((index) => index.name);
    $("index").replaceChildren(...names.map((name) => element("option", { text: name, value: name })));
    $("index").hidden = names.length < 2;
    $("query").placeholder = `Ask ${indexes[0].passages.toLocaleString("en")} passages`;
    const asked = new URLSearchParams(location.search);
    if (names.includes(asked.get("index"))) $("index").value = asked.get("index");
    if (asked.get("q")) $("query").value = asked.get("q");
    wanted = asked.get("mode");
    offerModes();
    say("");
    if ($("query").value) search();
  } catch (error) {
    say(error.message, "bad");
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = new URLSearchParams({ q: $("query").value });
  if (!$("index").hidden) asked.set("index", $("index").value);
  if (chosenMode() && chosenMode() !== served().mode) asked.set("mode", chosenMode());
  history.replaceState(null, "", `?${asked}`);
  search();
});
$("index").addEventListener("change", offerModes);
$("modes").addEventListener("change", () => {
  wanted = chosenMode();
  $("form").requestSubmit();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  start();
});
document.addEventListener("keydown", (event) => {
  const typing = document.activeElement.matches("input:not([type=radio]), select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").select();
  }
});
start();
