/** One stream: what may be said on it in which state, by either side, and its figures. */
import { MAX_CHUNK, malformed } from "./frames.js";

/** @typedef {import( "./frames.js").FrameType} FrameType */
/** @typedef {import( "./messages.js").Message} Message */
/** @typedef {import( "./messages.js").Hello} Hello */

/**
 * - `creating`: CREATE is not answered; data may follow it
 * - `creating-finished`: CREATE is not answered, and FINISH was sent behind it
 * - `proving`: ATTACHED came; PROOF is due
 *
 * @typedef {"creating" | "creating-finished" | "attaching" | "proving" | "proved" | "sending" | "finishing"
 *   | "cancelling" | "releasing" | "querying" | "watching" | "closed"} StreamState
 */

/** @typedef {Readonly<Partial<Record<FrameType, StreamState>>>} Transitions */

/** Bytes that are sent ahead of `durable`, whatever a server promises beyond its own window. */
const LARGEST_WINDOW = 32 * 1024 * 1024;

/** @type {Transitions} */
const OVER = { ERROR: "closed", CANCELLED: "closed" };

/**
 * Frames that were in flight when CANCEL or RELEASE was sent may still arrive.
 *
 * @param {StreamState} state
 * @returns {Transitions}
 */
const inFlight = (state) => ({
  CREATED: state,
  ATTACHED: state,
  READY: state,
  ACK: state,
  REWIND: state,
  PAUSE: state,
  // CREATE or ATTACH of an upload whose bytes are all there: too late for CANCEL, nothing left to release.
  PROGRESS: state,
  COMPLETED: "closed",
  ...OVER,
});

/**
 * State of a stream -> frame from the server -> next state.
 *
 * @type {Readonly<Record<StreamState, Transitions>>}
 */
export const RECEIVES = {
  creating: { CREATED: "sending", ATTACHED: "proving", PROGRESS: "finishing", COMPLETED: "closed", ...OVER },
  "creating-finished": {
    CREATED: "finishing",
    ATTACHED: "proving",
    PROGRESS: "finishing",
    COMPLETED: "closed",
    ...OVER,
  },
  attaching: { ATTACHED: "proving", PROGRESS: "finishing", COMPLETED: "closed", ...OVER },
  proving: OVER,
  proved: { READY: "sending", ...OVER },
  sending: { ACK: "sending", REWIND: "sending", PAUSE: "sending", ...OVER },
  finishing: {
    ACK: "finishing",
    REWIND: "sending",
    PAUSE: "finishing",
    PROGRESS: "finishing",
    COMPLETED: "closed",
    ...OVER,
  },
  cancelling: inFlight("cancelling"),
  releasing: { ...inFlight("releasing"), RELEASED: "closed", CHANGED: "releasing" },
  querying: { STATUS: "closed", ERROR: "closed" },
  watching: { CHANGED: "watching", ERROR: "closed" },
  closed: {},
};

/** @type {Transitions} */
const GIVE_UP = { CANCEL: "cancelling", RELEASE: "releasing" };

/**
 * State of a stream -> frame from the client -> next state.
 *
 * @type {Readonly<Record<StreamState, Transitions>>}
 */
export const SENDS = {
  creating: { DATA: "creating", FINISH: "creating-finished", ...GIVE_UP },
  "creating-finished": { CANCEL: "cancelling" },
  attaching: GIVE_UP,
  proving: { PROOF: "proved", ...GIVE_UP },
  proved: GIVE_UP,
  sending: { DATA: "sending", FINISH: "finishing", ...GIVE_UP },
  finishing: { CANCEL: "cancelling" },
  cancelling: {},
  releasing: {},
  querying: {},
  watching: { RELEASE: "releasing" },
  closed: {},
};

/** One open attachment. All offsets are bytes from the start of the file. */
export class Stream {
  /**
   * @param {number} id
   * @param {StreamState} state
   */
  constructor(id, state) {
    this.id = id;
    this.state = state;
    /** End of the last byte sent (since the last REWIND or READY). */
    this.sent = 0;
    this.received = 0;
    this.durable = 0;
    /** No DATA may end beyond it. */
    this.limit = 0;
    /** Advised payload size. */
    this.chunk = MAX_CHUNK;
    /** The next DATA is the first after a REWIND. */
    this.restart = false;
    /**
     * The offsets that PROOF brings a CRC of: READY names one of them.
     *
     * @type {readonly number[]}
     */
    this.proved = [];
  }

  /** Bytes that were sent and not yet received. */
  get inFlight() {
    return this.sent - this.received;
  }

  /**
   * Check the figures of a message against these, then take them over.
   *
   * @param {Message} message
   * @param {Hello} hello
   * @throws {import( "./errors.js").UploadError} `malformed_frame`; nothing has changed
   */
  take(message, hello) {
    switch (message.type) {
      case "CREATED":
        this.setLimit(Math.max(this.limit, message.limit), hello);
        this.setChunk(message.chunk, hello);
        return;
      case "ATTACHED":
        check(message.durable <= message.received, message);
        // What was sent behind CREATE is dropped by the server.
        this.sent = this.received = this.limit = this.durable = 0;
        this.proved = [message.durable, message.received];
        return;
      case "READY":
        check(this.proved.includes(message.offset), message);
        check(this.proved[0] <= message.durable && message.durable <= message.offset, message);
        this.sent = this.received = message.offset;
        this.durable = message.durable;
        this.setLimit(message.limit, hello);
        this.setChunk(message.chunk, hello);
        return;
      case "ACK":
        check(this.durable <= message.durable && message.durable <= message.received, message);
        check(this.received <= message.received && message.received <= this.sent, message);
        this.received = message.received;
        this.durable = message.durable;
        this.setLimit(Math.max(this.limit, message.limit), hello);
        this.setChunk(message.chunk, hello);
        return;
      case "REWIND":
        check(this.durable <= message.durable && message.durable <= message.offset, message);
        check(message.offset <= this.sent, message);
        this.sent = this.received = message.offset;
        this.durable = message.durable;
        this.setLimit(message.limit, hello);
        this.restart = true;
        return;
      case "PAUSE":
        this.limit = this.sent;
    }
  }

  /**
   * The window of HELLO is what a client can always be ahead; how much more it may be, the limits say. They are not followed
   * without end.
   *
   * @param {number} limit
   * @param {Hello} hello
   */
  setLimit(limit, { window }) {
    this.limit = Math.min(limit, this.durable + Math.max(LARGEST_WINDOW, window));
  }

  /**
   * @param {number} advised
   * @param {Hello} hello
   */
  setChunk(advised, { max_chunk: largest }) {
    this.chunk = Math.max(1, Math.min(advised, largest));
  }
}

/**
 * @param {boolean} holds
 * @param {Message} message
 */
function check(holds, message) {
  if (!holds) {
    throw malformed(`the figures of ${JSON.stringify(message)} contradict what was said before`);
  }
}
