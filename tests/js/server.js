// A server in the same process, behind a WebSocket of its own making: it keeps to the protocol, checks every byte, and breaks
// down when it is told to. And the rest of the environment that an Uploader needs.
import assert from "node:assert/strict";
import { setImmediate as nextTask } from "node:timers/promises";
import { crc32c } from "../../src/django_async_upload/static/django_async_upload/protocol/crc32c.js";
import {
  HEADER_SIZE,
  RESTART,
  SUBPROTOCOL,
  isIntact,
  parseFields,
  parseHeader,
  toHex,
} from "../../src/django_async_upload/static/django_async_upload/protocol/frames.js";
import { buildMessage } from "../../src/django_async_upload/static/django_async_upload/protocol/messages.js";
import { parseMessage } from "./messages.js";

export const WINDOW = 8 * 1024 * 1024;

/** What the server holds of one upload. */
class Session {
  constructor(number, { key, name, size, metadata }) {
    Object.assign(this, { key, name, size, metadata, received: 0, durable: 0, state: "uploading" });
    this.id = `00000000-0000-4000-8000-${String(number).padStart(12, "0")}`;
    this.bytes = new Uint8Array(size);
  }

  get crc() {
    return toHex(crc32c(this.bytes.subarray(0, this.received)));
  }
}

export class Server {
  /** By key. */
  sessions = new Map();
  sockets = [];
  /** What clients said, as [type, stream, fields, socket]; DATA's fields are {offset, size, flags}. */
  heard = [];
  hello = { connection_limit: 2 ** 40, stream_limit: 16384, max_streams: 256, heartbeat: 0 };
  extensions = "";
  isReachable = true;
  chunk = 65536;
  /** Bytes that a client may be ahead of what has arrived. */
  credit = 4 * 65536;
  /** The app's own answer, for COMPLETED. @type {object | undefined} */
  response = undefined;
  /** (type, stream, fields, socket) => true where it was handled otherwise. */
  intercept = () => false;

  get WebSocket() {
    const server = this;
    return class {
      bufferedAmount = 0;
      streams = new Map();
      isClosed = false;
      #arriving = Promise.resolve();

      constructor(url, protocols) {
        assert.deepEqual(protocols, [SUBPROTOCOL]);
        this.url = url;
        this.extensions = server.extensions;
        server.sockets.push(this);
        setImmediate(() =>
          server.isReachable ? server.say(this, 0, { type: "HELLO", ...server.hello }) : this.drop(1006),
        );
      }

      send(frame) {
        assert.ok(!this.isClosed, "sent to a socket that was closed");
        const bytes = frame.slice(); // its buffer may be used again at once
        this.bufferedAmount += bytes.length;
        this.#arriving = this.#arriving.then(() => {
          this.bufferedAmount -= bytes.length;
          if (!this.isClosed) {
            server.hear(this, bytes);
          }
        });
        // A test need not handle what the server asserts: it ends the test.
        this.#arriving.catch((error) => queueMicrotask(() => { throw error; }));
      }

      /** The client closes. */
      close(code) {
        this.isClosed = true;
        this.closeCode = code;
      }

