//! A real server has rotated, and its answer is lost on the way or with the daemon: with a grace nothing is lost,
//! without one the token is served to its end and the loss is told as what it probably is.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::cutting_proxy::{Answers, CuttingProxy};
use support::daemon::grant_path;
use support::django_server::{Counters, DjangoServer};
use support::node_server::NodeServer;
use support::peers::About;
use support::{Config, Freshd, fake_clock, instant};

/// Long enough for a start of the daemon on a slow machine, short enough to be waited for.
const LIFETIME: u64 = 8;
const STRICT: &str = "rotation = \"strict\"";
const GRACE: &str = "rotation = \"grace\"\ngrace = \"3s\"";

/// How an answer is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Not one byte of it arrives.
    Whole,
    /// It arrives up to somewhere in its body.
    Half,
    /// The daemon is killed while it is under way.
    Kill,
    /// It never comes, and the daemon's clock is set by so many hours while it is waited for.
    ClockSet(i64),
}

/// A daemon that reaches a real server through a proxy, and Anna's grant.
struct Scene {
    proxy: CuttingProxy,
    freshd: Freshd,
    tokens: Value,
}

impl Scene {
    async fn set(about: &About, tokens: Value, rotation: &str) -> Scene {
        let proxy = CuttingProxy::before(&about.issuer).await;
        let config = match fake_clock::libfaketime() {
            Some(library) => fake_clock::take(Config::new(), &library),
            None => Config::new(),
        };
        let config = config.provider_at(
            "real",
            &proxy.endpoint(&about.token_endpoint),
            &proxy.endpoint(&about.revocation_endpoint),
            &about.client_id,
            &about.client_secret,
            rotation,
        );
        let freshd = Freshd::start(config).await;
        freshd.import("anna", "real", &tokens).await;
        Scene {
            proxy,
            freshd,
            tokens,
        }
    }

    /// Anna's API refuses her token; the server rotates, and the answer is lost.
    async fn lose(&mut self, loss: Loss) {
        self.proxy.answers(match loss {
            Loss::Whole => Answers::CutAfter(0),
            Loss::Half => Answers::CutAfter(300),
            Loss::Kill | Loss::ClockSet(_) => Answers::Held,
        });
        let path = format!("{}/refresh?wait=0", grant_path("anna", "real"));
        self.freshd.post(&path, &json!({ "generation": 1 })).await;
        self.proxy.nth_answer(1).await;
        match loss {
            Loss::Kill => self.freshd.kill().await,
            Loss::ClockSet(hours) => {
                fake_clock::set(&self.freshd.config, hours * 3600);
                // Once it has given up the first answer and asked again.
                self.proxy.nth_answer(2).await;
            }
            Loss::Whole | Loss::Half => {}
        }
        self.proxy.answers(Answers::Passed);
        if let Loss::Kill = loss {
            self.freshd.start_again().await;
        }
    }

    /// The grant goes on as if nothing had been: returns the new access token.
    async fn recovers(&self) -> String {
        let grant = self.freshd.wait_for_generation("anna", "real", 2).await;
        assert_eq!(grant["state"], "active", "{grant}");
        let reply = self.freshd.token_with("anna", "real", "wait=0").await;
        reply.token().to_owned()
    }

