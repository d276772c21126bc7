//! `freshd demo`: the whole of freshd at work on one machine, in front of somebody's eyes.
//!
//! A real authorization server on loopback, the real daemon with a configuration
//! file, a key and a store in a temporary directory, and four users whose apps
//! speak to the daemon through its sockets. Nothing of it is left afterwards.
//!
//! | module | is |
//! |---|---|
//! | [`authorization_server`], [`families`] | the other side: HTTP, and the rules of its tokens |
//! | [`directory`] | the temporary directory and the configuration in it |
//! | [`client`], [`stage`] | how apps and admin speak to the daemon, and what is counted |
//! | [`cast`] | the users and their story |
//! | [`tally`] | whether the story went as told |
//! | [`screen`] | what is printed |

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use self::authorization_server::{AuthorizationServer, Clock, Event, Settings};
use self::cast::Bob;
use self::directory::{CLIENT_ID, Directory};
use self::screen::{Screen, shell_word};
use self::stage::{API_CLIENT_ID, Sockets, Stage};
use crate::config::{self, Config, ConfigError, Defaults};
use crate::daemon;
use crate::refresh::token::ClientSecret;

pub mod authorization_server;
pub mod cast;
pub mod client;
pub mod directory;
pub mod families;
pub mod screen;
pub mod stage;
pub mod tally;

/// What `freshd demo` was asked to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--for`: ends by itself after this long, at least [`SHORTEST`]; `None` goes on until Ctrl-C.
    pub for_: Option<Duration>,
    /// `--port`: the authorization server's port on 127.0.0.1; `None` lets the OS choose.
    pub port: Option<u16>,
}

/// The story needs this long: bob is back after 45 s, and a few seconds show that he stays.
pub const SHORTEST: Duration = Duration::from_secs(50);

/// How long the server's access tokens live.
const LIFETIME: Duration = Duration::from_secs(20);
/// How long the token endpoint takes to answer, so that a burst has something to wait for.
const ANSWER_AFTER: Duration = Duration::from_millis(250);
/// The users.
const CAST: [&str; 4] = ["ann", "bob", "cleo", "dan"];
/// `EX_USAGE` of sysexits(3).
const EXIT_USAGE: u8 = 64;

