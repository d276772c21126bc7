//! What freshd is measured against.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::owned::Owned;
use crate::process::Cost;
use crate::{Error, Missing, rows, stock};

/// The yardsticks that run as processes of their own.
pub fn main(arguments: &[String]) -> Result<(), Error> {
    match arguments {
        [name, socket] if name == "line-server" => line_server(Path::new(socket)),
        [name, socket] if name == "constant-server" => constant_server(Path::new(socket)),
        [name, numbers @ ..] if name == "calendar" => rows::calendar::main(numbers),
        _ => Err("there is no such yardstick".into()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Accepts, reads a line, writes a token, closes: what one connection for each request costs at least.
fn line_server(socket: &Path) -> Result<(), Error> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let token = stock::access_token(0, 1);
    runtime()?.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let token = token.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                if stream.read_line(&mut line).await.is_ok() {
                    let _ = stream.write_all(token.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    })
}

/// hyper and nothing else, with a constant of an answer's length.
fn constant_server(socket: &Path) -> Result<(), Error> {
    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::{Response, header};
    let body = Bytes::from(vec![b'x'; stock::TOKEN_BYTES + 210]);
    runtime()?.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let body = body.clone();
            let service = hyper::service::service_fn(move |_| {
                let mut answer = Response::new(Full::new(body.clone()));
                let json = header::HeaderValue::from_static("application/json");
                answer.headers_mut().insert(header::CONTENT_TYPE, json);
                async { Ok::<_, std::convert::Infallible>(answer) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    })
}

/// A process that listens on a Unix socket.
pub struct Server {
    pub child: Owned,
    pub socket: PathBuf,
}

impl Server {
    /// Starts one of [`main`]'s.
    pub fn start(name: &str, dir: &Path) -> Result<Server, Error> {
        Server::start_under(name, dir, &[])
    }

    /// Starts one as the last words of another command.
    pub fn start_under(name: &str, dir: &Path, under: &[String]) -> Result<Server, Error> {
        let socket = dir.join(format!("{name}.sock"));
        let ourselves = std::env::current_exe()?;
        let mut command = match under {
            [] => Command::new(ourselves),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(ourselves);
                command
            }
        };
        command.args(["--yardstick", name]).arg(&socket);
        Server::listening(command, socket)
    }

    /// Starts a Redis of one thread that keeps nothing on disk.
    pub fn redis(dir: &Path) -> Result<Server, Error> {
        let found = Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if found.is_err() {
            return Err(Box::new(Missing("redis-server")));
        }
        let socket = dir.join("redis.sock");
        let mut command = Command::new("redis-server");
        command
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--io-threads",
                "1",
            ])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(dir);
        Server::listening(command, socket)
    }

    fn listening(mut command: Command, socket: PathBuf) -> Result<Server, Error> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = Owned::spawn(&mut command)?;
        let until = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            if let Some(status) = child.0.try_wait()? {
                return Err(format!("a yardstick ended: {status}").into());
            }
            if Instant::now() > until {
                return Err("a yardstick does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Server { child, socket })
    }

    pub fn cost(&self) -> Cost {
        Cost::of(&self.child.0)
    }

    /// Sets keys of a Redis.
    pub fn set(&self, values: impl Iterator<Item = (String, String)>) -> Result<(), Error> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let mut answer = [0; 5];
        for (key, value) in values {
            let (key_len, len) = (key.len(), value.len());
            write!(
                stream,
                "*3\r\n$3\r\nSET\r\n${key_len}\r\n{key}\r\n${len}\r\n{value}\r\n"
            )?;
            stream.read_exact(&mut answer)?;
            if &answer != b"+OK\r\n" {
                return Err("redis-server refuses a value".into());
            }
        }
        Ok(())
    }
}

/// How fast raw rusqlite is.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub per_second: f64,
    pub cpu_micros: f64,
}

/// At most so many rows in one transaction, as in freshd's writer.
const GROUP: usize = 256;

