//! What each route does when all is well.

use super::*;
use crate::local_api::types::TokenAnswer;

#[tokio::test]
async fn the_token_route_answers_exactly_a_token_answer() {
    let site = Site::shared();
    let reply = site.ask("GET /v1/users/42/grants/google:work/token").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["cache-control"], "no-store");
    let answer: TokenAnswer = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer.access_token, format!("{CANARY} \"\\\u{7}ü/42"));
    assert_eq!(
        answer.expires_in,
        Some(99),
        "99.95 s are left, and 100 would be a lie"
    );
    assert_eq!(
        answer.expires_at.as_deref(),
        Some("2026-09-21T14:15:00.25Z")
    );
    assert_eq!(answer.scope.as_deref(), Some("a b"));
    assert_eq!((answer.generation, answer.account.as_str()), (7, "work"));
    assert_eq!(
        reply.body,
        serde_json::to_vec(&answer).unwrap(),
        "the borrowed shape is the same"
    );
    assert_eq!(
        site.keeper.calls(),
        ["token default/42/google:work min_ttl=10s wait=10s counts=true"]
    );
}

#[tokio::test]
async fn what_nobody_knows_is_left_out_of_a_token_answer() {
    let site = Site::shared();
    let reply = site
        .ask("GET /v1/users/unknown-expiry/grants/google/token")
        .await;
    let answer: TokenAnswer = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(reply.body, serde_json::to_vec(&answer).unwrap());
    let json = reply.json();
    for member in ["expires_in", "expires_at", "scope", "account"] {
        assert!(json.get(member).is_none(), "{member}");
    }
}

#[tokio::test]
async fn a_reader_chooses_min_ttl_wait_and_activity() {
    let site = Site::shared();
    let path = "GET /v1/users/42/grants/google/token";
    site.ask(&format!("{path}?min_ttl=0&wait=0&activity=false"))
        .await;
    site.ask(&format!("{path}?min_ttl=86400&wait=999999&activity=true"))
        .await;
    let rule = Rule {
        counts_as_activity: false,
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![rule])));
    site.ask(path).await;
    site.ask(&format!("{path}?activity=true")).await;
    assert_eq!(
        site.keeper.calls(),
        [
            "token default/42/google min_ttl=0ns wait=0ns counts=false",
            "token default/42/google min_ttl=86400s wait=60s counts=true",
            "token default/42/google min_ttl=10s wait=10s counts=false",
            "token default/42/google min_ttl=10s wait=10s counts=true",
        ]
    );
}

#[tokio::test]
async fn names_with_slashes_spaces_and_percent_signs_arrive_decoded_once() {
    let site = Site::shared();
    site.ask("GET /v1/users/a%2Fb%20%2541/grants/google%3Ax%2Fy/token")
        .await;
    site.ask("GET /v1/users/%2e%2e%2f/grants/google").await;
    site.ask("GET /v1/users/grants").await;
    assert_eq!(
        site.keeper.calls(),
        [
            "token default/a/b %41/google:x/y min_ttl=10s wait=10s counts=true",
            "grant default/..//google",
            "user default/grants",
        ]
    );
}

#[tokio::test]
async fn refresh_takes_the_refused_generation_or_nothing() {
    let site = Site::shared();
    let path = "POST /v1/users/42/grants/google/refresh";
    let reply = site
        .ask(&format!("{path}?wait=3\n\n{{\"generation\":7}}"))
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.json()["generation"], 7);
    site.ask(&format!("{path}?activity=false")).await;
    site.ask(&format!("{path}\n\n{{}}")).await;
    assert_eq!(
        site.keeper.calls(),
        [
            "refresh default/42/google Some(7) wait=3s counts=true",
            "refresh default/42/google None wait=10s counts=false",
            "refresh default/42/google None wait=10s counts=true",
        ]
    );
}

#[tokio::test]
async fn imports_pass_replace_and_hold_and_answer_201_when_they_create() {
    let site = Site::shared();
    let body = format!("{{\"refresh_token\":\"{CANARY}\",\"unknown\":[1]}}");
    let reply = site
        .ask(&format!("PUT /v1/users/42/grants/google\n\n{body}"))
        .await;
    assert_eq!(
        (reply.status, &reply.json()["result"]),
        (201, &Value::from("created"))
    );
    let reply = site
        .ask(&format!(
            "PUT /v1/users/42/grants/google?replace=true&hold=true\n\n{body}"
        ))
        .await;
    assert_eq!(
        (reply.status, &reply.json()["result"]),
        (200, &Value::from("replaced"))
    );
    assert_eq!(
        site.keeper.calls(),
        [
            "import default/42/google replace=false hold=false",
            "import default/42/google replace=true hold=true",
        ]
    );
}

