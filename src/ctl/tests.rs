//! Each command, run in this process against a scripted daemon on a Unix socket.

mod bulk;
mod commands;
mod local;
mod refusals;
mod server;
mod status;
mod why;

use std::ffi::OsString;
use std::io::Cursor;
use std::path::Path;

use super::{Console, Terminals};

/// How one run ended.
pub struct Ran {
    pub code: u8,
    pub out: String,
    pub err: String,
}

/// Runs `freshctl --socket SOCKET ARGS` with `stdin`, at no terminal.
pub fn run(socket: &Path, args: &[&str], stdin: &str) -> Ran {
    run_at(Terminals::default(), socket, args, stdin)
}

/// As [`run`], at the terminals given.
pub fn run_at(terminals: Terminals, socket: &Path, args: &[&str], stdin: &str) -> Ran {
    let socket = ["--socket".into(), socket.as_os_str().to_owned()];
    let args = args.iter().map(OsString::from);
    run_line(terminals, socket.into_iter().chain(args), stdin)
}

/// Runs `freshctl ARGS`: with the socket that its configuration says.
pub fn run_bare(args: &[&str]) -> Ran {
    run_line(Terminals::default(), args.iter().map(OsString::from), "")
}

fn run_line(terminals: Terminals, args: impl Iterator<Item = OsString>, stdin: &str) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console {
        stdin: Box::new(Cursor::new(stdin.as_bytes().to_vec())),
        stdout: &mut out,
        stderr: &mut err,
        terminals,
        env: &|_| None,
        root: false,
    };
    let line = [OsString::from("freshctl")].into_iter().chain(args);
    let code = super::run(line, &mut console);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code,
        out: text(out),
        err: text(err),
    }
}
