//! Row 13: importing through freshctl.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use freshd::store::{Kek, Options, Store};

use crate::daemon::{Setup, Site};
use crate::owned::Owned;
use crate::provider::Provider;
use crate::report::{Aim, Line};
use crate::stock::{self, MAIN, OTHER};
use crate::yardsticks::raw_inserts;
use crate::{Error, Lab};

/// No import takes longer.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Row 13. One round: it takes minutes.
pub fn jsonl(lab: &Lab) -> Result<Vec<Line>, Error> {
    let count = lab.of(1_000_000, 500);
    let site = Site::new(lab, "13")?;
    Kek::generate().write_new(&site.key())?;
    let server = Provider::start(Duration::ZERO)?;
    let setup = Setup::default()
        .with(MAIN, server.port, "")
        .with(OTHER, server.port, "");
    let file = site.dir.join("grants.jsonl");
    write_lines(&file, count)?;
    let freshd = site.start(lab, &setup)?;
    let before = freshd.cost();
    let began = Instant::now();
    let mut command = Command::new(lab.binaries.join("freshctl"));
    command
        .arg("--config")
        .arg(site.config())
        .args(["import", "--jsonl"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = Owned::spawn(&mut command)?.wait(PATIENCE)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = freshd.cost().since(before).cpu;
    freshd.stop()?;
    if !status.success() {
        return Err(format!("freshctl import ended with {status}").into());
    }
    let raw = {
        let site = Site::new(lab, "13-raw")?;
        let kek = Kek::generate();
        let busy_timeout = Duration::from_secs(10);
        let dir = site.state();
        drop(Store::open(Options {
            dir,
            kek,
            busy_timeout,
        })?);
        raw_inserts(&site.database(), count)?
    };
    let rounds = [(count as f64 / seconds, raw.per_second)];
    Ok(vec![
        Line::of_rounds(
            "13",
            format!("{count} grants by freshctl import --jsonl"),
            "1/s",
            &rounds,
        )
        .aim(Aim::AtLeast(0.5))
        .detail("cpu us, freshd", cpu.as_secs_f64() * 1e6 / count as f64)
        .detail("cpu us, yardstick", raw.cpu_micros),
    ])
}

fn write_lines(file: &std::path::Path, count: u64) -> Result<(), Error> {
    let mut lines = BufWriter::new(File::create(file)?);
    for nth in 0..count {
        let (user, provider) = (stock::user(nth), stock::provider(nth));
        let (access, refresh) = (stock::access_token(nth, 1), stock::refresh_token(nth, 1));
        writeln!(
            lines,
            "{{\"user\":\"{user}\",\"provider\":\"{provider}\",\"access_token\":\"{access}\",\
             \"refresh_token\":\"{refresh}\",\"expires_in\":86400,\"scope\":\"files.read files.write\"}}"
        )?;
    }
    lines.flush()?;
    Ok(())
}
