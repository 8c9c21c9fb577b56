/** An upload that nobody wants any longer: the server is told until it has heard. */
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
   * @param {Omit<import( "../protocol/messages.js").Create, "type">} create what the server was told of it
   * @param {string} [id] the server's, where it has answered
   * @param {boolean} [isFinished] its file is to be deleted, unless somebody has taken it
   */
  constructor(turns, create, id, isFinished = false) {
    this.#turns = turns;
    this.#create = create;
    this.#id = id;
    this.#isFinished = isFinished;
    this.#backoff = new Backoff({ random: turns.environment.random });
  }

  /**
   * Say it on a stream of its own. Where the server's id is not known the key finds the upload, or begins it for a moment.
   *
   * @param {import( "./connection.js").Connection} connection
   * @returns {boolean} false: it has none to give
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

  // What the connection says ----------------------------------------------------------------------

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
