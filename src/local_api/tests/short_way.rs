//! Reads of a token that are answered before hyper sees them: the same answers, in the same order, whatever comes around them.

use proptest::prelude::*;

use super::*;

fn token_of(user: &str) -> String {
    format!("GET /v1/users/{user}/grants/google/token")
}

#[tokio::test]
async fn the_short_way_gives_the_answer_that_hyper_gives() {
    let site = Site::shared();
    let mut client = site.connect().await;
    for user in ["42", "unknown-expiry", "a%2Fb%20c", "cold", "nobody", "%zz"] {
        for query in ["", "?min_ttl=20&wait=0&activity=false", "?max_ttl=1"] {
            let request = token_of(user) + query;
            let mut short = client.ask(&request).await;
            let short_calls = site.keeper.calls();
            let headers = "\nfreshd-namespace: default";
            let mut long = client.ask(&format!("{request}{headers}")).await;
            assert_eq!(site.keeper.calls(), short_calls, "{request}");
            for reply in [&mut short, &mut long] {
                let date = reply.headers.remove("date").expect("RFC 9110 §6.6.1");
                assert!(date.ends_with(" GMT"), "{date}");
            }
            assert_eq!(short.status, long.status, "{request}");
            assert_eq!(short.headers, long.headers, "{request}");
            assert_eq!(short.body, long.body, "{request}");
        }
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_answer_to_its_last_request() {
    let site = Site::shared();
    let mut client = site.connect().await;
    assert_eq!(client.ask(&token_of("42")).await.status, 200);
    let last = format!("{}\nConnection: close", token_of("42"));
    let reply = client.ask(&last).await;
    assert_eq!(
        (reply.status, &*reply.headers["connection"]),
        (200, "close")
    );
    assert!(client.reply().await.is_none());
}

#[tokio::test]
async fn web_pages_and_other_namespaces_find_no_short_way() {
    let site = Site::shared();
    for header in [
        "Origin: http://x",
        "Referer: http://x",
        "Freshd-Namespace: b",
    ] {
        let reply = site.ask(&format!("{}\n{header}", token_of("42"))).await;
        assert_eq!(reply.status, 403, "{header}");
    }
}

#[tokio::test]
async fn a_body_that_reads_like_a_request_is_a_body() {
    let site = Site::shared();
    let mut client = site.connect().await;
    let body = format!("{} HTTP/1.1\r\nhost: x\r\n\r\n", token_of("smuggled"));
    let target = "/v1/users/42/grants/google";
    let length = body.len();
    let head = format!("PUT {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    client.send(head.as_bytes()).await;
    // The body is a chunk of its own: the runtime of this test has one thread, and it lets the server read.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    client.send(body.as_bytes()).await;
    assert_eq!(client.reply().await.unwrap().status, 400);
    assert_eq!(client.ask(&token_of("after")).await.status, 200);
    let calls = site.keeper.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].starts_with("token default/after/google "));
}

#[tokio::test]
async fn a_request_that_comes_while_another_waits_has_its_answer_after_it() {
    let site = Site::shared();
    let mut client = site.connect().await;
    let line = |user| format!("{} HTTP/1.1\r\nhost: x\r\n\r\n", token_of(user));
    client.send(line("slow").as_bytes()).await;
    site.keeper.slow_began.notified().await;
    client.send(line("quick").as_bytes()).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    site.keeper.slow.add_permits(1);
    for user in ["slow", "quick"] {
        assert_eq!(client.reply().await.unwrap().json()["user"], user);
    }
}

/// A request, as it goes over the wire; the status of its answer; what the keeper is asked.
fn request(kind: u8, user: usize) -> (String, u16, String) {
    let end = "host: x\r\n";
    let user = format!("u{user}");
    let grant = format!("/v1/users/{user}/grants/google");
    let asked = |verb: &str| format!("{verb} default/{user}/google");
    match kind {
        0 => (
            format!("GET {grant} HTTP/1.1\r\n{end}\r\n"),
            200,
            asked("grant"),
        ),
        1 => {
            let body = format!("{{\"refresh_token\":\"{CANARY}\"}}");
            let length = body.len();
            let head = format!("PUT {grant} HTTP/1.1\r\n{end}content-length: {length}\r\n\r\n");
            (head + &body, 201, asked("import"))
        }
        2 => {
            let body = "4\r\n{}\r\n\r\n0\r\n\r\n";
            let head = format!("POST {grant}/refresh HTTP/1.1\r\n{end}");
            (
                format!("{head}transfer-encoding: chunked\r\n\r\n{body}"),
                200,
                asked("refresh"),
            )
        }
        3 => (
            format!("GET /nothing HTTP/1.1\r\n{end}\r\n"),
            404,
            String::new(),
        ),
        _ => (
            format!("GET {grant}/token HTTP/1.1\r\n{end}\r\n"),
            200,
            asked("token"),
        ),
    }
}

/// Has a conversation in which requests come in pieces, or several at once, and the answers are read now and then.
async fn converse(site: &Site, kinds: &[u8], cuts: &[usize], waits: &[bool]) {
    let mut client = site.connect().await;
    let requests: Vec<_> = (kinds.iter().enumerate())
        .map(|(nth, kind)| request(*kind, nth))
        .collect();
    let (mut sent, mut told) = (0, 0);
    let mut ends = Vec::new();
    let mut wire = String::new();
    for (text, _, _) in &requests {
        wire += text;
        ends.push(wire.len());
    }
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % wire.len()).collect();
    // As often as not a request comes alone, which is what the short way is for.
    cuts.extend(
        ends.iter()
            .zip(waits)
            .filter(|(_, wait)| **wait)
            .map(|(end, _)| end),
    );
    cuts.push(wire.len());
    cuts.sort_unstable();
    for cut in cuts {
        client.send(&wire.as_bytes()[sent..cut]).await;
        sent = cut;
        tokio::task::yield_now().await;
        while told < ends.len() && ends[told] <= sent && waits[told % waits.len()] {
            let reply = client.reply().await.expect("an answer");
            assert_eq!(reply.status, requests[told].1, "{}", requests[told].0);
            told += 1;
        }
    }
    for (text, status, _) in &requests[told..] {
        let reply = client.reply().await.expect("an answer");
        assert_eq!(reply.status, *status, "{text}");
    }
    let asked: Vec<String> = (site.keeper.calls().iter())
        .map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let expected: Vec<&String> = (requests.iter())
        .map(|(_, _, asked)| asked)
        .filter(|asked| !asked.is_empty())
        .collect();
    assert_eq!(asked.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn requests_of_all_kinds_however_they_come_are_answered_once_each_and_in_order() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let site = Site::shared();
    let kinds = prop::collection::vec(0..8u8, 1..12);
    let cuts = prop::collection::vec(any::<usize>(), 0..6);
    let waits = prop::collection::vec(any::<bool>(), 12);
    proptest!(ProptestConfig::with_cases(400), |(kinds in kinds, cuts in cuts, waits in waits)| {
        runtime.block_on(converse(&site, &kinds, &cuts, &waits));
    });
}
