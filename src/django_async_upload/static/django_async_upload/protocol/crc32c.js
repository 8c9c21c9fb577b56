/**
 * CRC-32C (Castagnoli; RFC 3720, appendix B.4), and the CRC of two byte strings from the CRC of each.
 */

/** The polynomial, reflected: the coefficient of x^0 is the highest bit. */
const POLYNOMIAL = 0x82f63b78;

/**
 * Slicing-by-8 (Kounavis and Berry, "A Systematic Approach to Building High Performance Software-based
 * CRC Generators", 2005): eight tables of 256 entries, one behind the other, so that eight bytes take
 * one step.
 */
const TABLE = new Int32Array(8 * 256);
for (let byte = 0; byte < 256; byte++) {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) {
    value = value & 1 ? (value >>> 1) ^ POLYNOMIAL : value >>> 1;
  }
  TABLE[byte] = value;
}
for (let index = 256; index < TABLE.length; index++) {
  const before = TABLE[index - 256];
  TABLE[index] = TABLE[before & 255] ^ (before >>> 8);
}

/**
 * @param {Uint8Array} bytes
 * @param {number} [value] the CRC of what comes before `bytes`
 * @returns {number} 0 to 2^32 - 1
 */
export function crc32c(bytes, value = 0) {
  const end = bytes.length;
  let crc = ~value;
  let index = 0;
  while (index < end && (bytes.byteOffset + index) & 3) {
    crc = TABLE[(crc ^ bytes[index++]) & 255] ^ (crc >>> 8);
  }
  // Typed arrays have the machine's byte order: little-endian, wherever there is a browser or Node.
  if (index < end) {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset + index, ((end - index) >> 3) * 2);
    for (let word = 0; word < words.length; word += 2) {
      const low = crc ^ words[word];
      const high = words[word + 1];
      crc =
        TABLE[1792 + (low & 255)] ^
        TABLE[1536 + ((low >>> 8) & 255)] ^
        TABLE[1280 + ((low >>> 16) & 255)] ^
        TABLE[1024 + (low >>> 24)] ^
        TABLE[768 + (high & 255)] ^
        TABLE[512 + ((high >>> 8) & 255)] ^
        TABLE[256 + ((high >>> 16) & 255)] ^
        TABLE[high >>> 24];
    }
    index += words.length * 4;
  }
  while (index < end) {
    crc = TABLE[(crc ^ bytes[index++]) & 255] ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

/**
 * a * b modulo the polynomial; both reflected, as a CRC is.
 *
 * @param {number} a
 * @param {number} b
 */
function multiply(a, b) {
  let product = 0;
  for (let bit = 1 << 31; bit !== 0; bit >>>= 1) {
    if (a & bit) {
      product ^= b;
    }
    b = b & 1 ? (b >>> 1) ^ POLYNOMIAL : b >>> 1;
  }
  return product;
}

/** x^(8 * 2^n) at index n: lengths up to 2^48 - 1 bytes. */
const POWERS = new Int32Array(48);
POWERS[0] = 1 << 23;
for (let index = 1; index < POWERS.length; index++) {
  POWERS[index] = multiply(POWERS[index - 1], POWERS[index - 1]);
}

let lastLength = 0;
let lastShift = 1 << 31;

/**
 * What `length` further zero bytes multiply a CRC with: x^(8 * length). The last one is kept, since most
 * chunks of a file have one size.
 *
 * @param {number} length
 */
function shift(length) {
  if (length !== lastLength) {
    let power = 1 << 31;
    for (let rest = length, index = 0; rest > 0; rest = Math.floor(rest / 2), index++) {
      if (rest % 2 === 1) {
        power = multiply(POWERS[index], power);
      }
    }
    [lastLength, lastShift] = [length, power];
  }
  return lastShift;
}

/**
 * The CRC of two byte strings, one behind the other, without either of them.
 *
 * @param {number} first CRC of the first
 * @param {number} second CRC of the second
 * @param {number} length bytes of the second
 * @returns {number} 0 to 2^32 - 1
 */
export function combine(first, second, length) {
  return (multiply(shift(length), first) ^ second) >>> 0;
}
