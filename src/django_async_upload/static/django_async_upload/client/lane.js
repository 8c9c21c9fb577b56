/** Uploads that wait for a turn, and how much of a shared budget those take that have one. */

/** @typedef {import( "./upload.js").Upload} Upload */

export class Lane {
  /** Those that were under way before come first. */
  #begun = /** @type {Set<Upload>} */ (new Set());
  #fresh = /** @type {Set<Upload>} */ (new Set());
  /** Those that have a turn, and what it costs. */
  #turns = /** @type {Map<Upload, number>} */ (new Map());
  #used = 0;
  #cost;

  /**
   * @param {number} budget what all turns together may cost
   * @param {(upload: Upload) => number} cost of one; one that costs more than the budget has its turn alone
   */
  constructor(budget, cost) {
    this.budget = budget;
    this.#cost = cost;
  }

  /** So many have a turn. */
  get turns() {
    return this.#turns.size;
  }

  get isEmpty() {
    return this.#begun.size + this.#fresh.size + this.#turns.size === 0;
  }

  /** @param {Upload} upload */
  enqueue(upload) {
    (upload.hasBegun ? this.#begun : this.#fresh).add(upload);
  }

  /** @param {Upload} upload */
  dequeue(upload) {
    this.#begun.delete(upload);
    this.#fresh.delete(upload);
  }

  /**
   * Give the next one its turn.
   *
   * @returns {Upload | null} null: none waits, or there is no room
   */
  take() {
    for (const upload of this.waiting()) {
      const cost = this.#cost(upload);
      if (this.#used > 0 && this.#used + cost > this.budget) {
        return null;
      }
      this.dequeue(upload);
      this.#turns.set(upload, cost);
      this.#used += cost;
      return upload;
    }
    return null;
  }

  /**
   * It keeps its turn, but others may use what it took.
   *
   * @param {Upload} upload
   */
  share(upload) {
    const cost = this.#turns.get(upload);
    if (cost !== undefined) {
      this.#used -= cost;
      this.#turns.set(upload, 0);
    }
  }

  /** @param {Upload} upload */
  leave(upload) {
    this.share(upload);
    this.#turns.delete(upload);
  }

  /** @param {(upload: Upload) => void} call */
  eachTurn(call) {
    for (const upload of this.#turns.keys()) {
      call(upload);
    }
  }

  *waiting() {
    yield* this.#begun;
    yield* this.#fresh;
  }
}
