/**
 * SHA-256 (FIPS 180-4) of bytes that come piece by piece, which `crypto.subtle` cannot do.
 */

/** The first 32 bits of the fractional part of the `root`-th root of the first primes. */
function constants(/** @type {number} */ count, /** @type {number} */ root) {
  const found = new Int32Array(count);
  for (let number = 2, index = 0; index < count; number++) {
    let prime = true;
    for (let divisor = 2; divisor * divisor <= number; divisor++) {
      prime &&= number % divisor !== 0;
    }
    if (prime) {
      const fraction = number ** (1 / root) % 1;
      found[index++] = Math.floor(fraction * 2 ** 32);
    }
  }
  return found;
}

const K = constants(64, 3);
const BLOCK = 64;

export class Sha256 {
  #state = constants(8, 2);
  #schedule = new Int32Array(64);
  #block = new Uint8Array(BLOCK);
  /** Bytes in the block that is not full yet. */
  #filled = 0;
  /** Bytes so far. */
  length = 0;

  /** @param {Uint8Array} bytes */
  update(bytes) {
    this.length += bytes.length;
    let index = 0;
    if (this.#filled > 0) {
      index = Math.min(BLOCK - this.#filled, bytes.length);
      this.#block.set(bytes.subarray(0, index), this.#filled);
      this.#filled += index;
      if (this.#filled < BLOCK) {
        return;
      }
      this.#compress(new DataView(this.#block.buffer), 0);
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (; index + BLOCK <= bytes.length; index += BLOCK) {
      this.#compress(view, index);
    }
    this.#block.set(bytes.subarray(index));
    this.#filled = bytes.length - index;
  }

  /**
   * Nothing may be added afterwards.
   *
   * @returns {string} 64 lower-case hex digits
   */
  digest() {
    const bits = this.length * 8;
    const padding = new Uint8Array((this.#filled < 56 ? 64 : 128) - this.#filled);
    padding[0] = 0x80;
    const view = new DataView(padding.buffer);
    view.setUint32(padding.length - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(padding.length - 4, bits % 2 ** 32);
    this.update(padding);
    return Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  /**
   * @param {DataView} view
   * @param {number} offset
   */
  #compress(view, offset) {
    const w = this.#schedule;
    for (let t = 0; t < 16; t++) {
      w[t] = view.getInt32(offset + t * 4);
    }
    for (let t = 16; t < 64; t++) {
      const x = w[t - 15];
      const y = w[t - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[t] = (w[t - 16] + s0 + w[t - 7] + s1) | 0;
    }
    const state = this.#state;
    // Not destructured: that would call the array's iterator for each 64 bytes.
    let a = state[0];
    let b = state[1];
    let c = state[2];
    let d = state[3];
    let e = state[4];
    let f = state[5];
    let g = state[6];
    let h = state[7];
    for (let t = 0; t < 64; t++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[t] + w[t]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
  }
}
