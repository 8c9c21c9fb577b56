import Uppy from "@uppy/core";
import Dashboard from "@uppy/dashboard";
import "@uppy/core/css/style.min.css";
import "@uppy/dashboard/css/style.min.css";
import { AsyncUploadPlugin } from "django-resumable-upload/uppy";

globalThis.uppy = new Uppy()
  .use(Dashboard, { inline: true, target: "#app" })
  .use(AsyncUploadPlugin, { url: "/ws/uploads/" });
