/** Tells whether a file is probably one that was seen before. */
import { crc32c } from "../protocol/crc32c.js";
import { failure } from "./reading.js";
import { SMALL, unreadable } from "./source.js";

/**
 * Of its size and the CRCs of its first and its last 64 KiB.
 *
 * @param {Blob} file
 * @returns {Promise<string>} rejects with an UploadError
 */
export async function fingerprint(file) {
  try {
    const ends = [file.slice(0, SMALL), file.slice(Math.max(0, file.size - SMALL))];
    const crcs = await Promise.all(
      ends.map(async (end) => crc32c(new Uint8Array(await end.arrayBuffer()))),
    );
    return [file.size, ...crcs].map((each) => each.toString(16)).join("-");
  } catch (error) {
    throw unreadable(failure(error));
  }
}
