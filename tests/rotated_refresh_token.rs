//! A refresh token that was replaced is kept, one of unknown fate is presented again only as its server's
//! rotation class allows, and a token set that comes late is not dropped unseen.

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use support::daemon::{Config, grant_path};
use support::store::age_marks;
use support::{
    Answer, Connection, Freshd, Gate, Issued, RecordedRequest, Rotating, ScriptedServer,
    eventually, instant, within,
};

// What an answer says of the refresh token.

/// Refreshes now, as after an API refused the current token.
async fn refresh(freshd: &Freshd, user: &str) -> u64 {
    let path = format!("{}/refresh", grant_path(user, "acme"));
    freshd.post(&path, &json!({})).await.generation()
}

fn presented_in_order(server: &ScriptedServer) -> Vec<String> {
    let requests = server.refreshes();
    requests
        .iter()
        .map(|request| request.refresh_token().to_owned())
        .collect()
}

#[tokio::test]
async fn each_rotated_refresh_token_is_presented_once_across_stops_and_kills() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let anna = rotating.issue("anna");
    freshd.import("anna", "acme", &anna.import()).await;

    assert_eq!(refresh(&freshd, "anna").await, 2);
    freshd.restart().await;
    assert_eq!(refresh(&freshd, "anna").await, 3);
    // Answered means on disk (I2): a kill right after the answer loses nothing.
    freshd.kill().await;
    freshd.start_again().await;
    assert_eq!(refresh(&freshd, "anna").await, 4);

    let all = presented_in_order(&server);
    assert_eq!(all, ["refresh-0-0", "refresh-0-1", "refresh-0-2"]);
    let last = freshd.token("anna", "acme").await;
    assert_eq!(last.token(), "access-0-3");
    assert!(rotating.is_active(last.token()));
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_keeps_the_old_one_through_two_cycles_and_a_restart() {
    let mut number = 0;
    let server = ScriptedServer::start(move |_| {
        number += 1;
        let body = json!({
            "access_token": format!("access-{number}"), "token_type": "bearer", "expires_in": 3600,
        });
        Answer::json(200, &body)
    })
    .await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let body = json!({ "refresh_token": "kept", "access_token": "a", "expires_in": 3600 });
    freshd.import("anna", "acme", &body).await;

    assert_eq!(refresh(&freshd, "anna").await, 2);
    assert_eq!(refresh(&freshd, "anna").await, 3);
    freshd.restart().await;
    assert_eq!(refresh(&freshd, "anna").await, 4);

    assert_eq!(presented_in_order(&server), ["kept", "kept", "kept"]);
    assert_eq!(freshd.token("anna", "acme").await.token(), "access-3");
    assert_eq!(freshd.grant("anna", "acme").await["state"], "active");
}

#[tokio::test]
async fn an_answer_with_the_same_refresh_token_again_is_as_good_as_a_new_one() {
    let mut number = 0;
    let server = ScriptedServer::start(move |_| {
        number += 1;
        Answer::tokens(&format!("access-{number}"), "the same", 3600)
    })
    .await;
    let config = Config::new().provider("acme", &server, "");
    let mut freshd = Freshd::start(config).await;
    let body = json!({ "refresh_token": "the same", "access_token": "a", "expires_in": 3600 });
    freshd.import("anna", "acme", &body).await;

    for generation in [2, 3] {
        assert_eq!(refresh(&freshd, "anna").await, generation);
    }
    freshd.restart().await;
    assert_eq!(refresh(&freshd, "anna").await, 4);

    assert_eq!(presented_in_order(&server), ["the same"; 3]);
    assert_eq!(freshd.token("anna", "acme").await.token(), "access-3");
}

// An answer that never came, by rotation class. The server has taken the request each time.

/// How the first answer to each refresh token was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// freshd was killed while its request was in flight.
    Kill,
    /// The connection ended without one byte of an answer.
    Nothing,
    /// The connection ended within the answer's body.
    Half,
    /// A gateway had given it up.
    Gateway,
}

