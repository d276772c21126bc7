//! What the fuzzer is fed, replayed: the committed corpus, and thousands of mutations of it by a seeded generator.
//!
//! `tests/fuzz/` has the targets for a real run with cargo-fuzz; these are the same functions.

use std::collections::BTreeMap;
use std::path::Path;

#[path = "fuzz/inputs.rs"]
mod inputs;
#[path = "simulation/rng.rs"]
#[allow(dead_code, reason = "the simulation draws more kinds of things")]
mod rng;

use rng::Rng;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut inputs: Vec<(String, Vec<u8>)> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    inputs.sort();
    assert!(
        inputs.len() > 8,
        "{} inputs in {}",
        inputs.len(),
        dir.display()
    );
    inputs
}

/// One to four changes: a byte set, flipped, taken out or put in, a piece doubled, cut off or brought from another input.
fn mutated(rng: &mut Rng, from: &[u8], other: &[u8]) -> Vec<u8> {
    let mut input = from.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(input.len() as u64 + 1) as usize;
        let end = (at + rng.below(16) as usize).min(input.len());
        match rng.below(7) {
            0 if at < input.len() => input[at] = rng.next() as u8,
            1 if at < input.len() => input[at] ^= 1 << rng.below(8),
            2 => drop(input.drain(at..end)),
            3 => input.insert(at, rng.pick(b"\0\xff\n\"{}[]%&=:/.,09eE-+ a")),
            4 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            5 => input.truncate(at),
            _ => {
                let begin = rng.below(other.len() as u64 + 1) as usize;
                let stop = (begin + rng.below(32) as usize).min(other.len());
                input.splice(at..at, other[begin..stop].iter().copied());
            }
        }
    }
    input
}

/// Feeds a target its corpus and `mutations` more; names the input that it does not bear.
fn feed(name: &str, mutations: u64, target: impl Fn(&[u8])) {
    struct Fed<'a>(&'a str, &'a [u8]);
    impl Drop for Fed<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}: {:?}", self.0, String::from_utf8_lossy(self.1));
                eprintln!("{}: as bytes: {:?}", self.0, self.1);
            }
        }
    }
    let inputs = corpus(name);
    for (file, input) in &inputs {
        let _fed = Fed(file, input);
        target(input);
    }
    let mut rng = Rng::new(mutations);
    for _ in 0..mutations {
        let from = &inputs[rng.below(inputs.len() as u64) as usize].1;
        let other = &inputs[rng.below(inputs.len() as u64) as usize].1;
        let input = mutated(&mut rng, from, other);
        let _fed = Fed(name, &input);
        target(&input);
    }
}

#[test]
fn any_answer_of_a_token_endpoint_is_understood_or_refused() {
    feed("token_response", 20_000, inputs::token_response);
}

#[test]
fn any_configuration_is_understood_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("freshd.toml");
    feed("config", 1_000, |data| inputs::config(data, &file));
}

#[test]
fn any_request_is_understood_or_refused() {
    feed("http_request", 20_000, inputs::http_request);
}

#[test]
fn any_stored_row_is_read_or_refused() {
    // Or all of them are refused, for a column that is missing here.
    let corpus: BTreeMap<_, _> = corpus("stored_row").into_iter().collect();
    let row = freshd::store::read_untrusted_row(&corpus["every-column"]).unwrap();
    assert_eq!(row.standing.reason(), "restored");
    assert!(
        row.refresh_token_end
            .is_some_and(|end| end.warn_at.is_some())
    );
    assert!(row.mark.is_some() && row.refused_since.is_some());
    feed("stored_row", 3_000, inputs::stored_row);
}

#[test]
fn a_sealed_value_opens_and_no_changed_one_does() {
    let good = freshd::store::sealed("a refresh token");
    assert!(freshd::store::opens_as_sealed(&good));
    for at in 0..good.len() {
        assert!(!freshd::store::opens_as_sealed(&good[..at]), "cut at {at}");
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert!(!freshd::store::opens_as_sealed(&changed), "changed at {at}");
    }
}
