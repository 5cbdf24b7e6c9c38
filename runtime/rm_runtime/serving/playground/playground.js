"use strict";

const LETTERS = "ABCDEFGH";
const EXAMPLE = {
  question: "How do I stop my cat from waking me at five in the morning?",
  answers: [
    "Close the bedroom door, so that your cat stays out in the morning.",
    "Stop wasting my time, genius. Buy the cat a watch.",
    "Play with your cat in the evening and feed her late, because a tired cat sleeps longer in the morning. " +
      "When your cat wakes you at five, stay in bed and do not feed her, or she learns that it works. " +
      "Be patient: it takes about two weeks.",
  ],
};
const ORDER_ONLY = "Only the order of scores for the same question has a meaning.";
const UNITS = {
  armorm: `The score is the sum of rewards, each times its coefficient. ${ORDER_ONLY}`,
  "dpa-rm": "The score is the reward for helpsteer-helpfulness, from 0 to 100.",
  "pair-pm": "The score is how many rounds of a knock-out an answer survived; the finalists add their probability.",
  pairrm:
    "The score is the sum of the leads over the others, f(this, other) − f(other, this), divided by the number of answers.",
};
/** What a reply may hold of an answer: name, values by objective, what they are. */
const MEASURES = [
  ["rewards", (answer) => answer.rewards, "How well the answer does on each objective."],
  ["coefficients", (answer) => answer.coefficients, "The weight of each reward in the score, decided by the question."],
  ["gating", (answer) => answer.gating, "How the question weighs the objectives; the coefficients follow from it, corrected for verbosity."],
  [
    "reward × coefficient",
    (answer) => answer.coefficients && answer.rewards.map((reward, i) => reward * answer.coefficients[i]),
    "These add up to the score.",
  ],
  ["HelpSteer", (answer) => answer.helpsteer, "HelpSteer's attributes on their own scale, from 0 to 4."],
  ["logits", (answer) => answer.logits, "All labels of the head."],
];

const element = (id) => document.getElementById(id);
const form = element("question-form");
let models = new Map();
let running = new AbortController();

// ---- asking the server

/** The reply to a request of this server, as {document, milliseconds, server}. Throws an Error with its one line. */
async function ask(path, body, signal) {
  const headers = {};
  if (element("key").value) headers.authorization = `Bearer ${element("key").value}`;
  const began = performance.now();
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
  const text = await response.text();
  const milliseconds = performance.now() - began;
  let document = null;
  try {
    document = JSON.parse(text);
  } catch {} // not of this server, but of a proxy before it: its status is all there is to say
  if (!response.ok || document === null) {
    const error = new Error(document?.error ?? `HTTP ${response.status} ${response.statusText}`);
    error.status = response.status;
    error.retryAfter = Number(response.headers.get("retry-after"));
    throw error;
  }
  const duration = /dur=([\d.]+)/.exec(response.headers.get("server-timing"));
  return { document, milliseconds, server: duration ? Number(duration[1]) : undefined };
}

async function listModels() {
  try {
    const { document } = await ask("v1/models");
    models = new Map(document.data.map((model) => [model.id, model]));
    const chosen = element("model").value;
    element("model").replaceChildren(
      ...document.data.map((model) => new Option(`${model.id} (${model.family})`, model.id, false, model.id === chosen)),
    );
    element("error").textContent = "";
  } catch (error) {
    fail(error);
    if (error.status === 503) setTimeout(listModels, 1000 * (error.retryAfter || 1));
  }
}

function fail(error) {
  if (error.name === "AbortError") return; // a newer request is under way
  element("status").textContent = "";
  element("reply").hidden = true;
  element("error").textContent = error.status ? error.message : `The server cannot be reached: ${error.message}`;
  if (error.status === 401) {
    element("key-field").hidden = false;
    element("key").focus();
  }
}

// ---- what is asked

function messages() {
  const turns = [];
  if (element("system").value) turns.push({ role: "system", content: element("system").value });
  for (const exchange of document.querySelectorAll(".exchange")) {
    const [user, assistant] = exchange.querySelectorAll("textarea");
    turns.push({ role: "user", content: user.value }, { role: "assistant", content: assistant.value });
  }
  return [...turns, { role: "user", content: element("question").value }];
}

/** Answers that are not empty, under the letters of their places. */
function answers() {
  return [...document.querySelectorAll(".answer textarea")]
    .map((field, place) => ({ letter: LETTERS[place], text: field.value }))
    .filter((answer) => answer.text);
}

