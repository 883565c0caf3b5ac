// The client against a server of npm's `ws`, which says what each test wants.
//
//     CALLBACK_TEST_NPM=FOLDER node --test callback-ws/client
//
// FOLDER is where `npm install ws` was run.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";
import { afterEach, beforeEach, mock, test } from "node:test";
import { connect, SessionError } from "./callback.js";

const { WebSocket, WebSocketServer } = createRequire(`${process.env.CALLBACK_TEST_NPM}/`)("ws");
Object.assign(globalThis, { WebSocket });

/** A queue whose reader waits. */
class Queue {
  #items = [];
  #readers = [];
  push = (item) => {
    const reader = this.#readers.shift();
    if (reader) reader(item);
    else this.#items.push(item);
  };
  next = () => (this.#items.length ? Promise.resolve(this.#items.shift()) : new Promise((read) => this.#readers.push(read)));
  get isEmpty() {
    return this.#items.length === 0;
  }
}

let server;
let url;
let peers;
let clients;

beforeEach(async () => {
  peers = new Queue();
  clients = [];
  server = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: (offered) => [...offered].join() });
  server.on("connection", (socket) => {
    const [frames, codes] = [new Queue(), new Queue()];
    socket.on("message", (data) => frames.push(JSON.parse(data)));
    socket.on("close", (code) => codes.push(code));
    const send = (frame) => socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
    const welcome = (address = "a", secret = `${address}.1`, resumed = false) =>
      send({ session: `session://${address}`, resume: secret, resumed, keep: 600 });
    peers.push({ socket, send, welcome, next: frames.next, closed: codes.next, frames });
  });
  await once(server, "listening");
  url = `ws://127.0.0.1:${server.address().port}/`;
  mock.method(Math, "random", () => 0); // no wait before it connects again
});

afterEach(() => {
  mock.restoreAll();
  for (const client of clients) client.close();
  for (const socket of server.clients) socket.terminate();
  server.close();
});

function open(options) {
  const client = connect(url, options);
  clients.push(client);
  return client;
}

/** A client with a session, and its server's end. */
async function opened(options) {
  const client = open(options);
  const peer = await peers.next();
  assert.deepEqual(await peer.next(), { resume: null });
  peer.welcome();
  await client.dsn;
  return { client, peer };
}

const result = (id, subject = `task-${id}`, body = `{"jsonrpc":"2.0","id":1,"result":"${id}"}`) => ({
  id,
  subject,
  type: "callback.rpc.completed",
  datacontenttype: "application/json",
  attempt: 1,
  body,
});

const over = (reason) => (error) => error instanceof SessionError && error.reason === reason;

/** Storage as browsers have it; `full` as they have it, too. */
function storage() {
  const items = new Map();
  return {
    items,
    full: false,
    getItem: (name) => items.get(name) ?? null,
    setItem(name, value) {
      if (this.full) throw new Error("QuotaExceededError");
      items.set(name, value);
    },
  };
}

test("a client speaks first, and is told its address", async () => {
  const states = [];
  const sessions = [];
  const { client, peer } = await opened({ onstate: (state) => states.push(state), onsession: (session) => sessions.push(session) });
  assert.equal(peer.socket.protocol, "callback.v1");
  assert.equal(await client.dsn, "session://a");
  assert.deepEqual(sessions, [{ dsn: "session://a", resumed: false, lost: false }]);
  assert.deepEqual(states, ["open"]);
  assert.equal(client.state, "open");
});

test("a result that is waited for is handed over and acknowledged", async () => {
  const { client, peer } = await opened();
  const [first, same, byId] = [client.result("task-m1"), client.result("task-m1"), client.result("m1")];
  peer.send(result("m1"));
  assert.deepEqual((await first).json(), { jsonrpc: "2.0", id: 1, result: "m1" });
  assert.equal(await same, await first);
  assert.equal(await byId, await first);
  assert.deepEqual(await peer.next(), { ack: "m1" });
  assert.equal((await first).subject, "task-m1");
  assert.equal((await first).type, "callback.rpc.completed");
  assert.equal((await first).contentType, "application/json");
  assert.equal((await first).frame.attempt, 1);
});

