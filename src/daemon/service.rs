//! Life as a service: the process's own hardening, signals, systemd's notifications, exit codes.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use futures_util::StreamExt;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::systemd::{self, notify};
use crate::config::{self, Defaults};
use crate::local_api::listen;

/// Runs the daemon until it is told to stop.
///
/// SIGTERM and SIGINT drain; a second one ends at once. SIGHUP reloads.
pub fn main(config_file: Option<&Path>) -> ExitCode {
    let defaults = defaults();
    let file = config_file.unwrap_or(&defaults.file);
    harden();
    let config = match config::load(file, &defaults) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                eprintln!("freshd: {error}");
            }
            eprintln!("  hint: `freshctl check-config` checks a configuration without starting");
            return ExitCode::from(78);
        }
    };
    super::log::init(&config.daemon.log_level, config.daemon.log_format);
    // Before there are threads: it takes its environment variables away.
    let passed = listen::from_systemd();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("freshd: cannot start its threads: {error}");
            return ExitCode::from(75);
        }
    };
    let code = runtime.block_on(serve(file, &defaults, config, passed));
    // What is left are requests whose callers have gone.
    runtime.shutdown_background();
    code
}

/// The system's directories for root, the XDG ones for everybody else.
pub fn defaults() -> Defaults {
    let env = |name: &str| std::env::var(name).ok();
    // A system service may run as another user: systemd says so by its state directory.
    if rustix::process::geteuid().is_root() || env("STATE_DIRECTORY").is_some() {
        Defaults::system(&env)
    } else {
        Defaults::user(&env)
    }
}

async fn serve(
    file: &Path,
    defaults: &Defaults,
    config: config::Config,
    passed: super::Passed,
) -> ExitCode {
    let mut signals = match Signals::new([SIGHUP, SIGTERM, SIGINT]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("freshd: cannot watch for signals: {error}");
            return ExitCode::from(75);
        }
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %file.display(), "started");
    let mut daemon = match super::start(config, passed).await {
        Ok(daemon) => daemon,
        Err(error) => {
            let code = error.exit_code();
            tracing::error!(error = %chain(&error), exit = code, "not-started");
            return ExitCode::from(code);
        }
    };
    notify(&[NotifyState::Ready]);
    tracing::info!("ready");
    let telling = tokio::spawn(systemd::run(daemon.shared.clone()));
    let mut stopped = ExitCode::SUCCESS;
    loop {
        tokio::select! {
            signal = signals.next() => if signal != Some(SIGHUP) {
                break;
            },
            () = daemon.lame() => {
                stopped = ExitCode::from(70);
                break;
            }
        }
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        daemon.reload(config::load(file, defaults)).await;
        notify(&[NotifyState::Ready]);
    }
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: what is in flight finishes"),
    ]);
    tracing::info!("draining");
    // What it would say of a store that is being closed is of no use.
    telling.abort();
    tokio::select! {
        () = daemon.stop() => stopped,
        () = again(&mut signals) => {
            tracing::warn!("stopped-at-once");
            ExitCode::from(75)
        }
    }
}

/// Waits for a second request to stop.
async fn again(signals: &mut Signals) {
    while let Some(signal) = signals.next().await {
        if signal != SIGHUP {
            return;
        }
    }
    std::future::pending().await
}

/// No core, no debugger of the same user (I6), and files nobody else can read.
fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit};
    // Failing is possible only where the kernel forbids to lower a limit, which it does not.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    // A connection for each caller that waits: the usual soft limit of 1024 is less than our sockets take.
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        ..files
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, most);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// An error with its causes, outermost first.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
