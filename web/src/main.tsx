import { render } from "preact";

import { App } from "./app/App";
import "./app/theme.css";
import "./app/layout.css";
import "./components/components.css";
import { applyTheme } from "./app/theme";

applyTheme();
const root = document.getElementById("page");
if (root !== null) render(<App />, root);
