// Takes callbacks in over a WebSocket: the client's end of `session://…` (docs/protocol.md, "WebSocket frames").
//
// A message is acknowledged once it is as safe as the session itself: taken by the program, or kept here (and in
// `storage`, where there is one). What comes again under the same id is shown once.

/**
 * @typedef {"connecting" | "open" | "away" | "closed"} State `away`: waits before it connects again.
 *
 * @typedef {object} Options
 * @property {(callback: Callback) => unknown} [onmessage] Is given every callback. It is taken when this returns or resolves;
 *   left to `result` on `false`; and comes again later if this throws. Calls may overlap.
 * @property {(state: State) => void} [onstate] Is told each state.
 * @property {(session: { dsn: string, resumed: boolean, lost: boolean }) => void} [onsession] Is told whenever a session
 *   begins or goes on; `lost`: a former one was over, and nothing comes to its DSN any more.
 * @property {Storage} [storage] `sessionStorage`, so that a page that is loaded again resumes. What can read it can take
 *   the session over.
 * @property {string} [name] The key in `storage`; default `callback:` and the URL.
 *
 * @typedef {{ id: string, subject?: string, eventid?: string, type?: string, source?: string, time?: string,
 *   datacontenttype?: string, correlationid?: string, attempt?: number, timestamp?: number, signature?: string,
 *   traceparent?: string, headers?: Record<string, string>, body?: string, body_base64?: string }} Frame
 */

const WELCOME = 10_000; // ms until a connection that says nothing is given up
const BACKOFF = [250, 30_000]; // ms: the first wait at most, and any
const STEADY = 30_000; // ms that a session lasts before the first wait is short again
const STRAY = 60_000; // ms that what was sent over a connection which was given up may still arrive
const KEPT = 100; // callbacks, for `result`; when nobody takes them, the service tries further ones again later
const REMEMBERED = 512; // ids of callbacks that were taken: twice what may be unacknowledged

/** Why a DSN or a result does not come. */
export class SessionError extends Error {
  /** @param {"over" | "replaced" | "closed"} reason Too long away; resumed by another page; closed here. */
  constructor(reason) {
    super({ over: "the session is over", replaced: "the session was resumed elsewhere", closed: "the client is closed" }[reason]);
    this.name = "SessionError";
    this.reason = reason;
  }
}

/** One callback: a task's result, or an event. */
export class Callback {
  /** @param {Frame} frame As it came, with all attributes. */
  constructor(frame) {
    this.frame = frame;
    this.id = frame.id;
    /** The id of the task, or of the subscription. */
    this.subject = frame.subject;
    this.type = frame.type;
    this.contentType = frame.datacontenttype;
  }

  /** The body, byte for byte as it was signed. @returns {Uint8Array} */
  bytes() {
    const { body, body_base64: base64 } = this.frame;
    if (base64 === undefined) return new TextEncoder().encode(body ?? "");
    return Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
  }

  /** The body as a text. @returns {string} */
  text() {
    return this.frame.body ?? new TextDecoder().decode(this.bytes());
  }

  /** The body as JSON; throws where it is none. @returns {any} */
  json() {
    return JSON.parse(this.text());
  }
}

/** A session with the service, over as many connections as it takes. */
export class Client {
  #url;
  #options;
  #name;
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {State} */ #state = "connecting";
  /** @type {SessionError | null} */ #ended = null;
  /** @type {string | null} */ #secret = null;
  /** @type {string | null} */ #address = null;
  /** Whether a connection was given up that had shown the secret. */ #strayed = false;
  /** That secret, and until when: arriving late, it takes the session over. @type {{ secret: string, until: number } | null} */
  #former = null;
  /** Why the secret before is shown: what was said of the later one. @type {number | null} */ #doubt = null;
  #dsn = deferred();
  #lost = false;
  #shown = false;
  #failures = 0;
  #greeted = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** @type {Map<string, Set<ReturnType<typeof deferred>>>} */ #waiters = new Map();
  /** @type {Set<(callback: Callback) => unknown>} */ #listeners = new Set();
  /** @type {Set<() => void>} */ #iterators = new Set();
  /** What was not forgotten yet, oldest first. @type {Map<string, { callback: Callback, taken: boolean }>} */ #kept = new Map();
  /** Ids of what is being offered. @type {Set<string>} */ #busy = new Set();
  /** @type {Set<string>} */ #seen = new Set();
  #wake = () => this.#connect();
  #appear = () => {
    if (document.visibilityState === "visible" && this.#state === "away") this.#connect();
  };

  /** @param {string | URL} url @param {Options} options */
  constructor(url, options) {
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace(/^http/, "ws");
    this.#options = options;
    this.#name = options.name ?? `callback:${this.#url}`;
    if (options.onmessage) this.#listeners.add(options.onmessage);
    this.#load();
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#appear);
    this.#connect();
  }

