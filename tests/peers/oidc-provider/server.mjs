// A real OAuth 2.0 authorization server on loopback, told by the environment:
//   ACCESS_TOKEN_TTL   lifetime of an access token in seconds (default 12)
// Prints one line of JSON when it listens, and ends when its standard input does.
//
// Beside the standard endpoints there are two for the test that runs it:
//   GET  /control/counters            what the server has seen
//   POST /control/revoke?user=NAME    the user withdraws the grant at the server

import http from 'node:http';
import Provider from 'oidc-provider';
import { Store, counters, grantsOf, revokeFamily } from './store.mjs';

const accessTokenTtl = Number(process.env.ACCESS_TOKEN_TTL ?? 12);
const client = {
  client_id: 'freshd-test',
  // Characters that RFC 6749 §2.3.1 wants form-encoded before they go into the Basic header.
  client_secret: 'a secret with +%: and more',
  redirect_uris: ['http://127.0.0.1:1/callback'], // never fetched: the login reads the redirect itself
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
  token_endpoint_auth_method: 'client_secret_basic',
};

const server = http.createServer();
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  adapter: Store,
  clients: [client],
  cookies: { keys: ['loopback only'] },
  features: {
    devInteractions: { enabled: false },
    introspection: { enabled: true },
    revocation: { enabled: true },
    userinfo: { enabled: false },
  },
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  issueRefreshToken: () => true,
  // By default a confidential client's young token is not rotated.
  rotateRefreshToken: () => true,
  pkce: { required: () => true },
  ttl: {
    AccessToken: accessTokenTtl,
    AuthorizationCode: 60,
    Grant: 86400,
    IdToken: 3600,
    Interaction: 600,
    RefreshToken: 86400,
    Session: 86400,
  },
});

const seen = { refreshes: {}, refused: 0 };
provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type !== 'refresh_token') return;
  const user = ctx.oidc.account.accountId;
  seen.refreshes[user] = (seen.refreshes[user] ?? 0) + 1;
});
provider.on('grant.error', () => { seen.refused += 1; });
provider.on('server_error', (_ctx, error) => console.error(error));

// Login and consent without a person: whoever `login_hint` names is logged in and agrees.
async function interact(req, res) {
  const { prompt, params } = await provider.interactionDetails(req, res);
  if (prompt.name === 'login') {
    return provider.interactionFinished(req, res, { login: { accountId: params.login_hint } });
  }
  const grant = new provider.Grant({ accountId: params.login_hint, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const result = { consent: { grantId: await grant.save() } };
  return provider.interactionFinished(req, res, result, { mergeWithLastSubmission: true });
}

function control(req, res, url) {
  const answer = (status, body) => {
    res.writeHead(status, { 'content-type': 'application/json' });
    res.end(JSON.stringify(body));
  };
  if (req.method === 'GET' && url.pathname === '/control/counters') {
    return answer(200, { ...seen, ...counters });
  }
  if (req.method === 'POST' && url.pathname === '/control/revoke') {
    const ids = grantsOf(url.searchParams.get('user'));
    for (const id of ids) revokeFamily(id);
    return answer(200, { revoked: ids.length });
  }
  return answer(404, {});
}

const standard = provider.callback();
server.on('request', (req, res) => {
  const url = new URL(req.url, issuer);
  if (url.pathname.startsWith('/control/')) return control(req, res, url);
  if (!url.pathname.startsWith('/interaction/')) return standard(req, res);
  return interact(req, res).catch((error) => {
    console.error(error);
    res.writeHead(500).end();
  });
});

process.stdin.resume().on('end', () => process.exit(0));
console.log(JSON.stringify({
  issuer,
  token_endpoint: `${issuer}/token`,
  introspection_endpoint: `${issuer}/token/introspection`,
  revocation_endpoint: `${issuer}/token/revocation`,
  client_id: client.client_id,
  client_secret: client.client_secret,
  redirect_uri: client.redirect_uris[0],
}));
