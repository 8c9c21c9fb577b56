import { createApp, createSSRApp } from "vue";
import "django-resumable-upload/style.css";
import App from "./App.vue";

const place = document.querySelector("#app");
(place.firstElementChild ? createSSRApp : createApp)(App).mount(place);