#[tokio::test]
async fn a_grants_history_is_for_readers_and_admins() {
    for site in [Site::shared(), Site::admin()] {
        let path = "GET /v1/users/42/grants/google:work/history";
        let history: History = serde_json::from_value(site.ask(path).await.json()).unwrap();
        assert_eq!(history.grant, view("google"));
        assert_eq!(site.keeper.calls(), ["history default/42/google:work"]);
    }
}

#[tokio::test]
async fn state_and_deletion_of_grants_and_users() {
    let site = Site::shared();
    let grant = site.ask("GET /v1/users/42/grants/google:work").await;
    assert_eq!(
        serde_json::from_value::<GrantView>(grant.json()).unwrap(),
        view("google")
    );
    let user = site.ask("GET /v1/users/42").await.json();
    assert_eq!(user["grants"].as_array().unwrap().len(), 2);
    assert_eq!(
        site.ask("DELETE /v1/users/42/grants/google").await.json()["changed"],
        1
    );
    assert_eq!(site.ask("DELETE /v1/users/42").await.json()["changed"], 2);
    assert_eq!(
        site.ask("POST /v1/users/42/activity").await.json()["user"],
        "42"
    );
    assert_eq!(
        site.keeper.calls(),
        [
            "grant default/42/google:work",
            "user default/42",
            "delete default/42/google by app crm",
            "delete_user default/42 None by app crm",
            "activity default/42",
        ]
    );
}

#[tokio::test]
async fn verbs_about_a_whole_user_touch_only_the_rules_providers() {
    let only = |names: &[&str]| Rule {
        providers: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..rule()
    };
    let site = Site::new(SocketKind::Shared, vec![only(&["google"])]);
    let user = site.ask("GET /v1/users/42").await.json();
    assert_eq!(user["grants"].as_array().unwrap().len(), 1);
    assert_eq!(user["grants"][0]["provider"], "google");
    let user = site.ask("POST /v1/users/42/activity\n\n{}").await.json();
    assert_eq!(user["grants"].as_array().unwrap().len(), 1);
    site.ask("DELETE /v1/users/42").await;
    let calls = site.keeper.calls();
    assert_eq!(
        calls.last().unwrap(),
        "delete_user default/42 Some([\"google\"]) by app crm"
    );

    site.rules.store(Arc::new(Rules::new(vec![only(&["box"])])));
    assert_eq!(site.ask("GET /v1/users/42").await.status, 404);
    assert_eq!(site.ask("POST /v1/users/42/activity").await.status, 404);
    assert!(
        !site
            .keeper
            .calls()
            .iter()
            .any(|call| call.starts_with("activity"))
    );
}

#[tokio::test]
async fn the_admin_socket_names_any_namespace_and_keeps_nobody_awake() {
    let site = Site::admin();
    let us = format!("uid {}", rustix::process::getuid().as_raw());
    site.ask("GET /v1/users/42/grants/google/token").await;
    site.ask("GET /v1/users/42/grants/google/token?activity=true\nFreshd-Namespace: other")
        .await;
    site.ask("DELETE /v1/users/42\nFreshd-Namespace: other")
        .await;
    assert_eq!(
        site.keeper.calls(),
        [
            "token default/42/google min_ttl=10s wait=10s counts=false",
            "token other/42/google min_ttl=10s wait=10s counts=true",
            &format!("delete_user other/42 None by {us}"),
        ]
    );
}

#[tokio::test]
async fn an_import_into_a_namespace_that_no_app_reads_is_refused_with_those_that_some_do() {
    let site = Site::admin();
    let body = format!("{{\"refresh_token\":\"{CANARY}\"}}");
    let into = |namespace: &str| {
        format!("PUT /v1/users/42/grants/google\nFreshd-Namespace: {namespace}\n\n{body}")
    };
    // Without apps there are only admins, who read all.
    assert_eq!(site.ask(&into("crmm")).await.status, 201);
    let apps = ["crm", "wiki"].map(|namespace| Rule {
        app: namespace.into(),
        namespace: namespace.into(),
        ..rule()
    });
    site.rules.store(Arc::new(Rules::new(apps.into())));
    site.keeper.calls();
    let (status, kind, detail) = site.refused(&into("crmm")).await;
    assert_eq!((status, kind.as_str()), (400, "bad-request"));
    assert_eq!(
        detail,
        "namespace \"crmm\" is no app's, so no app could read this grant: those of the [app] rules are \"crm\", \"wiki\". \
         Name one of them; or add [app.NAME] with namespace = \"crmm\", reload, and import again"
    );
    for namespace in ["crm", "wiki", "default"] {
        assert_eq!(site.ask(&into(namespace)).await.status, 201, "{namespace}");
    }
    // What is there can be read and deleted: an app may have gone.
    let there = "DELETE /v1/users/42\nFreshd-Namespace: crmm";
    assert_eq!(site.ask(there).await.status, 200);
}

