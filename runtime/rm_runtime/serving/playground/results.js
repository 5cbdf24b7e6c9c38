"use strict";
// What is shown of a reply: the ranking, every pair, the objectives. playground.js follows it in one script.

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
