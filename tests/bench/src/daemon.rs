//! The real daemon in a directory of its own, and other processes that are measured beside it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::owned::{Owned, SITE};
use crate::process::Cost;
use crate::{Error, Lab};

/// No start, and no answer, takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory with a configuration, a key and a state directory. Removed when dropped.
pub struct Site {
    pub dir: PathBuf,
}

/// What the configuration says beside the defaults.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Of each provider: its name, its server's port, and further lines of its section.
    pub providers: Vec<(String, u16, String)>,
    /// So many apps with a socket of their own, beside the one that our uid admits.
    pub app_sockets: usize,
    /// Threads of the asynchronous runtime; `None` leaves freshd's default, one for each core.
    pub threads: Option<usize>,
}

impl Setup {
    /// One provider that rotates refresh tokens strictly.
    pub fn with(mut self, name: &str, port: u16, more: &str) -> Setup {
        self.providers.push((name.into(), port, more.into()));
        self
    }

    /// As many threads as the yardstick has.
    pub fn one_thread(mut self) -> Setup {
        self.threads = Some(1);
        self
    }
}

impl Site {
    /// Makes the directories below `lab.directory`.
    pub fn new(lab: &Lab, name: &str) -> Result<Site, Error> {
        let dir = lab.directory.join(format!("{SITE}{name}"));
        let _ = std::fs::remove_dir_all(&dir);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).recursive(true);
        for part in ["shared", "admin", "apps"] {
            builder.create(dir.join(part))?;
        }
        Ok(Site { dir })
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn database(&self) -> PathBuf {
        self.state().join("freshd.db")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("shared/freshd.sock")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("admin/freshd.sock")
    }

    pub fn app_socket(&self, nth: usize) -> PathBuf {
        self.dir.join(format!("apps/{nth}/freshd.sock"))
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("freshd.toml")
    }

    /// Writes the configuration.
    pub fn write_config(&self, setup: &Setup) -> Result<(), Error> {
        let mut text = format!(
            "[daemon]\nstate-dir = {:?}\nsocket = {:?}\nadmin-socket = {:?}\nkey-file = {:?}\n",
            self.state(),
            self.socket(),
            self.admin_socket(),
            self.key()
        );
        for (name, port, more) in &setup.providers {
            let secret = self.dir.join(format!("{name}.secret"));
            write_private(&secret, b"the client secret")?;
            let _ = write!(
                text,
                "\n[provider.{name}]\ntoken-endpoint = \"http://127.0.0.1:{port}/token\"\nclient-id = \"bench\"\n\
                 client-secret = {{ file = {secret:?} }}\nrotation = \"strict\"\n{more}\n"
            );
        }
        // Checked and counted as always, but out of the way: one app asks for all that there is.
        text.push_str("\n[limits]\nmax-requests-per-second = 1000000\n");
        let uid = rustix::process::getuid().as_raw();
        let rule = "providers = [\"*\"]\nmay = [\"read\", \"import\", \"revoke\"]\n";
        let _ = write!(text, "\n[app.bench]\nunix-uid = {uid}\n{rule}");
        for nth in 0..setup.app_sockets {
            let socket = self.app_socket(nth);
            let mut private = std::fs::DirBuilder::new();
            private
                .mode(0o700)
                .recursive(true)
                .create(self.dir.join(format!("apps/{nth}")))?;
            let _ = write!(text, "\n[app.bench{nth}]\nsocket = {socket:?}\n{rule}");
        }
        std::fs::write(self.config(), text)?;
        Ok(())
    }

    /// Starts freshd and waits until it says that it is ready.
    pub fn start(&self, lab: &Lab, setup: &Setup) -> Result<Daemon, Error> {
        self.start_under(lab, setup, &[])
    }

    /// Starts freshd as the last words of another command.
    pub fn start_under(&self, lab: &Lab, setup: &Setup, under: &[&str]) -> Result<Daemon, Error> {
        self.write_config(setup)?;
        let notify = self.dir.join("notify.sock");
        let _ = std::fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify)?;
        told.set_read_timeout(Some(PATIENCE))?;
        let freshd = lab.binaries.join("freshd");
        let mut words: Vec<&std::ffi::OsStr> = under.iter().map(|word| word.as_ref()).collect();
        words.push(freshd.as_os_str());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.config())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(threads) = setup.threads {
            command.env("TOKIO_WORKER_THREADS", threads.to_string());
        }
        let began = Instant::now();
        let mut daemon = Daemon {
            child: Owned::spawn(&mut command)?,
            ready_after: Duration::ZERO,
        };
        wait_ready(&told, &mut daemon.child.0)
            .map_err(|error| format!("{error}\n{}", self.log_tail()))?;
        daemon.ready_after = began.elapsed();
        Ok(daemon)
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn wait_ready(told: &UnixDatagram, child: &mut Child) -> Result<(), Error> {
    told.set_read_timeout(Some(Duration::from_millis(500)))?;
    let until = Instant::now() + PATIENCE;
    let mut message = [0; 1024];
    while Instant::now() < until {
        if let Ok(len) = told.recv(&mut message)
            && message[..len].starts_with(b"READY=1")
        {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("freshd ended before it was ready: {status}").into());
        }
    }
    Err("freshd was not ready in time".into())
}

/// A running freshd.
pub struct Daemon {
    pub child: Owned,
    /// From its start until it said that it is ready.
    pub ready_after: Duration,
}

impl Daemon {
    pub fn cost(&self) -> Cost {
        Cost::of(&self.child.0)
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) -> Result<(), Error> {
        let status = self.child.terminate()?;
        if !status.success() {
            return Err(format!("freshd ended with {status}").into());
        }
        Ok(())
    }
}

/// Asks the socket once, without keeping the connection, and returns the answer's body.
pub fn get(socket: &Path, path: &str) -> Result<String, Error> {
    ask(socket, "GET", path, "")
}

/// The same with a JSON body, or none.
pub fn post(socket: &Path, path: &str, body: &str) -> Result<String, Error> {
    ask(socket, "POST", path, body)
}

fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<String, Error> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no whole answer")?;
    if !head.starts_with("HTTP/1.1 2") {
        return Err(format!("{path}: {head}\n{body}").into());
    }
    Ok(body.to_owned())
}

/// Writes a file of mode 0600.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(())
}
