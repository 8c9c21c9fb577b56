import Uppy from "@uppy/core";
import Dashboard from "@uppy/dashboard";
import "@uppy/core/css/style.min.css";
import "@uppy/dashboard/css/style.min.css";
import Tus from "@uppy/tus";

const query = new URLSearchParams(location.search);

/** The requests: method, status, Upload-Offset and Upload-Receipt of the answer. */
globalThis.requests = [];
globalThis.uppy = new Uppy().use(Dashboard, { inline: true, target: "#app" }).use(Tus, {
  endpoint: "/ws/uploads/",
  chunkSize: Number(query.get("chunk") ?? Infinity),
  parallelUploads: Number(query.get("parallel") ?? 1),
  onAfterResponse(request, response) {
    const [offset, receipt] = ["Upload-Offset", "Upload-Receipt"].map((name) => response.getHeader(name) ?? null);
    globalThis.requests.push([request.getMethod(), response.getStatus(), offset, receipt]);
  },
});
