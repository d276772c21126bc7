//! What is refused, and with which words.

use super::*;

#[tokio::test]
async fn a_peer_without_a_rule_is_told_who_it_is_and_nothing_more() {
    let site = Site::new(
        SocketKind::Shared,
        vec![Rule {
            peer: RulePeer::Socket,
            ..rule()
        }],
    );
    let uid = rustix::process::geteuid().as_raw();
    for path in [
        "/v1/users/42/grants/google/token",
        "/v1/users/42",
        "/v1/nothing",
        "/v1/users/..",
    ] {
        let (status, kind, detail) = site.refused(&format!("GET {path}")).await;
        assert_eq!((status, kind.as_str()), (403, "forbidden"), "{path}");
        assert!(
            detail.contains(&format!("uid {uid}, gid ")) && detail.contains("groups"),
            "{detail}"
        );
        assert!(!detail.contains("crm"), "{detail}");
    }
}

#[tokio::test]
async fn an_apps_own_socket_admits_whoever_connects_until_its_rule_goes() {
    let own = Rule {
        peer: RulePeer::Socket,
        ..rule()
    };
    let site = Site::new(SocketKind::App("crm".into()), vec![own]);
    let mut client = site.connect().await;
    assert_eq!(client.ask("GET /v1/users/42").await.status, 200);
    site.rules.store(Arc::new(Rules::new(vec![rule()])));
    assert_eq!(
        client.ask("GET /v1/users/42").await.status,
        403,
        "its uid does not count here"
    );
}

