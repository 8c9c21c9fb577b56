// What a connection does when the server breaks the protocol: the transcripts that show it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Connection } from "../../src/django_async_upload/static/django_async_upload/client/connection.js";
import { Clock } from "./server.js";
import { TRANSCRIPTS, encodeStep, sendStep } from "./vectors.js";

const BROKEN = TRANSCRIPTS.filter(({ steps }) =>
  steps.some(({ from, outcome }) => from === "server" && outcome === "closed"),
);

for (const { name, steps, close } of BROKEN) {
  test(`it is left with the close code: ${name}`, () => {
    const sockets = [];
    const lost = [];
    class WebSocket {
      constructor() {
        sockets.push(this);
      }
      send() {}
      close(code) {
        this.code = code;
      }
    }
    const owner = { opened() {}, said() {}, slotFreed() {}, lost: (error) => lost.push(error) };
    const connection = new Connection("wss://example.org/", { ...new Clock(), WebSocket }, owner);
    const [socket] = sockets;
    for (const step of steps) {
      if (step.from === "server") {
        assert.equal(socket.code, undefined);
        socket.onmessage({ data: encodeStep(step).buffer });
      } else if (step.type !== "PAUSED" && step.type !== "PONG") {
        connection.say((protocol) => sendStep(protocol, step));
      }
    }
    const { code } = steps.find(({ outcome }) => outcome === "closed");
    assert.equal(socket.code, close);
    assert.deepEqual(lost.map((error) => error.code), [code]);
    assert.equal(lost[0].retryable, code === "corrupt_frame");
  });
}

test("there are transcripts that end in a violation, and a text message is one, too", () => {
  assert.ok(BROKEN.length > 15);
  const lost = [];
  const sockets = [];
  class WebSocket {
    constructor() {
      sockets.push(this);
    }
    close(code) {
      this.code = code;
    }
  }
  new Connection("wss://example.org/", { ...new Clock(), WebSocket }, { lost: (error) => lost.push(error) });
  sockets[0].onmessage({ data: "text" });
  assert.deepEqual([lost[0].code, sockets[0].code], ["malformed_frame", 4400]);
});
