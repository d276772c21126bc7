//! Answers that are there before the request's body has been read.

use std::num::NonZeroU32;

use super::*;

const PUT: &str = "PUT /v1/users/42/grants/google";
const TOKEN: &str = "GET /v1/users/42/grants/google/token";

fn reader() -> Rule {
    Rule {
        import: false,
        ..rule()
    }
}

fn head(request: &str, length: usize) -> Vec<u8> {
    format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

/// Writes the whole request before it reads, as most clients do; a pipe that breaks meanwhile ends the test.
async fn write_all(client: &mut Client, request: &str, length: usize) -> Reply {
    let whole = "the server takes the whole request";
    let stream = &mut client.stream;
    stream.write_all(&head(request, length)).await.expect(whole);
    // Far more than a socket's buffer holds, in pieces: a server that does not read is noticed.
    let body = vec![b' '; length];
    for piece in body.chunks(10_000) {
        stream.write_all(piece).await.expect(whole);
        tokio::task::yield_now().await;
    }
    client.reply().await.expect("an answer")
}

#[tokio::test]
async fn a_client_that_writes_its_whole_body_first_gets_the_answer_and_keeps_its_connection() {
    let site = Site::new(SocketKind::Shared, vec![reader()]);
    let mut client = site.connect().await;
    for (request, status) in [
        (PUT, 403),
        ("PUT /v1/users/42/grants/..", 400),
        ("PUT /v1/nothing", 404),
        ("PUT /v1/users/42/grants/google/token", 405),
        ("DELETE /v1/users/42", 200),
    ] {
        let reply = write_all(&mut client, request, 250 * 1024).await;
        assert_eq!(reply.status, status, "{request}");
        assert!(!reply.headers.contains_key("connection"), "{request}");
    }
    assert_eq!(
        client.ask(TOKEN).await.status,
        200,
        "on the same connection"
    );
}

#[tokio::test]
async fn so_does_one_whose_body_is_too_long_and_one_that_is_over_its_quota() {
    let quota = Quota {
        requests_per_second: NonZeroU32::MIN,
        ..Quota::UNLIMITED
    };
    let site = Site::new(SocketKind::Shared, vec![Rule { quota, ..rule() }]);
    let mut client = site.connect().await;
    for (length, status) in [(1024 * 1024, 413), (300 * 1024, 413), (250 * 1024, 429)] {
        let reply = write_all(&mut client, PUT, length).await;
        assert_eq!(reply.status, status, "{length}");
    }
    site.rules.store(Arc::new(Rules::new(vec![rule()])));
    assert_eq!(
        client.ask(TOKEN).await.status,
        200,
        "on the same connection"
    );
}

#[tokio::test]
async fn who_can_t_be_waited_for_is_told_that_the_connection_ends() {
    let limits = Limits {
        body_read: Duration::from_millis(50),
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![reader()], limits);
    let endless = head(PUT, 5 * 1024 * 1024);
    let slow = [head(PUT, 10), b"{".to_vec()].concat();
    let waits =
        format!("{PUT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    for sent in [&endless, &slow, waits.as_bytes()] {
        let mut client = site.connect().await;
        client.send(sent).await;
        let reply = client.reply().await.expect("an answer");
        assert_eq!(reply.status, 403);
        assert_eq!(reply.headers["connection"], "close");
        assert!(client.reply().await.is_none(), "and it does");
    }
}