const LOSSES: [Loss; 4] = [Loss::Kill, Loss::Nothing, Loss::Half, Loss::Gateway];

/// A server that obeys `rules` and loses its first answer to each of the refresh tokens it is told of.
struct Losing {
    server: ScriptedServer,
    freshd: Freshd,
    gate: Gate,
    loss: Loss,
}

impl Losing {
    /// `classes` are providers by name, each with its part of the configuration.
    async fn start(
        loss: Loss,
        classes: &[(&str, &str)],
        times: usize,
        mut rules: impl FnMut(&RecordedRequest) -> Answer + Send + 'static,
    ) -> Losing {
        let gate = Gate::shut();
        let held = gate.clone();
        let mut lost: std::collections::BTreeMap<String, usize> = Default::default();
        let server = ScriptedServer::start(move |request| {
            let answer = rules(request);
            let lost = lost.entry(request.refresh_token().to_owned()).or_default();
            *lost += 1;
            match loss {
                _ if *lost > times => answer,
                Loss::Kill => answer.held_by(&held),
                Loss::Nothing => answer.never_sent(),
                Loss::Half => answer.cut_after(25),
                Loss::Gateway => Answer::raw(504, "text/html", "<h1>Gateway Timeout</h1>"),
            }
        })
        .await;
        let config = classes.iter().fold(Config::new(), |config, (name, class)| {
            config.provider(name, &server, &format!("{class}\nmargin = \"30m\""))
        });
        let freshd = Freshd::start(config).await;
        Losing {
            server,
            freshd,
            gate,
            loss,
        }
    }

    /// Waits until `requests` have come whose answers are lost, and loses them; `down` is what happens
    /// while a killed daemon is down.
    async fn lose(&mut self, requests: usize, down: impl FnOnce(&Config)) {
        self.server.nth_refresh(requests).await;
        if self.loss == Loss::Kill {
            self.freshd.kill().await;
            self.gate.open();
            down(&self.freshd.config);
            self.freshd.start_again().await;
        }
    }

    /// Imports a token that is past its margin and so due at once, and says when it ends at the earliest.
    async fn import(&self, provider: &str, issued: &Issued, left: i64) -> Instant {
        let body = issued.import_aged(3000, left);
        let ends = instant() + Duration::from_secs(left as u64 - 1);
        self.freshd.import("anna", provider, &body).await;
        ends
    }

    /// Every request that presented this refresh token.
    fn presentations(&self, refresh_token: &str) -> Vec<RecordedRequest> {
        let mut all = self.server.refreshes();
        all.retain(|request| request.refresh_token() == refresh_token);
        all
    }
}

#[tokio::test]
async fn a_server_that_does_not_rotate_is_asked_again_at_once() {
    for loss in LOSSES {
        let same = |_: &RecordedRequest| Answer::tokens("new", "the same", 3600);
        let class = [("acme", "rotation = \"none\"")];
        let mut losing = Losing::start(loss, &class, 1, same).await;
        let anna = Rotating::new(3600).issue("anna");
        // Ten minutes to live: only a retry at once can come within the deadline of this test.
        losing.import("acme", &anna, 600).await;
        losing.lose(1, |_| {}).await;

        let again = losing.server.nth_refresh(2).await;
        assert_eq!(again.refresh_token(), anna.refresh_token, "{loss:?}");
        let grant = losing.freshd.wait_for_generation("anna", "acme", 2).await;
        assert_eq!(grant["state"], "active", "{loss:?}");
    }
}

