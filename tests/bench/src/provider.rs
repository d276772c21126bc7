//! A token endpoint on loopback that costs next to nothing: one thread, one short task for each request.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::{Error, stock};

/// One request that came.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    pub nth: u64,
    /// Milliseconds since the epoch.
    pub at: f64,
}

/// A running server. Ends when dropped.
pub struct Provider {
    pub port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    /// Before each answer, in microseconds.
    latency: AtomicU64,
    /// What a token's life is said to be, in seconds.
    lifetime: AtomicU64,
    hits: Mutex<Vec<Hit>>,
    came: Condvar,
    /// A fine clock that agrees with the coarse one.
    began: (Instant, f64),
}

impl Provider {
    /// Serves on a port of the system's choice.
    pub fn start(latency: Duration) -> Result<Provider, Error> {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        // The standard library's 128 are fewer than come at once, and who finds no room tries again a second later.
        rustix::net::listen(&listener, 4096)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            latency: AtomicU64::new(latency.as_micros() as u64),
            lifetime: AtomicU64::new(3600),
            hits: Mutex::default(),
            came: Condvar::new(),
            began: (Instant::now(), stock::now_ms() as f64),
        });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(listener, shared, stopped)
        });
        Ok(Provider {
            port,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Takes all requests that have come so far.
    pub fn take_hits(&self) -> Vec<Hit> {
        std::mem::take(&mut *self.shared.hits())
    }

    /// Returns how many have come since the last were taken.
    pub fn count(&self) -> usize {
        self.shared.hits().len()
    }

    /// Waits until so many requests have come since the last were taken; false if that takes longer.
    pub fn wait_for(&self, count: usize, patience: Duration) -> bool {
        let hits = self.shared.hits();
        let few = |hits: &mut Vec<Hit>| hits.len() < count;
        let waited = self.shared.came.wait_timeout_while(hits, patience, few);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn hits(&self) -> MutexGuard<'_, Vec<Hit>> {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, nth: u64) {
        let (began, at) = self.began;
        let at = at + began.elapsed().as_secs_f64() * 1000.0;
        self.hits().push(Hit { nth, at });
        self.came.notify_all();
    }
}

fn serve(listener: std::net::TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the token endpoint");
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener).expect("the listener is not blocking");
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(answer(stream, Arc::clone(&shared)));
                    }
                }
                _ = &mut stopped => return,
            }
        }
    });
}

/// Answers every request of a connection.
async fn answer(mut stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(2048);
    loop {
        let Some(length) = request(&mut stream, &mut buffer).await else {
            return;
        };
        let token = memmem::find(&buffer[..length], b"refresh_token=r.").map(|at| at + 14);
        let token = token.and_then(|at| std::str::from_utf8(&buffer[at..length]).ok());
        let Some((nth, generation)) = token.and_then(stock::read_refresh_token) else {
            return;
        };
        shared.note(nth);
        let latency = shared.latency.load(Ordering::Relaxed);
        if latency > 0 {
            tokio::time::sleep(Duration::from_micros(latency)).await;
        }
        let (access, refresh) = (
            stock::access_token(nth, generation + 1),
            stock::refresh_token(nth, generation + 1),
        );
        let lifetime = shared.lifetime.load(Ordering::Relaxed);
        let body = format!(
            "{{\"access_token\":\"{access}\",\"token_type\":\"Bearer\",\"expires_in\":{lifetime},\
             \"refresh_token\":\"{refresh}\",\"scope\":\"files.read files.write\"}}"
        );
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(whole.as_bytes()).await.is_err() {
            return;
        }
        buffer.drain(..length);
    }
}

/// Reads one whole request and returns its length.
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<usize> {
    loop {
        if let Some(head) = memmem::find(buffer, b"\r\n\r\n") {
            let at = memmem::find(&buffer[..head], b"content-length: ")? + 16;
            let digits = buffer[at..].iter().take_while(|byte| byte.is_ascii_digit());
            let body = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            if buffer.len() >= head + 4 + body {
                return Some(head + 4 + body);
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
