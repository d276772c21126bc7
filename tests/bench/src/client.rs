//! A closed loop of readers on one thread: the same for HTTP and for Redis.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memmem;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::Error;

/// Nothing is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the end of an answer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `content-length`.
    Http,
    /// A bulk string of RESP.
    Redis,
}

/// What to ask: requests to choose from, each whole.
pub struct Requests {
    pub protocol: Protocol,
    pub each: Vec<Vec<u8>>,
}

impl Requests {
    /// `GET` of these paths, on connections that stay.
    pub fn http(paths: impl Iterator<Item = String>) -> Requests {
        let each = paths.map(|path| {
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n").into_bytes()
        });
        Requests {
            protocol: Protocol::Http,
            each: each.collect(),
        }
    }

    /// `GET` of these keys.
    pub fn redis(keys: impl Iterator<Item = String>) -> Requests {
        let each =
            keys.map(|key| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).into_bytes());
        Requests {
            protocol: Protocol::Redis,
            each: each.collect(),
        }
    }
}

/// When to stop, and how fast to go.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub connections: usize,
    /// After so many answers.
    pub count: u64,
    /// Or after so long.
    pub time: Duration,
    /// So many a second, spread evenly, each counted from when it was to be sent: what a stall keeps back waits as well.
    /// `None` asks again as soon as there is an answer.
    pub rate: Option<f64>,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    pub answers: u64,
    pub seconds: f64,
    /// Nanoseconds, in ascending order.
    pub latencies: Vec<u32>,
    /// Answers that were no 200, the first of them for people to read.
    pub refused: u64,
    pub first_refusal: String,
    /// Tokens with less than ten seconds left, which is a reader's `min_ttl` where it says none.
    pub short_lived: u64,
}

impl Readings {
    pub fn per_second(&self) -> f64 {
        self.answers as f64 / self.seconds
    }

    /// The latency, in microseconds, that so many of a thousand answers stayed under.
    pub fn micros(&self, per_mille: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (self.latencies.len() * per_mille / 1000).min(last);
        self.latencies
            .get(at)
            .map_or(0.0, |&nanos| f64::from(nanos) / 1000.0)
    }

    /// An error if anything was refused.
    pub fn all_served(self) -> Result<Readings, Error> {
        if self.refused > 0 {
            let text = format!(
                "{} of {} refused: {}",
                self.refused, self.answers, self.first_refusal
            );
            return Err(text.into());
        }
        Ok(self)
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    sent_at: Instant,
}

/// Reads through `socket` in a closed loop.
pub fn read(socket: &Path, requests: &Requests, load: Load) -> Result<Readings, Error> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(load.connections);
    for nth in 0..load.connections {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &stream,
            EventData::new_u64(nth as u64),
            EventFlags::IN,
        )?;
        connections.push(Connection {
            stream,
            buffer: Vec::with_capacity(8192),
            sent_at: Instant::now(),
        });
    }
    let mut dice = Dice(0x5eed);
    let began = Instant::now();
    let mut readings = Readings::default();
    let mut idle: VecDeque<usize> = (0..connections.len()).collect();
    let mut sent = 0u64;
    let mut events = Vec::with_capacity(256);
    loop {
        let now = began.elapsed();
        let over = readings.answers >= load.count || now >= load.time;
        let due = load
            .rate
            .map_or(u64::MAX, |rate| (now.as_secs_f64() * rate) as u64 + 1);
        while !over
            && sent < load.count.min(due)
            && let Some(nth) = idle.pop_front()
        {
            let request = &requests.each[dice.below(requests.each.len())];
            let connection = &mut connections[nth];
            connection.sent_at = load.rate.map_or_else(Instant::now, |rate| {
                began + Duration::from_secs_f64(sent as f64 / rate)
            });
            connection.stream.write_all(request)?;
            sent += 1;
        }
        if over && idle.len() == connections.len() {
            break;
        }
        if now > load.time + PATIENCE {
            return Err("an answer did not come in time".into());
        }
        let wait = match load.rate {
            Some(rate) if !over && !idle.is_empty() => {
                Duration::from_secs_f64(sent as f64 / rate).saturating_sub(began.elapsed())
            }
            _ => PATIENCE,
        };
        wait_for_events(&epoll, &mut events, wait)?;
        for event in &events {
            let data = event.data;
            let nth = data.u64() as usize;
            if take(&mut connections[nth], requests.protocol, &mut readings)? {
                idle.push_back(nth);
            }
        }
    }
    readings.seconds = began.elapsed().as_secs_f64();
    readings.latencies.sort_unstable();
    Ok(readings)
}