  /** The address for `$rpc.callback`, `session://…`, as soon as there is one. Rejects with `SessionError` once closed. */
  get dsn() {
    return this.#dsn.promise;
  }

  get state() {
    return this.#state;
  }

  /**
   * The callback of a task, by the id in its acknowledgment (or by a callback's own id), whether it came before or comes
   * later. Rejects with `SessionError` when the session is over or closed, and with the signal's reason.
   *
   * @param {string} id @param {{ signal?: AbortSignal }} [options] @returns {Promise<Callback>}
   */
  result(id, { signal } = {}) {
    if (signal?.aborted) return Promise.reject(signal.reason);
    for (const kept of this.#kept.values()) {
      if (kept.callback.subject === id || kept.callback.id === id) {
        kept.taken = true;
        this.#save();
        return Promise.resolve(kept.callback);
      }
    }
    if (this.#ended) return Promise.reject(this.#ended);
    const waiter = deferred();
    const waiters = this.#waiters.get(id) ?? new Set();
    this.#waiters.set(id, waiters.add(waiter));
    const abort = () => waiter.reject(signal?.reason);
    signal?.addEventListener("abort", abort);
    return waiter.promise.finally(() => {
      signal?.removeEventListener("abort", abort);
      if (waiters.delete(waiter) && !waiters.size && this.#waiters.get(id) === waiters) this.#waiters.delete(id);
    });
  }

  /** Every callback that nobody has taken, and those to come, until `close`. One is taken when it is handed out. */
  async *[Symbol.asyncIterator]() {
    /** @type {{ callback: Callback, take: (taken: boolean) => void }[]} */ const queue = [];
    let wake = () => {};
    /** @param {Callback} callback */
    const listen = (callback) => new Promise((take) => (queue.push({ callback, take }), wake()));
    const end = () => wake();
    this.#listeners.add(listen);
    this.#iterators.add(end);
    try {
      for (const kept of this.#kept.values()) {
        if (kept.taken) continue;
        queue.push({ callback: kept.callback, take: (taken) => (kept.taken ||= taken) && this.#save() });
      }
      while (queue.length || !this.#ended) {
        const next = queue.shift();
        if (next) {
          next.take(true);
          yield next.callback;
        } else await new Promise((resolve) => (wake = () => resolve(undefined)));
      }
    } finally {
      this.#listeners.delete(listen);
      this.#iterators.delete(end);
      for (const { take } of queue) take(false);
    }
  }

  /** Ends the connection, and whoever waits. What is in `storage` stays: a new client comes back to the session. */
  close() {
    this.#end(new SessionError("closed"));
  }

  #connect() {
    this.#drop();
    const socket = new WebSocket(this.#url, "callback.v1");
    this.#socket = socket;
    this.#timer = setTimeout(() => this.#retry(), WELCOME);
    socket.onopen = () => {
      socket.send(JSON.stringify({ resume: this.#secret }));
      this.#shown = true;
    };
    socket.onmessage = ({ data }) => socket === this.#socket && this.#read(data);
    socket.onclose = ({ code }) => socket === this.#socket && this.#closed(code);
    socket.onerror = () => {}; // a close follows
    this.#turn("connecting");
  }

  #drop() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    this.#strayed ||= this.#shown;
    this.#shown = false;
    socket?.close();
  }

  /** Connects again after a while, longer each time, at random: a service that starts is not met by all at once. */
  #retry() {
    this.#drop();
    if (this.#state === "open" && Date.now() - this.#greeted >= STEADY) this.#failures = 0;
    const most = Math.min(BACKOFF[0] * 2 ** this.#failures++, BACKOFF[1]);
    this.#timer = setTimeout(() => this.#connect(), Math.random() * most);
    this.#turn("away");
  }

  /** @param {number} code */
  #closed(code) {
    if (code === 4409 || code === 4410) {
      const former = this.#former;
      this.#former = null;
      this.#shown = false;
      if (former && Date.now() < former.until) {
        this.#doubt = code;
        this.#secret = former.secret;
        return this.#retry();
      }
      code = this.#doubt ?? code;
      this.#doubt = null;
    }
    if (code === 4409) this.#end(new SessionError("replaced"));
    else if (code === 4410 && this.#secret) {
      this.#over();
      this.#connect();
    } else this.#retry();
  }

  /** @param {unknown} data */
  #read(data) {
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return this.#retry();
    }
    if (this.#state === "open") {
      if (typeof frame?.id === "string") this.#offer(frame);
    } else if (typeof frame?.session === "string" && typeof frame.resume === "string") this.#welcome(frame);
    else this.#retry();
  }

  /** @param {{ session: string, resume: string, resumed?: boolean }} welcome */
  #welcome({ session, resume, resumed = false }) {
    if (this.#secret && !resumed) this.#over();
    clearTimeout(this.#timer);
    this.#greeted = Date.now();
    this.#former = this.#secret && this.#strayed ? { secret: this.#secret, until: Date.now() + STRAY } : null;
    this.#strayed = this.#shown = false;
    this.#doubt = null;
    this.#secret = resume;
    this.#address = session;
    this.#save();
    this.#dsn.resolve(session);
    this.#turn("open");
    const lost = this.#lost;
    this.#lost = false;
    this.#options.onsession?.({ dsn: session, resumed, lost });
  }

  #over() {
    this.#secret = null;
    this.#lost = true;
    if (this.#address) this.#dsn = deferred();
    this.#address = null;
    this.#save();
    this.#fail(new SessionError("over"));
  }

  /** @param {Frame} frame @param {boolean} [isStored] It was acknowledged already: it is kept, whatever becomes of it. */
  async #offer(frame, isStored = false) {
    const { id } = frame;
    if (this.#busy.has(id)) return;
    if (this.#seen.has(id)) return this.#answer({ ack: id });
    const kept = { callback: new Callback(frame), taken: false };
    this.#busy.add(id);
    this.#kept.set(id, kept);
    for (const name of new Set([frame.subject ?? id, id])) {
      for (const waiter of this.#waiters.get(name) ?? []) {
        kept.taken = true;
        waiter.resolve(kept.callback);
      }
    }
    const listening = [...this.#listeners].map(async (listener) => listener(kept.callback));
    const ends = await Promise.allSettled(listening);
    const failed = ends.find((end) => end.status === "rejected");
    if (failed) (globalThis.reportError ?? console.error)(failed.reason);
    kept.taken ||= ends.some((end) => end.status === "fulfilled" && end.value !== false);
    this.#busy.delete(id);
    this.#seen.add(id);
    if (!kept.taken && !isStored && (failed || !this.#trim() || !this.#save())) {
      this.#kept.delete(id);
      this.#seen.delete(id);
      return this.#answer({ nack: id, kind: "later", retryAfter: 5 });
    }
    this.#trim();
    this.#save();
    this.#answer({ ack: id });
  }

  /** Forgets what is too much; false where too much waits to be taken. */
  #trim() {
    for (const [id, { taken }] of this.#kept) {
      if (this.#kept.size <= KEPT) break;
      if (taken) this.#kept.delete(id);
    }
    for (const id of this.#seen) if (this.#seen.size > REMEMBERED && !this.#kept.has(id)) this.#seen.delete(id);
    const waiting = [...this.#kept].filter(([id, { taken }]) => !taken && !this.#busy.has(id));
    return waiting.length <= KEPT;
  }

  /** @param {object} answer */
  #answer(answer) {
    // What is not answered comes again.
    if (this.#state === "open") this.#socket?.send(JSON.stringify(answer));
  }

  #load() {
    try {
      const stored = JSON.parse(this.#options.storage?.getItem(this.#name) ?? "null");
      this.#secret = stored?.secret ?? null;
      this.#seen = new Set(stored?.seen);
      // Once the program has its client.
      for (const frame of stored?.kept ?? []) Promise.resolve(frame).then((frame) => this.#offer(frame, true));
    } catch {
      // Somebody else's value, or no access: a session of its own.
    }
  }

  /** Whether what is to be kept is as safe as the session. */
  #save() {
    const untaken = [...this.#kept.values()].filter(({ taken }) => !taken).map(({ callback }) => callback);
    const kept = untaken.map(({ frame }) => frame);
    const waiting = new Set(untaken.map(({ id }) => id));
    const seen = [...this.#seen].filter((id) => !waiting.has(id));
    try {
      this.#options.storage?.setItem(this.#name, JSON.stringify({ secret: this.#secret, seen, kept }));
      return true;
    } catch {
      return false;
    }
  }

  /** @param {State} state */
  #turn(state) {
    if (this.#state === state) return;
    this.#state = state;
    this.#options.onstate?.(state);
  }

  /** @param {SessionError} error */
  #fail(error) {
    for (const waiters of this.#waiters.values()) for (const waiter of waiters) waiter.reject(error);
  }

  /** @param {SessionError} error */
  #end(error) {
    if (this.#ended) return;
    this.#ended = error;
    this.#drop();
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#appear);
    this.#fail(error);
    this.#dsn = deferred();
    this.#dsn.reject(error);
    this.#turn("closed");
    for (const end of this.#iterators) end();
  }
}

/** A promise that is settled from outside, and whose rejection nobody needs to hear. */
function deferred() {
  /** @type {(value: any) => void} */ let resolve = () => {};
  /** @type {(reason: unknown) => void} */ let reject = () => {};
  /** @type {Promise<any>} */ const promise = new Promise((...settle) => ([resolve, reject] = settle));
  promise.catch(() => {});
  return { promise, resolve, reject };
}

/**
 * Opens a session with the service at this URL (`wss:`, `https:`, or relative to the page).
 *
 * @param {string | URL} url @param {Options} [options]
 */
export function connect(url, options = {}) {
  return new Client(url, options);
}