test("a result that comes before anybody asks is kept", async () => {
  const { client, peer } = await opened();
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { ack: "m1" });
  assert.equal((await client.result("task-m1")).id, "m1");
  assert.equal((await client.result("task-m1")).id, "m1", "and can be asked for again");
});

test("a result without a subject is found by its id", async () => {
  const { client, peer } = await opened();
  const waiting = client.result("m1");
  peer.send({ id: "m1", body: "" });
  assert.equal((await waiting).text(), "");
});

test("a body that is no text comes as bytes", async () => {
  const { client, peer } = await opened();
  peer.send({ id: "m1", body_base64: "AJ+Slg==" });
  peer.send({ id: "m2", body: "größer 😀" });
  assert.deepEqual((await client.result("m1")).bytes(), Uint8Array.of(0, 159, 146, 150));
  assert.deepEqual((await client.result("m2")).bytes(), new TextEncoder().encode("größer 😀"));
  assert.equal((await client.result("m2")).text(), "größer 😀");
});

test("a duplicate is acknowledged and not shown", async () => {
  const shown = [];
  const { peer } = await opened({ onmessage: ({ id }) => shown.push(id) });
  for (const id of ["m1", "m1", "m2", "m1"]) {
    peer.send(result(id));
    assert.deepEqual(await peer.next(), { ack: id });
  }
  assert.deepEqual(shown, ["m1", "m2"]);
});

test("a callback is acknowledged once it is taken, and a duplicate joins", async () => {
  let take;
  const shown = [];
  const onmessage = ({ id }) => {
    shown.push(id);
    return id === "m1" ? new Promise((resolve) => (take = resolve)) : undefined;
  };
  const { client, peer } = await opened({ onmessage });
  peer.send(result("m1"));
  peer.send(result("m1"));
  peer.send(result("m2"));
  assert.deepEqual(await peer.next(), { ack: "m2" }, "m1 is open");
  assert.equal((await client.result("task-m1")).id, "m1", "what is open can be asked for");
  take();
  assert.deepEqual(await peer.next(), { ack: "m1" });
  assert.deepEqual(shown, ["m1", "m2"]);
  assert.ok(peer.frames.isEmpty);
});

test("what onmessage throws at comes again later, and what it leaves is kept", async () => {
  const reported = mock.method(console, "error", () => {});
  const shown = [];
  const onmessage = ({ id }) => {
    shown.push(id);
    if (id === "m1" && shown.length === 1) throw new Error("a bug");
    return false;
  };
  const { client, peer } = await opened({ onmessage });
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { nack: "m1", kind: "later", retryAfter: 5 });
  assert.equal(reported.mock.calls[0].arguments[0].message, "a bug");
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { ack: "m1" });
  assert.deepEqual(shown, ["m1", "m1"]);
  assert.equal((await client.result("m1")).id, "m1");
});

test("a result that was taken is acknowledged although onmessage throws", async () => {
  mock.method(console, "error", () => {});
  const { client, peer } = await opened({ onmessage: () => Promise.reject(new Error("a bug")) });
  const waiting = client.result("task-m1");
  peer.send(result("m1"));
  await waiting;
  assert.deepEqual(await peer.next(), { ack: "m1" });
});

test("a connection that is lost is resumed, and what comes again is shown once", async () => {
  const shown = [];
  const sessions = [];
  const states = [];
  const { client, peer } = await opened({
    onmessage: ({ id }) => void shown.push(id),
    onsession: (session) => sessions.push(session),
    onstate: (state) => states.push(state),
  });
  const waiting = client.result("task-m2");
  peer.send(result("m1"));
  await peer.next();
  peer.socket.terminate();
  const second = await peers.next();
  assert.deepEqual(await second.next(), { resume: "a.1" });
  second.welcome("a", "a.2", true);
  second.send(result("m1"));
  second.send(result("m2"));
  assert.equal((await waiting).id, "m2");
  assert.deepEqual([await second.next(), await second.next()], [{ ack: "m1" }, { ack: "m2" }]);
  assert.deepEqual(shown, ["m1", "m2"]);
  assert.equal(await client.dsn, "session://a");
  assert.deepEqual(sessions[1], { dsn: "session://a", resumed: true, lost: false });
  assert.deepEqual(states, ["open", "away", "connecting", "open"]);
});