#[tokio::test]
async fn where_old_refresh_tokens_overlap_the_old_one_is_presented_again_at_once_and_the_newest_after_that()
 {
    for loss in LOSSES {
        let mut number = 0;
        // The old one lives until a new one is used: each request brings another new one.
        let overlap = move |_: &RecordedRequest| {
            number += 1;
            Answer::tokens(&format!("access-{number}"), &format!("next-{number}"), 3600)
        };
        let class = [("acme", "rotation = \"overlap\"")];
        let mut losing = Losing::start(loss, &class, 1, overlap).await;
        let anna = Rotating::new(3600).issue("anna");
        losing.import("acme", &anna, 600).await;
        losing.lose(1, |_| {}).await;
        losing.freshd.wait_for_generation("anna", "acme", 2).await;

        assert_eq!(
            losing.presentations(&anna.refresh_token).len(),
            2,
            "{loss:?}"
        );
        let token = losing.freshd.token("anna", "acme").await;
        assert_eq!(token.token(), "access-2", "{loss:?}");
        losing
            .server
            .answer_with(|_| Answer::tokens("last", "one", 3600));
        assert_eq!(refresh(&losing.freshd, "anna").await, 3);
        let last = losing.server.nth_refresh(3).await;
        assert_eq!(last.refresh_token(), "next-2", "{loss:?}");
    }
}

const GRACE: &str = "rotation = \"grace\"\ngrace = \"30s\"";

#[tokio::test]
async fn within_the_grace_a_refresh_token_of_unknown_fate_is_presented_once_more_and_recovers() {
    for loss in LOSSES {
        let rotating = Rotating::new(3600).with_grace(Duration::from_secs(30));
        let mut losing = Losing::start(loss, &[("acme", GRACE)], 1, rotating.script()).await;
        let anna = rotating.issue("anna");
        losing.import("acme", &anna, 600).await;
        losing.lose(1, |_| {}).await;
        losing.freshd.wait_for_generation("anna", "acme", 2).await;

        assert_eq!(
            losing.presentations(&anna.refresh_token).len(),
            2,
            "{loss:?}"
        );
        assert_eq!(rotating.replayed_within_grace(), 1, "{loss:?}");
        assert_eq!(rotating.superseded_presented_outside_grace(), 0, "{loss:?}");
        let token = losing.freshd.token("anna", "acme").await;
        assert!(rotating.is_active(token.token()), "{loss:?}");
        if loss != Loss::Kill {
            // The failure was told, so its end is told.
            losing.freshd.wait_for_log("recovered").await;
        }
    }
}

#[tokio::test]
async fn a_replay_that_a_grace_allows_goes_before_grants_that_fell_due_while_freshd_was_down() {
    let rotating = Rotating::new(3600).with_grace(Duration::from_secs(30));
    let class = "rotation = \"grace\"\ngrace = \"30s\"\nmax-in-flight = 1";
    let (gate, mut rules) = (Gate::shut(), rotating.script());
    let held = gate.clone();
    let server = ScriptedServer::start(move |request| rules(request).held_by(&held)).await;
    let mut freshd = Freshd::start(Config::new().provider("acme", &server, class)).await;
    for number in 0..5 {
        let user = format!("user-{number}");
        let body = rotating.issue(&user).import_aged(10, 90);
        freshd.import(&user, "acme", &body).await;
    }
    let anna = rotating.issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(3400, 200))
        .await;
    let first = server.nth_refresh(1).await;
    assert_eq!(first.refresh_token(), anna.refresh_token);
    freshd.kill().await;
    // Their tokens end before anna's: they would go first.
    let all = "UPDATE grants SET due_at = 0 WHERE user <> 'anna'";
    assert_eq!(support::store::change(&freshd.config, all), 5);
    gate.open();
    freshd.start_again().await;

    let second = server.nth_refresh(2).await;
    assert_eq!(second.refresh_token(), anna.refresh_token);
    freshd.wait_for_generation("anna", "acme", 2).await;
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}

#[tokio::test]
async fn within_the_grace_it_is_presented_once_more_and_not_twice() {
    for loss in [Loss::Nothing, Loss::Half] {
        let rotating = Rotating::new(3600).with_grace(Duration::from_secs(30));
        let mut losing = Losing::start(loss, &[("acme", GRACE)], 2, rotating.script()).await;
        let anna = rotating.issue("anna");
        let ends = losing.import("acme", &anna, 5).await;
        losing.lose(2, |_| {}).await;

        let third = losing.server.nth_refresh(3).await;
        assert!(
            third.at >= ends,
            "{loss:?}: {:?} before the access token ended",
            ends - third.at
        );
    }
}

