//! Quotas on real connections: who waits, who is refused, and with which words.

use std::num::NonZeroU32;

use super::*;

fn limited(quota: Quota) -> Vec<Rule> {
    vec![Rule { quota, ..rule() }]
}

fn per_second(number: u32) -> Quota {
    Quota {
        requests_per_second: NonZeroU32::new(number).unwrap(),
        ..Quota::UNLIMITED
    }
}

fn users(number: usize) -> Quota {
    Quota {
        users: Some(number),
        ..Quota::UNLIMITED
    }
}

fn token_of(user: &str) -> String {
    format!("GET /v1/users/{user}/grants/google/token")
}

fn kind(reply: &Reply) -> String {
    reply.json()["type"].as_str().unwrap_or("").to_owned()
}

#[tokio::test]
async fn a_flood_on_one_connection_waits_for_its_turn_and_reaches_the_daemon_at_its_rate() {
    let site = Site::new(SocketKind::Shared, limited(per_second(100)));
    let mut client = site.connect().await;
    // The clock stands still: a hundred come at once, and some more wait for real.
    for _ in 0..110 {
        assert_eq!(client.ask("GET /v1/users/42").await.status, 200);
    }
    assert_eq!(site.keeper.calls().len(), 110);
    let counts = site.quotas.counts();
    let slowed = counts
        .iter()
        .find(|(app, kind, _)| app == "crm" && kind.labels()[1] == "slowed");
    assert_eq!(slowed.unwrap().2, 10);
}

#[tokio::test]
async fn what_can_t_even_wait_is_refused_before_anything_is_done_for_it_whatever_the_route() {
    let site = Site::new(SocketKind::Shared, limited(per_second(1)));
    let mut client = site.connect().await;
    for status in [200, 200] {
        assert_eq!(client.ask("GET /v1/users/42").await.status, status);
    }
    site.keeper.calls();
    for request in ["GET /v1/users/42", "GET /healthz", "GET /v1/nothing"] {
        let reply = client.ask(request).await;
        assert_eq!(reply.status, 429, "{request}");
        assert_eq!(kind(&reply), "urn:freshd:over-quota");
        assert_eq!(reply.headers["retry-after"], "1");
    }
    assert!(site.keeper.calls().is_empty());
    // A reload counts at once, on this very connection.
    site.rules
        .store(Arc::new(Rules::new(limited(per_second(1000)))));
    assert_eq!(client.ask("GET /v1/users/42").await.status, 200);
}

#[tokio::test]
async fn the_admin_socket_has_no_quota() {
    let site = Site::admin();
    let mut client = site.connect().await;
    for _ in 0..500 {
        assert_eq!(client.ask("GET /healthz").await.status, 200);
    }
    let counted: u64 = site.quotas.counts().iter().map(|(_, _, times)| times).sum();
    assert_eq!(counted, 0);
}

#[tokio::test]
async fn strangers_flood_at_the_strangers_rate_and_healthz_is_no_way_around_it() {
    let site = Site::new(SocketKind::Shared, vec![]);
    let mut client = site.connect().await;
    // One uid of them gets half of a hundred a second, at once.
    for _ in 0..50 {
        assert_eq!(client.ask("GET /healthz").await.status, 200);
    }
    let counted = |label: &str| {
        let counts = site.quotas.counts();
        let of =
            |(_, kind, _): &&(String, super::super::quotas::Kind, u64)| kind.labels()[1] == label;
        counts
            .iter()
            .filter(of)
            .map(|(_, _, times)| times)
            .sum::<u64>()
    };
    assert_eq!(counted("slowed"), 0);
    assert_eq!(client.ask("GET /healthz").await.status, 200);
    assert_eq!(counted("slowed"), 1);
}

#[tokio::test]
async fn a_cap_on_users_serves_those_it_has_served_and_counts_only_tokens_that_were_given() {
    let site = Site::new(SocketKind::Shared, limited(users(2)));
    assert_eq!(site.ask(&token_of("nobody")).await.status, 404);
    assert_eq!(site.ask(&token_of("anna")).await.status, 200);
    let refresh = "POST /v1/users/ben/grants/google/refresh";
    assert_eq!(site.ask(refresh).await.status, 200);
    for request in [token_of("clara"), refresh.replace("ben", "clara")] {
        let reply = site.ask(&request).await;
        assert_eq!(
            (reply.status, kind(&reply).as_str()),
            (429, "urn:freshd:over-quota")
        );
        assert_eq!(reply.headers["retry-after"], "3600");
    }
    for request in [token_of("anna"), refresh.to_owned(), token_of("ben")] {
        assert_eq!(site.ask(&request).await.status, 200, "{request}");
    }
    // What shows no token is not counted.
    assert_eq!(site.ask("GET /v1/users/clara").await.status, 200);
    let audits = site.keeper.audits.lock().unwrap().clone();
    assert!(
        audits
            .iter()
            .any(|line| line.starts_with("many-users app crm None refused")),
        "{audits:?}"
    );
    site.clock.pass(Duration::from_secs(3600));
    assert_eq!(site.ask(&token_of("clara")).await.status, 200);
}

#[tokio::test]
async fn an_alarm_on_users_is_audited_and_refuses_nobody() {
    let quota = Quota {
        alarm_users: Some(3),
        ..Quota::UNLIMITED
    };
    let site = Site::new(SocketKind::Shared, limited(quota));
    for nth in 0..10 {
        assert_eq!(site.ask(&token_of(&nth.to_string())).await.status, 200);
    }
    let audits = site.keeper.audits.lock().unwrap().clone();
    assert_eq!(
        audits,
        ["many-users app crm None tokens of more than 3 users in an hour"]
    );
}

#[tokio::test]
async fn an_app_with_few_connections_gets_one_when_others_have_all_of_the_socket() {
    let limits = Limits {
        connections: 2,
        reserved: 1,
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let mut open = [site.connect().await, site.connect().await];
    for client in &mut open {
        assert_eq!(client.ask(TOKEN_42).await.status, 200);
    }
    // The same uid is another app from now on, which has no connection yet.
    let other = Rule {
        app: "wiki".into(),
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![other])));
    let mut reserved = site.connect().await;
    assert_eq!(reserved.ask(TOKEN_42).await.status, 200);
    let turned_away = site.connect().await.reply().await.unwrap();
    assert_eq!(turned_away.status, 503);
}

const TOKEN_42: &str = "GET /v1/users/42/grants/google/token";