test("what was taken while the connection was lost is acknowledged when it comes again", async () => {
  let take;
  const { peer } = await opened({ onmessage: () => new Promise((resolve) => (take = resolve)) });
  peer.send(result("m1"));
  while (!take) await new Promise(setImmediate);
  peer.socket.terminate();
  const second = await peers.next();
  take();
  await second.next();
  second.welcome("a", "a.2", true);
  second.send(result("m1"));
  assert.deepEqual(await second.next(), { ack: "m1" });
});

test("the former secret is presented where the welcome was not read", async () => {
  const { peer } = await opened();
  peer.socket.terminate();
  const second = await peers.next();
  assert.deepEqual(await second.next(), { resume: "a.1" });
  second.socket.terminate();
  const third = await peers.next();
  assert.deepEqual(await third.next(), { resume: "a.1" });
  third.welcome("a", "a.3", true);
  third.socket.close();
  assert.deepEqual(await (await peers.next()).next(), { resume: "a.3" });
});

test("after 4410 those who wait are told, and a new session begins", async () => {
  const sessions = [];
  const { client, peer } = await opened({ onsession: (session) => sessions.push(session) });
  peer.send(result("m1"));
  await peer.next();
  const waiting = assert.rejects(client.result("task-m2"), over("over"));
  peer.socket.terminate();
  const second = await peers.next();
  await second.next();
  second.socket.close(4410, "session over");
  await waiting;
  const third = await peers.next();
  assert.deepEqual(await third.next(), { resume: null });
  const dsn = client.dsn;
  third.welcome("b");
  assert.equal(await dsn, "session://b", "whoever asks meanwhile is told the new address");
  assert.deepEqual(sessions[1], { dsn: "session://b", resumed: false, lost: true });
  assert.equal((await client.result("task-m1")).id, "m1", "what was kept is not lost");
  third.socket.terminate();
  (await peers.next()).welcome("b", "b.2", true);
  while (sessions.length < 3) await new Promise(setImmediate);
  assert.deepEqual(sessions[2], { dsn: "session://b", resumed: true, lost: false });
});

test("a welcome to another session counts as the end of the former", async () => {
  const { client, peer } = await opened();
  const waiting = assert.rejects(client.result("task-m1"), over("over"));
  peer.socket.terminate();
  const second = await peers.next();
  second.welcome("b");
  await waiting;
  assert.equal(await client.dsn, "session://b");
});

test("4410 without a secret is no reason to hurry", async () => {
  const states = [];
  open({ onstate: (state) => states.push(state) });
  (await peers.next()).socket.close(4410);
  await (await peers.next()).next();
  assert.deepEqual(states, ["away", "connecting"]);
});

test("after 4409 another has the session, and this client ends", async () => {
  const states = [];
  const { client, peer } = await opened({ onstate: (state) => states.push(state) });
  const waiting = assert.rejects(client.result("task-m1"), over("replaced"));
  peer.socket.close(4409, "resumed elsewhere");
  await waiting;
  await assert.rejects(client.dsn, over("replaced"));
  await assert.rejects(client.result("task-m2"), over("replaced"));
  assert.deepEqual(states, ["open", "closed"]);
});

