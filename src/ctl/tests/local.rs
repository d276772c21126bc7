//! What needs no daemon: help, `check-config`, `key generate`, completions.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::CommandFactory;

use super::super::args::Cli;
use super::super::local::say_checked;
use super::super::output::Look;
use super::{Console, Terminals, run, run_bare};
use crate::config::ConfigError;

const NOWHERE: &str = "/nowhere/freshd.sock";

#[test]
fn the_help_is_as_it_was() {
    let mut cli = Cli::command().term_width(100);
    let mut text = cli.render_help().to_string();
    cli.build();
    for command in cli.get_subcommands_mut() {
        text.push_str(&format!("\n----\n{}", command.render_help()));
    }
    insta::assert_snapshot!("help", text);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for flag in ["--help", "--version"] {
        let ran = run(Path::new(NOWHERE), &[flag], "");
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert!(!ran.out.is_empty());
    }
}

#[test]
fn a_key_is_private_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let args = ["key", "generate", file.to_str().unwrap()];
    let ran = run(Path::new(NOWHERE), &args, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(
        file.metadata().unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let key = std::fs::read_to_string(&file).unwrap();
    assert!(!ran.out.contains(key.trim()));
    assert_eq!(run(Path::new(NOWHERE), &args, "").code, 73);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), key);
}

#[test]
fn every_error_of_a_configuration_is_on_a_line_of_its_own() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console {
        stdin: Box::new(std::io::empty()),
        stdout: &mut out,
        stderr: &mut err,
        terminals: Terminals::default(),
        env: &|_| None,
        root: true,
    };
    let error = |key: &str, message: &str| ConfigError {
        file: "/etc/freshd/freshd.toml".into(),
        line: None,
        key: key.into(),
        message: message.into(),
        unopened: false,
    };
    let errors = vec![
        error("refresh.margin", "is 2h\nbut"),
        error("provider.x", "has no\u{1b} client-id"),
    ];
    let failure = say_checked(Err::<String, _>(errors), Look::default(), &mut console).unwrap_err();
    assert_eq!(console.tell(&failure), 78);
    assert_eq!(
        String::from_utf8(err).unwrap(),
        "freshctl: /etc/freshd/freshd.toml: refresh.margin is 2h but\n\
         freshctl: /etc/freshd/freshd.toml: provider.x has no\\u{1b} client-id\n  \
         hint: mend that and run it again; freshctl doctor looks at configuration and key\n"
    );
    assert!(out.is_empty());
}

#[test]
fn a_configuration_that_cannot_be_opened_ends_every_command_with_66_and_a_wrong_one_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("directory")).unwrap();
    std::fs::write(path("wrong"), "[daemon]\nnonsense = 1\nadmin-socket = 1\n").unwrap();
    let key = path("key");
    assert_eq!(run_bare(&["key", "generate", &key]).code, 0);
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let export = [
        "export",
        "--with-secrets",
        "--offline",
        "--recipient",
        &recipient,
    ];
    let commands: [&[&str]; 6] = [
        &["check-config"],
        &["restore", "/nowhere/copy"],
        &["key", "change-kek", &key],
        &["key", "recovery"],
        &export,
        &["grants"],
    ];
    for (config, code) in [("none", 66), ("directory", 66), ("wrong", 78)] {
        for args in commands {
            let config = path(config);
            let args = [&["--config", &config], args].concat();
            let ran = run_bare(&args);
            assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
            assert!(ran.err.contains(&config), "{args:?}: {}", ran.err);
            assert!(ran.err.contains("hint: "), "{args:?}: {}", ran.err);
        }
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(Path::new(NOWHERE), &["completions", shell], "");
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("check-config"), "{shell}");
    }
}

#[test]
fn with_a_default_configuration_that_is_broken_only_who_looks_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("freshd")).unwrap();
    std::fs::write(dir.path().join("freshd/freshd.toml"), "[daemon").unwrap();
    let run = |args: &[&str]| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            stdin: Box::new(std::io::empty()),
            stdout: &mut out,
            stderr: &mut err,
            terminals: Terminals::default(),
            env: &|name| name.starts_with("XDG_").then(|| dir.path().into()),
            root: false,
        };
        let line = ["freshctl"].iter().chain(args).map(Into::into);
        let code = super::super::run(line, &mut console);
        (code, String::from_utf8(err).unwrap())
    };
    for args in [&["pause", "anna", "acme"][..], &["token", "anna", "acme"]] {
        let (code, err) = run(args);
        assert_eq!(code, 78, "{err}");
        assert!(
            err.contains("is not TOML") && err.contains("--socket"),
            "{err}"
        );
    }
    let (code, err) = run(&["status"]);
    assert_eq!(code, 69, "nobody is there, but it asked: {err}");
    assert!(
        err.contains("is not TOML") && err.contains("all the same"),
        "{err}"
    );
}
