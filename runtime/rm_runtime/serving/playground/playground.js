// What is asked: the form, and the server's answers handed to results.js.

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

const form = element("question-form");
let models = new Map();
let running = new AbortController();

// ---- asking the server

/** The reply to a request of this server, as {document, milliseconds, server}. Throws an Error with its one line. */
async function ask(path, body, signal) {
  const headers = {};
  if (element("key").value) headers.authorization = `Bearer ${element("key").value}`;
  const began = performance.now();
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error(`The server cannot be reached: ${error.message}`);
  });
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
  element("error").textContent = error.message;
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

/** The request as a command for a shell; the key stays in its variable. */
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
    changed();
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
    changed();
    element("add-exchange").focus();
  };
  element("exchanges").append(fields);
  fields.querySelector("textarea").focus();
}

function changed() {
  element("example").disabled = Boolean(element("question").value || answers().length); // it would replace them
  const stale = "This is the ranking before your last change.";
  const status = element("status");
  if (!element("reply").hidden && status.textContent !== stale) status.textContent = stale; // said once, not at every key
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
form.addEventListener("input", changed);
element("key").addEventListener("change", listModels);
element("add-answer").addEventListener("click", () => addAnswer().focus());
element("add-exchange").addEventListener("click", addExchange);
element("example").addEventListener("click", fillExample);
addAnswer();
addAnswer();
listModels();
