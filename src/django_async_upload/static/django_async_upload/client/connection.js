/** One WebSocket: the protocol, what the socket may hold, and the fair division of both among the uploads. */
import { ClientProtocol } from "../protocol/client.js";
import { CODES, UploadError } from "../protocol/errors.js";
import { Flight } from "./flight.js";
import { HEADER_SIZE, SUBPROTOCOL, malformed } from "../protocol/frames.js";

/** @typedef {import( "../protocol/messages.js").Message} Message */
/** @typedef {import( "../protocol/stream.js").Stream} Stream */

/**
 * An attachment or a cancellation. `step` does what can be done now, writes at most one chunk, and returns whether there may be more to
 * do at once. `received` gets the messages on the stream, `lost` is called when the connection ends.
 *
 * @typedef {object} StreamHolder
 * @property {() => boolean} step
 * @property {(message: Message) => void} received
 * @property {(error: UploadError) => void} lost
 */

/** Seconds from opening the WebSocket to HELLO, and to wait behind a DRAIN until the server closes. */
const PATIENCE = 15;
/** A PING that is not answered for so many heartbeats means that the connection is dead. */
const SILENCES = 2;
/** Seconds to wait for an answer where there is reason to doubt: the network changed, the machine slept. */
const DOUBT = 5;
/** Seconds after which a connection is given up while the server owes an answer on a stream, and gives none on any. */
const STALL = 60;
/** Milliseconds of sending before other tasks of the page get their turn. */
const TURN = 8;

/** What a close code means where no ERROR came before it; all others are lost connections. */
const CLOSE_CODES = /** @type {Record<number, string>} */ ({
  1002: "protocol_violation",
  1003: "protocol_violation",
  1007: "protocol_violation",
  1009: "protocol_violation",
  4400: "protocol_violation",
  4401: "authentication_required",
  4406: "subprotocol_required",
});

/**
 * The error that an ERROR brings.
 *
 * @param {Omit<import( "../protocol/messages.js").ErrorMessage, "retryable"> & {retryable?: boolean}} message
 */
export function errorOf({ code, message, retryable, retry_after: retryAfter, facts }) {
  return new UploadError(code, { message, retryable, retryAfter, facts });
}

/** It connects when it is made. No call waits here: a holder that cannot go on is stepped again when it may. */
export class Connection {
  #protocol = new ClientProtocol();
  /** @type {Map<number, StreamHolder>} */
  #holders = new Map();
  /** Holders that may have something to do, in turn. @type {Set<StreamHolder>} */
  #ready = new Set();
  #stepping = false;
  #flight;
  #heardAt;
  #saidAt;
  /** When the oldest PING that has no answer was sent, ms. @type {number | null} */
  #askedAt = null;
  /** @type {Set<number>} */
  #timers = new Set();
  /** Errors `busy` whose `retry_after` is not over: no stream is opened meanwhile. */
  #busy = 0;
  /** When a message came on a stream, or the server owed none, ms. */
  #servedAt = 0;

