//! Row 11: ten thousand readers of one stale grant.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::client::wait_for_events;
use crate::daemon::{Setup, Site};
use crate::provider::Provider;
use crate::report::{Aim, Line};
use crate::stock::{self, MAIN, OTHER};
use crate::{Error, Lab};

/// Each socket takes 1,024 connections.
const PER_SOCKET: usize = 1_000;
/// The server takes so long that all readers have asked before it answers.
const LATENCY: Duration = Duration::from_secs(2);

/// When answers came, in milliseconds after the first request left.
struct Times {
    first: f64,
    last: f64,
}

/// Row 11. Another grant for each round.
pub fn one_request(lab: &Lab) -> Result<Vec<Line>, Error> {
    let readers = lab.of(10_000, 200) as usize;
    let site = Site::new(lab, "11")?;
    stock::put(lab, &site, lab.grants())?;
    let server = Provider::start(LATENCY)?;
    let setup = Setup {
        app_sockets: readers.div_ceil(PER_SOCKET),
        ..Setup::default()
    };
    let setup = setup
        .with(MAIN, server.port, "")
        .with(OTHER, server.port, "");
    let freshd = site.start(lab, &setup)?;
    let sockets: Vec<PathBuf> = (0..readers)
        .map(|nth| site.app_socket(nth / PER_SOCKET))
        .collect();
    let ended = (0..lab.grants())
        .rev()
        .filter(|nth| stock::provider(*nth) == MAIN);
    let stale: Vec<u64> = ended.take(2 * lab.rounds() as usize).collect();
    let (mut rounds, mut requests, mut spans, mut cpu) = (vec![], vec![], vec![], vec![]);
    for pair in stale.chunks(2) {
        server.take_hits();
        let one = ask(&sockets[..1], &stock::token_path(pair[0]))?;
        let of_one = server.take_hits().len();
        let before = freshd.cost();
        let all = ask(&sockets, &stock::token_path(pair[1]))?;
        cpu.push(freshd.cost().since(before).cpu.as_secs_f64() * 1e6 / readers as f64);
        requests.push((server.take_hits().len() as f64, of_one as f64));
        rounds.push((all.last, one.last));
        spans.push(all.last - all.first);
    }
    freshd.stop()?;
    let span = crate::report::median(spans);
    let most = crate::report::most(requests.iter().map(|pair| pair.0));
    Ok(vec![
        Line::of_rounds(
            "11",
            format!("{readers} readers of one stale grant: last answer"),
            "ms",
            &rounds,
        )
        .detail("cpu us for each reader", crate::report::median(cpu)),
        Line::of_rounds("11", "requests to the provider", "", &requests).aim(Aim::AtMost(1.0)),
        Line::new("11", "requests to the provider, at most", "", most).aim(Aim::AtMost(1.0)),
        Line::new("11", "last answer after the first", "ms", span).aim(Aim::AtMost(50.0)),
    ])
}

/// Connects once to each of the sockets, asks on all, and waits for all answers.
fn ask(sockets: &[PathBuf], path: &str) -> Result<Times, Error> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut streams = Vec::with_capacity(sockets.len());
    for (nth, socket) in sockets.iter().enumerate() {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &epoll,
            &stream,
            EventData::new_u64(nth as u64),
            EventFlags::IN,
        )?;
        streams.push(stream);
    }
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let began = Instant::now();
    for stream in &mut streams {
        stream.write_all(request.as_bytes())?;
    }
    let (mut first, mut answers) = (None, 0);
    let mut events = Vec::with_capacity(1024);
    let mut chunk = [0; 8192];
    while answers < streams.len() {
        if began.elapsed() > 10 * LATENCY {
            return Err(format!("{answers} of {} readers were answered", streams.len()).into());
        }
        wait_for_events(&epoll, &mut events, LATENCY)?;
        for event in &events {
            let data = event.data;
            // An answer is shorter than a socket's buffer, and comes whole.
            match streams[data.u64() as usize].read(&mut chunk) {
                Ok(len) if chunk[..len].starts_with(b"HTTP/1.1 200") => answers += 1,
                Ok(len) => {
                    return Err(
                        format!("refused: {}", String::from_utf8_lossy(&chunk[..len])).into(),
                    );
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            first.get_or_insert_with(|| began.elapsed());
        }
    }
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Times {
        first: millis(first.unwrap_or_default()),
        last: millis(began.elapsed()),
    })
}
