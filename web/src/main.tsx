import { render } from "preact";

import { followMe } from "./api/me";
import { App } from "./app/App";
import { comesFromLogin, endLogin } from "./app/login";
import "./app/theme.css";
import "./app/layout.css";
import "./components/components.css";
import { applyTheme } from "./app/theme";
import { followKernels } from "./kernels/store";

applyTheme();
if (comesFromLogin()) await endLogin();
followMe();
followKernels();
const root = document.getElementById("page");
if (root !== null) render(<App />, root);