/// Why the demo could not begin.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot start the runtime, or hear signals")]
    Runtime(#[source] io::Error),
    #[error("cannot make a temporary directory in {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("cannot write the configuration")]
    Write(#[source] io::Error),
    #[error("cannot listen on 127.0.0.1:{0}; choose another --port, or leave it out")]
    Listen(u16, #[source] io::Error),
    #[error("its own configuration is refused: {}", list(.0))]
    Config(Vec<ConfigError>),
    #[error("cannot start the daemon")]
    Daemon(#[source] daemon::StartError),
    #[error("the daemon did not take {0}'s grant: {1}")]
    Import(&'static str, String),
}

fn list(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// How the story came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// `--for` is over: what was seen is judged.
    Over,
    /// Ctrl-C, SIGTERM, or nobody watches any more.
    Asked,
    /// A member of the cast stopped, which none does by itself.
    Broken,
}

/// Runs the demo. Exit code 0 if everything went as told or somebody ended it, 1 if something
/// did not, 64 if [`Options::for_`] is too short for the story.
pub fn main(options: Options) -> ExitCode {
    if let Some(length) = options.for_.filter(|&length| length < SHORTEST) {
        complain(&format!(
            "--for is {length:?} but the story needs at least {SHORTEST:?}: \
             bob is paused after 30 s and back after 45 s; try --for 60s"
        ));
        return ExitCode::from(EXIT_USAGE);
    }
    run(options).unwrap_or_else(|error| {
        complain(&chain(&error));
        ExitCode::FAILURE
    })
}

fn run(options: Options) -> Result<ExitCode, DemoError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DemoError::Runtime)?;
    let code = runtime.block_on(perform(options));
    // A daemon that was told to stop at once may still be busy; nobody waits for it.
    runtime.shutdown_background();
    code
}

/// Returns an error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

fn complain(message: &str) {
    // Not eprintln!, which panics where stderr is gone.
    let _ = writeln!(io::stderr(), "freshd: demo: {message}");
}

async fn perform(options: Options) -> Result<ExitCode, DemoError> {
    let mut signals = Signals::new().map_err(DemoError::Runtime)?;
    let parent = std::env::temp_dir();
    let directory = Directory::make(&parent).map_err(|e| DemoError::Directory(parent, e))?;
    let clock = clock();
    let (server, events, secrets) = open_server(options.port, &clock).await?;
    let uid = rustix::process::getuid().as_raw();
    directory
        .write_config(server.address(), &secrets.daemon, uid)
        .map_err(DemoError::Write)?;
    let config = load(&directory)?;
    daemon::log::to_file(&directory.log_file(), "debug").map_err(DemoError::Write)?;
    let handle = daemon::start(config, Vec::new())
        .await
        .map_err(DemoError::Daemon)?;

    let sockets = Sockets {
        shared: directory.socket(),
        admin: directory.admin_socket(),
    };
    let screen = Screen::standard();
    screen.text(&introduction(&server, &directory, options.for_));
    let stage = Arc::new(Stage::new(server, secrets.api, sockets, screen, clock));
    let end = play(&stage, events, options.for_, &mut signals).await;
    let tally = stage.closing_tally();
    if let Ok(end) = &end
        && *end != End::Over
    {
        stage
            .screen
            .text("\nstopping: the daemon finishes what is in flight (Ctrl-C again: at once)");
    }
    tokio::select! {
        () = handle.stop() => {}
        () = signals.next() => {}
    }
    let code = close(&stage, end?, &tally);
    if code != ExitCode::SUCCESS {
        stage.screen.text(&format!(
            "the daemon's log ended with:\n{}",
            directory.log_tail()
        ));
    }
    Ok(code)
}

fn clock() -> Clock {
    let clock = daemon::clock::Clock::system();
    Arc::new(move || clock.now())
}

/// The secrets of the server's two clients.
struct Secrets {
    daemon: ClientSecret,
    api: ClientSecret,
}

async fn open_server(
    port: Option<u16>,
    clock: &Clock,
) -> Result<(AuthorizationServer, UnboundedReceiver<Event>, Secrets), DemoError> {
    let port = port.unwrap_or(0);
    let secrets = Secrets {
        // With characters that HTTP Basic carries only if both sides encode them (RFC 6749 §2.3.1).
        daemon: ClientSecret::new(families::random_token("100% secret: +")),
        api: ClientSecret::new(families::random_token("api")),
    };
    let clients = [(CLIENT_ID, &secrets.daemon), (API_CLIENT_ID, &secrets.api)];
    let settings = Settings {
        port,
        lifetime: LIFETIME,
        answer_after: ANSWER_AFTER,
        clients: clients
            .map(|(id, secret)| (id.to_owned(), secret.clone()))
            .into(),
    };
    let (server, events) = AuthorizationServer::start(settings, Arc::clone(clock))
        .await
        .map_err(|error| DemoError::Listen(port, error))?;
    Ok((server, events, secrets))
}

/// Reads the configuration as the daemon does. Whatever it leaves out stays in the directory too.
fn load(directory: &Directory) -> Result<Config, DemoError> {
    let inside = directory.path().to_str().map(str::to_owned);
    let mut defaults = Defaults::user(&|name| match name {
        "HOME" | "XDG_RUNTIME_DIR" => inside.clone(),
        _ => None,
    });
    defaults.daemon.app_socket_dir = directory.path().join("app");
    defaults.daemon.make_key = true;
    config::load(&directory.config_file(), &defaults).map_err(DemoError::Config)
}

/// Lets the cast play until the time is over or somebody ends it.
async fn play(
    stage: &Arc<Stage>,
    events: UnboundedReceiver<Event>,
    length: Option<Duration>,
    signals: &mut Signals,
) -> Result<End, DemoError> {
    for user in CAST {
        let issued = stage.log_in(user);
        stage
            .import(user, &issued)
            .await
            .map_err(|why| DemoError::Import(user, why))?;
    }
    let everybody =
        "logged in at the server; their grants are imported, sealed and on the schedule";
    stage.say("all", screen::Mood::Good, everybody);
    let bob = Arc::new(Bob::default());
    let mut cast = JoinSet::new();
    cast.spawn(cast::watch(Arc::clone(stage), Arc::clone(&bob), events));
    cast.spawn(cast::ann(Arc::clone(stage)));
    cast.spawn(cast::bob(Arc::clone(stage), bob));
    cast.spawn(cast::cleo(Arc::clone(stage)));
    cast.spawn(cast::dan(Arc::clone(stage)));
    let over = async {
        match length {
            Some(length) => stage.until(length).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        () = over => End::Over,
        () = signals.next() => End::Asked,
        () = stage.screen.gone() => End::Asked,
        _ = cast.join_next() => End::Broken,
    };
    // Aborted and awaited: nobody reads while the daemon stops.
    cast.shutdown().await;
    Ok(end)
}

/// Says how it went.
fn close(stage: &Stage, end: End, tally: &tally::Seen) -> ExitCode {
    let summary = format!("\n{}", tally::summary(tally));
    stage.screen.text(&summary);
    let mut failures = match end {
        End::Asked => return ExitCode::SUCCESS,
        End::Over | End::Broken => tally::failures(tally),
    };
    if end == End::Broken {
        failures.push("a part of the demo itself broke off".into());
    }
    if failures.is_empty() {
        stage.screen.text("everything went as told");
        return ExitCode::SUCCESS;
    }
    for failure in &failures {
        stage.screen.text(&format!("not as told: {failure}"));
    }
    ExitCode::FAILURE
}

/// Returns what is shown first: what runs, where, and what to try.
fn introduction(
    server: &AuthorizationServer,
    directory: &Directory,
    length: Option<Duration>,
) -> String {
    let beside = std::env::current_exe().ok();
    let freshctl = beside
        .and_then(|exe| exe.parent().map(|folder| folder.join("freshctl")))
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("freshctl"));
    let word = |path: &Path| shell_word(&path.display().to_string());
    let (socket, admin) = (word(&directory.socket()), word(&directory.admin_socket()));
    let freshctl = word(&freshctl);
    let ends = match length {
        Some(length) => format!(
            "It ends by itself after {} s; Ctrl-C ends it before.",
            length.as_secs()
        ),
        None => "It goes on until Ctrl-C; bob and dan do their part again each minute.".to_owned(),
    };
    format!(
        "freshd's demo: four users, an authorization server that rotates refresh tokens and revokes a\n\
         whole grant when a used one comes back, and between them the daemon. Access tokens live {lifetime} s,\n\
         freshd refreshes them 5 s before they end, and rests when nobody has read for 15 s. Apps get\n\
         access tokens only, and each one they get is checked at the server. Everything is real but the\n\
         accounts, runs in this process and is removed at the end.\n\
         {ends}\n\
         \n\
         \x20 authorization server   http://{server}/\n\
         \x20 configuration          {config}\n\
         \x20 grants, sealed         {state}\n\
         \x20 the daemon's log       {log}\n\
         \n\
         Try in another terminal:\n\
         \x20 curl --unix-socket {socket} http://localhost/v1/users/ann/grants/demo/token\n\
         \x20 {freshctl} --socket {admin} status\n\
         \x20 {freshctl} --socket {admin} grants\n",
        lifetime = LIFETIME.as_secs(),
        server = server.address(),
        config = directory.config_file().display(),
        state = directory.path().join("state").display(),
        log = directory.log_file().display(),
    )
}

/// SIGINT, SIGTERM and SIGHUP, each of which ends the demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AppPeer;
    use crate::refresh::policy::Rotation;

    #[test]
    fn its_configuration_is_one_that_freshd_takes_and_stays_in_its_directory() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::make(parent.path()).unwrap();
        let secret = ClientSecret::new(families::random_token("100% secret: +"));
        let server = ([127, 0, 0, 1], 4711).into();
        directory.write_config(server, &secret, 1000).unwrap();
        let config = load(&directory).unwrap();
        let Config {
            daemon,
            providers,
            apps,
            ..
        } = config;
        for path in [
            &daemon.state_dir,
            &daemon.socket,
            &daemon.admin_socket,
            &daemon.app_socket_dir,
            &daemon.key_file,
        ] {
            assert!(path.starts_with(directory.path()), "{}", path.display());
        }
        assert!(daemon.make_key);
        let demo = &providers[directory::PROVIDER];
        assert_eq!(demo.registration.client_secret.as_ref(), Some(&secret));
        assert_eq!(demo.policy.rotation, Rotation::Strict);
        assert_eq!(demo.policy.margin, Duration::from_secs(5));
        assert_eq!(demo.policy.inactive_after, Duration::from_secs(15));
        assert_eq!(apps["demo"].peer, AppPeer::Uid(1000));
        assert!(apps["demo"].counts_as_activity);
    }

    #[test]
    fn a_length_too_short_for_the_story_is_a_usage_error() {
        let short = Options {
            for_: Some(SHORTEST - Duration::from_millis(1)),
            port: None,
        };
        let code = main(short);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(64)));
    }
}