/// Marks, and then updates, these rows in groups: the two writes of each refresh and nothing else.
pub fn raw_refreshes(database: &Path, ids: &[i64]) -> Result<Raw, Error> {
    let conn = stock::open(database)?;
    // SQLite's own default: every thousand pages the writer copies its log.
    conn.pragma_update(None, "wal_autocheckpoint", 1000)?;
    let (access, refresh, known) = ([7u8; stock::TOKEN_BYTES + 41], [7u8; 105], [7u8; 16]);
    let now = stock::now_ms();
    let (began, cpu) = (Instant::now(), Cost::of_this_thread());
    for group in ids.chunks(GROUP) {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        mark(&conn, group, now)?;
        conn.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
        for id in group {
            conn.prepare_cached(
                "UPDATE grants SET version = version + 1, generation = generation + 1, obtained_at = ?2,
                    expires_at = ?3, due_at = ?3, refreshed_at = ?2, attempted_at = ?2, access_token = ?4,
                    refresh_token = ?5, refresh_tokens = ?6
                 WHERE id = ?1",
            )?
            .execute(params![id, now, now + 3_600_000, access, refresh, known])?;
            conn.prepare_cached("DELETE FROM marks WHERE grant_id = ?1")?
                .execute([id])?;
        }
        conn.execute_batch("COMMIT")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cost::of_this_thread().saturating_sub(cpu);
    stock::checkpoint(&conn)?;
    let count = ids.len() as f64;
    Ok(Raw {
        per_second: count / seconds,
        cpu_micros: cpu.as_secs_f64() * 1e6 / count,
    })
}

/// Inserts so many grants in groups, each with two sealed tokens.
pub fn raw_inserts(database: &Path, count: u64) -> Result<Raw, Error> {
    use chacha20poly1305::aead::{AeadInOut, KeyInit};
    let cipher = chacha20poly1305::XChaCha20Poly1305::new(&[7; 32].into());
    let seal = |token: String| {
        let mut text = token.into_bytes();
        let nonce = chacha20poly1305::XNonce::from([9; 24]);
        let tag = cipher.encrypt_inout_detached(&nonce, &[1; 200], text.as_mut_slice().into());
        tag.map(|tag| [&[1; 25], &text[..], &tag[..]].concat())
            .map_err(|_| "a token is not sealed")
    };
    let conn = stock::open(database)?;
    conn.pragma_update(None, "wal_autocheckpoint", 1000)?;
    let now = stock::now_ms();
    let (began, cpu) = (Instant::now(), Cost::of_this_thread());
    for first in (0..count).step_by(GROUP) {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        for nth in first..(first + GROUP as u64).min(count) {
            conn.prepare_cached(
                "INSERT INTO grants (namespace, user, provider, account, version, generation, standing, reason,
                    standing_since, token_type, obtained_at, expires_at, scope, due_at, imported_at, failures,
                    unused_refreshes, key_id, access_token, refresh_token, refresh_tokens)
                 VALUES ('default', ?1, ?2, '', 1, 1, 'active', '', ?3, 'Bearer', ?3, ?4, 'files.read files.write', ?4,
                    ?3, 0, 0, 1, ?5, ?6, ?7)",
            )?
            .execute(params![
                stock::user(nth),
                stock::provider(nth),
                now,
                now + 86_400_000,
                seal(stock::access_token(nth, 1))?,
                seal(stock::refresh_token(nth, 1))?,
                [7u8; 8],
            ])?;
        }
        conn.execute_batch("COMMIT")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cost::of_this_thread().saturating_sub(cpu);
    stock::checkpoint(&conn)?;
    Ok(Raw {
        per_second: count as f64 / seconds,
        cpu_micros: cpu.as_secs_f64() * 1e6 / count as f64,
    })
}

fn mark(conn: &Connection, ids: &[i64], now: i64) -> Result<(), Error> {
    for id in ids {
        conn.prepare_cached(
            "INSERT INTO marks (grant_id, first_sent_at, presented) VALUES (?1, ?2, 1)",
        )?
        .execute([*id, now])?;
    }
    Ok(())
}
