// A certified OpenID Connect provider, whose keys change when a line on stdin says so.
//
// Its users are clients that get tokens for themselves (client_credentials): the name of each is the
// subject of its tokens. A line is JSON: `keys` has names of keys, which are shown, and the first signs;
// `callback`, if there is one, is where the client `page` has people sent back who log in with any name.
// Each line is answered by one, the first of which has the port.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import Provider from "oidc-provider";

const audience = "kernelkeep";
const users = JSON.parse(process.argv.at(-1)); // by name: the secret, the scopes, the groups

const keys = {};
function privateKey(kid) {
  keys[kid] ??= generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });
  return { ...keys[kid], kid, use: "sig", alg: "RS256" };
}

const scopes = [...new Set(Object.values(users).flatMap((user) => user.scopes))];

function page(callback) {
  return {
    client_id: "page",
    token_endpoint_auth_method: "none",
    redirect_uris: [callback],
    scope: ["openid", ...scopes].join(" "),
  };
}

function provider(issuer, { keys: kids, callback }) {
  const programs = Object.entries(users).map(([name, user]) => ({
    client_id: name,
    client_secret: user.secret,
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
    scope: user.scopes.join(" "),
  }));
  return new Provider(issuer, {
    jwks: { keys: kids.map(privateKey) },
    clients: callback ? [...programs, page(callback)] : programs,
    scopes,
    pkce: { required: () => true },
    ttl: { ClientCredentials: (ctx) => Number(ctx.get("x-seconds") || 600) },
    extraTokenClaims: (ctx, token) => ({ groups: users[token.accountId ?? token.clientId].groups }),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: Boolean(callback) },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => "urn:kernelkeep",
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource, client) => ({
          audience,
          scope: client.scope,
          accessTokenFormat: "jwt",
        }),
      },
    },
  });
}

let current;
const server = createServer((request, response) => current(request, response));
server.listen(0, "127.0.0.1", async () => {
  const { port } = server.address();
  for await (const line of createInterface({ input: process.stdin })) {
    current = provider(`http://127.0.0.1:${port}`, JSON.parse(line)).callback();
    console.log(`port ${port}`);
  }
  process.exit();
});
