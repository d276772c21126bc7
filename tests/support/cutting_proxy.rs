//! A proxy before a real token endpoint that lets the server decide, and the answer not through.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::within;

/// What becomes of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Passed,
    /// The connection ends after so many of its bytes.
    CutAfter(usize),
    /// None of it is sent as long as this lasts.
    Held,
}

/// The proxy. Listens until it is dropped.
pub struct CuttingProxy {
    origin: String,
    upstream: String,
    state: Arc<State>,
    accepting: AbortHandle,
}

struct State {
    answers: watch::Sender<Answers>,
    /// Answers that the server has given whole.
    given: watch::Sender<usize>,
}

impl CuttingProxy {
    /// Stands before the server at `upstream`, an `http://HOST:PORT`.
    pub async fn before(upstream: &str) -> CuttingProxy {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let port = listener.local_addr().expect("it is bound").port();
        let address = upstream.trim_start_matches("http://").to_owned();
        let state = Arc::new(State {
            answers: watch::Sender::new(Answers::Passed),
            given: watch::Sender::new(0),
        });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, address) = (shared.clone(), address.clone());
                // An error is a client that left.
                tokio::spawn(async move { exchange(client, &address, &state).await });
            }
        });
        CuttingProxy {
            origin: format!("http://127.0.0.1:{port}"),
            upstream: upstream.to_owned(),
            state,
            accepting: accepting.abort_handle(),
        }
    }

    /// Returns an endpoint of the server as it is reached through here.
    pub fn endpoint(&self, upstream: &str) -> String {
        upstream.replace(&self.upstream, &self.origin)
    }

    /// From now on, does this with answers.
    pub fn answers(&self, answers: Answers) {
        self.state.answers.send_replace(answers);
    }

    /// Waits until the server has given `n` answers, whatever became of them.
    pub async fn nth_answer(&self, n: usize) {
        let mut given = self.state.given.subscribe();
        let what = format!("answer {n} of the server");
        within(&what, given.wait_for(|given| *given >= n))
            .await
            .expect("the sender is held here");
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One request, as freshd sends it: one on each connection.
async fn exchange(mut client: TcpStream, upstream: &str, state: &State) -> std::io::Result<()> {
    let request = message(&mut client).await?;
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(&request).await?;
    let answer = message(&mut server).await?;
    state.given.send_modify(|given| *given += 1);
    let mut answers = state.answers.subscribe();
    let released = answers.wait_for(|answers| *answers != Answers::Held);
    let then = *released.await.expect("the sender is held by the proxy");
    let length = match then {
        Answers::CutAfter(bytes) => bytes.min(answer.len()),
        _ => answer.len(),
    };
    client.write_all(&answer[..length]).await
}

/// Reads a request or an answer whose head tells its length.
async fn message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    loop {
        if let Some(head) = memchr::memmem::find(&read, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .expect("both sides tell the length");
            let length: usize = length.trim().parse().expect("a number");
            if read.len() >= head + 4 + length {
                return Ok(read);
            }
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