#[tokio::test]
async fn admins_pause_and_resume_grants_users_and_providers() {
    let site = Site::admin();
    let us = format!("uid {}", rustix::process::getuid().as_raw());
    for verb in ["pause", "resume"] {
        for (path, noted) in [
            ("users/42", "user default/42"),
            ("users/grants", "user default/grants"),
            (
                "users/42/grants/google:work",
                "grant default/42/google:work",
            ),
            ("providers/google", "provider google"),
        ] {
            let reply = site.ask(&format!("POST /v1/{path}/{verb}")).await;
            assert_eq!(reply.json()["changed"], 1);
            assert_eq!(site.keeper.calls(), [format!("{verb} {noted} by {us}")]);
        }
    }
    let (status, kind, _) = site.refused("POST /v1/providers/google:work/pause").await;
    assert_eq!((status, kind.as_str()), (400, "bad-request"));
}

#[tokio::test]
async fn admins_list_grants_by_state_provider_user_and_missing_scope() {
    let site = Site::admin();
    let list = site.ask("GET /v1/grants").await.json();
    assert_eq!(list["next_cursor"], "9");
    site.ask(
        "GET /v1/grants?state=needs-authorization&reason=refused&ending=true&failing=true&provider=google&user=a%2Fb&missing_scope=x+y&cursor=9&limit=5000\n\
         Freshd-Namespace: other",
    )
    .await;
    site.ask("GET /v1/grants?limit=0").await;
    let defaults = ListRequest {
        limit: 100,
        ..ListRequest::default()
    };
    let full = ListRequest {
        namespace: Some("other".into()),
        user: Some("a/b".into()),
        state: Some("needs-authorization".into()),
        reason: Some("refused".into()),
        ending: true,
        failing: true,
        provider: Some("google".into()),
        missing_scope: Some("x y".into()),
        cursor: Some("9".into()),
        limit: 1000,
    };
    let least = ListRequest {
        limit: 1,
        ..ListRequest::default()
    };
    let expected = [defaults, full, least].map(|request| format!("{request:?}"));
    assert_eq!(site.keeper.calls(), expected);
    let (status, _, detail) = site.refused("GET /v1/grants?state=asleep").await;
    assert_eq!(status, 400);
    assert_eq!(
        detail,
        "state \"asleep\" must be active, paused or needs-authorization"
    );
}

#[tokio::test]
async fn admins_see_status_and_providers_and_a_keepers_problem_reaches_the_client() {
    let site = Site::admin();
    assert_eq!(
        site.ask("GET /v1/providers").await.json()["providers"],
        Value::Array(vec![])
    );
    let (status, kind, detail) = site.refused("GET /v1/status").await;
    assert_eq!((status, kind.as_str()), (507, "store-unavailable"));
    assert!(detail.contains("disk full"));
    let (status, kind, _) = {
        let reply = site.ask("GET /v1/users/nobody/grants/google/token").await;
        assert_eq!(reply.headers["cache-control"], "no-store");
        let problem: Problem = serde_json::from_slice(&reply.body).unwrap();
        (reply.status, problem.kind, problem.detail)
    };
    assert_eq!((status, kind.as_str()), (404, "urn:freshd:no-such-grant"));
}

#[tokio::test]
async fn anybody_who_can_connect_may_ask_whether_freshd_is_alive() {
    let site = Site::new(SocketKind::Shared, vec![]);
    let reply = site.ask("GET /healthz").await;
    assert_eq!(
        (reply.status, &reply.json()["status"]),
        (200, &Value::from("ok"))
    );
    site.keeper.draining.store(true, Ordering::Relaxed);
    let reply = site.ask("GET /healthz").await;
    assert_eq!(
        (reply.status, reply.headers["retry-after"].as_str()),
        (503, "3")
    );
}
