//! A token endpoint that breaks below HTTP: refuses, resets, drips, hangs, lies about its certificate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto, pki_types};

use super::instant;

/// What a connection meets.
#[derive(Clone)]
pub enum Transport {
    /// Nobody listens.
    Refused,
    /// It is accepted, and nothing follows.
    Hanging,
    Plain,
    Tls(Certificate),
}

/// What a server shows of itself in TLS.
#[derive(Clone)]
pub struct Certificate(Arc<ServerConfig>);

/// What happens to a request.
#[derive(Clone)]
pub struct Script {
    /// Reads the whole request first.
    pub reads: bool,
    /// The bytes of the answer.
    pub answer: Vec<u8>,
    /// Sends one byte each time this has passed, in place of all at once.
    pub drip: Option<Duration>,
    pub ending: Ending,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Closed,
    Reset,
    /// Not before the client ends it.
    Held,
}

/// The server; it ends when this is dropped.
pub struct FaultyServer {
    port: u16,
    state: Arc<State>,
    listening: Option<AbortHandle>,
    unheard: Option<TcpSocket>,
}

struct State {
    manner: Mutex<(Transport, Script)>,
    /// When connections came.
    connections: Mutex<Vec<Instant>>,
}

impl Script {
    /// Reads the request, sends `answer`, and closes.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Script {
        Script {
            reads: true,
            answer: answer.into(),
            drip: None,
            ending: Ending::Closed,
        }
    }

    /// A whole HTTP answer.
    pub fn http(head: &str, body: &str) -> Script {
        let length = body.len();
        Script::answering(format!(
            "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    pub fn dripping(mut self, every: Duration) -> Script {
        self.drip = Some(every);
        self
    }

    pub fn then(mut self, ending: Ending) -> Script {
        self.ending = ending;
        self
    }

    pub fn unread(mut self) -> Script {
        self.reads = false;
        self
    }
}

impl FaultyServer {
    pub async fn start(transport: Transport, script: Script) -> FaultyServer {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("a loopback port");
        let port = socket.local_addr().expect("it is bound").port();
        let refused = matches!(transport, Transport::Refused);
        let state = Arc::new(State {
            manner: Mutex::new((transport, script)),
            connections: Mutex::default(),
        });
        let mut server = FaultyServer {
            port,
            state,
            listening: None,
            unheard: Some(socket),
        };
        if !refused {
            server.listen();
        }
        server
    }

    /// From now on, behaves like this.
    pub fn behave(&mut self, transport: Transport, script: Script) {
        *self.state.manner.lock().expect("nobody panicked") = (transport, script);
        self.listen();
    }

    fn listen(&mut self) {
        let Some(socket) = self.unheard.take() else {
            return;
        };
        let listener = socket.listen(64).expect("the port is ours");
        let state = self.state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let came = &state.connections;
                came.lock().expect("nobody panicked").push(instant());
                let (transport, script) = state.manner.lock().expect("nobody panicked").clone();
                tokio::spawn(serve(stream, transport, script));
            }
        });
        self.listening = Some(accepting.abort_handle());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns when each connection came.
    pub fn connections(&self) -> Vec<Instant> {
        self.state
            .connections
            .lock()
            .expect("nobody panicked")
            .clone()
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

async fn serve(mut stream: TcpStream, transport: Transport, script: Script) {
    // A client that leaves ends all this.
    let _ = match transport {
        Transport::Refused => unreachable!("nobody listens"),
        Transport::Hanging => {
            let mut sink = [0; 4096];
            while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
            Ok(())
        }
        Transport::Plain => exchange(&mut stream, &script).await,
        Transport::Tls(certificate) => {
            let acceptor = TlsAcceptor::from(certificate.0);
            match acceptor.accept(stream).await {
                Ok(mut stream) => {
                    let _ = exchange(&mut stream, &script).await;
                    let _ = stream.shutdown().await;
                }
                Err(_refused_by_the_client) => {}
            }
            return;
        }
    };
    if script.ending == Ending::Reset {
        // With no time to linger, a close is a reset.
        let _ = stream.set_zero_linger();
    }
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    script: &Script,
) -> std::io::Result<()> {
    if script.reads {
        read_request(stream).await?;
    }
    match script.drip {
        None => stream.write_all(&script.answer).await?,
        Some(every) => {
            for byte in &script.answer {
                stream.write_all(&[*byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(every).await;
            }
        }
    }
    stream.flush().await?;
    if script.ending == Ending::Held {
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
    }
    Ok(())
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |n| n.trim().parse().expect("a number"));
            if body.len() >= length {
                return Ok(());
            }
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// An authority that the daemon is told to trust.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    /// Returns the authority's certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for `name`, whose last day was or will be in `until`.
    pub fn sign(&self, name: &str, until: i32) -> Certificate {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params =
            rcgen::CertificateParams::new([name.to_owned()]).expect("the test's name is one");
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        certificate(signed.der().clone(), &key)
    }
}

/// A certificate for `name` that only its own server vouches for.
pub fn self_signed(name: &str) -> Certificate {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    certificate(made.cert.der().clone(), &made.signing_key)
}

fn certificate(der: pki_types::CertificateDer<'static>, key: &rcgen::KeyPair) -> Certificate {
    let key = pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the library's own")
        .with_no_client_auth()
        .with_single_cert(vec![der], key)
        .expect("the key fits");
    Certificate(Arc::new(config))
}
