// Compiled, not run: what an application in TypeScript may write, and what is an error.
import { useRef } from "react";
import Uppy from "@uppy/core";
import { Uploader, type Progress, type UploadError } from "django-resumable-upload";
import "django-resumable-upload/widget";
import { Watcher, type Standing } from "django-resumable-upload/progress";
import { AsyncUpload, useUploads } from "django-resumable-upload/react";
import { AsyncUploadPlugin } from "django-resumable-upload/uppy";
import { AsyncUpload as InVue, useUploads as useUploadsInVue } from "django-resumable-upload/vue";

const uploader = new Uploader({ url: "/ws/uploads/" });
uploader.addEventListener("warning", ({ detail }) => detail.code.toUpperCase());
uploader.addEventListener("connection", ({ detail }) => detail.state === "waiting" && detail.retryIn);
// @ts-expect-error: an uploader needs a URL
new Uploader({});

const upload = uploader.add(new File([], "a"));
upload.addEventListener("progress", ({ detail }: CustomEvent<Progress>) => detail.fraction.toFixed());
upload.addEventListener("state", ({ detail }) => {
  const { state } = detail;
  // @ts-expect-error: there is no such state
  return state === "sleeping";
});
upload.addEventListener("error", ({ detail }) => detail.error satisfies UploadError);
const { receipt } = await upload.result;
export const posted: string | undefined = receipt;

const element = document.querySelector("async-upload");
element?.addEventListener("async-upload-completed", ({ detail }) => detail.result.receipt);
document.addEventListener("async-upload-error", ({ detail }) => detail.upload.retry());
// @ts-expect-error: a result has no URL
document.addEventListener("async-upload-completed", ({ detail }) => detail.result.url);

const progress = document.querySelector("async-upload-progress");
progress?.addEventListener("async-upload-standing", ({ detail }) => detail.standing?.durable.toFixed());
progress?.standing satisfies Standing | null | undefined;
// @ts-expect-error: the standing is null where there is no such upload
document.addEventListener("async-upload-standing", ({ detail }) => detail.standing.durable);

const watcher = new Watcher({ scope: "own" });
watcher.addEventListener("changed", ({ detail }) => detail.standings.map(({ name }) => name).concat(detail.missing));
// @ts-expect-error: nobody may watch the uploads of a friend
new Watcher({ scope: "friends" });

export function Page() {
  const own = useRef(null);
  const { uploads, add, remove } = useUploads({ url: "/ws/uploads/" });
  return (
    <>
      <async-upload ref={own} url="/ws/uploads/" taker="api" max-size={10}>
        <input type="file" name="file" />
      </async-upload>
      <async-upload-progress upload="5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0" url="/ws/uploads/" />
      {/* @ts-expect-error: it needs the id of an upload */}
      <async-upload-progress url="/ws/uploads/" />
      <AsyncUpload name="file" maxSize={10} onCompleted={({ result }) => add([new File([], result.name)])} />
      {/* @ts-expect-error: it needs a name */}
      <AsyncUpload maxSize={10} />
      {uploads.map(({ key, upload, progress }) => <button key={key} onClick={() => remove(upload)}>{progress.rate}</button>)}
    </>
  );
}

const { uploads } = useUploadsInVue(uploader);
export const names: string[] = uploads.value.map(({ name }) => name);
export const component = InVue;

new Uppy().use(AsyncUploadPlugin, { url: "/ws/uploads/" });
