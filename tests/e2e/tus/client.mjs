// tus-js-client as it is, in Node. Runs in a folder that has the package installed. Argument: JSON with
//   file      path of the file
//   options   of the client
//   stopAt?   bytes after whose acknowledgement the upload is aborted
//   discard?  whether it is terminated on the server then
//   previous? whether an upload that an earlier program left is continued
// Prints JSON: url, error?, headers of the last response, and requests: [method, path, status, offset of the answer].
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";
import { PassThrough } from "node:stream";

const require = createRequire(path.join(process.cwd(), "package.json"));
const { FileUrlStorage, Upload } = require("tus-js-client");

const { file, options, stopAt, discard, previous } = JSON.parse(process.argv[2]);
const requests = [];
let headers = {};
let isStopped = false;

function end(error) {
  const { url } = upload;
  process.stdout.write(`${JSON.stringify({ url, error, headers, requests })}\n`, () => process.exit(0));
}

// Of a file 4.3.1 does not notice the end where the length is deferred.
const source = fs.createReadStream(file);
const upload = new Upload(options.uploadLengthDeferred ? source.pipe(new PassThrough()) : source, {
  urlStorage: new FileUrlStorage("urls.json"),
  ...options,
  onAfterResponse(request, response) {
    const { pathname } = new URL(request.getURL());
    requests.push([request.getMethod(), pathname, response.getStatus(), response.getHeader("Upload-Offset") ?? null]);
  },
  async onChunkComplete(_size, accepted) {
    if (stopAt === undefined || accepted < stopAt || isStopped) {
      return;
    }
    isStopped = true;
    await upload.abort(discard);
    end("stopped");
  },
  onSuccess({ lastResponse }) {
    const names = ["Upload-Offset", "Upload-Receipt", "Upload-Stored-As", "Upload-Response", "Location"];
    headers = Object.fromEntries(names.map((name) => [name, lastResponse.getHeader(name) ?? null]));
    end();
  },
  onError: (error) => end(`${error}`),
});
if (previous) {
  const found = await upload.findPreviousUploads();
  upload.resumeFromPreviousUpload(found[0]);
}
upload.start();
