use super::super::types::EventView;
use super::*;

fn event(id: u64, namespace: &str, provider: &str) -> EventView {
    EventView {
        id: Some(id),
        event: "paused".into(),
        at: UnixTime::EPOCH.rfc3339(),
        namespace: namespace.into(),
        user: Some("42".into()),
        provider: provider.into(),
        account: String::new(),
        reason: "inactive".into(),
        expires_at: None,
        generation: 1,
    }
}

fn batch(events: Vec<EventView>) -> Events {
    Events {
        position: events.last().and_then(|event| event.id).unwrap_or(40),
        from: 40,
        events,
        caught_up: true,
        missing: false,
    }
}

/// Opens a stream that brings what is sent into the channel.
async fn open(site: &Site, headers: &str) -> (Client, mpsc::UnboundedSender<Events>) {
    let (feed, fed) = mpsc::unbounded_channel();
    *site.keeper.feed.lock().unwrap() = Some(fed);
    let mut client = site.connect().await;
    let request = format!("GET /v1/events HTTP/1.1\r\nhost: freshd\r\n{headers}\r\n");
    client.send(request.as_bytes()).await;
    (client, feed)
}

impl Client {
    /// Reads until `text` has come, and returns all that came before it.
    async fn until(&mut self, text: &str) -> String {
        let found = tokio::time::timeout(Duration::from_secs(20), self.find(text));
        found
            .await
            .unwrap_or_else(|_| panic!("no {text:?} in time"))
    }

    async fn find(&mut self, text: &str) -> String {
        loop {
            let so_far = String::from_utf8_lossy(&self.rest).into_owned();
            if let Some(at) = so_far.find(text) {
                self.rest.drain(..at + text.len());
                return so_far[..at].to_owned();
            }
            assert!(self.more().await, "ended before {text:?}: {so_far:?}");
        }
    }

    /// Reads to the last chunk.
    async fn until_the_end_of_stream(&mut self) -> String {
        self.until("0\r\n\r\n").await
    }

    async fn until_the_end(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.rest).into_owned()
    }
}

#[tokio::test]
async fn a_stream_says_where_it_is_and_tells_what_comes() {
    let site = Site::shared();
    let (mut client, feed) = open(&site, "").await;
    let head = client.until("\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    client.until("retry: 2000\nid: 40\n\n").await;
    feed.send(batch(vec![event(41, "default", "hubspot")]))
        .unwrap();
    client.until("id: 41\nevent: paused\ndata: ").await;
    let data = client.until("\n\n").await;
    let expected = r#"{"id":41,"event":"paused","at":"1970-01-01T00:00:00Z","namespace":"default","user":"42","provider":"hubspot","reason":"inactive","generation":1}"#;
    assert_eq!(data, expected);
    // Live only: nothing to resume after.
    let refreshed = EventView {
        id: None,
        event: "refreshed".into(),
        ..event(0, "default", "hubspot")
    };
    feed.send(batch(vec![refreshed])).unwrap();
    let before = client.until("event: refreshed\n").await;
    assert!(!before.contains("id:"), "{before}");
    assert_eq!(site.keeper.calls(), ["events after None"]);
}

#[tokio::test]
async fn a_stream_resumes_where_its_reader_was_and_says_when_something_is_missing() {
    let site = Site::shared();
    let (mut client, feed) = open(&site, "last-event-id: 17\r\n").await;
    client.until("id: 17\n\n").await;
    assert_eq!(site.keeper.calls(), ["events after Some(17)"]);
    let gap = Events {
        missing: true,
        ..batch(vec![event(90, "default", "hubspot")])
    };
    feed.send(gap).unwrap();
    client.until("event: reset\ndata: {").await;
    client.until("\n\nid: 90\n").await;
}

#[tokio::test]
async fn a_last_event_id_that_is_none_is_refused_with_the_rule() {
    let site = Site::shared();
    for bad in ["x", "-1", "+1", "1.0", "", "9223372036854775808"] {
        let request = format!("GET /v1/events\nlast-event-id: {bad}");
        let (status, kind, detail) = site.refused(&request).await;
        assert_eq!((status, kind.as_str()), (400, "bad-request"), "{bad}");
        assert!(detail.contains("Last-Event-ID"), "{detail}");
    }
    let (status, _, detail) = site.refused("GET /v1/events?after=3").await;
    assert_eq!(status, 400);
    assert!(detail.contains("takes follow"), "{detail}");
}

#[tokio::test]
async fn an_app_hears_of_its_own_namespace_and_providers_only_and_a_reload_counts_at_once() {
    let hubspot_only = Rule {
        providers: Some(vec!["hubspot".into()]),
        ..rule()
    };
    let site = Site::new(SocketKind::Shared, vec![hubspot_only.clone()]);
    let (mut client, feed) = open(&site, "").await;
    let all = |from: u64| {
        batch(vec![
            event(from, "other", "hubspot"),
            event(from + 1, "default", "google"),
            event(from + 2, "default", "hubspot"),
        ])
    };
    feed.send(all(41)).unwrap();
    client.until("id: 40\n\n").await;
    client.until("id: 43\n").await;
    let google_only = Rule {
        providers: Some(vec!["google".into()]),
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![google_only])));
    feed.send(all(51)).unwrap();
    let between = client.until("id: 52\n").await;
    assert!(!between.contains("id: 4"), "{between}");
    let mute = Rule {
        read: false,
        ..rule()
    };
    site.rules.store(Arc::new(Rules::new(vec![mute])));
    feed.send(all(61)).unwrap();
    let rest = client.until_the_end_of_stream().await;
    assert!(
        !rest.contains("id: 6") && !rest.contains("id: 53"),
        "{rest}"
    );
    site.keeper.calls();
    let (status, kind, _) = site.refused("GET /v1/events").await;
    assert_eq!((status, kind.as_str()), (403, "forbidden"));
}

