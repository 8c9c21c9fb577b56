/** What of one connection is on its way, how fast and how long it travels, and how much more may leave. */

/** What the socket may hold, in seconds of the measured rate: PONGs wait behind it, and servers give up after 20 s. */
const QUEUED_SECONDS = 2.5;
/** Bytes that it may hold at any rate, and while none is known. */
const QUEUED_FLOOR = 256 * 1024;

export class Flight {
  /** The end of a chunk that left, counted over the connection, and what had arrived by then. */
  #departures = /** @type {{end: number, at: number, arrived: number}[]} */ ([]);
  /** Bytes per second. */
  #rate = 0;
  /** The shortest time from the departure of a chunk to the news of its arrival, ms. */
  #delay = Infinity;
  #protocol;

  /** @param {import( "../protocol/client.js").ClientProtocol} protocol of the connection */
  constructor(protocol) {
    this.#protocol = protocol;
  }

  /** A chunk has left. @param {number} at ms */
  left(at) {
    const { sent, inFlight } = this.#protocol;
    this.#departures.push({ end: sent, at, arrived: sent - inFlight });
  }

  /**
   * What is on its way shall fill the line and no more: twice what it carries in the time that an answer takes. The window of
   * HELLO is enough for a line that is near; more than that on it would only lie in buffers.
   *
   * @param {number} buffered bytes that the socket holds
   */
  hasRoom(buffered) {
    const { inFlight, hello } = this.#protocol;
    if (inFlight === 0) {
      return true;
    }
    const { window } = /** @type {import( "../protocol/messages.js").Hello} */ (hello);
    const filling = Number.isFinite(this.#delay) ? (2 * this.#rate * this.#delay) / 1000 : 0;
    const most = Math.min(Math.max(QUEUED_FLOOR, this.#rate * QUEUED_SECONDS), Math.max(window, filling));
    return inFlight < most && buffered < Math.max(window, filling);
  }

  /**
   * How fast bytes arrive: what arrived between the departure and the arrival of the newest ones. This is the delivery rate of
   * draft-cheng-iccrg-delivery-rate-estimation: it needs no full wire, so a cap that is too low shows a rate that lifts it. It
   * rises at once and falls slowly.
   *
   * @param {number} now ms
   */
  landed(now) {
    const { sent, inFlight } = this.#protocol;
    const arrived = sent - inFlight;
    const behind = this.#departures.findIndex(({ end }) => end > arrived);
    const gone = this.#departures.splice(0, behind < 0 ? this.#departures.length : behind);
    const newest = gone.at(-1);
    if (newest === undefined || now <= newest.at) {
      return;
    }
    this.#delay = Math.min(this.#delay, now - newest.at);
    const rate = ((arrived - newest.arrived) / (now - newest.at)) * 1000;
    this.#rate = rate >= this.#rate ? rate : this.#rate + (rate - this.#rate) / 8;
  }
}