#[tokio::test]
async fn verbs_and_providers_outside_the_rule_are_refused_by_name() {
    let nothing = Rule {
        read: false,
        import: false,
        revoke: false,
        ..rule()
    };
    let site = Site::new(SocketKind::Shared, vec![nothing]);
    let body = "\n\n{\"refresh_token\":\"x\"}";
    for (request, verb) in [
        ("GET /v1/users/42/grants/google/token", "read"),
        ("POST /v1/users/42/grants/google/refresh", "read"),
        ("GET /v1/users/42/grants/google", "read"),
        ("GET /v1/users/42/grants/google/history", "read"),
        ("GET /v1/users/42", "read"),
        ("POST /v1/users/42/activity", "read"),
        (&format!("PUT /v1/users/42/grants/google{body}"), "import"),
        ("DELETE /v1/users/42/grants/google", "revoke"),
        ("DELETE /v1/users/42", "revoke"),
    ] {
        let (status, kind, detail) = site.refused(request).await;
        assert_eq!((status, kind.as_str()), (403, "forbidden"), "{request}");
        assert!(
            detail.contains("app \"crm\" does not allow") && detail.contains(verb),
            "{detail}"
        );
    }

    let only = Rule {
        providers: Some(vec!["hubspot".into()]),
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![only])));
    for request in [
        "GET /v1/users/42/grants/google/token",
        "POST /v1/users/42/grants/google/refresh",
        "GET /v1/users/42/grants/google:hubspot",
        "GET /v1/users/42/grants/google/history",
        &format!("PUT /v1/users/42/grants/google{body}"),
        "DELETE /v1/users/42/grants/google",
    ] {
        let (status, _, detail) = site.refused(request).await;
        assert_eq!(status, 403);
        assert!(
            detail.contains("app \"crm\" does not allow provider \"google\""),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn another_namespace_than_the_rules_is_refused() {
    let site = Site::shared();
    let path = "GET /v1/users/42";
    let (status, _, detail) = site
        .refused(&format!("{path}\nFreshd-Namespace: other"))
        .await;
    assert_eq!(status, 403);
    assert!(
        detail.contains("namespace \"default\" and no other"),
        "{detail}"
    );
    assert_eq!(
        site.ask(&format!("{path}\nFreshd-Namespace: default"))
            .await
            .status,
        200
    );
    let admin = Site::admin();
    for header in ["", "..", "a\u{85}b", "a\nFreshd-Namespace: b"] {
        let request = format!("{path}\nFreshd-Namespace: {header}");
        assert_eq!(admin.refused(&request).await.0, 400, "{header:?}");
    }
}

#[tokio::test]
async fn admin_verbs_are_unknown_on_every_other_socket() {
    let own = Rule {
        peer: RulePeer::Socket,
        ..rule()
    };
    for site in [
        Site::shared(),
        Site::new(SocketKind::App("crm".into()), vec![own]),
    ] {
        for request in [
            "POST /v1/users/42/pause",
            "POST /v1/users/42/resume",
            "POST /v1/users/42/grants/google/pause",
            "POST /v1/users/42/grants/google/resume",
            "POST /v1/providers/google/pause",
            "POST /v1/providers/google/resume",
            "GET /v1/grants",
            "GET /v1/status",
            "GET /v1/providers",
            "POST /v1/backup",
            "POST /v1/keys/rotate",
            "GET /v1/providers/google/refresh",
            "POST /v1/providers/google/refresh",
        ] {
            let (status, kind, _) = site.refused(request).await;
            assert_eq!((status, kind.as_str()), (404, "no-such-route"), "{request}");
        }
    }
}

#[tokio::test]
async fn unknown_routes_are_404_and_wrong_methods_405_with_allow() {
    let site = Site::admin();
    for request in [
        "GET /",
        "GET /v2/users/42",
        "POST /v1/users",
        "OPTIONS *",
        "GET /v1/users/42/grants",
    ] {
        let (status, kind, _) = site.refused(request).await;
        assert_eq!((status, kind.as_str()), (404, "no-such-route"), "{request}");
    }
    for (request, allow) in [
        ("POST /v1/users/42/grants/google/token", "GET"),
        ("HEAD /v1/users/42/grants/google/token", "GET"),
        ("POST /v1/users/42/grants/google", "GET,HEAD,PUT,DELETE"),
        ("PUT /v1/users/42", "GET,HEAD,DELETE"),
        ("GET /v1/users/42/pause", "POST"),
        ("DELETE /healthz", "GET,HEAD"),
        ("BREW /v1/status", "GET,HEAD"),
    ] {
        let mut client = site.connect().await;
        client
            .send(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await;
        while client.more().await {}
        let reply = String::from_utf8(client.rest).unwrap().to_lowercase();
        assert!(reply.starts_with("http/1.1 405 "), "{request}: {reply}");
        assert!(
            reply.contains(&format!("\nallow: {}\r\n", allow.to_lowercase())),
            "{request}: {reply}"
        );
        assert!(
            reply.contains("method-not-allowed") || request.starts_with("HEAD"),
            "{reply}"
        );
    }
}

#[tokio::test]
async fn unsound_paths_never_reach_the_keeper() {
    let site = Site::admin();
    for path in [
        "/v1/users/../grants/google/token",
        "/v1/users/%2e%2e/grants/google/token",
        "/v1/users/.%2E/grants/google",
        "/v1/users/./grants/google",
        "/v1/users/../../etc/passwd",
        "/v1/users//grants/google/token",
        "/v1/users/42/grants//token",
        "/v1/users/42/",
        "/v1/users/42/grants/google/token/",
        "/v1/users/42/grants/google:/token",
        "/v1/users/42/grants/%3Awork/token",
        "/v1/users/a%00b/grants/google/token",
        "/v1/users/a%0d%0ab",
        "/v1/users/%ff",
        "/v1/users/%c0%af",
        "/v1/users/%",
        "/v1/users/%zz",
        &format!("/v1/users/{}", "x".repeat(256)),
        &format!("/v1/users/42/grants/google:{}", "x".repeat(256)),
        "//v1/users/42",
    ] {
        let (status, kind, _) = site.refused(&format!("GET {path}")).await;
        assert_eq!((status, kind.as_str()), (400, "bad-request"), "{path}");
    }
}

#[tokio::test]
async fn unknown_and_malformed_parameters_are_refused_on_every_route() {
    let site = Site::admin();
    for request in [
        "GET /v1/users/42/grants/google/token?minttl=3",
        "POST /v1/users/42/grants/google/refresh?min_ttl=3",
        "PUT /v1/users/42/grants/google?force=true\n\n{}",
        "GET /v1/users/42/grants/google?x",
        "DELETE /v1/users/42/grants/google?x=",
        "GET /v1/users/42?x=1",
        "DELETE /v1/users/42?x=1",
        "POST /v1/users/42/activity?x=1",
        "POST /v1/users/42/pause?x=1",
        "GET /v1/grants?x=1",
        "GET /v1/status?x=1",
        "GET /v1/providers?x=1",
        "GET /healthz?x=1",
    ] {
        let (status, _, detail) = site.refused(request).await;
        assert_eq!(status, 400, "{request}");
        assert!(
            detail.contains("query parameter") && detail.contains("unknown"),
            "{detail}"
        );
    }
    let token = "GET /v1/users/42/grants/google/token";
    for (query, named) in [
        ("min_ttl=86401", "min_ttl"),
        ("min_ttl=1.5", "min_ttl"),
        ("wait=-1", "wait"),
        ("wait=ten", "wait"),
        ("activity=1", "activity"),
        ("wait=1&wait=2", "wait"),
    ] {
        let (status, _, detail) = site.refused(&format!("{token}?{query}")).await;
        assert_eq!(status, 400);
        assert!(detail.contains(named), "{detail}");
    }
    let import = "PUT /v1/users/42/grants/google?hold=yes\n\n{\"refresh_token\":\"x\"}";
    assert_eq!(site.refused(import).await.0, 400);
}

#[tokio::test]
async fn bodies_that_are_no_objects_are_refused_without_quoting_them() {
    let site = Site::admin();
    let grant = "/v1/users/42/grants/google";
    for body in [
        "[]",
        "\"canary\"",
        "{canary",
        "{\"expires_in\":1}canary",
        "{\"access_token\":{\"canary\":1}}",
    ] {
        let (status, kind, detail) = site.refused(&format!("PUT {grant}\n\n{body}")).await;
        assert_eq!((status, kind.as_str()), (400, "bad-request"), "{body}");
        assert!(!detail.contains("canary"), "{detail}");
    }
    assert!(
        site.refused(&format!("PUT {grant}"))
            .await
            .2
            .contains("body is empty")
    );
    for path in [
        &format!("{grant}/refresh"),
        "/v1/users/42/activity",
        "/v1/users/42/pause",
    ] {
        for body in ["[]", "{\"unknown\":1}", "x"] {
            assert_eq!(
                site.refused(&format!("POST {path}\n\n{body}")).await.0,
                400,
                "{path} {body}"
            );
        }
    }
}

#[tokio::test]
async fn bodies_and_heads_have_a_size() {
    let site = Site::admin();
    let long = format!("{{\"scope\":\"{}\"}}", "x".repeat(256 * 1024));
    let (status, kind, detail) = site
        .refused(&format!("PUT /v1/users/42/grants/google\n\n{long}"))
        .await;
    assert_eq!((status, kind.as_str()), (413, "too-large"));
    assert_eq!(detail, "the body is longer than 262144 bytes");

    let mut chunked = site.connect().await;
    chunked
        .send(b"PUT /v1/users/42/grants/google HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for _ in 0..5 {
        chunked
            .send(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes())
            .await;
    }
    chunked.send(b"0\r\n\r\n").await;
    assert_eq!(chunked.reply().await.unwrap().status, 413);

    let head = format!("GET /v1/users/42\nx-long: {}", "x".repeat(17 * 1024));
    assert_eq!(site.ask(&head).await.status, 431);
    let fits = format!("GET /v1/users/42\nx-long: {}", "x".repeat(12 * 1024));
    assert_eq!(site.ask(&fits).await.status, 200);
}

#[tokio::test]
async fn requests_from_web_pages_are_refused_on_every_route_of_every_socket() {
    for site in [Site::shared(), Site::admin()] {
        for path in [
            "/v1/users/42/grants/google/token",
            "/v1/users/42",
            "/healthz",
            "/nothing",
        ] {
            for header in [
                "Origin: http://localhost",
                "origin: null",
                "Referer: https://x/",
            ] {
                let (status, kind, detail) = site.refused(&format!("GET {path}\n{header}")).await;
                assert_eq!((status, kind.as_str()), (403, "forbidden"));
                assert!(detail.contains("web pages"), "{detail}");
            }
        }
    }
}