#[tokio::test]
async fn an_admin_hears_of_all_namespaces_or_of_the_one_it_names() {
    let site = Site::admin();
    let both = || {
        batch(vec![
            event(41, "default", "hubspot"),
            event(42, "other", "hubspot"),
        ])
    };
    let (mut client, feed) = open(&site, "").await;
    feed.send(both()).unwrap();
    client.until("id: 41\n").await;
    client.until("id: 42\n").await;
    let (mut client, feed) = open(&site, "freshd-namespace: other\r\n").await;
    feed.send(both()).unwrap();
    let before = client.until("id: 42\n").await;
    assert!(!before.contains("id: 41"), "{before}");
}

#[tokio::test]
async fn without_follow_a_stream_ends_with_what_is_kept() {
    let site = Site::shared();
    let mut client = site.connect().await;
    client
        .send(b"GET /v1/events?follow=false HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    let text = client.until_the_end().await;
    assert!(text.contains("id: 40\n\n"), "{text}");
}

#[tokio::test]
async fn a_quiet_stream_shows_that_it_lives_and_is_not_idle() {
    let limits = Limits {
        heartbeat: Duration::from_millis(30),
        idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let (mut client, feed) = open(&site, "").await;
    feed.send(batch(vec![event(77, "other", "hubspot")]))
        .unwrap();
    client.until("id: 40\n\n").await;
    // The position moves although the event itself is not for this reader.
    client.until(":\nid: 77\n\n").await;
    for _ in 0..10 {
        client.until(":\nid: 77\n\n").await;
    }
    // A rule that is taken away ends a stream at its next sign of life.
    site.rules.store(Arc::new(Rules::new(vec![])));
    client.until_the_end().await;
}

#[tokio::test]
async fn streams_are_limited_for_each_app_and_their_places_come_back() {
    let limits = Limits {
        streams_per_app: 2,
        ..Limits::default()
    };
    let site = Site::limited(SocketKind::Shared, vec![rule()], limits);
    let (mut first, _feed) = open(&site, "").await;
    first.until("retry:").await;
    let (mut second, feed) = open(&site, "").await;
    second.until("retry:").await;
    site.keeper.calls();
    let (status, kind, detail) = site.refused("GET /v1/events").await;
    assert_eq!((status, kind.as_str()), (429, "too-many-streams"));
    assert!(
        detail.contains("\"crm\"") && detail.contains('2'),
        "{detail}"
    );
    // Other requests are not in the way.
    assert_eq!(site.ask("GET /v1/users/42").await.status, 200);
    drop(feed);
    second.until_the_end_of_stream().await;
    let (mut third, _feed) = open(&site, "").await;
    third.until("retry:").await;
}

#[tokio::test]
async fn streams_end_at_once_when_the_socket_does() {
    let site = Site::shared();
    let (mut client, _feed) = open(&site, "").await;
    client.until("retry: 2000\n").await;
    site.stop.send(()).unwrap();
    client.until_the_end_of_stream().await;
    let ended = tokio::time::timeout(Duration::from_secs(20), site.server);
    ended.await.expect("in time").unwrap().unwrap();
}
