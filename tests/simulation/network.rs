//! The way to a server and back: presented in `src/token_endpoint/`'s manner, with what weather and chance make of it.

use std::time::Duration;

use freshd::profile::{self, ClientAuth, Registration};
use freshd::refresh::grant::Grant;
use freshd::refresh::pacing::Pace;
use freshd::refresh::policy::{Policy, Rotation};
use freshd::refresh::time::UnixTime;
use freshd::refresh::token::{AccessToken, RefreshToken, TokenKind};
use freshd::refresh::token_response::{Outcome, Refusal, TokenResponse};
pub use freshd::token_endpoint::Revocation;
use real_tokio::sync::oneshot;

use crate::executor::{WORLD, sim};
use crate::server::Verdict;
use crate::time::{sleep, timeout};
use crate::world::{Break, world};

/// A provider, as it is configured and as its server is.
pub struct Provider {
    pub name: &'static str,
    pub policy: Policy,
    pub pace: Pace,
    pub deadline: Duration,
    /// The lifetime of its access tokens, and whether it says it.
    pub lifetime: Duration,
    pub says_lifetime: bool,
    /// How long a refresh token lives, if it says that; it lives longer.
    pub says_end: Option<Duration>,
    pub revokes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fine,
    Down,
    Errors,
    TooMany,
    Odd,
    Slow,
    BadClient,
}

impl Provider {
    /// What the daemon is told of it; perhaps broken on purpose.
    pub fn configured(&self, broken: Option<Break>) -> profile::Provider {
        let mut policy = self.policy.clone();
        match broken {
            Some(Break::ReplayAtOnce) if policy.rotation != Rotation::None => {
                policy.rotation = Rotation::Overlap;
            }
            Some(Break::NoFloor) => policy.floor = Duration::ZERO,
            _ => {}
        }
        let url = |path: &str| {
            let url = format!("https://{}.example/{path}", self.name);
            url.parse().expect("a URL")
        };
        profile::Provider {
            profile: None,
            registration: Registration {
                provider: self.name.to_owned(),
                token_endpoint: url("token"),
                revocation_endpoint: self.revokes.then(|| url("revoke")),
                client_auth: ClientAuth::None,
                client_id: "freshd".to_owned(),
                client_secret: None,
                dead_grant_codes: Vec::new(),
                connect_timeout: Duration::from_secs(1),
                deadline: self.deadline,
            },
            policy,
            pace: self.pace,
            scopes: Vec::new(),
        }
    }
}

/// Stands for `token_endpoint::Client`.
pub struct Client(pub &'static Provider);

impl Client {
    /// Presents a refresh token.
    pub async fn refresh(&self, token: &RefreshToken, _: UnixTime) -> Outcome {
        let presented = world().presents(self.0, token);
        let outcome = send(self.0, presented.as_ref(), token).await;
        world().ends(token, &outcome);
        outcome
    }

    pub async fn revoke(&self, token: &str, _: TokenKind) -> Revocation {
        let wait = sim().random(|rng| rng.millis(5, 900));
        sleep(wait).await;
        match world().revokes(self.0.name, token) {
            true => Revocation::Done,
            false => Revocation::Later,
        }
    }
}

/// What becomes of a request before it has reached its server; `None` if it gets there.
fn on_the_way(weather: Weather) -> Option<Outcome> {
    let sim = sim();
    let refused_for_now = |status, retry_after| {
        let refusal = Refusal { status, code: None };
        Some(Outcome::RefusedForNow {
            refusal,
            retry_after,
        })
    };
    match weather {
        Weather::Down if sim.chance(0.8) => Some(Outcome::NotSent("connect")),
        Weather::Errors => {
            let wait = sim.chance(0.3).then(|| sim.random(|rng| rng.secs(1, 600)));
            refused_for_now(sim.random(|rng| rng.pick(&[500, 502, 503])), wait)
        }
        Weather::TooMany => {
            let wait = sim.chance(0.7).then(|| sim.random(|rng| rng.secs(0, 900)));
            refused_for_now(429, wait)
        }
        Weather::Odd => refused_for_now(400, None),
        Weather::BadClient => Some(Outcome::RefusedForAll(Refusal {
            status: 401,
            code: Some("invalid_client"),
        })),
        _ => None,
    }
}

async fn send(provider: &'static Provider, grant: Option<&Grant>, token: &RefreshToken) -> Outcome {
    let connect = sim().random(|rng| rng.millis(5, 90));
    sleep(connect).await;
    let weather = world().weather(provider.name);
    let deadline = provider.deadline.as_millis() as u64;
    if let Some(outcome) = on_the_way(weather) {
        if matches!(outcome, Outcome::NotSent(_)) {
            let wait = sim().random(|rng| rng.millis(0, deadline / 2));
            sleep(wait).await;
        }
        return outcome;
    }
    let lost = world().knobs.lost_answers;
    if weather == Weather::Down || sim().chance(lost / 2.0) {
        // It never reaches the server; the connection is reset, or hangs until the deadline.
        let wait = sim().random(|rng| rng.millis(1, deadline));
        let hangs = sim().chance(0.5);
        sleep(if hangs { provider.deadline } else { wait }).await;
        return Outcome::Unknown("connection");
    }
    let slow = weather == Weather::Slow;
    let answered = serve(provider, grant.cloned(), token.clone(), lost, slow);
    match timeout(provider.deadline - connect, answered).await {
        Err(_) | Ok(Err(_)) => Outcome::Unknown("connection"),
        Ok(Ok(Verdict::Tokens {
            access_token,
            refresh_token,
        })) => Outcome::Tokens(TokenResponse {
            access_token: AccessToken::new(access_token),
            token_type: "Bearer".to_owned(),
            expires_in: provider.says_lifetime.then_some(provider.lifetime),
            jwt_expires_at: None,
            refresh_token: refresh_token.map(RefreshToken::new),
            refresh_token_expires_in: provider.says_end,
            scope: None,
        }),
        Ok(Ok(Verdict::Refused(_))) => Outcome::RefusedForGood(Refusal {
            status: 400,
            code: Some("invalid_grant"),
        }),
    }
}

/// The server's side, which works on whatever becomes of the daemon.
fn serve(
    provider: &'static Provider,
    grant: Option<Grant>,
    token: RefreshToken,
    lost: f64,
    slow: bool,
) -> oneshot::Receiver<Verdict> {
    let (answer, answered) = oneshot::channel();
    let sim = sim();
    let lost = sim.chance(lost);
    let longest = match slow {
        true => provider.deadline.as_millis() as u64 * 3 / 2,
        false => 700,
    };
    let there = sim.random(|rng| rng.millis(10, longest / 2));
    let there = there.min(provider.deadline);
    let back = sim.random(|rng| rng.millis(10, longest / 2));
    let (server, left_at) = (world(), sim.now());
    let nothing_left = |grant: &Grant| grant.expires_at().is_none_or(|at| at <= server.wall());
    let nothing_left = grant.as_ref().is_none_or(nothing_left);
    sim.spawn(WORLD, async move {
        server.sim.sleep(there).await;
        let verdict = server.present(provider.name, &token, left_at, nothing_left);
        server.sim.sleep(back).await;
        if lost && server.sim.chance(0.5) {
            server.sim.sleep(Duration::from_secs(600)).await;
        }
        if !lost {
            let _ = answer.send(verdict);
        }
    });
    answered
}
