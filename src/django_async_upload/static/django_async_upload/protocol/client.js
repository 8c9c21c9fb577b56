/**
 * The client's half of protocol 1: frames in, events out; no I/O, no clock, no bytes of files.
 *
 * {@link ClientProtocol.receive} takes one WebSocket message and returns its message; the `send...` methods check that
 * something may be said, remember that it was, and return the frame to write. Frames MUST be written in the order in which they
 * were made. After every `receive` the caller writes {@link ClientProtocol.replies} too.
 *
 * Whatever the server may not say throws an UploadError that `isViolation`, and changes nothing: the caller closes the
 * connection. The specification is `docs/reference/protocol.md`.
 */
import { crc32c } from "./crc32c.js";
import { UploadError } from "./errors.js";
import {
  HEADER_SIZE,
  MAX_CHUNK,
  RESTART,
  buildHeader,
  isIntact,
  malformed,
  parseFields,
  parseHeader,
} from "./frames.js";
import { buildMessage, isFromClient, parseMessage } from "./messages.js";
import { RECEIVES, SENDS, Stream } from "./stream.js";

/** @typedef {import( "./frames.js").FrameType} FrameType */
/** @typedef {import( "./messages.js").Message} Message */
/** @typedef {import( "./stream.js").StreamState} StreamState */
/** @typedef {Uint8Array<ArrayBuffer>} Frame */

/** @type {ReadonlySet<FrameType>} */
const ABOUT_CONNECTION = new Set(["HELLO", "AUTHENTICATED", "PING", "PONG", "LIMIT", "DRAIN"]);

/**
 * What the server said, and on which stream; 0 is the connection itself.
 *
 * @typedef {{stream: number, message: Message}} Event
 */

/** One connection, as its client sees it. */
export class ClientProtocol {
  /** @type {Frame[]} */
  #replies = [];
  /** @type {Map<number, Stream>} */
  #streams = new Map();
  #lastId = 0;
  /** @type {import( "./messages.js").Hello | null} */
  #hello = null;
  #draining = false;
  #sent = 0;
  #limit = 0;
  #inFlight = 0;

  /** null before it came. */
  get hello() {
    return this.#hello;
  }

  /** DRAIN came: no stream can be opened. */
  get draining() {
    return this.#draining;
  }

  /** Payload bytes of all DATA on this connection. */
  get sent() {
    return this.#sent;
  }

  /** What `sent` may not pass. */
  get limit() {
    return this.#limit;
  }

  /** Payload bytes on open streams that were sent and not yet `received`. */
  get inFlight() {
    return this.#inFlight;
  }

  /**
   * The open streams by id.
   *
   * @returns {ReadonlyMap<number, Stream>}
   */
  get streams() {
    return this.#streams;
  }