      /** The server, or the network, closes. */
      drop(code) {
        if (!this.isClosed) {
          this.isClosed = true;
          this.onclose?.({ code });
        }
      }
    };
  }

  get socket() {
    return this.sockets.at(-1);
  }

  /** How often a message of this type came. */
  count(type) {
    return this.heard.filter(([each]) => each === type).length;
  }

  say(socket, stream, message) {
    setImmediate(() => {
      if (!socket.isClosed) {
        socket.onmessage?.({ data: buildMessage(stream, message).buffer });
      }
    });
  }

  hear(socket, frame) {
    const { type, flags, offset, stream } = parseHeader(frame);
    assert.ok(isIntact(frame), `${type} arrived damaged`);
    const payload = frame.subarray(HEADER_SIZE);
    const fields =
      type === "DATA"
        ? { offset, flags, size: payload.length, payload }
        : parseMessage(type, parseFields(frame));
    this.heard.push([type, stream, fields, socket]);
    if (!this.intercept(type, stream, fields, socket)) {
      this.answer(socket, type, stream, fields);
    }
  }

  answer(socket, type, stream, fields) {
    const say = (message) => this.say(socket, stream, message);
    const session = socket.streams.get(stream);
    switch (type) {
      case "CREATE":
        return this.#create(socket, stream, fields);
      case "DATA":
        return session && this.#take(socket, stream, session, fields);
      case "PROOF": {
        const matches = (place) => toHex(crc32c(session.bytes.subarray(0, session[place])));
        const offset =
          fields.received_crc32c === matches("received")
            ? session.received
            : fields.durable_crc32c === matches("durable")
              ? session.durable
              : null;
        if (offset === null) {
          return this.end(socket, stream, { type: "ERROR", code: "file_changed", message: "", retryable: false });
        }
        session.received = offset;
        return say({ type: "READY", offset, durable: session.durable, limit: offset + this.credit, chunk: this.chunk });
      }
      case "FINISH":
        if (!session || session.rewound) {
          return;
        }
        assert.equal(fields.size, session.received);
        assert.equal(fields.crc32c, session.crc);
        session.state = "completed";
        session.digests = fields.digests;
        return this.end(socket, stream, this.completed(session));
      case "CANCEL": {
        const target = session ?? [...this.sessions.values()].find(({ id }) => id === fields.upload);
        if (target?.state === "completed" && !fields.finished) {
          return this.end(socket, stream, this.completed(target));
        }
        if (target) {
          target.state = target.state === "completed" ? "deleted" : "cancelled";
          this.end(socket, stream, { type: "CANCELLED", upload: target.id });
        }
        return;
      }
      case "RELEASE":
        return this.end(socket, stream, { type: "RELEASED", durable: session.durable });
      case "PING":
        return say({ type: "PONG", nonce: fields.nonce });
      case "AUTH":
        return say({ type: "AUTHENTICATED", expires_in: this.expiresIn });
    }
  }

  completed(session) {
    const { id, name, size, crc, digests } = session;
    return {
      ...{ type: "COMPLETED", upload: id, name, size, crc32c: crc, stored_as: name },
      ...{ digests, receipt: `receipt of ${id}`, response: this.response },
    };
  }

  #create(socket, stream, fields) {
    let session = this.sessions.get(fields.key);
    if (session?.state === "completed") {
      return this.say(socket, stream, this.completed(session));
    }
    if (session) {
      socket.streams.set(stream, session);
      const { id: upload, name, durable, received, size } = session;
      return this.say(socket, stream, { type: "ATTACHED", upload, name, durable, received, size });
    }
    session = new Session(this.sessions.size, fields);
    this.sessions.set(fields.key, session);
    socket.streams.set(stream, session);
    this.say(socket, stream, {
      ...{ type: "CREATED", upload: session.id, name: session.name, limit: this.credit, chunk: this.chunk },
    });
  }

  #take(socket, stream, session, { offset, flags, payload }) {
    if (session.rewound) {
      if (flags !== RESTART || offset !== session.received) {
        return;
      }
      session.rewound = false;
    }
    assert.equal(offset, session.received, "DATA came at another offset");
    session.bytes.set(payload, offset);
    session.received += payload.length;
    session.durable = Math.max(session.durable, session.received - 2 * this.chunk);
    const { received, durable } = session;
    this.say(socket, stream, { type: "ACK", received, durable, limit: received + this.credit, chunk: this.chunk });
  }

  /** The last word on a stream. */
  end(socket, stream, message) {
    socket.streams.delete(stream);
    this.say(socket, stream, message);
  }

  refuse(socket, stream, code, more = {}) {
    this.end(socket, stream, { type: "ERROR", code, message: "", retryable: false, ...more });
  }
}

/** Records as IndexedDB would keep them, without it. */
export class Shelf {
  kept = new Map();

  async put(record) {
    this.kept.set(record.key, structuredClone({ ...record, handle: undefined }));
    if (record.handle) {
      this.kept.get(record.key).handle = record.handle;
    }
    return true;
  }

  async delete(key) {
    return this.kept.delete(key);
  }

  async all(url) {
    return [...this.kept.values()].filter((record) => record.url === url);
  }

  close() {}
}

/** No delay but those that a server asks for. */
export function environmentOf(server, more = {}) {
  const page = new EventTarget();
  page.visibilityState = "visible";
  return {
    WebSocket: server.WebSocket,
    now: () => performance.now(),
    setTimeout: (callback, ms) => setTimeout(callback, ms),
    clearTimeout,
    random: () => 0,
    network: new EventTarget(),
    isOnline: () => true,
    isServed: async () => true,
    page,
    base: "https://example.org/form/",
    records: new Shelf(),
    ...more,
  };
}

/** A clock that stands still until it is moved. */
export class Clock {
  time = 0;
  #timers = new Map();
  #last = 0;
  now = () => this.time;
  setTimeout = (callback, ms) => {
    this.#timers.set(++this.#last, { at: this.time + ms, callback });
    return this.#last;
  };
  clearTimeout = (timer) => this.#timers.delete(timer);

  /** Let `ms` pass, and everything that is due then or follows from it happen. */
  async pass(ms) {
    const until = this.time + ms;
    for (;;) {
      await settle();
      const due = [...this.#timers].filter(([, { at }]) => at <= until).sort(([, a], [, b]) => a.at - b.at);
      if (due.length === 0) {
        break;
      }
      const [timer, { at, callback }] = due[0];
      this.#timers.delete(timer);
      this.time = Math.max(this.time, at);
      callback();
    }
    this.time = until;
  }
}

/** Let everything happen that needs no timer. */
export async function settle() {
  for (let turn = 0; turn < 20; turn++) {
    await nextTask();
  }
}

/** Until `holds` returns something true; a process that waits for ever would outlive its test. */
export async function until(holds) {
  for (const end = performance.now() + 55_000; performance.now() < end; ) {
    const found = holds();
    if (found) {
      return found;
    }
    await nextTask();
  }
  throw new Error(`It never happened: ${holds}`);
}