#[tokio::test]
async fn when_the_grace_has_passed_while_freshd_was_down_the_access_token_is_served_to_its_end_first()
 {
    let rotating = Rotating::new(3600);
    let mut losing = Losing::start(Loss::Kill, &[("acme", GRACE)], 1, rotating.script()).await;
    let anna = rotating.issue("anna");
    let ends = losing.import("acme", &anna, 6).await;
    losing.lose(1, |config| age_marks(config, 31)).await;

    let token = losing.freshd.token("anna", "acme").await;
    assert_eq!(token.token(), anna.access_token, "I4");
    let again = losing.server.nth_refresh(2).await;
    assert!(again.at >= ends, "{:?} too early", ends - again.at);
}

#[tokio::test]
async fn where_a_replay_ends_the_family_the_old_access_token_is_served_to_its_end_and_the_replay_comes_once()
 {
    const CLASSES: [(&str, &str); 3] = [
        ("strict", "rotation = \"strict\""),
        ("periodic", "rotation = \"periodic\""),
        ("unknown", ""),
    ];
    let each_loss = LOSSES.map(|loss| async move {
        let rotating = Rotating::new(3600);
        let mut losing = Losing::start(loss, &CLASSES, 1, rotating.script()).await;
        let mut grants = Vec::new();
        for (class, _) in CLASSES {
            let issued = rotating.issue(class);
            grants.push((class, losing.import(class, &issued, 7).await, issued));
        }
        losing.lose(CLASSES.len(), |_| {}).await;

        for (class, _, issued) in &grants {
            let token = losing.freshd.token("anna", class).await;
            assert_eq!(token.token(), issued.access_token, "I4: {class}, {loss:?}");
        }
        for (class, ends, issued) in &grants {
            let dead = losing
                .freshd
                .wait_for_state("anna", class, "needs-authorization")
                .await;
            assert_eq!(
                dead["reason"], "lost-rotation (probable)",
                "{class}, {loss:?}"
            );
            let presented = losing.presentations(&issued.refresh_token);
            assert_eq!(presented.len(), 2, "{class}, {loss:?}: once, not more");
            let early = ends.saturating_duration_since(presented[1].at);
            assert!(early.is_zero(), "{class}, {loss:?}: {early:?} too early");
            let reply = losing.freshd.token("anna", class).await;
            reply.is_problem(409, "needs-authorization");
            assert_eq!(reply.json["reason"], "lost-rotation (probable)");
        }
        losing.freshd.stop().await;
        let log = losing.freshd.logs();
        let told = log
            .lines()
            .filter(|line| line.contains("needs-authorization"));
        assert_eq!(
            told.count(),
            CLASSES.len(),
            "{loss:?}: one line each\n{log}"
        );
    });
    futures_util::future::join_all(each_loss).await;
}

#[tokio::test]
async fn a_strict_servers_refresh_token_that_never_arrived_is_good_once_the_access_token_has_ended()
{
    for loss in [Loss::Kill, Loss::Nothing] {
        // The first request is lost before the server has done anything with it.
        let rotating = Rotating::new(3600);
        let mut rules = rotating.script();
        let mut first = true;
        let script = move |request: &RecordedRequest| {
            if std::mem::take(&mut first) {
                return Answer::error(503, "lost");
            }
            rules(request)
        };
        let class = [("acme", "rotation = \"strict\"")];
        let mut losing = Losing::start(loss, &class, 1, script).await;
        let anna = rotating.issue("anna");
        let ends = losing.import("acme", &anna, 4).await;
        losing.lose(1, |_| {}).await;

        let again = losing.server.nth_refresh(2).await;
        assert!(again.at >= ends, "{loss:?}");
        losing.freshd.wait_for_generation("anna", "acme", 2).await;
        let token = losing.freshd.token("anna", "acme").await;
        assert!(rotating.is_active(token.token()), "{loss:?}");
        assert_eq!(rotating.superseded_presented_outside_grace(), 0, "{loss:?}");
    }
}