for (const code of [4409, 4410]) {
  test(`a connection that was given up takes the session over late, and ${code} does not end it`, async () => {
    const { client, peer } = await opened();
    peer.socket.terminate();
    const late = await peers.next();
    assert.deepEqual(await late.next(), { resume: "a.1" });
    late.socket.terminate();
    const second = await peers.next();
    assert.deepEqual(await second.next(), { resume: "a.1" });
    second.welcome("a", "a.2", true);
    const waiting = client.result("task-m1");
    second.socket.close(code);
    const third = await peers.next();
    assert.deepEqual(await third.next(), { resume: "a.1" });
    third.welcome("a", "a.4", true);
    third.send(result("m1"));
    assert.equal((await waiting).id, "m1");
    const lost = assert.rejects(client.result("task-m2"), over(code === 4409 ? "replaced" : "over"));
    third.socket.close(code);
    await lost;
  });

  test(`where the secret before is not known either, what ${code} said counts`, async () => {
    const { client, peer } = await opened();
    peer.socket.terminate();
    const late = await peers.next();
    await late.next();
    late.socket.terminate();
    const second = await peers.next();
    await second.next();
    second.welcome("a", "a.2", true);
    const lost = assert.rejects(client.result("task-m1"), over(code === 4409 ? "replaced" : "over"));
    second.socket.close(code);
    const third = await peers.next();
    assert.deepEqual(await third.next(), { resume: "a.1" });
    third.socket.close(4410);
    await lost;
  });
}

test("whoever gives up waiting leaves the result to others", async () => {
  const { client, peer } = await opened();
  const why = new Error("no time");
  await assert.rejects(client.result("task-m1", { signal: AbortSignal.abort(why) }), why);
  const controller = new AbortController();
  const waiting = client.result("task-m1", { signal: controller.signal });
  controller.abort(why);
  await assert.rejects(waiting, why);
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { ack: "m1" });
  const late = new AbortController();
  assert.equal((await client.result("task-m1", { signal: late.signal })).id, "m1");
});

test("a page that is loaded again resumes, and gets what nobody had taken", async () => {
  const store = storage();
  const { client, peer } = await opened({ storage: store });
  const taken = client.result("task-m1");
  peer.send(result("m1"));
  await taken;
  peer.send(result("m2"));
  peer.send(result("m3"));
  for (const id of ["m1", "m2", "m3"]) assert.deepEqual(await peer.next(), { ack: id });
  await client.result("task-m3");
  client.close();

  const shown = [];
  const again = open({ storage: store, onmessage: (callback) => void shown.push(callback.id) });
  const second = await peers.next();
  assert.deepEqual(await second.next(), { resume: "a.1" });
  second.welcome("a", "a.2", true);
  second.send(result("m1"));
  assert.deepEqual(await second.next(), { ack: "m1" }, "its acknowledgment was lost: it is shown no second time");
  assert.deepEqual(shown, ["m2"]);
  assert.equal(await again.dsn, "session://a");
  again.close();

  const third = open({ storage: store });
  await (await peers.next()).next();
  assert.deepEqual(JSON.parse(store.items.get(`callback:${url}`)), { secret: "a.2", seen: ["m1", "m3", "m2"], kept: [] });
  third.close();
});

test("what was kept and acknowledged stays, though onmessage throws at it after a reload", async () => {
  mock.method(console, "error", () => {});
  const store = storage();
  const { client, peer } = await opened({ storage: store });
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { ack: "m1" });
  client.close();

  const second = open({ storage: store, onmessage: () => Promise.reject(new Error("a bug")) });
  const again = await peers.next();
  await again.next();
  again.welcome("a", "a.2", true);
  await second.dsn;
  again.send(result("m1"));
  assert.deepEqual(await again.next(), { ack: "m1" }, "nobody sends it once more");
  second.close();

  const third = open({ storage: store });
  await (await peers.next()).next();
  assert.equal((await third.result("task-m1")).id, "m1");
});

test("a session that was stored and is over is told as lost", async () => {
  const store = storage();
  store.setItem("mine", JSON.stringify({ secret: "old.1" }));
  const sessions = [];
  const client = open({ storage: store, name: "mine", onsession: (session) => sessions.push(session) });
  const waiting = assert.rejects(client.result("task-old"), over("over"));
  const peer = await peers.next();
  assert.deepEqual(await peer.next(), { resume: "old.1" });
  peer.socket.close(4410);
  await waiting;
  const second = await peers.next();
  assert.deepEqual(await second.next(), { resume: null });
  second.welcome("b");
  assert.equal(await client.dsn, "session://b");
  assert.deepEqual(sessions, [{ dsn: "session://b", resumed: false, lost: true }]);
});

