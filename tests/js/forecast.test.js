// The time left of many small files and a large one, on simulated clocks.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Forecast } from "../../src/django_async_upload/static/django_async_upload/client/forecast.js";

const STEP = 0.25; // seconds between two looks
const MB = 1e6;

/**
 * Let everything arrive: `speed(state)` gives files and bytes a second at that moment. From the third second on what is said has
 * to be within a factor of two of what comes, until two seconds before the end.
 */
function simulate(name, { files = 0, bytes = 0 }, speed) {
  test(`the time left is right within a factor of two from the third second on: ${name}`, () => {
    const forecast = new Forecast();
    const said = [];
    let state = { filesDone: 0, bytesDone: 0, at: 0 };
    while (state.filesDone < files || state.bytesDone < bytes) {
      const amounts = { files, bytes, filesDone: Math.floor(state.filesDone), bytesDone: state.bytesDone };
      said.push([state.at, forecast.update(amounts, true, 1000 + state.at * 1000)]);
      const { files: filesPerSecond, bytes: bytesPerSecond } = speed(state);
      state = {
        filesDone: Math.min(files, state.filesDone + filesPerSecond * STEP),
        bytesDone: Math.min(bytes, state.bytesDone + bytesPerSecond * STEP),
        at: state.at + STEP,
      };
    }
    const end = state.at;
    assert.ok(end > 8, `${end} s are too short for a test`);
    for (const [at, left] of said) {
      if (at >= 3 && end - at > 2) {
        const right = end - at;
        assert.ok(left > right / 2 && left < right * 2, `after ${at} s: ${left} s, not ${right} s`);
      }
    }
  });
}

simulate("a fast line", { files: 1500, bytes: 1000 * MB }, ({ filesDone }) =>
  filesDone < 1500 ? { files: 150, bytes: 40 * MB } : { files: 0, bytes: 60 * MB },
);
simulate("a slow line", { files: 600, bytes: 100 * MB }, ({ filesDone }) =>
  filesDone < 600 ? { files: 30, bytes: 0.9 * MB } : { files: 0, bytes: 1 * MB },
);
simulate("more small files than the large one takes", { files: 10_000, bytes: 500 * MB }, ({ bytesDone }) =>
  bytesDone < 500 * MB ? { files: 250, bytes: 50 * MB } : { files: 400, bytes: 0 },
);
simulate("a slow beginning", { files: 1500, bytes: 1000 * MB }, ({ at }) =>
  at < 1 ? { files: 20, bytes: 1 * MB } : { files: 150, bytes: 50 * MB },
);
simulate("bursts", { files: 3000, bytes: 2000 * MB }, ({ at }) =>
  at % 1 < 0.5 ? { files: 300, bytes: 20 * MB } : { files: 0, bytes: 80 * MB },
);
simulate("only small files", { files: 5000 }, () => ({ files: 200, bytes: 0 }));
simulate("only a large one", { bytes: 500 * MB }, () => ({ files: 0, bytes: 20 * MB }));

test("nothing is said of the time while nothing runs, or nothing is known", () => {
  const forecast = new Forecast();
  const amounts = { files: 10, filesDone: 0, bytes: 1e6, bytesDone: 0 };
  assert.equal(forecast.update(amounts, true, 0), undefined);
  assert.equal(forecast.update(amounts, true, 500), undefined);
  assert.equal(forecast.update(amounts, true, 5000), undefined, "nothing has moved");
  assert.equal(forecast.update({ ...amounts, bytesDone: 5e5 }, false, 6000), undefined);
});
