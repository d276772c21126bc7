//! Row 4: what a warm read costs in instructions and allocations, counted by callgrind.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::reads::{spread, with_stock};
use crate::client::{Load, Requests, read};
use crate::report::{Aim, Line};
use crate::yardsticks::Server;
use crate::{Error, Lab, Missing, stock};

/// What a run has cost.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    instructions: f64,
    allocations: f64,
}

/// Row 4: the difference between a short run and a long one, so that the start does not count.
pub fn per_read(lab: &Lab) -> Result<Vec<Line>, Error> {
    let found = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if found.is_err() {
        return Err(Box::new(Missing("valgrind")));
    }
    let (few, many) = (lab.of(2_000, 100), lab.of(12_000, 200));
    let per_read = |count: &dyn Fn(u64) -> Result<Counted, Error>| {
        let (few_cost, many_cost) = (count(few)?, count(many)?);
        let reads = (many - few) as f64;
        Ok::<_, Error>(Counted {
            instructions: (many_cost.instructions - few_cost.instructions) / reads,
            allocations: (many_cost.allocations - few_cost.allocations) / reads,
        })
    };
    let ours = per_read(&|reads| freshd(lab, reads))?;
    let theirs = per_read(&|reads| bare_hyper(lab, reads))?;
    let rounds = [(ours.instructions, theirs.instructions)];
    let mut allocations = Line::new("4", "allocations per warm read", "", ours.allocations);
    allocations.yardstick = Some(theirs.allocations);
    Ok(vec![
        Line::of_rounds("4", "instructions per warm read", "", &rounds).aim(Aim::AtMost(1.5)),
        allocations,
    ])
}

fn callgrind(file: &Path) -> Vec<String> {
    let out = format!("--callgrind-out-file={}", file.display());
    ["valgrind", "--tool=callgrind", "-q", &out]
        .map(str::to_owned)
        .to_vec()
}

fn load(count: u64) -> Load {
    Load {
        connections: 1,
        count,
        time: Duration::from_secs(300),
        rate: None,
    }
}

fn freshd(lab: &Lab, reads: u64) -> Result<Counted, Error> {
    let (site, setup, _server) = with_stock(lab, "4", 1_000)?;
    let file = site.dir.join("callgrind.out");
    let words = callgrind(&file);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let freshd = site.start_under(lab, &setup.one_thread(), &words)?;
    let requests = Requests::http(spread(1_000, 20).map(stock::token_path));
    read(&site.socket(), &requests, load(reads))?.all_served()?;
    freshd.stop()?;
    counted(&file)
}

fn bare_hyper(lab: &Lab, reads: u64) -> Result<Counted, Error> {
    let (site, _, _) = with_stock(lab, "4-bare", 1_000)?;
    let file = site.dir.join("callgrind.out");
    let mut server = Server::start_under("constant-server", &site.dir, &callgrind(&file))?;
    let requests = Requests::http(spread(1_000, 20).map(stock::token_path));
    read(&server.socket, &requests, load(reads))?.all_served()?;
    server.child.terminate()?;
    counted(&file)
}

/// Reads callgrind's file: `totals: N`, and for each call `cfn=(number) name` and then `calls=N`.
fn counted(file: &Path) -> Result<Counted, Error> {
    let text = std::fs::read_to_string(file)?;
    let mut counted = Counted::default();
    let mut names: HashMap<&str, bool> = HashMap::new();
    let mut allocates = false;
    for line in text.lines() {
        if let Some(total) = line
            .strip_prefix("totals: ")
            .or(line.strip_prefix("summary: "))
        {
            counted.instructions = total.trim().parse()?;
        }
        let function = line.strip_prefix("cfn=").or(line.strip_prefix("fn="));
        if let Some(function) = function {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                let name = name.split(['@', '\'']).next().unwrap_or(name);
                names.insert(
                    number,
                    ["malloc", "calloc", "realloc", "aligned_alloc", "mi_malloc"].contains(&name),
                );
            }
            allocates = line.starts_with("cfn=") && names.get(number).copied().unwrap_or(false);
        }
        if let (true, Some(calls)) = (allocates, line.strip_prefix("calls=")) {
            let number = calls.split(' ').next().unwrap_or(calls);
            counted.allocations += number.parse::<f64>()?;
            allocates = false;
        }
    }
    Ok(counted)
}