  /**
   * @param {string} url
   * @param {import( "./environment.js").Environment} environment
   * @param {import( "./line.js").Line} line
   */
  constructor(url, environment, line) {
    this.#environment = environment;
    this.#line = line;
    /** Why it is over. @type {UploadError | null} */
    this.error = null;
    /** Seconds, where the server said when to come back. @type {number | undefined} */
    this.retryAfter = undefined;
    this.#heardAt = this.#saidAt = environment.now();
    this.#flight = new Flight(this.#protocol);
    this.#socket = new environment.WebSocket(url, [SUBPROTOCOL]);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#take(data);
    this.#socket.onclose = ({ code }) =>
      this.#over(new UploadError(CLOSE_CODES[code] ?? "connection_lost", { facts: { code } }));
    this.#after(PATIENCE, () => {
      if (this.#protocol.hello === null) {
        this.#fail(new UploadError("connection_lost", { message: "The server sent no HELLO." }));
      }
    });
  }

  #environment;
  #line;
  #socket;

  /** HELLO came, and it is not over. */
  get isOpen() {
    return this.#protocol.hello !== null && this.error === null;
  }

  /** New streams may be opened. */
  get isUsable() {
    return this.isOpen && !this.#protocol.draining;
  }

  /** @throws {UploadError} before HELLO */
  get hello() {
    if (this.#protocol.hello === null) {
      throw new UploadError("connection_lost");
    }
    return this.#protocol.hello;
  }

  /** The extensions that were negotiated, as the handshake spells them. */
  get extensions() {
    return this.#socket.extensions;
  }

  get openStreams() {
    return this.#protocol.streams.size;
  }

  // Called by holders of streams ------------------------------------------------------------------------------

  /** @param {string} [ticket] */
  authenticate(ticket) {
    this.#write(this.#protocol.sendAuth(ticket));
  }

  /**
   * A new stream, opened by one of the protocol's methods; null while all are taken, or the server is busy.
   *
   * @param {StreamHolder} holder
   * @param {(protocol: ClientProtocol) => [Stream, Uint8Array<ArrayBuffer>]} send
   */
  open(holder, send) {
    if (!this.isUsable || this.#busy > 0 || this.openStreams >= this.hello.max_streams) {
      return null;
    }
    const [stream, frame] = send(this.#protocol);
    this.#holders.set(stream.id, holder);
    this.#write(frame);
    return stream;
  }

  /**
   * Another holder gets the messages of a stream from now on.
   *
   * @param {Stream} stream
   * @param {StreamHolder} holder
   */
  handOver(stream, holder) {
    this.#holders.set(stream.id, holder);
  }

  /**
   * Write a control frame.
   *
   * @param {(protocol: ClientProtocol) => Uint8Array<ArrayBuffer>} send one of the protocol's methods
   */
  say(send) {
    if (this.error === null) {
      this.#write(send(this.#protocol));
    }
  }

  /**
   * Bytes that a chunk on `stream` may have now: its credit, at most what the server advises. 0: an ACK will come.
   *
   * @param {Stream} stream
   */
  room(stream) {
    return Math.min(this.#protocol.credit(stream.id), stream.chunk);
  }

  /**
   * Write a chunk, of at most `room` bytes.
   *
   * @param {Stream} stream
   * @param {import( "../file/source.js").Chunk} chunk
   */
  sendChunk(stream, { size, crc, frame }) {
    frame.set(this.#protocol.sendChunk(stream.id, size, crc));
    this.#saidAt = this.#environment.now();
    this.#socket.send(frame); // copies it: the next chunk may take its place
    this.#flight.left(this.#saidAt);
  }

  /**
   * Let `holder` do what it can, in turn with others.
   *
   * @param {StreamHolder} holder
   */
  ready(holder) {
    this.#ready.add(holder);
    this.#pump();
  }

  /** Close it. The line is not told. */
  close() {
    this.#end(new UploadError("connection_lost", { message: "The connection was closed." }));
    this.#socket.close(1000);
  }

  /**
   * Close it, and tell the uploads, which then wait for another connection.
   *
   * @param {UploadError} error that they get
   */
  leave(error) {
    const holders = [...this.#holders.values()];
    this.close();
    holders.forEach((holder) => holder.lost(error));
  }

  /** Ask the server for an answer: without one it is over in a few seconds, not in a minute. */
  probe() {
    if (!this.isOpen) {
      return;
    }
    const asked = this.#environment.now();
    this.#write(this.#protocol.sendPing());
    this.#after(DOUBT, () => {
      // Any message is an answer: on a slow line ACKs come long before the PONG.
      if (this.#heardAt < asked) {
        this.#fail(new UploadError("connection_lost", { message: "The server does not answer." }));
      }
    });
  }

  // Called by the socket --------------------------------------------------------------------------

  /** @param {unknown} data */
  #take(data) {
    if (this.error !== null) {
      return;
    }
    this.#heardAt = this.#environment.now();
    this.#askedAt = null;
    let event;
    try {
      if (!(data instanceof ArrayBuffer)) {
        throw malformed("it is text");
      }
      event = this.#protocol.receive(new Uint8Array(data));
    } catch (error) {
      this.#fail(/** @type {UploadError} */ (error));
      return;
    }
    for (const frame of this.#protocol.replies()) {
      this.#write(frame);
    }
    if (event === null) {
      return;
    }
    const { stream, message } = event;
    if (stream !== 0 || message.type === "LIMIT") {
      this.#servedAt = this.#heardAt;
    }
    if (stream === 0) {
      this.#receivedOnConnection(message);
    } else {
      const holder = this.#holders.get(stream);
      const isClosed = !this.#protocol.streams.has(stream);
      if (message.type === "ERROR" && message.code === "busy") {
        this.#waitWhileBusy(message.retry_after ?? 0);
      }
      if (isClosed) {
        this.#holders.delete(stream);
      }
      holder?.received(message);
      if (holder && !isClosed) {
        this.#ready.add(holder);
      }
      if (isClosed) {
        this.#line.slotFreed();
      }
    }
    this.#flight.landed(this.#environment.now());
    this.#pump();
  }

  /** @param {number} seconds */
  #waitWhileBusy(seconds) {
    this.#busy += 1;
    this.#after(seconds, () => {
      this.#busy -= 1;
      this.#line.slotFreed();
    });
  }

  /** @param {Message} message */
  #receivedOnConnection(message) {
    switch (message.type) {
      case "HELLO":
        if (message.heartbeat > 0) {
          this.#beat(message.heartbeat);
        }
        this.#line.opened();
        return;
      case "LIMIT":
        this.#holders.forEach((holder) => this.#ready.add(holder));
        return;
      case "DRAIN":
        this.retryAfter = message.retry_after;
        // The server closes; one that does not is left after a while.
        this.#after(message.retry_after + PATIENCE, () => this.#fail(new UploadError("draining")));
        this.#line.heard(message);
        return;
      case "ERROR":
        // Here the meaning of a code that is known goes before `retryable`.
        this.#fail(errorOf(CODES.has(message.code) ? { ...message, retryable: undefined } : message));
        return;
      default:
        this.#line.heard(message);
    }
  }

  // -----------------------------------------------------------------------------------------------

  /** @param {Uint8Array<ArrayBuffer>} frame */
  #write(frame) {
    if (this.error === null) {
      this.#saidAt = this.#environment.now();
      this.#socket.send(frame);
    }
  }

  /** Step the holders that are ready in turn, one chunk each, as far as socket and time allow. */
  #pump() {
    if (this.#stepping) {
      return;
    }
    this.#stepping = true;
    const until = this.#environment.now() + TURN;
    try {
      for (const holder of this.#ready) {
        if (this.error !== null || !this.#flight.hasRoom(this.#socket.bufferedAmount)) {
          break; // the next ACK steps those that are left
        }
        if (this.#environment.now() > until) {
          this.#after(0, () => this.#pump());
          break;
        }
        this.#ready.delete(holder);
        if (holder.step()) {
          this.#ready.add(holder); // behind all others: a Set is iterated in the order of its additions
        }
      }
    } finally {
      this.#stepping = false;
    }
  }

  /**
   * Ask when nothing was sent or received for a heartbeat; give up when there is no answer, or where the server answers, but
   * serves no stream. A page in the background may get its timers late, so silence alone proves nothing: it takes a question.
   *
   * @param {number} heartbeat seconds
   */
  #beat(heartbeat) {
    const now = this.#environment.now();
    if (this.#askedAt !== null && now - this.#askedAt >= SILENCES * heartbeat * 1000) {
      this.#fail(new UploadError("connection_lost", { message: "The server was silent." }));
      return;
    }
    if (!this.#protocol.awaits) {
      this.#servedAt = now;
    } else if (now - this.#servedAt >= STALL * 1000) {
      this.#fail(new UploadError("connection_lost", { message: "The server served no upload for too long." }));
      return;
    }
    const isSilent = this.#askedAt === null && now - this.#heardAt >= heartbeat * 1000;
    if (isSilent || now - this.#saidAt >= heartbeat * 1000) {
      this.#askedAt ??= now;
      this.#write(this.#protocol.sendPing());
    }
    this.#after(heartbeat / 4, () => this.#beat(heartbeat));
  }

  /**
   * @param {number} seconds
   * @param {() => void} callback not called when the connection is over
   */
  #after(seconds, callback) {
    const timer = this.#environment.setTimeout(() => {
      this.#timers.delete(timer);
      callback();
    }, seconds * 1000);
    this.#timers.add(timer);
  }

  /**
   * End the connection because of what was, or was not, received.
   *
   * @param {UploadError} error
   */
  #fail(error) {
    if (this.error === null) {
      this.#over(error);
      this.#socket.close(error.isViolation ? 4400 : 1000);
    }
  }

  /** @param {UploadError} error */
  #over(error) {
    if (this.error === null) {
      const holders = [...this.#holders.values()];
      this.#end(error);
      holders.forEach((holder) => holder.lost(error));
      this.#line.lost(error);
    }
  }

  /** @param {UploadError} error */
  #end(error) {
    this.error = error;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#timers.forEach((timer) => this.#environment.clearTimeout(timer));
    this.#timers.clear();
    this.#holders.clear();
    this.#ready.clear();
  }
}