#[tokio::test]
async fn a_reader_does_not_hurry_a_replay_that_must_wait() {
    let rotating = Rotating::new(3600);
    let class = [("acme", "rotation = \"strict\"")];
    let mut losing = Losing::start(Loss::Half, &class, 1, rotating.script()).await;
    let anna = rotating.issue("anna");
    losing.import("acme", &anna, 600).await;
    losing.lose(1, |_| {}).await;
    eventually("the loss to be noticed", || async {
        let grant = losing.freshd.grant("anna", "acme").await;
        (grant["failures"] == 1).then_some(())
    })
    .await;

    // Neither a reader who wants more lifetime nor one whose API refused the token, though both would
    // wait for longer than a backoff takes.
    let reply = losing
        .freshd
        .token_with("anna", "acme", "min_ttl=3600&wait=5")
        .await;
    assert_eq!(reply.token(), anna.access_token);
    let path = format!("{}/refresh?wait=5", grant_path("anna", "acme"));
    let reply = losing.freshd.post(&path, &json!({ "generation": 1 })).await;
    assert_eq!(reply.token(), anna.access_token);
    assert_eq!(losing.server.refreshes().len(), 1);
    assert!(rotating.is_active(&anna.access_token) && rotating.refreshes("anna") == 1);
}

// A token set that comes late.

/// A daemon with an attempt in flight for Anna, whose answer the gate holds.
struct InFlight {
    gate: Gate,
    rotating: Rotating,
    server: ScriptedServer,
    freshd: Freshd,
}

impl InFlight {
    async fn start(lost: bool) -> InFlight {
        let (gate, rotating) = (Gate::shut(), Rotating::new(3600));
        let held = gate.clone();
        let mut rules = rotating.script();
        let server = ScriptedServer::start(move |request| match rules(request) {
            answer if !request.is_refresh() => answer,
            answer if lost => answer.held_by(&held).cut_after(25),
            answer => answer.held_by(&held),
        })
        .await;
        let config = Config::new().daemon("log-level = \"debug\"").provider(
            "acme",
            &server,
            "rotation = \"strict\"",
        );
        let freshd = Freshd::start(config).await;
        let anna = rotating.issue("anna").import_expired();
        freshd.import("anna", "acme", &anna).await;
        server.nth_refresh(1).await;
        InFlight {
            gate,
            rotating,
            server,
            freshd,
        }
    }

    /// Sends a request, and opens the gate once it is under way and nobody answers it yet.
    async fn overtake(&self, method: Method, path: &str, body: Option<Value>) -> support::Reply {
        let mut connection = Connection::open(&self.freshd.config.socket()).await;
        let sending = connection.send(method, path, body.as_ref());
        tokio::pin!(sending);
        // Two whole turns on the same socket after it: as near as an outsider comes to "it waits".
        tokio::select! {
            reply = &mut sending => panic!("it did not wait for its slot: {reply:?}"),
            () = async {
                for _ in 0..2 {
                    assert_eq!(self.freshd.get("/healthz").await.status, 200);
                }
            } => {}
        }
        self.gate.open();
        within("the answer", sending).await
    }
}

#[tokio::test]
async fn an_import_that_replaces_waits_for_the_attempt_and_both_sets_are_in_the_history() {
    let mut flying = InFlight::start(false).await;
    let newer = flying.rotating.issue("anna");
    let path = format!("{}?replace=true", grant_path("anna", "acme"));
    let reply = flying
        .overtake(Method::PUT, &path, Some(newer.import()))
        .await;

    // The late set was committed as generation 2, and the import came on top of it.
    assert_eq!(
        (reply.status, &reply.json["result"]),
        (200, &json!("replaced")),
        "{}",
        reply.text
    );
    assert_eq!(reply.json["grant"]["generation"], 3);
    let token = flying.freshd.token("anna", "acme").await;
    assert_eq!(
        (token.token(), token.generation()),
        (newer.access_token.as_str(), 3)
    );
    // And the late refresh token is known: an app that pushes it does not bring it back.
    let late = json!({ "refresh_token": "refresh-0-1" });
    let reply = flying.freshd.put(&path, &late).await;
    assert_eq!(reply.json["result"], "unchanged", "{}", reply.text);
    flying.freshd.stop().await;
    let log = flying.freshd.logs();
    for said in [
        &["refreshed", "generation=2"][..],
        &["imported", "generation=3", "replaced"],
    ] {
        let line = log
            .lines()
            .find(|line| said.iter().all(|word| line.contains(word)));
        assert!(line.is_some(), "{said:?} is in no line of\n{log}");
    }
}

