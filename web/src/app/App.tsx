import { useEffect, useRef } from "preact/hooks";

import { reached } from "../api/reach";
import { lazy } from "../components/lazy";
import { Toasts } from "../components/toasts";
import { href, route } from "./router";
import { ThemeSwitch } from "./ThemeSwitch";
import { promptClosed, tokenWanted } from "./token";
import { TokenPrompt } from "./TokenPrompt";

const KernelsView = lazy(() => import("../kernels/KernelsView"));
const KernelView = lazy(() => import("../kernel/KernelView"));
const ServiceView = lazy(() => import("../service/ServiceView"));

export function App() {
  const [section = "kernels"] = route.value.path;
  return (
    <>
      <a class="skip" href="#main" onClick={skipToMain}>
        Skip to the content
      </a>
      <header class="top">
        <a class="name" href={href("kernels")}>
          kernelkeep
        </a>
        <nav aria-label="Views">
          <Tab name="kernels" shown={section} label="Kernels" />
          <Tab name="service" shown={section} label="Service" />
        </nav>
        <div class="end">
          <ThemeSwitch />
        </div>
      </header>
      {!reached.value && tokenWanted.value === "" && (
        <div class="banner" role="status">
          The server is not reached just now. The page goes on by itself.
        </div>
      )}
      {tokenWanted.value !== "" && promptClosed.value && (
        <div class="banner">
          The server wants a token.{" "}
          <button type="button" onClick={() => (promptClosed.value = false)}>
            Give one
          </button>
        </div>
      )}
      <Main />
      {tokenWanted.value !== "" && !promptClosed.value && <TokenPrompt />}
      <Toasts />
    </>
  );
}

function skipToMain(event: Event): void {
  event.preventDefault(); // the fragment of the address is the page's route
  document.getElementById("main")?.focus();
}

function Tab({ name, shown, label }: { name: string; shown: string; label: string }) {
  return (
    <a href={href(name)} aria-current={name === shown ? "page" : undefined}>
      {label}
    </a>
  );
}

function Main() {
  const main = useRef<HTMLElement>(null);
  const { path } = route.value;
  const place = path.slice(0, 2).join("/");
  const first = useRef(true);
  const [section = "kernels", id = "", tab = "output"] = path;
  useEffect(() => {
    const shown = section === "service" ? "Service" : id === "" ? "Kernels" : `${tab} of ${id.slice(0, 8)}`;
    document.title = `${shown} · kernelkeep`;
  }, [section, id, tab]);
  useEffect(() => {
    // A new view is announced to who cannot see it; the first one is by the page's load.
    if (!first.current) main.current?.focus();
    first.current = false;
  }, [place]);
  return (
    <main id="main" ref={main} tabIndex={-1}>
      <View path={path} />
    </main>
  );
}

function View({ path }: { path: readonly string[] }) {
  const [section, id, tab = "output", ...rest] = path;
  if (section === undefined || (section === "kernels" && id === undefined)) return <KernelsView />;
  if (section === "kernels" && id !== undefined) {
    return <KernelView key={id} id={id} tab={tab} rest={rest} />;
  }
  if (section === "service") return <ServiceView />;
  return <p class="notice">There is no such view. <a href={href("kernels")}>Kernels</a></p>;
}