async function rank() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const asked = answers();
  element("error").textContent = "";
  if (asked.length < 2) {
    element("status").textContent = "Write at least two answers.";
    return;
  }
  element("status").textContent = "Ranking…";
  if (!models.size) await listModels();
  const model = models.get(element("model").value);
  const body = JSON.stringify({
    model: model?.id,
    messages: messages(),
    responses: asked.map((answer) => answer.text),
    details: true,
  });
  try {
    show(await ask("v1/rank", body, signal), asked, model, body);
  } catch (error) {
    fail(error);
  }
}

// ---- what is answered

function show({ document: reply, milliseconds, server }, asked, model, body) {
  const ranked = asked
    .map((answer, place) => ({ ...answer, ...reply.answers[place], place, rank: reply.ranks[place], score: reply.scores[place] }))
    .sort((one, other) => one.rank - other.rank);
  const best = ranked.filter((answer) => answer.rank === 1).map((answer) => answer.letter);
  element("status").textContent =
    `${best.length > 1 ? `${best.join(", ")} tie for the best` : `${best[0]} is the best`}. ` +
    `Order: ${ranked.map((answer) => answer.letter).join(", ")}.`;
  const within = server === undefined ? "" : `, ${server.toFixed(1)} ms of them in the server`; // a proxy may hide it
  element("timing").textContent = `${milliseconds.toFixed(1)} ms round trip${within}`;
  element("unit").textContent = UNITS[model?.family] ?? ORDER_ONLY;
  showRanking(ranked, reply.probabilities ? "tokens in its longest prompt" : "tokens", model);
  showPairs(ranked, reply);
  showObjectives(ranked, model);
  element("request").textContent = curl(body);
  element("raw").textContent = JSON.stringify(reply, null, 2);
  element("reply").hidden = false;
  const { top } = element("results").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) element("results").scrollIntoView(); // below a narrow form, above a long one
}

function showRanking(ranked, unit, model) {
  const scale = scaleOf(ranked.map((answer) => answer.score));
  const items = ranked.map((answer) => {
    const behind = ranked[0].score - answer.score;
    const most = model ? ` of ${count(model.max_length)}` : "";
    const facts = make("p", { class: "facts" }, `${count(answer.tokens)}${most} ${unit}`);
    if (behind > 0) facts.prepend(`${number(behind)} behind the best; `);
    for (const cut of answer.truncated ?? []) {
      const lost = `${count(cut.tokens)} tokens cut from the ${cut.side} of the ${cut.part}`;
      facts.append("; ", make("span", { class: "cut" }, lost));
    }
    return make(
      "li",
      { class: answer.rank === 1 ? "first" : "" },
      make("span", { class: "place" }, `${answer.rank}.`),
      make("span", { class: "letter" }, answer.letter),
      make("span", { class: "excerpt" }, answer.text),
      make("span", { class: "score" }, number(answer.score)),
      bar(answer.score, scale),
      facts,
    );
  });
  element("ranking").replaceChildren(...items);
}

function showPairs(ranked, { probabilities, order_probabilities: orders }) {
  element("pairs").hidden = !probabilities;
  if (!probabilities) return;
  const head = make("tr", {}, make("td"), ...ranked.map((answer) => make("th", { scope: "col" }, answer.letter)));
  const rows = ranked.map((row) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, row.letter),
      ...ranked.map((column) => {
        if (row === column) return make("td", {}, "–");
        const probability = probabilities[row.place][column.place];
        const cell = make("td", { class: probability > 0.5 ? "wins" : "" }, percent(probability));
        cell.style.setProperty("--lead", 2 * probability - 1);
        return cell;
      }),
    ),
  );
  element("matrix").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  const letter = [...ranked].sort((one, other) => one.place - other.place)[0].letter;
  element("orders").textContent = orders
    ? `${letter} is the better one with ${percent(orders[0])} if it is shown first, with ${percent(orders[1])} if second.`
    : "";
}

function showObjectives(ranked, model) {
  const measures = MEASURES.filter(([, values]) => values(ranked[0]));
  element("objectives").hidden = !measures.length;
  if (!measures.length) return;
  const chosen = document.querySelector("#measures input:checked")?.value;
  const choices = measures.map(([name], place) => {
    const radio = make("input", { type: "radio", name: "measure", value: name });
    radio.checked = name === chosen || (place === 0 && !measures.some(([other]) => other === chosen));
    return make("label", {}, radio, ` ${name}`);
  });
  element("measures").replaceChildren(element("measures").querySelector("legend"), ...choices);
  const draw = () => {
    const name = document.querySelector("#measures input:checked").value;
    const [, values, note] = measures.find(([other]) => other === name);
    element("measure-note").textContent = note;
    element("bars").replaceChildren(barTable(ranked, values, model?.objectives ?? []));
  };
  element("measures").onchange = draw;
  element("by-difference").onchange = draw;
  draw();
}

