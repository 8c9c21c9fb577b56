import { Uploader } from "django-resumable-upload";

const input = document.createElement("input");
const output = document.createElement("output");
input.type = "file";
document.body.append(input, output);
const uploader = new Uploader({ url: "/ws/uploads/" });
input.addEventListener("change", async () => {
  const result = await uploader.add(input.files[0]).result;
  output.textContent = `${result.name} is uploaded`;
});