#[tokio::test]
async fn a_pause_across_an_attempt_keeps_what_it_brought_and_rests() {
    let flying = InFlight::start(false).await;
    let grant = grant_path("anna", "acme");
    let pausing = format!("{grant}/pause");
    let pausing = flying.freshd.admin(Method::POST, &pausing);
    tokio::pin!(pausing);
    // Whether it waits for the attempt or not, the answer comes when it has been under way.
    let early = tokio::select! {
        reply = &mut pausing => Some(reply),
        () = async {
            for _ in 0..2 {
                assert_eq!(flying.freshd.get("/healthz").await.status, 200);
            }
        } => None,
    };
    flying.gate.open();
    let reply = match early {
        Some(reply) => reply,
        None => within("the pause", pausing).await,
    };
    assert_eq!(reply.status, 200, "{}", reply.text);

    let paused = flying.freshd.wait_for_generation("anna", "acme", 2).await;
    assert_eq!(
        (&paused["state"], &paused["due_at"]),
        (&json!("paused"), &Value::Null)
    );
    let token = flying.freshd.token("anna", "acme").await;
    assert!(flying.rotating.is_active(token.token()));
    let resuming = format!("{grant}/resume");
    assert_eq!(
        flying.freshd.admin(Method::POST, &resuming).await.status,
        200
    );
    assert_eq!(refresh(&flying.freshd, "anna").await, 3);
    assert_eq!(
        presented_in_order(&flying.server),
        ["refresh-0-0", "refresh-0-1"]
    );
}

#[tokio::test]
async fn a_delete_waits_for_the_attempt_and_revokes_what_it_brought() {
    let flying = InFlight::start(false).await;
    let reply = flying
        .overtake(Method::DELETE, &grant_path("anna", "acme"), None)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let revocation = flying.server.nth_revocation(1).await;
    assert_eq!(
        revocation.form["token"], "refresh-0-1",
        "the late one, not the spent one"
    );
    assert_eq!(flying.server.refreshes().len(), 1);
    let gone = flying.freshd.token("anna", "acme").await;
    assert_eq!(gone.status, 404, "{}", gone.text);
}

#[tokio::test]
async fn a_delete_across_an_attempt_whose_answer_is_lost_revokes_what_there_is() {
    let flying = InFlight::start(true).await;
    let reply = flying
        .overtake(Method::DELETE, &grant_path("anna", "acme"), None)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let revocation = flying.server.nth_revocation(1).await;
    assert_eq!(revocation.form["token"], "refresh-0-0");
    assert_eq!(
        flying.server.refreshes().len(),
        1,
        "and it is not presented again"
    );
}

#[tokio::test]
async fn a_token_set_that_was_answered_is_on_disk_whatever_comes_next() {
    // A kill at the very moment at which a caller has the new token in hand, again and again.
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    let answered = Arc::new(Mutex::new(String::new()));
    for generation in 2..5 {
        let path = format!("{}/refresh", grant_path("anna", "acme"));
        let reply = freshd
            .post(&path, &json!({ "generation": generation - 1 }))
            .await;
        *answered.lock().unwrap() = reply.token().to_owned();
        freshd.kill().await;
        freshd.start_again().await;
        let after = freshd.token("anna", "acme").await;
        assert_eq!(after.token(), answered.lock().unwrap().as_str(), "I2");
        assert_eq!(after.generation(), generation);
    }
    assert_eq!(rotating.superseded_presented_outside_grace(), 0);
}
