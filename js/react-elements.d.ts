/** `<async-upload>` in JSX. */
import type { DetailedHTMLProps, HTMLAttributes } from "react";
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

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "async-upload": DetailedHTMLProps<AsyncUploadAttributes, AsyncUploadElement>;
    }
  }
}
