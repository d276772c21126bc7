//! A reader of `GET /v1/events`, as an app would write one.

use std::collections::VecDeque;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use super::within;

/// One event.
#[derive(Clone, Debug)]
pub struct Heard {
    pub id: Option<u64>,
    pub event: String,
    pub data: Value,
}

impl Heard {
    /// Returns `event reason`, or `event` alone where there is no reason.
    pub fn shown(&self) -> String {
        match self.data["reason"].as_str() {
            Some(reason) => format!("{} {reason}", self.event),
            None => self.event.clone(),
        }
    }
}

/// An open stream.
pub struct Listener {
    body: Incoming,
    unread: String,
    heard: VecDeque<Heard>,
    /// Everything that came, as it came.
    pub raw: String,
    /// What a browser would send as `Last-Event-ID`.
    pub last_id: Option<u64>,
    driver: AbortHandle,
}

impl Listener {
    /// Listens from now on: what happens after this returns is heard.
    pub async fn now(socket: &Path) -> Listener {
        let mut listener = Listener::open(socket, "/v1/events", None).await;
        while listener.last_id.is_none() {
            assert!(listener.more().await, "the stream ended at once");
        }
        listener
    }

    /// Listens to what happened after `last_id`.
    pub async fn after(socket: &Path, last_id: u64) -> Listener {
        Listener::open(socket, "/v1/events", Some(last_id)).await
    }

    /// Returns all events that are kept.
    pub async fn kept(socket: &Path) -> Vec<Heard> {
        let mut listener = Listener::open(socket, "/v1/events?follow=false", Some(0)).await;
        let mut all = Vec::new();
        while let Some(heard) = listener.next().await {
            all.push(heard);
        }
        all
    }

    async fn open(socket: &Path, path: &str, last_id: Option<u64>) -> Listener {
        let stream = UnixStream::connect(socket).await.expect("freshd listens");
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::get(path).header("host", "freshd");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let answer = within("the stream's head", sender.send_request(request))
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Listener {
            body: answer.into_body(),
            unread: String::new(),
            heard: VecDeque::new(),
            raw: String::new(),
            last_id: None,
            driver: driver.abort_handle(),
        }
    }

    /// Waits for the next event, whatever it is; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            if !within("an event", self.more()).await {
                return None;
            }
        }
    }

    /// Waits for the next kept event: refreshes, which are told live only, are passed over.
    pub async fn next_kept(&mut self) -> Heard {
        loop {
            let heard = self.next().await.expect("the stream goes on");
            if heard.event != "refreshed" {
                return heard;
            }
        }
    }

    /// Reads what comes next; false at the end.
    async fn more(&mut self) -> bool {
        let Some(Ok(frame)) = self.body.frame().await else {
            return false;
        };
        let text = String::from_utf8(frame.into_data().expect("no trailers").to_vec());
        let text = text.expect("UTF-8");
        self.raw += &text;
        self.unread += &text;
        while let Some(end) = self.unread.find("\n\n") {
            let block: String = self.unread.drain(..end + 2).collect();
            self.read(&block);
        }
        true
    }

    fn read(&mut self, block: &str) {
        let field = |name: &str| {
            let found = block.lines().find_map(|line| line.strip_prefix(name));
            found.map(str::to_owned)
        };
        let id = field("id: ").map(|id| id.parse().expect("a number"));
        self.last_id = id.or(self.last_id);
        if let (Some(event), Some(data)) = (field("event: "), field("data: ")) {
            let data = serde_json::from_str(&data).expect("JSON");
            self.heard.push_back(Heard { id, event, data });
        }
    }
}

impl Drop for Listener {
    /// Hangs up.
    fn drop(&mut self) {
        self.driver.abort();
    }
}