/** A row an objective, a column an answer, all on one scale. Roles are said, as narrow screens make blocks of the cells. */
function barTable(ranked, values, names) {
  const columns = ranked.map(values);
  const scale = scaleOf(columns.flat());
  const spread = (row) => Math.max(...columns.map((column) => column[row])) - Math.min(...columns.map((column) => column[row]));
  const order = columns[0].map((_, row) => row);
  if (element("by-difference").checked) order.sort((one, other) => spread(other) - spread(one));
  const heads = ranked.map((answer) => make("th", { scope: "col", role: "columnheader" }, answer.letter));
  const rows = order.map((row) =>
    make(
      "tr",
      { role: "row" },
      make("th", { scope: "row", role: "rowheader" }, names[row] ?? `${row}`),
      ...ranked.map((answer, column) => {
        const value = columns[column][row];
        const shown = bar(value, scale);
        shown.append(make("span", { class: "number" }, number(value, 3)));
        return make("td", { role: "cell", class: answer.rank === 1 ? "first" : "", "data-letter": answer.letter }, shown);
      }),
    ),
  );
  const head = make("tr", { role: "row" }, make("td", { role: "cell" }), ...heads);
  return make(
    "table",
    { role: "table" },
    make("thead", { role: "rowgroup" }, head),
    make("tbody", { role: "rowgroup" }, ...rows),
  );
}

/** The range from the smallest to the largest of the values and zero. */
function scaleOf(values) {
  return { low: Math.min(0, ...values), high: Math.max(0, ...values) };
}

function bar(value, { low, high }) {
  const [fill, zero] = ["fill", "zero"].map((name) => make("span", { class: name }));
  const share = (length) => `${high > low ? (100 * length) / (high - low) : 0}%`;
  fill.style.left = share(Math.min(0, value) - low);
  fill.style.width = share(Math.abs(value));
  zero.style.left = share(-low);
  return make("div", { class: "bar" }, fill, ...(low < 0 ? [zero] : []));
}

/** An element; its children are elements, or texts that can never become markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value, digits = 4) {
  return value.toFixed(Math.abs(value) < 10 ? digits : digits - 2).replace("-", "−");
}

function count(value) {
  return value.toLocaleString("en");
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function curl(body) {
  const key = element("key").value ? ' -H "authorization: Bearer $KEY"' : "";
  return `curl -s ${new URL("v1/rank", location)}${key} -d '${body.replaceAll("'", "'\\''")}'`;
}

// ---- the form

function addAnswer(text = "") {
  const field = element("answer-template").content.firstElementChild.cloneNode(true);
  field.querySelector("textarea").value = text;
  field.querySelector("button").onclick = () => {
    field.remove();
    nameAnswers();
    element("add-answer").focus();
  };
  element("answers").append(field);
  nameAnswers();
  return field.querySelector("textarea");
}

function nameAnswers() {
  const fields = [...document.querySelectorAll(".answer")];
  fields.forEach((field, place) => {
    const [label, area, remove] = ["label", "textarea", "button"].map((tag) => field.querySelector(tag));
    area.id = `answer-${LETTERS[place]}`;
    label.htmlFor = area.id;
    label.textContent = `Answer ${LETTERS[place]}`;
    remove.hidden = fields.length <= 2;
    remove.setAttribute("aria-label", `Remove answer ${LETTERS[place]}`);
  });
  element("add-answer").disabled = fields.length >= LETTERS.length;
}

let exchanges = 0;

function addExchange() {
  const fields = element("exchange-template").content.firstElementChild.cloneNode(true);
  exchanges += 1;
  for (const [place, label] of fields.querySelectorAll("label").entries()) {
    label.htmlFor = `exchange-${exchanges}-${place}`;
    label.nextElementSibling.id = label.htmlFor;
  }
  fields.querySelector("button").onclick = () => {
    fields.remove();
    element("add-exchange").focus();
  };
  element("exchanges").append(fields);
  fields.querySelector("textarea").focus();
}

function fillExample() {
  element("question").value = EXAMPLE.question;
  element("answers").replaceChildren();
  EXAMPLE.answers.forEach(addAnswer);
  element("rank").focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});
form.addEventListener("input", () => {
  if (!element("reply").hidden) element("status").textContent = "The texts have changed since; this is the ranking before.";
});
element("key").addEventListener("change", listModels);
element("add-answer").addEventListener("click", () => addAnswer().focus());
element("add-exchange").addEventListener("click", addExchange);
element("example").addEventListener("click", fillExample);
addAnswer();
addAnswer();
listModels();
