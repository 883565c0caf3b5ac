// Places orders, and shows what becomes of them. Orders are kept for this tab, so that the page may be loaded again.

import { connect, SessionError } from "./callback.js";

const ORDERS = "orders";
const STATES = {
  connecting: "Connecting…",
  open: "Connected",
  away: "Not connected; trying again",
  closed: "This session goes on in another tab",
};
const STATUSES = {
  sending: "Waiting for the connection",
  sent: "Sent",
  unsent: "Not answered",
  refused: "Refused",
  acknowledged: "Acknowledged, in progress",
  completed: "Completed",
  failed: "Failed",
  lost: "The result does not come",
};
const RESULTS = ["completed", "failed"];
const UNSURE = ["sending", "sent"];

const find = (selector, within = document) => within.querySelector(selector);
/** By the id of the JSON-RPC call, which the result carries: it is found even if the acknowledgment was lost. */
const orders = new Map(JSON.parse(sessionStorage.getItem(ORDERS) ?? "[]").map((order) => [order.id, order]));

/** Keeps the order, then shows it: what was acknowledged to the service survives a reload. */
function step(order, status, message, wire) {
  order.status = status;
  order.message = message;
  order.steps.push({ at: Date.now(), text: STATUSES[status], wire });
  sessionStorage.setItem(ORDERS, JSON.stringify([...orders.values()]));
  show(order);
  find("#news").textContent = `Order ${order.number}: ${STATUSES[status]}. ${message}`;
}

function show(order) {
  let card = document.getElementById(order.id);
  if (!card) {
    card = find("#card").content.cloneNode(true).firstElementChild;
    card.id = order.id;
    find(".again", card).addEventListener("click", () => send(order));
    find("#orders").prepend(card);
  }
  card.dataset.status = order.status;
  find("h3", card).textContent = `Order ${order.number}`;
  find(".status", card).textContent = STATUSES[order.status];
  find(".message", card).textContent = order.message;
  find(".again", card).hidden = order.status !== "unsent";
  find(".steps", card).replaceChildren(...order.steps.map(line));
  find(".wire", card).replaceChildren(...order.steps.filter(({ wire }) => wire).flatMap(wires));
  find("#none").hidden = true;
}

function element(name, text, attributes = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, attributes);
}

function line({ at, text }) {
  const item = element("li", ` ${text}`);
  const time = new Date(at);
  item.prepend(element("time", time.toLocaleTimeString(), { dateTime: time.toISOString() }));
  return item;
}

function wires({ text, wire }) {
  return [element("p", text), element("pre", JSON.stringify(wire, null, 2), { tabIndex: 0 })];
}

/** A result has come: it is taken once the order has it. One of no order here is left alone. */
function take(callback) {
  const answer = callback.json();
  const order = orders.get(answer.id);
  if (!order) return false;
  if (RESULTS.includes(order.status)) return true;
  if (answer.error) step(order, "failed", answer.error.message, answer);
  else step(order, "completed", `${answer.result.message} Total: ${answer.result.totalAmount}`, answer);
  return true;
}

/**
 * Sends the order, as soon as there is a session; again under the same key, so that it is placed once. In another session
 * its result would go elsewhere: there it is another order.
 */
async function send(order) {
  if (client.state !== "open") step(order, "sending", "");
  let answer;
  try {
    const dsn = await client.dsn;
    if (order.dsn !== dsn) Object.assign(order, { dsn, key: random() });
    const params = { orderId: order.number, "$rpc.callback": dsn };
    const call = { jsonrpc: "2.0", id: order.id, method: order.method, params };
    step(order, "sent", "", call);
    const headers = { "content-type": "application/json", "idempotency-key": order.key };
    const response = await fetch("rpc", { method: "POST", headers, body: JSON.stringify(call) });
    answer = await response.json();
  } catch (error) {
    // The result may have come all the same.
    const why = error instanceof SessionError ? `It was not sent: ${error.message}.` : "The service did not answer.";
    if (UNSURE.includes(order.status)) step(order, "unsent", why);
    return;
  }
  if (RESULTS.includes(order.status)) return;
  if (answer.error) step(order, "refused", answer.error.message, answer);
  else step(order, "acknowledged", "", answer);
}

function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

find("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = new FormData(event.target);
  const order = { id: random(), number: fields.get("order"), method: fields.get("method"), steps: [] };
  orders.set(order.id, order);
  send(order);
});

const client = connect("session", {
  storage: sessionStorage,
  onmessage: take,
  onstate(state) {
    find("#state").textContent = STATES[state];
    find(".connection").dataset.state = state;
  },
  onsession({ lost }) {
    if (!lost) return;
    for (const order of orders.values()) {
      if (order.status === "acknowledged") step(order, "lost", "This page was away for too long.");
    }
  },
});

for (const order of orders.values()) {
  show(order);
  // Cut short by a reload: whether it was placed is found out by sending it again.
  if (UNSURE.includes(order.status)) step(order, "unsent", "The page was closed meanwhile.");
}
