/** A CANCEL that is sent until the server has answered it: of a cancelled upload, or of a finished one that is discarded. */
import { Backoff } from "./backoff.js";
import { errorOf } from "./connection.js";

export class Cancellation {
  #turns;
  #create;
  #id;
  #isFinished;
  #backoff;

  /**
   * @param {import( "./turns.js").Turns} turns
   * @param {Omit<import( "../protocol/messages.js").Create, "type">} create the fields of its CREATE
   * @param {string} [id] the server's, where it has answered
   * @param {boolean} [isFinished] its finished file is to be deleted, unless an object, an API or a receiver has taken it
   */
  constructor(turns, create, id, isFinished = false) {
    this.#turns = turns;
    this.#create = create;
    this.#id = id;
    this.#isFinished = isFinished;
    this.#backoff = new Backoff({ random: turns.environment.random });
  }

  /**
   * Send it on a stream of its own. Where the server's id is not known, CREATE goes first: its key finds the upload, or begins one that
   * is cancelled at once.
   *
   * @param {import( "./connection.js").Connection} connection
   * @returns {boolean} false: no stream is free
   */
  open(connection) {
    const id = this.#id;
    if (id !== undefined) {
      return connection.open(this, (protocol) => protocol.sendCancelOf(id, this.#isFinished)) !== null;
    }
    const stream = connection.open(this, (protocol) => protocol.sendCreate(this.#create));
    if (stream !== null) {
      connection.say((protocol) => protocol.sendCancel(stream.id));
    }
    return stream !== null;
  }

  // Called by connection.js ----------------------------------------------------------------------

  step() {
    return false;
  }

  /** @param {import( "../protocol/messages.js").Message} message */
  received(message) {
    if (message.type === "CREATED" || message.type === "ATTACHED") {
      this.#id = message.upload;
    } else if (message.type === "ERROR") {
      this.lost(errorOf(message));
    }
  }

  /** @param {import( "../protocol/errors.js").UploadError} error */
  lost(error) {
    if (error.code === "connection_lost" || error.code === "draining") {
      this.#turns.abandon(this);
    } else if (error.retryable) {
      const { environment } = this.#turns;
      environment.setTimeout(() => this.#turns.abandon(this), this.#backoff.delay(error.retryAfter));
    }
  }
}