    /// The old token is served to its end, and only then the refresh token is presented once more.
    async fn is_told_as_lost(&self, ends: std::time::Instant) {
        let old = self.tokens["access_token"].as_str().expect("RFC 6749 §5.1");
        while instant() + Duration::from_millis(700) < ends {
            let reply = self.freshd.token_with("anna", "real", "wait=0").await;
            assert_eq!(reply.token(), old, "I4");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let grant = self
            .freshd
            .wait_for_state("anna", "real", "needs-authorization")
            .await;
        assert!(
            instant() >= ends,
            "it was presented before its access token's end"
        );
        assert_eq!(grant["reason"], "lost-rotation (probable)");
        let reply = self.freshd.token("anna", "real").await;
        reply.is_problem(409, "needs-authorization");
    }
}

/// A token response just came: it ends in a whole lifetime, give or take the second that answers are cut to.
fn its_end() -> std::time::Instant {
    instant() + Duration::from_secs(LIFETIME)
}

async fn django_with_grace(loss: Loss) {
    let django = DjangoServer::start(600, 3, &["anna"]).await;
    let tokens = django.log_in("anna").await;
    let mut scene = Scene::set(&django.about, tokens, GRACE).await;
    scene.lose(loss).await;
    let new = scene.recovers().await;
    assert!(django.is_active(&new).await, "{loss:?}");
    // The identical set, not another: the family lives on.
    let twice = Counters {
        refreshes: 2,
        refused: 0,
    };
    assert_eq!(django.counters().await, twice, "{loss:?}");
    let refused = json!({ "generation": 2 });
    let path = format!("{}/refresh", grant_path("anna", "real"));
    let next = scene.freshd.post(&path, &refused).await;
    assert_eq!(next.generation(), 3, "{}", next.text);
    assert!(django.is_active(next.token()).await, "{loss:?}");
}

async fn django_without_grace(loss: Loss) {
    let django = DjangoServer::start(LIFETIME, 0, &["anna"]).await;
    let tokens = django.log_in("anna").await;
    let mut scene = Scene::set(&django.about, tokens, STRICT).await;
    let ends = its_end();
    scene.lose(loss).await;
    scene.is_told_as_lost(ends - Duration::from_secs(1)).await;
    let once_each = Counters {
        refreshes: 1,
        refused: 1,
    };
    assert_eq!(django.counters().await, once_each, "{loss:?}");
}

async fn oidc_provider(loss: Loss) {
    let server = NodeServer::start(LIFETIME).await;
    let logins = server.log_in(&["anna".to_owned()]).await;
    let mut scene = Scene::set(&server.about, logins["anna"].clone(), STRICT).await;
    let ends = its_end();
    scene.lose(loss).await;
    scene.is_told_as_lost(ends - Duration::from_secs(1)).await;
    let seen = server.counters().await;
    assert_eq!((seen.replays, seen.refreshes["anna"]), (1, 1), "{loss:?}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_had_again_within_djangos_grace() {
    django_with_grace(Loss::Whole).await;
    django_with_grace(Loss::Half).await;
}

#[tokio::test]
async fn a_kill_in_flight_costs_nothing_within_djangos_grace() {
    django_with_grace(Loss::Kill).await;
}

#[tokio::test]
async fn a_clock_that_is_set_while_an_answer_is_lost_costs_nothing_within_djangos_grace() {
    if fake_clock::libfaketime().is_none() {
        return;
    }
    django_with_grace(Loss::ClockSet(8)).await;
    django_with_grace(Loss::ClockSet(-8)).await;
}

#[tokio::test]
async fn without_djangos_grace_a_lost_answer_is_told_when_the_token_has_been_served_to_its_end() {
    django_without_grace(Loss::Half).await;
}

#[tokio::test]
async fn without_djangos_grace_a_kill_in_flight_is_told_when_the_token_has_been_served_to_its_end()
{
    django_without_grace(Loss::Kill).await;
}

#[tokio::test]
async fn oidc_providers_lost_answer_is_told_when_the_token_has_been_served_to_its_end() {
    oidc_provider(Loss::Whole).await;
}

#[tokio::test]
async fn oidc_providers_kill_in_flight_is_told_when_the_token_has_been_served_to_its_end() {
    oidc_provider(Loss::Kill).await;
}

/// Not about freshd: if this fails, the tests above can't fail when they should.
#[tokio::test]
async fn django_itself_ends_a_family_whose_refresh_token_comes_again_after_the_grace() {
    let django = DjangoServer::start(600, 0, &["anna"]).await;
    let tokens = django.log_in("anna").await;
    let old = tokens["refresh_token"].as_str().unwrap();
    let (status, new) = django.refresh(old).await;
    assert_eq!(status, 200, "{new}");
    assert_eq!(django.refresh(old).await.0, 400);
    assert_eq!(
        django
            .refresh(new["refresh_token"].as_str().unwrap())
            .await
            .0,
        400
    );
}