/// The next events of what an epoll watches, waited for at most so long.
pub fn wait_for_events(
    epoll: &OwnedFd,
    events: &mut Vec<epoll::Event>,
    wait: Duration,
) -> Result<(), Error> {
    events.clear();
    let timeout = rustix::event::Timespec::try_from(wait)?;
    epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(events),
        Some(&timeout),
    )?;
    Ok(())
}

/// Reads what there is; true once the answer is whole.
fn take(
    connection: &mut Connection,
    protocol: Protocol,
    readings: &mut Readings,
) -> Result<bool, Error> {
    let mut chunk = [0; 8192];
    loop {
        match connection.stream.read(&mut chunk) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(len) => connection.buffer.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if let Some(good) = whole(&connection.buffer, protocol) {
            readings.answers += 1;
            let nanos = connection.sent_at.elapsed().as_nanos();
            readings
                .latencies
                .push(u32::try_from(nanos).unwrap_or(u32::MAX));
            if protocol == Protocol::Http && seconds_left(&connection.buffer) < 10 {
                readings.short_lived += 1;
            }
            if !good {
                readings.refused += 1;
                if readings.first_refusal.is_empty() {
                    readings.first_refusal =
                        String::from_utf8_lossy(&connection.buffer).into_owned();
                }
            }
            connection.buffer.clear();
            return Ok(true);
        }
    }
}

/// Whether an answer is whole, and if so, whether it is a good one.
fn whole(buffer: &[u8], protocol: Protocol) -> Option<bool> {
    match protocol {
        Protocol::Http => {
            let head = memmem::find(buffer, b"\r\n\r\n")?;
            let at = memmem::find(&buffer[..head], b"content-length: ")? + 16;
            let length = number(&buffer[at..]);
            (buffer.len() >= head + 4 + length).then(|| buffer.starts_with(b"HTTP/1.1 200"))
        }
        Protocol::Redis => {
            let head = memmem::find(buffer, b"\r\n")?;
            if buffer[0] != b'$' || buffer[1] == b'-' {
                return Some(false);
            }
            (buffer.len() >= head + 2 + number(&buffer[1..]) + 2).then_some(true)
        }
    }
}

/// What an answer's `expires_in` says.
fn seconds_left(answer: &[u8]) -> usize {
    let at = memmem::find(answer, b"\"expires_in\":");
    at.map_or(usize::MAX, |at| number(&answer[at + 13..]))
}

fn number(text: &[u8]) -> usize {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// One connection for each request, one after the other.
pub fn read_apart(socket: &Path, requests: &[Vec<u8>], load: Load) -> Result<Readings, Error> {
    let mut dice = Dice(0x5eed);
    let mut readings = Readings::default();
    let mut answer = Vec::with_capacity(8192);
    let began = Instant::now();
    while readings.answers < load.count && began.elapsed() < load.time {
        let sent_at = Instant::now();
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&requests[dice.below(requests.len())])?;
        answer.clear();
        stream.read_to_end(&mut answer)?;
        if answer.len() < crate::stock::TOKEN_BYTES {
            return Err(format!("a short answer: {}", String::from_utf8_lossy(&answer)).into());
        }
        readings.answers += 1;
        let nanos = sent_at.elapsed().as_nanos();
        readings
            .latencies
            .push(u32::try_from(nanos).unwrap_or(u32::MAX));
    }
    readings.seconds = began.elapsed().as_secs_f64();
    readings.latencies.sort_unstable();
    Ok(readings)
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