test("a stored value that is none of ours is passed over", async () => {
  const store = storage();
  store.setItem("mine", "{");
  open({ storage: store, name: "mine" });
  assert.deepEqual(await (await peers.next()).next(), { resume: null });
});

test("what cannot be kept is not acknowledged", async () => {
  const store = storage();
  const { client, peer } = await opened({ storage: store });
  store.full = true;
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { nack: "m1", kind: "later", retryAfter: 5 });
  const waiting = client.result("task-m1");
  peer.send(result("m1"));
  await waiting;
  assert.deepEqual(await peer.next(), { ack: "m1" }, "what is taken need not be kept");
});

test("what nobody takes is kept up to a limit, and what was taken makes room", async () => {
  const { client, peer } = await opened();
  for (let n = 0; n < 100; n++) peer.send(result(`m${n}`));
  for (let n = 0; n < 100; n++) assert.deepEqual(await peer.next(), { ack: `m${n}` });
  peer.send(result("more"));
  assert.deepEqual(await peer.next(), { nack: "more", kind: "later", retryAfter: 5 });
  await client.result("task-m7");
  peer.send(result("more"));
  assert.deepEqual(await peer.next(), { ack: "more" });
  assert.equal((await client.result("more")).id, "more");
  assert.equal((await client.result("m0")).id, "m0");
});

test("ids are remembered for longer than the callbacks", async () => {
  const shown = [];
  const { peer } = await opened({ onmessage: ({ id }) => (shown.push(id), id !== "m5") });
  for (let n = 0; n < 600; n++) peer.send(result(`m${n}`));
  for (let n = 0; n < 600; n++) await peer.next();
  for (const id of ["m300", "m5", "m0"]) {
    peer.send(result(id));
    assert.deepEqual(await peer.next(), { ack: id });
  }
  assert.equal(shown.length, 601);
  assert.equal(shown.at(-1), "m0", "the oldest ids are forgotten, but for what is kept");
});

test("an iterator has what was kept, and what comes", async () => {
  const { client, peer } = await opened();
  peer.send(result("m1"));
  await peer.next();
  const ids = [];
  for await (const { id } of client) {
    ids.push(id);
    if (id === "m1") peer.send(result("m2"));
    if (id === "m2") peer.send(result("m3"));
    if (id === "m3") client.close();
  }
  assert.deepEqual(ids, ["m1", "m2", "m3"]);
});

test("an iterator acknowledges what it hands out, and leaves the rest", async () => {
  const { client, peer } = await opened();
  const iterator = client[Symbol.asyncIterator]();
  const first = iterator.next();
  peer.send(result("m1"));
  peer.send(result("m2"));
  assert.equal((await first).value.id, "m1");
  assert.deepEqual(await peer.next(), { ack: "m1" });
  await iterator.return();
  assert.deepEqual(await peer.next(), { ack: "m2" });
  peer.send(result("m3"));
  assert.deepEqual(await peer.next(), { ack: "m3" }, "it is not asked any more");
  const other = client[Symbol.asyncIterator]();
  assert.equal((await other.next()).value.id, "m2");
});

test("what is no welcome ends a connection, and what is no callback is passed over", async () => {
  const { client, peer } = await opened();
  peer.send({ hello: 1 });
  peer.send("null");
  peer.send(result("m1"));
  assert.deepEqual(await peer.next(), { ack: "m1" });
  peer.send("{");
  for (const frame of ["{", "null", "[]", '{"session":"session://b"}', result("m2")]) {
    const next = await peers.next();
    assert.deepEqual(await next.next(), { resume: "a.1" });
    next.send(frame);
    await next.closed();
  }
  const last = await peers.next();
  last.welcome("a", "a.2", true);
  await client.result("task-m1");
});

/** Timers that are set, and run by hand: their delays and what they do. */
function timers() {
  const set = [];
  mock.method(globalThis, "setTimeout", (run, delay) => set.push({ run, delay }));
  return set;
}

