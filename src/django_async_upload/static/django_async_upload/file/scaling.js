/**
 * Makes small pictures of large ones. In a Worker: scaling a photograph of 50 megapixels on the main thread would stop the page.
 */
const SIDE = 96; // pixels: 48 on a screen of double density

/** Answer each `{file}` with a `{picture}`, null where the file is none. */
export function serveWorker() {
  /** @type {{onmessage: (event: MessageEvent<{file: Blob}>) => void, postMessage: Worker["postMessage"]}} */
  const scope = /** @type {any} */ (globalThis);
  scope.onmessage = async ({ data: { file } }) => {
    try {
      const whole = await createImageBitmap(file);
      const side = Math.min(whole.width, whole.height);
      const canvas = new OffscreenCanvas(SIDE, SIDE);
      const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
      context.imageSmoothingQuality = "medium";
      context.drawImage(whole, (whole.width - side) / 2, (whole.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
      whole.close();
      const picture = canvas.transferToImageBitmap();
      scope.postMessage({ picture }, [picture]);
    } catch {
      scope.postMessage({ picture: null }); // it cannot be decoded, whatever its type is
    }
  };
}
