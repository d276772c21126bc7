//! README.md holds together: its links lead somewhere, and what it says twice with the code is the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The lines outside of fenced blocks.
fn text() -> impl Iterator<Item = &'static str> {
    let mut fenced = false;
    README.lines().filter(move |line| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
        .collect()
}

/// The rows of the first table below a line, as their first two cells.
fn rows(below: &str) -> Vec<(&'static str, &'static str)> {
    let (_, rest) = README
        .split_once(below)
        .unwrap_or_else(|| panic!("no {below:?} in README.md"));
    rest.lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("|---"))
        .filter_map(|line| line.trim_matches('|').split_once('|'))
        .map(|(first, second)| (first.trim(), second.trim()))
        .collect()
}

fn links_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .map(|link| link.split(')').next().unwrap())
}

/// The paths that the package installs, and the directories that they are in.
fn installed() -> BTreeSet<PathBuf> {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"]
        .as_array()
        .unwrap();
    let mut files = BTreeSet::from([PathBuf::from("/usr/share/doc/freshd/copyright")]);
    for asset in assets {
        let (source, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
        let to = Path::new("/").join(to);
        let Some((dir, ending)) = source.split_once('*') else {
            let name = Path::new(source).file_name().unwrap();
            files.insert(match asset[1].as_str().unwrap().ends_with('/') {
                true => to.join(name),
                false => to,
            });
            continue;
        };
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(ending) {
                files.insert(to.join(name));
            }
        }
    }
    let directories: Vec<PathBuf> = files
        .iter()
        .flat_map(|file| file.ancestors().skip(1).map(Path::to_owned))
        .collect();
    files.extend(directories);
    files
}

#[test]
fn every_link_of_the_installed_readme_leads_to_a_file_of_the_package() {
    let told = Command::new("sed")
        .args(["-f", "systemd/readme.sed", "README.md"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    let told = String::from_utf8(told.stdout).unwrap();
    let installed = installed();
    let mut files = 0;
    for target in links_in(&told).filter(|it| !it.starts_with('#') && !it.starts_with("https://")) {
        files += 1;
        let path = Path::new("/usr/share/doc/freshd").join(target);
        assert!(installed.contains(&path), "the package has no {path:?}");
    }
    assert!(files > 8, "{files} links to files");
    // What the text names by its installed place is there too.
    for (_, rest) in README
        .match_indices("/usr/share/doc/freshd")
        .map(|(at, _)| README.split_at(at))
    {
        let end = rest.find(|c: char| c.is_whitespace() || "`,;)".contains(c));
        let path = Path::new(&rest[..end.unwrap()]);
        assert!(installed.contains(path), "the package has no {path:?}");
    }
}

#[test]
fn every_link_leads_to_a_heading_or_a_file() {
    let headings: Vec<String> = text()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    let different: BTreeSet<&String> = headings.iter().collect();
    assert_eq!(different.len(), headings.len(), "two headings are the same");
    let all: String = text().collect::<Vec<_>>().join("\n");
    let mut links = 0;
    for target in links_in(&all) {
        links += 1;
        if let Some(heading) = target.strip_prefix('#') {
            assert!(
                headings.iter().any(|one| one == heading),
                "no heading {target}"
            );
        } else if !target.starts_with("https://") {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(target);
            assert!(file.exists(), "no file {target}");
        }
    }
    assert!(links > 50, "{links} links");
}

#[test]
fn the_exit_codes_are_those_of_the_programs_help() {
    let help = |program: &str| {
        let out = Command::new(program).arg("--help").output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let freshctl: BTreeSet<String> = help(env!("CARGO_BIN_EXE_freshctl"))
        .split("Exit codes:")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|line| line.get(..4))
        .map(|code| code.trim().to_owned())
        .filter(|code| code.parse::<u8>().is_ok())
        .collect();
    let told: BTreeSet<String> = rows("| `freshctl` | |")
        .into_iter()
        .map(|row| row.0.to_owned())
        .collect();
    assert_eq!(told, freshctl);

    let freshd: BTreeSet<String> = help(env!("CARGO_BIN_EXE_freshd"))
        .split("Exit codes:")
        .nth(1)
        .unwrap()
        .split("the demo")
        .next()
        .unwrap()
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(str::to_owned)
        .collect();
    let told: BTreeSet<String> = rows("| `freshd` | |")
        .into_iter()
        .map(|row| row.0.to_owned())
        .collect();
    assert_eq!(told, freshd);
}

#[test]
fn the_clients_and_the_stand_in_are_sound() {
    for file in ["freshd.py", "stand-in.py"] {
        let path = format!("{}/config/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let program = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
        let done = Command::new("python3")
            .args(["-c", program, &path])
            .status()
            .unwrap();
        assert!(done.success(), "{file}");
    }
}