  /**
   * Bytes that DATA may carry on `stream` now; 0 where it may not send DATA at all.
   *
   * @param {number} stream
   */
  credit(stream) {
    const entry = this.#streams.get(stream);
    if (entry === undefined || SENDS[entry.state].DATA === undefined) {
      return 0;
    }
    return Math.max(0, Math.min(entry.limit - entry.sent, this.#limit - this.#sent));
  }

  /**
   * The server owes an answer on some stream: an ACK, credit for a chunk, or the answer to FINISH. CREATE and ATTACH do not count:
   * before it answers, a server may have much to read and nothing to say.
   */
  get awaits() {
    return [...this.#streams.values()].some((stream) => this.#isOwed(stream));
  }

  /** @param {Stream} stream */
  #isOwed({ id, state, sent, received, chunk }) {
    return state === "sending" ? sent > received || this.credit(id) < chunk : state === "finishing";
  }

  // Receiving -------------------------------------------------------------------------------------

  /**
   * Take one binary message; null when it was in flight to a stream that is closed. Where the message closes the stream, it is
   * gone from {@link streams} when this returns.
   *
   * @param {Uint8Array} frame
   * @returns {Event | null}
   * @throws {UploadError} a violation (and then nothing has changed): close the connection
   */
  receive(frame) {
    let header;
    try {
      header = parseHeader(frame);
    } catch (error) {
      throw frame.length >= HEADER_SIZE && !isIntact(frame) ? new UploadError("corrupt_frame") : error;
    }
    const { type, stream: id } = header;
    if (type === "DATA" || isFromClient(type)) {
      if (!isIntact(frame)) {
        throw new UploadError("corrupt_frame");
      }
      throw unexpected(type, "a server does not send it");
    }
    const message = parseMessage(type, parseFields(frame));
    if (this.#hello === null && type !== "HELLO" && type !== "ERROR") {
      throw unexpected(type, "before HELLO");
    }
    if (id === 0) {
      this.#receiveOnConnection(message);
      return { stream: 0, message };
    }
    if (ABOUT_CONNECTION.has(type)) {
      throw malformed(`${type} belongs to stream 0`);
    }
    if (id > this.#lastId) {
      throw new UploadError("unknown_stream", { facts: { stream: id } });
    }
    const stream = this.#streams.get(id);
    if (stream === undefined) {
      return null;
    }
    const state = RECEIVES[stream.state][type];
    if (state === undefined) {
      throw unexpected(type, stream.state);
    }
    const before = stream.inFlight;
    stream.take(message, this.#openHello());
    if (type === "PAUSE") {
      // Answered at once, so no ACK can come between PAUSE and PAUSED.
      this.#replies.push(buildMessage(id, { type: "PAUSED", offset: stream.sent }));
    }
    stream.state = state;
    if (state === "closed") {
      this.#streams.delete(id);
    }
    this.#inFlight += (state === "closed" ? 0 : stream.inFlight) - before;
    return { stream: id, message };
  }

  /**
   * Frames that answer what was received (PONG, PAUSED): write them now, in this order.
   *
   * @returns {Frame[]}
   */
  replies() {
    const replies = this.#replies;
    this.#replies = [];
    return replies;
  }

  /** @param {Message} message */
  #receiveOnConnection(message) {
    switch (message.type) {
      case "HELLO":
        if (this.#hello !== null) {
          throw unexpected("HELLO", "HELLO came before");
        }
        this.#hello = message;
        this.#limit = message.connection_limit;
        return;
      case "LIMIT":
        if (message.limit < this.#limit) {
          throw malformed(`LIMIT: ${message.limit} is below ${this.#limit}`);
        }
        this.#limit = message.limit;
        return;
      case "DRAIN":
        this.#draining = true;
        return;
      case "PING":
        this.#replies.push(buildMessage(0, { type: "PONG", nonce: message.nonce }));
        return;
      case "PONG":
      case "AUTHENTICATED":
      case "ERROR":
        return;
      default:
        throw malformed(`${message.type} does not belong to stream 0`);
    }
  }

  // Sending ---------------------------------------------------------------------------------------

  /**
   * AUTH. With a ticket, the first frame after a HELLO that says `authenticated: false`.
   *
   * @param {string} [ticket]
   */
  sendAuth(ticket) {
    this.#openHello();
    return buildMessage(0, { type: "AUTH", ticket });
  }

  /** @param {number} [nonce] */
  sendPing(nonce = 0) {
    return buildMessage(0, { type: "PING", nonce });
  }

  /**
   * The new stream, and the frame. Data may follow at once, within the credit.
   *
   * @param {Omit<import( "./messages.js").Create, "type">} create
   * @returns {[Stream, Frame]}
   * @throws {UploadError} `too_many_streams`, `draining`
   */
  sendCreate(create) {
    const [stream, frame] = this.#open("creating", { type: "CREATE", ...create });
    const hello = this.#openHello();
    stream.setLimit(hello.stream_limit, hello);
    stream.setChunk(MAX_CHUNK, hello);
    return [stream, frame];
  }

  /**
   * Take an upload over; throws as {@link sendCreate} does.
   *
   * @param {string} upload
   */
  sendAttach(upload) {
    return this.#open("attaching", { type: "ATTACH", upload });
  }

  /**
   * Ask for an upload's state on a new stream; throws as {@link sendCreate} does.
   *
   * @param {string} upload
   */
  sendQuery(upload) {
    return this.#open("querying", { type: "QUERY", upload });
  }

  /**
   * Follow uploads on a new stream, until {@link sendRelease}; throws as {@link sendCreate} does.
   *
   * @param {"uploads" | "own" | "all"} scope
   * @param {string[]} uploads
   */
  sendWatch(scope, uploads) {
    return this.#open("watching", { type: "WATCH", scope, uploads });
  }

  /**
   * Cancel an upload that this connection does not hold, on a new stream; throws as {@link sendCreate} does.
   *
   * @param {string} upload
   * @param {boolean} [finished] also where its file is finished, unless an object, an API or a receiver has taken it
   */
  sendCancelOf(upload, finished) {
    return this.#open("cancelling", { type: "CANCEL", upload, ...(finished ? { finished } : {}) });
  }

  /**
   * Answer ATTACHED; `received` is left out where the client has fewer bytes.
   *
   * @param {number} stream
   * @param {string} durable CRC-32C of the first `durable` bytes, hex
   * @param {string} [received] CRC-32C of the first `received` bytes, hex
   */
  sendProof(stream, durable, received) {
    const [entry, state] = this.#maySend(stream, "PROOF");
    entry.state = state;
    if (received === undefined) {
      entry.proved = entry.proved.slice(0, 1);
    }
    return buildMessage(stream, { type: "PROOF", durable_crc32c: durable, received_crc32c: received });
  }

  /**
   * The 16 bytes to write before `payload`, which follows {@link Stream.sent}; throws as {@link sendChunk} does.
   *
   * @param {number} stream
   * @param {Uint8Array} payload
   */
  sendData(stream, payload) {
    return this.sendChunk(stream, payload.length, crc32c(payload));
  }

  /**
   * The 16 bytes to write before a payload of which only size and CRC are known here. It follows {@link Stream.sent}.
   *
   * @param {number} stream
   * @param {number} size bytes
   * @param {number} crc CRC-32C of the payload
   * @throws {UploadError} `flow_control` beyond the credit, `unexpected_message` where no DATA may be sent
   */
  sendChunk(stream, size, crc) {
    const [entry] = this.#maySend(stream, "DATA");
    if (!(size > 0 && size <= this.#openHello().max_chunk)) {
      throw unexpected("DATA", `${size} bytes`);
    }
    const end = entry.sent + size;
    if (end > entry.limit || this.#sent + size > this.#limit) {
      throw new UploadError("flow_control", { facts: { end, limit: entry.limit } });
    }
    const place = { offset: entry.sent, flags: entry.restart ? RESTART : 0 };
    const header = buildHeader("DATA", stream, size, crc, place);
    entry.sent = end;
    entry.restart = false;
    this.#sent += size;
    this.#inFlight += size;
    return header;
  }

  /**
   * @param {number} stream
   * @param {Omit<import( "./messages.js").Finish, "type">} finish
   * @throws {UploadError} `size_mismatch` unless exactly `finish.size` bytes were sent
   */
  sendFinish(stream, finish) {
    const [entry, state] = this.#maySend(stream, "FINISH");
    if (finish.size !== entry.sent) {
      throw new UploadError("size_mismatch", { facts: { size: finish.size, received: entry.sent } });
    }
    entry.state = state;
    return buildMessage(stream, { type: "FINISH", ...finish });
  }

  /**
   * Throw the upload away. The answer is CANCELLED, or the result where it is too late.
   *
   * @param {number} stream
   */
  sendCancel(stream) {
    const [entry, state] = this.#maySend(stream, "CANCEL");
    entry.state = state;
    return buildMessage(stream, { type: "CANCEL" });
  }

  /**
   * Leave the upload as it is; the answer is RELEASED.
   *
   * @param {number} stream
   */
  sendRelease(stream) {
    const [entry, state] = this.#maySend(stream, "RELEASE");
    entry.state = state;
    return buildMessage(stream, { type: "RELEASE" });
  }

  /**
   * @param {StreamState} state
   * @param {Message} message
   * @returns {[Stream, Frame]}
   */
  #open(state, message) {
    const hello = this.#openHello();
    if (this.#draining) {
      throw new UploadError("draining");
    }
    if (this.#streams.size >= hello.max_streams) {
      throw new UploadError("too_many_streams", { facts: { max_streams: hello.max_streams } });
    }
    const frame = buildMessage(this.#lastId + 1, message);
    this.#lastId += 1;
    const stream = new Stream(this.#lastId, state);
    this.#streams.set(stream.id, stream);
    return [stream, frame];
  }

  /**
   * @param {number} stream
   * @param {FrameType} type
   * @returns {[Stream, StreamState]}
   */
  #maySend(stream, type) {
    const entry = this.#streams.get(stream);
    if (entry === undefined) {
      throw new UploadError("unknown_stream", { facts: { stream } });
    }
    const state = SENDS[entry.state][type];
    if (state === undefined) {
      throw unexpected(type, entry.state);
    }
    return [entry, state];
  }

  #openHello() {
    if (this.#hello === null) {
      throw unexpected("A frame", "before HELLO");
    }
    return this.#hello;
  }
}

/**
 * @param {string} type
 * @param {string} state
 */
function unexpected(type, state) {
  return new UploadError("unexpected_message", {
    message: `${type} is not expected here (${state}).`,
    facts: { type, state },
  });
}
