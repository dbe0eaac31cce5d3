import { useEffect, useState } from "preact/hooks";

import { Dialog } from "../components/Dialog";
import {
  askProviders,
  comingBack,
  leaveForLogin,
  loginProblem,
  type LoginProvider,
} from "./login";
import { promptClosed, tokenWanted, useToken } from "./token";

const WHY = {
  first: "The server prints a token when it is started; who runs the server may have given you one.",
  refused: "The server does not know this token, or knows it no longer.",
  ended: "The token has ended. What the page shows stays where it is.",
};

/** Asks for a token; the views behind it stay as they are, and go on with the new one. */
export function TokenPrompt() {
  const [typed, setTyped] = useState("");
  const [providers, setProviders] = useState<readonly LoginProvider[]>([]);
  useEffect(() => {
    askProviders().then(setProviders, () => undefined);
  }, []);
  const why = tokenWanted.value;
  if (why === "" || comingBack.value) return null;
  return (
    <Dialog title="Who are you?" onClose={() => (promptClosed.value = true)}>
      {loginProblem.value !== "" && <p role="alert">{loginProblem.value}</p>}
      <p>{WHY[why]}</p>
      {providers.map(({ name, url }) => (
        <p key={url}>
          <a class="button" href={url} onClick={leaveForLogin}>
            Log in with {name}
          </a>
        </p>
      ))}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (typed.trim() !== "") useToken(typed.trim());
        }}
      >
        <label class="field">
          Token
          <input
            type="password"
            autocomplete="off"
            autofocus
            value={typed}
            onInput={(event) => setTyped(event.currentTarget.value)}
          />
        </label>
        <div class="actions last">
          <button type="submit" class="primary">
            Go on
          </button>
        </div>
      </form>
    </Dialog>
  );
}