test("a server that says nothing is given up after ten seconds", async () => {
  const set = timers();
  open();
  const peer = await peers.next();
  await peer.next();
  const run = (delay) => set.find((timer) => timer.delay === delay).run();
  run(10_000);
  await peer.closed();
  run(0);
  assert.deepEqual(await (await peers.next()).next(), { resume: null });
});

test("waits double up to half a minute, and begin anew after a session that lasted as long", async () => {
  mock.method(Math, "random", () => 1);
  let now = 0;
  mock.method(Date, "now", () => now);
  const set = timers();
  const client = open();
  let [peer, waits] = [await peers.next(), []];
  for (let n = 0; n < 11; n++) {
    if (n >= 9) {
      peer.welcome("a", `a.${n}`, n === 10);
      while (client.state !== "open") await new Promise(setImmediate);
      now += n === 9 ? 29_999 : 30_000;
    }
    set.length = 0;
    peer.socket.terminate();
    while (!set.length) await new Promise(setImmediate);
    waits.push(set[0].delay);
    set[0].run();
    peer = await peers.next();
  }
  assert.deepEqual(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 250]);
});

test("who is back on the network, or in view, connects at once", async (t) => {
  const page = new EventTarget();
  Object.assign(globalThis, {
    addEventListener: page.addEventListener.bind(page),
    removeEventListener: page.removeEventListener.bind(page),
    document: Object.assign(page, { visibilityState: "hidden" }),
  });
  t.after(() => ["addEventListener", "removeEventListener", "document"].forEach((name) => delete globalThis[name]));
  const states = [];
  const { client, peer } = await opened({ onstate: (state) => states.push(state) });
  page.visibilityState = "visible";
  page.dispatchEvent(new Event("visibilitychange")); // with an open connection: nothing
  assert.equal(client.state, "open");
  peer.send(result("late")); // to a connection that is dropped
  page.dispatchEvent(new Event("online"));
  assert.equal(await peer.closed(), 1005, "a connection from before may be dead");
  const second = await peers.next();
  assert.deepEqual(await second.next(), { resume: "a.1" });
  second.welcome("a", "a.2", true);
  while (client.state !== "open") await new Promise(setImmediate);
  assert.deepEqual(states, ["open", "connecting", "open"]);

  timers(); // that never run out
  second.socket.terminate();
  while (client.state !== "away") await new Promise(setImmediate);
  page.visibilityState = "hidden";
  page.dispatchEvent(new Event("visibilitychange"));
  assert.equal(client.state, "away");
  page.visibilityState = "visible";
  page.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(await (await peers.next()).next(), { resume: "a.2" });
  client.close();
  page.dispatchEvent(new Event("online"));
  page.dispatchEvent(new Event("visibilitychange"));
  assert.equal(client.state, "closed");
});

test("a client that is closed tells all who wait, and stays closed", async () => {
  const { client, peer } = await opened();
  const waiting = assert.rejects(client.result("task-m1"), over("closed"));
  const ended = client[Symbol.asyncIterator]().next();
  client.close();
  client.close();
  await waiting;
  assert.deepEqual(await ended, { value: undefined, done: true });
  await assert.rejects(client.dsn, over("closed"));
  await assert.rejects(client.result("task-m1"), over("closed"));
  assert.equal(await peer.closed(), 1005);
  assert.equal(client.state, "closed");
});

test("an address is taken relative to the page, and http as ws", async (t) => {
  const dialled = [];
  class Deaf {
    constructor(address) {
      dialled.push(String(address));
    }
    close() {}
  }
  Object.assign(globalThis, { WebSocket: Deaf, location: { href: "https://shop.example/orders/" } });
  t.after(() => {
    Object.assign(globalThis, { WebSocket });
    delete globalThis.location;
  });
  for (const address of ["../session", "http://localhost/s", "wss://other.example/s"]) clients.push(connect(address));
  assert.deepEqual(dialled, ["wss://shop.example/session", "ws://localhost/s", "wss://other.example/s"]);
});
