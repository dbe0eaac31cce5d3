import { useEffect, useState } from "preact/hooks";

import { api, messageOf, type Schemas } from "../api/client";
import { Dialog } from "../components/Dialog";
import { toast } from "../components/toasts";

type Specs = Schemas["KernelSpecs"];

/** `NAME=value` lines as variables; raises an `Error` for a line that is none. */
export function parseEnvironment(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const line of text.split("\n")) {
    if (line.trim() === "" || line.trimStart().startsWith("#")) continue;
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`Environment: “${line.trim()}” is not NAME=value.`);
    found[line.slice(0, at).trim()] = line.slice(at + 1);
  }
  return found;
}

export function StartDialog({ onClose }: { onClose: () => void }) {
  const [specs, setSpecs] = useState<Specs | null>(null);
  const [name, setName] = useState("");
  const [path, setPath] = useState("");
  const [environment, setEnvironment] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    api.GET("/api/kernelspecs").then(
      ({ data, error: refused }) => {
        if (data !== undefined) {
          setSpecs(data);
          setName(data.default);
        } else setError(messageOf(refused));
      },
      (raised: unknown) => setError(messageOf(raised)),
    );
  }, []);

  async function start(): Promise<void> {
    setBusy(true);
    setError("");
    try {
      const env = parseEnvironment(environment);
      const body = { name, ...(path === "" ? {} : { path }), ...(Object.keys(env).length ? { env } : {}) };
      const answer = await api.POST("/api/kernels", { body });
      if (answer.error) throw answer.error;
      toast("The kernel starts.", { seconds: 3 });
      onClose();
    } catch (raised) {
      setError(messageOf(raised));
    } finally {
      setBusy(false);
    }
  }

  return (
    <Dialog title="Start a kernel" onClose={onClose}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void start();
        }}
      >
        <label class="field">
          Kernelspec
          <select value={name} onChange={(event) => setName(event.currentTarget.value)} autofocus>
            {Object.entries(specs?.kernelspecs ?? {}).map(([one, { spec }]) => (
              <option key={one} value={one}>
                {typeof spec.display_name === "string" ? spec.display_name : one}
              </option>
            ))}
          </select>
        </label>
        <label class="field">
          Directory
          <input value={path} onInput={(event) => setPath(event.currentTarget.value)} spellcheck={false} />
          <span class="hint">Relative to the server’s root directory; empty for that itself.</span>
        </label>
        <label class="field">
          Environment
          <textarea rows={3} value={environment} spellcheck={false}
            onInput={(event) => setEnvironment(event.currentTarget.value)} />
          <span class="hint">One NAME=value a line.</span>
        </label>
        {error !== "" && (
          <p role="alert" class="error-text">
            {error}
          </p>
        )}
        <div class="actions last">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="primary" disabled={busy || specs === null}>
            Start
          </button>
        </div>
      </form>
    </Dialog>
  );
}
