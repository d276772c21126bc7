//! The module map holds: who may import whom, and where SQL, clocks and networks are at home.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may name after `crate::`, besides itself. `daemon` and `demo` may see everything.
const MAY_IMPORT: [(&str, &[&str]); 9] = [
    ("refresh", &[]),
    ("metrics", &[]),
    ("profile", &["refresh"]),
    ("config", &["refresh", "profile"]),
    ("store", &["refresh"]),
    ("token_endpoint", &["refresh", "profile"]),
    ("local_api", &["refresh", "profile", "metrics"]),
    ("manual", &["ctl::command"]),
    // Points in time, to show them; and what works without a daemon: the key, and restoring, with the clock for it.
    (
        "ctl",
        &[
            "config",
            "local_api::types",
            "refresh::time",
            "store::Kek",
            "store::KeyError",
            "store::RecoveryKey",
            "store::rekey",
            "store::restore",
            "store::export",
            "token_endpoint::Outbound",
            "token_endpoint::probe",
            "daemon::clock",
        ],
    ),
];

/// What has no place in the pure core.
const IMPURE: [&str; 9] = [
    "tokio",
    "rusqlite",
    "reqwest",
    "hyper",
    "axum",
    "std::fs",
    "std::net",
    "std::thread",
    "::now(",
];

/// The beginnings of SQL statements, as they stand in Rust strings.
const SQL: [&str; 8] = [
    "SELECT ",
    "INSERT INTO",
    "INSERT OR ",
    "DELETE FROM",
    "UPDATE ",
    "CREATE TABLE",
    "CREATE INDEX",
    "PRAGMA ",
];

/// One line of code that is neither comment nor documentation.
struct Line {
    file: PathBuf,
    number: usize,
    text: String,
}

impl Line {
    fn place(&self) -> String {
        format!(
            "{}:{}: {}",
            self.file.display(),
            self.number,
            self.text.trim()
        )
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source files of a module: `src/NAME.rs` and everything in `src/NAME/`.
fn sources(module: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let file = root().join("src").join(format!("{module}.rs"));
    if file.exists() {
        found.push(file);
    }
    let folder = root().join("src").join(module);
    if folder.exists() {
        collect(&folder, &mut found);
    }
    assert!(
        !found.is_empty(),
        "the module map names {module}, but there is no such module"
    );
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("the sources are there").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn lines(files: &[PathBuf]) -> Vec<Line> {
    let mut all = Vec::new();
    for file in files {
        let short = file
            .strip_prefix(root())
            .expect("the sources are there")
            .to_owned();
        for (index, text) in fs::read_to_string(file)
            .expect("the sources are there")
            .lines()
            .enumerate()
        {
            if !text.trim_start().starts_with("//") {
                all.push(Line {
                    file: short.clone(),
                    number: index + 1,
                    text: text.to_owned(),
                });
            }
        }
    }
    all
}

/// Every `crate::` path in a line, without the `crate::`; a group `crate::{a, b}` gives its members.
fn crate_paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` too: a macro's path is a path.
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let members = group.split('}').next().unwrap_or(group);
            paths.extend(members.split(',').map(|member| member.trim().to_owned()));
        } else {
            paths.push(rest.to_owned());
        }
    }
    paths
}

fn begins_with_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn imports_point_inward() {
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_IMPORT {
        for line in lines(&sources(module)) {
            for path in crate_paths(&line.text) {
                let fine = std::iter::once(&module)
                    .chain(allowed)
                    .any(|allowed| begins_with_module(&path, allowed));
                if !fine {
                    wrong.push(format!("{module} may not import this: {}", line.place()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_core_knows_no_clock_no_socket_and_no_database() {
    let mut wrong = Vec::new();
    for line in lines(&sources("refresh")) {
        for word in IMPURE {
            if line.text.contains(word) {
                wrong.push(format!("{word} in {}", line.place()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_sql_outside_the_store() {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    files.retain(|file| !file.starts_with(root().join("src/store")));
    let mut wrong = Vec::new();
    for line in lines(&files) {
        let sql = SQL
            .iter()
            .any(|word| line.text.contains(&format!("\"{word}")));
        if sql || line.text.contains("rusqlite") {
            wrong.push(line.place());
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_allowed_in_one_module_at_most() {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    let allowing: BTreeSet<PathBuf> = lines(&files)
        .into_iter()
        .filter(|line| {
            line.text.contains("allow(unsafe_code") || line.text.contains("expect(unsafe_code")
        })
        .map(|line| line.file)
        .collect();
    assert!(allowing.len() <= 1, "{allowing:?}");
}

#[test]
fn the_top_level_holds_nothing_but_what_it_should() {
    let expected: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "config",
        "systemd",
        "tests",
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ]
    .into();
    let there: BTreeSet<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    assert_eq!(
        there.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        expected
    );
}

/// A test that can't fail would keep nothing honest.
#[test]
fn the_scan_sees_what_it_looks_for() {
    let found = crate_paths("use crate::{store::Store, refresh}; crate::config::load(); x");
    assert_eq!(found[..2], ["store::Store", "refresh"]);
    assert!(begins_with_module(&found[2], "config"));
    assert!(!begins_with_module("store_else::x", "store"));
    assert!(begins_with_module(
        "local_api::types::Status",
        "local_api::types"
    ));
    assert!(!begins_with_module("local_api::keeper", "local_api::types"));
    assert!(lines(&sources("refresh")).len() > 100);
}
