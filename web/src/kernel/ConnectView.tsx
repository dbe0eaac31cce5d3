import { base } from "../api/client";
import { toast } from "../components/toasts";
import { pathOf } from "./paths";

/** What other tools need to reach this kernel: addresses, and where the token goes; never the token. */
export default function ConnectView({ id }: { id: string }) {
  const facts: [string, string][] = [
    ["Kernel", id],
    ["Server", base],
    ["Kernel over HTTP", base + pathOf(id, "").replace(/\/$/, "")],
    ["Executions", base + pathOf(id, "executions")],
    ["Messages", base + pathOf(id, "messages")],
    ["Channels (WebSocket)", base.replace(/^http/, "ws") + pathOf(id, "channels")],
    ["JupyterLab", `jupyter lab --gateway-url="${base}" --GatewayClient.auth_token="$TOKEN"`],
    ["Run a line", `curl -H "Authorization: token $TOKEN" "${base}${pathOf(id, "executions?wait=30")}" -d '{"code": "6 * 7"}'`],
  ];
  return (
    <section aria-label="Connect">
      <p class="hint">
        Each request shows a token, in the header <code>Authorization: token …</code>. Neither the token nor the key of the
        kernel's connection is shown here.
      </p>
      <dl class="connect">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              <code>{value}</code>{" "}
              <button type="button" onClick={() => void copy(value)}>
                Copy<span class="visually-hidden"> {name}</span>
              </button>
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    toast("The browser does not let the page copy.", { kind: "error" });
  }
}
