/** `<async-upload>` and `<async-upload-progress>` in JSX. */
import type { DetailedHTMLProps, HTMLAttributes } from "react";
import type { AsyncUploadProgressElement } from "./progress.js";
import type { AsyncUploadElement } from "./widget.js";

interface AsyncUploadAttributes extends HTMLAttributes<AsyncUploadElement> {
  url?: string;
  field?: string;
  owner?: string;
  place?: string;
  taker?: "form" | "api" | "receiver";
  "max-size"?: number;
  accept?: string;
  directory?: boolean | "";
  texts?: string;
}

interface AsyncUploadProgressAttributes extends HTMLAttributes<AsyncUploadProgressElement> {
  upload: string;
  url?: string;
  texts?: string;
}

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "async-upload": DetailedHTMLProps<AsyncUploadAttributes, AsyncUploadElement>;
      "async-upload-progress": DetailedHTMLProps<AsyncUploadProgressAttributes, AsyncUploadProgressElement>;
    }
  }
}
