import { StrictMode } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import "django-resumable-upload/style.css";
import { App } from "./App.jsx";

const place = document.querySelector("#app");
const page = <StrictMode><App /></StrictMode>;
const errors = { onRecoverableError: (error) => console.error(`recovered: ${error}`) };
if (place.firstElementChild) hydrateRoot(place, page, errors);
else createRoot(place, errors).render(page);
